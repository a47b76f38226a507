//go:build linux

package e2e_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// plugged is the cable of a machine whose network begins when it has booted
// that far, as on a real one: what is on it outlives the machine. It brings
// network.target, as what makes a network does: through that alone sshd stops
// before nftables.service, which flushes when the machine goes down.
var plugged = map[string]string{
	"/unplugged": "",
	"/etc/systemd/system/networking.service": "[Unit]\nDefaultDependencies=no\nAfter=network-pre.target\nBefore=network.target shutdown.target\n" +
		"Wants=network-pre.target network.target\nConflicts=shutdown.target\n" +
		"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=ip link set v0 up\n",
	"/etc/systemd/system/sysinit.target.d/network.conf": "[Unit]\nWants=networking.service\n",
}

// installed is a machine with the package, provisioned and armed, that people
// log in to with ssh.
type installed struct {
	*booted
	version int // of the last list
}

// install installs a package, or a lower version of it, without a question.
func (b *booted) install(name string) string {
	b.t.Helper()
	return b.run("apt-get", "install", "-q", "-y", "--allow-downgrades", "--reinstall", "-o", "Dpkg::Use-Pty=0", "/root/"+name)
}

// newInstalled makes one. The policy cuts sessions at the end of a grant.
func newInstalled(t *testing.T, packages ...string) *installed {
	t.Helper()
	return newPlugged(t).withPackages(maps.Clone(plugged), packages...)
}

// newPlugged prepares a machine for what is plugged.
func newPlugged(t *testing.T) *booted {
	t.Helper()
	b := newBooted(t)
	// An unplugged cable keeps its addresses.
	b.vm.run(t, "sysctl", "-qw", "net.ipv6.conf.all.keep_addr_on_down=1", "net.ipv6.conf.v0.keep_addr_on_down=1", "net.ipv6.conf.v0.accept_dad=0")
	return b
}

// withPackages boots a machine with packages in the home of its root, whom ssh
// lets in.
func (b *booted) withPackages(files map[string]string, packages ...string) *installed {
	b.t.Helper()
	for _, version := range packages {
		name, content := deb(b.t, version)
		files["/root/"+name] = string(content)
	}
	b.outside.run(b.t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", b.path("id"))
	files["/root/.ssh/authorized_keys"] = b.outside.run(b.t, "cat", b.path("id.pub"))
	b.powerOn(files)
	b.run("chmod", "-R", "go=", "/root/.ssh")
	return &installed{booted: b}
}

// provisionAndArm installs the first package and has the guard drop for good.
func (m *installed) provisionAndArm(name string) {
	m.t.Helper()
	trust, _, pin := provisions(m.realm)
	m.write("/root/trust.json", string(trust))
	m.write("/root/preseed", fmt.Sprintf("jitgate jitgate/host_id string %s\njitgate jitgate/trust_pin string %s\njitgate jitgate/trust string /root/trust.json\n", webName, pin))
	m.run("debconf-set-selections", "/root/preseed")
	m.install(name)
	rules := with(m.realm.rules(1, with(port(22, "TCP"), object{"sessionsAtEnd": "cut"})), object{"host": object{"id": webName}})
	m.write("/var/lib/jitgate/inbox/policy.json", string(m.realm.sign("policy", rules)))
	m.becomes("the policy should be in force", func(s status) bool { return s.document("policy").Version == 1 })
	m.isOpen(ways("22/tcp", alice4, bob6))
	m.run("jitgate", "arm", "--confirm-within", "5m")
	m.run("jitgate", "arm", "confirm")
	m.isClosed(ways("22/tcp", alice4, bob6))
}

// allow delivers a list of grants.
func (m *installed) allow(grants ...object) {
	m.t.Helper()
	m.version++
	list := with(m.realm.list(m.version, grants...), object{"host": object{"id": webName}})
	m.write("/var/lib/jitgate/inbox/grants.new", string(m.realm.sign("grants", list)))
	m.run("mv", "/var/lib/jitgate/inbox/grants.new", "/var/lib/jitgate/inbox/grants.json")
	m.becomes("the list should be in force", func(s status) bool { return s.document("grants").Version == uint64(m.version) })
}

// ssh is a real client, from a source to the machine's address of its family.
func (m *installed) ssh(source string, command ...string) *exec.Cmd {
	target := vm4
	if strings.Contains(source, ":") {
		target = vm6
	}
	return exec.Command("ssh", append([]string{"-F", "none", "-b", source, "-i", m.path("id"), "-o", "BatchMode=yes", "-o", "ConnectTimeout=60",
		"-o", "ConnectionAttempts=1", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "root@" + target}, command...)...)
}

// getsIn requires that ssh gets in.
func (m *installed) getsIn(source string) {
	m.t.Helper()
	c := m.ssh(source, "cat", "/etc/hostname")
	out := &strings.Builder{}
	c.Stdout, c.Stderr = out, out
	err := m.outside.start(c)
	if err == nil {
		err = c.Wait()
	}
	if err != nil || strings.TrimSpace(out.String()) != "machine" {
		m.t.Fatalf("ssh from %s: %v\n%s", source, err, out)
	}
}

// shell is a session of somebody who stays.
type shell struct {
	t  *testing.T
	in io.Writer
	c  *exec.Cmd

	said  chan string
	count int
}

// logsIn opens a session.
func (m *installed) logsIn(source string) *shell {
	m.t.Helper()
	c := m.ssh(source, "cat")
	in, err := c.StdinPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := m.outside.start(c); err != nil {
		m.t.Fatal(err)
	}
	s := &shell{t: m.t, in: in, c: c, said: make(chan string, 64)}
	go func() {
		defer close(s.said)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			s.said <- lines.Text()
		}
	}()
	m.t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	s.carries("after the login", patienceToBoot)
	return s
}

// lives requires that the session carries what is typed.
func (s *shell) lives(what string) {
	s.t.Helper()
	s.carries(what, time.Minute)
}

func (s *shell) carries(what string, within time.Duration) {
	s.t.Helper()
	s.count++
	word := fmt.Sprint("word ", s.count)
	if _, err := fmt.Fprintln(s.in, word); err != nil {
		s.t.Fatalf("%s: the session is gone: %v", what, err)
	}
	select {
	case back, ok := <-s.said:
		if !ok || back != word {
			s.t.Fatalf("%s: the session said %q, open %t", what, back, ok)
		}
	case <-time.After(within):
		s.t.Fatalf("%s: the session hangs", what)
	}
}

// ends requires that the session is ended from the other side.
func (s *shell) ends(what string) {
	s.t.Helper()
	select {
	case word, ok := <-s.said:
		if ok {
			s.t.Fatalf("%s: the session said %q", what, word)
		}
	case <-time.After(time.Minute):
		s.t.Fatalf("%s: the session goes on", what)
	}
}

// flood sends SYNs on a way without a pause until stop, which requires that
// none was answered with a SYN and an ACK, and that there were many.
func (m *installed) flood(w way) (stop func()) {
	m.t.Helper()
	const table = `table inet flood {
		counter sent { }
		counter answered { }
		chain out {
			type filter hook output priority 0;
			ip saddr %[1]s tcp dport 22 tcp flags & (syn | ack) == syn counter name sent
		}
		chain in {
			type filter hook prerouting priority 0;
			ip daddr %[1]s tcp sport 22 tcp flags & (syn | ack) == (syn | ack) counter name answered
		}
	}`
	m.outside.run(m.t, "nft", fmt.Sprintf(table, w.source))
	var ending atomic.Bool
	var ended sync.WaitGroup
	ended.Go(func() {
		for !ending.Load() {
			for range 4 {
				// Nobody is there while the machine is down.
				if fd, err := m.outside.call(w); err == nil {
					unix.Close(fd)
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	end := sync.OnceFunc(func() { ending.Store(true); ended.Wait() })
	m.t.Cleanup(end)
	return func() {
		m.t.Helper()
		end()
		listing := m.outside.run(m.t, "nft", "list", "table", "inet", "flood")
		m.outside.run(m.t, "nft", "delete", "table", "inet", "flood")
		counts := regexp.MustCompile(`counter (\w+) \{\s*packets (\d+)`).FindAllStringSubmatch(listing, -1)
		numbers := map[string]int{}
		for _, c := range counts {
			numbers[c[1]], _ = strconv.Atoi(c[2])
		}
		m.t.Logf("%d SYNs, %d answered", numbers["sent"], numbers["answered"])
		if numbers["answered"] > 0 || numbers["sent"] < 100 {
			m.t.Errorf("%s: of %d SYNs %d were answered", w, numbers["sent"], numbers["answered"])
		}
	}
}

// agent is the main process of the service.
func (m *installed) agent() string { m.t.Helper(); return m.process("jitgate") }

// process is the main process of a service.
func (m *installed) process(service string) string {
	m.t.Helper()
	return strings.TrimSpace(m.run("systemctl", "show", "--value", "--property=MainPID", service))
}

// replaced waits until a service has another process than pid.
func (m *installed) replaced(service, pid string) {
	m.t.Helper()
	until(m.t, patienceToBoot, service+" should run again", func() bool { now := m.process(service); return now != pid && now != "0" })
}

// impatient has the watchdog of a service wait for 3 s, and returns its process.
// patient takes that back.
func (m *installed) impatient(service string) (pid string, patient func()) {
	m.t.Helper()
	dir := "/etc/systemd/system/" + service + ".service.d"
	m.run("mkdir", "-p", dir)
	m.write(dir+"/test.conf", "[Service]\nWatchdogSec=3\n")
	m.run("systemctl", "daemon-reload")
	m.run("systemctl", "restart", service)
	return m.process(service), func() {
		m.t.Helper()
		m.run("rm", "-r", dir)
		m.run("systemctl", "daemon-reload")
	}
}

// runsAgain waits until another process than pid guards.
func (m *installed) runsAgain(pid string) {
	m.t.Helper()
	m.replaced("jitgate", pid)
	m.becomes("the agent should guard again", func(s status) bool { return s.Intact && s.Problem == "" })
}

// From the installation to the purge: who has a grant is in, who has none is
// out, whatever happens to the service, to the package and to the machine.
func TestInstalled(t *testing.T) {
	t.Parallel()
	first, _ := deb(t, "0.0.1")
	second, _ := deb(t, "0.0.2")
	m := newInstalled(t, "0.0.1", "0.0.2")
	bob := way{"22/tcp", bob4}
	m.run("systemctl", "restart", "nftables") // loads rules of its own
	before := m.traces()
	m.provisionAndArm(first)
	m.allow(grant("g1", 22, 30*time.Minute, alice4+"/32"))
	m.getsIn(alice4)
	session := m.logsIn(alice4)
	same := func(what string) {
		t.Helper()
		session.lives(what)
		m.isOpen(ways("22/tcp", alice4))
		m.isClosed(ways("22/tcp", bob4, bob6, alice6))
	}
	same("granted")

	// What a start takes: for the record, a busy machine is no failure.
	m.run("systemctl", "restart", "jitgate")
	t.Logf("a start: %s", strings.ReplaceAll(m.run("systemctl", "show", "--property=InactiveExitTimestampMonotonic,ExecMainStartTimestampMonotonic,ActiveEnterTimestampMonotonic", "jitgate"), "\n", " "))
	t.Run("privileges", func(t *testing.T) {
		units := []string{"jitgate.service", "jitgate-baseline.service", "jitgate-fetch.service", "jitgate-logins.service", "jitgate-metrics.service"}
		for _, u := range units {
			if out := m.run("systemd-analyze", "verify", "--man=no", u); strings.TrimSpace(out) != "" {
				t.Errorf("%s: %s", u, out)
			}
		}
		for unit, most := range map[string]string{"jitgate.service": "12", "jitgate-baseline.service": "12", "jitgate-fetch.service": "20", "jitgate-logins.service": "20", "jitgate-metrics.service": "16"} {
			m.run("systemd-analyze", "security", "--no-pager", "--threshold="+most, unit)
		}
		text := m.read("/proc/" + m.agent() + "/status")
		for _, want := range []string{"CapPrm:\t0000000000001000", "CapEff:\t0000000000001000", "CapBnd:\t0000000000001000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(text, want) {
				t.Errorf("the agent has no %q:\n%s", want, text)
			}
		}
		if strings.Contains(text, "Uid:\t0") {
			t.Errorf("the agent is root:\n%s", text)
		}
	})

	m.run("systemctl", "restart", "nftables")
	same("nftables restarted")

	stop := m.flood(bob)
	pid := m.agent()
	m.run("kill", "-9", pid)
	same("killed")
	m.runsAgain(pid)
	same("killed, and back")
	// One that hangs is killed by its watchdog.
	pid, patient := m.impatient("jitgate")
	m.run("kill", "-STOP", pid)
	same("hung")
	m.runsAgain(pid)
	patient()
	same("hung, and back")

	// Settings that are wrong are refused with the line, those in force stay.
	const settings = "/etc/jitgate/agent.toml"
	good := m.read(settings)
	pid = m.agent()
	m.write(settings, good+"[contrl]\n")
	m.fails("", "systemctl", "reload", "jitgate")
	line := strings.Count(good, "\n") + 1
	until(t, patience, fmt.Sprintf("the journal should say what is wrong in line %d", line), func() bool {
		return strings.Contains(m.run("journalctl", "-u", "jitgate", "-n", "50", "-o", "cat", "--no-pager"), fmt.Sprintf("agent.toml:%d: unknown key", line))
	})
	m.run("systemctl", "is-active", "jitgate")
	same("reload of wrong settings")
	m.write(settings, strings.Replace(good, "[22]", "[22, 2222]", 1))
	m.run("systemctl", "reload", "jitgate")
	same("reload")
	m.run("kill", "-HUP", pid)
	same("SIGHUP")
	m.write(settings, good)
	m.run("systemctl", "reload", "jitgate")
	if now := m.agent(); now != pid {
		t.Errorf("process %s was reloaded, and is %s", pid, now)
	}

	for _, name := range []string{second, first, first, second} { // up, down, again, up
		m.install(name)
		same("installed " + name)
	}
	// What an agent that was root has left becomes its own.
	m.run("systemctl", "stop", "jitgate")
	m.run("chown", "-R", "root:root", "/var/lib/jitgate/state")
	m.run("systemctl", "start", "jitgate")
	m.becomes("the agent should read what root's has left", func(s status) bool {
		return s.Mode == "enforce" && s.Problem == "" && s.document("grants").Version == 1
	})
	same("state of root's agent")
	stop()

	// A thousand openings, and what the service needs for them.
	many := []object{grant("g1", 22, 30*time.Minute, alice4+"/32")}
	for i := range 1000 {
		many = append(many, grant(fmt.Sprint("m", i), 22, 30*time.Minute, fmt.Sprintf("198.51.%d.%d/32", 100+i/250, 1+i%250)))
	}
	m.allow(many...)
	m.becomes("all of them should be open", func(s status) bool { return s.isOpen("m0") && s.isOpen("m999") })
	m.run("systemctl", "restart", "jitgate")
	m.becomes("all of them should be open", func(s status) bool { return s.isOpen("m0") && s.isOpen("m999") })
	// Idle: what the start needed is given back after a while.
	resident, kb := regexp.MustCompile(`VmRSS:\s+(\d+) kB`), 0
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Second) {
		rss := resident.FindStringSubmatch(m.read("/proc/" + m.agent() + "/status"))
		if rss == nil {
			t.Fatal("no VmRSS")
		}
		if kb, _ = strconv.Atoi(rss[1]); kb <= 18<<10 || time.Now().After(deadline) {
			break
		}
	}
	if kb > 20<<10 {
		t.Errorf("with 1,000 openings the agent has %d kB:\n%s", kb, m.run("grep", "^Rss", "/proc/"+m.agent()+"/status"))
	}
	t.Logf("with 1,000 openings the agent has %d kB", kb)
	same("beside a thousand")

	// The end of a grant, for who has one session and for who wants another. It
	// is near only once he is in: a login takes as long as it takes.
	stays := grant("g1", 22, 30*time.Minute, alice4+"/32")
	m.allow(stays, grant("g2", 22, 30*time.Minute, bob4+"/32"))
	m.getsIn(bob4)
	guest := m.logsIn(bob4)
	m.allow(stays, grant("g2", 22, 2*time.Second, bob4+"/32"))
	guest.ends("expired")
	m.isClosed(ways("22/tcp", bob4))
	same("the other one expired")
	m.allow()
	session.ends("taken back")
	m.isClosed(ways("22/tcp", alice4))

	m.run("rm", "-rf", "/etc/systemd/system/jitgate.service.d")
	m.leaves("jitgate", before)
	m.isOpen(ways("22/tcp", alice4, bob6))
}

// leaves purges a package and requires that nothing is left of it.
func (b *booted) leaves(name, before string) {
	b.t.Helper()
	b.run("apt-get", "purge", "-q", "-y", name)
	if after := b.traces(); after != before {
		b.write("/root/before", before)
		b.write("/root/after", after)
		out, _ := b.try("diff", "/root/before", "/root/after")
		b.t.Errorf("purge leaves\n%s", out)
	}
}

// A machine that boots is closed before its network is up, with an agent or
// without, if its guard drops for good; else it is as it was.
func TestBoots(t *testing.T) {
	t.Parallel()
	first, _ := deb(t, "0.0.1")
	m := newInstalled(t, "0.0.1")
	bob := way{"22/tcp", bob4}
	m.provisionAndArm(first)
	m.allow(grant("g1", 22, 30*time.Minute, alice4+"/32"))
	m.getsIn(alice4)
	tables := func() string { return m.run("nft", "list", "tables") }

	// The neighbours' places in the order of a boot, as their packages have them.
	m.run("systemctl", "enable", "-q", "nftables")
	for name, unit := range map[string]string{
		"ufw":       "DefaultDependencies=no\nBefore=network-pre.target\nWants=network-pre.target local-fs.target\nAfter=local-fs.target\n",
		"firewalld": "Before=network-pre.target\nWants=network-pre.target\nAfter=dbus.service\nAfter=polkit.service\n",
	} {
		m.write("/etc/systemd/system/"+name+".service", "[Unit]\n"+unit+"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n")
		m.run("systemctl", "enable", "-q", name)
	}

	// Nobody delivers: what was admitted counts.
	m.run("sh", "-c", "rm /var/lib/jitgate/inbox/*.json")
	stop := m.flood(bob)
	m.reboot()
	m.becomes("the agent should guard as before", func(s status) bool { return s.Mode == "enforce" && s.Intact && s.isOpen("g1") })
	m.run("systemctl", "is-active", "nftables", "ufw", "firewalld")
	m.noCycles()
	m.getsIn(alice4)
	m.isClosed(ways("22/tcp", bob4, bob6))
	if tables := tables(); strings.Contains(tables, "jitgate_boot") {
		t.Errorf("the guard stands, and beside it what closes at boot:\n%s", tables)
	}

	// An agent that does not come: closed, also by a machine so busy that nft
	// takes its time.
	m.run("systemctl", "mask", "jitgate")
	m.run("mkdir", "-p", "/etc/systemd/system/jitgate-baseline.service.d")
	m.write("/etc/systemd/system/jitgate-baseline.service.d/slow.conf", "[Service]\nExecStartPre=sleep 15\n")
	m.reboot()
	m.run("rm", "-r", "/etc/systemd/system/jitgate-baseline.service.d")
	m.run("systemctl", "daemon-reload")
	m.run("systemctl", "is-active", "ssh", "jitgate-baseline")
	closed := func(what string) {
		t.Helper()
		m.isClosed(ways("22/tcp", alice4, bob4, bob6))
		if tables := tables(); !strings.Contains(tables, "table inet jitgate_boot") || strings.Contains(tables, "table inet jitgate\n") {
			t.Errorf("%s: %s", what, tables)
		}
	}
	closed("no agent")
	stop()
	// A neighbour that flushes opens, until systemd has closed again.
	for _, verb := range []string{"restart", "reload"} {
		m.run("systemctl", verb, "nftables")
		m.closes(patienceToBoot, ways("22/tcp", alice4, bob4, bob6))
		m.runs("jitgate-baseline")
		closed("no agent, nftables " + verb)
	}
	stop = m.flood(bob)
	m.run("systemctl", "stop", "jitgate-baseline")
	closed("no agent, the unit stopped")

	// It comes late, and lets in who may.
	m.run("systemctl", "unmask", "jitgate")
	m.run("systemctl", "start", "jitgate")
	m.getsIn(alice4)
	m.isClosed(ways("22/tcp", bob4, bob6))
	m.run("systemctl", "restart", "jitgate-baseline")
	m.getsIn(alice4)
	if tables := tables(); strings.Contains(tables, "jitgate_boot") {
		t.Errorf("started beside a guard, what closes at boot is there:\n%s", tables)
	}
	stop()

	// The way back, with no agent: root's command writes what the agent reads.
	m.run("systemctl", "stop", "jitgate")
	m.run("jitgate", "disarm", "--observe")
	m.isOpen(ways("22/tcp", alice4, bob6))
	m.run("systemctl", "mask", "jitgate")
	m.reboot()
	m.isOpen(ways("22/tcp", alice4, bob6))
	if tables := tables(); strings.Contains(tables, "jitgate") {
		t.Errorf("disarmed, the machine boots with\n%s", tables)
	}
	m.run("systemctl", "unmask", "jitgate")
	m.run("systemctl", "start", "jitgate")
	m.becomes("the agent should observe", func(s status) bool {
		return s.Mode == "observe" && s.Problem == "" && s.document("grants").Version == 1
	})
	m.isOpen(ways("22/tcp", alice4, bob6))

	// A trial closes nothing at the next boot.
	m.run("jitgate", "arm", "--confirm-within", "1h")
	m.isClosed(ways("22/tcp", bob6))
	m.run("systemctl", "mask", "jitgate")
	m.reboot()
	m.isOpen(ways("22/tcp", alice4, bob6))

	m.run("systemctl", "unmask", "jitgate")
	for _, unit := range []string{"jitgate", "jitgate-baseline"} {
		if out := m.run("systemctl", "show", "--value", "--property=Before", unit); !strings.Contains(out, "network-pre.target") {
			t.Errorf("%s is before %s", unit, out)
		}
	}
	m.noCycles()
}

// The control plane's package: installed, it waits; started, it serves as a
// user of its own; purged, it was never there.
func TestInstalledControl(t *testing.T) {
	t.Parallel()
	first, one := debOf(t, "jitgate-control", "0.0.1")
	second, two := debOf(t, "jitgate-control", "0.0.2")
	b := newBooted(t)
	b.powerOn(map[string]string{"/root/" + first: string(one), "/root/" + second: string(two)})
	before := b.traces()
	if out := b.install(first); !strings.Contains(out, "next: read /etc/jitgate-control/control.toml") {
		t.Errorf("the package does not say how to go on:\n%s", out)
	}
	b.run("systemctl", "is-enabled", "jitgate-control")
	b.fails("", "systemctl", "is-active", "jitgate-control")
	if out := b.run("systemd-analyze", "verify", "--man=no", "jitgate-control.service"); strings.TrimSpace(out) != "" {
		t.Error(out)
	}
	b.run("systemd-analyze", "security", "--no-pager", "--threshold=25", "jitgate-control.service")
	b.run("systemctl", "start", "jitgate-control")
	healthy := func(what string) {
		t.Helper()
		client := http.Client{Timeout: patience, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // who answers is not the question
			DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
				b.outside.do(func() { c, err = (&net.Dialer{}).DialContext(ctx, network, address) })
				return c, err
			},
		}}
		defer client.CloseIdleConnections()
		answer, err := client.Get("https://" + vm4 + ":8443/readyz")
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", what, answer.Status)
		}
	}
	healthy("started")
	b.run("systemctl", "reload", "jitgate-control")
	edited := b.read("/etc/jitgate-control/control.toml") + "# edited\n"
	b.write("/etc/jitgate-control/control.toml", edited)
	trust := b.run("sha256sum", "/var/lib/jitgate-control/trust.json")
	b.install(second)
	healthy("upgraded")
	if now := b.run("sha256sum", "/var/lib/jitgate-control/trust.json"); now != trust {
		t.Errorf("the realm was %s, and is %s", trust, now)
	}
	if now := b.read("/etc/jitgate-control/control.toml"); now != edited {
		t.Errorf("the settings are\n%s", now)
	}
	if out := b.run("sh", "-c", "find /var/lib/jitgate-control ! -user jitgate-control; stat -c '%a %U %G' /etc/jitgate-control/control.toml; ps -o user= -C jitgate-control"); out != "640 root jitgate-control\njitgate-control\n" {
		t.Errorf("it belongs to\n%s", out)
	}
	b.leaves("jitgate-control", before)
}

// The fetcher of the package: not there until the settings say where to fetch
// from, and then with no right but to fill the inbox.
func TestInstalledFetcher(t *testing.T) {
	t.Parallel()
	first, _ := deb(t, "0.0.1")
	m := newInstalled(t, "0.0.1")
	trust, policy, pin := provisions(m.realm)
	from := m.offer(map[string][]byte{"trust.json": trust, "policy.json": policy})
	m.install(first)
	m.run("systemctl", "is-enabled", "jitgate-fetch")
	m.fails("", "systemctl", "is-active", "jitgate-fetch")
	m.write("/etc/jitgate/agent.toml", fmt.Sprintf("host_id = %q\ntrust_pin = %q\n\n[control]\nfallback = [%q]\n", webName, pin, from))
	m.run("systemctl", "restart", "jitgate")
	m.run("systemctl", "start", "jitgate-fetch")
	m.becomes("what was fetched should be in force", func(s status) bool {
		return s.document("trust").Version == 1 && s.document("policy").Version == 1 && s.Problem == ""
	})
	if out := m.run("stat", "-c", "%U %a", "/var/lib/jitgate/inbox", "/var/lib/jitgate/inbox/policy.json", "/var/lib/jitgate/state"); out != "jitgate-fetch 755\njitgate-fetch 644\njitgate 700\n" {
		t.Errorf("inbox, a document and the state belong to\n%s", out)
	}
	pid := m.process("jitgate-fetch")
	process := m.read("/proc/" + pid + "/status")
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(process, want) {
			t.Errorf("the fetcher has no %q:\n%s", want, process)
		}
	}
	// It asks the agent what it has, and that is all it may ask of root's.
	inside := []string{"nsenter", "--target", pid, "--mount", "--user", "--preserve-credentials", "--"}
	m.run(append(inside, "test", "-S", "/run/jitgate/agent.sock")...)
	m.fails("", append(inside, "ls", "/var/lib/jitgate/state/mark.json")...)
	m.fails("", append(inside, "touch", "/etc/jitgate/agent.toml")...)

	// One that stands still is killed by its watchdog.
	pid, patient := m.impatient("jitgate-fetch")
	time.Sleep(5 * time.Second)
	if now := m.process("jitgate-fetch"); now != pid {
		t.Errorf("it was killed, and did not stand still: process %s is %s", pid, now)
	}
	m.run("kill", "-STOP", pid)
	m.replaced("jitgate-fetch", pid)
	patient()

	// A reboot brings all of it back.
	m.reboot()
	m.run("systemctl", "is-active", "jitgate", "jitgate-fetch")
	m.noCycles()
}

// sayTheirArchitecture requires that each package says which machines it is
// for, and that its digests are those of what is in it.
func (m *installed) sayTheirArchitecture(packages map[string][]byte) {
	m.t.Helper()
	const file = "/root/package"
	for suffix, want := range map[string]string{"_amd64.deb": "amd64", "_arm64.deb": "arm64", ".x86_64.rpm": "x86_64", ".aarch64.rpm": "aarch64"} {
		found := false
		for name, content := range packages {
			if !strings.HasSuffix(name, suffix) {
				continue
			}
			found = true
			m.write(file, string(content))
			command := []string{"dpkg-deb", "--field", file, "Architecture"}
			if strings.HasSuffix(suffix, ".rpm") {
				m.run("rpm", "--checksig", "--nosignature", file)
				command = []string{"rpm", "--query", "--package", "--queryformat", "%{ARCH}", file}
			}
			if said := strings.TrimSpace(m.run(command...)); said != want {
				m.t.Errorf("%s says that it is for %q", name, said)
			}
		}
		if !found {
			m.t.Errorf("there is no package *%s", suffix)
		}
	}
}

// The rpm from a signed repository, with dnf, whose database is told what
// Debian's packages provide.
func TestInstalledRPM(t *testing.T) {
	t.Parallel()
	files := repository(t, "0.0.1", "0.0.2")
	maps.Copy(files, plugged)
	files["/root/debian.spec"] = `Name: debian
Version: 1
Release: 1
Summary: what Debian's packages provide
License: none
BuildArch: noarch
Provides: nftables systemd /bin/sh
%description
Nothing else.
%files
`
	m := newPlugged(t).withPackages(files)
	m.run("sh", "-e", "-c", "rpmbuild -bb --quiet --define '_rpmdir /root' /root/debian.spec 2>&1; rpm -i /root/noarch/debian-1-1.noarch.rpm")
	packages, err := packed["jitgate"]()
	if err != nil {
		t.Fatal(err)
	}
	m.sayTheirArchitecture(packages)
	before := m.run("nft", "list", "ruleset")
	m.dnf("install", "jitgate-0.0.1")
	if out := m.run("rpm", "--verify", "jitgate"); out != "" {
		t.Errorf("installed, it differs:\n%s", out)
	}
	m.run("systemctl", "is-enabled", "jitgate", "jitgate-baseline", "jitgate-fetch")
	if now := m.run("nft", "list", "ruleset"); now != before {
		t.Errorf("installed, the rules are\n%s", now)
	}
	m.run("systemctl", "start", "jitgate")
	m.becomes("the agent should observe", func(s status) bool { return s.Mode == "observe" && s.Intact && s.Problem == "" })
	m.run("jitgate", "arm")
	m.run("jitgate", "arm", "confirm")
	m.isClosed(ways("22/tcp", alice4, bob6))
	m.write("/etc/jitgate/agent.toml", m.read("/etc/jitgate/agent.toml")+"# edited\n")
	stop := m.flood(way{"22/tcp", bob4})
	m.dnf("upgrade", "jitgate")
	if out := m.run("rpm", "-q", "jitgate"); !strings.HasPrefix(out, "jitgate-0.0.2-1.") {
		t.Errorf("upgraded, there is %s", out)
	}
	m.becomes("the new agent should guard", func(s status) bool { return s.Mode == "enforce" && s.Intact && s.Problem == "" })
	if !strings.Contains(m.read("/etc/jitgate/agent.toml"), "# edited") {
		t.Error("the upgrade has replaced the settings")
	}
	m.reboot()
	m.becomes("the agent should guard again", func(s status) bool { return s.Mode == "enforce" && s.Intact })
	stop()
	m.dnf("remove", "jitgate")
	m.isOpen(ways("22/tcp", alice4, bob6))
	if now := m.run("nft", "list", "tables"); strings.Contains(now, "jitgate") {
		t.Errorf("erased, there is\n%s", now)
	}
	if left := m.run("sh", "-c", "find /usr /etc -xdev -name '*jitgate*' ! -name '*.rpmsave' ! -path '/etc/*/jitgate.repo' ! -name jitgate.asc; systemctl list-unit-files --no-legend 'jitgate*' || true"); strings.Contains(left, ".service") || strings.Contains(left, "/usr/") {
		t.Errorf("erased, there is\n%s", left)
	}
}
