package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jitgate/jitgate/control/signer"
)

const (
	// authorityValid is how long a certificate authority made here is valid.
	// Agents and clients keep it, so it outlives what it is kept on.
	authorityValid = 20 * 365 * 24 * time.Hour
	// serverValid is how long a server certificate made here is valid; it is
	// renewed when a third is left.
	serverValid = 90 * 24 * time.Hour
	// backdated forgives clocks that are behind.
	backdated = time.Hour
)

// authority is a certificate authority of our own: one for the server's
// certificate, another for those of agents.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// pem is the authority's certificate.
func (a authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// fingerprint is what agents know the authority by.
func (a authority) fingerprint() []byte {
	sum := sha256.Sum256(a.cert.Raw)
	return sum[:]
}

// authority reads DIR/sub/ca.{key,pem}, or makes them. The key is first: an
// authority is the key, and a certificate that is missing is made for it.
func (d directory) authority(sub, name string, now time.Time) (authority, error) {
	key, err := d.keyOrNew(sub+"/ca.key", newECDSA)
	if err != nil {
		return authority{}, err
	}
	file := sub + "/ca.pem"
	there, err := d.has(file)
	if err != nil {
		return authority{}, err
	}
	if !there {
		host, _ := os.Hostname()
		cert, err := selfSign(key, pkix.Name{Organization: []string{"jitgate"}, CommonName: name + " " + host}, now)
		if err != nil {
			return authority{}, err
		}
		if err := d.create(file, authority{cert: cert}.pem(), 0o644); err != nil {
			return authority{}, err
		}
	}
	text, err := d.read(file)
	if err != nil {
		return authority{}, err
	}
	cert, err := parseCertificate(text)
	switch {
	case err != nil:
		return authority{}, fmt.Errorf("%s: %w", d.path(file), err)
	case !cert.IsCA:
		return authority{}, fmt.Errorf("%s is not the certificate of an authority", d.path(file))
	case !samePublic(cert.PublicKey, key.Public()):
		return authority{}, fmt.Errorf("%s is not the certificate of %s: put the files of one backup back", d.path(file), d.path(sub+"/ca.key"))
	case now.After(cert.NotAfter):
		return authority{}, fmt.Errorf("%s is over since %s", d.path(file), cert.NotAfter.Format(time.DateOnly))
	}
	return authority{cert: cert, key: key}, nil
}

// keyOrNew reads a private key, or makes it.
func (d directory) keyOrNew(name string, make func() (crypto.Signer, error)) (crypto.Signer, error) {
	there, err := d.has(name)
	if err != nil {
		return nil, err
	}
	if !there {
		key, err := make()
		if err != nil {
			return nil, err
		}
		text, err := signer.EncodeKey(key)
		if err != nil {
			return nil, err
		}
		if err := d.create(name, text, 0o600); err != nil {
			return nil, err
		}
	}
	return signer.File(d.path(name))
}

func newECDSA() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func selfSign(key crypto.Signer, name pkix.Name, now time.Time) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: name, NotBefore: now.Add(-backdated), NotAfter: now.Add(authorityValid),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// serial is a random serial number of 127 bits.
func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

func parseCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("not a certificate in PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// serverNames are what the server's certificate is for: what people type on
// this machine, the address it listens at and the name it is published under.
func serverNames(listen, public string) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	add := func(name string) {
		name = strings.ToLower(strings.Trim(name, "[]"))
		if ip := net.ParseIP(name); ip != nil && ip.IsUnspecified() {
			return
		}
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if host, err := os.Hostname(); err == nil {
		add(host)
	}
	if host, _, err := net.SplitHostPort(listen); err == nil {
		add(host)
	}
	add(public)
	return names
}

// serverCertificate reads DIR/tls/server.{key,pem}, and makes the certificate
// anew where it is missing, due, or for other names. The key stays: so there
// is only one file that changes, and no moment when two do not fit.
func (d directory) serverCertificate(ca authority, names []string, now time.Time) (cert tls.Certificate, renewed bool, err error) {
	key, err := d.keyOrNew("tls/server.key", newECDSA)
	if err != nil {
		return cert, false, err
	}
	const file = "tls/server.pem"
	there, err := d.has(file)
	if err != nil {
		return cert, false, err
	}
	if there {
		text, err := d.read(file)
		if err != nil {
			return cert, false, err
		}
		if leaf, err := parseCertificate(text); err == nil && fits(leaf, key, ca, names, now) {
			return chain(leaf, ca, key), false, nil
		}
	}
	leaf, err := issueServer(ca, key, names, now)
	if err != nil {
		return cert, false, err
	}
	// The authority goes along: agents that know it by its fingerprint look
	// for it in what the server sends.
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}), ca.pem()...)
	if err := d.replace(file, text, 0o644); err != nil {
		return cert, false, err
	}
	return chain(leaf, ca, key), true, nil
}

func chain(leaf *x509.Certificate, ca authority, key crypto.Signer) tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.cert.Raw}, PrivateKey: key, Leaf: leaf}
}

// fits reports whether a server certificate made before is still good.
func fits(leaf *x509.Certificate, key crypto.Signer, ca authority, names []string, now time.Time) bool {
	due := leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 3)
	if !now.Before(due) || now.Before(leaf.NotBefore) || !samePublic(leaf.PublicKey, key.Public()) || leaf.CheckSignatureFrom(ca.cert) != nil {
		return false
	}
	return !slices.ContainsFunc(names, func(name string) bool { return leaf.VerifyHostname(name) != nil })
}

func issueServer(ca authority, key crypto.Signer, names []string, now time.Time) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{Organization: []string{"jitgate"}, CommonName: "jitgate-control"},
		NotBefore: now.Add(-backdated), NotAfter: now.Add(serverValid), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// pool is the authority alone.
func (a authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}
