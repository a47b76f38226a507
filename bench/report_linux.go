package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// result is one line of the table.
type result struct {
	name   string
	value  string
	beside string  // what it was measured beside
	ratio  float64 // 0: none
	bound  string  // empty: for information
	ok     bool
	exact  bool // a count: no machine is too noisy for it
}

// report prints the table while it grows.
type report struct {
	out            io.Writer
	missed, failed int
}

func (r *report) header(o options) {
	fmt.Fprintf(r.out, "jitgate bench, %s\n", time.Now().UTC().Format("2006-01-02 15:04 UTC"))
	fmt.Fprintf(r.out, "%d cores (%s), Linux %s, %s, %s\n", runtime.NumCPU(), cpuModel(), kernelRelease(), runtime.Version(), nftVersion())
	fmt.Fprintf(r.out, "measured: %s\n", programVersion(o.jitgate))
	fmt.Fprintf(r.out, "p50/p90/p99 in one cell; what is compared was measured in turns, in network namespaces of its own\n\n")
	fmt.Fprintf(r.out, layout, "measure", "value", "beside", "ratio", "bound")
}

const layout = "%-38s  %-26s  %-34s  %-6s  %s\n"

// add prints results and, below them, how they were measured.
func (r *report) add(method string, results ...result) {
	for _, x := range results {
		r.line(x)
	}
	fmt.Fprintf(r.out, "    %s\n", method)
}

// line prints one result, where there are many and they take long.
func (r *report) line(x result) {
	ratio, bound := "", "information"
	if x.ratio != 0 {
		ratio = fmt.Sprintf("%.2f", x.ratio)
	}
	if x.bound != "" {
		bound = x.bound + "  ok"
		if !x.ok {
			bound = x.bound + "  OVER"
			r.missed++
			if x.exact {
				r.failed++
			}
		}
	}
	fmt.Fprintf(r.out, layout, x.name, x.value, x.beside, ratio, bound)
}

// verdict prints the outcome and returns the exit code. On a noisy machine a
// time may be over its bound with nothing wrong, a count may not.
func (r *report) verdict(strict bool) int {
	if r.missed == 0 {
		fmt.Fprintln(r.out, "\nevery bound holds")
		return 0
	}
	fmt.Fprintf(r.out, "\n%d over their bound\n", r.missed)
	if strict || r.failed > 0 {
		return 1
	}
	return 0
}

// sample is a series of measured times.
type sample []time.Duration

// percentile returns the smallest time that p percent of the sample do not
// exceed.
func (s sample) percentile(p int) time.Duration {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

func (s sample) median() time.Duration { return s.percentile(50) }

func (s sample) String() string {
	return span(s.percentile(50)) + "/" + span(s.percentile(90)) + "/" + span(s.percentile(99))
}

// over returns the ratio of the medians.
func (s sample) over(t sample) float64 { return float64(s.median()) / float64(t.median()) }

// roundByRound returns the median of the ratios of measurements that were
// made right after one another, and where most of them lie: p10 and p90. What
// makes the machine slow for a while is slow for both.
func (s sample) roundByRound(t sample) (median, low, high float64) {
	ratios := make([]float64, len(s))
	for i := range s {
		ratios[i] = float64(s[i]) / float64(t[i])
	}
	slices.Sort(ratios)
	n := len(ratios)
	return ratios[n/2], ratios[n/10], ratios[n-1-n/10]
}

// span writes d in three digits or so, in µs from 10 µs to 10 ms.
func span(d time.Duration) string {
	switch {
	case d < 10*time.Microsecond:
		return fmt.Sprintf("%d ns", d.Nanoseconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1e3)
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH // arm64 names no model
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "of unknown release"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func nftVersion() string {
	out, err := exec.Command("nft", "--version").Output()
	if fields := strings.Fields(string(out)); err == nil && len(fields) > 1 {
		return fields[0] + " " + fields[1]
	}
	return "no nft: apt-get install nftables"
}

func programVersion(path string) string {
	out, err := exec.Command(path, "version").Output()
	if err != nil {
		return path
	}
	return strings.Join(strings.Fields(string(out)), " ")
}
