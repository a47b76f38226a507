//go:build linux

package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// observing makes a host whose agent was never armed: nothing is dropped.
func observing(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	h.settings["mode"] = quote("observe")
	h.start()
	h.put(1, h.realm.rules(1, port(22, "TCP"), with(port(5985, "TCP"), object{"sessionsAtEnd": "cut"})))
	h.isOpen(ways("22/tcp", alice4, bob6))
	return h
}

// armFor is the shortest trial.
const armFor = 5 * time.Second

func (h *host) arm(within time.Duration) string {
	h.t.Helper()
	return h.must("arm", "--confirm-within", within.String(), "--config", h.config())
}

// An arming nobody confirms goes back by itself: with the agent alive, with
// the agent killed, and when the machine restarts.
func TestArmingReverts(t *testing.T) {
	t.Parallel()
	t.Run("by itself", func(t *testing.T) {
		t.Parallel()
		h := observing(t)
		out := h.arm(armFor)
		for _, part := range []string{"22/tcp", "jitgate arm confirm", "goes back to observe", alice4} {
			if !strings.Contains(out, part) {
				t.Errorf("arm does not say %q:\n%s", part, out)
			}
		}
		h.isClosed(ways("22/tcp", alice4, bob6))
		if text := h.must("status", "--config", h.config()); !strings.Contains(text, "enforce on trial: back to observe in ") {
			t.Errorf("status says\n%s", text)
		}
		h.opens(armFor+patience, ways("22/tcp", alice4, bob6))
		h.recorded("guard.armed", "", "")
		h.recorded("guard.reverted", "", "")
		h.until("the mode should be observe again", func(s status) bool { return s.Mode == "observe" && s.Intact })
		_, stderr, code := h.command("arm", "confirm", "--config", h.config())
		oneLine(t, stderr, code, "run jitgate arm first")
		h.isOpen(ways("22/tcp", alice4))
	})
	t.Run("agent killed", func(t *testing.T) {
		t.Parallel()
		h := observing(t)
		h.arm(armFor)
		h.isClosed(ways("22/tcp", alice4))
		h.kill()
		h.isClosed(ways("22/tcp", alice4))
		h.opens(armFor+patience, ways("22/tcp", alice4, bob6)) // nobody is there but the kernel
		h.start()
		h.recorded("guard.reverted", "", "")
		h.isOpen(ways("22/tcp", alice4, bob6))
		if s := h.status(); s.Mode != "observe" || !s.Intact {
			t.Errorf("status says %+v", s)
		}
	})
	t.Run("agent restarted meanwhile", func(t *testing.T) {
		t.Parallel()
		h := observing(t)
		h.arm(armFor)
		h.kill()
		h.start()
		h.isClosed(ways("22/tcp", alice4))
		h.opens(armFor+patience, ways("22/tcp", alice4))
		h.recorded("guard.reverted", "", "")
	})
	t.Run("machine restarted", func(t *testing.T) {
		t.Parallel()
		h := observing(t)
		h.arm(time.Hour)
		h.isClosed(ways("22/tcp", alice4))
		h.reboot()
		h.isOpen(ways("22/tcp", alice4, bob6))
		h.recorded("guard.reverted", "", "")
	})
}

// reboot is what a restart of the machine leaves: the disk, another boot and
// no rules. The boot clock does not begin anew here, so what is known of ends
// on it is left out (agent TestClockSetBackBeforeReboot).
func (h *host) reboot() {
	h.t.Helper()
	h.kill()
	h.ruleset("delete", "table", "inet", "jitgate")
	err := errors.Join(byHand(object{"bootID": "another boot"})(h, h.path("state", "mode.json")), os.Remove(h.path("state", "horizon.json")))
	if err != nil {
		h.t.Fatal(err)
	}
	h.start()
}

// A confirmed arming stands: past the trial, over a restart of the agent and
// one of the machine.
func TestArmConfirm(t *testing.T) {
	t.Parallel()
	h := observing(t)
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	h.arm(armFor)
	h.isOpen(ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4))
	for range 2 { // the second time there is nothing left to do
		h.must("arm", "confirm", "--config", h.config())
	}
	if n := len(h.events("guard.confirmed")); n != 1 {
		t.Errorf("confirmed %d times", n)
	}
	time.Sleep(armFor + 500*time.Millisecond)
	stands := func() {
		t.Helper()
		h.isClosed(ways("22/tcp", bob4, bob6))
		h.isOpen(ways("22/tcp", alice4))
		if s := h.status(); s.Mode != "enforce" || !s.Intact {
			t.Errorf("status says %+v", s)
		}
	}
	stands()
	if out := h.arm(armFor); !strings.Contains(out, "drops already, for good") {
		t.Errorf("arming again says %s", out)
	}
	h.kill()
	h.start()
	stands()
	h.reboot()
	stands()
	if n := len(h.events("guard.reverted")); n != 0 {
		t.Errorf("reverted %d times", n)
	}
}

// Disarming leaves the host's ruleset byte for byte as before, and stands over
// restarts until somebody arms again.
func TestDisarm(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.vm.run(t, "nft", "add table inet mine; add chain inet mine input { type filter hook input priority 0; policy accept; }; add rule inet mine input tcp dport 23 drop")
	before := h.ruleset("list", "ruleset")
	h.start()
	h.put(1, h.realm.rules(1, port(22, "TCP")))
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	h.isClosed(ways("22/tcp", bob4))
	gone := func() {
		t.Helper()
		if after := h.ruleset("list", "ruleset"); after != before {
			t.Errorf("the ruleset was\n%s\nand is\n%s", before, after)
		}
		h.isOpen(ways("22/tcp", bob4, alice6))
		h.isClosed(ways("23/tcp", alice4))
	}
	h.must("disarm", "--config", h.config())
	gone()
	if s := h.status(); s.Mode != "off" || s.Problem != "" {
		t.Errorf("status says %+v", s)
	}
	if out := h.must("agent", "step", "--dry-run", "--config", h.config()); out != "nothing to change\n" {
		t.Errorf("a dry run says %s", out)
	}
	h.must("disarm", "--config", h.config())
	h.kill()
	h.start()
	gone()
	if n := len(h.events("guard.disarmed")); n != 1 {
		t.Errorf("disarmed %d times", n)
	}

	// The grant still holds when the guard comes back.
	h.arm(time.Minute)
	h.isClosed(ways("22/tcp", bob4))
	h.isOpen(ways("22/tcp", alice4))
	h.must("arm", "confirm", "--config", h.config())

	// With the agent dead, the command does it itself.
	h.kill()
	h.must("disarm", "--config", h.config())
	gone()
	h.start()
	gone()
	h.must("disarm", "--observe", "--config", h.config())
	h.isOpen(ways("22/tcp", bob4))
	if s := h.status(); s.Mode != "observe" || !s.Intact {
		t.Errorf("status says %+v", s)
	}
}

// Nobody is locked out by a full disk: arming is refused, disarming works.
func TestArmingOnFullDisk(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.settings["mode"] = quote("observe")
	makeState(t, h.path("state"))
	mount(t, "tmpfs", h.path("state"), "tmpfs", 0, "size=256k,mode=700")
	h.start()
	h.put(1, h.realm.rules(1, port(22, "TCP")))
	fill(t, h.path("state", "filler"))
	_, stderr, code := h.command("arm", "--config", h.config())
	oneLine(t, stderr, code, "no space left")
	h.isOpen(ways("22/tcp", alice4))

	// Armed while there was room, and nobody confirms.
	if err := os.Remove(h.path("state", "filler")); err != nil {
		t.Fatal(err)
	}
	h.arm(armFor)
	h.isClosed(ways("22/tcp", alice4))
	fill(t, h.path("state", "filler"))
	_, stderr, code = h.command("arm", "confirm", "--config", h.config())
	oneLine(t, stderr, code, "no space left")
	h.opens(armFor+patience, ways("22/tcp", alice4))
	h.until("the agent should observe again", func(s status) bool { return s.Mode == "observe" && s.Intact })
	h.isOpen(ways("22/tcp", alice4))

	// An agent that finds the disk full at its start observes as before.
	h.kill()
	h.ruleset("delete", "table", "inet", "jitgate")
	h.start()
	h.isOpen(ways("22/tcp", alice4))

	if err := os.Remove(h.path("state", "filler")); err != nil {
		t.Fatal(err)
	}
	h.arm(time.Hour)
	h.must("arm", "confirm", "--config", h.config())
	h.isClosed(ways("22/tcp", alice4))
	fill(t, h.path("state", "filler"))
	_, stderr, code = h.command("disarm", "--config", h.config())
	oneLine(t, stderr, code, "no space left")
	h.isOpen(ways("22/tcp", alice4, bob6))
}

// Only root arms and disarms, whatever the socket's mode.
func TestThreatArmsThroughTheSocket(t *testing.T) {
	t.Parallel()
	h := observing(t)
	// Nobody may get as far as the socket, and be heard there.
	for _, dir := range []string{programs, h.dir, filepath.Dir(h.dir)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(h.path("agent.sock"), 0o666); err != nil {
		t.Fatal(err)
	}
	as := func(user string, args ...string) (string, error) {
		return h.vm.try("setpriv", slices.Concat([]string{"--reuid", user, "--clear-groups", h.program}, args, []string{"--config", h.config()})...)
	}
	if out, err := as("65534", "status"); err != nil {
		t.Fatalf("nobody is not heard at all: %s", out)
	}
	for _, command := range [][]string{{"arm"}, {"arm", "confirm"}, {"disarm"}, {"disarm", "--observe"}} {
		if out, err := as("65534", command...); err == nil || !strings.Contains(out, "run this as root") {
			t.Errorf("%v by nobody: %v %s", command, err, out)
		}
	}
	h.isOpen(ways("22/tcp", bob4))
	if out, err := as("0", "arm"); err != nil {
		t.Errorf("by root: %s", out)
	}
	h.isClosed(ways("22/tcp", bob4))
}

// Who arms through ssh stays admitted, also when he comes anew, and nobody
// else is.
func TestArmingAdmitsItsOwnSession(t *testing.T) {
	t.Parallel()
	h := observing(t)
	ssh := h.sshd()
	for _, through := range []string{"", "setsid -w ", "env -u SSH_CONNECTION sh -c 'exec \"$@\"' - "} {
		out := ssh(alice4, through+h.program+" arm --json --confirm-within 30s --config "+h.config())
		var a struct {
			Admitted []struct {
				Source string
				Port   int
			}
		}
		if err := json.Unmarshal([]byte(out), &a); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if len(a.Admitted) != 1 || a.Admitted[0].Source != alice4 || a.Admitted[0].Port != 22 {
			t.Fatalf("%sarming through ssh admits %s", through, out)
		}
		h.isOpen(ways("22/tcp", alice4))
		h.isClosed(ways("22/tcp", bob4, alice6), ways("5985/tcp", alice4))
		if out := ssh(alice4, "echo in again"); !strings.Contains(out, "in again") {
			t.Errorf("a new session: %s", out)
		}
		h.must("disarm", "--observe", "--config", h.config())
	}
	// Confirmed, the session stays admitted for the time that was said, and no
	// longer.
	ssh(alice4, fmt.Sprintf("%[1]s arm --confirm-within %[2]s --config %[3]s && %[1]s arm confirm --config %[3]s", h.program, armFor, h.config()))
	h.isOpen(ways("22/tcp", alice4))
	h.closes(armFor+patience, ways("22/tcp", alice4))
}

// sshd starts a real sshd on the vm and returns what logs in from a source and
// runs a command.
func (h *host) sshd() (ssh func(source, command string) string) {
	h.t.Helper()
	program, err := exec.LookPath("sshd")
	if err != nil {
		program = "/usr/sbin/sshd"
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		h.t.Fatal(err)
	}
	for _, name := range []string{"hostkey", "id"} {
		h.vm.run(h.t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", h.path(name))
	}
	settings := fmt.Sprintf("ListenAddress %s:22\nHostKey %s\nAuthorizedKeysFile %s\nPermitRootLogin prohibit-password\nStrictModes no\nUsePAM yes\nPrintMotd no\nPidFile none\n",
		vm4, h.path("hostkey"), h.path("id.pub"))
	if err := os.WriteFile(h.path("sshd_config"), []byte(settings), 0o600); err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.Command(program, "-D", "-e", "-f", h.path("sshd_config"))
	if err := h.vm.start(cmd); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	until(h.t, patience, "sshd should listen", func() bool {
		var c net.Conn
		h.outside.do(func() { c, err = net.DialTimeout("tcp", vm4+":22", answerTime) })
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return func(source, command string) string {
		h.t.Helper()
		return h.outside.run(h.t, "ssh", "-F", "none", "-b", source, "-i", h.path("id"), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
			"-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "root@"+vm4, command)
	}
}

// What observes names who would have been cut, per source and port.
func TestObserveNamesSources(t *testing.T) {
	t.Parallel()
	h := observing(t)
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	h.isOpen(ways("22/tcp", alice4, bob4), ways("5985/tcp", bob6))
	var s struct {
		Denials []struct {
			Source, Protocol string
			Port             int
			Packets          uint64
			Last             time.Time
		}
	}
	if err := json.Unmarshal([]byte(h.must("status", "--json", "--config", h.config())), &s); err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, d := range s.Denials {
		named[fmt.Sprintf("%s %d/%s", d.Source, d.Port, d.Protocol)] = true
		if d.Packets == 0 || time.Since(d.Last) > time.Minute || time.Until(d.Last) > time.Minute {
			t.Errorf("%+v", d)
		}
	}
	for _, want := range []string{bob4 + " 22/tcp", bob6 + " 5985/tcp"} {
		if !named[want] {
			t.Errorf("%s is not named in %v", want, named)
		}
	}
	if text := h.must("status", "--config", h.config()); !strings.Contains(text, "would be denied:") || !strings.Contains(text, bob6) {
		t.Errorf("status says\n%s", text)
	}
}
