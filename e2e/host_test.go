//go:build linux

package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// host is a machine with an agent, and a neighbour who wants in.
type host struct {
	t           *testing.T
	vm, outside *namespace
	realm       realm
	program     string
	dir         string
	settings    map[string]string // agent.toml, as TOML values
	board       *board            // that the host runs on; nil: the one the tests do
	edited      bool              // a command wrote agent.toml: it is left as it is

	agent *exec.Cmd // running, or nil
	ended chan error
}

// newHost makes a host that follows a realm of its own and has no agent yet.
func newHost(t *testing.T) *host {
	t.Helper()
	privileged(t)
	program, err := jitgate()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, vm: newNamespace(t), outside: newNamespace(t), realm: newRealm(t, "acme"), program: program, dir: t.TempDir()}
	connect(t, h.vm, h.outside)
	trust := encode(h.realm.trust(1))
	h.settings = map[string]string{
		"host_id": quote(hostID), "mode": quote("enforce"), "guard": "[22]",
		"inbox_dir": quote(h.path("inbox")), "state_dir": quote(h.path("state")), "socket": quote(h.path("agent.sock")),
		"trust_pin": quote(fmt.Sprintf("sha256:%x", sha256.Sum256(trust))),
	}
	if err := os.Mkdir(h.path("inbox"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.deliver("trust.json", seal("trust", trust, h.realm.root))
	t.Cleanup(func() {
		h.kill()
		if t.Failed() {
			t.Logf("the end of the agent's log:\n%s", lastLines(h.path("agent.log")))
		}
	})
	return h
}

// guarding makes a host with a running agent and a policy for ports.
func guarding(t *testing.T, ports ...object) *host {
	t.Helper()
	h := newHost(t)
	h.start()
	h.put(1, h.realm.rules(1, ports...))
	return h
}

func quote(s string) string { return fmt.Sprintf("%q", s) }

func (h *host) path(elements ...string) string {
	return filepath.Join(append([]string{h.dir}, elements...)...)
}

// writeSettings writes agent.toml and returns its path.
func (h *host) writeSettings(name string, settings map[string]string) string {
	h.t.Helper()
	var text strings.Builder
	for k, v := range settings {
		fmt.Fprintf(&text, "%s = %s\n", k, v)
	}
	if err := os.WriteFile(h.path(name), []byte(text.String()), 0o644); err != nil {
		h.t.Fatal(err)
	}
	return h.path(name)
}

func (h *host) config() string {
	h.t.Helper()
	if h.edited {
		return h.path("agent.toml")
	}
	return h.writeSettings("agent.toml", h.settings)
}

// start starts the agent and waits until it guards.
func (h *host) start() {
	h.t.Helper()
	log, err := os.OpenFile(h.path("agent.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	cmd := h.on("agent", "run", "--config", h.config())
	cmd.Stderr = log
	if err := h.vm.start(cmd); err != nil {
		h.t.Fatal(err)
	}
	h.agent, h.ended = cmd, make(chan error, 1)
	go func() { h.ended <- cmd.Wait() }()
	until(h.t, patience, "the agent should answer", func() bool {
		select {
		case err := <-h.ended:
			h.agent = nil
			h.t.Fatalf("the agent ended: %v", err)
		default:
		}
		_, err := h.ask()
		return err == nil
	})
}

// stop ends the agent as a service manager does.
func (h *host) stop() {
	h.t.Helper()
	if err := h.end(syscall.SIGTERM); err != nil {
		h.t.Fatalf("the agent ended with %v", err)
	}
}

// kill ends the agent as a crash does.
func (h *host) kill() { _ = h.end(syscall.SIGKILL) }

func (h *host) end(signal os.Signal) error {
	if h.agent == nil {
		return nil
	}
	if err := h.agent.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	var err error
	select {
	case err = <-h.ended:
	case <-time.After(patience):
		err = errors.Join(errors.New("it did not end by itself"), h.agent.Process.Kill())
		<-h.ended
	}
	h.agent = nil
	return err
}

// alive reports whether the agent still runs.
func (h *host) alive() bool {
	return h.agent != nil && h.agent.Process.Signal(syscall.Signal(0)) == nil
}

// command runs jitgate on the host.
func (h *host) command(args ...string) (stdout, stderr string, code int) {
	h.t.Helper()
	cmd := h.on(args...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := h.vm.start(cmd); err != nil {
		h.t.Fatal(err)
	}
	defer time.AfterFunc(patience, func() { cmd.Process.Kill() }).Stop()
	var failed *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &failed) {
		h.t.Fatalf("jitgate %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), complaints.String(), cmd.ProcessState.ExitCode()
}

// must runs jitgate on the host and requires that it does what it is told.
func (h *host) must(args ...string) string {
	h.t.Helper()
	stdout, stderr, code := h.command(args...)
	if code != 0 {
		h.t.Fatalf("jitgate %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// deliver puts a file into the inbox, whole.
func (h *host) deliver(name string, content []byte) {
	h.t.Helper()
	h.place(name, func(path string) error { return os.WriteFile(path, content, 0o644) })
}

// place makes whatever make makes and renames it to its place in the inbox.
func (h *host) place(name string, make func(path string) error) {
	h.t.Helper()
	temporary := h.path("inbox", ".delivery")
	if err := errors.Join(make(temporary), os.Rename(temporary, h.path("inbox", name))); err != nil {
		h.t.Fatal(err)
	}
}

// put delivers a policy (it has ports) or a list of grants of the realm and
// waits until its version is in force.
func (h *host) put(version uint64, document object) {
	h.t.Helper()
	kind := "grants"
	if document["ports"] != nil {
		kind = "policy"
	}
	h.deliver(kind+".json", h.realm.sign(kind, document))
	h.until(fmt.Sprintf("%s version %d should be in force", kind, version), func(s status) bool { return s.document(kind).Version == version })
}

// allow puts a list of grants.
func (h *host) allow(version uint64, grants ...object) {
	h.t.Helper()
	h.put(version, h.realm.list(int(version), grants...))
}

// status is what an agent says of itself. The names are a contract.
type status struct {
	Host     string         `json:"host"`
	HostFrom string         `json:"hostFrom"`
	Install  string         `json:"install"`
	Mode     string         `json:"mode"`
	Guarded  []string       `json:"guarded"`
	Firewall string         `json:"firewall"`
	Intact   bool           `json:"intact"`
	Denied   uint64         `json:"denied"`
	Openings []grantState   `json:"openings"`
	Pending  []grantState   `json:"pending"`
	Refused  []grantState   `json:"refused"`
	Exempt   []string       `json:"exempt"`
	Docs     []documentView `json:"documents"`
	Blocked  string         `json:"blocked"`
	Problem  string         `json:"problem"`
}

type grantState struct {
	Grant       string `json:"grant"`
	Port        int    `json:"port"`
	SecondsLeft int    `json:"secondsLeft"`
	Refusal     string `json:"refusal"`
}

type documentView struct {
	Document string `json:"document"`
	Version  uint64 `json:"version"`
	Refusal  string `json:"refusal"`
}

func (s status) document(kind string) documentView {
	i := slices.IndexFunc(s.Docs, func(d documentView) bool { return d.Document == kind })
	if i < 0 {
		return documentView{}
	}
	return s.Docs[i]
}

func (s status) isOpen(grant string) bool {
	return slices.ContainsFunc(s.Openings, func(g grantState) bool { return g.Grant == grant })
}

// others reports whether others can change the agent's table on this kernel.
func (s status) others() bool { return strings.Contains(s.Firewall, "not owned") }

// ask reads the agent's status from its socket.
func (h *host) ask() (s status, err error) {
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", h.path("agent.sock"))
		},
		DisableKeepAlives: true,
	}}
	answer, err := client.Get("http://agent/v1/status")
	if err != nil {
		return s, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return s, errors.New(answer.Status)
	}
	return s, json.NewDecoder(answer.Body).Decode(&s)
}

func (h *host) status() status {
	h.t.Helper()
	s, err := h.ask()
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// until waits until the status is as it should be.
func (h *host) until(what string, good func(status) bool) {
	h.t.Helper()
	var last status
	defer func() {
		if h.t.Failed() {
			h.t.Logf("the last status: %+v", last)
		}
	}()
	until(h.t, patience, what, func() bool {
		last = h.status()
		return good(last)
	})
}

// event is a line of the record.
type event struct {
	Seq      uint64    `json:"seq"`
	Prev     string    `json:"prev"`
	Name     string    `json:"event"`
	Time     time.Time `json:"time"`
	Message  string    `json:"message"`
	Document string    `json:"document"`
	Version  uint64    `json:"version"`
	Grant    string    `json:"grant"`
	Port     int       `json:"port"`
	Source   string    `json:"source"`
	Code     string    `json:"code"`
	Torn     string    `json:"torn"`
	By       string    `json:"requestor"`
	Digest   string    `json:"digest"`

	Install       string `json:"install"`
	FormerInstall string `json:"formerInstall"`

	Process   string `json:"process"`
	PID       int    `json:"pid"`
	ExposedMS int64  `json:"exposedMs"`
}

// audit reads the record and verifies its chain: each line says the digest of
// the line before it.
func (h *host) audit() []event {
	h.t.Helper()
	text, err := os.ReadFile(h.path("state", "audit", "000001.jsonl"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
	var events []event
	prev := strings.Repeat("0", 64)
	for line := range bytes.Lines(text) {
		line, whole := bytes.CutSuffix(line, []byte("\n"))
		if !whole {
			break // being written
		}
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			h.t.Fatalf("line %d of the record: %v\n%s", len(events)+1, err, line)
		}
		if e.Seq != uint64(len(events)+1) || e.Prev != prev {
			h.t.Fatalf("the record's chain breaks at line %d: %s", len(events)+1, line)
		}
		prev = fmt.Sprintf("%x", sha256.Sum256(line))
		events = append(events, e)
	}
	return events
}

// events are the record's events of one name.
func (h *host) events(name string) []event {
	h.t.Helper()
	return slices.DeleteFunc(h.audit(), func(e event) bool { return e.Name != name })
}

// recorded waits for an event about a grant or document with a code.
func (h *host) recorded(name, about, code string) {
	h.t.Helper()
	until(h.t, patience, fmt.Sprintf("%s %s %s should be recorded", name, about, code), func() bool {
		return slices.ContainsFunc(h.events(name), func(e event) bool { return (e.Grant == about || e.Document == about) && e.Code == code })
	})
}

// mark is the durable memory, as it lies on the disk.
func (h *host) mark() string {
	h.t.Helper()
	text, err := os.ReadFile(h.path("state", "mark.json"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
	return string(text)
}

// ruleset is what nft says of the vm's firewall.
func (h *host) ruleset(args ...string) string {
	h.t.Helper()
	return h.vm.run(h.t, "nft", append([]string{"-n"}, args...)...)
}
