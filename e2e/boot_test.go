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
	name string
	init *exec.Cmd // boot.sh
}

// patienceToBoot bounds what a machine does: a boot, an installation.
const patienceToBoot = 3 * time.Minute

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
	b := &booted{
		host: &host{t: t, vm: newNamespace(t), outside: newNamespace(t), realm: newRealm(t, "acme"), dir: t.TempDir()},
		name: fmt.Sprintf("jitgate-%d-%d", os.Getpid(), machines.Add(1)),
	}
	connect(t, b.vm, b.outside)
	return b
}

// powerOn boots the machine for the first time, with files, by their path,
// over its root directory.
func (b *booted) powerOn(files map[string]string) {
	b.t.Helper()
	root, err := bootable()
	err = errors.Join(err, os.Mkdir(b.path("files"), 0o755), os.Mkdir(b.path("at"), 0o755))
	for path, text := range files {
		err = errors.Join(err, os.MkdirAll(filepath.Dir(b.path("files", path)), 0o755), os.WriteFile(b.path("files", path), []byte(text), 0o644))
	}
	if err != nil {
		b.t.Fatal(err)
	}
	console, err := os.Create(b.path("console"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer console.Close()
	b.init = exec.Command("sh", "testdata/machine/boot.sh", b.name, root, b.path("files"), b.path("at"))
	b.init.Stdout, b.init.Stderr = console, console
	b.init.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	b.vm.do(func() { err = b.init.Start() })
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		b.init.Process.Kill()
		b.init.Wait()
		b.sweep()
		if b.t.Failed() {
			b.t.Logf("the end of the machine's console:\n%s", lastLines(b.path("console")))
		}
	})
	b.up()
}

// sweep removes what the machine leaves outside its namespaces.
func (b *booted) sweep() {
	for _, tree := range []string{"systemd", "unified", "."} {
		var groups []string
		filepath.WalkDir(filepath.Join("/sys/fs/cgroup", tree, b.name), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				groups = append(groups, path)
			}
			return nil
		})
		slices.Reverse(groups)
		for _, g := range groups {
			until(b.t, patience, g+" should go", func() bool { return !errors.Is(os.Remove(g), unix.EBUSY) })
		}
	}
	os.RemoveAll(filepath.Join("/run/systemd/nspawn/propagate", b.name))
}

// leader is the machine's systemd as it is seen from here, or 0.
func (b *booted) leader() int {
	for pid := b.init.Process.Pid; ; {
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

// up waits until the machine has booted.
func (b *booted) up() {
	b.t.Helper()
	state := ""
	until(b.t, patienceToBoot, "the machine should boot", func() bool {
		if b.leader() == 0 {
			return false
		}
		// It ends with 1 for a machine that runs but for a unit that failed.
		state, _ = b.try("systemctl", "is-system-running", "--wait")
		state = strings.TrimSpace(state)
		return state == "running" || state == "degraded"
	})
	if state == "degraded" {
		b.t.Logf("%s: failed units: %s", b.name, b.run("systemctl", "--failed", "--no-legend", "--plain"))
	}
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

// reboot restarts the machine, and waits until it can be spoken to again.
func (b *booted) reboot() {
	b.t.Helper()
	before := b.leader()
	b.try("systemctl", "reboot", "--no-block") // which may end the one who asks
	// None is no sign that it is down: one that is looked for may be missed.
	until(b.t, patienceToBoot, "the machine should restart", func() bool { now := b.leader(); return now != 0 && now != before })
	b.up()
	b.reachable()
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
		state = b.run("systemctl", "show", "--property=ActiveState,Job", unit)
		return state == "ActiveState=active\n"
	})
}

// try runs a command in the machine.
func (b *booted) try(words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patienceToBoot)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", fmt.Sprint(b.leader()), "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "--",
		"env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "DEBIAN_FRONTEND=noninteractive"}, words...)...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
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

// write writes a file of the machine, and read reads one.
func (b *booted) write(path, text string) {
	b.t.Helper()
	if err := os.WriteFile(b.inside(path), []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *booted) read(path string) string {
	b.t.Helper()
	text, err := os.ReadFile(b.inside(path))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

// inside is where a file of the machine is seen from here.
func (b *booted) inside(path string) string {
	return filepath.Join("/proc", fmt.Sprint(b.leader()), "root", path)
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
		out, err = b.try("jitgate", "status", "--json")
		return err == nil && json.Unmarshal([]byte(out), &s) == nil && good(s)
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
