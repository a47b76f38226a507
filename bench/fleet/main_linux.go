// The benchmark of a fleet: what `make bench-fleet` prints and docs/fleet.md
// shows. N simulated machines, in processes of their own, speak the real
// protocol over real TLS with a control plane that is the program itself: each
// has the real fetcher with a key of its own, and verifies, admits and evaluates
// every document with the agent's own code. In place of files and of the
// firewall they have memory.
//
// It fails if anything that was acknowledged is lost, or a machine has another
// version than is stored. Times are printed beside what is asked of them, and
// fail nothing unless -strict is given: machines differ.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// options is what the command line says.
type options struct {
	control  string // the control plane's program
	agents   int
	store    string // sqlite or postgres
	replicas int
	dir      string
	seconds  int    // that the load goes on
	rate     int    // grants a second of it
	cpu      string // file for a profile
	during   string // the part of the run it is of
	picture  string // file for a picture
}

// profiledParts are the parts of a run that a profile may be of.
var profiledParts = []string{"idle", "load", "policy", "storm", "grants"}

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-fleet:", err)
	}
	os.Exit(code)
}

func run() (code int, err error) {
	if len(os.Args) == 2 && os.Args[1] == crewArgument {
		if err := work(os.Stdin, os.Stdout); err != nil {
			return 1, fmt.Errorf("the machines: %w", err)
		}
		return 0, nil
	}
	var o options
	flag.StringVar(&o.control, "control", "bin/jitgate-control", "the control plane's program")
	flag.StringVar(&o.store, "store", "sqlite", "the control plane's database: sqlite or postgres")
	flag.IntVar(&o.replicas, "replicas", 1, "how many processes the control plane has, on one PostgreSQL; of several one is lost for good")
	flag.StringVar(&o.dir, "dir", "", "directory for the database, kept (default a temporary one here)")
	flag.IntVar(&o.seconds, "seconds", 10, "how long the load goes on")
	flag.IntVar(&o.rate, "rate", 1000, "grants a second of the load: requests for a machine each, and later on for several")
	flag.StringVar(&o.cpu, "profile", "", "write a CPU profile of the server, or of the first replica, into this file")
	flag.StringVar(&o.during, "during", "load", "the part of the run that is profiled: "+strings.Join(profiledParts, ", "))
	flag.StringVar(&o.picture, "picture", "", "draw what was measured into this SVG")
	agents := flag.String("agents", "10000", "how many machines; several numbers with commas are measured one after another")
	strict := flag.Bool("strict", false, "exit 1 if a bound is missed")
	flag.Parse()
	if flag.NArg() > 0 {
		return 2, fmt.Errorf("unexpected %q: see -help", flag.Arg(0))
	}
	if o.store != "sqlite" && o.store != "postgres" {
		return 2, fmt.Errorf("-store %q is neither sqlite nor postgres", o.store)
	}
	if o.replicas < 1 || o.replicas > 1 && o.store != "postgres" {
		return 2, fmt.Errorf("-replicas %d: it is one, or several with -store postgres", o.replicas)
	}
	if !slices.Contains(profiledParts, o.during) {
		return 2, fmt.Errorf("-during %q is none of %s", o.during, strings.Join(profiledParts, ", "))
	}
	var sizes []int
	for _, text := range strings.Split(*agents, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || n < 10 {
			return 2, fmt.Errorf("-agents %q is no number of 10 or more", text)
		}
		sizes = append(sizes, n)
	}
	if o.control, err = filepath.Abs(o.control); err != nil {
		return 1, err
	}
	if _, err := os.Stat(o.control); err != nil {
		return 1, fmt.Errorf("%w: build it first (make build) or name it with -control", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()

	header(os.Stdout, o)
	var curve []figures
	for _, n := range sizes {
		o.agents = n
		// A server leaves one in ten to people.
		if err := enoughFiles(o.each() * 10 / 9); err != nil {
			return 1, err
		}
		f, err := measure(ctx, o)
		if err != nil {
			return 1, fmt.Errorf("%d machines: %w", n, err)
		}
		curve = append(curve, f)
	}
	if o.picture != "" {
		if err := os.WriteFile(o.picture, draw(curve), 0o644); err != nil {
			return 1, err
		}
	}
	missed := 0
	for _, f := range curve {
		missed += f.missed()
	}
	switch {
	case missed == 0:
		fmt.Println("\nnothing is lost, every bound holds")
	case *strict:
		return 1, fmt.Errorf("nothing is lost, %d over their bound", missed)
	default:
		fmt.Printf("\nnothing is lost, %d over their bound\n", missed)
	}
	return 0, nil
}

// each is how many machines a replica may have to carry: those of one that is
// lost come to the others.
func (o options) each() int {
	left := max(1, o.replicas-1)
	return (o.agents + left - 1) / left
}

// spareFiles is how many descriptors a process needs beside its connections.
const spareFiles = 500

// enoughFiles makes room for so many connections, here and in the processes that
// are started, which inherit the limit.
func enoughFiles(connections int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	need := uint64(connections + spareFiles)
	if limit.Max < need {
		limit.Max = need
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return errors.Join(fmt.Errorf("%d descriptors are needed in one process: raise the hard limit (ulimit -Hn) first, or have more replicas", need), err)
	}
	return nil
}

// mostFiles is how many descriptors a process may have.
func mostFiles() (int, error) {
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	return int(min(limit.Max, 1<<20)), err
}
