package agents

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store/storetest"
)

// failing is a store of which one Update fails.
type failing struct {
	control.Store
	updates, fails int
}

func (f *failing) Update(ctx context.Context, g func(control.Tx) error) error {
	if f.updates++; f.updates == f.fails {
		return errors.New("the disk is full")
	}
	return f.Store.Update(ctx, g)
}

// When agents were heard of is written in pieces, and what could not be written
// with those that come later.
func TestSeenInPieces(t *testing.T) {
	s := &failing{Store: storetest.SQLite(t), fails: 2}
	at := time.Date(2026, 11, 28, 1, 0, 0, 0, time.UTC)
	l := New(Config{Store: s, Now: func() time.Time { return at }})
	var vms []control.VMID
	err := s.Store.Update(t.Context(), func(tx control.Tx) (err error) {
		for n := range 2*seenAtOnce + 1 {
			vm := control.VMID{Subscription: "s", Group: "g", Kind: "Microsoft.Compute/virtualMachines", Name: fmt.Sprintf("vm%d", n)}
			vms = append(vms, vm)
			err = errors.Join(err, tx.PutVM(control.VM{ID: vm, Agent: &control.Agent{}}))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, vm := range vms {
		l.heard(vm)
	}
	if err := l.writeSeen(t.Context()); err == nil || s.updates != 2 {
		t.Fatalf("%v after %d Updates", err, s.updates)
	}
	first := at
	at = at.Add(time.Minute)
	l.heard(vms[0])
	if err := l.writeSeen(t.Context()); err != nil || s.updates != 4 {
		t.Fatalf("%v after %d Updates", err, s.updates)
	}
	err = s.View(t.Context(), func(tx control.Tx) error {
		list, err := tx.VMsOf(vms...)
		for _, v := range list {
			want := first
			if v.ID == vms[0] {
				want = at
			}
			if !v.Agent.LastSeen.Equal(want) {
				t.Errorf("%s was last seen %s, not %s", v.ID.Name, v.Agent.LastSeen, want)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.writeSeen(t.Context()); err != nil || s.updates != 4 {
		t.Errorf("%v, and %d Updates: it was written twice", err, s.updates)
	}
}

// Where thousands of reports have to wait the log says so once, and not thousands
// of times.
func TestPutOff(t *testing.T) {
	var log strings.Builder
	l := New(Config{Log: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Debug})})
	for range 1000 {
		l.putOff(control.VMID{}, errBusy)
	}
	if warned, all := strings.Count(log.String(), "[WARN]"), strings.Count(log.String(), "cannot be taken"); warned != 1 || all != 1000 {
		t.Errorf("%d warnings of %d", warned, all)
	}
	if n := testutil.ToFloat64(l.metrics.putOff); n != 1000 {
		t.Errorf("%v are counted", n)
	}
}
