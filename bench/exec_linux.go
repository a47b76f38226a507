package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/firewall"
)

const plainTableName = "plain"

// measureExec compares one opening with the program many tools would run for
// it, and a whole list with that program.
func measureExec(ctx context.Context, o options, r *report) error {
	runs := max(20, o.runs/3)
	var applied, delivered []result
	size := map[int]int{}
	for _, openings := range []int{0, 1000, 10000} {
		m, err := measureExecAt(ctx, o, openings, runs)
		if err != nil {
			return fmt.Errorf("%d openings present: %w", openings, err)
		}
		times := float64(m.exec.median()) / float64(m.apply.median())
		applied = append(applied, result{name: fmt.Sprintf("one opening, %d present", openings), value: m.apply.String(),
			beside: "exec nft " + m.exec.String(), ratio: times, bound: "≥ 10×", ok: times >= 10})
		if m.deliver != nil {
			size[openings] = m.size
			delivered = append(delivered, result{name: fmt.Sprintf("rename → rule, list of %d + 1", openings), value: m.deliver.String(),
				beside: "exec nft " + m.execBeside.String(), ratio: m.deliver.over(m.execBeside)})
		}
	}
	r.add(fmt.Sprintf("%d turns each, call to return: Backend.Apply of a one-opening plan; exec of `nft -f -` adding one such element to\n"+
		"    an unowned table with the same kind of set, in a namespace of its own. The ratio says how many times faster.", runs), applied...)
	r.add(fmt.Sprintf("%d turns each: the agent reads, verifies and compares the complete list (envelopes of %d and %d bytes) to open the one\n"+
		"    prefix more; nft gets one line that nobody verified. The ratio is agent ÷ exec.", deliveries(runs), size[1000], size[10000]), delivered...)
	return nil
}

func deliveries(runs int) int { return max(10, runs/4) }

type execFigures struct {
	apply, exec         sample
	deliver, execBeside sample // nil with nothing present
	size                int    // of the agent's envelope
}

func measureExecAt(ctx context.Context, o options, openings, runs int) (m execFigures, err error) {
	direct, err := newDirect(openings, ssh)
	if err != nil {
		return m, err
	}
	defer direct.close()
	plain, err := newWorld()
	if err != nil {
		return m, err
	}
	defer plain.close()
	if err := plain.nft(o.dir, plainTable(plainTableName)+addLine(0, openings)); err != nil {
		return m, err
	}
	for i := range runs {
		if err := pause(ctx, turnPause); err != nil {
			return m, err
		}
		apply, err := direct.open(1<<20 + i)
		if err != nil {
			return m, err
		}
		exec, err := timeNft(plain, o.dir, addLine(1<<20+i, 1))
		if err != nil {
			return m, err
		}
		m.apply, m.exec = append(m.apply, apply), append(m.exec, exec)
	}
	if openings == 0 {
		return m, nil
	}
	h, err := startHost(ctx, o.jitgate, o.dir, o.dir)
	if err != nil {
		return m, err
	}
	defer h.close()
	list, err := h.fill(ctx, openings/perGrant)
	if err != nil {
		return m, err
	}
	for i := range deliveries(runs) {
		a := source(1<<21 + i)
		list = append(list, h.realm.grant("extra-"+grantID(i), a))
		deliver, err := h.deliver(ctx, list, 1, added(agentTable, sshFrom(a)))
		if err != nil {
			return m, err
		}
		if err := pause(ctx, turnPause); err != nil {
			return m, err
		}
		exec, err := timeNft(plain, o.dir, addLine(1<<21+i, 1))
		if err != nil {
			return m, err
		}
		m.deliver, m.execBeside = append(m.deliver, deliver), append(m.execBeside, exec)
	}
	m.size = h.size
	return m, nil
}

// addLine is nft's command that opens for n sources; empty for none.
func addLine(first, n int) string {
	if n == 0 {
		return ""
	}
	elements := make([]string, n)
	for i := range elements {
		elements[i] = source(first+i).String() + " . tcp . 22 timeout 2h comment \"bench\""
	}
	return fmt.Sprintf("add element inet %s %s { %s }\n", plainTableName, hostSet, strings.Join(elements, ", "))
}

func timeNft(w *world, scratch, script string) (took time.Duration, err error) {
	err = w.do(func() error {
		c, err := nftCommand(scratch, script)
		if err != nil {
			return err
		}
		from := monotonic()
		err = runNft(c)
		took = monotonic() - from
		return err
	})
	return took, err
}

var ssh = firewall.Port{Protocol: firewall.TCP, First: 22, Last: 22}

// direct is jitgate's own backend, in a world of its own.
type direct struct {
	*world
	backend firewall.Backend
	ports   []firewall.Port
}

// newDirect guards ports, ssh among them, and opens ssh for so many sources.
func newDirect(openings int, ports ...firewall.Port) (*direct, error) {
	w, err := newWorld()
	if err != nil {
		return nil, err
	}
	d := &direct{world: w, ports: firewall.Union(ports, nil)}
	p := firewall.Plan{Rules: true, Ports: d.ports}
	for i := range openings {
		p.Open = append(p.Open, d.change(i))
	}
	err = w.do(func() (err error) {
		if d.backend, err = agent.OpenBackend(nil); err != nil {
			return err
		}
		return d.backend.Apply(context.Background(), p)
	})
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *direct) change(i int) firewall.Change {
	a := source(i)
	return firewall.Change{Door: firewall.Door{Source: prefixOf(a), Protocol: firewall.TCP, Port: 22},
		End: firewall.End{Until: agent.BootNow().Add(2 * time.Hour), Label: "bench"}}
}

// open measures one opening, and closes it again.
func (d *direct) open(i int) (took time.Duration, err error) {
	err = d.do(func() error {
		c := d.change(i)
		plan := firewall.Plan{Ports: d.ports, Open: []firewall.Change{c}}
		from := monotonic()
		err := d.backend.Apply(context.Background(), plan)
		took = monotonic() - from
		if err != nil {
			return err
		}
		return d.backend.Apply(context.Background(), firewall.Plan{Ports: d.ports, Close: []firewall.Closing{{Door: c.Door}}})
	})
	return took, err
}

func (d *direct) close() {
	d.closeBackend()
	d.world.close()
}

func (d *direct) closeBackend() {
	if d.backend == nil {
		return
	}
	if err := d.backend.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: close the backend:", err)
	}
}
