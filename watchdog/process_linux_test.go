package watchdog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary is the other processes too.
const (
	role         = "WATCHDOG_TEST_ROLE"
	roleWatched  = "watched"  // lives until its standard input ends
	roleWatchdog = "watchdog" // ends its parent, sooner than a real one
	roleBroken   = "broken"   // ends by itself
	roleDeaf     = "deaf"     // neither reads nor ends
)

// look is how often a watchdog of these tests looks: rarely enough for processes
// that live and get no time on a busy machine.
const look = time.Second

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(role) {
	case roleWatched:
		err = live()
	case roleWatchdog:
		var parent *os.Process
		if parent, err = os.FindProcess(os.Getppid()); err == nil {
			err = watch(os.Stdin, time.Tick(look), parent.Kill)
		}
	case roleBroken:
		err = errors.New("broken")
	case roleDeaf:
		time.Sleep(time.Minute)
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
}

func live() error {
	os.Setenv(role, roleWatchdog)
	alive, stop := Start(func(err error) { fmt.Fprintln(os.Stderr, err) }, os.Args[0])
	over := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, os.Stdin); over <- err }()
	for {
		alive()
		select {
		case err := <-over:
			stop()
			return err
		case <-time.After(look / 100):
		}
	}
}

// started is a watched process, and its watchdog's number.
func started(t *testing.T) (watched *exec.Cmd, in io.Closer, dog string) {
	t.Helper()
	watched = exec.Command(os.Args[0])
	watched.Env = append(os.Environ(), role+"="+roleWatched)
	watched.Stderr = os.Stderr
	in, err := watched.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := watched.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { watched.Process.Kill(); watched.Wait() })
	return watched, in, child(t, watched.Process.Pid, "")
}

// child waits for a process to have one child, and another than before.
func child(t *testing.T, of int, before string) string {
	t.Helper()
	var all []string
	until(t, "there should be one watchdog", func() bool {
		all = children(of)
		return len(all) == 1 && all[0] != before
	})
	return all[0]
}

func children(of int) (all []string) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", of))
	for _, l := range lists {
		text, _ := os.ReadFile(l)
		all = append(all, strings.Fields(string(text))...)
	}
	return all
}

// gone requires that a process ends, whoever is to wait for it.
func gone(t *testing.T, pid string) {
	t.Helper()
	until(t, "the watchdog should end", func() bool {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// A process that is suspended is ended. One that lives is not, and its watchdog
// ends with it.
func TestStandsStill(t *testing.T) {
	t.Parallel()
	watched, _, dog := started(t)
	time.Sleep((looks + 2) * look)
	if err := watched.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatalf("it has been ended, and did not stand still: %v", err)
	}
	watched.Wait()
	if s := watched.ProcessState.Sys().(syscall.WaitStatus); !s.Signaled() || s.Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", watched.ProcessState)
	}
	gone(t, dog)
}

// Who stops waits for its watchdog, which does not end it.
func TestStops(t *testing.T) {
	t.Parallel()
	watched, in, dog := started(t)
	in.Close()
	if err := watched.Wait(); err != nil {
		t.Errorf("stopped, it ended with %v", err)
	}
	if _, err := os.Stat("/proc/" + dog); err == nil {
		t.Error("it ended before its watchdog")
	}
}

// A watchdog that somebody kills is started again, and watches.
func TestStartedAgain(t *testing.T) {
	t.Parallel()
	watched, _, dog := started(t)
	if out, err := exec.Command("kill", "-KILL", dog).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	next := child(t, watched.Process.Pid, dog)
	time.Sleep((looks + 2) * look)
	if err := watched.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	watched.Wait()
	gone(t, next)
}

// What the watchdog does holds up nobody, and why there is none is told.
func TestBadWatchdogs(t *testing.T) {
	t.Setenv(role, roleBroken)
	told := make(chan error, 1)
	_, stop := Start(func(err error) { told <- err }, os.Args[0])
	if err := <-told; !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("of a watchdog that ends there is told: %v", err)
	}
	stop()

	_, stop = Start(func(err error) { told <- err }, os.Args[0]+".none")
	if err := <-told; !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of a watchdog that is not there there is told: %v", err)
	}
	stop()

	os.Setenv(role, roleDeaf)
	alive, stop := Start(func(err error) { told <- err }, os.Args[0])
	dog := child(t, os.Getpid(), "")
	for range 100_000 { // more than a pipe holds
		alive()
	}
	stop()
	gone(t, dog)
	select {
	case err := <-told:
		t.Errorf("told: %v", err)
	default:
	}
}
