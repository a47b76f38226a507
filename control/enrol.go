package control

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/jitgate/jitgate/uplink"
)

const (
	// certificateValid is how long an agent's certificate is good for.
	certificateValid = 30 * 24 * time.Hour
	// certificateGrace is for how long after that it can still be renewed, and
	// nothing else: machines are off for weeks.
	certificateGrace = 90 * 24 * time.Hour
	// clockSkew is how far behind a host's clock may be at its enrolment.
	clockSkew = time.Hour
	// vmScheme marks the name of a machine in its certificate.
	vmScheme = "jitgate"
)

var (
	errNoEnrolment = Refuse(Invalid, "EnrolmentNotConfigured", "This control plane has no key that signs certificates of agents: none can enrol.")
	// errJoin tells a stranger nothing about which tokens there are.
	errJoin = Refuse(Unknown, "InvalidJoinToken", "The join token is not valid: it is wrong, over, used up, or not for this machine. Ask for a new one.")
	errCert = Refuse(Unknown, "InvalidCertificate", "The certificate is not that of an enrolled agent: enrol again with jitgate enroll.")
)

// EnrolInput is what a host that wants to enrol sends.
type EnrolInput struct {
	Token            string
	HostID           string // of the agent's settings: the machine's resource id
	CSR              []byte // PKCS#10, DER
	Install, Version string // of the agent; may be empty
	Address          string // where the call comes from
	Call             string // its id
}

// Enrolled is what a host that has enrolled gets.
type Enrolled struct {
	VM    VMID
	Chain []byte // PEM: its certificate, and the CA's
	Trust []byte // the realm's trust document
}

// Enrol gives a host that shows a join token a certificate for its own key.
// The same host may ask again for the same key, since an answer can get lost;
// anybody else uses the token up, and takes the place of an agent that
// enrolled before.
func (e *Engine) Enrol(ctx context.Context, in EnrolInput) (Enrolled, error) {
	if e.CA == nil {
		return Enrolled{}, errNoEnrolment
	}
	id, err := ParseVMID(in.HostID)
	if err != nil {
		return Enrolled{}, Refuse(Invalid, "InvalidHostID", "The host's id has to be a machine's resource id, set as host_id in agent.toml: %v.", err)
	}
	key, csr, err := parseCSR(in.CSR)
	if err != nil {
		return Enrolled{}, err
	}
	if _, err := uplink.ParseJoin(in.Token); err != nil {
		return Enrolled{}, errJoin
	}
	var chain []byte
	var refused string
	now := e.Now().UTC()
	err = e.Store.Update(ctx, func(tx Tx) error {
		j, err := tx.Join(uplink.JoinHash(in.Token))
		if errors.Is(err, ErrNotFound) {
			return errJoin
		}
		if err != nil {
			return err
		}
		vm, err := tx.VM(id)
		if errors.Is(err, ErrNotFound) {
			vm, err = VM{ID: id}, nil
		}
		if err != nil {
			return err
		}
		line := Activity{Time: now, Event: "host.enrolled", Operation: string(ActionEnroll), Status: "Succeeded", Actor: "join token " + j.ID,
			Address: in.Address, Scope: id.Scope(), VM: vm.ID.String(), Call: in.Call}
		again := vm.Agent != nil && vm.Agent.Key == key && !vm.Agent.Revoked
		refused = j.usable(now)
		if again && !j.Revoked && now.Before(j.Expires) {
			refused = ""
		}
		if vm.Agent != nil && vm.Agent.Revoked && vm.Agent.Key == key {
			refused = "the key was revoked: the host needs a new one"
		}
		if !j.Scope.Covers(id.Scope()) {
			refused = fmt.Sprintf("the join token is for %s only", j.Scope)
		}
		if refused != "" {
			line.Status, line.Code, line.Reason = "Failed", errJoin.Code, refused
			return tx.AppendActivity(line)
		}
		leaf, err := e.certify(vm.ID, csr)
		if err != nil {
			return err
		}
		chain = e.chain(leaf)
		if again {
			return nil
		}
		was := vm.Agent
		vm.Agent = &Agent{Key: key, Install: in.Install, Version: in.Version, Enrolled: now, Expires: leaf.NotAfter, Joined: e.Realm.Trust.Version}
		// Whoever was let in again may have been installed again: see Report. What was
		// kept of a machine's record stays when the machine is forgotten.
		if was != nil {
			line.Reason = fmt.Sprintf("in place of the agent that enrolled at %s", was.Enrolled.Format(time.RFC3339))
			vm.Agent.LastSeen, vm.Agent.Head, vm.Agent.Epoch, vm.Agent.Anew = was.LastSeen, was.Head, was.Epoch, true
		} else {
			kept, head, err := tx.NewestRecord(id)
			if err != nil {
				return err
			}
			vm.Agent.Head, vm.Agent.Epoch, vm.Agent.Anew = head, kept.Epoch, head != Head{}
		}
		j.Uses--
		return errors.Join(tx.PutJoin(j), tx.PutVM(vm), tx.AppendActivity(line))
	})
	switch {
	case err == nil && refused == "":
		return Enrolled{VM: id, Chain: chain, Trust: e.Realm.Signed}, nil
	case err == nil || errors.Is(err, errJoin):
		e.Log.Warn("enrolment refused", "vm", id, "address", in.Address, "reason", refused)
		return Enrolled{}, errJoin
	}
	return Enrolled{}, err
}

// parseCSR checks a certificate request and returns the digest of its key.
// Whoever sends one has shown that the key is theirs.
func parseCSR(der []byte) (key string, csr *x509.CertificateRequest, err error) {
	csr, err = x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return "", nil, Refuse(Invalid, "InvalidCertificateRequest", "The certificate request cannot be used: %s.", clip(err.Error()))
	}
	switch k := csr.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return "", nil, Refuse(Invalid, "InvalidCertificateRequest", "The key is on curve %s: use P-256 or Ed25519.", k.Curve.Params().Name)
		}
	default:
		return "", nil, Refuse(Invalid, "InvalidCertificateRequest", "The key is a %T: use ECDSA on P-256 or Ed25519.", k)
	}
	return keyDigest(csr.RawSubjectPublicKeyInfo), csr, nil
}

func keyDigest(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// certify makes the certificate of a machine's agent. Of the request it takes
// the key and nothing else.
func (e *Engine) certify(id VMID, csr *x509.CertificateRequest) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := e.Now().UTC()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: id.Name[:min(len(id.Name), 64)]},
		URIs:         []*url.URL{{Scheme: vmScheme, Path: id.Key()}},
		NotBefore:    now.Add(-clockSkew),
		NotAfter:     now.Add(certificateValid),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},

		BasicConstraintsValid: true,
	}, e.CA, csr.PublicKey, e.CAKey)
	if err != nil {
		return nil, fmt.Errorf("certificate of an agent: %w", err)
	}
	return x509.ParseCertificate(der)
}

func (e *Engine) chain(leaf *x509.Certificate) []byte {
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.CA.Raw})...)
}

// Recognised is an agent as its certificate shows it.
type Recognised struct {
	VM      VMID
	Key     string    // as in Agent
	Expires time.Time // of the certificate
	Expired bool      // it may renew, and nothing else
}

// Due reports whether the certificate should be renewed: two thirds of its
// life are over.
func (r Recognised) Due(now time.Time) bool {
	return now.After(r.Expires.Add(-certificateValid / 3))
}

// Recognise says whose certificate it is: signed by the CA of agents, for the
// key that its machine enrolled with, and not revoked. That the other end has
// the key is for the TLS layer to see to. A first use of a renewed key ends
// the one before.
func (e *Engine) Recognise(ctx context.Context, cert *x509.Certificate) (Recognised, error) {
	switch {
	case e.CA == nil:
		return Recognised{}, errNoEnrolment
	case !e.Signed(cert):
		return Recognised{}, errCert
	}
	return e.RecogniseSigned(ctx, cert)
}

// RecogniseSigned is Recognise for a certificate that is known to be Signed.
func (e *Engine) RecogniseSigned(ctx context.Context, cert *x509.Certificate) (Recognised, error) {
	r, err := e.named(cert)
	if err != nil {
		return Recognised{}, err
	}
	var renewed bool
	err = e.Store.View(ctx, func(tx Tx) (err error) {
		renewed, err = r.known(tx)
		return err
	})
	if err != nil || !renewed || r.Expired {
		return r, err
	}
	err = e.Store.Update(ctx, func(tx Tx) error {
		if renewed, err := r.known(tx); err != nil || !renewed {
			return err
		}
		vm, err := tx.VM(r.VM)
		if err != nil {
			return err
		}
		vm.Agent.Key, vm.Agent.NextKey, vm.Agent.Expires = r.Key, "", r.Expires
		return errors.Join(tx.PutVM(vm), tx.AppendActivity(Activity{Time: e.Now().UTC(), Event: "host.renewed", Status: "Succeeded",
			Scope: r.VM.Scope(), VM: vm.ID.String(), End: r.Expires}))
	})
	return r, err
}

// Signed reports whether the CA of agents signed a certificate.
func (e *Engine) Signed(cert *x509.Certificate) bool {
	return e.CA != nil && cert.CheckSignatureFrom(e.CA) == nil
}

// named reads whose a certificate of the CA of agents is, and whether it is one
// of these days.
func (e *Engine) named(cert *x509.Certificate) (r Recognised, err error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != vmScheme {
		return r, errCert
	}
	id, err := ParseVMID(cert.URIs[0].Path)
	if err != nil {
		return r, errCert
	}
	now := e.Now()
	r = Recognised{VM: id, Key: keyDigest(cert.RawSubjectPublicKeyInfo), Expires: cert.NotAfter, Expired: now.After(cert.NotAfter)}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter.Add(certificateGrace)) {
		return r, errCert
	}
	return r, nil
}

// known reports whether the key is the one renewed to, and refuses one that
// its machine does not have.
func (r *Recognised) known(tx Tx) (renewed bool, err error) {
	vm, err := tx.VM(r.VM)
	switch {
	case errors.Is(err, ErrNotFound), err == nil && (vm.Agent == nil || vm.Agent.Revoked):
		return false, errCert
	case err != nil:
		return false, err
	case r.Key != vm.Agent.Key && r.Key != vm.Agent.NextKey:
		return false, errCert
	}
	r.VM = vm.ID
	return r.Key == vm.Agent.NextKey, nil
}

// Renew gives a recognised agent a certificate for a new key. The former one
// goes on being good until the new one is used: the answer can get lost.
func (e *Engine) Renew(ctx context.Context, r Recognised, csrDER []byte) ([]byte, error) {
	key, csr, err := parseCSR(csrDER)
	if err != nil {
		return nil, err
	}
	if key == r.Key {
		return nil, Refuse(Invalid, "KeyNotNew", "A renewed certificate needs a new key.")
	}
	leaf, err := e.certify(r.VM, csr)
	if err != nil {
		return nil, err
	}
	err = e.Store.Update(ctx, func(tx Tx) error {
		if _, err := r.known(tx); err != nil {
			return err
		}
		vm, err := tx.VM(r.VM)
		if err != nil {
			return err
		}
		vm.Agent.Key, vm.Agent.NextKey = r.Key, key
		return tx.PutVM(vm)
	})
	if err != nil {
		return nil, err
	}
	return e.chain(leaf), nil
}
