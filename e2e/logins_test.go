//go:build linux

package e2e_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// login is what the record has of somebody who logged in.
type login struct {
	Event, Grant, Source, Account, Method, Key, Credential string
	Requestor                                              string
	Port, SourcePort                                       uint16
	First                                                  time.Time
}

// logins are those in the record.
func (m *installed) logins() (list []login) {
	m.t.Helper()
	for line := range strings.Lines(m.run("jitgate", "audit", "export", "--event", "grant.login")) {
		var l login
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			m.t.Fatal(err)
		}
		list = append(list, l)
	}
	return list
}

// loggedIn waits until the record has n logins, and returns the last.
func (m *installed) loggedIn(n int, after string) login {
	m.t.Helper()
	var list []login
	until(m.t, patience, fmt.Sprintf("%s: the record should have %d logins", after, n), func() bool {
		list = m.logins()
		return len(list) >= n
	})
	if len(list) != n {
		m.t.Fatalf("%s: %d logins, want %d: %+v", after, len(list), n, list)
	}
	return list[n-1]
}

// as runs a command in the machine as one of the users of the package, in the
// group of the agent's socket.
func as(user string, words ...string) []string {
	return append([]string{"setpriv", "--reuid=" + user, "--regid=" + user, "--groups=jitgate", "--"}, words...)
}

// Beside the agent run a process that tells it whom sshd lets in, and one that
// offers its metrics.
func TestBesideTheAgent(t *testing.T) {
	t.Parallel()
	first, _ := deb(t, "0.0.1")
	m := newInstalled(t, "0.0.1")
	m.provisionAndArm(first)
	m.allow(grant("g1", 22, 30*time.Minute, alice4+"/32"))
	part := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			m.t = t
			f(t)
		})
		if m.t = t; t.Failed() {
			out, _ := m.try("journalctl", "-u", "jitgate-logins", "-u", "jitgate-metrics", "-n", "20", "-o", "cat", "--no-pager")
			t.Fatalf("%s: the last that the two said:\n%s", name, out)
		}
	}
	key := strings.Fields(m.vm.run(t, "ssh-keygen", "-l", "-f", m.path("id.pub")))[1]

	part("what anybody writes is no login", func(t *testing.T) {
		until(t, patience, "the reader of logins should run", func() bool {
			_, err := m.try("systemctl", "is-active", "jitgate-logins")
			return err == nil
		})
		forged := "Accepted publickey for root from " + alice4 + " port 50000 ssh2: ED25519 " + key
		m.run("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--", "logger", "-t", "sshd", forged)
		m.run("systemd-run", "--quiet", "--wait", "logger", "-t", "sshd", forged)
		m.run("cp", "/usr/bin/logger", "/root/sshd") // root of a container that has the journal's socket
		m.run("systemd-run", "--quiet", "--wait", "/root/sshd", "-t", "sshd", forged)
		until(t, patience, "the journal should have what was forged", func() bool {
			return strings.Count(m.run("journalctl", "-t", "sshd", "-o", "cat", "--no-pager"), forged) == 3
		})
		m.getsIn(alice4)
		l := m.loggedIn(1, "forged and real")
		if l.Grant != "g1" || l.Source != alice4 || l.SourcePort == 0 || l.SourcePort == 50000 || l.Port != 22 || l.Account != "root" || l.Method != "publickey" || l.Key != key ||
			l.Credential != "ED25519 "+key || l.Requestor == "" || l.First.IsZero() {
			t.Errorf("recorded %+v", l)
		}
	})
	part("none is lost and none told twice", func(t *testing.T) {
		m.run("systemctl", "kill", "--signal=KILL", "jitgate-logins")
		m.run("systemctl", "stop", "jitgate-logins")
		m.getsIn(alice4)
		m.becomes("the agent should guard without it", func(s status) bool { return s.Intact && s.Problem == "" })
		m.isClosed(ways("22/tcp", bob4))
		m.run("systemctl", "start", "jitgate-logins")
		m.loggedIn(2, "logged in while nobody read")

		pid := m.agent()
		m.run("kill", "-9", pid)
		m.getsIn(alice4)
		m.runsAgain(pid)
		m.loggedIn(3, "logged in while the agent was away")

		m.run("systemctl", "restart", "systemd-journald")
		m.getsIn(alice4)
		m.loggedIn(4, "the journal was restarted")

		for range 5 {
			c := m.ssh(alice4, "true")
			c.Args[len(c.Args)-2] = "nobody-of-that-name@" + vm4
			if err := m.outside.start(c); err == nil {
				c.Wait()
			}
		}
		m.getsIn(alice4)
		m.loggedIn(5, "others failed")
	})
	part("with a certificate", func(t *testing.T) {
		m.vm.run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", m.path("ca"))
		m.vm.run(t, "ssh-keygen", "-q", "-s", m.path("ca"), "-I", "alice from 192.0.2.66 port 1 ssh2", "-n", "root", "-z", "7", m.path("id.pub"))
		m.write("/etc/ssh/ca.pub", m.vm.run(t, "cat", m.path("ca.pub")))
		m.write("/etc/ssh/sshd_config.d/ca.conf", "TrustedUserCAKeys /etc/ssh/ca.pub\nAuthorizedKeysFile none\n")
		m.run("systemctl", "restart", "ssh") // it is told when that listens, which a reload is not
		m.getsIn(alice4)
		l := m.loggedIn(6, "with a certificate")
		if !strings.HasPrefix(l.Credential, "ED25519-CERT "+key+" ID alice from 192.0.2.66 port 1 ssh2 (serial 7) CA ED25519 SHA256:") || l.Key != key || l.Source != alice4 {
			t.Errorf("recorded %+v", l)
		}
	})
	part("who logged in is shown", func(t *testing.T) {
		if out := m.run("jitgate", "audit", "timeline"); !strings.Contains(out, "as root with "+key) {
			t.Errorf("the timeline is\n%s", out)
		}
		if out := m.run("journalctl", "-x", "--no-pager", "JITGATE_EVENT=grant.login"); !strings.Contains(out, "Subject: Somebody logged in over a grant") || !strings.Contains(out, key) {
			t.Errorf("journalctl -x says\n%s", out)
		}
	})
	part("each is answered about one thing", func(t *testing.T) {
		m.fails("jitgate-logins may ask for /v1/logins alone", as("jitgate-logins", "jitgate", "lockdown")...)
		m.fails("jitgate-metrics may ask for /metrics alone", as("jitgate-metrics", "jitgate", "lockdown")...)
		if out, _ := m.try(as("jitgate-fetch", "timeout", "5", "jitgate", "agent", "logins")...); !strings.Contains(out, "only root may ask that") {
			t.Errorf("the fetcher tells of logins: %s", out)
		}
		pid := m.process("jitgate-logins")
		process := m.read("/proc/" + pid + "/status")
		for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(process, want) {
				t.Errorf("the reader of logins has no %q:\n%s", want, process)
			}
		}
	})
	part("metrics", func(t *testing.T) {
		if out, _ := m.try("systemctl", "is-enabled", "jitgate-metrics"); strings.TrimSpace(out) != "disabled" {
			t.Errorf("as installed it is %q", out)
		}
		m.run("systemctl", "start", "jitgate-metrics") // nobody said where
		m.fails("", "systemctl", "is-active", "jitgate-metrics")
		const settings = "/etc/jitgate/agent.toml"
		m.write(settings, m.read(settings)+"metrics = \"127.0.0.1:9477\"\n")
		m.run("systemctl", "enable", "-q", "--now", "jitgate-metrics")
		scraped := func() string {
			return m.vm.run(t, "curl", "-sS", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "http://127.0.0.1:9477/metrics")
		}
		text := scraped()
		for _, want := range []string{"\njitgate_openings 1\n", "\njitgate_guard_enforces 1\n", "\njitgate_events_total{event=\"grant.login\"} "} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		if listening := m.run("ss", "-Hltn", "sport = :9477"); !strings.Contains(listening, "127.0.0.1:9477") || slices.Contains(strings.Fields(listening), "0.0.0.0:9477") {
			t.Errorf("it listens on %s", listening)
		}
		m.install(first) // again: it goes on as the administrator said
		if !strings.Contains(scraped(), "\njitgate_openings 1\n") {
			t.Error("after an upgrade there are no metrics")
		}
	})
}
