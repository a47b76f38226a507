//go:build unix

package agents_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
)

// program is the real jitgate.
func program(t *testing.T) string {
	t.Helper()
	dir := must(os.MkdirTemp("", "jgbin"))(t)
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "jitgate")
	build := exec.Command("go", "build", "-o", path, "github.com/jitgate/jitgate")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// nobody is a user without rights.
const nobody = 65534

// The fetcher is a process of its own, without rights: it reads its identity,
// writes the inbox and speaks to the socket. Killed, it goes on where it was.
func TestProcess(t *testing.T) {
	w := newWorld(t)
	jitgate := program(t)
	h := w.host("web1")
	for _, name := range []string{"fetch", "inbox"} {
		dir := filepath.Join(h.dir, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(h.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(h.dir, "inbox"), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(jitgate, "enroll", "--config", h.config, "--control", w.url, "--token", w.join(h.vm.Scope(), 1)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h.run()
	var log bytes.Buffer
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the fetcher:\n%s", &log)
		}
	})
	start := func() *exec.Cmd {
		c := exec.Command(jitgate, "fetch", "--config", h.config)
		c.Stderr = &log
		// The socket's group, and nothing else.
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody, Groups: []uint32{0}}}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			c.Process.Kill()
			c.Wait()
		})
		return c
	}
	c := start()
	w.policyOf(h.vm, 1)
	within(t, 20*time.Second, "the policy is in force", func() bool { return h.versions()[1] == 1 })
	c.Process.Kill()
	c.Wait()
	w.initiating(h.vm, "g1")
	w.grantsOf(h.vm, 1, "g1")
	c = start()
	within(t, 20*time.Second, "the port is open and known to be", func() bool { return w.port("g1").Status == control.Initiated })
	c.Process.Signal(syscall.SIGTERM)
	if err := c.Wait(); err != nil {
		t.Errorf("asked to stop: %v", err)
	}
	if strings.Contains(log.String(), "[ERROR]") {
		t.Error("it complained")
	}
	text, err := exec.Command(jitgate, "status", "--config", h.config).CombinedOutput()
	if err != nil || !bytes.Contains(text, []byte("alice@example.com")) {
		t.Errorf("%v\n%s", err, text)
	}
}
