//go:build linux

package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// operator is a person outside with jitgate and ssh, and a home of their own.
type operator struct {
	h    *host
	p    *plane
	home string
}

// newOperator makes a machine with an agent that follows a control plane, a
// real sshd behind it, and an operator who has signed in. The control plane
// runs on the machine, so that it sees the operator's own address.
func newOperator(t *testing.T) *operator {
	t.Helper()
	privileged(t, "ssh", "ssh-keygen")
	h := newStranger(t)
	p := newPlane(t, h.vm, vm4+":8443")
	p.start()
	o := &operator{h: h, p: p, home: t.TempDir()}
	o.must("login", p.url(""), "--ca", p.path("tls", "ca.pem"), "--token-file", p.path("admin.token"), "--name", "lab")
	o.must("vm", "add", vmID, "--location", location, "--os", "Linux", "--address", vm4)
	o.must("vm", "enable", "web1", "--port", "22/tcp:PT1H")
	h.enroll(p)
	h.hasPolicy(1)
	o.sshd()
	return o
}

// command makes a command of the operator's.
func (o *operator) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "HOME="+o.home, "XDG_CONFIG_HOME=", "XDG_CACHE_HOME=", "SSH_AUTH_SOCK=",
		"PATH="+filepath.Dir(o.h.program)+":"+os.Getenv("PATH"))
	return cmd
}

// run runs a command of the operator's to its end.
func (o *operator) run(name string, args ...string) (stdout, stderr string, code int) {
	o.h.t.Helper()
	cmd := o.command(name, args...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := o.h.outside.start(cmd); err != nil {
		o.h.t.Fatal(err)
	}
	defer time.AfterFunc(6*patience, func() { cmd.Process.Kill() }).Stop()
	var failed *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &failed) {
		o.h.t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return out.String(), complaints.String(), cmd.ProcessState.ExitCode()
}

// must runs jitgate and requires that it does what it is told.
func (o *operator) must(args ...string) string {
	o.h.t.Helper()
	stdout, stderr, code := o.run(o.h.program, args...)
	if code != 0 {
		o.h.t.Fatalf("jitgate %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// sshd runs a real one on the machine, on both families, that knows the
// operator's key.
func (o *operator) sshd() {
	t := o.h.t
	t.Helper()
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(o.home, "id")
	for _, path := range []string{key, o.h.path("hostkey")} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	config := o.h.path("sshd_config")
	text := "ListenAddress 0.0.0.0:22\nListenAddress [::]:22\nHostKey " + o.h.path("hostkey") + "\nAuthorizedKeysFile " + key + ".pub\n" +
		"PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPrintMotd no\nPrintLastLog no\nPidFile none\nSubsystem sftp internal-sftp\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath("sshd")
	if err != nil {
		program = "/usr/sbin/sshd"
	}
	log, err := os.Create(o.h.path("sshd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, "-D", "-e", "-f", config)
	cmd.Stderr = log
	if err := o.h.vm.start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("the end of sshd's log:\n%s", lastLines(o.h.path("sshd.log")))
		}
	})
	until(t, patience, "sshd should listen", func() bool {
		text, err := os.ReadFile(o.h.path("sshd.log"))
		return err == nil && strings.Count(string(text), "Server listening") == 2
	})
	settings := "Host *\n  User root\n  IdentityFile " + key + "\n  IdentitiesOnly yes\n  BatchMode yes\n  StrictHostKeyChecking accept-new\n  UserKnownHostsFile " +
		filepath.Join(o.home, "known_hosts") + "\n"
	if err := os.MkdirAll(filepath.Join(o.home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	// ssh asks the user database for its home: it is told its settings.
	if err := os.WriteFile(filepath.Join(o.home, ".ssh", "config"), []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
}

// settings are the flags of ssh for the operator's own settings.
func (o *operator) settings() []string {
	return []string{"-F", filepath.Join(o.home, ".ssh", "config")}
}

// open are the requests for the machine that are not over.
func (o *operator) open() (all []object) {
	o.h.t.Helper()
	if err := json.Unmarshal([]byte(o.must("requests", "list", "--open", "--json")), &all); err != nil {
		o.h.t.Fatal(err)
	}
	return all
}

// released waits until nothing is open any more, neither on the record nor in
// the kernel.
func (o *operator) released() {
	o.h.t.Helper()
	until(o.h.t, 2*patience, "what was held should be given back", func() bool { return len(o.open()) == 0 })
	o.h.closes(patience, ways("22/tcp", alice4, alice6, bob6))
}

// From nothing to a session by one command, by both families; what another
// program ends with is what jitgate ends with; nothing is left open.
func TestSSH(t *testing.T) {
	t.Parallel()
	o := newOperator(t)
	o.h.isClosed(ways("22/tcp", alice4, alice6))
	follow := o.command(o.h.program, "activity", "web1", "--follow", "--json", "--event", "request.initiated")
	lines, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.h.outside.start(follow); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { follow.Process.Kill(); follow.Wait() })

	out, complaints, code := o.run(o.h.program, append(append([]string{"ssh", "root@web1", "--reason", "INC-1", "--"}, o.settings()...), "echo in from ${SSH_CONNECTION%% *}; exit 7")...)
	if code != 7 || out != "in from "+alice4+"\n" {
		t.Fatalf("exit code %d, %q, %s", code, out, complaints)
	}
	if !strings.Contains(complaints, "web1 port 22: open") {
		t.Errorf("no progress: %s", complaints)
	}
	o.released()
	// Whoever follows has seen it.
	var seen object
	if err := json.NewDecoder(lines).Decode(&seen); err != nil || !strings.HasPrefix(seen["reason"].(string), "INC-1 (jitgate ssh, ") || seen["source"] != alice4 {
		t.Errorf("followed: %v, %v", seen, err)
	}
	if err := follow.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}

	// The machine has an address of the other family only.
	o.must("vm", "add", vmID, "--address", vm6)
	out, complaints, code = o.run(o.h.program, append(append([]string{"ssh", "web1", "--"}, o.settings()...), "echo in from ${SSH_CONNECTION%% *}")...)
	if code != 0 || !strings.HasPrefix(out, "in from fd77::") { // the kernel chooses which
		t.Fatalf("exit code %d, %q, %s", code, out, complaints)
	}
	o.released()

	// What is not there, and what may not be.
	if _, complaints, code := o.run(o.h.program, append([]string{"ssh", "web9", "--"}, o.settings()...)...); code != 255 || !strings.Contains(complaints, "there is no virtual machine web9") {
		t.Errorf("exit code %d: %s", code, complaints)
	}
	if _, complaints, code := o.run(o.h.program, append([]string{"ssh", "web1", "--for", "2h", "--lease", "2h", "--"}, o.settings()...)...); code != 255 || !strings.Contains(complaints, "not a subset of policy") {
		t.Errorf("exit code %d: %s", code, complaints)
	}
	o.released()
}

// Whatever uses ssh goes through by the settings that jitgate prints, several
// at once share one opening, and a session that is killed gives it back.
func TestSSHConfig(t *testing.T) {
	t.Parallel()
	privileged(t, "scp", "rsync")
	o := newOperator(t)
	config := filepath.Join(o.home, ".ssh", "config")
	before, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, append([]byte(o.must("ssh-config")), before...), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(o.home, "file")
	if err := os.WriteFile(file, bytes.Repeat([]byte("0123456789abcdef"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	for program, args := range map[string][]string{
		"scp":   append(o.settings(), "-q"),
		"rsync": {"-e", strings.Join(append([]string{"ssh"}, o.settings()...), " "), "--archive"},
	} {
		copied := filepath.Join(o.home, "copy by "+program)
		if _, complaints, code := o.run(program, append(args, file, "web1.jit:"+copied)...); code != 0 {
			t.Fatalf("%s: exit code %d: %s", program, code, complaints)
		}
		a, errA := os.ReadFile(file)
		b, errB := os.ReadFile(copied)
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("the copy by %s differs: %v, %v", program, errA, errB)
		}
		o.released()
	}

	// Two at once: the first to end leaves the other alone.
	session := func() *exec.Cmd {
		cmd := o.command("ssh", append(o.settings(), "web1.jit", "echo in; exec cat")...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close() })
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := o.h.outside.start(cmd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		line := make([]byte, 3)
		if _, err := out.Read(line); err != nil || string(line) != "in\n" {
			t.Fatalf("%q, %v", line, err)
		}
		return cmd
	}
	first, second := session(), session()
	if all := o.open(); len(all) != 1 {
		t.Errorf("two sessions hold %d requests", len(all))
	}
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	first.Wait()
	time.Sleep(time.Second) // it must not be given back: there is nothing to wait for
	if all := o.open(); len(all) != 1 {
		t.Errorf("after the first of two sessions there are %d requests", len(all))
	}
	o.h.isOpen(ways("22/tcp", alice4))

	// Killed: nothing of it can give anything back, and it is given back.
	if err := second.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	second.Wait()
	o.released()
}

// With Match exec the port is opened before ssh connects by itself, stays open,
// and is not asked for again.
func TestSSHMatchExec(t *testing.T) {
	t.Parallel()
	o := newOperator(t)
	config := filepath.Join(o.home, ".ssh", "config")
	before, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	match := "Match host web1 exec \"jitgate ssh --prepare %h\"\n  HostName " + vm4 + "\n"
	if err := os.WriteFile(config, append([]byte(match), before...), 0o600); err != nil {
		t.Fatal(err)
	}
	o.h.isClosed(ways("22/tcp", alice4))
	for range 2 {
		if out, complaints, code := o.run("ssh", append(o.settings(), "web1", "echo in")...); code != 0 || out != "in\n" {
			t.Fatalf("exit code %d, %q, %s", code, out, complaints)
		}
		if all := o.open(); len(all) != 1 {
			t.Errorf("%d requests are open", len(all))
		}
	}
	o.must("requests", "revoke", o.open()[0]["id"].(string))
	o.released()
}

// The control plane sees one address of the operator, the machine another, as
// behind a provider's NAT: the machine says whom it turned away, and that
// address is opened for if the operator says that it is theirs.
func TestSSHBehindNAT(t *testing.T) {
	t.Parallel()
	o := newOperator(t)
	o.h.outside.run(t, "nft", "add table ip provider; add chain ip provider out { type nat hook postrouting priority srcnat; }; "+
		"add rule ip provider out tcp dport 22 snat to "+bob4)
	ssh := func(flags ...string) (string, string, int) {
		// Without a terminal of its own: nobody can be asked.
		return o.run("setsid", append(append(append([]string{"-w", o.h.program, "ssh", "web1"}, flags...), append([]string{"--"}, o.settings()...)...), "echo in from ${SSH_CONNECTION%% *}")...)
	}
	out, complaints, code := ssh("--yes")
	if code != 0 || out != "in from "+bob4+"\n" || !strings.Contains(complaints, "turned away a connection to port 22 from "+bob4) {
		t.Fatalf("exit code %d, %q, %s", code, out, complaints)
	}
	until(t, 2*patience, "what was held should be given back", func() bool { return len(o.open()) == 0 })

	// Nobody is there to say so: it is not opened, and what to do is said. The
	// address may be anybody's.
	out, complaints, code = ssh()
	if code != 255 || out != "" || !strings.Contains(complaints, "--source "+bob4+" does that") {
		t.Fatalf("exit code %d, %q, %s", code, out, complaints)
	}
	until(t, 2*patience, "what was held should be given back", func() bool { return len(o.open()) == 0 })
	out, complaints, code = ssh("--source", bob4)
	if code != 0 || out != "in from "+bob4+"\n" {
		t.Fatalf("exit code %d, %q, %s", code, out, complaints)
	}
}
