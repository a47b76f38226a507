package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/policy"
)

// agentTable is where the agent keeps its openings.
const agentTable = "jitgate"

// host is a real agent, in mode enforce with trust and policy in force, in a
// world of its own with a listener.
type host struct {
	*world
	*listener
	realm   *realm
	program string
	dir     string
	notify  string // the socket it tells its supervisor on; empty: it has none
	process *exec.Cmd
	log     *os.File
	size    int // bytes of the last envelope
}

// startHost starts an agent that guards port 22, with inbox and state in dir.
// It returns once the agent has opened what a first list says, and closed it
// again.
func startHost(ctx context.Context, program, dir, socketDir string) (h *host, err error) {
	if h, err = newHost(program, dir, socketDir, guardedPort(22, policy.TCP, policy.Keep)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	if err := h.startAgent(); err != nil {
		return h, err
	}
	first := sources(1<<20, 1)[0]
	if _, err := h.deliver(ctx, []policy.Grant{h.realm.grant("first", first)}, 1, added(agentTable, sshFrom(first))); err != nil {
		return h, err
	}
	_, err = h.deliver(ctx, nil, 1, anyDeleted(agentTable))
	return h, err
}

// newHost makes a host without an agent. The path of the agent's socket has a
// short limit, so it goes to its own directory.
func newHost(program, dir, socketDir string, ports ...policy.Port) (h *host, err error) {
	h = &host{program: program, dir: dir}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	if h.realm, err = newRealm(ports); err != nil {
		return h, err
	}
	if err := h.writeFiles(socketDir); err != nil {
		return h, err
	}
	if h.world, err = newWorld(); err != nil {
		return h, err
	}
	if h.listener, err = h.listen(); err != nil {
		return h, err
	}
	h.log, err = os.Create(filepath.Join(dir, "agent.log"))
	return h, err
}

func (h *host) startAgent() error {
	c := exec.Command(h.program, "agent", "run", "--config", h.config())
	c.Stdout, c.Stderr = h.log, h.log
	if h.notify != "" {
		c.Env = append(os.Environ(), "NOTIFY_SOCKET="+h.notify)
	}
	if err := h.start(c); err != nil {
		return err
	}
	h.process = c
	return nil
}

// killAgent leaves the guard to the kernel.
func (h *host) killAgent() {
	if h.process != nil {
		stop(h.process)
		h.process = nil
	}
}

func (h *host) close() {
	h.killAgent()
	if h.log != nil {
		h.log.Close()
	}
	if h.listener != nil {
		h.listener.close()
	}
	if h.world != nil {
		h.world.close()
	}
}

func (h *host) config() string { return filepath.Join(h.dir, "agent.toml") }
func (h *host) inbox() string  { return filepath.Join(h.dir, "inbox") }
func (h *host) staged() string { return filepath.Join(h.dir, "grants.new") }

func (h *host) writeFiles(socketDir string) error {
	// An earlier run's marks would refuse this run's realm.
	state := filepath.Join(h.dir, "state")
	if err := errors.Join(os.RemoveAll(state), os.RemoveAll(h.inbox()), os.MkdirAll(h.inbox(), 0o700)); err != nil {
		return err
	}
	trust, pin, err := h.realm.sealedTrust()
	if err != nil {
		return err
	}
	bounds, err := h.realm.sealedPolicy()
	if err != nil {
		return err
	}
	settings := fmt.Sprintf("host_id = %q\nmode = \"enforce\"\nguard = [22]\ninbox_dir = %q\nstate_dir = %q\nsocket = %q\ntrust_pin = %q\n",
		hostID, h.inbox(), state, filepath.Join(socketDir, "agent.sock"), pin)
	return errors.Join(
		os.WriteFile(h.config(), []byte(settings), 0o600),
		os.WriteFile(filepath.Join(h.inbox(), agent.Trust.File()), trust, 0o600),
		os.WriteFile(filepath.Join(h.inbox(), agent.Policy.File()), bounds, 0o600))
}

// turnPause lets everything go idle before a turn.
const turnPause = 4 * time.Millisecond

// deliver sends a list and returns the time from right before rename(2) to
// the arrival of the n-th matching event.
func (h *host) deliver(ctx context.Context, list []policy.Grant, n int, matches func(event) bool) (time.Duration, error) {
	from, err := h.send(ctx, list)
	if err != nil {
		return 0, err
	}
	at, err := h.awaitAgent(ctx, n, matches)
	return at - from, err
}

// awaitAgent is await for what the agent is to do: it knows where to look if
// it does not.
func (h *host) awaitAgent(ctx context.Context, n int, matches func(event) bool) (time.Duration, error) {
	at, err := h.await(ctx, n, matches)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("list %d: %w; the agent's log:\n%s", h.realm.version, err, h.logTail())
	}
	return at, err
}

// send renames a new list of grants into the inbox.
func (h *host) send(ctx context.Context, list []policy.Grant) (from time.Duration, err error) {
	envelope, err := h.realm.seal(list)
	if err != nil {
		return 0, err
	}
	h.size = len(envelope)
	if err := os.WriteFile(h.staged(), envelope, 0o600); err != nil {
		return 0, err
	}
	if err := pause(ctx, turnPause); err != nil {
		return 0, err
	}
	target := filepath.Join(h.inbox(), agent.Grants.File())
	from = monotonic()
	return from, os.NewSyscallError("rename", unix.Rename(h.staged(), target))
}

// fill puts n grants in force and returns them.
func (h *host) fill(ctx context.Context, n int) ([]policy.Grant, error) {
	list := h.realm.grants(0, n)
	_, err := h.deliver(ctx, list, n*perGrant, anyAdded(agentTable))
	return list, err
}

func (h *host) logTail() string {
	text, err := os.ReadFile(h.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}
