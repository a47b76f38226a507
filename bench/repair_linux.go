package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

const (
	repairGrants = 2 // of 50 sources: 100 openings
	repairs      = repairGrants * perGrant
	repairTurns  = 30
	floodTurns   = 10
	floodPort    = 3389
)

// repairBench is a host whose table a stranger can change.
type repairBench struct {
	*host
	stranger rawSocket
	flood    wire
}

// measureRepair times how long the guard is not whole after a stranger has
// deleted it.
func measureRepair(ctx context.Context, o options, r *report) error {
	h, err := newHost(o.jitgate, o.dir, o.dir, guardedPort(22, policy.TCP, policy.Keep), guardedPort(floodPort, policy.UDP, policy.Keep))
	if err != nil {
		return err
	}
	defer h.close()
	b := &repairBench{host: h}
	if err := h.do(func() (err error) { b.stranger, err = openRawSocket(); return err }); err != nil {
		return err
	}
	defer b.stranger.close()
	outside, err := h.newOutside()
	if err != nil {
		return err
	}
	defer outside.close()
	if err := b.flood.lay(h.world, outside, floodPort); err != nil {
		return err
	}
	defer b.flood.close()
	if err := b.flood.greet(); err != nil {
		return err
	}
	if _, err := h.send(ctx, h.realm.grants(0, repairGrants)); err != nil {
		return err
	}

	var deleted, emptied, flooded sample
	var most, all int
	for range repairTurns {
		if err := b.unowned(ctx); err != nil {
			return err
		}
		// Then, of the same table, only what is in it: it stays without an
		// owner, and what is deleted as a whole comes last.
		d, err := b.repair(ctx, emptyBatch(agentTable, "pre"))
		if err != nil {
			return err
		}
		emptied = append(emptied, d)
		if d, err = b.repair(ctx, deleteBatch(agentTable)); err != nil {
			return err
		}
		deleted = append(deleted, d)
	}
	for range floodTurns {
		if err := b.unowned(ctx); err != nil {
			return err
		}
		d, got, err := b.repairUnderFlood(ctx)
		if err != nil {
			return err
		}
		flooded, most, all = append(flooded, d), max(most, got), all+got
	}
	limit := 3 * time.Millisecond
	r.add(fmt.Sprintf("%d turns each, agent idle, %d openings, on a table made without an owner, as all are before Linux 6.9: the stranger's netlink call\n"+
		"    returns → the last opening's event; after each the guard was looked through. The agent makes a deleted table anew with an owner, so\n"+
		"    each turn begins with an agent started on one without. Second line: base chain and set emptied, which it has to compare rule by\n"+
		"    rule. The flood, %d turns, is datagrams to a guarded port as fast as one core sends them.", repairTurns, repairs, floodTurns),
		result{name: "table deleted → whole again", value: deleted.String(), bound: "p50 ≤ 3 ms", ok: deleted.median() <= limit},
		result{name: "rules and openings gone → whole again", value: emptied.String()},
		result{name: "table deleted, under a flood", value: flooded.String(), beside: fmt.Sprintf("%d packets got in, at most %d", all/floodTurns, most)})
	return nil
}

// unowned starts the agent on a table that somebody made before, which no
// kernel lets it own.
func (b *repairBench) unowned(ctx context.Context) error {
	b.killAgent()
	// An owner's table outlives it. The first time there is none to delete.
	if err := b.stranger.commit(deleteBatch(agentTable)); err != nil {
		return err
	}
	if err := b.nft(b.dir, "table inet "+agentTable+" { }\n"); err != nil {
		return err
	}
	if _, err := b.quiet(ctx, settling); err != nil {
		return err
	}
	if err := b.startAgent(); err != nil {
		return err
	}
	if _, err := b.awaitAgent(ctx, repairs, anyAdded(agentTable)); err != nil {
		return err
	}
	_, err := b.quiet(ctx, settling)
	return err
}

// repair has the stranger send a batch, and returns the time from then on
// until the guard is whole.
func (b *repairBench) repair(ctx context.Context, batch []byte) (time.Duration, error) {
	if err := b.stranger.commit(batch); err != nil {
		return 0, err
	}
	from := monotonic()
	at, err := b.awaitAgent(ctx, repairs, anyAdded(agentTable))
	if err != nil {
		return 0, err
	}
	// The agent writes rules and openings in one batch.
	if err := b.whole(ctx); err != nil {
		return 0, err
	}
	_, err = b.quiet(ctx, settling)
	return at - from, err
}

// whole looks at the guard as an agent would.
func (b *repairBench) whole(ctx context.Context) error {
	var have firewall.Observed
	err := b.do(func() error {
		backend, err := agent.OpenBackend(nil)
		if err != nil {
			return err
		}
		have, err = backend.Observe(ctx)
		return errors.Join(err, backend.Close())
	})
	if err == nil && !(have.Intact && have.Drops() && len(have.Openings) == repairs && len(have.Ports) == 2) {
		err = fmt.Errorf("the guard is not whole after its repair: %d ports, %d openings, intact %t", len(have.Ports), len(have.Openings), have.Intact)
	}
	return err
}

// repairUnderFlood also counts the packets that got in meanwhile.
func (b *repairBench) repairUnderFlood(ctx context.Context) (took time.Duration, got int, err error) {
	b.flood.drain()
	var over atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for packet := []byte("no grant"); !over.Load(); {
			_, _ = unix.Write(b.flood.from, packet) // what is dropped is no error
		}
	}()
	defer func() { over.Store(true); <-done }()
	if err := pause(ctx, settling); err != nil {
		return 0, 0, err
	}
	if n := b.flood.drain(); n != 0 {
		return 0, 0, fmt.Errorf("%d packets without a grant passed a guard that is whole", n)
	}
	if took, err = b.repair(ctx, deleteBatch(agentTable)); err != nil {
		return 0, 0, err
	}
	if got = b.flood.drain(); got == 0 {
		return 0, 0, errors.New("no packet got in although there was no guard: the flood does not flow")
	}
	return took, got, nil
}
