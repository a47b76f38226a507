package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// asProgram makes the test's own program the program itself.
const asProgram = "JITGATE_CONTROL_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// command is the program with these words, as another process.
func command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self, args...)
	c.Env = append(os.Environ(), asProgram+"=1", databaseVariable+"=")
	return c
}

// result is how a command ended.
type result struct {
	code     int
	out, err string
}

// callTime is more than any command takes.
const callTime = 30 * time.Second

// call runs a command to its end.
func call(t testing.TB, args ...string) result {
	t.Helper()
	c := command(t, args...)
	var out, complaints bytes.Buffer
	c.Stdout, c.Stderr = &out, &complaints
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	// What should have been refused, and serves, does not end by itself.
	late := time.AfterFunc(callTime, func() { c.Process.Kill() })
	defer late.Stop()
	err := c.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return result{c.ProcessState.ExitCode(), out.String(), complaints.String()}
}

// does runs a command that must do what it is asked for.
func does(t testing.TB, args ...string) string {
	t.Helper()
	r := call(t, args...)
	if r.code != exitDone || r.err != "" {
		t.Fatalf("%s: exit code %d, %s", strings.Join(args, " "), r.code, r.err)
	}
	return r.out
}

// refuses runs a command that must fail with this exit code and, after what
// the log may have, one line that has want in it.
func refuses(t testing.TB, code int, want string, args ...string) {
	t.Helper()
	r := call(t, args...)
	r.err = logLine.ReplaceAllString(r.err, "")
	if r.code != code || !strings.Contains(r.err, want) || !strings.HasPrefix(r.err, "jitgate-control: ") || strings.Count(r.err, "\n") != 1 {
		t.Errorf("%s: exit code %d, %q; want %d and one line with %q", strings.Join(args, " "), r.code, r.err, code, want)
	}
}

// logLine is a line of the log, at level info.
var logLine = regexp.MustCompile(`(?m)^\d{4}-\S+ \[INFO\] .*\n`)

// running is a server that another process is.
type running struct {
	dir   string
	url   string
	said  string // before it served
	after *lines // after
	cmd   *exec.Cmd
	log   *lines
	done  chan error
}

// lines is a log that is written by one and read by another.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var servingAt = regexp.MustCompile(`^Serving realm \S+ at (https://\S+) from `)

// startTime is more than any start takes on a machine that is busy.
const startTime = time.Minute

// start starts a server on dir and waits until it serves.
func start(t testing.TB, dir string, more ...string) *running {
	t.Helper()
	r, err := tryStart(t, dir, nil, more...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tryStart(t testing.TB, dir string, env []string, more ...string) (*running, error) {
	t.Helper()
	r := &running{dir: dir, after: &lines{}, log: &lines{}, done: make(chan error, 1)}
	r.cmd = command(t, append([]string{"serve", "--data", dir, "--listen", "127.0.0.1:0"}, more...)...)
	r.cmd.Env = append(r.cmd.Env, env...)
	r.cmd.Stderr = r.log
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.kill() })
	serving := make(chan struct{})
	var said strings.Builder
	go func() {
		s := bufio.NewScanner(out)
		for s.Scan() {
			if m := servingAt.FindStringSubmatch(s.Text()); m != nil {
				r.url, r.said = m[1], said.String()
				close(serving)
				continue
			}
			if r.url != "" {
				fmt.Fprintln(r.after, s.Text())
				continue
			}
			said.WriteString(s.Text() + "\n")
		}
		r.done <- r.cmd.Wait()
	}()
	select {
	case <-serving:
		return r, nil
	case err := <-r.done:
		r.done <- err
		return nil, errors.New("the server ended: " + r.log.String())
	case <-time.After(startTime):
		r.kill()
		return nil, errors.New("the server does not serve yet: " + r.log.String())
	}
}

// kill ends the server at once.
func (r *running) kill() {
	r.cmd.Process.Kill()
	err := <-r.done
	r.done <- err
}

// stop ends the server in order, and wants that to succeed.
func (r *running) stop(t testing.TB) {
	t.Helper()
	r.cmd.Process.Signal(syscall.SIGTERM)
	r.ends(t)
}

// ends waits for a server that was told to stop.
func (r *running) ends(t testing.TB) {
	t.Helper()
	select {
	case err := <-r.done:
		r.done <- err
		if err != nil {
			t.Fatalf("stopping: %v: %s", err, r.log)
		}
	case <-time.After(callsFinish + streamsFinish + 10*time.Second):
		t.Fatalf("the server does not stop: %s", r.log)
	}
}

// file reads a file of the data directory.
func (r *running) file(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (r *running) token(t testing.TB, name string) string {
	t.Helper()
	return strings.TrimSpace(string(r.file(t, name)))
}

// client trusts tls/ca.pem, and nothing else.
func (r *running) client(t testing.TB) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(r.file(t, "tls/ca.pem")) {
		t.Fatal("tls/ca.pem has no certificate")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// ask calls the server and reads the answer as JSON, if it is some.
func (r *running) ask(t testing.TB, client *http.Client, method, path, token, body string) (int, map[string]any) {
	t.Helper()
	q, err := http.NewRequestWithContext(context.Background(), method, r.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		q.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		q.Header.Set("Content-Type", "application/json")
	}
	a, err := client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if json.Unmarshal(text, &out) != nil {
		out = map[string]any{"text": string(text)}
	}
	return a.StatusCode, out
}
