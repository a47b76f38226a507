package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A server certificate is kept until a third of its time is left, and made
// anew for other names, another key or another authority.
func TestServerCertificate(t *testing.T) {
	d := directory(t.TempDir())
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	ca, err := d.authority("tls", "test", now)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"localhost", "127.0.0.1", "::1", "jit.example.com"}
	first, renewed, err := d.serverCertificate(ca, names, now)
	if err != nil || !renewed {
		t.Fatalf("%v %v", renewed, err)
	}
	for _, name := range names {
		if _, err := first.Leaf.Verify(x509.VerifyOptions{Roots: ca.pool(), DNSName: name, CurrentTime: now}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := first.Leaf.Verify(x509.VerifyOptions{Roots: ca.pool(), DNSName: "other.example.com", CurrentTime: now}); err == nil {
		t.Error("good for another name")
	}
	if len(first.Certificate) != 2 || !bytes.Equal(first.Certificate[1], ca.cert.Raw) {
		t.Error("the authority does not go along")
	}
	if _, err := tls.LoadX509KeyPair(d.path("tls/server.pem"), d.path("tls/server.key")); err != nil {
		t.Error(err)
	}
	same := func(c tls.Certificate) bool { return bytes.Equal(c.Certificate[0], first.Certificate[0]) }
	due := now.Add(-backdated).Add((serverValid + backdated) * 2 / 3)
	for _, c := range []struct {
		name  string
		names []string
		at    time.Time
		kept  bool
	}{
		{"at once", names, now, true},
		{"fewer names", names[:2], now, true},
		{"just before it is due", names, due.Add(-time.Second), true},
		{"due", names, due, false},
		{"over", names, now.Add(serverValid + time.Second), false},
		{"a clock set back", names, now.Add(-2 * backdated), false},
		{"another name", append(slices.Clone(names), "new.example.com"), now, false},
		{"another address", append(slices.Clone(names), "192.0.2.1"), now, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, err := d.read("tls/server.pem")
			if err != nil {
				t.Fatal(err)
			}
			got, renewed, err := d.serverCertificate(ca, c.names, c.at)
			if err != nil || renewed == c.kept || same(got) != c.kept {
				t.Errorf("renewed %v, the same %v: %v", renewed, same(got), err)
			}
			if !samePublic(got.Leaf.PublicKey, first.Leaf.PublicKey) {
				t.Error("the key changed")
			}
			if err := os.WriteFile(d.path("tls/server.pem"), before, 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
	// What a crash, or a hand, has spoilt is made anew.
	for _, text := range []string{"", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if err := os.WriteFile(d.path("tls/server.pem"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, renewed, err := d.serverCertificate(ca, names, now); err != nil || !renewed {
			t.Errorf("%q: %v %v", text, renewed, err)
		}
	}
	if err := os.Remove(d.path("tls/server.key")); err != nil {
		t.Fatal(err)
	}
	got, renewed, err := d.serverCertificate(ca, names, now)
	if err != nil || !renewed || samePublic(got.Leaf.PublicKey, first.Leaf.PublicKey) {
		t.Errorf("without its key: %v %v", renewed, err)
	}
	other, err := directory(t.TempDir()).authority("tls", "other", now)
	if err != nil {
		t.Fatal(err)
	}
	if _, renewed, err := d.serverCertificate(other, names, now); err != nil || !renewed {
		t.Errorf("of another authority: %v %v", renewed, err)
	}
	if _, err := d.authority("tls", "test", now.Add(authorityValid+time.Hour)); err == nil {
		t.Error("an authority that is over was taken")
	}
	leaf, err := issueServer(ca, ca.key, names, now) // for the right key
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.path("tls/ca.pem"), authority{cert: leaf}.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.authority("tls", "test", now); err == nil || !strings.Contains(err.Error(), "not the certificate of an authority") {
		t.Errorf("a server's certificate was taken for an authority's: %v", err)
	}
}

func TestServerNames(t *testing.T) {
	for _, c := range []struct {
		listen, public string
		want           []string
		never          []string
	}{
		{":8443", "", []string{"localhost", "127.0.0.1", "::1"}, []string{"", "0.0.0.0"}},
		{"0.0.0.0:8443", "JIT.example.com", []string{"jit.example.com"}, []string{"0.0.0.0"}},
		{"[2001:db8::1]:1", "", []string{"2001:db8::1"}, nil},
		{"10.0.0.5:1", "192.0.2.1", []string{"10.0.0.5", "192.0.2.1"}, nil},
		{"127.0.0.1:1", "localhost", []string{"127.0.0.1"}, nil},
	} {
		got := serverNames(c.listen, c.public)
		for _, name := range c.want {
			if !slices.Contains(got, name) {
				t.Errorf("%+v: %v without %q", c, got, name)
			}
		}
		for _, name := range c.never {
			if slices.Contains(got, name) {
				t.Errorf("%+v: %v with %q", c, got, name)
			}
		}
		if sorted := slices.Sorted(slices.Values(got)); len(slices.Compact(sorted)) != len(got) {
			t.Errorf("%+v: twice in %v", c, got)
		}
	}
}

// The running server looks at its certificate now and then; what cannot be
// renewed stays.
func TestRefresh(t *testing.T) {
	d := directory(filepath.Join(t.TempDir(), "data"))
	now := time.Now()
	ca, err := d.authority("tls", "test", now)
	if err != nil {
		t.Fatal(err)
	}
	var c certificate
	c.load = func() (tls.Certificate, bool, error) { return d.serverCertificate(ca, []string{"localhost"}, now) }
	if _, err := c.refresh(); err != nil {
		t.Fatal(err)
	}
	first := c.now.Load()
	if changed, err := c.refresh(); err != nil || changed {
		t.Errorf("%v %v", changed, err)
	}
	now = now.Add(serverValid)
	if changed, err := c.refresh(); err != nil || !changed || c.now.Load().Leaf.SerialNumber.Cmp(first.Leaf.SerialNumber) == 0 {
		t.Errorf("%v %v", changed, err)
	}
	second := c.now.Load()
	if err := os.WriteFile(d.path("tls/server.key"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.refresh(); err == nil || c.now.Load() != second {
		t.Errorf("%v", err)
	}
}
