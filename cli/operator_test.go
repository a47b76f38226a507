package cli_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/jitgate/jitgate/cli"
	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/api"
	"github.com/jitgate/jitgate/control/identity"
	"github.com/jitgate/jitgate/control/store/storetest"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

const groupID = "/subscriptions/20ff7fc3-e762-44dd-bd96-b71116dcdc23/resourceGroups/myRg1"

func vmID(name string) string {
	return groupID + "/providers/Microsoft.Compute/virtualMachines/" + name
}

// center is a real control plane, and an operator with a home of their own. Of
// agents only what they say is not real.
type center struct {
	t      *testing.T
	http   *httptest.Server
	engine *control.Engine
	store  control.Store
	dir    string // ca.pem and token
	home   string
}

func newCenter(t *testing.T, issuers ...identity.Issuer) *center {
	t.Helper()
	p := &center{t: t, dir: t.TempDir(), home: t.TempDir()}
	for _, name := range []string{"JITGATE_CONTROL", "JITGATE_TOKEN", "JITGATE_CONTROL_CA", "JITGATE_CONTEXT", "DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"} {
		t.Setenv(name, "")
	}
	for _, name := range []string{"HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "AppData", "LocalAppData"} {
		t.Setenv(name, p.home)
	}
	now := time.Now().UTC().Truncate(time.Second)
	trust := policy.Trust{Header: policy.Header{Realm: "test", Version: 1, Issued: now, Expires: now.Add(365 * 24 * time.Hour)}, Roles: []policy.RoleKeys{
		{Name: policy.RoleRoot, Threshold: 1}, {Name: policy.RolePolicy, Threshold: 1}, {Name: policy.RoleGrant, Threshold: 1, Epoch: 1}}}
	give := func(role policy.Role) ed25519.PrivateKey {
		_, private, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		key, err := policy.NewKey(private.Public())
		if err == nil {
			err = trust.Give(role, key)
		}
		if err != nil {
			t.Fatal(err)
		}
		return private
	}
	root := give(policy.RoleRoot)
	realm := control.Realm{Grant: give(policy.RoleGrant), Policy: give(policy.RolePolicy)}
	e := policy.Envelope{Type: policy.TypeTrust, Payload: trust.Encode()}
	if err := e.Sign(root); err != nil {
		t.Fatal(err)
	}
	realm.Trust, realm.Signed, realm.Pin = trust, e.Encode(), e.Digest()
	p.store = storetest.SQLite(t)
	p.engine = control.New(control.Config{Store: p.store, Realm: realm, Log: hclog.NewNullLogger()})
	who, err := identity.New(identity.Config{Store: p.store, OIDC: issuers, Rate: 10000, Burst: 10000})
	if err != nil {
		t.Fatal(err)
	}
	token, hash := identity.NewToken()
	if given, err := control.Bootstrap(t.Context(), p.store, hash, now); err != nil || !given {
		t.Fatal(given, err)
	}
	a, err := api.New(api.Config{Engine: p.engine, Identity: who, Store: p.store, Log: hclog.NewNullLogger(), Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	p.http = httptest.NewTLSServer(a)
	t.Cleanup(p.http.Close)
	p.write("token", []byte(token+"\n"))
	p.write("ca.pem", certificate(p.http))
	return p
}

func certificate(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func (p *center) write(name string, text []byte) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), text, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// run runs a command line; $DIR, $URL and $VM stand for what they are.
func (p *center) run(line ...string) (code int, stdout, stderr string) {
	p.t.Helper()
	args := make([]string, len(line))
	for i, word := range line {
		args[i] = strings.NewReplacer("$DIR", p.dir, "$URL", p.http.URL, "$VM", vmID("")).Replace(word)
	}
	var out, complaints bytes.Buffer
	code = cli.Main(args, strings.NewReader(""), &out, &complaints)
	return code, out.String(), complaints.String()
}

// must runs a command line that does what it is told.
func (p *center) must(line string) string {
	p.t.Helper()
	code, out, complaints := p.run(strings.Fields(line)...)
	if code != 0 {
		p.t.Fatalf("jitgate %s: exit code %d: %s", line, code, complaints)
	}
	return out
}

// refuses runs a command line that is refused with an exit code and one line.
func (p *center) refuses(code int, want, line string) {
	p.t.Helper()
	got, out, complaints := p.run(strings.Fields(line)...)
	if got != code || !strings.Contains(complaints, want) || strings.Count(complaints, "\n") != 1 {
		p.t.Errorf("jitgate %s: exit code %d, %q, %q", line, got, out, complaints)
	}
}

func (p *center) login() { p.must("login $URL --ca $DIR/ca.pem --token-file $DIR/token --name here") }

// machines puts web1 and win1 into the inventory.
func (p *center) machines() {
	p.must("vm add $VM" + "web1 --location here --os Linux --address 127.0.0.1")
	p.must("vm add $VM" + "win1 --location here --os Windows")
}

// agent says, as a machine's agent would, that all is open that is granted, and
// what else a test has it say.
type agent struct {
	p    *center
	id   control.VMID
	mu   sync.Mutex
	seq  int
	prev string
}

func (p *center) agent(name string) *agent {
	p.t.Helper()
	id, err := control.ParseVMID(vmID(name))
	if err != nil {
		p.t.Fatal(err)
	}
	err = p.store.Update(p.t.Context(), func(tx control.Tx) error {
		vm, err := tx.VM(id)
		if err != nil {
			return err
		}
		vm.Agent = &control.Agent{Key: "00", Enrolled: time.Now(), Expires: time.Now().Add(time.Hour), LastSeen: time.Now()}
		return tx.PutVM(vm)
	})
	if err != nil {
		p.t.Fatal(err)
	}
	a := &agent{p: p, id: id, prev: uplink.Genesis}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for p.t.Context().Err() == nil {
			if open := a.granted(); len(open) > 0 {
				a.report(uplink.Up{Status: &uplink.Status{Mode: "enforce", Open: open}})
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	p.t.Cleanup(func() { <-done })
	return a
}

// granted are the ids of the grants that the machine was given.
func (a *agent) granted() (ids []string) {
	for _, g := range a.grants() {
		ids = append(ids, g.ID)
	}
	return ids
}

func (a *agent) grants() []policy.Grant {
	documents, err := a.p.engine.DocumentsFor(a.p.t.Context(), a.id, control.Versions{}, policy.TypeGrants)
	if err != nil || len(documents) == 0 {
		return nil
	}
	e, err := policy.ParseEnvelope(documents[0].Signed)
	if err != nil {
		a.p.t.Error(err)
		return nil
	}
	document, err := policy.ParseDocument(e.Type, e.Payload)
	if err != nil {
		a.p.t.Error(err)
		return nil
	}
	return document.(policy.Grants).Grants
}

func (a *agent) report(up uplink.Up) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.p.engine.Report(a.p.t.Context(), a.id, up); err != nil && a.p.t.Context().Err() == nil {
		a.p.t.Error(err)
	}
}

// says reports a line of the machine's record.
func (a *agent) says(event, more string) {
	a.mu.Lock()
	a.seq++
	text := fmt.Appendf(nil, `{"seq":%d,"prev":"%s","time":"%s","event":"%s"%s}`, a.seq, a.prev, time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), event, more)
	sum := sha256.Sum256(text)
	a.prev = hex.EncodeToString(sum[:])
	a.mu.Unlock()
	a.report(uplink.Up{Lines: [][]byte{text}})
}

func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

type object = map[string]any

// Contexts: what is signed in to is kept, by nobody else read, and used.
func TestContexts(t *testing.T) {
	p := newCenter(t)
	p.refuses(2, "--control is missing", "vm list")
	p.refuses(1, "not signed in", "logout")
	p.refuses(2, "not the address", "login http://jit.example.net --token-file $DIR/token")
	p.write("wrong", []byte("jgt_wrong\n"))
	p.refuses(1, "not known", "login $URL --ca $DIR/ca.pem --token-file $DIR/wrong")
	if out := p.must("context list"); !strings.Contains(out, "none") {
		t.Errorf("a login that failed was kept: %s", out)
	}
	p.refuses(1, "names no issuer", "login $URL --ca $DIR/ca.pem")
	p.login()
	p.must("login $URL --token-file $DIR/token --name other --ca $DIR/ca.pem")
	path := filepath.Join(p.home, "jitgate", "contexts.json")
	info, err := os.Stat(path)
	if err != nil {
		path = filepath.Join(p.home, ".config", "jitgate", "contexts.json")
		info, err = os.Stat(path)
	}
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	list := decode[[]object](t, p.must("context list --json"))
	if len(list) != 2 || list[1]["name"] != "other" || list[1]["current"] != true || strings.Contains(fmt.Sprint(list), "jgt_") {
		t.Errorf("%v", list)
	}
	p.must("context use here")
	p.must("vm list")
	p.must("vm list --context other")
	p.refuses(1, `--context is "nowhere"`, "vm list --context nowhere")
	p.refuses(1, `is "nowhere"`, "context use nowhere")
	t.Setenv("JITGATE_CONTEXT", "nowhere")
	p.refuses(1, `$JITGATE_CONTEXT is "nowhere"`, "vm list")
	t.Setenv("JITGATE_CONTEXT", "other")
	p.must("vm list")
	// What is kept for one control plane is for no other.
	p.refuses(2, "--token-file is missing", "vm list --control https://127.0.0.1:1")

	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	p.refuses(1, "chmod 600", "vm list")
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	p.must("logout")
	t.Setenv("JITGATE_CONTEXT", "")
	p.must("context delete here")
	p.refuses(2, "--control is missing", "vm list")
	if text, err := os.ReadFile(path); err != nil || strings.Contains(string(text), "jgt_") {
		t.Errorf("%s, %v", text, err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.refuses(1, "sign in anew", "vm list")
}

// Machines: by short names, by tabs, and each edit leaves the rest alone.
func TestMachines(t *testing.T) {
	p := newCenter(t)
	p.login()
	p.machines()
	other := strings.Replace(vmID("web1"), "myRg1", "other", 1)
	p.must("vm add " + other + " --os Linux")
	p.refuses(1, "web1 is 2 machines: write GROUP/NAME", "vm show web1")
	p.refuses(1, "there is no virtual machine web", "vm show web")
	p.refuses(2, "has no location", "vm enable other/web1")
	p.must("vm enable other/web1 --location there --port 22/udp:PT30M:10.0.0.0/8,fd00::/8 --cut")
	v := decode[object](t, p.must("vm show other/web1 --json"))
	rule := v["ports"].([]any)[0].(object)
	if v["location"] != "there" || v["osType"] != "Linux" || rule["protocol"] != "UDP" || rule["maxRequestAccessDuration"] != "PT30M" ||
		fmt.Sprint(rule["allowedSourceAddressPrefixes"]) != "[10.0.0.0/8 fd00::/8]" || rule["sessionsAtEnd"] != "cut" {
		t.Errorf("%v", v)
	}
	out := p.must("vm enable myRg1/web1 win1")
	for _, want := range []string{"22    TCP       *        3h", "3389  TCP       *        3h", "jitgate ssh web1", "jitgate rdp win1"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	p.refuses(1, "configured already", "vm enable win1")
	p.must("vm edit win1 --port 5986:1h")
	p.must("vm edit win1 --port 3389/tcp::198.51.100.0/24 --remove 5986")
	ports := decode[object](t, p.must("vm show win1 --json"))["ports"].([]any)
	if rule := ports[0].(object); len(ports) != 1 || rule["maxRequestAccessDuration"] != "PT3H" || fmt.Sprint(rule["allowedSourceAddressPrefix"], rule["allowedSourceAddressPrefixes"]) != "<nil> [198.51.100.0/24]" &&
		rule["allowedSourceAddressPrefix"] != "198.51.100.0/24" {
		t.Errorf("%v", ports)
	}
	p.refuses(1, "not guarded", "vm edit win1 --remove 22")
	p.refuses(1, "jitgate vm disable", "vm edit win1 --remove 3389")
	p.refuses(2, "--port or --remove", "vm edit win1")
	p.refuses(2, "say --yes", "vm disable win1")
	p.must("vm add $VM" + "old --location here")
	out = p.must("vm list")
	if !strings.Contains(out, "Configured (3)") || !strings.Contains(out, "Not configured (1)\nNAME  GROUP") || !strings.Contains(out, "Unsupported (0)") || strings.Contains(out, "\x1b") {
		t.Errorf("%s", out)
	}
	if out := p.must("vm list --limit 1 --tab configured"); !strings.Contains(out, "(1 of more") {
		t.Errorf("%s", out)
	}
	p.must("vm disable win1 --yes")
	p.must("vm enable win1 --recommended")
	if ports := decode[object](t, p.must("vm show win1 --json"))["ports"].([]any); len(ports) != 4 {
		t.Errorf("%v", ports)
	}
	p.refuses(2, "is there twice", "vm edit win1 --port 22 --port 22/udp")
	for _, wrong := range []string{"0", "70000", "22/icmp", "22:soon", "ssh", "22:-1h", "22:PT0S"} {
		p.refuses(2, "--port", "vm edit win1 --port "+wrong)
	}
	// Completion knows them.
	if out := p.must("__complete vm show w"); !strings.Contains(out, "web1\tmyRg1") || !strings.Contains(out, "win1\tmyRg1") {
		t.Errorf("%s", out)
	}
	if out := p.must("__complete vm show other/"); !strings.Contains(out, "other/web1\tother") || strings.Contains(out, "win1") {
		t.Errorf("%s", out)
	}
	if code, out, _ := p.run("__complete", "vm", "enable", ""); code != 0 || !strings.Contains(out, "old\t") || strings.Contains(out, "win1") {
		t.Errorf("%s", out)
	}
}

// An edit that somebody else is faster than is made anew, of what they made.
func TestEditAgain(t *testing.T) {
	p := newCenter(t)
	p.login()
	p.machines()
	p.must("vm enable web1")
	var wait sync.WaitGroup
	for port := 8001; port <= 8004; port++ {
		wait.Go(func() {
			var out, complaints bytes.Buffer
			if code := cli.Main([]string{"vm", "edit", "web1", "--port", fmt.Sprint(port)}, strings.NewReader(""), &out, &complaints); code != 0 {
				t.Errorf("%s", &complaints)
			}
		})
	}
	wait.Wait()
	if ports := decode[object](t, p.must("vm show web1 --json"))["ports"].([]any); len(ports) != 5 {
		t.Errorf("%v", ports)
	}
}

// Requests: asked, seen to open, extended, ended; and approval.
func TestRequests(t *testing.T) {
	p := newCenter(t)
	p.login()
	p.machines()
	p.refuses(1, "has no guarded port", "request web1")
	p.must("vm enable web1 win1")
	p.agent("web1")
	code, out, complaints := p.run("request", "web1", "--reason", "INC 1", "--for", "20m", "--source", "203.0.113.7")
	if code != 0 || !strings.Contains(out, "open   203.0.113.7") || !strings.Contains(out, "ssh 127.0.0.1") || !strings.Contains(complaints, "web1 port 22: open") {
		t.Fatalf("exit code %d\n%s%s", code, out, complaints)
	}
	list := decode[[]object](t, p.must("requests list --open --mine --vm web1 --json"))
	if len(list) != 1 || list[0]["justification"] != "INC 1" {
		t.Fatalf("%v", list)
	}
	id := list[0]["id"].(string)
	p.must("requests extend " + id + " --for 1h")
	if out := p.must("requests show " + id); !strings.Contains(out, "59m5") && !strings.Contains(out, "1h") {
		t.Errorf("%s", out)
	}
	p.refuses(1, "not a subset", "requests extend "+id+" --for 4h")
	p.refuses(2, "--for is missing", "requests extend "+id)
	if _, out, _ := p.run("__complete", "requests", "revoke", ""); !strings.Contains(out, id) {
		t.Errorf("%s", out)
	}
	// One that is not there does not keep the other from being done.
	code, out, complaints = p.run("requests", "revoke", "nothing", id, "--reason", "done")
	if code != 1 || !strings.Contains(complaints, "nothing: There is no request") || !strings.Contains(out, "revoked") {
		t.Errorf("exit code %d\n%s%s", code, out, complaints)
	}
	p.refuses(1, "is over", "requests extend "+id+" --for 1h")

	// No agent: it stands, and that is said.
	code, _, complaints = p.run("request", "win1", "--wait", "1s", "--source", "203.0.113.7")
	if code != 1 || !strings.Contains(complaints, "agent: no agent yet") || !strings.Contains(complaints, "the request stands") {
		t.Errorf("exit code %d: %s", code, complaints)
	}
	if out := p.must("request win1 --no-wait --source 203.0.113.8"); !strings.Contains(out, "opening") || !strings.Contains(out, "jitgate rdp win1") {
		t.Errorf("%s", out)
	}
	// All or nothing.
	before := len(p.open())
	p.refuses(1, "is in no policy", "request web1 win1 --port 22 --source 203.0.113.9")
	if n := len(p.open()); n != before {
		t.Errorf("what was refused left %d requests, of %d", n, before)
	}
	p.refuses(2, "not a port", "request web1 --port ssh")
	p.refuses(2, "is there twice", "request web1 --port 22,22")
	p.refuses(2, "--for", "request web1 --for ever")

	// The record has it, in words and as CSV.
	if out := p.must("activity web1 --since 1h --event request.initiated"); !strings.Contains(out, "port 22 from 203.0.113.7") || strings.Contains(out, "revoked") {
		t.Errorf("%s", out)
	}
	if out := p.must("activity web1 --csv"); !strings.HasPrefix(out, "seq,time,event") || !strings.Contains(out, "request.revoked") {
		t.Errorf("%s", out)
	}
	if lines := decode[[]object](t, p.must("activity --limit 2 --json")); len(lines) != 2 || lines[0]["seq"].(float64) > lines[1]["seq"].(float64) {
		t.Errorf("%v", lines)
	}
	p.refuses(2, "--csv goes with neither", "activity --csv --follow")
	p.refuses(2, "--since", "activity --since yesterday")
}

// held is a holder, in this process.
type held struct {
	t       *testing.T
	in      *io.PipeWriter
	answers *bufio.Scanner
	said    []string
	code    chan int
}

func (p *center) hold(order object) *held {
	p.t.Helper()
	in, tell := io.Pipe()
	listen, out := io.Pipe()
	h := &held{t: p.t, in: tell, answers: bufio.NewScanner(listen), code: make(chan int, 1)}
	go func() {
		code := cli.Main([]string{"hold"}, in, out, io.Discard)
		out.Close()
		h.code <- code
	}()
	h.tell(order)
	return h
}

func (h *held) tell(v any) {
	h.t.Helper()
	if err := json.NewEncoder(h.in).Encode(v); err != nil {
		h.t.Fatal(err)
	}
}

// next is the next answer that is no word to a person.
func (h *held) next() object {
	h.t.Helper()
	for h.answers.Scan() {
		a := decode[object](h.t, h.answers.Text())
		if say, ok := a["say"].(string); ok {
			h.said = append(h.said, say)
			continue
		}
		return a
	}
	h.t.Fatalf("the holder ended; it said %q", h.said)
	return nil
}

// end ends the pipe, as the end of whoever uses it does, and waits.
func (h *held) end() {
	h.t.Helper()
	h.in.Close()
	go func() { // what it still says
		for h.answers.Scan() {
		}
	}()
	select {
	case <-h.code:
	case <-time.After(20 * time.Second):
		h.t.Fatal("the holder does not end")
	}
}

func (p *center) until(what string, good func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !good(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatal(what)
		}
	}
}

func (p *center) open() []object {
	return decode[[]object](p.t, p.must("requests list --open --json"))
}

// A holder asks for little, extends within the policy, opens for another
// address when it is told to, shares with others, and gives all of it back.
func TestHold(t *testing.T) {
	p := newCenter(t)
	p.login()
	p.machines()
	p.must("vm enable web1 --port 22:PT1H")
	a := p.agent("web1")
	order := object{"vm": "web1", "port": 22, "lease": 6 * time.Second, "wait": 20 * time.Second, "reason": "INC-1"}
	first := p.hold(order)
	ready := first.next()["ready"].(object)
	if ready["name"] != "web1" || ready["port"] != 22.0 || fmt.Sprint(ready["addresses"]) != "[127.0.0.1]" || ready["from"] != "127.0.0.1" {
		t.Fatalf("%v", ready)
	}
	r := p.open()
	if len(r) != 1 || !strings.HasPrefix(r[0]["justification"].(string), "INC-1 (jitgate ssh, ") {
		t.Fatalf("%v", r)
	}
	end := func() time.Time {
		var last time.Time
		for _, g := range a.grants() {
			if g.End.After(last) {
				last = g.End
			}
		}
		return last
	}
	began := end()
	p.until("it should be extended", func() bool { return end().After(began) })

	// Somebody was turned away: who, it says, and opens for them if told.
	a.says("connection.denied", `,"port":22,"source":"198.51.100.9"`)
	a.says("connection.denied", `,"port":22,"source":"127.0.0.1"`)
	a.says("connection.denied", `,"port":3389,"source":"198.51.100.10"`)
	first.tell(object{"denied": true})
	if got := first.next(); fmt.Sprint(got["denied"]) != "[map[ours:false source:198.51.100.9]]" {
		t.Errorf("turned away: %v", got)
	}
	a.says("connection.denied", fmt.Sprintf(`,"port":22,"source":"198.51.100.11","grant":%q`, a.grants()[0].ID))
	first.tell(object{"denied": true})
	if got := first.next(); !strings.Contains(fmt.Sprint(got["denied"]), "map[ours:true source:198.51.100.11]") {
		t.Errorf("turned away: %v", got)
	}
	first.tell(object{"source": "198.51.100.9"})
	if got := first.next(); got["ready"] == nil {
		t.Fatalf("%v", got)
	}
	if got := fmt.Sprint(a.grants()); !strings.Contains(got, "198.51.100.9/32") {
		t.Errorf("%v", got)
	}
	first.tell(object{"source": "nonsense"})
	if got := first.next(); got["error"] == nil {
		t.Errorf("%v", got)
	}
	first.end()
	if r := p.open(); len(r) != 0 {
		t.Errorf("given back, and there is %v", r)
	}

	// Two at once hold one request; the last gives it back.
	order["lease"] = time.Minute
	first = p.hold(order)
	first.next()
	second := p.hold(order)
	second.next()
	if r := p.open(); len(r) != 1 {
		t.Errorf("two hold %v", r)
	}
	first.end()
	if r := p.open(); len(r) != 1 {
		t.Errorf("the first has given back what the second uses: %v", r)
	}
	second.end()
	if r := p.open(); len(r) != 0 {
		t.Errorf("%v", r)
	}

	// Another machine of the same person, seen at the same address: neither cuts
	// the other's sessions, and the first goes on when it is taken over.
	order["lease"] = 8 * time.Second
	first = p.hold(order)
	first.next()
	kept := os.Getenv("XDG_CACHE_HOME")
	for _, name := range []string{"XDG_CACHE_HOME", "LocalAppData"} {
		t.Setenv(name, t.TempDir())
	}
	order["lease"] = time.Minute
	second = p.hold(order)
	second.next()
	if r := p.open(); len(r) != 1 {
		t.Errorf("two machines hold %v", r)
	}
	second.end()
	if r := p.open(); len(r) != 1 {
		t.Errorf("the end of one cut the other: %v", r)
	}
	held := p.open()[0]["id"]
	p.until("the first should ask anew", func() bool { r := p.open(); return len(r) == 1 && r[0]["id"] != held })
	first.end()
	left := p.open()
	if len(left) != 1 {
		t.Fatalf("what may be another's was given back: %v", left)
	}
	p.must("requests revoke " + left[0]["id"].(string))
	for _, name := range []string{"XDG_CACHE_HOME", "LocalAppData"} {
		t.Setenv(name, kept)
	}

	// What the operator asked for themselves is used, and stays.
	p.must("request web1 --source 127.0.0.1")
	first = p.hold(order)
	first.next()
	first.end()
	if r := p.open(); len(r) != 1 || !strings.Contains(fmt.Sprint(first.said), "stays as it is") {
		t.Errorf("%v, %q", r, first.said)
	}

	// What is not guarded is connected to as it is; what is wrong is said.
	order["port"] = 2222
	first = p.hold(order)
	if got := first.next()["ready"].(object); got["port"] != 2222.0 {
		t.Errorf("%v", got)
	}
	first.end()
	order["vm"] = "web9"
	first = p.hold(order)
	if got := first.next(); !strings.Contains(fmt.Sprint(got["error"]), "no virtual machine web9") {
		t.Errorf("%v", got)
	}
	first.end()
	order["vm"], order["port"], order["sources"] = "web1", 22, []string{"fd00::1"}
	first = p.hold(order)
	if got := first.next(); !strings.Contains(fmt.Sprint(got["error"]), "no address of the family") || got["usage"] != true {
		t.Errorf("%v", got)
	}
	first.end()
}

// A request that waits for approval is asked for once and whole.
func TestHoldApproval(t *testing.T) {
	p := newCenter(t)
	p.login()
	p.machines()
	p.must("vm enable web1")
	p.agent("web1")
	body := strings.NewReader(`{"approvers":1,"role":"SecurityAdmin"}`)
	token, err := os.ReadFile(filepath.Join(p.dir, "token"))
	if err != nil {
		t.Fatal(err)
	}
	call := func(method, path string, body io.Reader) object {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, p.http.URL+path, body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		r.Header.Set("Content-Type", "application/json")
		w, err := p.http.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Body.Close()
		text, _ := io.ReadAll(w.Body)
		if w.StatusCode >= 300 {
			t.Fatalf("%s %s: %s %s", method, path, w.Status, text)
		}
		return decode[object](t, string(text))
	}
	call("PUT", "/api/v1/policies"+groupID+"/providers/Microsoft.Security/locations/here/jitNetworkAccessPolicies/default/approval", body)
	call("POST", "/api/v1/assignments", strings.NewReader(`{"principal":"local:bob","role":"SecurityAdmin","scope":"`+groupID+`"}`))
	bob := call("POST", "/api/v1/tokens", strings.NewReader(`{"principal":"local:bob"}`))["secret"].(string)
	p.write("bob", []byte(bob))

	h := p.hold(object{"vm": "web1", "port": 22, "lease": 5 * time.Second, "wait": 20 * time.Second})
	p.until("it should wait for approval", func() bool { return len(p.open()) == 1 })
	id := p.open()[0]["id"].(string)
	p.refuses(1, "own", "requests approve "+id)
	out := p.must("requests approve " + id + " --at-most 30m --comment fine --control $URL --token-file $DIR/bob")
	if !strings.Contains(out, "opening") {
		t.Errorf("%s", out)
	}
	if got := h.next(); got["ready"] == nil || !strings.Contains(strings.Join(h.said, "\n"), "waits for approval") {
		t.Errorf("%v, %q", got, h.said)
	}
	if out := p.must("requests show " + id); !strings.Contains(out, "29m5") && !strings.Contains(out, "30m") {
		t.Errorf("%s", out)
	}
	h.end()

	h = p.hold(object{"vm": "web1", "port": 22, "lease": 5 * time.Second, "wait": 20 * time.Second})
	p.until("it should wait for approval", func() bool { return len(p.open()) == 1 })
	p.must("requests deny " + p.open()[0]["id"].(string) + " --control $URL --token-file $DIR/bob")
	if got := h.next(); !strings.Contains(fmt.Sprint(got["error"]), "denied") {
		t.Errorf("%v", got)
	}
	h.end()
}

// people is an issuer whose tokens the control plane verifies.
type people struct {
	*httptest.Server
	mu        sync.Mutex
	key       *ecdsa.PrivateKey
	lives     time.Duration
	refreshes int
	codes     map[string]string // challenge by code
}

func newPeople(t *testing.T) *people {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &people{key: key, lives: time.Hour, codes: map[string]string{}}
	mux := http.NewServeMux()
	write := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		write(w, object{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "token_endpoint": i.URL + "/token", "authorization_endpoint": i.URL + "/authorize",
			"device_authorization_endpoint": i.URL + "/device"})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		write(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
	})
	mux.HandleFunc("POST /device", func(w http.ResponseWriter, r *http.Request) {
		if scope := r.FormValue("scope"); scope != "openid profile offline_access" {
			t.Errorf("asked for %q", scope)
		}
		write(w, object{"device_code": "d", "user_code": "ABCD-EFGH", "verification_uri": i.URL + "/code", "interval": 0.01})
	})
	mux.HandleFunc("GET /authorize", func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		q := r.URL.Query()
		i.codes["c"] = q.Get("code_challenge")
		http.Redirect(w, r, q.Get("redirect_uri")+"?"+url.Values{"code": {"c"}, "state": {q.Get("state")}}.Encode(), http.StatusFound)
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
		switch r.FormValue("grant_type") {
		case "authorization_code":
			if i.codes[r.FormValue("code")] != base64.RawURLEncoding.EncodeToString(sum[:]) {
				http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
				return
			}
		case "refresh_token":
			// Each is good for once.
			if r.FormValue("refresh_token") != fmt.Sprint("r", i.refreshes) {
				http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
				return
			}
			i.refreshes++
		}
		write(w, object{"access_token": i.token(t), "refresh_token": fmt.Sprint("r", i.refreshes), "expires_in": i.lives.Seconds(), "token_type": "Bearer"})
	})
	i.Server = httptest.NewTLSServer(mux)
	t.Cleanup(i.Close)
	return i
}

func (i *people) token(t *testing.T) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: "1"}}, nil)
	if err != nil {
		t.Error(err)
		return ""
	}
	claims, err := json.Marshal(object{"iss": i.URL, "aud": "api://jitgate", "sub": "alice", "preferred_username": "alice@example.com", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix()})
	if err != nil {
		t.Error(err)
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		t.Error(err)
		return ""
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Error(err)
	}
	return text
}

// People sign in at the issuer that the control plane names, and stay signed in.
func TestLogin(t *testing.T) {
	i := newPeople(t)
	ca := filepath.Join(t.TempDir(), "issuer.pem")
	if err := os.WriteFile(ca, certificate(i.Server), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newCenter(t, identity.Issuer{URL: i.URL, Audience: []string{"api://jitgate"}, ClientID: "jitgate", CAFile: ca})

	code, out, complaints := p.run("login", "$URL", "--ca", "$DIR/ca.pem", "--device", "--name", "here")
	if code != 0 || !strings.Contains(complaints, "ABCD-EFGH") || !strings.Contains(out, "as alice@example.com (context here)") || !strings.Contains(out, "no role there yet") {
		t.Fatalf("exit code %d: %s%s", code, out, complaints)
	}
	p.must("context list --json")

	// The browser: a program that follows where it is sent.
	bin := t.TempDir()
	script := "#!/bin/sh\nexec curl --silent --show-error --location --insecure \"$1\" > \"$0.out\" 2>&1\n"
	if err := os.WriteFile(filepath.Join(bin, "xdg-open"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	if out := p.must("login --browser"); !strings.Contains(out, "as alice@example.com") {
		t.Errorf("%s", out)
	}

	// A token that is about to end is renewed, and the next refresh token kept.
	i.mu.Lock()
	i.lives = 30 * time.Second
	i.mu.Unlock()
	p.must("login --browser --json")
	for n := range 3 {
		if code, _, complaints := p.run("vm", "show", "web1"); code != 1 || !strings.Contains(complaints, "'alice@example.com'") || !strings.Contains(complaints, "does not have authorization") {
			t.Fatalf("call %d: exit code %d: %s", n, code, complaints)
		}
	}
	i.mu.Lock()
	if i.refreshes != 3 {
		t.Errorf("renewed %d times", i.refreshes)
	}
	i.refreshes = 100 // what is kept is good no more
	i.mu.Unlock()
	p.refuses(1, "sign in again with jitgate login", "vm list")
	p.must("logout --all")
	p.refuses(2, "--control is missing", "vm list")
	p.refuses(2, "--issuer must be one of", "login $URL --ca $DIR/ca.pem --issuer https://other.example")

	var none *os.PathError
	if _, err := os.Stat(filepath.Join(bin, "xdg-open.out")); errors.As(err, &none) {
		t.Error("no browser was opened")
	}
}
