package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/signer"
	"github.com/jitgate/jitgate/control/store"
	"github.com/jitgate/jitgate/policy"
)

// enrolTogether is how many hosts enrol at once, tokenUses how many with one
// token.
const (
	enrolTogether = 16
	tokenUses     = 5000
)

// dsn is the server's database.
func (s *server) dsn() string {
	if s.database != "" {
		return s.database
	}
	return filepath.Join(s.data, "control.db")
}

// enrol enrols every host with a key of its own, while the server is down. It
// is the server's own code on the server's own database, and what it gives is
// what a host gets that enrols over the network; what is left out is the
// network, where 10 enrolments a second are let through.
func (f *fleet) enrol(ctx context.Context) error {
	kept, err := store.Open(ctx, f.server.dsn(), f.quiet)
	if err != nil {
		return err
	}
	defer kept.Close()
	engine, err := f.engine(kept)
	if err != nil {
		return err
	}
	owner := control.Caller{ID: control.LocalPrefix + "root", Name: "root", Rights: []control.Right{{Role: control.BuiltinRoles()[0], Scope: control.Everywhere}}}
	hosts := f.hosts
	for len(hosts) > 0 {
		some := hosts[:min(len(hosts), tokenUses)]
		hosts = hosts[len(some):]
		token, _, err := engine.CreateJoin(ctx, owner, control.Scope("/subscriptions/"+subscription), len(some), time.Hour)
		if err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(enrolTogether)
		for _, h := range some {
			g.Go(func() error { return h.enrol(ctx, engine, token) })
		}
		if err := g.Wait(); err != nil {
			return fmt.Errorf("enrolment: %w", err)
		}
	}
	return kept.Close()
}

// engine is one on the server's database, with the authority that signs
// agents' certificates.
func (f *fleet) engine(kept control.Store) (*control.Engine, error) {
	read := func(name string) ([]byte, error) {
		return os.ReadFile(filepath.Join(f.server.data, filepath.FromSlash(name)))
	}
	signed, err := read("trust.json")
	if err != nil {
		return nil, err
	}
	envelope, err := policy.ParseEnvelope(signed)
	if err != nil {
		return nil, err
	}
	f.pin = envelope.Digest()
	trust, err := policy.OpenPinnedTrust(signed, f.pin)
	if err != nil {
		return nil, err
	}
	c := control.Config{Store: kept, Log: hclog.NewNullLogger(), Realm: control.Realm{Trust: trust.Document(), Signed: signed, Pin: f.pin}}
	if c.CAKey, err = signer.File(filepath.Join(f.server.data, "agents", "ca.key")); err != nil {
		return nil, err
	}
	if c.CA, err = readCertificate(read("agents/ca.pem")); err != nil {
		return nil, err
	}
	ca, err := readCertificate(read("tls/ca.pem"))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(ca.Raw)
	c.ServerCA = sum[:]
	return control.New(c), nil
}

func readCertificate(text []byte, err error) (*x509.Certificate, error) {
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("an authority's file holds no certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// enrol makes the host's key and gets its certificate, and keeps both as a
// fetcher finds them.
func (h *host) enrol(ctx context.Context, engine *control.Engine, token string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "jitgate"}}, key)
	if err != nil {
		return err
	}
	enrolled, err := engine.Enrol(ctx, control.EnrolInput{Token: token, HostID: h.id, CSR: csr, Install: fmt.Sprintf("%032x", h.number), Version: "fleet", Address: h.from.String()})
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := pem.Encode(&text, &pem.Block{Type: "PRIVATE KEY", Bytes: der}); err != nil {
		return err
	}
	text.Write(enrolled.Chain)
	return h.identity.Replace("identity.pem", text.Bytes(), 0o600)
}
