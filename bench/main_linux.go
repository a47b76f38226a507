// The benchmark of jitgate: what `make bench` prints and docs/performance.md
// shows. It needs root and nft, changes nothing outside network namespaces of
// its own, and takes about three minutes. Lists of a large fleet take some ten
// more, and are measured only by name: `make lists`.
//
// Machines differ, and a shared one differs from minute to minute. So each
// figure is measured in turns with something beside it on the same machine,
// and the bounds are ratios wherever that makes sense.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// options is what the command line says, made absolute.
type options struct {
	jitgate string // the program measured
	control string // and its control plane
	dir     string // in memory: the disk's fsync is not what is measured
	diskDir string // on a disk, for the one line that shows it all the same
	runs    int

	machines, lines int    // of a fleet that is listed
	postgres        string // where; empty: a server of the benchmark's own
	store           string // the only one it is listed from; empty: both
}

// measurement is one part of the benchmark. An error means that nothing could
// be measured; a missed bound is a line in the report.
type measurement struct {
	name string
	run  func(context.Context, options, *report) error
	long bool // minutes: only when it is named
}

func measurements() []measurement {
	return []measurement{
		{name: "rename", run: measureRename},
		{name: "exec", run: measureExec},
		{name: "start", run: measureStart},
		{name: "cold", run: measureCold},
		{name: "change", run: measureChange},
		{name: "packet", run: measurePacket},
		{name: "flood", run: measureFlood},
		{name: "repair", run: measureRepair},
		{name: "cut", run: measureCut},
		{name: "process", run: measureProcess},
		{name: "request", run: measureRequest},
		{name: "audit", run: measureAudit},
		{name: "lists", run: measureLists, long: true},
	}
}

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	os.Exit(code)
}

func run() (code int, err error) {
	var names []string
	for _, m := range measurements() {
		names = append(names, m.name)
	}
	var o options
	flag.StringVar(&o.jitgate, "jitgate", "bin/jitgate", "the program to measure, built with -trimpath -ldflags '-s -w'")
	flag.StringVar(&o.control, "control", "bin/jitgate-control", "the control plane's program")
	flag.StringVar(&o.dir, "dir", "", "directory for inbox and state, kept (default a temporary one in /dev/shm)")
	flag.StringVar(&o.diskDir, "disk-dir", "", "directory on a real disk, kept (default a temporary one here)")
	flag.IntVar(&o.runs, "runs", 300, "how often the fast operations are measured")
	flag.IntVar(&o.machines, "machines", 100_000, "machines of the fleet that is listed")
	flag.IntVar(&o.lines, "lines", 2_000_000, "lines of its activity log")
	flag.StringVar(&o.postgres, "postgres", "", "a database to list the fleet from, postgres://USER@HOST/DATABASE; it is filled unless it is full, and so is the one in -disk-dir (default one of its own)")
	flag.StringVar(&o.store, "store", "", "list the fleet from this store only: SQLite or PostgreSQL")
	only := flag.String("only", "", "measure only this: "+strings.Join(names, ", "))
	strict := flag.Bool("strict", false, "exit 1 if any bound is missed")
	floor := flag.String("floor", "", "used by the benchmark itself: be the floor process on this directory")
	flag.Parse()
	if *floor != "" {
		return 1, runFloor(*floor)
	}
	switch {
	case flag.NArg() > 0:
		return 2, fmt.Errorf("unexpected %q: see -help", flag.Arg(0))
	case o.runs < 20:
		return 2, errors.New("-runs must be 20 or more: fewer say nothing")
	case o.store != "" && o.store != "SQLite" && o.store != "PostgreSQL":
		return 2, fmt.Errorf("-store %q is neither SQLite nor PostgreSQL", o.store)
	case o.machines < 10*fleetGroup || o.lines < 100*linesPerRequest:
		return 2, fmt.Errorf("-machines must be %d or more, and -lines %d", 10*fleetGroup, 100*linesPerRequest)
	case *only != "" && !slices.Contains(names, *only):
		return 2, fmt.Errorf("-only %q is none of %s", *only, strings.Join(names, ", "))
	case os.Geteuid() != 0:
		return 1, errors.New("network namespaces need root: run it as root")
	}
	for flagName, program := range map[string]*string{"-jitgate": &o.jitgate, "-control": &o.control} {
		if *program, err = filepath.Abs(*program); err != nil {
			return 1, err
		}
		if _, err := os.Stat(*program); err != nil {
			return 1, fmt.Errorf("%w: build it first (make build) or name it with %s", err, flagName)
		}
	}
	// The first signal ends the run through every deferred clean-up.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	cleanUp, err := o.makeDirs()
	if err != nil {
		return 1, err
	}
	defer cleanUp()

	r := &report{out: os.Stdout}
	r.header(o)
	for _, m := range measurements() {
		if m.name != *only && (*only != "" || m.long) {
			continue
		}
		if err := m.run(ctx, o, r); err != nil {
			return 1, fmt.Errorf("%s: %w", m.name, err)
		}
		// What one part left behind is not the next one's to collect.
		runtime.GC()
	}
	return r.verdict(*strict), nil
}

// makeDirs makes the directories and returns what removes those it chose.
func (o *options) makeDirs() (cleanUp func(), err error) {
	var made []string
	cleanUp = func() {
		for _, dir := range made {
			os.RemoveAll(dir)
		}
	}
	for _, d := range []struct {
		path   *string
		parent string
	}{{&o.dir, "/dev/shm"}, {&o.diskDir, "."}} {
		if *d.path != "" {
			err = os.MkdirAll(*d.path, 0o700)
		} else if *d.path, err = os.MkdirTemp(d.parent, "jitgate-bench-"); err == nil {
			made = append(made, *d.path)
		}
		if err == nil {
			*d.path, err = filepath.Abs(*d.path)
		}
		if err != nil {
			cleanUp()
			return nil, err
		}
	}
	return cleanUp, nil
}
