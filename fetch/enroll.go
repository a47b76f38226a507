package fetch

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// Enrolment is a first contact with a control plane.
type Enrolment struct {
	URL         string
	Token       string
	CA          []byte // PEM; empty: what the token says, else the system's
	Proxy       string
	IdentityDir string
	Host        string // host_id of the settings
	Install     string // of the agent, where that is known
	Version     string // of this program
}

// Enrolled is what a host has after that. Nothing of it is in place yet but a
// key: see Keep.
type Enrolled struct {
	Host  string
	CA    []byte // PEM of what signs the server's certificate; empty: the system knows it
	Trust []byte // the trust document, which is the one the token names
	Pin   policy.Digest

	dir      disk
	identity identity
}

// CheckURL reads the address of a control plane: https://NAME[:PORT].
func CheckURL(text string) (string, error) {
	text = strings.TrimSuffix(text, "/")
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", fmt.Errorf("%q is not https://NAME or https://NAME:PORT", text)
	}
	return text, nil
}

// Enroll makes a key, shows the token and returns what it got, once that is
// what the token promised. To ask again with the same token is harmless: the
// key stays the same.
func (e Enrolment) Enroll(ctx context.Context) (Enrolled, error) {
	join, err := uplink.ParseJoin(e.Token)
	if err != nil {
		return Enrolled{}, err
	}
	ca, roots, err := e.roots(ctx, join)
	if err != nil {
		return Enrolled{}, err
	}
	if err := os.MkdirAll(e.IdentityDir, 0o700); err != nil {
		return Enrolled{}, err
	}
	who, err := e.key()
	if err != nil {
		return Enrolled{}, err
	}
	csr, err := who.request()
	if err != nil {
		return Enrolled{}, err
	}
	t, err := newTransport(e.URL, e.Proxy, roots, nil, way{})
	if err != nil {
		return Enrolled{}, err
	}
	defer t.close()
	text, err := t.insist(ctx, uplink.PathEnroll, uplink.Encode(uplink.EnrollRequest{Token: e.Token, Host: e.Host, CSR: csr, Install: e.Install, Version: e.Version}))
	if err != nil {
		return Enrolled{}, err
	}
	answer, err := uplink.ParseCertificate(text)
	if err != nil {
		return Enrolled{}, err
	}
	if who, err = who.certified(answer.Chain); err != nil {
		return Enrolled{}, err
	}
	if _, err := policy.OpenPinnedTrust(answer.Trust, join.Pin); err != nil {
		return Enrolled{}, fmt.Errorf("the trust document is not the one the token names: %w", err)
	}
	return Enrolled{Host: answer.Host, CA: ca, Trust: answer.Trust, Pin: join.Pin, dir: disk(e.IdentityDir), identity: who}, nil
}

// insist sends a message again while the control plane says that it is busy: a
// whole fleet may be enrolling.
func (t *transport) insist(ctx context.Context, path string, message []byte) (answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, enrolWithin)
	defer cancel()
	for longest := time.Second; ; longest *= 2 {
		answer, err = t.call(ctx, http.MethodPost, path, message, uplink.MaxEnrolled)
		if !isStatus(err, http.StatusServiceUnavailable) {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(longest/2 + rand.N(longest)):
		}
	}
}

// enrolWithin is how long a host tries to enrol.
const enrolWithin = 2 * time.Minute

// Deliver puts the trust document into the agent's inbox, as the fetcher does with
// those that come after it: the agent tells of what root puts there by hand.
func (e Enrolled) Deliver(inbox string) error {
	return disk(inbox).Replace(uplink.File(policy.TypeTrust), e.Trust, 0o644)
}

// Keep puts the identity in place: from now on the fetcher connects with it.
func (e Enrolled) Keep() error {
	if err := e.identity.save(e.dir, identityFile); err != nil {
		return err
	}
	return errors.Join(e.dir.Remove(pendingFile), e.dir.Remove(nextFile))
}

// key is the one an earlier try with the same token made, or a new one. It is
// on the disk before anybody is asked.
func (e Enrolment) key() (identity, error) {
	join := uplink.JoinHash(e.Token)
	for _, name := range []string{pendingFile, identityFile} {
		was, err := loadIdentity(disk(e.IdentityDir), name)
		if err == nil && was.join == join {
			return was, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && name == identityFile {
			return identity{}, fmt.Errorf("%s: %w: move that file away to enrol anew", e.IdentityDir, err)
		}
	}
	who, err := newIdentity(join)
	if err != nil {
		return identity{}, err
	}
	return who, who.save(disk(e.IdentityDir), pendingFile)
}

// roots are who may sign the server's certificate. Where the token says which
// certificate that is, it is asked for and believed only if it is that one.
func (e Enrolment) roots(ctx context.Context, join uplink.Join) (ca []byte, roots *x509.CertPool, err error) {
	ca = e.CA
	if len(ca) == 0 && join.CA != (policy.Digest{}) {
		if ca, err = e.fetchCA(ctx, join.CA); err != nil {
			return nil, nil, err
		}
	}
	if len(ca) == 0 {
		return nil, nil, nil
	}
	roots = x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, nil, errors.New("the CA is no certificate in PEM")
	}
	return ca, roots, nil
}

// fetchCA asks whoever answers for the certificate with a digest. Nothing is
// sent that is secret, and nothing is believed but by its digest.
func (e Enrolment) fetchCA(ctx context.Context, want policy.Digest) ([]byte, error) {
	t, err := newTransport(e.URL, e.Proxy, nil, nil, way{})
	if err != nil {
		return nil, err
	}
	defer t.close()
	t.tls.InsecureSkipVerify = true // see above
	t.tls.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	ctx, cancel := context.WithTimeout(ctx, dialWithin+answerWithin)
	defer cancel()
	text, err := t.call(ctx, http.MethodGet, uplink.PathCA, nil, uplink.MaxSmall)
	if err != nil {
		return nil, err
	}
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("the server has another CA than the one the token names: this is not the control plane that made the token, or somebody stands in between")
		}
		if block.Type == "CERTIFICATE" && sha256.Sum256(block.Bytes) == want {
			return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes}), nil
		}
	}
}
