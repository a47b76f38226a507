package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store"
	"github.com/jitgate/jitgate/control/store/storetest"
)

const (
	listTurns  = 200
	listWarmUp = 10
	listBound  = 100 * time.Millisecond
	// What is far from its bound is not called so often.
	listPatience = time.Minute
	// What a download may add to the memory of the server.
	csvMemory = 32 << 20
)

// listBench is a control plane on a store that is full.
type listBench struct {
	fleet
	o       options
	dir     string
	base    string
	running *exec.Cmd
	client  http.Client
	r       *rand.Rand
}

// measureLists fills a store of each kind and lists it through the program, as
// an owner of everything and as somebody who may look at three resource
// groups.
func measureLists(ctx context.Context, o options, r *report) error {
	if o.postgres == "" && o.store != "SQLite" {
		server, err := storetest.StartServer("shared_buffers=256MB", "max_wal_size=4GB")
		if err != nil {
			return err
		}
		defer server.Close()
		if o.postgres, err = server.CreateDatabase(ctx); err != nil {
			return err
		}
	}
	for _, on := range []struct{ engine, dsn string }{{"SQLite", ""}, {"PostgreSQL", o.postgres}} {
		if o.store != "" && o.store != on.engine {
			continue
		}
		b := &listBench{o: o, dir: filepath.Join(o.diskDir, "lists-"+on.engine), r: rand.New(rand.NewPCG(1, 2)),
			fleet: fleet{machines: o.machines, lines: o.lines, now: time.Now().UTC().Truncate(time.Second)}}
		err := b.measure(ctx, on.engine, on.dsn, r)
		b.close()
		if err != nil {
			return fmt.Errorf("%s: %w", on.engine, err)
		}
	}
	return nil
}

func (b *listBench) data() string { return filepath.Join(b.dir, "data") }

func (b *listBench) close() {
	if b.running != nil {
		stop(b.running)
		b.running = nil
	}
}

func (b *listBench) measure(ctx context.Context, engine, dsn string, r *report) error {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	filled, err := b.prepare(ctx, dsn)
	if err != nil {
		return err
	}
	owner, err := os.ReadFile(filepath.Join(b.data(), "admin.token"))
	if err != nil {
		return err
	}
	who := []struct{ name, token string }{{"owner", strings.TrimSpace(string(owner))}, {"narrow", ""}}
	if who[1].token, err = b.newToken(ctx, who[0].token, narrowPerson); err != nil {
		return err
	}
	for _, w := range who {
		session, err := b.signIn(ctx, w.token)
		if err != nil {
			return err
		}
		for _, l := range b.lists() {
			if w.name == "narrow" && l.wide {
				continue
			}
			took, size, err := b.turns(ctx, l, w.token, session, w.name == "narrow")
			if err != nil {
				return fmt.Errorf("%s, %s: %w", l.name, w.name, err)
			}
			p99 := took.percentile(99)
			r.line(result{name: l.name + ", " + w.name, value: took.String(), beside: fmt.Sprintf("%d kB, %d calls", size>>10, len(took)), bound: "p99 ≤ 100 ms", ok: p99 <= listBound})
		}
	}
	day, err := b.download(ctx, who[0].token)
	if err != nil {
		return err
	}
	r.add(fmt.Sprintf("%s: %d machines, %d requests, %d lines of the log over 90 days, filled in %s. %d calls each (but no longer than a minute), one after the other, over TLS on loopback; what is asked for changes with each call. Beside: the longest answer.",
		engine, b.machines, b.lines/linesPerRequest, b.lines, filled.Round(time.Second), listTurns), day)
	return nil
}

// prepare makes a realm, fills the store, and starts the server on it.
func (b *listBench) prepare(ctx context.Context, dsn string) (took time.Duration, err error) {
	settings := "[limits]\nrate = 100000.0\nburst = 100000\n"
	if dsn != "" {
		settings = fmt.Sprintf("database = %q\n", dsn) + settings
	} else {
		dsn = filepath.Join(b.data(), "control.db")
	}
	if err := os.WriteFile(filepath.Join(b.dir, "control.toml"), []byte(settings), 0o600); err != nil {
		return 0, err
	}
	if err := b.serve(ctx); err != nil {
		return 0, err
	}
	b.close()
	s, err := store.Open(ctx, dsn, hclog.NewNullLogger())
	if err != nil {
		return 0, err
	}
	began := time.Now()
	there, err := b.there(ctx, s)
	if err == nil && !there {
		err = b.fill(ctx, s)
	}
	if err := errors.Join(err, s.Close()); err != nil {
		return 0, err
	}
	took = time.Since(began)
	return took, b.serve(ctx)
}

// serve starts the program and waits until it is ready.
func (b *listBench) serve(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	at := l.Addr().String()
	l.Close()
	log, err := os.OpenFile(filepath.Join(b.dir, "control.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c := exec.Command(b.o.control, "serve", "--data", b.data(), "--listen", at, "--config", filepath.Join(b.dir, "control.toml"))
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		return err
	}
	b.running, b.base = c, "https://"+at
	for deadline := time.Now().Add(startPatience); ; {
		err := b.connect(ctx)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(log.Name())
			return fmt.Errorf("the control plane: %w\n%s", err, said[max(0, len(said)-2000):])
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

func (b *listBench) connect(ctx context.Context) error {
	ca, err := os.ReadFile(filepath.Join(b.data(), "tls", "ca.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	b.client = http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	_, err = b.get(ctx, "/readyz", "", "")
	return err
}

// get reads an answer whole. Who signed in to the page has a session.
func (b *listBench) get(ctx context.Context, path, token, session string) ([]byte, error) {
	answer, err := b.ask(ctx, path, token, session)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	return io.ReadAll(answer.Body)
}

func (b *listBench) ask(ctx context.Context, path, token, session string) (*http.Response, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base+path, nil)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(path, "/ui/") {
		q.Header.Set("Cookie", session)
	} else if token != "" {
		q.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := b.client.Do(q)
	if err == nil && answer.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(answer.Body, 500))
		answer.Body.Close()
		err = fmt.Errorf("GET %s: %s: %s", path, answer.Status, said)
	}
	return answer, err
}

func (b *listBench) newToken(ctx context.Context, owner, principal string) (string, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, b.base+"/api/v1/tokens", strings.NewReader(fmt.Sprintf(`{"principal":%q}`, principal)))
	if err != nil {
		return "", err
	}
	q.Header.Set("Authorization", "Bearer "+owner)
	q.Header.Set("Content-Type", "application/json")
	answer, err := b.client.Do(q)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	var made struct{ Secret string }
	if err := json.NewDecoder(answer.Body).Decode(&made); err != nil || made.Secret == "" {
		return "", fmt.Errorf("no token: %s, %w", answer.Status, err)
	}
	return made.Secret, nil
}

// signIn begins a session of the page.
func (b *listBench) signIn(ctx context.Context, token string) (session string, err error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, b.base+"/ui/sign-in", strings.NewReader(url.Values{"token": {token}}.Encode()))
	if err != nil {
		return "", err
	}
	q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	q.Header.Set("Origin", b.base)
	q.Header.Set("Sec-Fetch-Site", "same-origin")
	answer, err := b.client.Do(q)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	for _, c := range answer.Cookies() {
		if c.Value != "" {
			session = c.Name + "=" + c.Value
		}
	}
	if session == "" {
		return "", fmt.Errorf("no session: %s", answer.Status)
	}
	return session, nil
}

// list is one list or page: the paths of its calls differ.
type list struct {
	name string
	path func(narrow bool) string
	wide bool   // only who sees everything may ask
	has  string // what an answer has in it
}

// lists are all that are measured.
func (b *listBench) lists() []list {
	esc := url.QueryEscape
	// Somebody narrow asks for what is theirs.
	group := func(narrow bool) (int, control.Scope) {
		g := b.r.IntN(b.groups())
		if narrow {
			g = b.narrow()[b.r.IntN(3)]
		}
		return g, control.GroupScope(b.place(g))
	}
	machine := func(narrow bool) control.VMID {
		g, _ := group(narrow)
		return b.fleet.machine(min(g*fleetGroup+b.r.IntN(fleetGroup), b.machines-1))
	}
	some := func(text string) func(bool) string { return func(bool) string { return text } }
	ofMachine := func(before string) func(bool) string {
		return func(narrow bool) string { return before + esc(machine(narrow).String()) }
	}
	hour := func(before string, of time.Duration) func(bool) string {
		return func(bool) string {
			from := b.now.Add(-time.Duration(b.r.Int64N(int64(fleetSpan - of)))).Add(-of)
			return before + "from=" + esc(from.Format(time.RFC3339)) + "&to=" + esc(from.Add(of).Format(time.RFC3339))
		}
	}
	const azure = "?api-version=2020-01-01"
	policies := func(inGroup, inLocation bool) func(bool) string {
		return func(narrow bool) string {
			g, _ := group(narrow)
			subscription, name := b.place(g)
			path := "/subscriptions/" + subscription
			if inGroup {
				path += "/resourceGroups/" + name
			}
			path += "/providers/Microsoft.Security/"
			if inLocation {
				path += "locations/" + fleetLocation + "/"
			}
			return path + "jitNetworkAccessPolicies" + azure
		}
	}
	all := []list{
		{name: "machines, first page", path: some("/api/v1/vms"), has: `"tab"`},
		{name: "machines, deep in", path: ofMachine("/api/v1/vms?after=")},
		{name: "machines of a group", path: func(narrow bool) string { _, s := group(narrow); return "/api/v1/vms?scope=" + esc(string(s)) }, has: `"tab"`},
		{name: "machines, search: one", path: func(narrow bool) string {
			return "/api/v1/vms?search=" + machine(narrow).Name[2:]
		}, has: `"tab"`},
		{name: "machines, search: none", path: func(bool) string { return fmt.Sprintf("/api/v1/vms?search=zz%d", b.r.IntN(1000)) }, has: `[]`},
		{name: "machines, search: every eighth", path: func(bool) string { return "/api/v1/vms?tab=Configured&search=" + fleetNames[b.r.IntN(8)] }},
		{name: "one machine", path: func(narrow bool) string { return "/api/v1/vms" + machine(narrow).String() }, has: `"tab"`},
		{name: "counts", path: some("/api/v1/vms/counts"), has: "configured"},
		{name: "counts of a subscription", path: func(narrow bool) string {
			g, _ := group(narrow)
			subscription, _ := b.place(g)
			return "/api/v1/vms/counts?scope=/subscriptions/" + subscription
		}, has: "configured"},
		{name: "requests", path: some("/api/v1/requests"), has: "requestor"},
		{name: "requests, deep in", path: func(bool) string { return "/api/v1/requests?after=" + requestID(b.r.IntN(b.lines/linesPerRequest)) }},
		{name: "requests, open", path: some("/api/v1/requests?open=true")},
		{name: "requests, pending", path: some("/api/v1/requests?status=Pending")},
		{name: "requests, own", path: some("/api/v1/requests?mine=true")},
		{name: "requests of a machine", path: ofMachine("/api/v1/requests?vm=")},
		{name: "requests of a group", path: func(narrow bool) string { _, s := group(narrow); return "/api/v1/requests?scope=" + esc(string(s)) }},
		{name: "requests of a subscription", path: func(narrow bool) string {
			g, _ := group(narrow)
			subscription, _ := b.place(g)
			return "/api/v1/requests?scope=/subscriptions/" + subscription
		}},
		{name: "activity", path: some("/api/v1/activity"), has: `"event"`},
		{name: "activity, deep in", path: func(bool) string { return fmt.Sprintf("/api/v1/activity?after=%d", b.r.IntN(b.lines)+1) }},
		{name: "activity of a machine", path: ofMachine("/api/v1/activity?scope=")},
		{name: "activity of an hour", path: hour("/api/v1/activity?", time.Hour)},
		{name: "activity of ten days, oldest first", path: hour("/api/v1/activity?order=oldest&", 240*time.Hour)},
		{name: "activity of an hour, one event", path: hour("/api/v1/activity?event=grant.used&", time.Hour)},
		{name: "activity of ten days, one person", path: hour("/api/v1/activity?actor="+esc(busyPerson)+"&", 240*time.Hour)},
		{name: "activity, a rare event", path: some("/api/v1/activity?event=scope.set")},
		{name: "activity, no such event", path: some("/api/v1/activity?event=never.was"), has: `[]`},
		{name: "activity, a rare event of ten days", path: hour("/api/v1/activity?event=scope.set&", 240*time.Hour)},
		{name: "activity of a group, a rare event", path: func(narrow bool) string {
			_, s := group(narrow)
			return "/api/v1/activity?event=scope.set&scope=" + esc(string(s))
		}},
		{name: "activity of a person with an event of others", path: some("/api/v1/activity?event=scope.set&actor=" + esc(busyPerson)), has: `[]`},
		{name: "Azure: policies of a subscription", path: policies(false, false), has: "value"},
		{name: "Azure: policies of a location", path: policies(false, true), has: "value"},
		{name: "Azure: policies of a group", path: policies(true, false), has: "value"},
		{name: "Azure: policies of a group, location", path: policies(true, true), has: "value"},
		{name: "Azure: policies, a page deep in", path: func(narrow bool) string {
			g, _ := group(narrow)
			id, _ := b.policy(g)
			return "/subscriptions/" + id.Subscription + "/providers/Microsoft.Security/jitNetworkAccessPolicies" + azure + "&$skiptoken=" + base64.RawURLEncoding.EncodeToString([]byte(id.Key()))
		}, has: "value"},
		{name: "assignments", path: some("/api/v1/assignments"), wide: true, has: "principal"},
		{name: "tokens", path: some("/api/v1/tokens"), has: "principal"},
		{name: "scopes", path: some("/api/v1/scopes")},
		{name: "page: one machine", path: ofMachine("/ui/vm?id="), has: "</html>"},
		{name: "page: machines found", path: func(narrow bool) string { return "/ui/vms?q=" + machine(narrow).Name[2:] }, has: "</html>"},
		{name: "page: machines deep in", path: ofMachine("/ui/vms?after="), has: "</html>"},
		{name: "page: requests", path: some("/ui/requests"), has: "</html>"},
		{name: "page: requests, all", path: some("/ui/requests?show=all"), has: "</html>"},
		{name: "page: activity", path: some("/ui/activity"), has: "</html>"},
		{name: "page: activity of an hour", path: func(narrow bool) string { return hour("/ui/activity?", time.Hour)(narrow) }, has: "</html>"},
		{name: "page: timeline of a day", path: some("/ui/timeline"), has: "</html>"},
		{name: "page: timeline of 30 days", path: some("/ui/timeline?span=30d"), has: "</html>"},
	}
	for _, tab := range []control.Tab{control.Configured, control.NotConfigured, control.Unsupported} {
		all = append(all,
			list{name: "machines, " + string(tab), path: some("/api/v1/vms?tab=" + string(tab))},
			list{name: "machines, " + string(tab) + ", deep in", path: ofMachine("/api/v1/vms?tab=" + string(tab) + "&after=")},
			list{name: "page: machines, " + string(tab), path: some("/ui/vms?tab=" + string(tab)), has: "</html>"})
	}
	return all
}

// turns makes the calls of a list. What it returns in size is the longest
// answer.
func (b *listBench) turns(ctx context.Context, l list, token, session string, narrow bool) (took sample, size int, err error) {
	for turn, end := 0, time.Now().Add(listPatience); turn < listWarmUp+listTurns && (turn < 2*listWarmUp || time.Now().Before(end)); turn++ {
		path := l.path(narrow)
		began := time.Now()
		body, err := b.get(ctx, path, token, session)
		spent := time.Since(began)
		if err != nil {
			return nil, 0, err
		}
		if !strings.Contains(string(body), l.has) {
			return nil, 0, fmt.Errorf("GET %s: no %q in %.300s", path, l.has, body)
		}
		if turn >= listWarmUp {
			took, size = append(took, spent), max(size, len(body))
		}
	}
	return took, size, nil
}

// download reads a day of the log as CSV, and looks at the server's memory
// meanwhile.
func (b *listBench) download(ctx context.Context, token string) (result, error) {
	before, err := memoryOf(b.running.Process.Pid)
	if err != nil {
		return result{}, err
	}
	day := b.now.Add(-10 * 24 * time.Hour).Truncate(24 * time.Hour)
	path := "/api/v1/activity?format=csv&from=" + day.Format(time.RFC3339) + "&to=" + day.Add(24*time.Hour).Format(time.RFC3339)
	began := time.Now()
	answer, err := b.ask(ctx, path, token, "")
	if err != nil {
		return result{}, err
	}
	defer answer.Body.Close()
	lines := 0
	for s := bufio.NewScanner(answer.Body); ; lines++ {
		if !s.Scan() {
			if err := s.Err(); err != nil {
				return result{}, err
			}
			break
		}
	}
	took := time.Since(began)
	after, err := memoryOf(b.running.Process.Pid)
	if err != nil {
		return result{}, err
	}
	lines-- // the first has the names
	more := after["VmHWM"] - before["VmHWM"]
	return result{name: "CSV of a day, owner", value: fmt.Sprintf("%d lines in %s, %.0f/s", lines, span(took), float64(lines)/took.Seconds()),
		beside: fmt.Sprintf("resident %s, %s more", megabytes(after["VmRSS"]), megabytes(max(0, more))), bound: "≤ 32 MB more", ok: lines > 0 && more <= csvMemory}, nil
}
