//go:build linux

package e2e_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// diagnosis is what the doctor says. The names are a contract.
type diagnosis struct {
	Host, Mode, Kernel, Firewall string
	Guarded                      []string
	Order                        []struct {
		Hook, Family, Table, Chain, Policy, By, Says string
		Priority                                     int
		Ours                                         bool
	}
	Findings []finding
}

type finding struct{ Level, ID, What, Detail, Do string }

func (d diagnosis) all(id string) []finding {
	return slices.DeleteFunc(slices.Clone(d.Findings), func(f finding) bool { return f.ID != id })
}

// doctor asks the doctor on the host, and holds its exit code to its findings.
func (h *host) doctor() diagnosis {
	h.t.Helper()
	out, stderr, code := h.command("doctor", "--json", "--config", h.path("agent.toml"))
	var d diagnosis
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		h.t.Fatalf("%v: %s%s", err, out, stderr)
	}
	problems := slices.ContainsFunc(d.Findings, func(f finding) bool { return f.Level == "problem" })
	if problems != (code == 1) || code > 1 {
		h.t.Errorf("exit code %d with %+v", code, d.Findings)
	}
	return d
}

// finds requires one finding of a kind and returns it.
func (h *host) finds(level, id string) finding {
	h.t.Helper()
	d := h.doctor()
	found := d.all(id)
	if len(found) != 1 || found[0].Level != level {
		h.t.Fatalf("%s is found as %+v, want one %s, of %+v", id, found, level, d.Findings)
	}
	return found[0]
}

// clear requires that nothing of the kinds is found.
func (h *host) clear(ids ...string) {
	h.t.Helper()
	d := h.doctor()
	for _, id := range ids {
		if found := d.all(id); len(found) > 0 {
			h.t.Fatalf("%s is found: %+v", id, found)
		}
	}
}

// heals does what a finding says is to be typed, and requires that it is gone.
func (h *host) heals(f finding) {
	h.t.Helper()
	typed := regexp.MustCompile("`([^`]+)`").FindStringSubmatch(f.Do)
	if typed == nil {
		h.t.Fatalf("nothing is to be typed in %q", f.Do)
	}
	h.vm.run(h.t, "sh", "-ec", typed[1])
	h.clear(f.ID)
}

// rules adds rules of somebody else's.
func (h *host) rules(text string) {
	h.t.Helper()
	if err := os.WriteFile(h.path("rules.nft"), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.vm.run(h.t, "nft", "-f", h.path("rules.nft"))
}

// listenOn is set for a copy of the test program that only listens.
const listenOn = "JITGATE_E2E_LISTEN"

// listenForever listens on addresses until the process is killed.
func listenForever(addresses string) {
	var listeners []net.Listener
	for a := range strings.SplitSeq(addresses, ",") {
		l, err := net.Listen("tcp", a)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		listeners = append(listeners, l) // one that is forgotten is closed
	}
	fmt.Println("listening")
	listeners[0].Accept() // nobody connects
}

// serve runs a program of a name that listens on addresses.
func (h *host) serve(name string, addresses ...string) {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	// A process is called as the link that was started.
	if err := os.Symlink(self, h.path(name)); err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.Command(h.path(name))
	cmd.Env = append(os.Environ(), listenOn+"="+strings.Join(addresses, ","))
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.vm.start(cmd); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	said := make([]byte, len("listening"))
	if _, err := out.Read(said); err != nil || string(said) != "listening" {
		h.t.Fatalf("%s says %q, %v", name, said, err)
	}
}

// consulted makes a guarding host with an sshd, and nothing wrong.
func consulted(t *testing.T) *host {
	t.Helper()
	privileged(t, "iptables-nft", "sysctl")
	h := guarding(t, port(22, "TCP"))
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	h.serve("sshd", ":22")
	for _, f := range h.doctor().Findings {
		// Whether the clock is kept is this machine's affair, and what the
		// kernel can do. The documents of these tests last an hour.
		if f.Level != "ok" && f.ID != "clock-not-synchronised" && f.ID != "document-expires-soon" && !strings.HasPrefix(f.ID, "feature-") {
			t.Errorf("a host with nothing wrong: %+v", f)
		}
	}
	return h
}

// A chain that drops what a grant opens: found, and what the doctor says to do
// opens the port to the grant and to nobody else.
func TestDoctorFindsWhoDrops(t *testing.T) {
	t.Parallel()
	h := consulted(t)
	granted, stranger := ways("22/tcp", alice4), ways("22/tcp", bob4)
	h.isOpen(granted)
	for name, drop := range map[string]func(){
		"a policy": func() {
			h.rules("table inet filter {\n chain input { type filter hook input priority 0; policy drop\n ct state established,related accept\n iif lo accept\n }\n}\n")
		},
		"a rule behind a jump and a set": func() {
			h.rules("table inet jumps {\n set s { type inet_service; flags interval; elements = { 20-30 }\n }\n chain no { tcp dport @s drop\n }\n chain input { type filter hook input priority 5\n jump no\n }\n}\n")
		},
		"a verdict map at ingress": func() {
			h.rules("table netdev edge {\n chain in { type filter hook ingress device v0 priority 0\n tcp dport vmap { 22 : drop }\n }\n}\n")
		},
		"before the guard": func() {
			h.rules("table ip raw4 {\n chain pre { type filter hook prerouting priority -300\n tcp dport 22 drop\n }\n}\n")
		},
		"iptables-nft, policy": func() { h.vm.run(t, "iptables-nft", "-P", "INPUT", "DROP") },
	} {
		drop()
		h.isClosed(granted)
		f := h.finds("problem", "grant-shadowed")
		if !strings.HasPrefix(f.What, "A grant will not open 22/tcp") {
			t.Errorf("%s: %s", name, f.What)
		}
		// The words are for iptables; here it may only be there under its own name.
		f.Do = strings.ReplaceAll(f.Do, "`iptables ", "`iptables-nft ")
		h.heals(f)
		h.isOpen(granted)
		h.isClosed(stranger)
	}
	if len(h.doctor().all("grant-not-shadowed")) != 1 {
		t.Error("that nobody drops any more is not said")
	}

	// The table shows them all, in the order in which they decide.
	var order []string
	for _, s := range h.doctor().Order {
		order = append(order, s.Table)
		if s.Ours != (s.Table == "jitgate") {
			t.Errorf("ours is %t for %+v", s.Ours, s)
		}
	}
	// The guard comes twice, the second time after everybody.
	if want := []string{"edge", "raw4", "jitgate", "filter", "jumps", "jitgate"}; !slices.Equal(slices.Compact(order), want) {
		t.Errorf("the order is %v, want %v", order, want)
	}
}

// A drop that depends on more than the port is no problem, but said.
func TestDoctorFindsWhoDropsSome(t *testing.T) {
	t.Parallel()
	h := consulted(t)
	h.rules("table inet filter {\n chain input { type filter hook input priority 0; policy drop\n ct state vmap { established : accept, related : accept, invalid : drop }\n ip saddr 192.0.2.0/24 tcp dport 22 accept\n }\n}\n")
	h.heals(h.finds("warning", "grant-shadowed-for-some"))
	h.rules("table inet f2b-table {\n set banned { type ipv4_addr; elements = { 192.0.2.66 }\n }\n chain f2b-chain { type filter hook input priority -1\n tcp dport 22 ip saddr @banned reject\n }\n}\n")
	h.finds("note", "grant-shadowed-for-some")
}

// Ways round the guard.
func TestDoctorFindsWaysRound(t *testing.T) {
	t.Parallel()
	h := consulted(t)
	around := ways("8022/tcp", bob4)

	// A guard that looks again after rewriting stops it.
	redirected := func() {
		t.Helper()
		level := "problem"
		if len(h.outside.open(t, around)) == 0 {
			level = "note"
		}
		f := h.finds(level, "redirected-to-guarded")
		if !strings.Contains(f.What, "8022 is led to guarded 22/tcp") {
			t.Error(f.What)
		}
		h.heals(f)
	}
	h.rules("table ip nat {\n chain pre { type nat hook prerouting priority -100\n tcp dport 8022 redirect to :22\n }\n}\n")
	redirected()
	h.rules("table ip nat {\n chain pre {\n tcp dport 8022 dnat to " + vm4 + ":22\n }\n}\n")
	redirected()
	h.vm.run(t, "iptables-nft", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "8022", "-j", "REDIRECT", "--to-ports", "22")
	redirected()

	// Written into the packet before the guard sees it, the guarded port is
	// another one.
	h.isClosed(ways("22/tcp", bob4))
	h.rules("table inet stateless {\n chain pre { type filter hook prerouting priority -300\n tcp dport 22 tcp dport set 2022\n }\n}\n")
	h.heals(h.finds("problem", "rewritten-before-guard"))

	// A chain of type nat does not come before the guard, whatever its
	// priority says: there is nothing to find.
	h.rules("table ip early {\n chain pre { type nat hook prerouting priority -190\n tcp dport 22 redirect to :2022\n }\n}\n")
	h.isClosed(ways("22/tcp", bob4))
	h.clear("rewritten-before-guard", "redirected-to-guarded")
	h.vm.run(t, "nft", "delete", "table", "ip", "early")

	h.rules("table ip raw {\n chain pre { type filter hook prerouting priority -300\n tcp dport 22 notrack\n }\n}\n")
	h.heals(h.finds("warning", "not-tracked"))

	h.vm.run(t, "sysctl", "-qw", "net.ipv4.conf.v0.route_localnet=1")
	h.heals(h.finds("warning", "route-localnet"))

	// Published ports: to a container's sshd, and to its web server.
	h.rules("table ip nat {\n chain pre {\n tcp dport 2222 dnat to 172.17.0.2:22\n tcp dport 8080 dnat to 172.17.0.2:80\n }\n}\n")
	if f := h.finds("note", "published-ports"); !strings.Contains(f.Detail, "8080/tcp to 172.17.0.2:80") {
		t.Error(f)
	}
	if f := h.finds("warning", "published-unguarded"); !strings.Contains(f.Do, "add 2222/tcp to the ports of the policy") {
		t.Error(f)
	}
	h.put(2, h.realm.rules(2, port(22, "TCP"), port(2222, "TCP")))
	h.clear("published-unguarded")

	// Tables that are asleep, or somebody's own.
	h.rules("table inet asleep {\n flags dormant\n chain in { type filter hook input priority 0; policy drop\n }\n}\n")
	h.finds("note", "table-dormant")
	h.clear("grant-shadowed")
	theirs := exec.Command("nft", "-i")
	in, err := theirs.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.vm.start(theirs); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "add table inet theirs { flags owner; }")
	until(t, patience, "the owned table should be found", func() bool { return len(h.doctor().all("table-owned")) == 1 })
	in.Close()
	theirs.Wait()
	h.clear("table-owned")
}

// Who listens where.
func TestDoctorFindsListeners(t *testing.T) {
	t.Parallel()
	h := consulted(t)
	if f := h.finds("ok", "guarded-listeners"); !strings.Contains(f.Detail, "22/tcp on ::: sshd (pid ") {
		t.Error(f.Detail)
	}
	h.serve("xrdp\x1b[2J", ":3389")
	h.serve("docker-proxy", ":8080")
	h.serve("winrm", "127.0.0.1:5985", "[::1]:5985")
	f := h.finds("warning", "management-port-unguarded")
	if !strings.Contains(f.What, "3389/tcp") || !strings.Contains(f.Do, "3389/tcp") {
		t.Error(f)
	}
	if f := h.finds("warning", "published-by-proxy"); !strings.Contains(f.What, "docker-proxy publishes 8080/tcp") {
		t.Error(f)
	}
	// A name cannot steer the terminal of whoever looks.
	out, _, _ := h.command("doctor", "--config", h.path("agent.toml"))
	if strings.Contains(out, "\x1b") || !strings.Contains(out, "xrdp?[2J listens on 3389/tcp") {
		t.Errorf("it prints %q", out)
	}
	h.put(2, h.realm.rules(2, port(22, "TCP"), port(3389, "TCP"), port(23, "TCP")))
	h.clear("management-port-unguarded")
	if f := h.finds("note", "nobody-listens"); !strings.Contains(f.What, "23/tcp") {
		t.Error(f)
	}

	// The sshd behind the guard, once more.
	h.serve("sshd2", ":2022") // another program: no concern of the doctor's
	h.clear("ssh-elsewhere")
}

func TestDoctorFindsSecondSSH(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.serve("sshd", ":22", ":2222")
	h.finds("problem", "ssh-elsewhere")
	h.put(2, h.realm.rules(2, port(22, "TCP"), port(2222, "TCP")))
	h.clear("ssh-elsewhere")
}

// The agent, its settings and its documents, from nothing to a whole guard.
func TestDoctorFindsTheAgent(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.finds("problem", "no-settings")
	pin := h.settings["trust_pin"]
	delete(h.settings, "trust_pin")
	h.settings["mode"], h.settings["guard"] = quote("observe"), "[5985]"
	h.config()
	h.clear("no-settings")
	h.finds("problem", "no-trust-pin")
	h.finds("problem", "agent-not-running")
	h.finds("problem", "guard-missing")
	h.finds("warning", "mode-observe")
	if err := os.Chmod(h.path("agent.toml"), 0o666); err != nil {
		t.Fatal(err)
	}
	h.heals(h.finds("problem", "settings-writable"))

	h.settings["trust_pin"] = pin
	h.start()
	h.clear("no-trust-pin", "agent-not-running", "guard-missing")
	h.finds("problem", "nothing-may-open")
	h.put(1, with(h.realm.rules(1, port(22, "TCP")), object{"expires": in(15 * 24 * time.Hour)}))
	h.allow(1)
	h.clear("nothing-may-open")
	if f := h.finds("warning", "document-expires-soon"); !strings.Contains(f.What, "trust document") {
		t.Error(f)
	}
	h.deliver("grants.json", []byte("open sesame"))
	until(t, patience, "the refusal should be found", func() bool { return len(h.doctor().all("document-refused")) == 1 })

	h.must("arm", "--config", h.config())
	h.clear("mode-observe")
	h.finds("warning", "mode-trial")
	h.must("disarm", "--config", h.config())
	h.clear("mode-trial", "guard-missing")
	h.finds("warning", "mode-off")
	h.must("arm", "--config", h.config())
	h.must("arm", "confirm", "--config", h.config())
	h.clear("mode-off", "mode-trial", "mode-observe")

	// A dead agent: the guard still stands, and says what the policy did.
	h.kill()
	h.finds("problem", "agent-not-running")
	h.clear("guard-missing")
	if d := h.doctor(); !slices.Contains(d.Guarded, "22/tcp") {
		t.Errorf("guarded is %v", d.Guarded)
	}
}

// The doctor changes nothing.
func TestDoctorChangesNothing(t *testing.T) {
	t.Parallel()
	h := consulted(t)
	rules, files := h.ruleset("-s", "list", "ruleset"), tree(t, h.path("state"))
	links := h.vm.run(t, "ip", "link")
	h.doctor()
	if now := h.ruleset("-s", "list", "ruleset"); now != rules {
		t.Errorf("the rules were\n%s\nand are\n%s", rules, now)
	}
	if now := h.vm.run(t, "ip", "link"); now != links {
		t.Errorf("the devices were\n%s\nand are\n%s", links, now)
	}
	for path, content := range tree(t, h.path("state")) {
		if files[path] != content {
			t.Errorf("%s has changed", path)
		}
	}
}
