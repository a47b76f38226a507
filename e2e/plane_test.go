//go:build linux

package e2e_test

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
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/security/armsecurity"
)

// jitgateControl is the control plane's program.
var jitgateControl = sync.OnceValues(func() (string, error) {
	if *otherControl != "" {
		return *otherControl, nil
	}
	return buildPackage("jitgate-control", "/cmd/jitgate-control")
})

// control4 is where the control plane of a host's tests listens, outside.
const control4 = "10.77.0.4"

// plane is a control plane: its program, on a data directory of its own.
type plane struct {
	t       *testing.T
	place   *namespace
	program string
	dir     string
	listen  string
	args    []string // more of them, for serve

	cmd   *exec.Cmd // running, or nil
	ended chan error
}

// newPlane makes an empty data directory; nothing runs yet.
func newPlane(t *testing.T, place *namespace, listen string, args ...string) *plane {
	t.Helper()
	program, err := jitgateControl()
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{t: t, place: place, program: program, dir: filepath.Join(t.TempDir(), "data"), listen: listen, args: args}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("the end of the control plane's log:\n%s", lastLines(p.dir+".log"))
		}
	})
	return p
}

// planeBeside is a running control plane that a host and its neighbour reach.
func planeBeside(h *host, args ...string) *plane {
	h.t.Helper()
	h.outside.run(h.t, "ip", "addr", "add", control4+"/24", "dev", "p0")
	p := newPlane(h.t, h.outside, control4+":8443", args...)
	p.start()
	return p
}

func (p *plane) path(elements ...string) string {
	return filepath.Join(append([]string{p.dir}, elements...)...)
}

// start starts the program and waits until it is ready.
func (p *plane) start() {
	p.t.Helper()
	log, err := os.OpenFile(p.dir+".log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(p.program, append([]string{"serve", "--data", p.dir, "--listen", p.listen}, p.args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := p.place.start(cmd); err != nil {
		p.t.Fatal(err)
	}
	p.cmd, p.ended = cmd, make(chan error, 1)
	go func() { p.ended <- cmd.Wait() }()
	until(p.t, 2*patience, "the control plane should be ready", func() bool {
		select {
		case err := <-p.ended:
			p.cmd = nil
			p.t.Fatalf("the control plane ended: %v", err)
		default:
		}
		if _, err := os.Stat(p.path("tls", "ca.pem")); err != nil {
			return false
		}
		answer, err := p.client("").Get(p.url("/readyz"))
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
}

func (p *plane) stop() {
	p.t.Helper()
	if err := p.end(syscall.SIGTERM); err != nil {
		p.t.Fatalf("the control plane ended with %v", err)
	}
}

func (p *plane) kill() { _ = p.end(syscall.SIGKILL) }

func (p *plane) end(signal os.Signal) error {
	if p.cmd == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	var err error
	select {
	case err = <-p.ended:
	case <-time.After(2 * patience):
		err = errors.Join(errors.New("it did not end by itself"), p.cmd.Process.Kill())
		<-p.ended
	}
	p.cmd = nil
	return err
}

func (p *plane) url(path string) string { return "https://" + p.listen + path }

// read reads a file of the data directory that has one line.
func (p *plane) read(elements ...string) string {
	p.t.Helper()
	text, err := os.ReadFile(p.path(elements...))
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// client connects from an address in the control plane's namespace ("": any),
// and trusts tls/ca.pem and nothing else.
func (p *plane) client(source string) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(p.read("tls", "ca.pem")))
	dialer := net.Dialer{Timeout: patience}
	if source != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(source)}
	}
	return &http.Client{Timeout: 2 * patience, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			p.place.do(func() { c, err = dialer.DialContext(ctx, network, address) })
			return c, err
		},
		DisableKeepAlives: true, // a program killed and started again is another
	}}
}

// bearer is a token as the SDK's credentials.
type bearer string

func (b bearer) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: string(b), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// sdk is Azure's own client, told where Azure is and nothing else.
func (p *plane) sdk(token, source string) *armsecurity.JitNetworkAccessPoliciesClient {
	p.t.Helper()
	c, err := armsecurity.NewJitNetworkAccessPoliciesClient(subscription, bearer(token), &arm.ClientOptions{
		DisableRPRegistration: true,
		ClientOptions: azcore.ClientOptions{
			Transport: p.client(source),
			Cloud: cloud.Configuration{Services: map[cloud.ServiceName]cloud.ServiceConfiguration{
				cloud.ResourceManager: {Endpoint: p.url(""), Audience: "https://management.azure.com"}}},
			Retry: policy.RetryOptions{MaxRetries: 3, RetryDelay: 200 * time.Millisecond},
		}})
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// call calls the API as a holder of token and returns what it answers.
func (p *plane) call(token, method, path string, body any) (status int, answer object) {
	p.t.Helper()
	var text io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			p.t.Fatal(err)
		}
		text = bytes.NewReader(encoded)
	}
	r, err := http.NewRequest(method, p.url(path), text)
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	w, err := p.client("").Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer w.Body.Close()
	content, err := io.ReadAll(w.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if len(content) > 0 && strings.HasPrefix(w.Header.Get("Content-Type"), "application/json") {
		if err := json.Unmarshal(content, &answer); err != nil {
			p.t.Fatalf("%s %s: %v in %s", method, path, err, content)
		}
	}
	return w.StatusCode, answer
}

// want calls the API and requires a status.
func (p *plane) want(status int, token, method, path string, body any) object {
	p.t.Helper()
	got, answer := p.call(token, method, path, body)
	if got != status {
		p.t.Fatalf("%s %s answers %d, not %d: %v", method, path, got, status, answer)
	}
	return answer
}

// command runs a command of the control plane's program and returns what it
// prints.
func (p *plane) command(args ...string) string {
	p.t.Helper()
	cmd := exec.Command(p.program, append(args, "--data", p.dir)...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := p.place.start(cmd); err != nil {
		p.t.Fatal(err)
	}
	defer time.AfterFunc(2*patience, func() { cmd.Process.Kill() }).Stop()
	if err := cmd.Wait(); err != nil {
		p.t.Fatalf("jitgate-control %s: %v: %s", strings.Join(args, " "), err, &complaints)
	}
	return strings.TrimSpace(out.String())
}

// The machine the tests of the control plane ask for, and its policy.
const (
	subscription = "20ff7fc3-e762-44dd-bd96-b71116dcdc23"
	group        = "myRg1"
	location     = "westeurope"
	policyName   = "default"
	vmID         = "/subscriptions/" + subscription + "/resourceGroups/" + group + "/providers/Microsoft.Compute/virtualMachines/web1"
	policyPath   = "/subscriptions/" + subscription + "/resourceGroups/" + group + "/providers/Microsoft.Security/locations/" + location + "/jitNetworkAccessPolicies/" + policyName
)

// guards is a policy's entry for a machine.
func guards(vm string, rules ...*armsecurity.JitNetworkAccessPortRule) *armsecurity.JitNetworkAccessPolicyVirtualMachine {
	return &armsecurity.JitNetworkAccessPolicyVirtualMachine{ID: &vm, Ports: rules}
}

func rule(number int32, source, longest string) *armsecurity.JitNetworkAccessPortRule {
	protocol := armsecurity.ProtocolTCP
	return &armsecurity.JitNetworkAccessPortRule{Number: &number, Protocol: &protocol, AllowedSourceAddressPrefix: &source, MaxRequestAccessDuration: &longest}
}

func policyOf(vms ...*armsecurity.JitNetworkAccessPolicyVirtualMachine) armsecurity.JitNetworkAccessPolicy {
	kind := "Basic"
	return armsecurity.JitNetworkAccessPolicy{Kind: &kind, Properties: &armsecurity.JitNetworkAccessPolicyProperties{VirtualMachines: vms}}
}

// asks is a request for one port of one machine. An empty source is none.
func asks(vm string, number int32, source string, end time.Time) armsecurity.JitNetworkAccessPolicyInitiateRequest {
	port := &armsecurity.JitNetworkAccessPolicyInitiatePort{Number: &number, EndTimeUTC: &end}
	if source != "" {
		port.AllowedSourceAddressPrefix = &source
	}
	why := "e2e"
	return armsecurity.JitNetworkAccessPolicyInitiateRequest{Justification: &why, VirtualMachines: []*armsecurity.JitNetworkAccessPolicyInitiateVirtualMachine{
		{ID: &vm, Ports: []*armsecurity.JitNetworkAccessPolicyInitiatePort{port}}}}
}

// portState is where the newest request for a port stands, as a GET shows it.
func portState(t *testing.T, c *armsecurity.JitNetworkAccessPoliciesClient, number int32) string {
	t.Helper()
	answer, err := c.Get(t.Context(), group, location, policyName, nil)
	if err != nil {
		t.Fatal(err)
	}
	state, newest := "", time.Time{}
	for _, r := range answer.Properties.Requests {
		for _, vm := range r.VirtualMachines {
			for _, p := range vm.Ports {
				if *p.Number == number && !r.StartTimeUTC.Before(newest) {
					state, newest = fmt.Sprintf("%s %s", *p.Status, *p.StatusReason), *r.StartTimeUTC
				}
			}
		}
	}
	return state
}
