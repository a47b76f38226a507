//go:build linux

package e2e_test

import (
	"bufio"
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// oneLine requires that a command failed and said why in one line.
func oneLine(t *testing.T, stderr string, code int, about string) {
	t.Helper()
	if code != 1 || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "jitgate: ") || !strings.Contains(stderr, about) {
		t.Errorf("exit code %d, want 1, and one line about %q:\n%s", code, about, stderr)
	}
}

func TestSecondAgent(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	stop := h.watch(way{"22/tcp", alice4})
	unharmed := func() {
		t.Helper()
		if s := h.status(); !h.alive() || !s.Intact || !s.isOpen("g1") || s.Problem != "" {
			t.Errorf("status says %+v", s)
		}
		h.isClosed(ways("22/tcp", bob4))
	}

	same := h.writeSettings("same-state.toml", maps.Clone(h.settings))
	_, stderr, code := h.command("agent", "run", "--log-level", "error", "--config", same)
	oneLine(t, stderr, code, "another agent")
	_, stderr, code = h.command("agent", "step", "--config", same)
	oneLine(t, stderr, code, "another agent")
	unharmed()

	if h.status().others() {
		t.Log("this kernel lets two agents share a table: nothing to refuse")
	} else {
		settings := maps.Clone(h.settings)
		for _, name := range []string{"inbox_dir", "state_dir", "socket"} {
			settings[name] = quote(h.path("other", name))
		}
		other := h.writeSettings("other-state.toml", settings)
		_, stderr, code = h.command("agent", "run", "--log-level", "error", "--config", other)
		oneLine(t, stderr, code, "agent running here already")
		_, stderr, code = h.command("agent", "step", "--config", other)
		oneLine(t, stderr, code, "agent running here already")
		unharmed()
	}
	stop()
}

// tree is what files lie below a directory, with their contents.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files[path] = string(b)
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return files
}

func TestStep(t *testing.T) {
	t.Parallel()
	h := newHost(t)

	// A host where no agent has ever been: the plan, and nothing else.
	plan := h.must("agent", "step", "--dry-run", "--config", h.config())
	if !strings.Contains(plan, "guard 22/tcp\n") || !strings.Contains(plan, "guard 22/udp\n") {
		t.Errorf("the plan is\n%s", plan)
	}
	if _, err := os.Stat(h.path("state")); !os.IsNotExist(err) {
		t.Errorf("a dry run made the state directory: %v", err)
	}
	if rules := h.ruleset("list", "ruleset"); rules != "" {
		t.Errorf("a dry run wrote\n%s", rules)
	}
	h.isOpen(ways("22/tcp", bob4))

	// Beside a running agent it finds nothing to do and does nothing.
	h.start()
	h.put(1, h.realm.rules(1, port(22, "TCP")))
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	files, rules := tree(t, h.path("state")), h.ruleset("-s", "list", "ruleset")
	if plan := h.must("agent", "step", "--dry-run", "--config", h.config()); plan != "nothing to change\n" {
		t.Errorf("the plan is\n%s", plan)
	}
	h.isOpen(ways("22/tcp", alice4))
	if now := tree(t, h.path("state")); !maps.Equal(now, files) {
		t.Errorf("the state was\n%v\nand is\n%v", files, now)
	}
	if now := h.ruleset("-s", "list", "ruleset"); now != rules {
		t.Errorf("the rules were\n%s\nand are\n%s", rules, now)
	}

	// Alone it shows what a step would do, and the step does it.
	h.stop()
	files = tree(t, h.path("state"))
	h.deliver("grants.json", h.realm.sign("grants", h.realm.list(2, grant("g2", 22, 30*time.Minute, bob4+"/32"))))
	plan = h.must("agent", "step", "--dry-run", "--config", h.config())
	for _, line := range []string{"close " + alice4 + "/32 to 22/tcp\n", "open " + bob4 + "/32 to 22/tcp for "} {
		if !strings.Contains(plan, line) {
			t.Errorf("the plan has no line %q:\n%s", line, plan)
		}
	}
	h.isOpen(ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4))
	if now := tree(t, h.path("state")); !maps.Equal(now, files) {
		t.Errorf("the state was\n%v\nand is\n%v", files, now)
	}
	h.must("agent", "step", "--config", h.config())
	h.isOpen(ways("22/tcp", bob4))
	h.isClosed(ways("22/tcp", alice4))
	h.recorded("grant.opened", "g2", "")

	// A refusal is shown and fails nothing else.
	h.deliver("grants.json", []byte("open sesame"))
	if plan := h.must("agent", "step", "--dry-run", "--config", h.config()); !strings.Contains(plan, "refused grants: malformed: ") {
		t.Errorf("the plan is\n%s", plan)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.allow(1, grant("open", 22, 30*time.Minute, alice4+"/32"), grant("refused", 23, time.Minute, alice4+"/32"),
		with(grant("pending", 22, 30*time.Minute, bob4+"/32"), object{"startTimeUtc": in(10 * time.Minute)}))

	// For machines: these names and no others.
	var s map[string]json.RawMessage
	if err := json.Unmarshal([]byte(h.must("status", "--json", "--config", h.config())), &s); err != nil {
		t.Fatal(err)
	}
	want := []string{"denials", "denied", "documents", "exempt", "firewall", "guarded", "host", "hostFrom", "install", "intact", "mode", "openings", "pending", "refused", "since"}
	if names := slices.Sorted(maps.Keys(s)); !slices.Equal(names, want) {
		t.Errorf("status --json has %v, want %v", names, want)
	}
	for list, want := range map[string][]string{
		"openings":  {"end", "grant", "port", "protocol", "reason", "requestor", "secondsLeft", "sources", "start", "use"},
		"pending":   {"end", "grant", "port", "protocol", "reason", "requestor", "sources", "start"},
		"refused":   {"end", "grant", "port", "reason", "refusal", "requestor", "sources", "start"},
		"documents": {"document", "expires", "issued", "version"},
	} {
		var entries []map[string]any
		if err := json.Unmarshal(s[list], &entries); err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			t.Errorf("status --json has no %s", list)
			continue
		}
		if names := slices.Sorted(maps.Keys(entries[0])); !slices.Equal(names, want) {
			t.Errorf("%s of status --json has %v, want %v", list, names, want)
		}
	}

	// For people.
	text := h.must("status", "--config", h.config())
	for _, part := range []string{hostID, "enforce", "22/tcp", "version 1, until ", alice4 + "/32", "port-not-in-policy", "pending", "alice@example.com", "INC-1"} {
		if !strings.Contains(text, part) {
			t.Errorf("status does not say %q:\n%s", part, text)
		}
	}

	info, err := os.Stat(h.path("agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != fs.ModeSocket|0o660 {
		t.Errorf("the socket has mode %s", info.Mode())
	}

	for _, args := range [][]string{{"--watch", "--json"}, {"--watch"}} {
		cmd := exec.Command(h.program, append([]string{"status", "--config", h.config()}, args...)...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := h.vm.start(cmd); err != nil {
			t.Fatal(err)
		}
		stuck := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		shown := 0
		for lines := bufio.NewScanner(out); shown < 2 && lines.Scan(); {
			if strings.Contains(lines.Text(), hostID) {
				shown++
			}
		}
		if !stuck.Stop() || shown < 2 {
			t.Errorf("status %v was shown %d times", args, shown)
		}
		cmd.Process.Signal(syscall.SIGINT)
		cmd.Wait() // ended by the signal
	}

	// A killed agent leaves its socket behind.
	h.kill()
	_, stderr, code := h.command("status", "--config", h.config())
	oneLine(t, stderr, code, "start it with jitgate agent run")
	_, stderr, code = h.command("lockdown", "--config", h.config())
	oneLine(t, stderr, code, "start it with jitgate agent run")
}

// What a requestor writes cannot steer the terminal of whoever looks.
func TestThreatSteersTheTerminal(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.allow(1, with(grant("g1", 22, time.Minute, alice4+"/32"), object{"requestor": "mallory\x1b[2J", "justification": "fine\nopen 22 *\r\u009b31m"}))
	text := h.must("status", "--config", h.config())
	if strings.ContainsAny(text, "\x1b\r\u009b") || strings.Contains(text, "\nopen 22 *") {
		t.Errorf("status prints %q", text)
	}
}
