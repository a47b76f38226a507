//go:build linux && soak

package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"
)

// How long after a fault all is as promised again. A fetcher that lost its
// control plane comes back up to a minute later; one that was cut off notices
// after 75 s at the latest.
const (
	agentSettles   = 20 * time.Second
	fetcherSettles = 20 * time.Second
	planeSettles   = 75 * time.Second
	cutSettles     = 75 * time.Second
	longCutSettles = 150 * time.Second
)

// fault is what happens to a host. It comes back when it is over.
type fault struct {
	name    string
	weight  int
	settles time.Duration
	happen  func(*soak, context.Context, *soakHost, time.Duration) error // lasting about so long
}

var faults = []fault{
	{"kill -9 of an agent", 6, agentSettles, func(s *soak, ctx context.Context, h *soakHost, d time.Duration) error {
		return s.restartAgent(ctx, h, syscall.SIGKILL, d)
	}},
	{"orderly restart of an agent", 2, agentSettles, func(s *soak, ctx context.Context, h *soakHost, d time.Duration) error {
		return s.restartAgent(ctx, h, syscall.SIGTERM, d)
	}},
	{"kill -9 of a fetcher", 6, fetcherSettles, func(s *soak, ctx context.Context, h *soakHost, d time.Duration) error {
		if err := h.fetcher.end(syscall.SIGKILL); err != nil {
			return err
		}
		wait(ctx, d)
		return s.startFetcher(h)
	}},
	{"kill -9 of both", 2, agentSettles, func(s *soak, ctx context.Context, h *soakHost, d time.Duration) error {
		if err := h.fetcher.end(syscall.SIGKILL); err != nil {
			return err
		}
		if err := s.restartAgent(ctx, h, syscall.SIGKILL, d); err != nil {
			return err
		}
		return s.startFetcher(h)
	}},
	// Whoever guards is alive: it has to change nothing at all.
	{"nft flush ruleset beside an agent", 6, 0, func(s *soak, _ context.Context, h *soakHost, _ time.Duration) error {
		return h.flush()
	}},
	// Nobody guards: the table has no owner, and root may take it away.
	{"nft flush ruleset with no agent", 1, agentSettles, func(s *soak, ctx context.Context, h *soakHost, d time.Duration) error {
		if err := h.guard.end(syscall.SIGKILL); err != nil {
			return err
		}
		over := h.exposed()
		defer func() { s.exposure(over()) }()
		if err := h.flush(); err != nil {
			return err
		}
		wait(ctx, min(d, 3*time.Second))
		return s.startAgent(ctx, h)
	}},
	{"cut between a host and the control plane", 6, cutSettles, func(s *soak, ctx context.Context, h *soakHost, d time.Duration) error {
		return s.cut(ctx, h, 2*d)
	}},
	{"cut of more than 75 s", 1, longCutSettles, func(s *soak, ctx context.Context, h *soakHost, d time.Duration) error {
		return s.cut(ctx, h, 80*time.Second+d)
	}},
	{"SIGHUP of an agent", 3, 0, func(s *soak, _ context.Context, h *soakHost, _ time.Duration) error {
		return h.guard.cmd.Process.Signal(syscall.SIGHUP)
	}},
}

// disrupt has faults happen to hosts, while acting lasts.
func (s *soak) disrupt(ctx, acting context.Context, r *rand.Rand) {
	total := 0
	for _, f := range faults {
		total += f.weight
	}
	for wait(acting, max(leastFault, perHost/time.Duration(len(s.hosts)))) {
		h, n, d := s.hosts[r.IntN(len(s.hosts))], r.IntN(total), time.Duration(200+r.IntN(9800))*time.Millisecond
		i := 0
		for ; n >= faults[i].weight; i++ {
			n -= faults[i].weight
		}
		f := faults[i]
		if deadline, _ := acting.Deadline(); f.settles == longCutSettles && time.Until(deadline) < 2*longCutSettles {
			continue // a short run would only wait for it
		}
		h.mu.Lock()
		busy := h.failing
		h.failing = true
		settle := func(time.Time, time.Duration) {}
		if !busy && f.settles > 0 {
			settle = h.ledger.disturb()
		}
		h.mu.Unlock()
		if busy {
			continue
		}
		s.count(asFault + f.name)
		s.all.Go(func() {
			if err := f.happen(s, ctx, h, d); err != nil {
				if ctx.Err() == nil {
					s.violated(h, "%s: %v", f.name, err)
				}
				return // nothing more happens to it
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			h.failing = false
			settle(time.Now(), f.settles)
		})
	}
}

// restartAgent ends the agent and starts it again some time later.
func (s *soak) restartAgent(ctx context.Context, h *soakHost, how syscall.Signal, away time.Duration) error {
	if err := h.guard.end(how); err != nil {
		return err
	}
	wait(ctx, away)
	return s.startAgent(ctx, h)
}

// flush is what a stranger does to the host's firewall.
func (h *soakHost) flush() error {
	out, err := h.vm.try("nft", "flush", "ruleset")
	if err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// exposed begins a time in which nothing guards the host. over ends it.
func (h *soakHost) exposed() (over func() time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	begin := time.Now()
	at := len(h.ledger.unguarded)
	h.ledger.unguarded = append(h.ledger.unguarded, span{begin, never})
	return func() time.Duration {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.ledger.unguarded[at].end = time.Now()
		return time.Since(begin)
	}
}

func (s *soak) exposure(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exposed = max(s.exposed, d)
}

// cut has nothing pass between a host and the control plane, or in one
// direction. It is done where strangers' flushes do not reach: outside.
func (s *soak) cut(ctx context.Context, h *soakHost, d time.Duration) error {
	table := fmt.Sprintf("cut_%x", h.v4.As4())
	up := fmt.Sprintf("chain up { type filter hook input priority 0; ip saddr %s tcp dport 8443 drop; }; ", h.v4)
	down := fmt.Sprintf("chain down { type filter hook output priority 0; ip daddr %s tcp sport 8443 drop; }; ", h.v4)
	switch d.Milliseconds() % 4 {
	case 0:
		up = ""
	case 1:
		down = ""
	}
	if out, err := s.outside.try("nft", fmt.Sprintf("table ip %s { %s%s}", table, up, down)); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	wait(ctx, d)
	if out, err := s.outside.try("nft", "delete", "table", "ip", table); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// killPlane kills the control plane now and then, and starts it again. Every
// host is disturbed by that.
func (s *soak) killPlane(ctx, acting context.Context, r *rand.Rand) {
	deadline, _ := acting.Deadline()
	whole := time.Until(deadline)
	every := max(whole/6, 20*time.Second)
	for wait(acting, every/2+time.Duration(r.Int64N(int64(every)))) {
		// Its last life is the longest: that is the one whose memory says most.
		if time.Until(deadline) < whole/3 {
			<-acting.Done()
			return
		}
		settle := s.disturbAll()
		s.count(asFault + "kill -9 of the control plane")
		s.plane.kill()
		wait(ctx, time.Duration(100+r.IntN(14_900))*time.Millisecond)
		s.startPlane()
		settle(planeSettles)
	}
}

// disturbAll begins a fault of every host.
func (s *soak) disturbAll() (settle func(within time.Duration)) {
	var each []func(time.Time, time.Duration)
	for _, h := range s.hosts {
		h.mu.Lock()
		each = append(each, h.ledger.disturb())
		h.mu.Unlock()
	}
	return func(within time.Duration) {
		for i, h := range s.hosts {
			h.mu.Lock()
			each[i](time.Now(), within)
			h.mu.Unlock()
		}
	}
}

// attendTime watches whether this machine stands still: nothing is sure for a
// while after it did.
func (s *soak) attendTime(ctx context.Context) {
	for last := time.Now(); wait(ctx, standstill/6); {
		if stood := time.Since(last); stood > standstill {
			s.say("the machine stood still for %s", stood.Round(time.Second))
			s.count(asFault + "standstill of the machine")
			s.disturbAll()(planeSettles)
		}
		last = time.Now()
		s.tick.Store(last.UnixNano())
	}
}

// standstill is how long nothing may happen on a machine that runs.
const standstill = 3 * time.Second

// steady says whether the machine was seen to run just now.
func (s *soak) steady() bool { return time.Since(time.Unix(0, s.tick.Load())) < standstill }

func (s *soak) startPlane() {
	s.t.Helper()
	s.plane.start()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.planeProcess, s.planeSince, s.planeBase = s.plane.cmd.Process.Pid, time.Now(), nil
}
