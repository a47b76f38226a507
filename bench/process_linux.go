package main

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"slices"
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
	// The agent looks again Resync after its last pass, which may be some seconds
	// after the last change: one of the two windows below holds such a look, and
	// the other none.
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
	first, err := switchesDuring(ctx, pid, agent.Resync-idleWindow*3/4-time.Since(filled), idleWindow)
	if err != nil {
		return err
	}
	second, err := switchesDuring(ctx, pid, 0, idleWindow)
	if err != nil {
		return err
	}
	withPass, without := first, second
	if first.total < second.total {
		withPass, without = second, first
	}
	r.add(fmt.Sprintf("/proc/PID/status of the agent with %d openings, %s after the last change.", idleOpenings, idleBefore),
		result{name: "resident memory, idle", value: megabytes(rss), beside: "of it anonymous " + megabytes(anonymous), bound: "≤ 20 MB", ok: rss <= 20<<20})
	r.add(fmt.Sprintf("voluntary_ctxt_switches of all threads during %s with one look at inbox and firewall in it, which is every %s, and during as long with none. While anything runs, Go's sysmon looks at it every 20 µs at first.", idleWindow, agent.Resync),
		result{name: "wake-ups, one timed pass", value: fmt.Sprint(withPass.total), beside: fmt.Sprintf("of them %d of sysmon", withPass.sysmon), bound: fmt.Sprintf("≤ %d", wakesPerPass), ok: withPass.total <= wakesPerPass},
		result{name: "wake-ups, no timed pass", value: fmt.Sprint(without.total), bound: "≤ 2", ok: without.total <= 2})
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

// switches is how often threads of a program in Go went to sleep, which is how
// often they were woken.
type switches struct {
	total  int
	sysmon int // of the thread of the runtime that looks after the others
}

// switchesDuring counts those in a window that begins after wait.
func switchesDuring(ctx context.Context, pid int, wait, window time.Duration) (switches, error) {
	if err := pause(ctx, wait); err != nil {
		return switches{}, err
	}
	before, err := voluntarySwitches(pid)
	if err != nil {
		return switches{}, err
	}
	if err := pause(ctx, window); err != nil {
		return switches{}, err
	}
	after, err := voluntarySwitches(pid)
	return switches{after.total - before.total, after.sysmon - before.sysmon}, err
}

func voluntarySwitches(pid int) (s switches, err error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return s, err
	}
	var ids []int
	for _, t := range tasks {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return s, err
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for i, id := range ids {
		path := fmt.Sprintf("/proc/%d/task/%d/status", pid, id)
		text, err := os.ReadFile(path)
		if err != nil {
			return s, err
		}
		_, rest, _ := strings.Cut(string(text), "\nvoluntary_ctxt_switches:")
		line, _, _ := strings.Cut(rest, "\n")
		n, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return s, fmt.Errorf("%s: %w", path, err)
		}
		s.total += n
		if i == 1 { // the first that the runtime starts (runtime.main)
			s.sysmon = n
		}
	}
	return s, nil
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
