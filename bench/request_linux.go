package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	requestTurns  = 100
	requestWarmUp = 5
	startPatience = 30 * time.Second
	// One SYN, and how long it is given to be answered before the next.
	knockPause = time.Millisecond

	requestVM     = "/subscriptions/20ff7fc3-e762-44dd-bd96-b71116dcdc23/resourceGroups/bench/providers/Microsoft.Compute/virtualMachines/vm1"
	requestPolicy = "/subscriptions/20ff7fc3-e762-44dd-bd96-b71116dcdc23/resourceGroups/bench/providers/Microsoft.Security/locations/here/jitNetworkAccessPolicies/default"
)

// requestBench is a control plane and, a cable away, a machine whose agent and
// fetcher follow it.
type requestBench struct {
	o           options
	dir         string
	vm, outside *world
	running     []*exec.Cmd
	client      http.Client
	token       string
}

// measureRequest times the whole way, from a call of Azure's API to the first
// packet that the machine lets through because of it.
func measureRequest(ctx context.Context, o options, r *report) error {
	b := &requestBench{o: o, dir: filepath.Join(o.dir, "request")}
	defer b.close()
	if err := b.start(ctx); err != nil {
		return err
	}
	var call, whole sample
	for turn := range requestWarmUp + requestTurns {
		answered, opened, err := b.turn(ctx, source(turn+1))
		if err != nil {
			return fmt.Errorf("turn %d: %w", turn, err)
		}
		if turn >= requestWarmUp {
			call, whole = append(call, answered), append(whole, opened)
		}
	}
	r.add(fmt.Sprintf("%d turns: POST …/initiate over TLS, then a SYN every %s until one is let through. Control plane (SQLite, synchronous=FULL, in memory), fetcher and agent are the programs themselves on this machine; the policy key is on the server.", requestTurns, knockPause),
		result{name: "REST call → first SYN accepted", value: whole.String(), beside: "the call alone " + call.String(), ratio: whole.over(call), bound: "p50 ≤ 100 ms", ok: whole.median() <= 100*time.Millisecond})
	return nil
}

func (b *requestBench) close() {
	for _, c := range b.running {
		stop(c)
	}
	for _, w := range []*world{b.vm, b.outside} {
		if w != nil {
			w.close()
		}
	}
}

// start brings everything up until the policy is in force on the machine.
func (b *requestBench) start(ctx context.Context) (err error) {
	if b.vm, err = newWorld(); err != nil {
		return err
	}
	if b.outside, err = b.vm.newOutside(); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(b.dir), os.MkdirAll(filepath.Join(b.dir, "inbox"), 0o755)); err != nil {
		return err
	}
	listen := net.JoinHostPort(outsideAddress.String(), "8443")
	data := filepath.Join(b.dir, "control")
	// One person would be told to slow down.
	limits := filepath.Join(b.dir, "control.toml")
	if err := os.WriteFile(limits, []byte("[limits]\nrate = 10000.0\nburst = 10000\n"), 0o600); err != nil {
		return err
	}
	if err := b.run(b.outside, b.o.control, "serve", "--data", data, "--listen", listen, "--config", limits); err != nil {
		return err
	}
	if err := b.connect(ctx, data, listen); err != nil {
		return err
	}
	body := fmt.Sprintf(`{"kind":"Basic","properties":{"virtualMachines":[{"id":%q,"ports":[{"number":22,"protocol":"TCP","allowedSourceAddressPrefix":"*","maxRequestAccessDuration":"PT3H"}]}]}}`, requestVM)
	if _, err := b.call(ctx, "PUT", requestPolicy+"?api-version=2020-01-01", body); err != nil {
		return err
	}
	join, err := b.output(b.outside, b.o.control, "join", "create", "--vm", requestVM, "--data", data)
	if err != nil {
		return err
	}
	at := strings.Index(join, "jgj_")
	if at < 0 {
		return fmt.Errorf("no join token in %q", join)
	}
	join = strings.Fields(join[at:])[0]
	settings := fmt.Sprintf("host_id = %q\nmode = \"enforce\"\nguard = [22]\ninbox_dir = %q\nstate_dir = %q\nsocket = %q\n[control]\nidentity_dir = %q\n",
		requestVM, filepath.Join(b.dir, "inbox"), filepath.Join(b.dir, "state"), filepath.Join(b.dir, "agent.sock"), filepath.Join(b.dir, "fetch"))
	config := filepath.Join(b.dir, "agent.toml")
	if err := os.WriteFile(config, []byte(settings), 0o600); err != nil {
		return err
	}
	if _, err := b.output(b.vm, b.o.jitgate, "enroll", "--control", "https://"+listen, "--token", join, "--config", config); err != nil {
		return err
	}
	if err := errors.Join(b.run(b.vm, b.o.jitgate, "agent", "run", "--config", config), b.run(b.vm, b.o.jitgate, "fetch", "--config", config)); err != nil {
		return err
	}
	return b.await(ctx, "the policy on the machine", func() error {
		text, err := b.output(b.vm, b.o.jitgate, "status", "--json", "--config", config)
		if err == nil && !strings.Contains(text, `"policy"`) {
			err = errors.New("no policy yet")
		}
		return err
	})
}

// connect waits for the control plane and makes a client of it.
func (b *requestBench) connect(ctx context.Context, data, listen string) error {
	var ca, token []byte
	err := b.await(ctx, "the control plane", func() (err error) {
		var unready error
		ca, err = os.ReadFile(filepath.Join(data, "tls", "ca.pem"))
		token, unready = os.ReadFile(filepath.Join(data, "admin.token"))
		return errors.Join(err, unready)
	})
	if err != nil {
		return err
	}
	b.token = strings.TrimSpace(string(token))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	b.client = http.Client{Timeout: startPatience, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(context.Context, string, string) (c net.Conn, err error) {
			err = b.outside.do(func() (err error) { c, err = net.Dial("tcp", listen); return err })
			return c, err
		}}}
	return b.await(ctx, "the control plane's answer", func() error {
		_, err := b.call(ctx, "GET", "/readyz", "")
		return err
	})
}

// await tries for as long as programs may take to start.
func (b *requestBench) await(ctx context.Context, what string, try func() error) error {
	for deadline := time.Now().Add(startPatience); ; {
		err := try()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(b.log())
			return fmt.Errorf("%s: %w\n%s", what, err, log[max(0, len(log)-2000):])
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

func (b *requestBench) log() string { return filepath.Join(b.dir, "programs.log") }

// run starts a program that runs until close.
func (b *requestBench) run(w *world, program string, args ...string) error {
	log, err := os.OpenFile(b.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c := exec.Command(program, args...)
	c.Stdout, c.Stderr = log, log
	if err := w.start(c); err != nil {
		return err
	}
	b.running = append(b.running, c)
	return nil
}

// output runs a program that ends by itself.
func (b *requestBench) output(w *world, program string, args ...string) (string, error) {
	c := exec.Command(program, args...)
	var out, complaints bytes.Buffer
	c.Stdout, c.Stderr = &out, &complaints
	if err := w.start(c); err != nil {
		return "", err
	}
	if err := c.Wait(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", c, err, &complaints)
	}
	return out.String(), nil
}

// call calls the API and returns the body of an answer that is no refusal.
func (b *requestBench) call(ctx context.Context, method, path, body string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+net.JoinHostPort(outsideAddress.String(), "8443")+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+b.token)
	r.Header.Set("Content-Type", "application/json")
	w, err := b.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer w.Body.Close()
	answer, err := io.ReadAll(w.Body)
	if err == nil && w.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, w.Status, answer)
	}
	return answer, err
}

// turn asks for access from an address, and knocks from there. Then it gives
// the access back.
func (b *requestBench) turn(ctx context.Context, from netip.Addr) (answered, opened time.Duration, err error) {
	body := fmt.Sprintf(`{"virtualMachines":[{"id":%q,"ports":[{"number":22,"allowedSourceAddressPrefix":%q,"duration":"PT10M"}]}]}`, requestVM, from)
	if err := pause(ctx, turnPause); err != nil {
		return 0, 0, err
	}
	begin := monotonic()
	if _, err := b.call(ctx, "POST", requestPolicy+"/initiate?api-version=2020-01-01", body); err != nil {
		return 0, 0, err
	}
	answered = monotonic() - begin
	for deadline := begin + startPatience; ; {
		open, err := b.knock(from)
		if err != nil {
			return 0, 0, err
		}
		opened = monotonic() - begin
		if open {
			break
		}
		if begin+opened > deadline {
			return 0, 0, fmt.Errorf("nothing was let through within %s", startPatience)
		}
	}
	return answered, opened, b.giveBack(ctx)
}

// knock sends one SYN, and reports whether it was answered: nobody listens,
// so what is let through is refused.
func (b *requestBench) knock(from netip.Addr) (open bool, err error) {
	var fd int
	err = b.outside.do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return false, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()}); err != nil {
		return false, os.NewSyscallError("bind", err)
	}
	if err := unix.Connect(fd, inside(22)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return errors.Is(err, unix.ECONNREFUSED), nil
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(knockPause.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	return n > 0, os.NewSyscallError("poll", err)
}

// giveBack revokes what is open.
func (b *requestBench) giveBack(ctx context.Context) error {
	text, err := b.call(ctx, "GET", "/api/v1/requests?open=true", "")
	if err != nil {
		return err
	}
	var list struct{ Value []struct{ ID string } }
	if err := json.Unmarshal(text, &list); err != nil {
		return err
	}
	for _, request := range list.Value {
		if _, err := b.call(ctx, "POST", "/api/v1/requests/"+request.ID+"/revoke", `{"reason":"measured"}`); err != nil {
			return err
		}
	}
	return nil
}
