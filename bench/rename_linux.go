package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/jitgate/jitgate/policy"
)

const warmUp = 30

// measureRename compares an agent with the floor, from the rename of a file
// to the element in the kernel.
func measureRename(ctx context.Context, o options, r *report) error {
	h, err := startHost(ctx, o.jitgate, o.dir, o.dir)
	if err != nil {
		return err
	}
	defer h.close()
	f, err := h.startFloor(o.dir)
	if err != nil {
		return err
	}
	defer stop(f.process)

	check := newSignature()
	var ours, least, checks sample
	for i := range warmUp + o.runs {
		a, b, err := renameTurn(ctx, h, f, i)
		if err != nil {
			return err
		}
		c, err := check.turn(ctx)
		if err != nil {
			return err
		}
		if i >= warmUp {
			ours, least, checks = append(ours, a), append(least, b), append(checks, c)
		}
	}
	p50, p99 := ours.over(least), ours.percentile(99)
	checked := float64(ours.median()) / float64(least.median()+checks.median())
	r.add(fmt.Sprintf("%d turns each; agent run, an envelope of %d bytes with one new /32 beside three; rename(2) → nf_tables event.\n"+
		"    Floor: another process in the same namespace, bare inotify read + one sendto that adds one element, same end. It opens what\n"+
		"    nobody signed; the second line adds one ed25519.Verify, timed in the same turns, which no agent can do without.", o.runs, h.size),
		result{name: "rename → rule", value: ours.String(), beside: "floor " + least.String(), ratio: p50, bound: "p50 ≤ 2.5×", ok: p50 <= 2.5},
		result{name: "rename → rule, signature in the floor", value: ours.String(), beside: "floor " + span(least.median()) + " + check " + span(checks.median()), ratio: checked},
		result{name: "rename → rule, p99", value: span(p99), bound: "≤ 10 ms", ok: p99 <= 10*time.Millisecond})
	return measureDisk(ctx, o, r)
}

// renameTurn is one turn of each; which one is first alternates. Then both do
// the same unmeasured work, so that neither is more awake at the next turn.
func renameTurn(ctx context.Context, h *host, f *floor, i int) (ours, least time.Duration, err error) {
	standing := standingGrants(h.realm)
	if i == 0 {
		if _, err := h.deliver(ctx, standing, len(standing), anyAdded(agentTable)); err != nil {
			return 0, 0, err
		}
	}
	mine := func() (err error) { ours, err = openOne(ctx, h, standing, i); return err }
	theirs := func() (err error) { least, err = f.turn(ctx, h.listener); return err }
	first, second := mine, theirs
	if i%2 == 1 {
		first, second = theirs, mine
	}
	closeAgain := func() error { _, err := h.deliver(ctx, standing, 1, anyDeleted(agentTable)); return err }
	openMore := func() error { _, err := f.turn(ctx, h.listener); return err }
	for _, do := range []func() error{first, second, closeAgain, openMore} {
		if err := do(); err != nil {
			return 0, 0, err
		}
	}
	return ours, least, nil
}

// standingGrants are in force all the time.
func standingGrants(r *realm) []policy.Grant {
	list := []policy.Grant{r.grant("standing-1", source(1)), r.grant("standing-2", source(2)), r.grant("standing-3", source(3))}
	for i := range list {
		list[i].Justification += strings.Repeat(" and why", 6)
	}
	return list
}

// openOne delivers the standing grants and one for a source never seen.
func openOne(ctx context.Context, h *host, standing []policy.Grant, i int) (time.Duration, error) {
	a := source(1000 + i)
	list := append(standing[:len(standing):len(standing)], h.realm.grant(grantID(i), a))
	return h.deliver(ctx, list, 1, added(agentTable, sshFrom(a)))
}

// signature is one to check, over as many bytes as a small list has.
type signature struct {
	key          ed25519.PublicKey
	message, sig []byte
}

func newSignature() signature {
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)) // worthless, and need not be more
	message := make([]byte, 1400)
	return signature{private.Public().(ed25519.PublicKey), message, ed25519.Sign(private, message)}
}

// turn times one check by a process that was idle, as the agent is.
func (s signature) turn(ctx context.Context) (time.Duration, error) {
	if err := pause(ctx, turnPause); err != nil {
		return 0, err
	}
	from := monotonic()
	ok := ed25519.Verify(s.key, s.message, s.sig)
	took := monotonic() - from
	if !ok {
		return 0, errors.New("crypto/ed25519 refuses its own signature")
	}
	return took, nil
}

func (f *floor) turn(ctx context.Context, l *listener) (time.Duration, error) {
	if err := pause(ctx, turnPause); err != nil {
		return 0, err
	}
	from, key, err := f.rename()
	if err != nil {
		return 0, err
	}
	at, err := l.await(ctx, 1, added(floorTable, key))
	return at - from, err
}

// measureDisk is the agent's part once more, with the fsyncs that keep mark
// and record over a power cut.
func measureDisk(ctx context.Context, o options, r *report) error {
	h, err := startHost(ctx, o.jitgate, o.diskDir, o.dir)
	if err != nil {
		return err
	}
	defer h.close()
	standing := standingGrants(h.realm)
	if _, err := h.deliver(ctx, standing, len(standing), anyAdded(agentTable)); err != nil {
		return err
	}
	var s sample
	for i := range min(o.runs, 60) {
		d, err := openOne(ctx, h, standing, i)
		if err != nil {
			return err
		}
		s = append(s, d)
		if _, err := h.deliver(ctx, standing, 1, anyDeleted(agentTable)); err != nil {
			return err
		}
	}
	r.add(fmt.Sprintf("%d turns of the same with inbox and state in %s: what is durable before a port opens waits for this disk.", len(s), filepath.Dir(o.diskDir)),
		result{name: "rename → rule, state on a disk", value: s.String()})
	return nil
}
