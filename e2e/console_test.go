//go:build linux

package e2e_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// laptop puts the realm's trust document and grant key into a directory, as
// whoever may make grants without a network has them.
func (h *host) laptop() string {
	h.t.Helper()
	dir := h.path("laptop")
	if err := os.Mkdir(dir, 0o700); errors.Is(err, os.ErrExist) {
		return dir
	}
	der, err := x509.MarshalPKCS8PrivateKey(h.realm.grant.private)
	if err != nil {
		h.t.Fatal(err)
	}
	trust, err := os.ReadFile(h.path("inbox", "trust.json"))
	if err != nil {
		h.t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "grant.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600),
		os.WriteFile(filepath.Join(dir, "trust.json"), trust, 0o644)); err != nil {
		h.t.Fatal(err)
	}
	return dir
}

// offline makes a list on the laptop and returns what is on its standard
// output.
func (h *host) offline(args ...string) string {
	h.t.Helper()
	return h.must(append([]string{"grant", "--dir", h.laptop(), "--host", hostID}, args...)...)
}

// typed is a list for port 22 as text.
func (h *host) typed(source string, args ...string) string {
	h.t.Helper()
	return h.offline(append([]string{"--port", "22", "--source", source, "--for", "30m", "--reason", "INC-1", "--armor"}, args...)...)
}

// put runs jitgate inbox put with a standard input that is no terminal.
func (h *host) putInbox(input string, args ...string) (stdout, stderr string, code int) {
	h.t.Helper()
	cmd := exec.Command(h.program, append([]string{"inbox", "put", "--config", h.config()}, args...)...)
	var out, complaints bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &complaints
	if err := h.vm.start(cmd); err != nil {
		h.t.Fatal(err)
	}
	stuck := time.AfterFunc(3*patience, func() { cmd.Process.Kill() })
	defer stuck.Stop()
	_ = cmd.Wait() // the exit code says it
	return out.String(), complaints.String(), cmd.ProcessState.ExitCode()
}

// inbox is the grants file in the inbox.
func (h *host) inbox() string {
	h.t.Helper()
	text, err := os.ReadFile(h.path("inbox", "grants.json"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
	return string(text)
}

// console is a program on a pseudo-terminal, as on a serial line.
type console struct {
	t      *testing.T
	master *os.File
	cmd    *exec.Cmd
	ended  chan struct{}

	mu     sync.Mutex
	output bytes.Buffer
}

// console starts jitgate on a terminal of its own, columns wide.
func (h *host) console(columns uint16, args ...string) *console {
	h.t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { master.Close() })
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = errors.Join(unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0),
			unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: columns}))
	}
	if err != nil {
		h.t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer slave.Close()
	c := &console{t: h.t, master: master, cmd: exec.Command(h.program, args...), ended: make(chan struct{})}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = slave, slave, slave
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}
	h.vm.do(func() { err = c.cmd.Start() })
	if err != nil {
		h.t.Fatal(err)
	}
	go func() {
		defer close(c.ended)
		// Reading fails once nobody holds the other side.
		for b := make([]byte, 4096); ; {
			n, err := master.Read(b)
			c.mu.Lock()
			c.output.Write(b[:n])
			c.mu.Unlock()
			if err != nil {
				_ = c.cmd.Wait()
				return
			}
		}
	}()
	h.t.Cleanup(func() { c.cmd.Process.Kill(); <-c.ended })
	return c
}

func (c *console) shown() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.ReplaceAll(c.output.String(), "\r\n", "\n")
}

// says waits until the terminal has shown what.
func (c *console) says(what string) {
	c.t.Helper()
	defer func() {
		if c.t.Failed() {
			c.t.Logf("the terminal shows:\n%s", c.shown())
		}
	}()
	until(c.t, patience, fmt.Sprintf("the terminal should say %q", what), func() bool { return strings.Contains(c.shown(), what) })
}

func (c *console) types(s string) {
	c.t.Helper()
	if _, err := c.master.WriteString(s); err != nil {
		c.t.Fatal(err)
	}
}

// code waits until the program ends by itself.
func (c *console) code() int {
	c.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(3 * patience):
		c.t.Fatalf("it does not end:\n%s", c.shown())
	}
	return c.cmd.ProcessState.ExitCode()
}

// A list is typed at a console, with mistakes; each is answered at once, the
// good lines stay, and it ends by itself. What opens is what the policy allows
// and nothing else, and the record says who typed.
func TestTypedAtAConsole(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	lines := strings.Split(strings.TrimSuffix(h.typed(alice4), "\n"), "\n")
	if len(lines) > 13 {
		t.Errorf("%d lines", len(lines))
	}
	c := h.console(80, "inbox", "put", "--config", h.config(), "-")
	c.says("from the line that begins with JITGATE1")
	c.types("help\r")
	c.says("the first line begins with JITGATE1")
	c.types(strings.Replace(lines[0], "GRANTS", "GRANT5", 1) + "\r")
	c.says("the first line says none of TRUST, POLICY, GRANTS")
	c.types(lines[0] + "\r")
	c.says(fmt.Sprintf("1 of %d> ", len(lines)-1))
	c.types(strings.ToLower(lines[1]) + "\r")
	c.says("2 of ")
	wrong := []byte(lines[2])
	if wrong[4]++; wrong[4] != '7' {
		wrong[4] = '7'
	}
	c.types(string(wrong) + "\r")
	c.says("line 2 does not match its checksum: type it again")
	c.types(lines[3] + "\r")
	c.says("line 2 is missing: line 3 came in its place")
	c.types(lines[1] + "\r")
	c.says("line 1 is there twice")
	c.types(lines[2][:20] + "\r")
	c.says("line 2 has 14 characters, not 53: type it again")
	if h.inbox() != "" {
		t.Error("something is in the inbox already")
	}
	for n, l := range lines[2:] {
		if n%2 == 0 {
			l = strings.ReplaceAll(l, " ", "")
		}
		c.types(l + "\r")
	}
	if code := c.code(); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, c.shown())
	}
	c.says("in force: grants version 1; port 22 is open for " + alice4 + "/32 until ")
	h.isOpen(ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4, alice6))

	all := h.audit()
	at := slices.IndexFunc(all, func(e event) bool { return e.Name == "document.delivered" })
	if at < 0 {
		t.Fatal("the delivery is not recorded")
	}
	e, pid := all[at], c.cmd.Process.Pid
	if !strings.HasPrefix(e.By, fmt.Sprintf("uid 0, pid %d", pid)) || e.PID != pid || e.Process != "jitgate" || e.Document != "grants" || e.Version != 1 ||
		!strings.Contains(e.Message, "by hand, from: terminal") || !strings.HasPrefix(e.Digest, "sha256:") {
		t.Errorf("recorded %+v", e)
	}
	// Before what came of it.
	if later := slices.IndexFunc(all, func(e event) bool { return e.Name == "document.admitted" && e.Document == "grants" }); later < at {
		t.Errorf("delivered is event %d, admitted %d", at, later)
	}
	h.recorded("grant.opened", openingOf(t, h), "")
	if log, err := os.ReadFile(h.path("agent.log")); err != nil || !regexp.MustCompile(`\[WARN\] .*a document is put into the inbox by hand: document=grants version=1 .*uid 0, pid`).Match(log) {
		t.Errorf("the log says\n%s", log)
	}
}

// openingOf is the id of the one grant that is open.
func openingOf(t *testing.T, h *host) string {
	t.Helper()
	s := h.status()
	if len(s.Openings) != 1 {
		t.Fatalf("open: %+v", s.Openings)
	}
	return s.Openings[0].Grant
}

// The ways a list may come in by hand all open the same.
func TestWaysOfDelivery(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	privileged(t, "zbarimg")
	atConsole := func(change func(string) string) func(string) (string, int) {
		return func(text string) (string, int) {
			c := h.console(80, "inbox", "put", "--config", h.config(), "-")
			c.says("Ctrl-C changes nothing")
			c.types(change(text))
			code := c.code()
			return c.shown(), code
		}
	}
	piped := func(text string) (string, int) {
		stdout, stderr, code := h.putInbox(text, "-")
		return stdout + stderr, code
	}
	asFile := func(text string) (string, int) {
		if err := os.WriteFile(h.path("carried"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		stdout, stderr, code := h.putInbox("", h.path("carried"))
		return stdout + stderr, code
	}
	same := func(s string) string { return s }
	version := 0
	for _, c := range []struct {
		name string
		form []string
		from string
		put  func(string) (string, int)
	}{
		{"pasted with CR LF, brackets and a prompt", []string{"--armor"}, "terminal", atConsole(func(s string) string {
			return "\x1b[200~alice@laptop:~$ jitgate grant --armor\r\n" + strings.ReplaceAll(s, "\n", "\r\n") + "alice@laptop:~$ \x1b[201~"
		})},
		{"pasted JSON", []string{"-o", "-"}, "terminal", atConsole(same)},
		{"piped text", []string{"--armor"}, "standard input", piped},
		{"piped JSON", []string{"-o", "-"}, "standard input", piped},
		{"a file of text", []string{"--armor"}, "file", asFile},
		{"a file of JSON", []string{"-o", "-"}, "file", asFile},
		{"a QR code, scanned and pasted", []string{"--qr"}, "terminal", atConsole(func(s string) string { return scan(t, s) + "\r" })},
		{"a QR code, scanned and piped", []string{"--qr"}, "standard input", func(s string) (string, int) { return piped(scan(t, s)) }},
	} {
		version++
		source := []string{alice4, bob4}[version%2]
		made := h.offline(append([]string{"--revoke", "all", "--port", "22", "--source", source, "--for", "30m"}, c.form...)...)
		shown, code := c.put(made)
		if code != 0 || !strings.Contains(shown, fmt.Sprintf("in force: grants version %d; port 22 is open for %s/32 until ", version, source)) {
			t.Fatalf("%s: exit code %d:\n%s", c.name, code, shown)
		}
		h.isOpen(ways("22/tcp", source))
		h.isClosed(ways("22/tcp", []string{alice4, bob4}[(version+1)%2]))
		told := h.events("document.delivered")
		if e := told[len(told)-1]; len(told) != version || e.Version != uint64(version) || !strings.HasSuffix(e.Message, "from: "+c.from) {
			t.Errorf("%s: recorded %+v", c.name, e)
		}
		if info, err := os.Stat(h.path("inbox", "grants.json")); err != nil || info.Mode() != 0o644 {
			t.Errorf("%s: %v %v", c.name, info, err)
		}
	}
	if left, err := filepath.Glob(h.path("inbox", ".*")); err != nil || len(left) > 0 {
		t.Errorf("left in the inbox: %v", left)
	}
}

// scan reads a QR code off a terminal, with another program.
func scan(t *testing.T, terminal string) string {
	t.Helper()
	const scale = 4
	var rows [][]bool // dark modules
	for line := range strings.Lines(terminal) {
		modules, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), "\x1b[0;30;47m")
		if !ok {
			continue
		}
		var top, bottom []bool
		for _, r := range strings.TrimSuffix(modules, "\x1b[0m") {
			top, bottom = append(top, r == '█' || r == '▀'), append(bottom, r == '█' || r == '▄')
		}
		rows = append(rows, top, bottom)
	}
	if len(rows) == 0 {
		t.Fatalf("no code is drawn:\n%s", terminal)
	}
	// On a dark terminal: what the code does not colour itself is black.
	page := image.NewGray(image.Rect(0, 0, scale*(len(rows[0])+10), scale*(len(rows)+10)))
	for y, row := range rows {
		for x, dark := range row {
			for i := range scale * scale {
				if !dark {
					page.SetGray(scale*(x+5)+i%scale, scale*(y+5)+i/scale, color.Gray{200})
				}
			}
		}
	}
	var file bytes.Buffer
	if err := png.Encode(&file, page); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "code.png")
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("zbarimg", "--quiet", "--raw", path).Output()
	if err != nil {
		t.Fatalf("zbarimg: %v\n%s", err, terminal)
	}
	return strings.TrimSpace(string(out))
}

// A code that the terminal is too narrow for is not drawn, and takes no
// version.
func TestNarrowTerminal(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	privileged(t, "zbarimg")
	args := []string{"grant", "--dir", h.laptop(), "--host", hostID, "--port", "22", "--source", alice4, "--for", "30m", "--qr"}
	c := h.console(40, args...)
	if code := c.code(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	found := regexp.MustCompile(`^jitgate: the QR code is (\d+) columns wide, this terminal has 40: make it wider, or use --armor\n$`).FindStringSubmatch(c.shown())
	if found == nil {
		t.Fatalf("it says\n%s", c.shown())
	}
	var need uint16
	if _, err := fmt.Sscan(found[1], &need); err != nil {
		t.Fatal(err)
	}
	if c := h.console(need-1, args...); c.code() != 1 {
		t.Errorf("drawn in %d columns", need-1)
	}
	c = h.console(need, args...)
	if code := c.code(); code != 0 {
		t.Fatalf("exit code %d in %d columns:\n%s", code, need, c.shown())
	}
	if err := os.WriteFile(h.path("scanned"), []byte(scan(t, c.shown())), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := h.must("inspect", h.path("scanned")); !strings.Contains(out, `"version": 1,`) {
		t.Errorf("the code says\n%s", out)
	}
}

// What the agent would refuse does not take the place of what lies in the
// inbox, and the refusal names its code and the bound.
func TestThreatCarriesText(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	old := h.typed(alice4)
	if _, stderr, code := h.putInbox(h.typed(bob4), "-"); code != 0 {
		t.Fatal(stderr)
	}
	before, events := h.inbox(), len(h.audit())
	elsewhere := newRealm(t, "acme")
	for name, c := range map[string]struct{ text, about string }{
		"too long":       {h.offline("--revoke", "all", "--port", "22", "--source", alice4, "--for", "3h", "--armor"), "too-long: "},
		"another port":   {h.offline("--revoke", "all", "--port", "23", "--source", alice4, "--for", "5m", "--armor"), "port-not-in-policy: "},
		"replayed":       {old, "rollback: version 1 "},
		"same version":   {string(h.realm.sign("grants", h.realm.list(2, grant("x", 22, time.Minute, alice4+"/32")))), "equivocation: "},
		"another host":   {string(h.realm.sign("grants", with(h.realm.list(9), object{"host": object{"id": "web2"}}))), "wrong-host: "},
		"another key":    {string(elsewhere.sign("grants", h.realm.list(9))), "bad-signature: "},
		"not the format": {string(h.realm.sign("grants", with(h.realm.list(9), object{"surprise": true}))), "malformed: "},
		"from tomorrow":  {string(h.realm.sign("grants", with(h.realm.list(9), object{"issued": in(time.Hour), "expires": in(2 * time.Hour)}))), "not-yet: "},
	} {
		stdout, stderr, code := h.putInbox(c.text, "-")
		oneLine(t, stderr, code, c.about)
		if stdout != "" || h.inbox() != before {
			t.Errorf("%s: the inbox has changed: %s", name, stdout)
		}
	}
	if _, stderr, _ := h.putInbox(h.offline("--revoke", "all", "--port", "22", "--source", alice4, "--for", "3h", "--armor"), "-"); !strings.Contains(stderr, "allows PT1H") {
		t.Errorf("the bound is not named: %s", stderr)
	}
	if now := h.audit(); len(now) != events {
		t.Errorf("recorded: %+v", now[events:])
	}
	h.isOpen(ways("22/tcp", bob4))
	h.isOpen(ways("22/tcp", alice4)) // kept by the second list

	// Of a list of which a part is refused the rest opens, and it is said.
	stdout, stderr, code := h.putInbox(h.offline("--revoke", "all", "--port", "22,23", "--source", bob4, "--for", "5m", "--armor"), "-")
	oneLine(t, stderr[strings.LastIndex(strings.TrimSpace(stderr), "\n")+1:], code, "is refused: port-not-in-policy: ")
	if !strings.Contains(stdout, "port 22 is open for "+bob4) {
		t.Errorf("it says %s", stdout)
	}
}

// What closes is said before; a dry run stops there. And a control plane whose
// versions went on meanwhile takes over again.
func TestReplacesWhatIsInForce(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.allow(1187, grant("g1", 22, 30*time.Minute, bob4+"/32"))
	before := h.inbox()

	// The laptop knows nothing of version 1187.
	_, stderr, code := h.putInbox(h.typed(alice4), "-")
	oneLine(t, stderr, code, "rollback: ")

	text := h.typed(alice4, "--after", "1187")
	stdout, stderr, code := h.putInbox(text, "--dry-run", "-")
	if code != 0 || !strings.Contains(stderr, "this closes before its time: port 22 is open for "+bob4+"/32 until ") ||
		!strings.HasPrefix(stdout, "nothing was changed; with grants version 1188 port 22 is open for "+alice4) {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	if h.inbox() != before || len(h.events("document.delivered")) > 0 {
		t.Error("a dry run changed something")
	}
	h.isOpen(ways("22/tcp", bob4))

	stdout, stderr, code = h.putInbox(text, "--json", "-")
	var result struct {
		Agent             string
		Version           uint64
		Openings, Revoked []grantState
	}
	if err := json.Unmarshal([]byte(stdout), &result); err != nil {
		t.Fatalf("%v: %s", err, stdout)
	}
	if code != 0 || result.Agent != "in-force" || result.Version != 1188 || len(result.Openings) != 2 || len(result.Revoked) != 1 || result.Revoked[0].Grant != "g1" {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	h.closes(patience, ways("22/tcp", bob4))
	h.isOpen(ways("22/tcp", alice4))
	h.recorded("grant.revoked", "g1", "")

	// The control plane's next list must be above.
	h.deliver("grants.json", h.realm.sign("grants", h.realm.list(1188, grant("g2", 22, 30*time.Minute, bob4+"/32"))))
	h.recorded("document.refused", "grants", "equivocation")
	h.allow(1189, grant("g2", 22, 30*time.Minute, bob4+"/32"))
	h.isOpen(ways("22/tcp", bob4))
	h.isClosed(ways("22/tcp", alice4))
}

// Ctrl-C, and an input that ends, change nothing.
func TestInterruptedAtAConsole(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	text := h.typed(alice4)
	lines := strings.SplitAfter(text, "\n")
	for name, end := range map[string]string{"Ctrl-C": "\x03", "Ctrl-D": "\x04"} {
		c := h.console(80, "inbox", "put", "--config", h.config(), "-")
		c.says("Ctrl-C changes nothing")
		c.types(strings.Join(lines[:4], ""))
		c.says("4 of ")
		c.types(end)
		if code := c.code(); code == 0 {
			t.Errorf("%s: exit code %d", name, code)
		}
		if name == "Ctrl-D" {
			c.says("nothing was changed: malformed: line 4 is missing")
		}
	}
	if h.inbox() != "" || len(h.events("document.delivered")) > 0 {
		t.Error("something was changed")
	}
}

// Only root delivers by hand, and only root may ask the agent to.
func TestThreatDeliversThroughTheSocket(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	privileged(t, "curl", "setpriv")
	text := h.path("list.txt")
	if err := os.WriteFile(text, []byte(h.typed(alice4)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{programs, h.dir, filepath.Dir(h.dir)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(h.path("agent.sock"), 0o666); err != nil {
		t.Fatal(err)
	}
	nobody := []string{"--reuid", "65534", "--clear-groups"}
	out, err := h.vm.try("setpriv", append(nobody, h.program, "inbox", "put", "--config", h.config(), text)...)
	if err == nil || !strings.Contains(out, "run this as root") {
		t.Errorf("%v %s", err, out)
	}
	for path, body := range map[string]string{"/v1/check": `{"envelope": ""}`, "/v1/delivering": `{"document": "grants", "from": "file", "digest": "sha256:` + strings.Repeat("0", 64) + `"}`} {
		call := []string{"curl", "-s", "-w", "%{http_code}", "--unix-socket", h.path("agent.sock"), "-d", body, "http://agent" + path}
		if out, err := h.vm.try("setpriv", append(nobody, call...)...); err != nil || !strings.HasSuffix(out, "403") {
			t.Errorf("%s by nobody: %v %s", path, err, out)
		}
		if out, err := h.vm.try(call[0], call[1:]...); err != nil || !strings.HasSuffix(out, map[bool]string{true: "200", false: "204"}[path == "/v1/check"]) {
			t.Errorf("%s by root: %v %s", path, err, out)
		}
	}
	if n := len(h.events("document.delivered")); n != 1 || h.inbox() != "" {
		t.Errorf("%d deliveries are recorded", n)
	}
	h.isClosed(ways("22/tcp", alice4))
}

// With the agent down the list is delivered all the same, nobody has recorded
// it, and that is said. It opens when the agent starts. The agent itself says
// that the file is not from whoever delivers here.
func TestDeliveredWithoutAgent(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	const fetcher = 65534
	if err := os.Chown(h.path("inbox"), fetcher, fetcher); err != nil {
		t.Fatal(err)
	}
	h.place("grants.json", func(path string) error {
		return errors.Join(os.WriteFile(path, h.realm.sign("grants", h.realm.list(1)), 0o644), os.Chown(path, fetcher, fetcher))
	})
	h.until("version 1 should be in force", func(s status) bool { return s.document("grants").Version == 1 })
	h.kill()

	stdout, stderr, code := h.putInbox(h.typed(alice4, "--after", "1"), "-")
	if code != 0 || !strings.Contains(stdout, "The agent is not running: it will be read when it starts, and nothing has recorded who put it there") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	h.isClosed(ways("22/tcp", alice4))
	h.start()
	h.opens(patience, ways("22/tcp", alice4))

	if err := os.WriteFile(h.path("inbox", "grants.json"), []byte("open sesame"), 0o644); err != nil {
		t.Fatal(err)
	}
	h.recorded("document.refused", "grants", "malformed")
	byHand := map[string]bool{}
	for _, e := range h.audit() {
		if e.Document == "grants" {
			byHand[fmt.Sprintf("%s %d", e.Name, e.Version)] = strings.Contains(e.Message, "by hand")
		}
	}
	want := map[string]bool{"document.admitted 1": false, "document.admitted 2": true, "document.refused 0": true}
	if !maps.Equal(byHand, want) {
		t.Errorf("by hand: %v, want %v", byHand, want)
	}
	if len(h.events("document.delivered")) > 0 {
		t.Error("who recorded a delivery?")
	}
}

// A delivery that cannot be recorded opens nothing, and still closes.
func TestDeliveredUnrecorded(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	makeState(t, h.path("state"))
	mount(t, "tmpfs", h.path("state"), "tmpfs", 0, "size=256k,mode=700")
	h.start()
	h.put(1, h.realm.rules(1, port(22, "TCP")))
	list := h.typed(alice4)
	if _, stderr, code := h.putInbox(list, "-"); code != 0 {
		t.Fatal(stderr)
	}
	h.isOpen(ways("22/tcp", alice4))
	fill(t, h.path("state", "filler"))
	// The page the record ends in still takes a few.
	for range os.Getpagesize() / 200 {
		if _, stderr, _ := h.putInbox(list, "-"); strings.Contains(stderr, "the delivery is not recorded: not-durable: ") {
			break
		}
	}
	_, stderr, code := h.putInbox(h.offline("--revoke", "all", "--port", "22", "--source", bob4, "--for", "30m", "--armor"), "-")
	if code != 1 || !strings.Contains(stderr, "the delivery is not recorded: not-durable: ") || !strings.Contains(stderr, "jitgate: the agent has a problem: not-durable: ") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	h.isClosed(ways("22/tcp", alice4, bob4))
	h.kill()
}

// Without waiting, and on a host that drops nothing, it says so.
func TestDeliveryRemarks(t *testing.T) {
	t.Parallel()
	h := observing(t)
	stdout, stderr, code := h.putInbox(h.typed(alice4), "--wait", "0", "-")
	if code != 0 || !strings.HasPrefix(stdout, "grants version 1 is in the inbox. What the agent makes of it: jitgate status") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	stdout, stderr, code = h.putInbox(h.typed(bob4), "-")
	if code != 0 || !strings.HasSuffix(stdout, "; mode observe: this host drops nothing\n") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	// The same once more changes nothing, and is no mistake.
	again := h.inbox()
	if stdout, stderr, code = h.putInbox(again, "-"); code != 0 || !strings.HasPrefix(stdout, "in force: grants version 2; ") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
}

// Every command of docs/break-glass.md does what it is there for, in the order
// of the page.
func TestBreakGlassPage(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.allow(1187, grant("g1", 22, 30*time.Minute, bob4+"/32"))
	page, err := os.ReadFile("../docs/break-glass.md")
	if err != nil {
		t.Fatal(err)
	}
	work, bin := h.path("work"), h.path("bin")
	for _, dir := range []string{work, bin, filepath.Join(work, "usb")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Rename(h.laptop(), filepath.Join(work, "keys")),
		os.WriteFile(filepath.Join(work, "policy.json"), h.realm.sign("policy", h.realm.rules(1, port(22, "TCP"))), 0o600)); err != nil {
		t.Fatal(err)
	}
	// The host's commands, on a host whose settings lie elsewhere.
	shim := fmt.Sprintf("#!/bin/sh\ncase $1 in\nstatus|inbox|doctor|audit) exec %s \"$@\" --config %s;;\nesac\nexec %[1]s \"$@\"\n", h.program, h.config())
	if err := os.WriteFile(filepath.Join(bin, "jitgate"), []byte(shim), 0o700); err != nil {
		t.Fatal(err)
	}
	here := strings.NewReplacer("--host web1", "--host "+hostID, "/mnt/usb", filepath.Join(work, "usb"), "/var/lib/jitgate/state", h.path("state"))
	said := map[string]string{}
	blocks := regexp.MustCompile("(?s)```([a-z]*)\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	for _, b := range blocks {
		if b[1] == "console" && b[2] == "jitgate inbox put -\n" {
			continue // typed in TestTypedAtAConsole
		}
		if b[1] != "sh" {
			t.Fatalf("what is this? %q", b[2])
		}
		cmd := exec.Command("sh", "-euc", here.Replace(b[2]))
		cmd.Dir, cmd.Env = work, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := h.vm.start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v\n%s\n%s", err, b[2], &out)
		}
		said[b[2]] = out.String()
		switch {
		case strings.Contains(b[2], "inbox put /mnt/usb"):
			h.isOpen(ways("22/tcp", carol4))
			h.closes(patience, ways("22/tcp", bob4))
		case strings.Contains(b[2], "--revoke all"):
			h.until("it should be closed", func(s status) bool { return s.document("grants").Version == 1189 })
		}
	}
	for part, want := range map[string][]string{
		"--dry-run":       {"this closes before its time: port 22 is open for " + bob4, "in force: grants version 1188; port 22 is open for " + carol4},
		"inspect --armor": {"JITGATE1 GRANTS "},
		"inspect --qr":    {"▀"},
		"<grants.txt":     {"in force: grants version 1188"},
		"--revoke all":    {"in force: grants version 1189; nothing is open"},
		"audit list":      {"document.delivered", "grant.opened", "grant.revoked"},
	} {
		found := false
		for block, out := range said {
			if strings.Contains(block, part) && !strings.Contains(block, part+" grants.json >") {
				found = true
				for _, w := range want {
					if !strings.Contains(out, w) {
						t.Errorf("%s\nsays\n%s\nnot %q", block, out, w)
					}
				}
			}
		}
		if !found {
			t.Errorf("no command has %s", part)
		}
	}
	h.isClosed(ways("22/tcp", carol4, bob4))
}
