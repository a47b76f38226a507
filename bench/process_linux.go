package main

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jitgate/jitgate/agent"
)

const (
	idleOpenings = 1000
	idleBefore   = 10 * time.Second
	idleWindow   = 20 * time.Second
	// A pass wakes threads of the Go runtime beside its own. This is one a
	// second on average: far below what polling would cost.
	wakesPerPass = int(agent.Resync / time.Second)
)

// measureProcess looks at an idle agent from outside.
func measureProcess(ctx context.Context, o options, r *report) error {
	h, err := startHost(ctx, o.jitgate, o.dir, o.dir)
	if err != nil {
		return err
	}
	defer h.close()
	if _, err := h.fill(ctx, idleOpenings/perGrant); err != nil {
		return err
	}
	// The agent looks again Resync after its last pass: the windows below
	// hold one such look, and none.
	filled := time.Now()
	if err := pause(ctx, idleBefore); err != nil {
		return err
	}
	pid := h.process.Process.Pid
	memory, err := memoryOf(pid)
	if err != nil {
		return err
	}
	rss, anonymous := memory["VmRSS"], memory["RssAnon"]
	withPass, err := switchesDuring(ctx, pid, agent.Resync-idleWindow*3/4-time.Since(filled), idleWindow)
	if err != nil {
		return err
	}
	without, err := switchesDuring(ctx, pid, 0, idleWindow)
	if err != nil {
		return err
	}
	r.add(fmt.Sprintf("/proc/PID/status of the agent with %d openings, %s after the last change.", idleOpenings, idleBefore),
		result{name: "resident memory, idle", value: megabytes(rss), beside: "of it anonymous " + megabytes(anonymous), bound: "≤ 20 MB", ok: rss <= 20<<20})
	r.add(fmt.Sprintf("voluntary_ctxt_switches of all threads during %s: first with one %s look at inbox and firewall in it, then right after with none.", idleWindow, agent.Resync),
		result{name: "wake-ups, one timed pass", value: fmt.Sprint(withPass), bound: fmt.Sprintf("≤ %d", wakesPerPass), ok: withPass <= wakesPerPass},
		result{name: "wake-ups, no timed pass", value: fmt.Sprint(without), bound: "≤ 2", ok: without <= 2})
	return measureBinary(o, r)
}

// memoryOf reads the memory lines of /proc/PID/status, in bytes.
func memoryOf(pid int) (map[string]int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[2] == "kB" {
			kB, err := strconv.Atoi(fields[1])
			if err != nil {
				return nil, fmt.Errorf("/proc/%d/status: %w", pid, err)
			}
			out[strings.TrimSuffix(fields[0], ":")] = kB << 10
		}
	}
	return out, nil
}

// switchesDuring counts how often threads of a process went to sleep, which
// is how often they were woken, in a window that begins after wait.
func switchesDuring(ctx context.Context, pid int, wait, window time.Duration) (int, error) {
	if err := pause(ctx, wait); err != nil {
		return 0, err
	}
	before, err := voluntarySwitches(pid)
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, window); err != nil {
		return 0, err
	}
	after, err := voluntarySwitches(pid)
	return after - before, err
}

func voluntarySwitches(pid int) (total int, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return 0, err
	}
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(string(text), "\nvoluntary_ctxt_switches:")
		line, _, _ := strings.Cut(rest, "\n")
		n, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		total += n
	}
	return total, nil
}

func measureBinary(o options, r *report) error {
	info, err := os.Stat(o.jitgate)
	if err != nil {
		return err
	}
	f, err := elf.Open(o.jitgate)
	if err != nil {
		return err
	}
	defer f.Close()
	how := "Its file, without symbols."
	if f.Section(".symtab") != nil {
		how = "Its file, WITH symbols: make build leaves them out (-trimpath -ldflags '-s -w')."
	}
	r.add(how, result{name: "size of the program", value: megabytes(int(info.Size())), bound: "≤ 15 MB", ok: info.Size() <= 15<<20})
	return nil
}

func megabytes(n int) string { return fmt.Sprintf("%.1f MB", float64(n)/(1<<20)) }
