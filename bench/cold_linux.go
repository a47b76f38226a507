package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jitgate/jitgate/policy"
)

const (
	coldTurns  = 10
	fullGrants = 200 // of 50 sources: 10,000 openings
	full       = fullGrants * perGrant
	settling   = 100 * time.Millisecond // the kernel gives memory of closed openings back
)

// measureCold compares an agent that gets its first long list with the
// kernel's own time for the same elements.
func measureCold(ctx context.Context, o options, r *report) error {
	h, err := startHost(ctx, o.jitgate, o.dir, o.dir)
	if err != nil {
		return err
	}
	defer h.close()
	k, err := newRefill(h, o.dir)
	if err != nil {
		return err
	}
	defer k.socket.close()
	var ours, kernel sample
	for i := range coldTurns {
		d, err := coldTurn(ctx, h, i*full)
		if err != nil {
			return err
		}
		ours = append(ours, d)
		if d, err = k.turn(ctx); err != nil {
			return err
		}
		kernel = append(kernel, d)
	}
	ratio := ours.over(kernel)
	r.add(fmt.Sprintf("%d turns each, medians: agent with an empty list, rename of 200 grants × 50 prefixes → last element's event. Kernel: one\n"+
		"    sendto of a batch made beforehand with the same elements for a set of the same kind in the same namespace, same end.", coldTurns),
		result{name: "10,000 openings from cold", value: span(ours.median()), beside: "kernel " + span(kernel.median()), ratio: ratio, bound: "≤ 3×", ok: ratio <= 3})
	return nil
}

// coldTurn opens for sources no grant was taken back from: to let their
// sessions speak again would be work of its own.
func coldTurn(ctx context.Context, h *host, first int) (time.Duration, error) {
	took, err := h.deliver(ctx, h.realm.grants(first, fullGrants), full, anyAdded(agentTable))
	if err != nil {
		return 0, err
	}
	if _, err := h.deliver(ctx, []policy.Grant{}, full, anyDeleted(agentTable)); err != nil {
		return 0, err
	}
	_, err = h.quiet(ctx, settling)
	return took, err
}

// refill adds the elements of the long list to a table of the same layout.
type refill struct {
	host   *host
	socket rawSocket
	batch  []byte
}

func newRefill(h *host, scratch string) (*refill, error) {
	if err := h.nft(scratch, plainTable(floorTable)); err != nil {
		return nil, err
	}
	k := &refill{host: h}
	if err := h.do(func() (err error) { k.socket, err = openRawSocket(); return err }); err != nil {
		return nil, err
	}
	elements := make([]rawElement, full)
	for i := range elements {
		elements[i] = rawElement{sshFrom(source(i)), grantID(i / perGrant)}
	}
	k.batch = addBatch(floorTable, elements)
	return k, nil
}

func (k *refill) turn(ctx context.Context) (time.Duration, error) {
	from := monotonic()
	if err := k.socket.commit(k.batch); err != nil {
		return 0, err
	}
	at, err := k.host.await(ctx, full, anyAdded(floorTable))
	if err != nil {
		return 0, err
	}
	if err := k.socket.commit(flushBatch(floorTable)); err != nil {
		return 0, err
	}
	_, err = k.host.quiet(ctx, settling)
	return at - from, err
}
