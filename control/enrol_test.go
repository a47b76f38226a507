package control_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store/storetest"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// gate is an engine where hosts enrol and report, with a clock that moves by
// hand.
type gate struct {
	*control.Engine
	t     *testing.T
	now   time.Time
	owner control.Caller
}

var midday = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func newGate(t *testing.T) *gate {
	d := &gate{t: t, now: midday, owner: person("owner", "Owner", control.Everywhere)}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := policy.NewKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	_, second, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	k2, err := policy.NewKey(second.Public())
	if err != nil {
		t.Fatal(err)
	}
	trust := policy.Trust{Header: policy.Header{Realm: "acme", Version: 1, Issued: midday, Expires: midday.AddDate(1, 0, 0)}, Keys: []policy.Key{k, k2},
		Roles: []policy.RoleKeys{{Name: policy.RoleRoot, Keys: []policy.KeyID{k.ID}, Threshold: 1}, {Name: policy.RolePolicy, Keys: []policy.KeyID{k.ID}, Threshold: 1}, {Name: policy.RoleGrant, Keys: []policy.KeyID{k2.ID}, Threshold: 1, Epoch: 1}}}
	e := policy.Envelope{Type: policy.TypeTrust, Payload: trust.Encode()}
	if err := e.Sign(key); err != nil {
		t.Fatal(err)
	}
	ca, caKey := newAgentCA(t)
	d.Engine = control.New(control.Config{Store: storetest.SQLite(t), Log: hclog.NewNullLogger(), CA: ca, CAKey: caKey, Now: func() time.Time { return d.now },
		Realm: control.Realm{Trust: trust, Signed: e.Encode(), Pin: e.Digest()}})
	return d
}

func person(name, role string, s control.Scope) control.Caller {
	c := control.Caller{ID: "local:" + name, Name: name}
	for _, r := range control.BuiltinRoles() {
		if r.Name == role {
			c.Rights = []control.Right{{Role: r, Scope: s}}
		}
	}
	return c
}

func newAgentCA(t *testing.T) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "agents"}, NotBefore: midday.AddDate(-1, 0, 0), NotAfter: midday.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func freshKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func csrOf(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	// It names another machine: nobody looks.
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "web9"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func hostNamed(name string) control.VMID {
	return control.VMID{Subscription: "10000000-0000-0000-0000-000000000001", Group: "rg", Kind: "Microsoft.Compute/virtualMachines", Name: name}
}

func (d *gate) join(s control.Scope, uses int) (string, control.Join) {
	d.t.Helper()
	token, j, err := d.CreateJoin(d.t.Context(), d.owner, s, uses, time.Hour)
	if err != nil {
		d.t.Fatal(err)
	}
	return token, j
}

func (d *gate) enrol(token, host string, key crypto.Signer) (*x509.Certificate, error) {
	d.t.Helper()
	e, err := d.Enrol(d.t.Context(), control.EnrolInput{Token: token, HostID: host, CSR: csrOf(d.t, key), Install: "i1", Version: "v1", Address: "192.0.2.1"})
	if err != nil {
		return nil, err
	}
	return leafOf(d.t, e.Chain), nil
}

func leafOf(t *testing.T, chain []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(chain)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (d *gate) mustEnrol(vm control.VMID, key crypto.Signer) *x509.Certificate {
	d.t.Helper()
	token, _ := d.join(vm.Scope(), 1)
	cert, err := d.enrol(token, vm.String(), key)
	if err != nil {
		d.t.Fatal(err)
	}
	return cert
}

func (d *gate) recognise(cert *x509.Certificate) (control.Recognised, error) {
	return d.Recognise(d.t.Context(), cert)
}

func (d *gate) wantRefused(err error, code string) {
	d.t.Helper()
	if refusal := control.AsError(err); refusal == nil || refusal.Code != code {
		d.t.Errorf("%v, want %s", err, code)
	}
}

func (d *gate) activity(event string) (list []control.Activity) {
	d.t.Helper()
	err := d.Store.View(d.t.Context(), func(tx control.Tx) (err error) {
		list, err = tx.Activity(control.ActivityFilter{Event: event})
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return list
}

func (d *gate) vm(id control.VMID) (vm control.VM) {
	d.t.Helper()
	err := d.Store.View(d.t.Context(), func(tx control.Tx) (err error) {
		vm, err = tx.VM(id)
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return vm
}

func TestEnrol(t *testing.T) {
	d := newGate(t)
	vm := hostNamed("Web1")
	key := freshKey(t)
	token, j := d.join(vm.Scope(), 1)
	if parsed, err := uplink.ParseJoin(token); err != nil || parsed.Pin != d.Realm.Pin || strings.Contains(j.Hash, token) {
		t.Fatalf("%+v, %v", parsed, err)
	}
	cert, err := d.enrol(token, vm.String(), key)
	if err != nil {
		t.Fatal(err)
	}
	if cert.Subject.CommonName != "Web1" || cert.IsCA || cert.NotAfter.Sub(midday) != 30*24*time.Hour || len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("%+v", cert)
	}
	who, err := d.recognise(cert)
	if err != nil || who.VM != vm || who.Expired || who.Due(d.now) || !who.Due(d.now.AddDate(0, 0, 21)) {
		t.Errorf("%+v, %v", who, err)
	}
	if got := d.activity("host.enrolled"); len(got) != 1 || got[0].Status != "Succeeded" || got[0].VM != vm.String() || got[0].Address != "192.0.2.1" || !strings.Contains(got[0].Actor, j.ID) {
		t.Errorf("%+v", got)
	}

	// The answer got lost: the same key may ask again, and nothing is recorded
	// twice. Another key may not.
	again, err := d.enrol(token, vm.String(), key)
	if err != nil || len(d.activity("host.enrolled")) != 1 {
		t.Fatal(err)
	}
	if _, err := d.recognise(again); err != nil {
		t.Error(err)
	}
	_, err = d.enrol(token, vm.String(), freshKey(t))
	d.wantRefused(err, "InvalidJoinToken")
	if _, err := d.recognise(cert); err != nil {
		t.Error(err)
	}
	// Not for ever, and not once the token was revoked.
	d.now = d.now.Add(time.Hour)
	_, err = d.enrol(token, vm.String(), key)
	d.wantRefused(err, "InvalidJoinToken")
	d.now = midday
	if err := d.RevokeJoin(t.Context(), d.owner, j.ID); err != nil {
		t.Fatal(err)
	}
	_, err = d.enrol(token, vm.String(), key)
	d.wantRefused(err, "InvalidJoinToken")
}

// A token that cannot be used is refused in the same words whatever is wrong;
// the activity log knows what.
func TestEnrolRefusesToken(t *testing.T) {
	d := newGate(t)
	vm := hostNamed("web1")
	expired, _ := d.join(vm.Scope(), 1)
	d.now = d.now.Add(time.Hour)
	used, _ := d.join(vm.Scope(), 1)
	if _, err := d.enrol(used, vm.String(), freshKey(t)); err != nil {
		t.Fatal(err)
	}
	revoked, j := d.join(vm.Scope(), 1)
	if err := d.RevokeJoin(t.Context(), d.owner, j.ID); err != nil {
		t.Fatal(err)
	}
	elsewhere, _ := d.join(control.GroupScope(vm.Subscription, "other"), 1)
	said := map[string]bool{}
	for why, token := range map[string]string{"expired": expired, "used": used, "revoked": revoked, "for /subscriptions": elsewhere, "": uplink.NewJoin(policy.Digest{1}, policy.Digest{}).String()} {
		before := len(d.activity("host.enrolled"))
		_, err := d.enrol(token, vm.String(), freshKey(t))
		d.wantRefused(err, "InvalidJoinToken")
		said[err.Error()] = true
		list := d.activity("host.enrolled")
		if why == "" {
			if len(list) != before {
				t.Errorf("a token nobody made left %+v", list[before:])
			}
			continue
		}
		if len(list) != before+1 || list[before].Status != "Failed" || !strings.Contains(list[before].Reason, why) {
			t.Errorf("%s: %+v", why, list[before:])
		}
	}
	if len(said) != 1 {
		t.Errorf("a stranger can tell tokens apart: %v", said)
	}
	if n, err := d.ListJoins(t.Context(), d.owner); err != nil || len(n) != 1 {
		t.Errorf("%+v, %v", n, err)
	}
}

func TestEnrolRefusesInput(t *testing.T) {
	d := newGate(t)
	vm := hostNamed("web1")
	token, _ := d.join(vm.Scope(), 1)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	forged := csrOf(t, freshKey(t))
	forged[len(forged)-1] ^= 1
	for what, in := range map[string]control.EnrolInput{
		"InvalidHostID":             {Token: token, HostID: "machine-id-7", CSR: csrOf(t, freshKey(t))},
		"InvalidJoinToken":          {Token: "jgj_x", HostID: vm.String(), CSR: csrOf(t, freshKey(t))},
		"InvalidCertificateRequest": {Token: token, HostID: vm.String(), CSR: []byte("x")},
	} {
		_, err := d.Enrol(t.Context(), in)
		d.wantRefused(err, what)
	}
	for _, bad := range [][]byte{csrOf(t, p384), csrOf(t, weak), forged, nil} {
		_, err := d.Enrol(t.Context(), control.EnrolInput{Token: token, HostID: vm.String(), CSR: bad})
		d.wantRefused(err, "InvalidCertificateRequest")
	}
	// None of it used the token up.
	_, key, _ := ed25519.GenerateKey(nil)
	if _, err := d.enrol(token, vm.String(), key); err != nil {
		t.Error(err)
	}
}

// Whoever enrols anew takes the place of the one before, and it is told.
func TestEnrolAnew(t *testing.T) {
	d := newGate(t)
	vm := hostNamed("web1")
	token, _ := d.join(control.SubscriptionScope(vm.Subscription), 2)
	first, err := d.enrol(token, vm.String(), freshKey(t))
	if err != nil {
		t.Fatal(err)
	}
	second, err := d.enrol(token, strings.ToUpper(vm.Group)+"x", freshKey(t))
	if second != nil || err == nil {
		t.Error("no machine enrolled")
	}
	if second, err = d.enrol(token, vm.String(), freshKey(t)); err != nil {
		t.Fatal(err)
	}
	_, err = d.recognise(first)
	d.wantRefused(err, "InvalidCertificate")
	if _, err := d.recognise(second); err != nil {
		t.Error(err)
	}
	if got := d.activity("host.enrolled"); len(got) != 2 || !strings.Contains(got[1].Reason, "in place of the agent that enrolled at") {
		t.Errorf("%+v", got)
	}
}

func TestRevokeAgent(t *testing.T) {
	d := newGate(t)
	vm := hostNamed("web1")
	key := freshKey(t)
	token, _ := d.join(vm.Scope(), 1)
	cert, err := d.enrol(token, vm.String(), key)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.RevokeAgent(t.Context(), d.owner, vm, "stolen"); err != nil {
			t.Fatal(err)
		}
	}
	if got := d.activity("host.revoked"); len(got) != 1 || got[0].Reason != "stolen" || got[0].Actor != "owner" {
		t.Errorf("%+v", got)
	}
	who, err := d.recognise(cert)
	d.wantRefused(err, "InvalidCertificate")
	_, err = d.Report(t.Context(), vm, uplink.Up{})
	d.wantRefused(err, "InvalidCertificate")
	who.VM, who.Key = vm, d.vm(vm).Agent.Key
	_, err = d.Renew(t.Context(), who, csrOf(t, freshKey(t)))
	d.wantRefused(err, "InvalidCertificate")
	// The revoked key does not come back, by its own token or by a new one.
	_, err = d.enrol(token, vm.String(), key)
	d.wantRefused(err, "InvalidJoinToken")
	fresh, _ := d.join(vm.Scope(), 1)
	_, err = d.enrol(fresh, vm.String(), key)
	d.wantRefused(err, "InvalidJoinToken")
	if cert, err = d.enrol(fresh, vm.String(), freshKey(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.recognise(cert); err != nil {
		t.Error(err)
	}
	d.wantRefused(d.RevokeAgent(t.Context(), d.owner, hostNamed("web2"), ""), "AgentNotFound")
}

func TestEnrolRights(t *testing.T) {
	d := newGate(t)
	vm := hostNamed("web1")
	reader := person("rita", "Reader", control.Everywhere)
	_, _, err := d.CreateJoin(t.Context(), reader, vm.Scope(), 1, 0)
	d.wantRefused(err, "AuthorizationFailed")
	d.wantRefused(d.RevokeAgent(t.Context(), reader, vm, ""), "AuthorizationFailed")
	_, j := d.join(vm.Scope(), 1)
	d.wantRefused(d.RevokeJoin(t.Context(), reader, j.ID), "JoinTokenNotFound")
	if list, err := d.ListJoins(t.Context(), reader); err != nil || len(list) > 0 {
		t.Errorf("%+v, %v", list, err)
	}
	admin := person("sam", "SecurityAdmin", control.GroupScope(vm.Subscription, vm.Group))
	if _, _, err := d.CreateJoin(t.Context(), admin, vm.Scope(), 0, 0); err != nil {
		t.Error(err)
	}
	_, _, err = d.CreateJoin(t.Context(), admin, control.SubscriptionScope(vm.Subscription), 0, 0)
	d.wantRefused(err, "AuthorizationFailed")
	for _, bad := range []struct {
		uses  int
		valid time.Duration
		code  string
	}{{-1, 0, "InvalidUses"}, {10_001, 0, "InvalidUses"}, {1, -time.Second, "InvalidDuration"}, {1, 31 * 24 * time.Hour, "InvalidDuration"}} {
		_, _, err := d.CreateJoin(t.Context(), d.owner, vm.Scope(), bad.uses, bad.valid)
		d.wantRefused(err, bad.code)
	}
	d.CA = nil
	_, _, err = d.CreateJoin(t.Context(), d.owner, vm.Scope(), 1, 0)
	d.wantRefused(err, "EnrolmentNotConfigured")
}

// The former key is good until the new one has been used, and no longer.
func TestRenew(t *testing.T) {
	d := newGate(t)
	vm := hostNamed("web1")
	key := freshKey(t)
	first := d.mustEnrol(vm, key)
	who, err := d.recognise(first)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Renew(t.Context(), who, csrOf(t, key))
	d.wantRefused(err, "KeyNotNew")
	_, err = d.Renew(t.Context(), who, []byte("x"))
	d.wantRefused(err, "InvalidCertificateRequest")

	lost, err := d.Renew(t.Context(), who, csrOf(t, freshKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := d.Renew(t.Context(), who, csrOf(t, freshKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.recognise(leafOf(t, lost))
	d.wantRefused(err, "InvalidCertificate")
	for range 2 { // both are good until the second is used
		if _, err := d.recognise(first); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if _, err := d.recognise(leafOf(t, chain)); err != nil {
			t.Error(err)
		}
	}
	_, err = d.recognise(first)
	d.wantRefused(err, "InvalidCertificate")
	if got := d.activity("host.renewed"); len(got) != 1 {
		t.Errorf("%+v", got)
	}
}

// A machine that was off for weeks may renew and do nothing else; one that was
// off for months enrols again.
func TestGrace(t *testing.T) {
	d := newGate(t)
	cert := d.mustEnrol(hostNamed("web1"), freshKey(t))
	d.now = midday.AddDate(0, 0, 31)
	who, err := d.recognise(cert)
	if err != nil || !who.Expired || !who.Due(d.now) {
		t.Fatalf("%+v, %v", who, err)
	}
	chain, err := d.Renew(t.Context(), who, csrOf(t, freshKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	if who, err := d.recognise(leafOf(t, chain)); err != nil || who.Expired {
		t.Errorf("%+v, %v", who, err)
	}
	d.now = midday.AddDate(0, 0, 31+30+91)
	_, err = d.recognise(leafOf(t, chain))
	d.wantRefused(err, "InvalidCertificate")
}

// Only certificates of our own CA, as it makes them, are anybody's.
func TestRecogniseRefuses(t *testing.T) {
	d := newGate(t)
	vm := hostNamed("web1")
	key := freshKey(t)
	cert := d.mustEnrol(vm, key)
	otherCA, otherKey := newAgentCA(t)
	forge := func(parent *x509.Certificate, signer crypto.Signer, change func(*x509.Certificate)) *x509.Certificate {
		c := *cert
		change(&c)
		der, err := x509.CreateCertificate(rand.Reader, &c, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		out, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for what, c := range map[string]*x509.Certificate{
		"another CA of the same name": forge(otherCA, otherKey, func(*x509.Certificate) {}),
		"no machine":                  forge(d.CA, d.CAKey, func(c *x509.Certificate) { c.URIs = nil }),
		"not yet":                     forge(d.CA, d.CAKey, func(c *x509.Certificate) { c.NotBefore = midday.Add(time.Hour) }),
		"another's machine": forge(d.CA, d.CAKey, func(c *x509.Certificate) {
			u := *c.URIs[0]
			u.Path = hostNamed("web2").String()
			c.URIs = []*url.URL{&u}
		}),
		"the CA itself": d.CA,
	} {
		_, err := d.recognise(c)
		if refusal := control.AsError(err); refusal == nil || refusal.Code != "InvalidCertificate" {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := d.recognise(cert); err != nil {
		t.Error(err)
	}
}
