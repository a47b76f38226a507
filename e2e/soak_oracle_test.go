//go:build linux && soak

package e2e_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// door is one way into a host: from an address to a port.
type door struct {
	port   uint16
	source netip.Addr
}

func (d door) String() string { return fmt.Sprintf("%s to %d", d.source, d.port) }

// promise is one request, as far as whoever asked can know what became of it.
// Between asking and the answer, and between an end and the host's hearing of
// it, the door may be either. A port that the policy does not name is a promise
// to everybody, which another policy ends.
type promise struct {
	request string // its id; empty: not answered yet, or never, or there is none
	port    uint16
	source  netip.Prefix

	asked  time.Time // sent, and from then on perhaps in force
	acked  time.Time // answered; zero: not, and nothing is sure
	may    time.Time // may be open until then
	must   time.Time // has to be open until then
	ending time.Time // something that ends it was sent; zero: nothing
	ended  time.Time // and was answered
	over   time.Time // from then on it is not in force
}

func (p *promise) String() string {
	text := fmt.Sprintf("request %s: port %d from %s", p.request, p.port, p.source)
	for _, at := range []struct {
		name string
		time time.Time
	}{{"asked", p.asked}, {"acked", p.acked}, {"must", p.must}, {"may", p.may}, {"ending", p.ending}, {"ended", p.ended}, {"over", p.over}} {
		if !at.time.IsZero() {
			text += fmt.Sprintf(" %s %s", at.name, at.time.Format("15:04:05.000"))
		}
	}
	return text
}

func (p *promise) covers(d door) bool { return p.port == d.port && p.source.Contains(d.source) }

// The times of the oracle.
const (
	// heardWithin is how long what was acknowledged may take to a host that
	// nothing disturbs.
	heardWithin = 30 * time.Second
	// pastEnd is how long past its end an opening may be found: an agent rounds
	// up, and a packet takes its time.
	pastEnd = 2 * time.Second
	// beforeEnd is how long before its end it may be found closed: ends are cut
	// to the second.
	beforeEnd = 2 * time.Second
)

// never is later than any run.
var never = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// ledger is what was promised of one host and what was done to it. It knows
// nothing of documents, versions and lists.
type ledger struct {
	promises  []*promise
	rules     map[uint16][]netip.Prefix // of the policy: who may ask for which port
	faults    int                       // that go on
	settled   time.Time                 // nothing is sure before
	unguarded []span                    // in which nothing guards it, as documented
}

// span is a time, which has not ended yet if end is never.
type span struct{ begin, end time.Time }

// permits says whether the policy lets a request be made.
func (l *ledger) permits(port uint16, source netip.Prefix) bool {
	return slices.ContainsFunc(l.rules[port], func(p netip.Prefix) bool { return p.Overlaps(source) && p.Bits() <= source.Bits() })
}

// may says whether a door may have been open at some moment from begin to end.
func (l *ledger) may(d door, begin, end time.Time) bool {
	return slices.ContainsFunc(l.promises, func(p *promise) bool {
		return p.covers(d) && p.asked.Before(end) && begin.Before(p.may) && (p.over.IsZero() || begin.Before(p.over))
	})
}

// must says whether a door had to be open all the time from begin to end.
func (l *ledger) must(d door, begin, end time.Time) bool {
	return l.calm(begin) && slices.ContainsFunc(l.promises, func(p *promise) bool {
		return p.covers(d) && !p.acked.IsZero() && p.acked.Add(heardWithin).Before(begin) && end.Before(p.must) && p.ending.IsZero()
	})
}

// calm says whether nothing has disturbed the host since a while before then.
func (l *ledger) calm(then time.Time) bool { return l.faults == 0 && l.settled.Before(then) }

// sure says whether the host must have heard of all that was answered.
func (l *ledger) sure(now time.Time) bool {
	return l.calm(now) && !slices.ContainsFunc(l.promises, func(p *promise) bool {
		begins := !p.acked.IsZero() && now.Before(p.acked.Add(heardWithin))
		return p.over.IsZero() && now.Before(p.may) && (begins || !p.ended.IsZero())
	})
}

// left says whether a door was open, from begin to end, for want of a guard.
func (l *ledger) left(begin, end time.Time) bool {
	return slices.ContainsFunc(l.unguarded, func(s span) bool { return s.begin.Before(end) && begin.Before(s.end) })
}

// pass notes what the host must have heard of by now, and forgets what is long
// over.
func (l *ledger) pass(now time.Time) {
	if !l.calm(now) {
		return
	}
	for _, p := range l.promises {
		if p.over.IsZero() && !p.ended.IsZero() && now.Sub(p.ended) > heardWithin {
			p.over = now
		}
	}
	long := now.Add(-time.Minute)
	l.promises = slices.DeleteFunc(l.promises, func(p *promise) bool {
		return p.may.Before(long) || !p.over.IsZero() && p.over.Before(long)
	})
}

// disturb begins a fault. settle ends it: after so long again all is as
// promised.
func (l *ledger) disturb() (settle func(now time.Time, within time.Duration)) {
	l.faults++
	return func(now time.Time, within time.Duration) {
		l.faults--
		l.unsettle(now.Add(within))
	}
}

// unsettle has nothing be sure until then.
func (l *ledger) unsettle(until time.Time) {
	if l.settled.Before(until) {
		l.settled = until
	}
}

// ask notes a request that is sent for so long. It may take the place of an
// older one for the same.
func (l *ledger) ask(port uint16, source netip.Prefix, length time.Duration, now time.Time) *promise {
	p := &promise{port: port, source: source, asked: now, may: never, must: now.Add(length - beforeEnd)}
	end(l.same(p), now)
	l.promises = append(l.promises, p)
	return p
}

// same are the other promises for the same.
func (l *ledger) same(p *promise) (list []*promise) {
	for _, old := range l.promises {
		if old != p && old.port == p.port && old.source == p.source {
			list = append(list, old)
		}
	}
	return list
}

// granted notes that a request was answered, and took the place of older ones.
func (l *ledger) granted(p *promise, request string, length time.Duration, now time.Time) {
	p.request, p.acked, p.may = request, now, now.Add(length+pastEnd)
	ended(l.same(p), now)
}

// refused forgets a request that was not granted.
func (l *ledger) refused(p *promise) {
	l.promises = slices.DeleteFunc(l.promises, func(q *promise) bool { return q == p })
}

// end notes that something is sent that ends promises.
func end(list []*promise, now time.Time) {
	for _, p := range list {
		if p.ending.IsZero() {
			p.ending = now
		}
	}
}

// ended notes that it was answered.
func ended(list []*promise, now time.Time) {
	for _, p := range list {
		if p.ended.IsZero() {
			p.ended = now
		}
	}
}

// open are the promises that can be revoked or extended.
func (l *ledger) open(now time.Time) (list []*promise) {
	for _, p := range l.promises {
		if p.request != "" && p.ending.IsZero() && now.Before(p.must) {
			list = append(list, p)
		}
	}
	return list
}

// prescribe notes that other rules are sent. ending are the promises they leave
// no room for, and free those to everybody that they make.
func (l *ledger) prescribe(rules map[uint16][]netip.Prefix, now time.Time) (ending, free []*promise) {
	next := ledger{rules: rules}
	for _, p := range l.promises {
		if everybody := p.source.Bits() == 0; everybody && rules[p.port] != nil || !everybody && !next.permits(p.port, p.source) {
			ending = append(ending, p)
		}
	}
	end(ending, now)
	for port := range l.rules {
		if rules[port] != nil {
			continue
		}
		for _, all := range everybody {
			free = append(free, &promise{port: port, source: all, asked: now, may: never, must: never})
		}
	}
	l.promises = append(l.promises, free...)
	return ending, free
}

var everybody = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// prescribed notes that they were answered.
func (l *ledger) prescribed(rules map[uint16][]netip.Prefix, ending, free []*promise, now time.Time) {
	l.rules = rules
	ended(ending, now)
	for _, p := range free {
		p.acked = now
	}
}

// describe tells what is known of a door.
func (l *ledger) describe(d door) string {
	lines := []string{fmt.Sprintf("%d faults go on, settled at %s", l.faults, l.settled.Format("15:04:05.000"))}
	for _, p := range l.promises {
		if p.covers(d) {
			lines = append(lines, p.String())
		}
	}
	return strings.Join(lines, "\n\t")
}

// The oracle says no. Without this a soak in which everything is allowed would
// pass.
func TestSoakOracle(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }
	d, other := door{22, netip.MustParseAddr("10.0.0.1")}, door{22, netip.MustParseAddr("10.0.0.2")}
	source := netip.MustParsePrefix("10.0.0.1/32")
	type view struct {
		may, must bool
	}
	for _, c := range []struct {
		name string
		did  func(*ledger)
		at   float64 // a packet then
		door door
		want view
	}{
		{"nothing was asked for", func(*ledger) {}, 100, d, view{}},
		{"before it was asked for", func(l *ledger) { l.ask(22, source, time.Hour, at(10)) }, 9, d, view{}},
		{"asked for, not answered", func(l *ledger) { l.ask(22, source, time.Hour, at(10)) }, 100, d, view{true, false}},
		{"answered a moment ago", func(l *ledger) { l.granted(l.ask(22, source, time.Hour, at(10)), "r", time.Hour, at(11)) }, 12, d, view{true, false}},
		{"answered a while ago", func(l *ledger) { l.granted(l.ask(22, source, time.Hour, at(10)), "r", time.Hour, at(11)) }, 50, d, view{true, true}},
		{"from elsewhere", func(l *ledger) { l.granted(l.ask(22, source, time.Hour, at(10)), "r", time.Hour, at(11)) }, 50, other, view{}},
		{"at the end", func(l *ledger) { l.granted(l.ask(22, source, time.Minute, at(10)), "r", time.Minute, at(11)) }, 69, d, view{true, false}},
		{"past the end", func(l *ledger) { l.granted(l.ask(22, source, time.Minute, at(10)), "r", time.Minute, at(11)) }, 74, d, view{}},
		{"while a fault goes on", func(l *ledger) {
			l.granted(l.ask(22, source, time.Hour, at(10)), "r", time.Hour, at(11))
			l.disturb()
		}, 50, d, view{true, false}},
		{"soon after a fault", func(l *ledger) {
			l.granted(l.ask(22, source, time.Hour, at(10)), "r", time.Hour, at(11))
			l.disturb()(at(40), time.Minute)
		}, 50, d, view{true, false}},
		{"long after a fault", func(l *ledger) {
			l.granted(l.ask(22, source, time.Hour, at(10)), "r", time.Hour, at(11))
			l.disturb()(at(40), time.Minute)
		}, 101, d, view{true, true}},
		{"revoked, and heard of", func(l *ledger) {
			p := l.ask(22, source, time.Hour, at(10))
			l.granted(p, "r", time.Hour, at(11))
			end([]*promise{p}, at(20))
			ended([]*promise{p}, at(21))
			l.pass(at(52))
		}, 53, d, view{}},
		{"revoked, and perhaps not heard of", func(l *ledger) {
			p := l.ask(22, source, time.Hour, at(10))
			l.granted(p, "r", time.Hour, at(11))
			end([]*promise{p}, at(20))
			ended([]*promise{p}, at(21))
			l.disturb()(at(25), time.Minute)
			l.pass(at(52))
		}, 53, d, view{true, false}},
		{"the policy does not name the port any more", func(l *ledger) {
			l.rules = map[uint16][]netip.Prefix{22: everybody}
			ending, free := l.prescribe(nil, at(10))
			l.prescribed(nil, ending, free, at(11))
		}, 50, d, view{true, true}},
		{"the policy names the port again", func(l *ledger) {
			rules := map[uint16][]netip.Prefix{22: everybody}
			l.rules = rules
			ending, free := l.prescribe(nil, at(10))
			l.prescribed(nil, ending, free, at(11))
			ending, free = l.prescribe(rules, at(20))
			l.prescribed(rules, ending, free, at(21))
			l.pass(at(52))
		}, 53, d, view{}},
		{"the policy has no room for it any more", func(l *ledger) {
			l.granted(l.ask(22, source, time.Hour, at(10)), "r", time.Hour, at(11))
			rules := map[uint16][]netip.Prefix{22: {netip.MustParsePrefix("10.0.0.2/32")}}
			ending, free := l.prescribe(rules, at(20))
			l.prescribed(rules, ending, free, at(21))
			l.pass(at(52))
		}, 53, d, view{}},
		{"in place of an older one", func(l *ledger) {
			l.granted(l.ask(22, source, time.Hour, at(10)), "r", time.Hour, at(11))
			l.granted(l.ask(22, source, time.Minute, at(20)), "s", time.Minute, at(21))
			l.pass(at(60))
		}, 90, d, view{}},
	} {
		l := &ledger{}
		c.did(l)
		moment, later := at(c.at), at(c.at+0.3)
		if got := (view{l.may(c.door, moment, later), l.must(c.door, moment, later)}); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	l := &ledger{rules: map[uint16][]netip.Prefix{22: {netip.MustParsePrefix("10.0.0.0/24")}}}
	for source, want := range map[string]bool{"10.0.0.1/32": true, "10.0.0.0/24": true, "10.0.0.0/16": false, "10.0.1.1/32": false, "fd77::1/128": false} {
		if got := l.permits(22, netip.MustParsePrefix(source)); got != want || l.permits(23, netip.MustParsePrefix(source)) {
			t.Errorf("%s may ask for port 22: %v, or for port 23", source, got)
		}
	}
}
