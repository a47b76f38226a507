package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jitgate/jitgate/policy"
)

const (
	group1   = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web"
	vm1      = group1 + "/providers/Microsoft.Compute/virtualMachines/web1"
	policy1  = group1 + "/providers/Microsoft.Security/locations/westeurope/jitNetworkAccessPolicies/default"
	version1 = "?api-version=2020-01-01"
)

const policyBody = `{"kind":"Basic","properties":{"virtualMachines":[{"id":"` + vm1 + `","ports":[{"number":22,"protocol":"*","allowedSourceAddressPrefix":"*","maxRequestAccessDuration":"PT3H"}]}]}}`

// sums are the SHA-256 of the files of a directory that stay as they are.
func sums(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || strings.HasPrefix(e.Name(), databaseFile) {
			return err
		}
		text, err := os.ReadFile(path)
		sum := sha256.Sum256(text)
		all[strings.TrimPrefix(path, dir)] = hex.EncodeToString(sum[:])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// The contract: an empty directory, one command, and everything answers.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir)
	c := r.client(t)
	admin := r.token(t, adminTokenFile)
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/openapi.json": 200, "/": 200, "/ui/page.css": 200, "/ui/nothing": 404, "/metrics": 401, "/api/v1/vms": 401, policy1 + version1: 401, "/agent/v1/nothing": 404, "/nothing": 404} {
		if status, body := r.ask(t, c, "GET", path, "", ""); status != want {
			t.Errorf("GET %s: %d %v, want %d", path, status, body, want)
		}
	}
	for _, host := range []string{"localhost", "127.0.0.1"} {
		_, port, err := net.SplitHostPort(strings.TrimPrefix(r.url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		if a, err := c.Get("https://" + net.JoinHostPort(host, port) + "/healthz"); err != nil {
			t.Errorf("by the name %s: %v", host, err)
		} else {
			a.Body.Close()
		}
	}
	// Clients that can, speak HTTP/2.
	two := r.client(t)
	two.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	if a, err := two.Get(r.url + "/healthz"); err != nil || a.ProtoMajor != 2 {
		t.Errorf("HTTP/2: %v %v", a, err)
	} else {
		a.Body.Close()
	}
	status, body := r.ask(t, c, "GET", "/metrics", r.token(t, metricsTokenFile), "")
	for _, name := range []string{"jitgate_control_build_info{", "go_goroutines ", "process_open_fds ", "jitgate_control_certificate_expiry_timestamp_seconds 1", "jitgate_control_trust_expiry_timestamp_seconds 1"} {
		if text, _ := body["text"].(string); status != 200 || !strings.Contains(text, name) {
			t.Errorf("metrics: %d, without %s", status, name)
		}
	}
	if status, _ := r.ask(t, c, "GET", "/api/v1/vms", r.token(t, metricsTokenFile), ""); status != 401 {
		t.Errorf("the token for metrics reads machines: %d", status)
	}
	if status, body := r.ask(t, c, "PUT", policy1+version1, admin, policyBody); status != 200 && status != 201 {
		t.Fatalf("PUT: %d %v", status, body)
	}
	if status, body := r.ask(t, c, "POST", policy1+"/initiate"+version1, admin, `{"virtualMachines":[{"id":"`+vm1+`","ports":[{"number":22,"duration":"PT1H","allowedSourceAddressPrefix":"192.0.2.7"}]}]}`); status != 202 {
		t.Fatalf("initiate: %d %v", status, body)
	}
	if status, body := r.ask(t, c, "GET", policy1+version1, admin, ""); status != 200 || !strings.Contains(fmt.Sprint(body), "Initiating") {
		t.Errorf("the policy after the request: %d %v", status, body)
	}
	for name, mode := range map[string]fs.FileMode{"": 0o700, adminTokenFile: 0o600, metricsTokenFile: 0o600, policyKeyFile: 0o600, grantKeyFile: 0o600,
		rootKeyFile: 0o600, databaseFile: 0o600, "tls/ca.key": 0o600, "tls/server.key": 0o600, "agents/ca.key": 0o600, socketFile: 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, want mode %o", name, info, mode)
		}
	}
	for _, want := range []string{"Made realm", rootKeyFile, "off this machine"} {
		if !strings.Contains(r.said, want) {
			t.Errorf("the first start does not say %q: %s", want, r.said)
		}
	}
	// What it says to do next works as it is written.
	await(t, func() bool { return strings.Contains(r.after.String(), "jitgate-control config") })
	did := 0
	for line := range strings.Lines(strings.ReplaceAll(r.after.String(), "/subscriptions/S", "/subscriptions/s")) {
		words := strings.Fields(line)
		switch {
		case len(words) > 1 && words[0] == "curl":
			if out, err := exec.Command("sh", "-c", strings.TrimSpace(line)+" -sf").CombinedOutput(); err != nil || !strings.Contains(string(out), "web1") {
				t.Errorf("%s: %v: %s", line, err, out)
			}
			did++
		case len(words) > 1 && words[0] == "jitgate-control":
			does(t, words[1:]...)
			did++
		case len(words) > 1 && words[0] == "jitgate" && !strings.Contains(line, "--control "+r.url):
			t.Errorf("%s", line)
		}
	}
	if did != 4 {
		t.Errorf("%d commands in %s", did, r.after)
	}
	// Profiles are for whoever reaches the socket, and for nobody else.
	local := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, socketFile))
	}}}
	if answer, err := local.Get("http://jitgate-control/debug/pprof/goroutine?debug=1"); err != nil || answer.StatusCode != 200 {
		t.Errorf("a profile: %+v, %v", answer, err)
	} else {
		answer.Body.Close()
	}
	if status, _ := r.ask(t, c, "GET", "/debug/pprof/goroutine?debug=1", admin, ""); status != 404 {
		t.Errorf("a profile on the port for all: %d", status)
	}
	before := sums(t, dir)
	r.stop(t)
	if _, err := os.Stat(filepath.Join(dir, socketFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}

	again := start(t, dir)
	if again.said != "" {
		t.Errorf("the second start says %q", again.said)
	}
	if after := sums(t, dir); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the second start changed the directory: %v, was %v", after, before)
	}
	c = again.client(t)
	if status, body := again.ask(t, c, "GET", policy1+version1, admin, ""); status != 200 || !strings.Contains(fmt.Sprint(body), "Initiating") {
		t.Errorf("the policy after a restart: %d %v", status, body)
	}
	if status, _ := again.ask(t, c, "DELETE", policy1+version1, admin, ""); status != 200 && status != 204 {
		t.Errorf("DELETE: %d", status)
	}
}

// A first start that is killed at any moment is completed by the next, and
// never with a second realm.
func TestKilledFirstStart(t *testing.T) {
	cut := 0
	for delay := time.Duration(0); delay < 240*time.Millisecond; delay += 12 * time.Millisecond {
		dir := filepath.Join(t.TempDir(), "data")
		c := command(t, "serve", "--data", dir, "--listen", "127.0.0.1:0")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(delay)
		c.Process.Kill()
		c.Wait()
		before := map[string]string{}
		if _, err := os.Stat(dir); err == nil {
			before = sums(t, dir)
		}
		r := start(t, dir)
		after := sums(t, dir)
		for name, sum := range before {
			if strings.HasPrefix(filepath.Base(name), ".") {
				continue // was being written
			}
			if after[name] != sum {
				t.Errorf("killed after %v: %s was made anew", delay, name)
			}
		}
		if before["/"+metricsTokenFile] == "" {
			cut++
		}
		if status, body := r.ask(t, r.client(t), "GET", "/api/v1/vms", r.token(t, adminTokenFile), ""); status != 200 {
			t.Errorf("killed after %v: %d %v", delay, status, body)
		}
		for name := range after {
			if strings.HasSuffix(name, ".new") {
				t.Errorf("killed after %v: %s stays", delay, name)
			}
		}
		r.kill()
	}
	if cut == 0 {
		t.Error("no start was cut off: this test looks at nothing")
	}
}

// freshRealm is a directory after a first start.
func freshRealm(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	start(t, dir).stop(t)
	return dir
}

// Whatever of a first start there is, from nothing to all but the last file,
// the next start completes it and keeps what there was.
func TestHalfMadeDirectories(t *testing.T) {
	whole := freshRealm(t)
	order := []string{policyKeyFile, grantKeyFile, rootKeyFile, trustFile, "agents/ca.key", "agents/ca.pem", "tls/ca.key", "tls/ca.pem", "tls/server.key", "tls/server.pem", adminTokenFile, metricsTokenFile}
	for n := range len(order) {
		dir := filepath.Join(t.TempDir(), "data")
		for _, name := range order[:n] {
			copyFile(t, filepath.Join(whole, name), filepath.Join(dir, name))
		}
		before := map[string]string{}
		if n > 0 {
			before = sums(t, dir)
		}
		r, err := tryStart(t, dir, nil)
		if err != nil {
			t.Errorf("with %v: %v", order[:n], err)
			continue
		}
		after := sums(t, dir)
		for name, sum := range before {
			if after[name] != sum {
				t.Errorf("with %v: %s was made anew", order[:n], name)
			}
		}
		for _, name := range order {
			if after["/"+name] == "" {
				t.Errorf("with %v: %s is missing", order[:n], name)
			}
		}
		if status, _ := r.ask(t, r.client(t), "GET", "/api/v1/vms", r.token(t, adminTokenFile), ""); status != 200 {
			t.Errorf("with %v: the admin's token gets %d", order[:n], status)
		}
		r.kill()
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, info.Mode().Perm()); err != nil {
		t.Fatal(err)
	}
}

// What cannot be right is refused in one line, and stays as it is.
func TestRefusedDirectories(t *testing.T) {
	whole, other := freshRealm(t), freshRealm(t)
	for _, c := range []struct {
		name, want string
		spoil      func(dir string) error
	}{
		{"trust lost", "trust.json is missing", func(dir string) error { return os.Remove(filepath.Join(dir, trustFile)) }},
		{"another realm's trust", "do not belong together", func(dir string) error {
			for _, name := range []string{trustFile, policyKeyFile, grantKeyFile} {
				copyFile(t, filepath.Join(other, name), filepath.Join(dir, name))
			}
			return nil
		}},
		{"trust edited", "trust.json", func(dir string) error {
			return edit(filepath.Join(dir, trustFile), "ey", "fy")
		}},
		{"another grant key", "trust.json does not give it role grant", func(dir string) error {
			copyFile(t, filepath.Join(other, grantKeyFile), filepath.Join(dir, grantKeyFile))
			return nil
		}},
		{"grant key lost", "the grant key is missing", func(dir string) error { return os.Remove(filepath.Join(dir, grantKeyFile)) }},
		{"grant key readable", "can be read by others", func(dir string) error { return os.Chmod(filepath.Join(dir, grantKeyFile), 0o644) }},
		{"admin token readable", "can be read by others", func(dir string) error { return os.Chmod(filepath.Join(dir, adminTokenFile), 0o640) }},
		{"agents' key readable", "can be read by others", func(dir string) error { return os.Chmod(filepath.Join(dir, "agents/ca.key"), 0o604) }},
		{"agents' key of another", "is not the certificate of", func(dir string) error {
			copyFile(t, filepath.Join(other, "agents/ca.key"), filepath.Join(dir, "agents/ca.key"))
			return nil
		}},
		{"directory writable", "can be written by others", func(dir string) error { return os.Chmod(dir, 0o770) }},
		{"admin token empty", "not one line with a token", func(dir string) error { return os.WriteFile(filepath.Join(dir, adminTokenFile), nil, 0o600) }},
		{"database damaged", "database", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, databaseFile), []byte("no database at all, but some text"), 0o600)
		}},
		{"somebody else's", "belongs to another user", func(dir string) error { return os.Chown(dir, 65534, 65534) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if out, err := exec.Command("cp", "-a", whole, dir).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if err := c.spoil(dir); err != nil {
				t.Fatal(err)
			}
			before := sums(t, dir)
			refuses(t, exitFailed, c.want, "serve", "--data", dir, "--listen", "127.0.0.1:0")
			if after := sums(t, dir); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("the directory changed: %v, was %v", after, before)
			}
		})
	}
	strange := t.TempDir()
	if err := os.WriteFile(filepath.Join(strange, "thesis.tex"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	refuses(t, exitFailed, "thesis.tex is in it", "serve", "--data", strange, "--listen", "127.0.0.1:0")
}

func edit(path, old, new string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !strings.Contains(string(text), old) {
		return fmt.Errorf("%s does not have %q", path, old)
	}
	return os.WriteFile(path, []byte(strings.Replace(string(text), old, new, 1)), 0o600)
}

// One directory, one server.
func TestSecondServer(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "data"))
	refuses(t, exitFailed, "another jitgate-control serves", "serve", "--data", r.dir, "--listen", "127.0.0.1:0")
	if status, _ := r.ask(t, r.client(t), "GET", "/healthz", "", ""); status != 200 {
		t.Errorf("the first: %d", status)
	}
}

// A port that is taken is said in one line.
func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	refuses(t, exitFailed, "address already in use", "serve", "--data", filepath.Join(t.TempDir(), "data"), "--listen", l.Addr().String())
}

// The server stops when it is told to: it says first that it is not ready,
// lets a call in flight finish, and ends streams.
func TestGracefulStop(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "data"))
	admin := r.token(t, adminTokenFile)
	// A stream has no end of its own.
	events, err := http.NewRequest("GET", r.url+"/api/v1/activity/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	events.Header.Set("Authorization", "Bearer "+admin)
	stream, err := r.client(t).Do(events)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	if stream.StatusCode != 200 {
		t.Fatalf("events: %s", stream.Status)
	}
	// A call that is half sent.
	tlsConfig := r.client(t).Transport.(*http.Transport).TLSClientConfig
	slow, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), tlsConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	fmt.Fprintf(slow, "PUT %s%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", policy1, version1, admin, len(policyBody), policyBody[:20])
	// A connection that is there already still learns that we are not ready.
	watcher, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), tlsConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	answers := bufio.NewReader(watcher)
	ready := func() int {
		fmt.Fprint(watcher, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
		a, err := http.ReadResponse(answers, nil)
		if err != nil {
			return 0
		}
		a.Body.Close()
		return a.StatusCode
	}
	if got := ready(); got != 200 {
		t.Fatalf("readyz before: %d", got)
	}
	r.cmd.Process.Signal(syscall.SIGTERM)
	deadline := time.Now().Add(30 * time.Second)
	got := 200
	for got == 200 && time.Now().Before(deadline) {
		got = ready()
	}
	if got != 503 {
		t.Fatalf("readyz of a server that stops: %d", got)
	}
	fmt.Fprint(slow, policyBody[20:])
	a, err := http.ReadResponse(bufio.NewReader(slow), nil)
	if err != nil || a.StatusCode/100 != 2 {
		t.Errorf("the call in flight: %v %v", a, err)
	}
	r.ends(t)
}

// A second signal does not wait for anybody.
func TestSecondSignal(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "data"))
	slow, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), r.client(t).Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	fmt.Fprintf(slow, "PUT %s%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 1000\r\n\r\n{", policy1, version1, r.token(t, adminTokenFile))
	r.cmd.Process.Signal(syscall.SIGTERM)
	for !strings.Contains(r.log.String(), "stopping") {
		select {
		case err := <-r.done:
			t.Fatalf("ended by itself: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	// The first is not forgotten before it is seen: one more does no harm.
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	go func() {
		for r.cmd.Process.Signal(syscall.SIGTERM) == nil {
			select {
			case <-again.C:
			case <-t.Context().Done():
				return
			}
		}
	}()
	select {
	case err := <-r.done:
		r.done <- err
		if state := r.cmd.ProcessState.Sys().(syscall.WaitStatus); !state.Signaled() {
			t.Errorf("not ended by the signal: %v", r.cmd.ProcessState)
		}
	case <-time.After(callsFinish + streamsFinish + 10*time.Second):
		t.Error("the second signal ended nothing")
	}
}

// A SIGHUP makes another log level and another certificate count.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	first, second := freshRealm(t), freshRealm(t)
	for _, name := range []string{"server.pem", "server.key"} {
		copyFile(t, filepath.Join(first, "tls", name), filepath.Join(dir, name))
	}
	config := filepath.Join(dir, "control.toml")
	write := func(level string) {
		t.Helper()
		text := fmt.Sprintf("[log]\nlevel = %q\nformat = \"json\"\n[tls]\ncert = %q\nkey = %q\n", level, filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key"))
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("info")
	r := start(t, data, "--config", config)
	if _, err := os.Stat(filepath.Join(data, "tls")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a certificate was made where one is configured")
	}
	serial := func() string {
		t.Helper()
		c, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	for _, name := range []string{"server.pem", "server.key"} {
		copyFile(t, filepath.Join(second, "tls", name), filepath.Join(dir, name))
	}
	write("debug")
	r.cmd.Process.Signal(syscall.SIGHUP)
	await(t, func() bool { return serial() != before })
	insecure := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	await(t, func() bool {
		r.ask(t, insecure, "GET", "/nothing", "", "") // a refusal is worth a line at level debug
		return strings.Contains(r.log.String(), `"@level":"debug"`)
	})
	// What is wrong changes nothing.
	write("loud")
	if err := os.WriteFile(filepath.Join(dir, "server.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	now := serial()
	r.cmd.Process.Signal(syscall.SIGHUP)
	await(t, func() bool { return strings.Contains(r.log.String(), "certificate stays as it is") })
	if serial() != now {
		t.Error("another certificate after a reload that failed")
	}
	r.stop(t)
}

// await waits until something is so.
func await(t testing.TB, so func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !so(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

// Clients that were connected before a restart resume their sessions after it.
func TestSessionsOutliveRestarts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	r := start(t, dir)
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := r.client(t).Transport.(*http.Transport).TLSClientConfig.Clone()
		config.ClientSessionCache, config.ServerName, config.MinVersion, config.MaxVersion = tls.NewLRUClientSessionCache(8), "localhost", v, v
		resumed := func() bool {
			t.Helper()
			c, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), config)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
			if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil { // the ticket of TLS 1.3 comes with it
				t.Fatal(err)
			}
			return c.ConnectionState().DidResume
		}
		if resumed() {
			t.Error("resumed what was never there")
		}
		r.stop(t)
		r = start(t, dir)
		if !resumed() {
			t.Errorf("TLS %x: a full handshake after a restart", v)
		}
	}
	if c, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		c.Close()
		t.Error("TLS 1.1 was taken")
	}
}

// systemd is told when the service is ready, and when it stops.
func TestNotify(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetReadDeadline(time.Now().Add(30 * time.Second))
	next := func() string {
		t.Helper()
		var b [256]byte
		n, err := l.Read(b[:])
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	r, err := tryStart(t, filepath.Join(t.TempDir(), "data"), []string{"NOTIFY_SOCKET=" + socket})
	if err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "READY=1" {
		t.Errorf("%q", got)
	}
	r.stop(t)
	if got := next(); got != "STOPPING=1" {
		t.Errorf("%q", got)
	}
}

// A realm made elsewhere, whose policy key people hold, is taken as it is.
func TestForeignRealm(t *testing.T) {
	other := freshRealm(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "control.toml")
	text := fmt.Sprintf("[realm]\ntrust = %q\n[signing]\npolicy = \"none\"\ngrant = \"file:%s\"\n", filepath.Join(other, trustFile), filepath.Join(other, grantKeyFile))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, filepath.Join(dir, "data"), "--config", config)
	for _, name := range []string{"keys", "offline"} {
		if _, err := os.Stat(filepath.Join(r.dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was made", name)
		}
	}
	if string(r.file(t, trustFile)) != string((&running{dir: other}).file(t, trustFile)) {
		t.Error("another trust document")
	}
	if !strings.Contains(r.said, "wait for a person's signature") {
		t.Errorf("it does not say who signs: %s", r.said)
	}
	status, body := r.ask(t, r.client(t), "PUT", policy1+version1, r.token(t, adminTokenFile), policyBody)
	if status/100 != 2 || !strings.Contains(fmt.Sprint(body), "Updating") {
		t.Errorf("PUT: %d %v", status, body)
	}
	r.stop(t)
	// Without a realm there is nobody who could sign.
	if err := os.WriteFile(config, []byte("[signing]\npolicy = \"none\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refuses(t, exitFailed, "needs a realm whose policy key people hold", "serve", "--data", filepath.Join(dir, "second"), "--listen", "127.0.0.1:0", "--config", config)
}

// openedTrust is a directory's trust document.
func openedTrust(t testing.TB, dir string) policy.Trust {
	t.Helper()
	_, v, err := directory(dir).trust()
	if err != nil {
		t.Fatal(err)
	}
	return v.Document()
}

// A client that opens a connection and says nothing does not hold it.
func TestSilentClient(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "data"))
	c, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", strings.TrimPrefix(r.url, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(40 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection stays: %v", err)
	}
}
