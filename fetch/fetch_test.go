package fetch

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func grants(realm string, epoch, version uint64, signer ed25519.PrivateKey) []byte {
	g := policy.Grants{Header: policy.Header{Realm: realm, Version: version, Issued: noon, Expires: noon.Add(time.Hour)}, Epoch: epoch, Host: policy.Host{ID: "web1"}}
	e := policy.Envelope{Type: policy.TypeGrants, Payload: g.Encode()}
	if err := e.Sign(signer); err != nil {
		panic(err)
	}
	return e.Encode()
}

func newInbox(t *testing.T) (*inbox, string) {
	dir := t.TempDir()
	return &inbox{dir: disk(dir)}, dir
}

func signer() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(make([]byte, 32)) }

// Whatever order documents come in, what lies in the inbox only gets newer.
func TestInboxOrder(t *testing.T) {
	key := signer()
	type step struct {
		raw   []byte
		taken bool
	}
	for what, steps := range map[string][]step{
		"rising":           {{grants("r", 1, 1, key), true}, {grants("r", 1, 2, key), true}},
		"overtaken":        {{grants("r", 1, 5, key), true}, {grants("r", 1, 4, key), false}, {grants("r", 1, 5, key), false}, {grants("r", 1, 6, key), true}},
		"a new epoch":      {{grants("r", 1, 1187, key), true}, {grants("r", 2, 1, key), true}, {grants("r", 1, 1188, key), false}},
		"another realm":    {{grants("r", 1, 9, key), true}, {grants("other", 1, 1, key), true}},
		"not an envelope":  {{grants("r", 1, 1, key), true}, {[]byte("<html>log in</html>"), false}, {nil, false}},
		"too large":        {{make([]byte, policy.MaxEnvelope+1), false}},
		"no such document": {{policy.Envelope{Type: policy.TypeGrants, Payload: []byte("{}")}.Encode(), false}},
	} {
		b, dir := newInbox(t)
		var lies []byte
		for i, s := range steps {
			_, err := b.deliver(policy.TypeGrants, s.raw)
			if (err == nil) != s.taken {
				t.Errorf("%s, %d: %v", what, i, err)
			}
			if s.taken {
				lies = s.raw
			}
			if got, _ := os.ReadFile(filepath.Join(dir, "grants.json")); !bytes.Equal(got, lies) {
				t.Errorf("%s, %d: %q lies there", what, i, got)
			}
		}
		if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
			t.Errorf("%s: %q is left", what, left)
		}
	}
	b, dir := newInbox(t)
	if _, err := b.deliver(policy.TypePolicy, grants("r", 1, 1, key)); err == nil {
		t.Error("a list of grants was delivered as a policy")
	}
	if _, err := (&inbox{dir: disk(filepath.Join(dir, "none"))}).deliver(policy.TypeGrants, grants("r", 1, 1, key)); err == nil || !strings.Contains(err.Error(), "the agent makes its inbox") {
		t.Error(err)
	}
}

// What others put into the inbox meanwhile counts.
func TestInboxOthers(t *testing.T) {
	key := signer()
	b, dir := newInbox(t)
	if err := os.WriteFile(filepath.Join(dir, "grants.json"), grants("r", 1, 7, key), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := b.deliver(policy.TypeGrants, grants("r", 1, 6, key)); !errors.Is(err, errOld) {
		t.Error(err)
	}
	// What lies there and is no document is replaced; a planted link under the
	// temporary name leads nowhere.
	victim := filepath.Join(t.TempDir(), "victim")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "grants.json"), []byte("x"), 0o644), os.Symlink(victim, filepath.Join(dir, ".grants.json.new"))); err != nil {
		t.Fatal(err)
	}
	if _, err := b.deliver(policy.TypeGrants, grants("r", 1, 6, key)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(victim); !errors.Is(err, os.ErrNotExist) {
		t.Error("written through a link")
	}
	if i := b.look()[policy.TypeGrants]; i.version != 6 {
		t.Errorf("%+v", i)
	}
	if err := os.WriteFile(filepath.Join(dir, "grants.json"), grants("r", 1, 9, key), 0o644); err != nil {
		t.Fatal(err)
	}
	if i := b.look()[policy.TypeGrants]; i.version != 9 {
		t.Errorf("%+v", i)
	}
	if _, err := b.deliver(policy.TypeGrants, grants("r", 1, 8, key)); !errors.Is(err, errOld) {
		t.Error(err)
	}
}

func FuzzParseItem(f *testing.F) {
	f.Add(grants("r", 1, 1, signer()))
	f.Add([]byte("<html>"))
	f.Add(policy.Envelope{Type: policy.TypeTrust}.Encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		i, err := parseItem(raw)
		if err == nil && (uplink.File(i.typ) == "" || i.version == 0 || i.realm == "" || len(raw) > policy.MaxEnvelope) {
			t.Errorf("taken as %+v", i)
		}
	})
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	i, err := newIdentity("0a0b")
	if err != nil {
		t.Fatal(err)
	}
	if err := i.save(disk(dir), pendingFile); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, pendingFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	got, err := loadIdentity(disk(dir), pendingFile)
	if err != nil || got.join != "0a0b" || got.leaf != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := got.request(); err != nil {
		t.Error(err)
	}
	if _, err := loadIdentity(disk(dir), identityFile); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for what, text := range map[string]string{"nothing": "", "no key": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "text": "x"} {
		if err := os.WriteFile(filepath.Join(dir, identityFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadIdentity(disk(dir), identityFile); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	i, err := newIdentity("aa")
	if err != nil {
		f.Fatal(err)
	}
	text, err := i.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if i, err := parseIdentity(text); err == nil && i.key == nil {
			t.Error("an identity without a key")
		}
	})
}

// Hosts that lost a server together come back apart, and one that was told
// when to come does not come before.
func TestBackOff(t *testing.T) {
	seen := map[time.Duration]bool{}
	for failures := range 40 {
		most := min(longestBackOff, shortestBackOff<<min(failures, 10))
		for range 50 {
			d := backOff(failures, errors.New("x"))
			if d < 0 || d >= most {
				t.Fatalf("after %d failures %s", failures, d)
			}
			seen[d] = true
		}
	}
	if len(seen) < 1000 {
		t.Errorf("%d different times", len(seen))
	}
	for range 50 {
		if d := backOff(0, fmt.Errorf("x: %w", sentAway(20))); d < 20*time.Second || d > 27*time.Second {
			t.Errorf("sent away for 20 s, back after %s", d)
		}
	}
	if d := backOff(9, errRenewed); d != 0 {
		t.Error(d)
	}
	long := false
	for range 50 {
		long = long || backOff(0, &statusError{401, ""}) > longestBackOff
	}
	if !long {
		t.Error("a control plane that says no is asked again within a minute, every time")
	}
}

// What a control plane, or whatever answers in its place, says is read within
// limits, and nothing of it is a crash.
func TestHearRefuses(t *testing.T) {
	f := New(Config{InboxDir: t.TempDir(), IdentityDir: t.TempDir(), Log: hclog.NewNullLogger()})
	for what, text := range map[string]string{
		"a portal":         "<html>",
		"an unknown name":  `{"open":[22]}`,
		"a year's absence": `{"backOff":31536000}`,
		"too much":         `{"refused":"` + strings.Repeat("x", uplink.MaxDown) + `"}`,
	} {
		c := &conversation{Fetcher: f, file: identityFile, wake: make(chan struct{}, 1)}
		if err := c.hear([]byte(text), true); err == nil {
			t.Errorf("%s was taken", what)
		}
		if f.isReached() {
			t.Errorf("%s counts as a control plane", what)
		}
	}
	c := &conversation{Fetcher: f, file: identityFile, wake: make(chan struct{}, 1)}
	if err := c.hear([]byte(`{"backOff":5}`), true); !errors.Is(err, sentAway(5)) || !f.isReached() {
		t.Error(err)
	}
}

// A proxy that says no, talks too early or never ends what it says is an
// error in good time.
func TestConnectRefuses(t *testing.T) {
	for what, answer := range map[string]string{
		"no":              "HTTP/1.1 403 Forbidden\r\n\r\n",
		"no HTTP":         "SSH-2.0-OpenSSH\r\n",
		"talks early":     "HTTP/1.1 200 OK\r\n\r\nhello",
		"endless headers": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 128<<10),
		"nothing":         "",
	} {
		ours, theirs := net.Pipe()
		go func() {
			http.ReadRequest(bufio.NewReader(theirs))
			io.WriteString(theirs, answer)
			theirs.Close()
		}()
		if err := connect(t.Context(), ours, "control.example:443", nil); err == nil {
			t.Errorf("%s: a tunnel", what)
		}
		ours.Close()
	}
}

// A redirect is not followed: the control plane makes none.
func TestNoRedirect(t *testing.T) {
	var away bool
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { away = true }))
	defer other.Close()
	s := httptest.NewTLSServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer s.Close()
	tr, err := newTransport(s.URL, "", s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, nil, way{})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.close()
	if _, err := tr.call(t.Context(), http.MethodPost, uplink.PathEnroll, []byte("secret"), 100); !isStatus(err, http.StatusTemporaryRedirect) || away {
		t.Errorf("%v, %v", err, away)
	}
}

// A control plane that has no room for a host is told of in words that lead
// somewhere; one that is somebody else is not.
func TestNoRoom(t *testing.T) {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, errors.New("full") }}
	s.StartTLS()
	defer s.Close()
	ask := func() error {
		tr, err := newTransport(s.URL, "", x509.NewCertPool(), nil, way{})
		if err != nil {
			t.Fatal(err)
		}
		defer tr.close()
		_, err = tr.call(t.Context(), http.MethodGet, uplink.PathEnroll, nil, 100)
		return err
	}
	const words = "takes no more hosts at present"
	if err := ask(); err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("no room: %v", err)
	}
	s.TLS.GetConfigForClient = nil
	if err := ask(); err == nil || strings.Contains(err.Error(), words) {
		t.Errorf("a stranger: %v", err)
	}
}

// A fetcher says that it is alive, and does not while nobody gets its lock.
func TestSaysAlive(t *testing.T) {
	var said atomic.Int64
	f := New(Config{Log: hclog.NewNullLogger(), Alive: func() { said.Add(1) }, AlivePace: time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() { f.sayAlive(ctx); close(ended) }()
	for end := time.Now().Add(30 * time.Second); said.Load() < 5; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it said so %d times", said.Load())
		}
	}
	f.mu.Lock()
	before := said.Load()
	time.Sleep(100 * time.Millisecond)
	if more := said.Load() - before; more > 1 { // it may just have had the lock
		t.Errorf("it said so %d times, and nobody got its lock", more)
	}
	f.mu.Unlock()
	cancel()
	<-ended
}

func TestCheckURL(t *testing.T) {
	for in, want := range map[string]string{"https://a": "https://a", "https://a:8443/": "https://a:8443", "http://a": "", "a": "", "https://": "", "https://a/x": "", "https://u@a": "", "https://a?x": ""} {
		got, err := CheckURL(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

// answers is an agent that answers every call, and has the calls.
type answers func(*http.Request)

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	a(r)
	w := httptest.NewRecorder()
	w.Header().Set("Jitgate-Seq", "7")
	w.Header().Set("Jitgate-Hash", "aa")
	w.WriteString("{}\n")
	return w.Result(), nil
}

// Whoever only looks where the record ends keeps nothing of it: the agent must
// not take it for somebody who has the lines, and remove them.
func TestObserverKeepsNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asked []string
	f := New(Config{Log: hclog.NewNullLogger()})
	f.agent = guard{&http.Client{Transport: answers(func(r *http.Request) {
		if r.URL.Path == "/v1/events" {
			asked = append(asked, r.URL.RawQuery)
		}
		if len(asked) == 3 {
			cancel()
		}
	})}}
	f.observe(ctx)
	if len(asked) != 3 || !strings.HasPrefix(asked[1], "from=7&wait=") {
		t.Errorf("asked %q", asked)
	}
	for _, query := range asked {
		if strings.Contains(query, "after") {
			t.Errorf("%s says that it keeps lines", query)
		}
	}
	asked = nil
	if _, head, err := f.agent.Events(t.Context(), 5); err != nil || head.Seq != 7 || len(asked) != 1 || asked[0] != "after=5" {
		t.Errorf("%+v, %v, %q", head, err, asked)
	}
}

// keeper is an agent with a list of grants in force and a record.
type keeper struct {
	mu      sync.Mutex
	version uint64
	lines   [][]byte
}

func (k *keeper) admit(version uint64, lines ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.version = version
	for _, l := range lines {
		k.lines = append(k.lines, []byte(l))
	}
}

func (k *keeper) Status(context.Context) (Status, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return Status{Mode: "enforce", Docs: []StatusDocument{{Document: "grants", Version: k.version}}}, nil
}

func (k *keeper) Events(_ context.Context, after uint64) ([][]byte, uplink.Head, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	head := uplink.Head{Seq: uint64(len(k.lines)), Hash: uplink.Genesis}
	return slices.Clone(k.lines[min(after, head.Seq):]), head, nil
}

func (k *keeper) Head(ctx context.Context, than uint64, wait time.Duration) (uplink.Head, error) {
	for end := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
		if _, head, err := k.Events(ctx, 0); err != nil || head.Seq > than || !time.Now().Before(end) || ctx.Err() != nil {
			return head, errors.Join(err, ctx.Err())
		}
	}
}

// What is delivered is told of once: that it is in force, with the lines that say
// so, or after a moment that it is not.
func TestDeliveredIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		agent := &keeper{}
		f := New(Config{Log: hclog.NewNullLogger(), Host: &Host{Identity: disk(t.TempDir()), Inbox: disk(t.TempDir()), Agent: agent}})
		c := &conversation{Fetcher: f, file: identityFile, wake: make(chan struct{}, 1)}
		var mu sync.Mutex
		var sent []uplink.Up
		var all sync.WaitGroup
		all.Go(func() { f.observe(ctx) })
		all.Go(func() {
			_ = c.talk(ctx, func(up uplink.Up) error {
				mu.Lock()
				defer mu.Unlock()
				sent = append(sent, up)
				return nil
			}, func() error { return nil })
		})
		hears := func(d uplink.Down) {
			t.Helper()
			if err := c.hear(uplink.Encode(d), true); err != nil {
				t.Error(err)
			}
		}
		says := func() (up uplink.Up) {
			t.Helper()
			time.Sleep(time.Second)
			mu.Lock()
			defer mu.Unlock()
			if len(sent) != 1 {
				t.Fatalf("%d messages: %+v", len(sent), sent)
			}
			up, sent = sent[0], nil
			return up
		}
		grants := func(version uint64) uplink.Down {
			return uplink.Down{Documents: []uplink.Document{{Type: policy.TypeGrants, Version: version, Signed: grants("r", 1, version, signer())}}}
		}
		time.Sleep(time.Second)
		mu.Lock()
		sent = nil // who it is
		mu.Unlock()
		hears(uplink.Down{Ack: &uplink.Head{}})
		hears(grants(1))
		time.Sleep(5 * time.Millisecond)
		agent.admit(1, "admitted")
		time.Sleep(5 * time.Millisecond)
		agent.admit(1, "opening", "opened")
		if up := says(); up.Have.Grants != 1 || len(up.Held) != 0 || len(up.Lines) != 3 || up.Head.Seq != 3 {
			t.Errorf("%+v", up)
		}
		hears(uplink.Down{Ack: &uplink.Head{Seq: 3, Hash: strings.Repeat("a", 64)}})
		hears(grants(2))
		if up := says(); up.Have.Grants != 1 || len(up.Held) != 1 || up.Held[0].Version != 2 || len(up.Lines) != 0 {
			t.Errorf("%+v", up)
		}
		cancel()
		all.Wait()
	})
}
