//go:build linux

package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// booted is a machine with systemd as its first process, on the cable of a
// host. It is spoken to from inside; what the host does by itself (start, ask,
// command) is not for it.
type booted struct {
	*host
	platform
}

// platform is what a machine boots on.
type platform interface {
	// powerOn boots the machine for the first time, with files, by their path,
	// over its root directory.
	powerOn(files map[string]string)
	bootAgain()
	try(words ...string) (string, error) // runs a command in the machine
	write(path, text string)
	read(path string) string
}

// container is a machine on this kernel.
type container struct {
	*host
	name string
	init *exec.Cmd // boot.sh
}

// patienceToBoot bounds what a machine does: a boot, an installation.
const patienceToBoot = 10 * time.Minute

// bootable is the root directory of every such machine.
var bootable = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("sh", "machine.sh")
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("machine.sh: %w: %s", err, &complaints)
	}
	return strings.TrimSpace(string(out)), nil
})

var machines atomic.Int32

// newBooted prepares a machine; powerOn boots it.
func newBooted(t *testing.T) *booted {
	t.Helper()
	privileged(t, "systemd-nspawn", "mmdebstrap")
	if _, err := bootable(); err != nil {
		if os.Getenv("JITGATE_CI") == "" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	h := &host{t: t, vm: newNamespace(t), outside: newNamespace(t), realm: newRealm(t, "acme"), dir: t.TempDir()}
	connect(t, h.vm, h.outside)
	return &booted{h, &container{host: h, name: fmt.Sprintf("jitgate-%d-%d", os.Getpid(), machines.Add(1))}}
}

func (c *container) powerOn(files map[string]string) {
	c.t.Helper()
	root, err := bootable()
	err = errors.Join(err, os.Mkdir(c.path("files"), 0o755), os.Mkdir(c.path("at"), 0o755))
	for path, text := range files {
		err = errors.Join(err, os.MkdirAll(filepath.Dir(c.path("files", path)), 0o755), os.WriteFile(c.path("files", path), []byte(text), 0o644))
	}
	if err != nil {
		c.t.Fatal(err)
	}
	console, err := os.Create(c.path("console"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer console.Close()
	c.init = exec.Command("sh", "testdata/machine/boot.sh", c.name, root, c.path("files"), c.path("at"))
	c.init.Stdout, c.init.Stderr = console, console
	c.init.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	c.vm.do(func() { err = c.init.Start() })
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		c.keepLogs(c)
		c.init.Process.Kill()
		c.init.Wait()
		c.sweep()
	})
	boots(c.t, c)
}

// sweep removes what the machine leaves outside its namespaces.
func (c *container) sweep() {
	for _, tree := range []string{"systemd", "unified", "."} {
		var groups []string
		filepath.WalkDir(filepath.Join("/sys/fs/cgroup", tree, c.name), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				groups = append(groups, path)
			}
			return nil
		})
		slices.Reverse(groups)
		for _, g := range groups {
			until(c.t, patience, g+" should go", func() bool { return !errors.Is(os.Remove(g), unix.EBUSY) })
		}
	}
	os.RemoveAll(filepath.Join("/run/systemd/nspawn/propagate", c.name))
}

// leader is the machine's systemd as it is seen from here, or 0.
func (c *container) leader() int {
	for pid := c.init.Process.Pid; ; {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			return 0
		}
		if _, err := fmt.Sscan(string(children), &pid); err != nil {
			return 0
		}
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			return 0
		}
		if strings.TrimSpace(string(name)) == "systemd" {
			return pid
		}
	}
}

// boots waits until a machine has booted.
func boots(t *testing.T, p platform) {
	t.Helper()
	state := ""
	until(t, patienceToBoot, "the machine should boot", func() bool {
		// It ends with 1 for a machine that runs but for a unit that failed.
		state, _ = p.try("systemctl", "is-system-running", "--wait")
		state = strings.TrimSpace(state)
		return state == "running" || state == "degraded"
	})
	if state == "degraded" {
		failed, _ := p.try("systemctl", "--failed", "--no-legend", "--plain")
		t.Logf("failed units: %s", failed)
	}
}

// keepLogs keeps, beyond a test that failed, what the console of its machine
// says and what its journal does, and says where.
func (h *host) keepLogs(p platform) {
	h.t.Helper()
	if !h.t.Failed() {
		return
	}
	dir := os.Getenv("JITGATE_LOGS")
	if dir == "" {
		dir = filepath.Join(os.TempDir(), "jitgate-logs")
	}
	name := filepath.Join(dir, strings.ReplaceAll(h.t.Name(), "/", "-"))
	journal, unread := p.try("journalctl", "--no-pager", "-o", "short-precise")
	console, err := os.ReadFile(h.path("console"))
	err = errors.Join(unread, err, os.MkdirAll(dir, 0o755), os.WriteFile(name+"-journal.log", []byte(journal), 0o644), os.WriteFile(name+"-console.log", console, 0o644))
	if err != nil {
		h.t.Log(err)
	}
	h.t.Logf("the end of the machine's console:\n%s\nkept: %s-journal.log, %[2]s-console.log", lastLines(h.path("console")), name)
}

// noCycles requires that systemd found no cycle in the order of units, in any
// boot so far. It finds them before there is a journal.
func (b *booted) noCycles() {
	b.t.Helper()
	console, err := os.ReadFile(b.path("console"))
	if err != nil {
		b.t.Fatal(err)
	}
	for line := range strings.Lines(string(console)) {
		if strings.Contains(line, "ordering cycle") {
			b.t.Errorf("systemd finds an ordering cycle: %s", line)
		}
	}
}

// reachable waits until what nobody guards answers on both families. Who was
// called while the cable was out is called again only after a second, and until
// then nothing would tell closed from unplugged.
func (b *booted) reachable() {
	b.t.Helper()
	free := ways("23/tcp", alice4, alice6, bob4, bob6)
	until(b.t, patienceToBoot, "the machine should be reachable", func() bool {
		return !slices.ContainsFunc(free, func(w way) bool {
			open, err := b.outside.knock(w, answerTime)
			return err != nil || !open
		})
	})
}

// runs waits until a unit has started and systemd has no more to do for it.
// What a unit does may show before systemd knows, and until it does a reload
// passes the unit by.
func (b *booted) runs(unit string) {
	b.t.Helper()
	var state string
	defer func() {
		if b.t.Failed() {
			b.t.Logf("the last state of %s: %q", unit, state)
		}
	}()
	until(b.t, patienceToBoot, unit+" should run", func() bool {
		state = b.run("systemctl", "show", "--value", "--property=ActiveState,Job", unit)
		return strings.TrimSpace(state) == "active" // and no number of a job
	})
}

func (c *container) bootAgain() {
	c.t.Helper()
	before := c.leader()
	c.try("systemctl", "reboot", "--no-block") // which may end the one who asks
	// None is no sign that it is down: one that is looked for may be missed.
	until(c.t, patienceToBoot, "the machine should restart", func() bool { now := c.leader(); return now != 0 && now != before })
	boots(c.t, c)
}

// environment is that of a command in a machine.
var environment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "DEBIAN_FRONTEND=noninteractive"}

func (c *container) try(words ...string) (string, error) {
	leader := c.leader()
	if leader == 0 {
		return "", errors.New("the machine is down")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patienceToBoot)
	defer cancel()
	inside := []string{"--target", fmt.Sprint(leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(inside, words...)...)
	cmd.Env = environment
	cmd.WaitDelay = patience
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// reboot restarts the machine, and waits until it can be spoken to again.
func (b *booted) reboot() {
	b.t.Helper()
	b.bootAgain()
	b.reachable()
}

// run runs a command that must succeed.
func (b *booted) run(words ...string) string {
	b.t.Helper()
	out, err := b.try(words...)
	if err != nil {
		b.t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
	return out
}

// fails runs a command that must fail, and say why.
func (b *booted) fails(why string, words ...string) string {
	b.t.Helper()
	out, err := b.try(words...)
	if err == nil || !strings.Contains(out, why) {
		b.t.Fatalf("%s: %v, should fail and say %q:\n%s", strings.Join(words, " "), err, why, out)
	}
	return out
}

func (c *container) write(path, text string) {
	c.t.Helper()
	if err := os.WriteFile(c.inside(path), []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

func (c *container) read(path string) string {
	c.t.Helper()
	text, err := os.ReadFile(c.inside(path))
	if err != nil {
		c.t.Fatal(err)
	}
	return string(text)
}

// inside is where a file of the machine is seen from here.
func (c *container) inside(path string) string {
	return filepath.Join("/proc", fmt.Sprint(c.leader()), "root", path)
}

// becomes waits until the agent says of itself what it should.
func (b *booted) becomes(what string, good func(status) bool) {
	b.t.Helper()
	var out string
	defer func() {
		if b.t.Failed() {
			b.t.Logf("the last status: %s", out)
		}
	}()
	until(b.t, patienceToBoot, what, func() bool {
		var s status
		var err error
		if out, err = b.try("jitgate", "status", "--json"); err == nil && json.Unmarshal([]byte(out), &s) == nil && good(s) {
			return true
		}
		time.Sleep(100 * time.Millisecond) // a program that starts is work for the machine that is waited for
		return false
	})
}

// offer serves files to the machine over HTTP and returns their address.
func (b *booted) offer(files map[string][]byte) string {
	b.t.Helper()
	var l net.Listener
	var err error
	b.outside.do(func() { l, err = net.Listen("tcp", net.JoinHostPort(alice4, "80")) })
	if err != nil {
		b.t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, ok := files[strings.TrimPrefix(r.URL.Path, "/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Write(content)
	})}
	go server.Serve(l) // returns when it is closed
	b.t.Cleanup(func() { server.Close() })
	return "http://" + alice4
}
