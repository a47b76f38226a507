//go:build linux

package nft_test

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/firewall/nft"
)

// loadBaseline has nft(8) close ports in a namespace, as a boot does.
func loadBaseline(t *testing.T, namespace string, ports ...string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "baseline.nft")
	if err := os.WriteFile(file, nft.Baseline(fwtest.Ports(t, ports...)), 0o600); err != nil {
		t.Fatal(err)
	}
	fwtest.Command(t, namespace, "nft", "-f", file)
}

// bootTable reports whether the table of the boot stands.
func bootTable(t *testing.T, namespace string) bool {
	t.Helper()
	return strings.Contains(fwtest.Command(t, namespace, "nft", "list", "tables"), nft.BootTableName)
}

// Closed by the file alone; then the guard takes over, and from there on only
// what it says counts.
func TestBaseline(t *testing.T) {
	pair := fwtest.NewPair(t)
	p := newProber(t, pair)
	arrives := func(port uint16) bool {
		var numbers []uint32
		fwtest.In(t, pair.Outside, func() {
			for _, source := range []string{fwtest.Outside4, fwtest.Outside6} {
				numbers = append(numbers, p.probe(netip.MustParseAddr(source), port))
			}
			p.settled()
		})
		time.Sleep(20 * time.Millisecond)
		if p.has(numbers[0]) != p.has(numbers[1]) {
			t.Errorf("port %d: one family arrives, the other does not", port)
		}
		return p.has(numbers[0])
	}
	guarded := []string{"22/tcp", "3389/udp", "5985-5986/udp cut", "4000/udp cut"}
	// Twice: it replaces itself.
	loadBaseline(t, pair.VM, "22/udp")
	loadBaseline(t, pair.VM, guarded...)
	for port, want := range map[uint16]bool{22: true, 3389: false, 5985: false, 5986: false, 5987: true} {
		if arrives(port) != want {
			t.Errorf("closed by the baseline, udp port %d: arrives %t, want %t", port, !want, want)
		}
	}
	for _, vm := range []string{fwtest.VM4, fwtest.VM6} {
		address := net.JoinHostPort(vm, "22")
		echo(t, pair, address)
		if reaches(t, pair.Outside, address, 300*time.Millisecond) {
			t.Errorf("%s is open behind the baseline", address)
		}
		if !reaches(t, pair.VM, address, 5*time.Second) {
			t.Errorf("%s is closed to the host itself", address)
		}
	}
	// The host's own connections go on, from a guarded port too.
	far := net.JoinHostPort(fwtest.Outside4, "9999")
	fwtest.In(t, pair.Outside, func() {
		packets(t, "udp", far, func(c net.PacketConn, from net.Addr, b []byte) { c.WriteTo(b, from) })
	})
	fwtest.In(t, pair.VM, func() {
		c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: own(fwtest.Outside4), Port: 4000}}).Dial("udp", far)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if !alive(t, c) {
			t.Error("answers to a connection of the host's own do not arrive")
		}
	})

	var b *nft.Backend
	fwtest.In(t, pair.VM, func() {
		b = open(t)
		apply(t, b, firewall.Ruleset{Ports: fwtest.Ports(t, guarded...), Openings: map[firewall.Door]firewall.End{
			fwtest.Door(t, fwtest.Outside4+"/32", "3389/udp"):  {Until: bootNow().Add(time.Minute)},
			fwtest.Door(t, fwtest.Outside6+"/128", "3389/udp"): {Until: bootNow().Add(time.Minute)},
		}})
	})
	if bootTable(t, pair.VM) {
		t.Error("the guard stands, and the table of the boot too")
	}
	if !arrives(3389) || arrives(5985) {
		t.Error("it is not as the guard says")
	}
	// Whoever loads it beside the guard closes what was granted: that is mended.
	loadBaseline(t, pair.VM, guarded...)
	if arrives(3389) {
		t.Fatal("the baseline does not close what was granted: this test is blind")
	}
	fwtest.In(t, pair.VM, func() {
		have, err := b.Observe(t.Context())
		if err != nil || have.Intact {
			t.Errorf("observed beside the table of the boot: intact %t, %v", have.Intact, err)
		}
		if err := b.Apply(t.Context(), firewall.Diff(have, have.Ruleset)); err != nil {
			t.Fatal(err)
		}
	})
	if bootTable(t, pair.VM) || !arrives(3389) {
		t.Error("the table of the boot still reigns")
	}
}

// A guard that only observes, and one that is taken away, leave nothing closed.
func TestBaselineGoes(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *nft.Backend){
		"observed": func(t *testing.T, b *nft.Backend) {
			apply(t, b, firewall.Ruleset{Ports: fwtest.Ports(t, ssh...), Observe: true})
		},
		"removed": func(t *testing.T, b *nft.Backend) {
			if err := b.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		"removed with the guard": func(t *testing.T, b *nft.Backend) {
			apply(t, b, firewall.Ruleset{Ports: fwtest.Ports(t, ssh...)})
			file := filepath.Join(t.TempDir(), "again.nft")
			if err := os.WriteFile(file, nft.Baseline(fwtest.Ports(t, ssh...)), 0o600); err != nil {
				t.Fatal(err)
			}
			nftOutput(t, "-f", file)
			if err := b.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			if left := nftOutput(t, "list", "ruleset"); left != "" {
				t.Errorf("there is\n%s", left)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			pair := fwtest.NewPair(t)
			loadBaseline(t, pair.VM, ssh...)
			fwtest.In(t, pair.VM, func() { end(t, open(t)) })
			if bootTable(t, pair.VM) {
				t.Error("the table of the boot is there")
			}
		})
	}
}

// From the baseline to the guard and back, under a flood: no packet gets in.
func TestBaselineHandsOver(t *testing.T) {
	pair := fwtest.NewPair(t)
	var leaked, sent atomic.Int64
	fwtest.In(t, pair.VM, func() {
		packets(t, "udp", net.JoinHostPort(fwtest.VM4, "3389"), func(net.PacketConn, net.Addr, []byte) { leaked.Add(1) })
	})
	const port = "3389/udp"
	loadBaseline(t, pair.VM, port)
	var c net.Conn
	fwtest.In(t, pair.Outside, func() {
		var err error
		if c, err = net.Dial("udp", net.JoinHostPort(fwtest.VM4, "3389")); err != nil {
			t.Fatal(err)
		}
	})
	stop := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() {
		defer c.Close()
		for {
			select {
			case <-stop:
				return
			default:
				c.Write([]byte("ungranted"))
				sent.Add(1)
			}
		}
	})
	for range 50 {
		fwtest.In(t, pair.VM, func() {
			b := open(t)
			apply(t, b, firewall.Ruleset{Ports: fwtest.Ports(t, port)})
			b.Close()
		})
		loadBaseline(t, pair.VM, port)
		fwtest.Command(t, pair.VM, "nft", "delete", "table", "inet", nft.TableName)
	}
	if n := leaked.Load(); n > 0 {
		t.Errorf("%d of %d packets got through", n, sent.Load())
	}
	fwtest.Command(t, pair.VM, "nft", "delete", "table", "inet", nft.BootTableName)
	for i := 0; leaked.Load() == 0; i++ {
		if i == 1000 {
			t.Fatal("with no table nothing arrives either: the test is blind")
		}
		time.Sleep(time.Millisecond)
	}
	close(stop)
	flood.Wait()
	if sent.Load() < 1000 {
		t.Errorf("only %d packets were sent", sent.Load())
	}
}
