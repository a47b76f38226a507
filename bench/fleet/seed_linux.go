package main

import (
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

// enrol enrols every host with a key of its own, while the server is down. It
// is the server's own code on the server's own database, and what it gives is
// what a host gets that enrols over the network; what is left out is the
// network, where 10 enrolments a second are let through.
func (f *fleet) enrol(ctx context.Context) error {
	kept, err := store.Open(ctx, f.dsn(), f.quiet)
	if err != nil {
		return err
	}
	defer kept.Close()
	engine, err := f.engine(kept)
	if err != nil {
		return err
	}
	owner := control.Caller{ID: control.LocalPrefix + "root", Name: "root", Rights: []control.Right{{Role: control.BuiltinRoles()[0], Scope: control.Everywhere}}}
	f.identities = make([][]byte, f.o.agents)
	for first := 0; first < f.o.agents; first += tokenUses {
		next := min(first+tokenUses, f.o.agents)
		token, _, err := engine.CreateJoin(ctx, owner, control.Scope("/subscriptions/"+subscription), next-first, time.Hour)
		if err != nil {
			return err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(enrolTogether)
		for n := first; n < next; n++ {
			g.Go(func() (err error) {
				f.identities[n], err = enrol(ctx, engine, token, n)
				return err
			})
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
		return os.ReadFile(filepath.Join(f.replicas[0].data, filepath.FromSlash(name)))
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
	if c.CAKey, err = signer.File(filepath.Join(f.replicas[0].data, "agents", "ca.key")); err != nil {
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

// enrol makes a machine's key and gets its certificate, and returns both as a
// fetcher keeps them.
func enrol(ctx context.Context, engine *control.Engine, token string, number int) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "jitgate"}}, key)
	if err != nil {
		return nil, err
	}
	enrolled, err := engine.Enrol(ctx, control.EnrolInput{Token: token, HostID: machine(number), CSR: csr, Install: installOf(number), Version: "fleet", Address: homeOf(number).String()})
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), enrolled.Chain...), nil
}
