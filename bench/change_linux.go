package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// measureChange counts what the agent sends for one changed grant in 10,000
// openings.
func measureChange(ctx context.Context, o options, r *report) error {
	h, err := startHost(ctx, o.jitgate, o.dir, o.dir)
	if err != nil {
		return err
	}
	defer h.close()
	list, err := h.fill(ctx, fullGrants)
	if err != nil {
		return err
	}
	if _, err := h.quiet(ctx, settling); err != nil {
		return err
	}
	changed := &list[fullGrants/2]
	changed.Sources = append(slices.Clone(changed.Sources), prefixOf(source(1<<22)))
	more, err := countChanges(ctx, h, list)
	if err != nil {
		return err
	}
	changed.Sources = append(changed.Sources[1:], prefixOf(source(1<<22+1)))
	other, err := countChanges(ctx, h, list)
	if err != nil {
		return err
	}
	r.add("Elements in the kernel's events after the rename, until 1 s without any. A prefix that goes is closed by adding and deleting it\n"+
		"    (deleting an element that has just run out would fail the whole batch): those events are shown for information.",
		result{name: "one prefix more among 10,000", value: more.String(), bound: "exactly 1 added", ok: more == changes{added: 1}, exact: true},
		result{name: "one prefix replaced among 10,000", value: other.String()})
	return nil
}

type changes struct{ added, deleted int }

func (c changes) String() string { return fmt.Sprintf("%d added, %d deleted", c.added, c.deleted) }

func countChanges(ctx context.Context, h *host, list []policy.Grant) (c changes, err error) {
	if _, err := h.send(ctx, list); err != nil {
		return c, err
	}
	seen, err := h.quiet(ctx, time.Second)
	for _, e := range seen {
		switch {
		case e.table != agentTable:
		case e.added:
			c.added++
		default:
			c.deleted++
		}
	}
	return c, err
}

func prefixOf(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
