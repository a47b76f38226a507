//go:build linux

package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// neighbour is a program that keeps rules of its own in the same kernel. To be
// told apart from ours they let everybody in at 22, which we guard, and at
// 8080, which we do not; and nobody at 2222, which we guard, and at 9090.
// Whoever publishes a container's ports does otherwise, and says so in answers.
type neighbour struct {
	name        string
	setUp       func(*machine)
	start, stop func(*machine)
	again       []restart             // what its administrator does to it while it runs
	state       func(*machine) string // what it says of itself
	works       func(*machine)        // what else it does works; leaves its state as it was
	answers     func(way) string      // who answers where only its rules count: "" is nobody
	missing     func(*machine) string // what this kernel lacks to run it
}

type restart struct {
	name string
	do   func(*machine)
}

var neighbours = []neighbour{
	firewalld("firewalld that owns its table", "yes"),
	firewalld("firewalld that does not", "no"),
	{
		name: "ufw",
		setUp: func(m *machine) {
			m.run("ufw", "allow", "22/tcp")
			m.run("ufw", "allow", "8080/tcp")
		},
		start:   func(m *machine) { m.run("ufw", "--force", "enable") },
		stop:    func(m *machine) { m.run("ufw", "disable") },
		again:   []restart{{"reload", func(m *machine) { m.run("ufw", "reload") }}},
		state:   func(m *machine) string { return m.run("ufw", "status", "verbose") + m.saved("iptables", "ip6tables") },
		answers: twoPortsOpen,
	},
	{
		name:    "nftables.service",
		setUp:   func(m *machine) { m.write("/etc/nftables.conf", m.read("nftables.conf")) },
		start:   nftablesService,
		stop:    func(m *machine) { m.run("nft", "flush", "ruleset") },
		again:   []restart{{"reload", nftablesService}},
		state:   func(m *machine) string { return m.run("nft", "-s", "list", "table", "inet", "filter") },
		answers: twoPortsOpen,
	},
	iptables("iptables-nft"),
	iptables("iptables-legacy"),
	fail2ban("nftables-multiport"),
	fail2ban("iptables-multiport"),
	containers("Docker with iptables", "docker.iptables", "iptables-restore"),
	containers("Docker with nftables", "docker.nft", "nft", "-f"),
	containers("podman", "netavark.nft", "nft", "-f"),
}

func twoPortsOpen(w way) string {
	if w.port == "22/tcp" || w.port == "8080/tcp" {
		return "vm"
	}
	return ""
}

func nftablesService(m *machine) { m.run("nft", "-f", "/etc/nftables.conf") }

func firewalld(name, owner string) neighbour {
	start := func(m *machine) {
		m.service("firewalld", "firewalld", "--nofork", "--nopid")
		m.meet("", ways("9090/tcp", bob4, bob6)) // asking costs more
		until(m.t, time.Minute, "firewalld should run", func() bool {
			_, err := m.try("firewall-cmd", "--state")
			return err == nil
		})
	}
	stop := func(m *machine) { m.end("firewalld") }
	return neighbour{
		name: name,
		setUp: func(m *machine) {
			m.run("sed", "-i", "s/^NftablesTableOwner=.*/NftablesTableOwner="+owner+"/", "/etc/firewalld/firewalld.conf")
			m.run("firewall-offline-cmd", "--add-port=22/tcp", "--add-port=8080/tcp")
			m.service("dbus", "dbus-daemon", "--system", "--nofork", "--nopidfile")
			m.appears("/run/dbus/system_bus_socket")
		},
		start: start,
		stop:  stop,
		again: []restart{
			{"reload", func(m *machine) { m.run("firewall-cmd", "--reload") }},
			{"complete reload", func(m *machine) { m.run("firewall-cmd", "--complete-reload") }},
			{"restart", func(m *machine) { stop(m); start(m) }},
		},
		state: func(m *machine) string {
			table := m.run("nft", "-s", "list", "table", "inet", "firewalld")
			if owned := strings.Contains(table, "owner"); owned != (owner == "yes") {
				m.t.Fatalf("NftablesTableOwner=%s, and the table is owned: %t", owner, owned)
			}
			return m.run("firewall-cmd", "--list-all") + table
		},
		answers: twoPortsOpen,
	}
}

func iptables(kind string) neighbour {
	load := func(m *machine, rules string) {
		m.write("/run/rules", rules)
		m.run(kind+"-restore", "/run/rules")
		m.run(strings.Replace(kind, "ip", "ip6", 1)+"-restore", "/run/rules")
	}
	start := func(m *machine) { load(m, m.read("filter.iptables")) }
	return neighbour{
		name:    kind,
		start:   start,
		stop:    func(m *machine) { load(m, "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n") },
		again:   []restart{{"restore", start}},
		state:   func(m *machine) string { return m.saved(kind, strings.Replace(kind, "ip", "ip6", 1)) },
		answers: twoPortsOpen,
		missing: func(m *machine) string {
			if out, err := m.try(kind, "-S"); err != nil {
				return out
			}
			return ""
		},
	}
}

// banlist finds jails and addresses in what fail2ban prints as Python.
var banlist = regexp.MustCompile(`[\w.:]*\w`)

// fail2ban bans who fails to log in at 22 and 8080, granted or not.
func fail2ban(action string) neighbour {
	banned := []string{bob4, bob6, carol4}
	list := func(m *machine) []string {
		return slices.Sorted(slices.Values(banlist.FindAllString(m.run("fail2ban-client", "banned"), -1)))
	}
	refuse := func(m *machine, sources ...string) {
		var lines strings.Builder
		for _, source := range slices.Concat(sources, sources, sources) {
			fmt.Fprintf(&lines, "%s refused login from %s\n", time.Now().UTC().Format(time.DateTime), source)
		}
		m.append("/var/log/door.log", lines.String())
	}
	wait := func(m *machine) {
		m.meet("", ways("8080/tcp", banned...))
		if now := list(m); !slices.Equal(now, slices.Sorted(slices.Values(append([]string{"door"}, banned...)))) {
			m.t.Fatalf("banned: %v", now)
		}
	}
	start := func(m *machine) {
		m.service("fail2ban", "fail2ban-server", "-f", "-x", "--logtarget", "/var/log/fail2ban.log", "start")
		m.appears("/run/fail2ban/fail2ban.sock")
		until(m.t, time.Minute, "fail2ban should run", func() bool {
			_, err := m.try("fail2ban-client", "status", "door")
			return err == nil
		})
		if m.first("banned") {
			refuse(m, banned...)
		}
		wait(m) // after a restart it remembers them
	}
	stop := func(m *machine) { m.end("fail2ban") }
	return neighbour{
		name: "fail2ban with " + action,
		setUp: func(m *machine) {
			m.write("/etc/fail2ban/jail.local", strings.Replace(m.read("jail.local"), "BANACTION", action, 1))
			m.write("/etc/fail2ban/filter.d/door.conf", "[Definition]\nfailregex = refused login from <ADDR>$\n")
			m.write("/var/log/door.log", "")
		},
		start: start,
		stop:  stop,
		again: []restart{
			{"reload", func(m *machine) { m.run("fail2ban-client", "reload"); wait(m) }},
			{"restart", func(m *machine) { stop(m); start(m) }},
		},
		state: func(m *machine) string { return fmt.Sprint(list(m)) },
		works: func(m *machine) {
			for _, source := range []string{carol4, bob4} {
				m.run("fail2ban-client", "set", "door", "unbanip", source)
			}
			m.meet("vm", ways("22/tcp", carol4), ways("8080/tcp", carol4, bob4))
			m.isClosed(ways("22/tcp", bob4)) // not banned, and not granted
			refuse(m, carol4, bob4)
			wait(m)
		},
		answers: func(w way) string {
			if slices.Contains(banned, w.source) && (w.port == "22/tcp" || w.port == "8080/tcp") {
				return ""
			}
			return "vm"
		},
	}
}

// containers has the rules that an engine makes for a container at the bridge
// docker0, whose ports 22, 80 and 90 it publishes as 2222, 8080 and 9090. The
// administrator's own rules drop 9090. It publishes for IPv4 only.
func containers(name, file string, load ...string) neighbour {
	start := func(m *machine) {
		m.write("/run/rules", m.read(file))
		m.run(append(slices.Clone(load), "/run/rules")...)
	}
	clear := func(m *machine) { m.run("nft", "-f", "/run/clear") }
	return neighbour{
		name: name,
		setUp: func(m *machine) {
			container := newNamespace(m.t)
			for _, c := range []string{
				"ip link add docker0 type bridge",
				"ip addr add 172.17.0.1/16 dev docker0",
				"ip link set docker0 up",
				"ip link add c0 type veth peer name eth0 netns " + container.path,
				"ip link set c0 master docker0 up",
			} {
				words := strings.Fields(c)
				m.vm.run(m.t, words[0], words[1:]...)
			}
			for _, c := range []string{
				"ip addr add 172.17.0.2/16 dev eth0",
				"ip link set eth0 up",
				"ip route add default via 172.17.0.1",
			} {
				words := strings.Fields(c)
				container.run(m.t, words[0], words[1:]...)
			}
			var err error
			m.vm.do(func() { err = os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
			if err != nil {
				m.t.Fatal(err)
			}
			serve(m.t, container, "container", 22, 80, 90)
			serve(m.t, m.outside, "outside", 80)
			m.container = container
			m.write("/run/clear", "table ip raw\ntable ip filter\ntable ip nat\ntable ip docker-bridges\ntable inet netavark\ntable ip mine\n"+
				"delete table ip raw\ndelete table ip filter\ndelete table ip nat\ndelete table ip docker-bridges\ndelete table inet netavark\ndelete table ip mine\n")
		},
		start: start,
		stop:  clear,
		again: []restart{{"restart", func(m *machine) { clear(m); start(m) }}},
		state: func(m *machine) string {
			if load[0] == "nft" {
				return m.run("nft", "-s", "list", "ruleset", "ip") // netavark's is listed with the rest
			}
			return m.saved("iptables")
		},
		works: func(m *machine) {
			// The container reaches the world behind the host's address.
			until(m.t, patience, "the container should get out", func() bool {
				var c net.Conn
				var err error
				m.container.do(func() { c, err = net.DialTimeout("tcp", alice4+":80", time.Second) })
				if err != nil {
					return false
				}
				defer c.Close()
				return true
			})
		},
		answers: func(w way) string {
			switch {
			case w.port == "22/tcp" || strings.Contains(w.source, ":"):
				return "vm"
			case w.port == "9090/tcp":
				return ""
			}
			return "container"
		},
	}
}

// Side by side with each neighbour, whoever came first, whatever is restarted:
// a port is open if both let the source in. Gone again, we leave its rules as
// they were to the byte.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	for _, n := range neighbours {
		t.Run(n.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			n.sideBySide(m)
		})
	}
}

func (n neighbour) sideBySide(m *machine) {
	var theirs, ours bool
	is := func() { m.t.Helper(); m.is(n, theirs, ours) }
	is() // everything answers: every knock below could get through
	if n.missing != nil {
		if why := n.missing(m); why != "" {
			m.t.Logf("NOT ON THIS KERNEL: %s: %s", n.name, why)
			m.arrive()
			ours = true
			is()
			return
		}
	}
	if n.setUp != nil {
		n.setUp(m)
	}
	n.start(m)
	theirs = true
	is()
	state, exactly := n.state(m), m.rules("-a")
	same := func(after string) { // most of them are slow to say it
		m.t.Helper()
		if now := n.state(m); now != state {
			m.t.Fatalf("after %s %s says\n%s\nand before\n%s", after, n.name, now, state)
		}
	}
	// Where a guard has no owner, who flushes the ruleset takes it along, and
	// it comes back a moment later.
	mended := func() {
		if ours && m.status().others() {
			m.meet("", ways("22/tcp", bob4, bob6), ways("2222/tcp", bob4, bob6))
		}
	}
	all := func() {
		m.t.Helper()
		for _, a := range n.again {
			a.do(m)
			mended()
			m.t.Logf("after its %s, guard %t", a.name, ours)
			is()
		}
		if n.works != nil {
			n.works(m)
			is()
		}
		m.kill()
		is()
		m.start()
		is()
	}

	// The neighbour first.
	m.arrive()
	ours = true
	is()
	same("our arrival")
	m.kill()
	m.start()
	is()
	m.leave()
	ours = false
	is()
	same("our leave")
	if now := m.rules("-a"); now != exactly {
		m.t.Fatalf("the rules were\n%s\nand are\n%s", exactly, now)
	}
	m.start()
	ours = true
	is()
	all()
	same("its and our restarts")

	// We first.
	n.stop(m)
	theirs = false
	mended()
	is()
	n.start(m)
	theirs = true
	mended()
	is()
	same("its arrival")
	all()
	m.leave()
	ours = false
	is()
	same("our second leave")
}

// nft -f /etc/nftables.conf begins with "flush ruleset". A guard that has an
// owner does not notice; without one it is mended.
func TestReloadsOfNftables(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.write("/etc/nftables.conf", m.read("nftables.conf"))
	nftablesService(m)
	m.isOpen(ways("22/tcp", bob4, bob6))
	m.arrive()
	m.isClosed(ways("22/tcp", bob4, bob6))

	var knocks, entries atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for _, source := range []string{bob4, bob6} {
		all.Go(func() {
			for ctx.Err() == nil {
				// Many doors at once, and each for a moment: a gap is short.
				open, err := m.outside.knock(way{"22/tcp", source}, 5*time.Millisecond)
				if err != nil {
					t.Error(err)
					return
				}
				if knocks.Add(1); open {
					entries.Add(1)
				}
			}
		})
	}
	for range 20 {
		before := knocks.Load()
		nftablesService(m)
		until(t, patience, "bob should knock between two reloads", func() bool { return knocks.Load() >= before+4 })
	}
	cancel()
	all.Wait()
	t.Logf("%d knocks during 20 reloads, %d got in", knocks.Load(), entries.Load())
	if m.status().others() {
		m.closes(2*time.Second, ways("22/tcp", bob4, bob6))
	} else if entries.Load() > 0 {
		t.Errorf("%d of %d knocks got in", entries.Load(), knocks.Load())
	}
	m.isOpen(ways("22/tcp", alice4, alice6))

	// A dead agent owns nothing: what flushes the ruleset takes the guard along.
	m.kill()
	m.isClosed(ways("22/tcp", bob4))
	nftablesService(m)
	m.isOpen(ways("22/tcp", bob4))
	m.start()
	m.isClosed(ways("22/tcp", bob4))
	m.isOpen(ways("22/tcp", alice4))
}

// Who saves the whole ruleset as /etc/nftables.conf saves our table along. The
// running agent does not let it be loaded; with no agent it can be, and brings
// back what was open then, until an agent starts.
func TestSavedRuleset(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.write("/etc/nftables.conf", m.read("nftables.conf"))
	nftablesService(m)
	m.arrive()
	m.isOpen(ways("22/tcp", alice4, alice6))
	before := m.run("nft", "-s", "list", "table", "inet", "filter")
	m.write("/etc/nftables.conf", "flush ruleset\n"+m.run("nft", "list", "ruleset"))
	m.allow(2)
	m.isClosed(ways("22/tcp", alice4, alice6, bob4, bob6))

	out, err := m.try("nft", "-f", "/etc/nftables.conf")
	if m.status().others() {
		m.closes(2*time.Second, ways("22/tcp", alice4, alice6, bob4, bob6))
	} else if err == nil || !strings.Contains(out, "Operation not permitted") {
		t.Errorf("nft -f loads our table: %v %s", err, out)
	}
	m.isClosed(ways("22/tcp", alice4, alice6, bob4, bob6))
	if now := m.run("nft", "-s", "list", "table", "inet", "filter"); now != before {
		t.Errorf("their table was\n%s\nand is\n%s", before, now)
	}

	m.kill()
	nftablesService(m)
	m.isOpen(ways("22/tcp", alice4, alice6))
	m.isClosed(ways("22/tcp", bob4, bob6))
	m.start()
	m.isClosed(ways("22/tcp", alice4, alice6, bob4, bob6))
}

// machine is a host on which the neighbours' real programs run, in a root
// directory of its own: what they write is gone with the test, and so are they.
type machine struct {
	*host
	init      int // the first process
	services  map[string]chan error
	done      map[string]bool
	container *namespace
}

// packages makes the root directory with the neighbours' packages.
var packages = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("./neighbours.sh")
	cmd.Stderr = new(strings.Builder)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("neighbours.sh: %w: %s", err, cmd.Stderr)
	}
	return strings.TrimSpace(string(out)), nil
})

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{host: newHost(t), services: map[string]chan error{}, done: map[string]bool{}}
	root, err := packages()
	if err != nil {
		if os.Getenv("JITGATE_CI") == "" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	if err := os.Mkdir(m.path("machine"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "testdata/neighbours/machine.sh", root, m.path("machine"))
	var complaints strings.Builder
	cmd.Stderr = &complaints
	ready, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	m.vm.do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(ready).ReadString('\n'); err != nil {
		cmd.Wait()
		t.Fatalf("the machine says %q, %v: %s", line, err, &complaints)
	}
	m.init = cmd.Process.Pid
	serve(t, m.vm, "vm", 22, 2222, 8080, 9090)
	return m
}

// command is a command in the machine.
func (m *machine) command(ctx context.Context, words ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", fmt.Sprint(m.init), "--mount", "--pid", "--root", "--wd", "--",
		"env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}, words...)...)
	cmd.WaitDelay = patience
	return cmd
}

func (m *machine) try(words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	cmd := m.command(ctx, words...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := m.vm.start(cmd); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

func (m *machine) run(words ...string) string {
	m.t.Helper()
	out, err := m.try(words...)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
	return out
}

// service starts a program that stays.
func (m *machine) service(name string, words ...string) {
	m.t.Helper()
	log, err := os.OpenFile(m.path(name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	cmd := m.command(context.Background(), append([]string{"sh", "-c", `echo $$ >"/run/$0.pid"; exec "$@"`, name}, words...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := m.vm.start(cmd); err != nil {
		m.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	m.services[name] = ended
	if m.first(name + " log") {
		m.t.Cleanup(func() {
			if text, err := os.ReadFile(m.path(name + ".log")); err == nil && m.t.Failed() {
				m.t.Logf("the log of %s:\n%s", name, text)
			}
		})
	}
}

// end ends a service as a service manager does.
func (m *machine) end(name string) {
	m.t.Helper()
	m.run("sh", "-c", `kill -TERM $(cat "/run/$0.pid")`, name)
	select {
	case <-m.services[name]:
	case <-time.After(time.Minute):
		m.t.Fatalf("%s does not end", name)
	}
}

// first reports whether it is asked for the first time.
func (m *machine) first(what string) bool {
	done := m.done[what]
	m.done[what] = true
	return !done
}

// inside is where a file of the machine is seen from here.
func (m *machine) inside(path string) string {
	return filepath.Join("/proc", fmt.Sprint(m.init), "root", path)
}

func (m *machine) write(path, text string) {
	m.t.Helper()
	if err := os.WriteFile(m.inside(path), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// appears waits for a file, in a directory that is empty at first.
func (m *machine) appears(path string) {
	m.t.Helper()
	until(m.t, time.Minute, path+" should appear", func() bool {
		_, err := os.Stat(m.inside(path))
		return err == nil
	})
}

func (m *machine) append(path, text string) {
	m.t.Helper()
	f, err := os.OpenFile(m.inside(path), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// read is a file of the neighbours' settings and rules.
func (m *machine) read(name string) string {
	m.t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/neighbours", name))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(text)
}

// rules is the whole ruleset without counters.
func (m *machine) rules(options ...string) string {
	m.t.Helper()
	return m.run(append(append([]string{"nft", "-s"}, options...), "list", "ruleset")...)
}

// moving is what changes by itself in what iptables-save prints.
var moving = regexp.MustCompile(`(?m)^#.*\n| \[\d+:\d+\]$`)

// saved is what iptables-save and the like print.
func (m *machine) saved(kinds ...string) string {
	m.t.Helper()
	var out string
	for _, kind := range kinds {
		out += moving.ReplaceAllString(m.run(kind+"-save"), "")
	}
	return out
}

// granted are the sources that our grants let in at 22 and 2222.
var granted = []string{alice4, alice6, carol4}

// arrive starts the agent for the first time and gives it policy and grants.
func (m *machine) arrive() {
	m.t.Helper()
	m.start()
	m.put(1, m.realm.rules(1, port(22, "TCP"), port(2222, "TCP")))
	var prefixes []string
	for _, s := range granted {
		if strings.Contains(s, ":") {
			prefixes = append(prefixes, s+"/128")
		} else {
			prefixes = append(prefixes, s+"/32")
		}
	}
	m.allow(1, grant("g22", 22, 30*time.Minute, prefixes...), grant("g2222", 2222, 30*time.Minute, prefixes...))
}

// leave disarms and stops the agent. The next one is as on a new machine.
func (m *machine) leave() {
	m.t.Helper()
	m.must("disarm", "--config", m.config())
	m.stop()
	if err := os.Remove(m.path("state", "mode.json")); err != nil {
		m.t.Fatal(err)
	}
}

// is requires that exactly those get in who should, and meet whom they should.
func (m *machine) is(n neighbour, theirs, ours bool) {
	m.t.Helper()
	want := map[way]string{}
	for _, port := range []string{"22/tcp", "2222/tcp", "8080/tcp", "9090/tcp"} {
		for _, w := range ways(port, alice4, alice6, bob4, bob6, carol4) {
			guarded := port == "22/tcp" || port == "2222/tcp"
			switch {
			case ours && guarded && !slices.Contains(granted, w.source):
				want[w] = ""
			case theirs:
				want[w] = n.answers(w)
			default:
				want[w] = "vm"
			}
		}
	}
	// As isOpen: who stays out is asked for again.
	for range 5 {
		met := m.outside.greetings(m.t, want)
		for w, who := range met {
			if who != "" && who != want[w] {
				m.t.Fatalf("%s: meets %q, want %q (neighbour %t, guard %t)", w, who, want[w], theirs, ours)
			}
			if who == want[w] {
				delete(want, w)
			}
		}
		if len(want) == 0 {
			return
		}
	}
	m.t.Fatalf("closed, should be open: %v (neighbour %t, guard %t)", want, theirs, ours)
}

// meet waits until everybody on the ways meets who: "" is nobody.
func (m *machine) meet(who string, ways ...[]way) {
	m.t.Helper()
	want := map[way]string{}
	for _, w := range slices.Concat(ways...) {
		want[w] = who
	}
	until(m.t, time.Minute, fmt.Sprintf("all should meet %q: %v", who, ways), func() bool {
		done := maps.Equal(m.outside.greetings(m.t, want), want)
		if !done {
			time.Sleep(100 * time.Millisecond) // the neighbour needs the processor more
		}
		return done
	})
}

// serve listens on ports and greets with a name. A knock would not do beside
// a neighbour that rejects: that looks like a port where nobody listens.
func serve(t *testing.T, n *namespace, name string, ports ...int) {
	t.Helper()
	for _, port := range ports {
		var l net.Listener
		var err error
		n.do(func() { l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, name)
				c.Close()
			}
		}()
	}
}

// greetings tries all ways at once and returns who answers.
func (n *namespace) greetings(t *testing.T, ways map[way]string) map[way]string {
	t.Helper()
	var mu sync.Mutex
	var all sync.WaitGroup
	met := map[way]string{}
	for w := range ways {
		all.Go(func() {
			who, err := n.greeting(w)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("%s: %v", w, err)
			}
			met[w] = who
		})
	}
	all.Wait()
	return met
}

func (n *namespace) greeting(w way) (string, error) {
	fd, err := n.call(w)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if answered, err := poll(fd, unix.POLLOUT, answerTime); err != nil || !answered {
		return "", err
	}
	if result, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || result != 0 {
		return "", os.NewSyscallError("getsockopt", err)
	}
	if spoken, err := poll(fd, unix.POLLIN, patience); err != nil || !spoken {
		return "", err
	}
	name := make([]byte, 64)
	read, err := unix.Read(fd, name)
	return string(name[:max(read, 0)]), os.NewSyscallError("read", err)
}
