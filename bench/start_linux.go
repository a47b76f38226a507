package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/policy"
)

const (
	startTurns    = 20
	startOpenings = 10
)

// measureStart compares an agent that starts on a machine without a guard, as
// after a boot, with nft loading the same rules.
func measureStart(ctx context.Context, o options, r *report) error {
	memory, err := measureStartIn(ctx, o, o.dir)
	if err != nil {
		return err
	}
	disk, err := measureStartIn(ctx, o, o.diskDir)
	if err != nil {
		return err
	}
	limit, ratio := 100*time.Millisecond, memory.guard.over(memory.nft)
	r.add(fmt.Sprintf("%d turns each, from before fork(2): agent run with trust, policy and %d openings in force before, no table and an empty record of connections →\n"+
		"    last opening's event, which is in the transaction of the rules; → READY=1 on NOTIFY_SOCKET. nft loads the table as nft lists it, in a\n"+
		"    namespace of its own, and ends. The ratio is agent ÷ nft. On a disk: inbox and state in the working directory.", startTurns, startOpenings),
		result{name: "start → guard in place", value: memory.guard.String(), beside: "exec nft " + memory.nft.String(), ratio: ratio, bound: "p50 ≤ 100 ms", ok: memory.guard.median() <= limit},
		result{name: "start → ready", value: memory.ready.String()},
		result{name: "start → guard in place, state on a disk", value: disk.guard.String(), bound: "p50 ≤ 100 ms", ok: disk.guard.median() <= limit},
		result{name: "start → ready, state on a disk", value: disk.ready.String()})
	return nil
}

type startFigures struct{ guard, ready, nft sample }

func measureStartIn(ctx context.Context, o options, dir string) (f startFigures, err error) {
	h, err := newHost(o.jitgate, dir, o.dir, guardedPort(22, policy.TCP, policy.Keep))
	if err != nil {
		return f, err
	}
	defer h.close()
	var stranger rawSocket
	if err := h.do(func() (err error) { stranger, err = openRawSocket(); return err }); err != nil {
		return f, err
	}
	defer stranger.close()
	s, err := newSupervisor(filepath.Join(o.dir, "notify"))
	if err != nil {
		return f, err
	}
	defer s.close()
	h.notify = s.path
	var list []policy.Grant
	for i := range startOpenings {
		list = append(list, h.realm.grant(grantID(i), source(i)))
	}
	if _, err := h.send(ctx, list); err != nil {
		return f, err
	}
	if err := h.startAgent(); err != nil {
		return f, err
	}
	if _, err := h.awaitAgent(ctx, startOpenings, anyAdded(agentTable)); err != nil {
		return f, err
	}
	if _, err := s.await(ctx); err != nil {
		return f, err
	}
	rules, err := h.listing()
	if err != nil {
		return f, err
	}
	for range startTurns {
		if err := h.stopAgent(); err != nil {
			return f, err
		}
		if err := stranger.commit(deleteBatch(agentTable)); err != nil {
			return f, err
		}
		if _, err := h.quiet(ctx, settling); err != nil {
			return f, err
		}
		from := monotonic()
		if err := h.startAgent(); err != nil {
			return f, err
		}
		at, err := h.awaitAgent(ctx, startOpenings, anyAdded(agentTable))
		if err != nil {
			return f, err
		}
		f.guard = append(f.guard, at-from)
		if at, err = s.await(ctx); err != nil {
			return f, err
		}
		f.ready = append(f.ready, at-from)
		if _, err := h.quiet(ctx, settling); err != nil {
			return f, err
		}
		took, err := loadElsewhere(o.dir, rules)
		if err != nil {
			return f, err
		}
		f.nft = append(f.nft, took)
	}
	return f, nil
}

// listing is the agent's table as nft reads it back.
func (h *host) listing() (string, error) {
	var out []byte
	err := h.do(func() (err error) {
		out, err = exec.Command("nft", "--stateless", "list", "table", "inet", agentTable).Output()
		return err
	})
	// An owner's table would go with the nft that made it.
	text := strings.ReplaceAll(string(out), "\tflags owner\n", "")
	if err == nil && strings.Count(text, source(0).String()) == 0 {
		err = fmt.Errorf("nft lists no opening:\n%s", text)
	}
	return text, err
}

// loadElsewhere times nft loading rules in a namespace where there are none.
func loadElsewhere(scratch, rules string) (time.Duration, error) {
	w, err := newWorld()
	if err != nil {
		return 0, err
	}
	defer w.close()
	return timeNft(w, scratch, rules)
}

// supervisor hears what a service tells, in the words of sd_notify(3).
type supervisor struct {
	path  string
	ready chan time.Duration // when it had said so
	conn  *net.UnixConn
}

func newSupervisor(path string) (*supervisor, error) {
	if err := os.RemoveAll(path); err != nil {
		return nil, err
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	s := &supervisor{path, make(chan time.Duration, 64), conn}
	go func() {
		defer close(s.ready)
		for buffer := make([]byte, 4096); ; {
			n, err := conn.Read(buffer)
			if err != nil {
				return // closed
			}
			if strings.Contains(string(buffer[:n]), "READY=1") {
				s.ready <- monotonic()
			}
		}
	}()
	return s, nil
}

func (s *supervisor) await(ctx context.Context) (time.Duration, error) {
	select {
	case at, open := <-s.ready:
		if !open {
			return 0, errors.New("the supervisor's socket is closed")
		}
		return at, nil
	case <-time.After(patience):
		return 0, fmt.Errorf("the agent does not say that it is ready within %s", patience)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (s *supervisor) close() { s.conn.Close() }

// stopAgent ends the agent as a service manager does. The guard stays.
func (h *host) stopAgent() error {
	c := h.process
	h.process = nil
	if err := c.Process.Signal(unix.SIGTERM); err != nil {
		return err
	}
	defer time.AfterFunc(patience, func() { c.Process.Kill() }).Stop()
	return c.Wait()
}
