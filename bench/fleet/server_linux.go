package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// patience is how long a server may take to start.
const patience = time.Minute

// server is one replica of the control plane: the program itself, in a process
// of its own.
type server struct {
	api
	program, dir, data, listen string
	database                   string // empty: SQLite in the data directory

	process *exec.Cmd // nil: it was stopped
	exited  chan struct{}
	ca      []byte // who signed its certificate, in PEM
	metrics string // the token for them
}

// api is a way to the API, and who uses it.
type api struct {
	client     *http.Client
	url, token string
}

// newServer prepares one, on a port that stays the same over a restart. dir is
// there by then.
func newServer(program, dir, database string) (*server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	s := &server{api: api{url: "https://" + l.Addr().String()}, program: program, dir: dir, data: filepath.Join(dir, "control"), listen: l.Addr().String(), database: database}
	// One person asks for everything, and would be told to slow down.
	return s, os.WriteFile(s.config(), []byte("[log]\nlevel = \"warn\"\n[limits]\nrate = 100000.0\nburst = 100000\n"), 0o600)
}

func (s *server) config() string { return filepath.Join(s.dir, "control.toml") }
func (s *server) log() string    { return filepath.Join(s.dir, "control.log") }

// start starts the program and waits until it is ready.
func (s *server) start(ctx context.Context) error {
	if err := s.launch(); err != nil {
		return err
	}
	for deadline := time.Now().Add(patience); ; {
		err := s.ready(ctx)
		if err == nil {
			return nil
		}
		if ended := s.hasEnded(); ended != nil {
			return s.complain(ended)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return s.complain(fmt.Errorf("the control plane is not ready: %w", err))
		}
	}
}

// launch starts the program.
func (s *server) launch() error {
	log, err := os.OpenFile(s.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c := exec.Command(s.program, "serve", "--data", s.data, "--listen", s.listen, "--config", s.config())
	c.Stdout, c.Stderr = log, log
	c.Env = os.Environ()
	if s.database != "" {
		c.Env = append(c.Env, "JITGATE_CONTROL_DATABASE="+s.database)
	}
	// It ends with this process, however that ends.
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return err
	}
	s.process, s.exited = c, make(chan struct{})
	go func(exited chan struct{}) {
		c.Wait() // whatever it says, it is over
		close(exited)
	}(s.exited)
	return nil
}

// hasEnded is an error once the program that was started is over by itself.
func (s *server) hasEnded() error {
	if s.process == nil {
		return nil
	}
	select {
	case <-s.exited:
		return errors.New("the control plane ended")
	default:
		return nil
	}
}

// complain adds the end of the server's log.
func (s *server) complain(err error) error {
	log, _ := os.ReadFile(s.log())
	return fmt.Errorf("%w\n%s", err, log[max(0, len(log)-2000):])
}

func (s *server) ready(ctx context.Context) error {
	if s.client == nil {
		if err := s.connect(); err != nil {
			return err
		}
	}
	_, err := s.call(ctx, http.MethodGet, "/readyz", nil)
	return err
}

// connect reads what the server made at its first start.
func (s *server) connect() (err error) {
	if s.ca, err = os.ReadFile(filepath.Join(s.data, "tls", "ca.pem")); err != nil {
		return err
	}
	for file, token := range map[string]*string{"admin.token": &s.token, "metrics.token": &s.metrics} {
		text, err := os.ReadFile(filepath.Join(s.data, file))
		if err != nil {
			return err
		}
		*token = strings.TrimSpace(string(text))
	}
	s.client = newClient(s.ca, nil)
	return nil
}

// newClient makes a client that believes one authority; dial is nil where it goes
// to whom it is told.
func newClient(ca []byte, dial func(context.Context, string, string) (net.Conn, error)) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: dial,
		TLSClientConfig: &tls.Config{RootCAs: roots, ClientSessionCache: tls.NewLRUClientSessionCache(64)}, MaxIdleConnsPerHost: 256}}
}

// stop ends the program in order, kill as a crash does.
func (s *server) stop() { s.end(syscall.SIGTERM) }
func (s *server) kill() { s.end(syscall.SIGKILL) }

func (s *server) end(how syscall.Signal) {
	if s.process == nil {
		return
	}
	s.process.Process.Signal(how) // it may have ended by itself
	<-s.exited
	s.process = nil
	s.client.CloseIdleConnections()
}

// call calls the API and returns the body of an answer that is no refusal.
func (a api) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, a.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+a.token)
	r.Header.Set("Content-Type", "application/json")
	w, err := a.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer w.Body.Close()
	answer, err := io.ReadAll(w.Body)
	if err == nil && w.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %.300s", method, path, w.Status, answer)
	}
	return answer, err
}

// initiate asks for access to machines of one policy, from a source for each.
func (a api) initiate(ctx context.Context, hosts []int, sources []netip.Addr) error {
	var vms []string
	for i, host := range hosts {
		vms = append(vms, fmt.Sprintf(`{"id":%q,"ports":[{"number":22,"allowedSourceAddressPrefix":"%s","duration":"PT1H"}]}`, machine(host), sources[i]))
	}
	_, err := a.call(ctx, http.MethodPost, policyOf(hosts[0])+"/initiate?api-version=2020-01-01", []byte(`{"virtualMachines":[`+strings.Join(vms, ",")+`]}`))
	return err
}

// local asks the server's socket for profiles.
func (s *server) local(ctx context.Context, path string) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.data, "control.sock"))
	}}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://jitgate-control"+path, nil)
	if err != nil {
		return nil, err
	}
	w, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer w.Body.Close()
	text, err := io.ReadAll(w.Body)
	if err == nil && w.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.300s", path, w.Status, text)
	}
	return text, err
}

// usage is what the server takes up, in bytes.
type usage struct {
	inUse    float64 // of Go, right after a collection: what lives on the heap, and stacks
	resident float64
}

// usage has the server collect its garbage, as it does before a profile of its
// heap. Twice: what finalizers let go of goes too.
func (s *server) usage(ctx context.Context) (u usage, err error) {
	for range 2 {
		profile, err := s.local(ctx, "/debug/pprof/heap?gc=1&debug=1")
		if err != nil {
			return u, err
		}
		var heap, stacks, gotStacks float64
		for l := range strings.Lines(string(profile)) {
			fmt.Sscanf(l, "# HeapAlloc = %g", &heap)
			fmt.Sscanf(l, "# Stack = %g / %g", &stacks, &gotStacks)
		}
		if heap == 0 || stacks == 0 {
			return u, errors.New("the profile of the heap does not say what is in use")
		}
		u.inUse = heap + stacks
	}
	m, err := s.scrape(ctx)
	u.resident = m["process_resident_memory_bytes"]
	return u, err
}

// scrape reads the metrics that have no labels.
func (s *server) scrape(ctx context.Context) (map[string]float64, error) {
	text, err := api{s.client, s.url, s.metrics}.call(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return nil, err
	}
	all := map[string]float64{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			all[name] = n
		}
	}
	return all, nil
}
