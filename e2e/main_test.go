//go:build linux

package e2e_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// programs is where the programs under test are built.
var programs string

func TestMain(m *testing.M) {
	if addresses := os.Getenv(listenOn); addresses != "" {
		listenForever(addresses)
	}
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		// The tests wait for ends to come, more than they compute; but a
		// machine that boots does not wait.
		flag.Set("test.parallel", strconv.Itoa(min(8, 2*runtime.NumCPU())))
	}
	var err error
	if programs, err = os.MkdirTemp("", "jitgate-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(programs)
	os.Exit(code)
}

// Programs of another version, to see that hosts and control planes of two
// releases get along; empty: this tree's.
var (
	otherAgent   = flag.String("jitgate", "", "`path` of the jitgate to test")
	otherControl = flag.String("jitgate-control", "", "`path` of the jitgate-control to test")
)

// jitgate is the program under test.
var jitgate = sync.OnceValues(func() (string, error) {
	if *otherAgent != "" {
		return *otherAgent, nil
	}
	return build("jitgate", "")
})

// build builds jitgate with linker flags.
func build(name, ldflags string) (string, error) { return buildPackage(name, "", "-ldflags", ldflags) }

// buildPackage builds the program of a package, by its path below the module.
func buildPackage(name, below string, flags ...string) (string, error) {
	path := filepath.Join(programs, name)
	args := append([]string{"build", "-buildvcs=false", "-o", path}, flags...)
	cmd := exec.Command("go", append(args, "github.com/jitgate/jitgate"+below)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as the Makefile builds it, whoever runs the tests
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
}

// privileged skips a test that cannot run here, for want of root or of a
// tool. Where tests must run, in CI, that is a failure.
func privileged(t *testing.T, more ...string) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "network namespaces need root"
	}
	for _, tool := range append([]string{"ip", "nft", "sh", "jq", "openssl"}, more...) {
		if _, err := exec.LookPath(tool); err != nil {
			why = err.Error()
		}
	}
	switch {
	case why == "":
	case os.Getenv("JITGATE_CI") != "":
		t.Fatal(why)
	default:
		t.Skip(why)
	}
}

// lastLines is the end of a log: what comes before a failure, and no more, so
// that the failure itself is still on the screen.
func lastLines(path string) string {
	const most = 40
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := slices.Collect(strings.Lines(string(text)))
	return strings.Join(lines[max(0, len(lines)-most):], "")
}

// patience bounds every wait for something that should come at once: long
// enough for a machine under load.
const patience = 30 * time.Second

// until waits for done, and fails the test if it does not come in time.
func until(t *testing.T, within time.Duration, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !done(); time.Sleep(3 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("within %s: %s", within, what)
		}
	}
}
