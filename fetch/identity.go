package fetch

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
)

// The files of an identity directory. What is being made stands beside what is
// in use until it has proved itself.
const (
	identityFile = "identity.pem" // key and certificates, in use
	nextFile     = "next.pem"     // the same, renewed and not used yet
	pendingFile  = "pending.pem"  // a key that is enrolling
)

const maxIdentity = 64 << 10

// identity is the fetcher's own key with its certificate.
type identity struct {
	key    crypto.Signer
	join   string            // hash of the token it enrolled with; empty: none, it was renewed
	leaf   *x509.Certificate // nil: it has none yet
	others []*x509.Certificate
}

// joinHeader is where a key's PEM block says which token it enrolled with.
const joinHeader = "Join-Token-Sha256"

func newIdentity(join string) (identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return identity{key: key, join: join}, err
}

// request is a certificate request for the key. The control plane sets the
// name.
func (i identity) request() ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "jitgate"}}, i.key)
}

// certified is the identity with the certificates it was given, which have to
// be for its key.
func (i identity) certified(chain []byte) (identity, error) {
	i.leaf, i.others = nil, nil
	for rest := chain; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return identity{}, fmt.Errorf("certificate: %w", err)
		}
		if i.leaf == nil {
			i.leaf = c
		} else {
			i.others = append(i.others, c)
		}
	}
	if i.leaf == nil {
		return identity{}, errors.New("there is no certificate")
	}
	public, ok := i.key.Public().(*ecdsa.PublicKey)
	if !ok || !public.Equal(i.leaf.PublicKey) {
		return identity{}, errors.New("the certificate is for another key")
	}
	return i, nil
}

// forTLS is the identity as a handshake shows it. The control plane knows the
// authority, and would keep its certificate again for every connection.
func (i identity) forTLS() *tls.Certificate {
	return &tls.Certificate{PrivateKey: i.key, Leaf: i.leaf, Certificate: [][]byte{i.leaf.Raw}}
}

func (i identity) encode() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		return nil, err
	}
	block := &pem.Block{Type: "PRIVATE KEY", Bytes: der}
	if i.join != "" {
		block.Headers = map[string]string{joinHeader: i.join}
	}
	var out bytes.Buffer
	err = pem.Encode(&out, block)
	if i.leaf != nil {
		for _, c := range append([]*x509.Certificate{i.leaf}, i.others...) {
			err = errors.Join(err, pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
		}
	}
	return out.Bytes(), err
}

// parseIdentity reads what encode writes.
func parseIdentity(text []byte) (identity, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return identity{}, errors.New("there is no private key")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return identity{}, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return identity{}, fmt.Errorf("a key of kind %T", parsed)
	}
	i := identity{key: key, join: block.Headers[joinHeader]}
	if len(bytes.TrimSpace(rest)) == 0 {
		return i, nil
	}
	return i.certified(rest)
}

// loadIdentity reads one of the files. One that is not there is
// fs.ErrNotExist.
func loadIdentity(dir Files, name string) (identity, error) {
	text, err := dir.Read(name, maxIdentity)
	if err != nil {
		return identity{}, err
	}
	i, err := parseIdentity(text)
	if err != nil {
		return identity{}, fmt.Errorf("%s: %w", name, err)
	}
	return i, nil
}

// save writes one of the files, whole or not at all, for its owner only.
func (i identity) save(dir Files, name string) error {
	text, err := i.encode()
	if err != nil {
		return err
	}
	return dir.Replace(name, text, 0o600)
}
