package cli

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// desk is a control plane as far as signers see it: it has policies that wait,
// adds up signatures and publishes what has enough.
type desk struct {
	mu        sync.Mutex
	trust     policy.Trust
	signed    []byte // the trust document's envelope; nil: there is none
	pending   map[string]*waiting
	published map[string]policy.Policy
	change    func(list []map[string]any) // what a hostile one does to its answers
}

type waiting struct {
	payload, inForce []byte
	envelope         policy.Envelope
}

func (d *desk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	refuse := func(status int, code, message string) {
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": code, "message": message}})
	}
	switch {
	case r.Header.Get("Authorization") != "Bearer jgt_right":
		refuse(401, "InvalidAuthenticationToken", "The token is not known.")
	case r.URL.Path == "/api/v1/trust.json" && d.signed == nil:
		refuse(404, "NotFound", "There is no trust document.")
	case r.URL.Path == "/api/v1/trust.json":
		w.Write(d.signed)
	case r.URL.Path == "/api/v1/policies/pending" && r.Method == http.MethodGet:
		list := []map[string]any{}
		for vm, p := range d.pending {
			item := map[string]any{"vm": vm, "version": 2, "payload": p.payload, "inForce": p.inForce, "created": "2026-11-27T12:00:00.5Z", "by": "alice@contoso.com"}
			if len(p.envelope.Signatures) > 0 {
				item["partial"] = p.envelope.Encode()
			}
			list = append(list, item)
		}
		if d.change != nil {
			d.change(list)
		}
		json.NewEncoder(w).Encode(map[string]any{"value": list})
	case r.URL.Path == "/api/v1/policies/pending":
		body, err := io.ReadAll(r.Body)
		if err != nil {
			refuse(400, "Invalid", err.Error())
			return
		}
		e, err := policy.ParseEnvelope(body)
		if err != nil {
			refuse(400, "InvalidEnvelope", err.Error())
			return
		}
		for vm, p := range d.pending {
			if string(p.payload) != string(e.Payload) {
				continue
			}
			p.envelope.Signatures = append(p.envelope.Signatures, e.Signatures...)
			done := false
			if v, err := policy.OpenPolicy(p.envelope.Encode(), d.trust); err == nil {
				d.published[vm], done = v.Document(), true
				delete(d.pending, vm)
			}
			json.NewEncoder(w).Encode(map[string]any{"vm": vm, "version": 2, "done": done})
			return
		}
		refuse(409, "NotPending", "This policy does not wait any more.")
	default:
		refuse(404, "NotFound", r.URL.Path)
	}
}

func vmNamed(group, name string) string {
	return "/subscriptions/s/resourceGroups/" + group + "/providers/Microsoft.Compute/virtualMachines/" + name
}

func document(vm string, version uint64, ports ...policy.Port) []byte {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	return policy.Policy{
		Header: policy.Header{Realm: "acme", Version: version, Issued: now, Expires: now.Add(365 * 24 * time.Hour)},
		Host:   policy.Host{ID: vm}, Ports: ports, MaxGrantsAge: policy.DefaultMaxGrantsAge, NarrowestPrefix4: 8, NarrowestPrefix6: 32,
	}.Encode()
}

func guard(number uint16, hours int, from ...string) policy.Port {
	p := policy.Port{Number: number, EndNumber: number, Protocol: policy.TCP, MaxRequestAccessDuration: time.Duration(hours) * time.Hour, SessionsAtEnd: policy.Keep}
	for _, s := range from {
		p.AllowedSources = append(p.AllowedSources, netip.MustParsePrefix(s))
	}
	return p
}

// signersDesk starts a desk whose policies take two of three keys, and returns
// what commands need to reach it.
func signersDesk(t *testing.T) (d *desk, dir string, flags []string) {
	t.Helper()
	dir = t.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	d = &desk{pending: map[string]*waiting{}, published: map[string]policy.Policy{}}
	var ids []policy.KeyID
	var root ed25519.PrivateKey
	for i, name := range []string{"alice", "bob", "carol", "mallory"} {
		private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i + 1)}, ed25519.SeedSize))
		text, err := encodeKey(private)
		if err != nil {
			t.Fatal(err)
		}
		write(name+".key", text)
		key, err := policy.NewKey(private.Public())
		if err != nil {
			t.Fatal(err)
		}
		key.Name = name
		if name != "mallory" {
			root = private
		}
		d.trust.Keys = append(d.trust.Keys, key)
		ids = append(ids, key.ID)
	}
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	d.trust.Header = policy.Header{Realm: "acme", Version: 1, Issued: now, Expires: now.Add(365 * 24 * time.Hour)}
	d.trust.Roles = []policy.RoleKeys{{Name: policy.RoleRoot, Threshold: 1, Keys: ids[2:3]}, {Name: policy.RolePolicy, Threshold: 2, Keys: ids[:3]}, {Name: policy.RoleGrant, Threshold: 1, Epoch: 1, Keys: ids[3:]}}
	e := policy.Envelope{Type: policy.TypeTrust, Payload: d.trust.Encode()}
	if err := e.Sign(root); err != nil {
		t.Fatal(err)
	}
	d.signed = e.Encode()
	server := httptest.NewUnstartedServer(d)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	write("token", []byte("jgt_right\n"))
	write("trust.json", d.signed)
	return d, dir, []string{"--control", server.URL, "--ca", ca, "--token-file", filepath.Join(dir, "token")}
}

// run runs a command line.
func run(t *testing.T, stdin io.Reader, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, complaints bytes.Buffer
	code = Main(args, stdin, &out, &complaints)
	if code != exitDone && (!strings.HasPrefix(complaints.String(), "jitgate: ") || strings.Count(complaints.String(), "\n") != 1) {
		t.Errorf("%q: standard error is not one line: %q", args, &complaints)
	}
	return code, out.String(), complaints.String()
}

func (d *desk) wait(vm string, payload, inForce []byte) {
	d.pending[vm] = &waiting{payload, inForce, policy.Envelope{Type: policy.TypePolicy, Payload: payload}}
}

// Two of three people sign, one after the other, and the policy is in force.
func TestPolicySignByTwo(t *testing.T) {
	d, dir, flags := signersDesk(t)
	web1 := vmNamed("g", "Web1")
	d.wait(web1, document(web1, 2, guard(22, 3, "10.0.0.0/8", "192.0.2.1/32"), guard(5985, 1, "10.0.0.0/8"), guard(443, 2, "0.0.0.0/0")),
		document(web1, 1, guard(22, 1, "10.0.0.0/8"), guard(3389, 1, "10.0.0.0/8"), guard(443, 2, "0.0.0.0/0")))
	args := func(first ...string) []string { return append(first, flags...) }

	code, out, _ := run(t, strings.NewReader(""), args("policy", "pending")...)
	if code != 0 || !strings.Contains(out, web1+"  2        2026-11-27T12:00:00Z  alice@contoso.com  0 of 2 signatures") {
		t.Errorf("%d\n%s", code, out)
	}
	code, out, _ = run(t, strings.NewReader(""), args("policy", "sign", "--yes", "--key", filepath.Join(dir, "alice.key"), "web1")...)
	want := web1 + `
  version 2 (in force: version 1), written 2026-11-27T12:00:00Z by alice@contoso.com, 0 of 2 signatures
  -  22/tcp     from 10.0.0.0/8             up to 1h  sessions at the end: keep
  +  22/tcp     from 10.0.0.0/8, 192.0.2.1  up to 3h  sessions at the end: keep
  +  5985/tcp   from 10.0.0.0/8             up to 1h  sessions at the end: keep
     443/tcp    from 0.0.0.0/0              up to 2h  sessions at the end: keep
     narrowest  /8 of IPv4, /32 of IPv6
     realm      acme
     expires    2027-11-27T12:00:00Z
  -  3389/tcp   from 10.0.0.0/8  up to 1h  sessions at the end: keep

` + web1 + " version 2: sent, and waits for more signatures: 1 of 2, not yet: bob; carol\n"
	if code != 0 || out != want {
		t.Errorf("%d\n%s\nexpected\n%s", code, out, want)
	}
	if len(d.published) > 0 {
		t.Fatal("one signature of two is enough")
	}
	code, out, _ = run(t, strings.NewReader(""), args("policy", "pending", "--json")...)
	var list []struct {
		VM        string
		Threshold int
		Signed    []policy.KeyID
		Missing   []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != 0 || len(list) != 1 || list[0].VM != web1 || list[0].Threshold != 2 || len(list[0].Signed) != 1 || len(list[0].Missing) != 2 {
		t.Errorf("%d %v\n%s", code, err, out)
	}
	code, out, _ = run(t, strings.NewReader(""), args("policy", "sign", "--yes", "--all", "--trust", filepath.Join(dir, "trust.json"), "--key", filepath.Join(dir, "bob.key"))...)
	if code != 0 || !strings.HasSuffix(out, web1+" version 2: in force\n") {
		t.Errorf("%d\n%s", code, out)
	}
	if p, ok := d.published[web1]; !ok || len(p.Ports) != 3 {
		t.Errorf("published: %+v", d.published)
	}
	for _, words := range [][]string{{"policy", "sign", "--yes", "--all", "--key", filepath.Join(dir, "bob.key")}, {"policy", "pending"}} {
		if code, out, _ := run(t, strings.NewReader(""), args(words...)...); code != 0 || out != "nothing waits for a signature\n" {
			t.Errorf("%d\n%s", code, out)
		}
	}
}

func TestPolicyPush(t *testing.T) {
	d, dir, flags := signersDesk(t)
	web1 := vmNamed("g", "web1")
	payload := document(web1, 2, guard(22, 3, "10.0.0.0/8"))
	d.wait(web1, payload, nil)
	in, out := filepath.Join(dir, "policy.in.json"), filepath.Join(dir, "policy.json")
	if err := os.WriteFile(in, payload, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := run(t, nil, "sign", "--type", "policy", "--key", filepath.Join(dir, "alice.key"), "--key", filepath.Join(dir, "bob.key"), in, "-o", out); code != 0 {
		t.Fatal(stderr)
	}
	code, stdout, _ := run(t, nil, append([]string{"policy", "push", out}, flags...)...)
	if code != 0 || stdout != web1+" version 2: in force\n" {
		t.Errorf("%d %s", code, stdout)
	}
	if _, ok := d.published[web1]; !ok {
		t.Error("not published")
	}
	// It waits no more: the reason is the control plane's.
	code, _, stderr := run(t, nil, append([]string{"policy", "push", out}, flags...)...)
	if code != exitFailed || stderr != "jitgate: "+out+": This policy does not wait any more.\n" {
		t.Errorf("%d %s", code, stderr)
	}
	for file, want := range map[string]string{"trust.json": "is not a policy", "alice.key": "alice.key", "policy.in.json": "policy.in.json", "gone": "gone"} {
		if code, _, stderr := run(t, nil, append([]string{"policy", "push", filepath.Join(dir, file)}, flags...)...); code != exitFailed || !strings.Contains(stderr, file) || !strings.Contains(stderr, want) {
			t.Errorf("%s: %d %s", file, code, stderr)
		}
	}
}

func TestPolicyChoose(t *testing.T) {
	d, dir, flags := signersDesk(t)
	for _, vm := range []string{vmNamed("a", "web"), vmNamed("b", "web"), vmNamed("a", "db")} {
		d.wait(vm, document(vm, 2), nil)
	}
	sign := func(args ...string) (int, string, string) {
		return run(t, nil, append(append([]string{"policy", "sign", "--yes", "--key", filepath.Join(dir, "alice.key")}, args...), flags...)...)
	}
	if code, _, stderr := sign("web"); code != exitFailed || !strings.Contains(stderr, "2 machines named web wait: give the id") {
		t.Errorf("%d %s", code, stderr)
	}
	if code, _, stderr := sign("mail"); code != exitFailed || !strings.Contains(stderr, "nothing waits for mail") {
		t.Errorf("%d %s", code, stderr)
	}
	code, out, _ := sign(strings.ToUpper(vmNamed("b", "web")), "DB", "db")
	if code != 0 || strings.Count(out, "sent, and waits") != 2 || strings.Contains(out, vmNamed("a", "web")) || !strings.Contains(out, "+  ports      none: nothing is guarded") {
		t.Errorf("%d\n%s", code, out)
	}
	if n := len(d.pending[vmNamed("a", "web")].envelope.Signatures); n != 0 {
		t.Error("signed what nobody named")
	}
}

// What the control plane says is not believed.
func TestPolicySignRefuses(t *testing.T) {
	web1, web2 := vmNamed("g", "web1"), vmNamed("g", "web2")
	for name, test := range map[string]struct {
		change func(*desk, []map[string]any)
		key    string
		want   string
	}{
		"another machine's": {func(_ *desk, l []map[string]any) { l[0]["payload"] = document(web2, 2) }, "alice", "is for " + web2 + ": do not sign it"},
		"everybody's":       {func(_ *desk, l []map[string]any) { l[0]["payload"] = document("/subscriptions/s/*", 2) }, "alice", "do not sign it"},
		"no policy":         {func(_ *desk, l []map[string]any) { l[0]["payload"] = []byte(`{"realm":"acme"}`) }, "alice", "malformed"},
		"grants":            {func(d *desk, l []map[string]any) { l[0]["payload"] = []byte(d.trust.Encode()) }, "alice", "malformed"},
		"signatures of another": {func(_ *desk, l []map[string]any) {
			l[0]["partial"] = policy.Envelope{Type: policy.TypePolicy, Payload: document(web1, 9)}.Encode()
		}, "alice", "signatures so far are of another document"},
		"signatures of another type": {func(_ *desk, l []map[string]any) {
			l[0]["partial"] = policy.Envelope{Type: policy.TypeGrants, Payload: l[0]["payload"].([]byte)}.Encode()
		}, "alice", "signatures so far are of another document"},
		"a wrong key":             {nil, "mallory", "does not have role policy in the trust document"},
		"a key that is not there": {nil, "nobody", "nobody.key"},
	} {
		t.Run(name, func(t *testing.T) {
			d, dir, flags := signersDesk(t)
			d.wait(web1, document(web1, 2, guard(22, 1, "10.0.0.0/8")), nil)
			if test.change != nil {
				d.change = func(l []map[string]any) { test.change(d, l) }
			}
			code, _, stderr := run(t, nil, append([]string{"policy", "sign", "--yes", "--all", "--key", filepath.Join(dir, test.key+".key")}, flags...)...)
			if code != exitFailed || !strings.Contains(stderr, test.want) {
				t.Errorf("%d %s", code, stderr)
			}
			if len(d.pending[web1].envelope.Signatures) > 0 {
				t.Error("a signature was sent")
			}
			if test.change != nil {
				code, out, _ := run(t, nil, append([]string{"policy", "pending"}, flags...)...)
				if code != 0 || !strings.Contains(out, "cannot be signed: ") {
					t.Errorf("pending: %d\n%s", code, out)
				}
				if code, out, _ := run(t, nil, append([]string{"policy", "pending", "--json"}, flags...)...); code != 0 || !strings.Contains(out, `"refusal"`) {
					t.Errorf("pending --json: %d\n%s", code, out)
				}
			}
		})
	}
}

// Without a trust document signatures cannot be counted, but given.
func TestPolicySignWithoutTrust(t *testing.T) {
	d, dir, flags := signersDesk(t)
	d.signed = nil
	web1 := vmNamed("g", "web1")
	d.wait(web1, document(web1, 2), nil)
	code, out, _ := run(t, nil, append([]string{"policy", "sign", "--yes", "--all", "--key", filepath.Join(dir, "alice.key")}, flags...)...)
	if code != 0 || !strings.Contains(out, "there is none in force") || !strings.HasSuffix(out, "version 2: sent, and waits for more signatures\n") {
		t.Errorf("%d\n%s", code, out)
	}
}

func TestControlFlags(t *testing.T) {
	_, dir, flags := signersDesk(t)
	url, ca, token := flags[1], flags[3], flags[5]
	key := filepath.Join(dir, "alice.key")
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args []string
		env  map[string]string
		in   string
		code int
		want string // of standard error
	}{
		"by flags":          {[]string{"policy", "pending", "--control", url, "--ca", ca, "--token-file", token}, nil, "", exitDone, ""},
		"by environment":    {[]string{"policy", "pending"}, map[string]string{envControl: url, envCA: ca, envToken: "jgt_right"}, "", exitDone, ""},
		"flags go first":    {[]string{"policy", "pending", "--token-file", token}, map[string]string{envControl: url, envCA: ca, envToken: "wrong"}, "", exitDone, ""},
		"token on stdin":    {[]string{"policy", "pending", "--token-file", "-"}, map[string]string{envControl: url, envCA: ca}, "jgt_right\n", exitDone, ""},
		"wrong token":       {[]string{"policy", "pending"}, map[string]string{envControl: url, envCA: ca, envToken: "wrong"}, "", exitFailed, "The token is not known."},
		"nowhere":           {[]string{"policy", "pending"}, nil, "", exitUsage, "--control is missing, or $JITGATE_CONTROL"},
		"nobody":            {[]string{"policy", "pending", "--control", url}, nil, "", exitUsage, "--token-file is missing, or $JITGATE_TOKEN"},
		"in the clear":      {[]string{"policy", "pending", "--control", "http://127.0.0.1", "--token-file", token}, nil, "", exitFailed, "nothing but https"},
		"no token inside":   {[]string{"policy", "pending", "--control", url, "--token-file", empty}, nil, "", exitFailed, "is not one line with a bearer token"},
		"no token there":    {[]string{"policy", "pending", "--control", url, "--token-file", empty + "2"}, nil, "", exitFailed, "empty2"},
		"unknown authority": {[]string{"policy", "pending", "--control", url, "--token-file", token}, nil, "", exitFailed, "certificate"},
		"no certificates":   {[]string{"policy", "pending", "--control", url, "--ca", token, "--token-file", token}, nil, "", exitFailed, "no certificate"},
		"no key":            {[]string{"policy", "sign", "--all", "--yes"}, nil, "", exitUsage, "--key is missing"},
		"nothing named":     {[]string{"policy", "sign", "--yes", "--key", key}, nil, "", exitUsage, "expected virtual machines, or --all"},
		"both":              {[]string{"policy", "sign", "--yes", "--key", key, "--all", "web1"}, nil, "", exitUsage, "expected virtual machines, or --all"},
		"nobody to ask":     {[]string{"policy", "sign", "--key", key, "--all"}, nil, "y\n", exitUsage, "--yes is missing: there is no terminal to ask at"},
		"no file":           {[]string{"policy", "push"}, nil, "", exitUsage, "at least one signed file"},
		"no such command":   {[]string{"policy", "puhs"}, nil, "", exitUsage, "unknown command"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, name := range []string{envControl, envCA, envToken} {
				t.Setenv(name, test.env[name])
			}
			code, _, stderr := run(t, strings.NewReader(test.in), test.args...)
			if code != test.code || !strings.Contains(stderr, test.want) {
				t.Errorf("%d %s", code, stderr)
			}
		})
	}
}

func TestChanges(t *testing.T) {
	a, b, c := fact{"a", "1"}, fact{"b", "1"}, fact{"c", "1"}
	b2 := fact{"b", "2"}
	var got strings.Builder
	for _, l := range changes([]fact{a, b, c}, []fact{b2, a, {"d", "1"}}) {
		fmt.Fprintf(&got, "%c%s%s|", l.mark, l.name, l.text)
	}
	if want := "-b1|+b2| a1|+d1|-c1|"; got.String() != want {
		t.Errorf("%s, expected %s", &got, want)
	}
}

func TestFacts(t *testing.T) {
	full := policy.Policy{Header: policy.Header{Realm: "acme", Expires: time.Unix(0, 0)}, Host: policy.Host{Install: "i-1"}, Epoch: 3,
		ExemptSources: []netip.Prefix{netip.MustParsePrefix("2001:db8::1/128")}, MaxGrantsAge: time.Hour, MaxUnattended: 90 * time.Second, NarrowestPrefix4: 32, NarrowestPrefix6: 128}
	var got []string
	for _, f := range facts(full) {
		got = append(got, f.name+" "+f.text)
	}
	want := "ports none: nothing is guarded|exempt always admitted: 2001:db8::1|install only the installation i-1|grants at most 1h old|unattended openings outlive the agent by 1m30s|" +
		"narrowest /32 of IPv4, /128 of IPv6|epoch 3|realm acme|expires 1970-01-01T00:00:00Z"
	if strings.Join(got, "|") != want {
		t.Errorf("%s\nexpected\n%s", strings.Join(got, "|"), want)
	}
}

func TestBrief(t *testing.T) {
	for d, want := range map[time.Duration]string{3 * time.Hour: "3h", 90 * time.Minute: "1h30m", time.Minute: "1m", 61 * time.Second: "1m1s", 24*time.Hour + time.Second: "24h0m1s", 10 * time.Second: "10s"} {
		if got := brief(d); got != want {
			t.Errorf("%v is %s", d, got)
		}
	}
}

// Whatever a control plane lists is shown or refused.
func FuzzReadPending(f *testing.F) {
	web1 := vmNamed("g", "web1")
	payload := document(web1, 2, guard(22, 1, "10.0.0.0/8"))
	f.Add(web1, payload, []byte(nil), payload)
	f.Add(web1, payload, policy.Envelope{Type: policy.TypePolicy, Payload: payload}.Encode(), []byte("x"))
	f.Add("x\x1b[2J", []byte("{}"), []byte("{}"), []byte("{}"))
	f.Fuzz(func(t *testing.T, vm string, payload, partial, inForce []byte) {
		p := pendingPolicy{}
		p.VM, p.Payload, p.Partial, p.InForce, p.By = vm, payload, partial, inForce, vm
		read, err := readPending(p.PendingPolicy, &policy.Trust{})
		var out bytes.Buffer
		if err == nil {
			if string(read.envelope.Payload) != string(payload) || !strings.EqualFold(read.next.Host.ID, vm) {
				t.Error("what is shown is not what would be signed")
			}
			printChange(&out, read)
		}
		if bytes.ContainsAny(out.Bytes(), "\x1b\r") {
			t.Errorf("%q", &out)
		}
	})
}
