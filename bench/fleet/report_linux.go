package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/control"
)

// figures are what one fleet was measured to need.
type figures struct {
	agents, replicas int
	store            string

	enrolled, written time.Duration
	connected         time.Duration
	connectCPU        used    // by each agent
	inUse, resident   float64 // bytes for one agent

	idleCall, idleStored, idle sample
	load, grants               poured

	policyWritten, policyAll, policyAfter time.Duration
	policyCPU, stormCPU                   used // by each machine
	revoked, expelled                     sample
	storm, away                           time.Duration
	stormCalls                            sample
	refused                               int

	acknowledged, held int // what was found again
}

// plane is the control plane, in words.
func (f figures) plane() string {
	if f.replicas > 1 {
		return fmt.Sprintf("%d replicas on %s", f.replicas, f.store)
	}
	return f.store
}

// line is one of the report. A line without a bound is for information.
type line struct {
	part               string // of the run
	name, value, bound string
	ok                 bool
}

func (f figures) lines() []line {
	killed := "kill -9: all back after the server's return"
	if f.replicas > 1 {
		killed = "kill -9 of a replica: all on the others after"
	}
	ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 }
	p99 := func(s sample, most time.Duration) bool { return s.percentile(99) <= most }
	return []line{
		{"preparing", "enrolled, with keys and certificates", fmt.Sprintf("%.1f s, %.0f a second", f.enrolled.Seconds(), float64(f.agents)/f.enrolled.Seconds()), "", true},
		{"preparing", "first policies written", fmt.Sprintf("%.2f s, %.0f machines a second", f.written.Seconds(), float64(f.agents)/f.written.Seconds()), "", true},
		{"connecting", "all connected and guarded", fmt.Sprintf("%.2f s; %s", f.connected.Seconds(), f.connectCPU), "", true},
		{"connecting", "memory of the server per idle agent", fmt.Sprintf("%.1f KB in use after GC", f.inUse/1000), "≤ 25 KB", f.inUse <= 25_000},
		{"connecting", "the same, resident", fmt.Sprintf("%.1f KB", f.resident/1000), "", true},
		{"idle", "idle: call → machine has it verified", f.idle.String(), "p99 ≤ 10 ms", p99(f.idle, 10*time.Millisecond)},
		{"idle", "idle: the call / after its answer", f.idleCall.String() + " / " + f.idleStored.String(), "", true},
		{"load", "requests a second reached", fmt.Sprintf("%.0f; %s", f.load.rate, f.load.cpu), "", true},
		{"load", "load: call → machine has it verified", f.load.whole.String(), "", true},
		{"load", "load: answer → machine has it verified", f.load.stored.String(), "p99 ≤ 25 ms", p99(f.load.stored, 25*time.Millisecond)},
		{"load", "load: the call", f.load.call.String(), "", true},
		{"policy", "a policy for all: last call answered", fmt.Sprintf("%.2f s after the first call", f.policyWritten.Seconds()), "", true},
		{"policy", "a policy for all: last machine has it", fmt.Sprintf("%.2f s after the first call, %.0f ms after the last answer", f.policyAll.Seconds(), ms(f.policyAfter)),
			"≤ 1 s after the last answer", f.policyAfter <= time.Second},
		{"policy", "a policy for all: what it took", f.policyCPU.String(), "", true},
		{"revoking", "revoke: call → machine has closed it", f.revoked.String(), "", true},
		{"expelling", "revoke of an agent: call → off the line", f.expelled.String(), "", true},
		{"storm", killed, fmt.Sprintf("%.1f s; nobody was answered for %.2f s", f.storm.Seconds(), f.away.Seconds()), "≤ 10 s", f.storm <= 10*time.Second},
		{"storm", "the same: what it took", f.stormCPU.String(), "", true},
		{"storm", "the API meanwhile", fmt.Sprintf("%s, %d calls, %d refused", f.stormCalls, len(f.stormCalls), f.refused), "p99 ≤ 1 s", p99(f.stormCalls, time.Second) && f.refused == 0},
		{"grants", fmt.Sprintf("grants a second reached, %d to a request", perRequest), fmt.Sprintf("%.0f; %s", f.grants.rate, f.grants.cpu), "", true},
		{"grants", "grants: call → machine has it verified", f.grants.whole.String(), "", true},
		{"grants", "grants: answer → machine has it verified", f.grants.stored.String(), "p99 ≤ 25 ms", p99(f.grants.stored, 25*time.Millisecond)},
		{"grants", "grants: the call", f.grants.call.String(), "", true},
		{"account", "the account", fmt.Sprintf("%d requests acknowledged and found, %d documents as stored", f.acknowledged, f.held), "none lost", true},
	}
}

func (f figures) missed() (n int) {
	for _, l := range f.lines() {
		if !l.ok {
			n++
		}
	}
	return n
}

// print prints what a part of the run has found out.
func (f figures) print(out io.Writer, part string) {
	for _, l := range f.lines() {
		if l.part != part {
			continue
		}
		verdict := ""
		switch {
		case l.bound != "" && l.ok:
			verdict = l.bound + "  ok"
		case l.bound != "":
			verdict = l.bound + "  OVER"
		}
		fmt.Fprintf(out, "  %-44s  %-64s  %s\n", l.name, l.value, verdict)
	}
}

func header(out io.Writer, o options) {
	fmt.Fprintf(out, "jitgate bench-fleet, %s\n", time.Now().UTC().Format("2006-01-02 15:04 UTC"))
	fmt.Fprintf(out, "%d cores (%s), %.0f GB, Linux %s, %s; agents, server, database and caller share them\n", runtime.NumCPU(), cpuModel(), memorySize(), kernelRelease(), runtime.Version())
	fmt.Fprintf(out, "measured: %s\n", programVersion(o.control))
	fmt.Fprintf(out, "p50/p90/p99 in one cell\n")
}

// sample is a series of measured times.
type sample []time.Duration

// percentile returns the smallest time that p percent of the sample do not
// exceed.
func (s sample) percentile(p int) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

func (s sample) String() string {
	return fmt.Sprintf("%s/%s/%s", span(s.percentile(50)), span(s.percentile(90)), span(s.percentile(99)))
}

// span writes d in three digits or so.
func span(d time.Duration) string {
	switch ms := d.Seconds() * 1e3; {
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	default:
		return fmt.Sprintf("%.0f ms", ms)
	}
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for l := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH // arm64 names no model
}

// memorySize is the machine's, in GB.
func memorySize() float64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return float64(info.Totalram) * float64(info.Unit) / 1e9
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "of unknown release"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func programVersion(path string) string {
	out, err := exec.Command(path, "version").Output()
	if err != nil {
		return path
	}
	return strings.Join(strings.Fields(string(out)), " ")
}

// get asks the API for something.
func (a api) get(ctx context.Context, path string, v any) error {
	text, err := a.call(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

// addressOf is the address of a source as the API shows it, zero where it is
// none.
func addressOf(prefix string) netip.Addr {
	text, _, _ := strings.Cut(prefix, "/")
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.IPv4Unspecified()
	}
	return a
}

// storedSources are those of all requests in a store.
func storedSources(ctx context.Context, kept control.Store) (map[netip.Addr]bool, error) {
	all := map[netip.Addr]bool{}
	for after := ""; ; {
		var page []control.Request
		if err := kept.View(ctx, func(tx control.Tx) (err error) {
			page, err = tx.Requests(control.RequestFilter{After: after, Limit: 1000})
			return err
		}); err != nil || len(page) == 0 {
			return all, err
		}
		for _, q := range page {
			after = q.ID
			for _, vm := range q.VMs {
				for _, p := range vm.Ports {
					all[addressOf(p.One)] = true
				}
			}
		}
	}
}

// profile keeps a profile of the server's processor in a part of the run, where
// it is asked for. What it returns waits for it.
func (f *fleet) profile(ctx context.Context, part string) (wait func() error) {
	if f.o.cpu == "" || f.o.during != part {
		return func() error { return nil }
	}
	kept := make(chan error, 1)
	go func() {
		text, err := f.replicas[0].local(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", max(1, f.o.seconds-1)))
		if err == nil {
			err = os.WriteFile(filepath.Clean(f.o.cpu), text, 0o644)
		}
		kept <- err
	}()
	return func() error { return <-kept }
}

// used is what a part of the run took of processors, in seconds for each
// machine or grant of it: of the control plane, of the machines, and of this
// process, which calls.
type used struct{ server, agents, calls float64 }

func (u used) String() string {
	return fmt.Sprintf("%.2f ms of the server's processor each, %.2f of the agents', %.2f of the calls'", u.server*1e3, u.agents*1e3, u.calls*1e3)
}

// spent is what all have had of processors up to now, in seconds; of the control
// plane these replicas.
func (f *fleet) spent(ctx context.Context, replicas []*server) (u used, err error) {
	var own unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
		return u, err
	}
	u.calls = time.Duration(own.Utime.Nano() + own.Stime.Nano()).Seconds()
	for _, c := range f.crews {
		spent, err := c.spent()
		if err != nil {
			return u, err
		}
		u.agents += spent
	}
	m, err := scrape(ctx, replicas)
	u.server = m["process_cpu_seconds_total"]
	return u, err
}

// since is what was used since before, for each of n.
func (u used) since(before used, n int) used {
	return used{(u.server - before.server) / float64(n), (u.agents - before.agents) / float64(n), (u.calls - before.calls) / float64(n)}
}
