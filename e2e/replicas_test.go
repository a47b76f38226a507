//go:build linux

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jitgate/jitgate/control/store/storetest"
)

// relay passes connections on, each to wherever dial leads at the time.
func relay(t *testing.T, l net.Listener, dial func() (net.Conn, error)) {
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				far, err := dial()
				if err != nil {
					return
				}
				defer far.Close()
				ended := make(chan struct{}, 2)
				for _, pair := range [][2]net.Conn{{c, far}, {far, c}} {
					go func() { io.Copy(pair[0], pair[1]); ended <- struct{}{} }()
				}
				select {
				case <-ended:
				case <-t.Context().Done():
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
}

// fleet is two control planes over one database, behind one address.
type fleet struct {
	*host
	replicas [2]*plane
	database *storetest.PostgresServer
	alive    atomic.Int32 // which one the address leads to
}

// newFleet makes two replicas beside a host. They share what a data directory
// has but for the database: keys, certificates, tokens.
func newFleet(h *host) *fleet {
	h.t.Helper()
	f := &fleet{host: h, database: storetest.Server(h.t)}
	dsn := f.database.NewDatabase(h.t)
	h.outside.run(h.t, "ip", "addr", "add", control4+"/24", "dev", "p0")
	// The database listens on this machine's loopback, which the replicas do
	// not see.
	sockets := h.t.TempDir()
	local, err := net.Listen("unix", filepath.Join(sockets, ".s.PGSQL.5432"))
	if err != nil {
		h.t.Fatal(err)
	}
	address, name := databaseAddress(h.t, dsn)
	relay(h.t, local, func() (net.Conn, error) { return net.Dial("tcp", address) })
	config := h.path("control.toml")
	text := fmt.Sprintf("database = %q\npublic_url = %q\n", "postgres://tester@/"+name+"?sslmode=disable&host="+sockets+"&port=5432", "https://"+control4+":8443")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	for i := range f.replicas {
		f.replicas[i] = newPlane(h.t, h.outside, fmt.Sprintf("%s:%d", control4, 9001+i), "--config", config)
	}
	f.replicas[0].start()
	if out, err := exec.Command("cp", "-a", f.replicas[0].dir+"/.", f.replicas[1].dir).CombinedOutput(); err != nil {
		h.t.Fatalf("cp: %v\n%s", err, out)
	}
	f.replicas[1].start()

	var front net.Listener
	h.outside.do(func() { front, err = net.Listen("tcp", control4+":8443") })
	if err != nil {
		h.t.Fatal(err)
	}
	relay(h.t, front, func() (c net.Conn, err error) {
		h.outside.do(func() { c, err = net.Dial("tcp", f.replicas[f.alive.Load()].listen) })
		return c, err
	})
	return f
}

// front is the fleet as its callers see it.
func (f *fleet) front() *plane {
	p := *f.replicas[0]
	p.listen, p.cmd = control4+":8443", nil
	return &p
}

func databaseAddress(t *testing.T, dsn string) (address, name string) {
	t.Helper()
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s:%d", c.Host, c.Port), c.Database
}

// Two replicas over one PostgreSQL. While requests come in, the one they go to
// is killed; then the database goes away. What was acknowledged is kept, and
// the machine opens what was asked of either.
func TestReplicasOverPostgreSQL(t *testing.T) {
	t.Parallel()
	f := newFleet(newStranger(t))
	front := f.front()
	admin := front.read("admin.token")
	c := front.sdk(admin, "")
	ctx := t.Context()
	if _, err := c.CreateOrUpdate(ctx, group, location, policyName, policyOf(guards(vmID, rule(22, "*", "PT3H"))), nil); err != nil {
		t.Fatal(err)
	}
	f.enroll(front)
	f.hasPolicy(1)
	f.isClosed(ways("22/tcp", alice4, bob4))

	// Asked of the one that the machine is not connected to.
	other := f.replicas[1].sdk(admin, "")
	if _, err := other.Initiate(ctx, group, location, policyName, asks(vmID, 22, alice4, time.Now().Add(time.Hour)), nil); err != nil {
		t.Fatal(err)
	}
	f.opens(patience, ways("22/tcp", alice4))
	until(t, patience, "each replica should know that it is open", func() bool {
		return portState(t, other, 22) == "Initiated UserRequested" && portState(t, c, 22) == "Initiated UserRequested"
	})

	// Requests without a pause, each for a source of its own.
	asking, stopAsking := context.WithCancel(ctx)
	var acknowledged []string
	var through atomic.Int64 // how many of them
	var failed int
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 1; asking.Err() == nil; i++ {
			source := fmt.Sprintf("198.51.100.%d", i%250+1)
			end := time.Now().Add(time.Hour)
			answer, err := c.Initiate(asking, group, location, policyName, asks(vmID, 22, source, end), nil)
			switch {
			case err == nil:
				acknowledged = append(acknowledged, *answer.VirtualMachines[0].Ports[0].AllowedSourceAddressPrefix)
				through.Add(1)
			case !errors.Is(err, context.Canceled):
				failed++
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	some := func() {
		seen := through.Load()
		until(t, 3*patience, "requests should go through", func() bool { return through.Load() >= seen+8 })
	}
	some()
	f.replicas[0].kill()
	f.alive.Store(1)
	some()
	f.database.Kill(t)
	time.Sleep(time.Second)
	f.database.Start(t)
	until(t, 3*patience, "the control plane should work again", func() bool {
		_, err := c.Get(ctx, group, location, policyName, nil)
		return err == nil
	})
	some()
	stopAsking()
	<-done

	after, err := c.Get(ctx, group, location, policyName, nil)
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, r := range after.Properties.Requests {
		kept = append(kept, *r.VirtualMachines[0].Ports[0].AllowedSourceAddressPrefix)
	}
	for _, source := range acknowledged {
		if !slices.Contains(kept, source) {
			t.Errorf("the request for %s was acknowledged and is lost", source)
		}
	}
	t.Logf("%d requests acknowledged, %d failed meanwhile", len(acknowledged), failed)

	// Nobody had to help: the machine is on the other replica by itself.
	if _, err := c.Initiate(ctx, group, location, policyName, asks(vmID, 22, bob4, time.Now().Add(time.Hour)), nil); err != nil {
		t.Fatal(err)
	}
	f.opens(6*patience, ways("22/tcp", bob4))
	f.isOpen(ways("22/tcp", alice4))
}
