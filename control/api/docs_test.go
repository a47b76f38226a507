package api

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
)

// agentsCA makes the CA that an engine needs before hosts can enrol.
func agentsCA(t testing.TB) (*x509.Certificate, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "agents"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return ca, private
}

// The examples of docs/api.md are run as they stand there, by sh, curl and jq.
// What goes over the wire is held against openapi.json, and together they make
// every call that there is, but for those with a test of their own.
func TestDocs(t *testing.T) {
	for _, command := range []string{"sh", "curl", "jq"} {
		if _, err := exec.LookPath(command); err != nil {
			t.Fatalf("%s is not there: run make setup", command)
		}
	}
	page, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	var script bytes.Buffer
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllSubmatch(page, -1) {
		script.Write(block[1])
	}
	s := newServer(t, options{engine: func(c *control.Config) { c.CA, c.CAKey = agentsCA(t) }})
	// A host that has enrolled, as no script can.
	vm, err := control.ParseVMID("/subscriptions/20ff7fc3-e762-44dd-bd96-b71116dcdc23/resourceGroups/web/providers/Microsoft.Compute/virtualMachines/web1")
	if err != nil {
		t.Fatal(err)
	}
	err = s.store.Update(t.Context(), func(tx control.Tx) error {
		return tx.PutVM(control.VM{ID: vm, Agent: &control.Agent{Key: "00", Enrolled: s.clock.Now(), Expires: s.clock.Now().Add(time.Hour), LastSeen: s.clock.Now()}})
	})
	if err != nil {
		t.Fatal(err)
	}
	to, err := url.Parse(s.http.URL)
	if err != nil {
		t.Fatal(err)
	}
	between := httptest.NewTLSServer(&httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport:     s.checks,
		FlushInterval: -1,
	})
	t.Cleanup(between.Close)
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: between.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-eux")
	cmd.Dir, cmd.Stdin = dir, &script
	cmd.Env = append(os.Environ(), "JIT="+between.URL, "CA="+ca, "TOKEN="+s.owner)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, s.log)
	}
	if csv, err := os.ReadFile(filepath.Join(dir, "activity.csv")); err != nil || bytes.Count(csv, []byte("\n")) < 5 {
		t.Errorf("activity.csv: %s, %v", csv, err)
	}
	seen := s.checks.all()
	for _, r := range s.api.table {
		if !seen[r.id] && r.id != "AcceptPolicy" { // TestPendingPolicies
			t.Errorf("no example shows %s (%s %s) at work", r.id, r.method, r.pattern)
		}
	}
}
