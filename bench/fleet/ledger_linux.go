package main

import (
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// ledger is what was asked for, what was acknowledged, and what arrived. Each
// machine in a request has a source address of its own there, by which it is
// known again on the list that the machine verified.
type ledger struct {
	mu     sync.Mutex
	asks   []ask
	guards map[int]time.Time // when each machine had the policy that is waited for
	guard  time.Duration     // by which that policy is known
}

// ask is a request for access, as far as it is for one machine.
type ask struct {
	host   int
	called time.Time
	acked  time.Time // zero: no answer, or a refusal
	opened time.Time // the machine has it, verified
	asked  time.Time // when it was asked to be revoked; zero: never
	back   time.Time // when that was acknowledged
	closed time.Time // the machine has verified a list without it
}

// begin notes what is asked for in a request, for each machine under a number of
// its own. It returns the first of these, and the sources.
func (l *ledger) begin(hosts []int) (number int, sources []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	number = len(l.asks)
	for i, host := range hosts {
		l.asks = append(l.asks, ask{host: host, called: time.Now()})
		sources = append(sources, sourceOf(number+i))
	}
	return number, sources
}

func sourceOf(number int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(number >> 16), byte(number >> 8), byte(number)})
}

func numberOf(a netip.Addr) int {
	b := a.As4()
	return int(b[1])<<16 | int(b[2])<<8 | int(b[3])
}

// change changes one entry.
func (l *ledger) change(number int, f func(*ask)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.asks[number])
}

func (l *ledger) get(number int) ask {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asks[number]
}

func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.asks)
}

// acknowledged notes the answer to a request for n machines.
func (l *ledger) acknowledged(number, n int) {
	for i := range n {
		l.change(number+i, func(a *ask) { a.acked = time.Now() })
	}
}

// hear takes down what a machine told.
func (l *ledger) hear(n news) {
	switch n.Event {
	case opened:
		l.change(n.Request, func(a *ask) {
			if a.host == n.Machine && a.opened.IsZero() {
				a.opened = n.At
			}
		})
	case closed:
		l.change(n.Request, func(a *ask) {
			if a.host == n.Machine {
				a.closed = n.At
			}
		})
	case admitted:
		l.mu.Lock()
		defer l.mu.Unlock()
		if n.Longest == l.guard {
			l.guards[n.Machine] = n.At
		}
	}
}

// expect begins to wait for a policy that is known by its longest access.
func (l *ledger) expect(longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.guard, l.guards = longest, map[int]time.Time{}
}

// guarded is how many machines have that policy, and when the last one got it.
func (l *ledger) guarded() (n int, last time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.guards {
		if at.After(last) {
			last = at
		}
	}
	return len(l.guards), last
}

// missing says what was acknowledged from a number on and did not arrive.
func (l *ledger) missing(from int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, first := 0, ""
	for i, a := range l.asks[from:] {
		what := ""
		switch {
		case !a.acked.IsZero() && a.opened.IsZero():
			what = "was granted and never came to"
		case !a.back.IsZero() && a.closed.IsZero():
			what = "was revoked and is still open on"
		case !a.closed.IsZero() && a.asked.IsZero():
			what = "was closed by nobody on"
		}
		if what != "" {
			if n++; n == 1 {
				first = fmt.Sprintf("request %d %s machine %d", from+i, what, a.host)
			}
		}
	}
	if n > 0 {
		return fmt.Errorf("%d of %d requests are lost: %s", n, len(l.asks)-from, first)
	}
	return nil
}
