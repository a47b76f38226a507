package main

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/signer"
	"github.com/jitgate/jitgate/policy"
)

const (
	// trustValid is how long the first trust document of a realm is valid.
	trustValid = 5 * 365 * 24 * time.Hour
	// trustWarning is how long before its end the log begins to ask for the next.
	trustWarning = 60 * 24 * time.Hour
	// people stands for a key that this server does not have.
	people = "none"
)

// Names of what the store keeps of a realm, so that no directory with another
// one is ever served from the same database.
const (
	metaPin   = "realm.pin"   // digest of the first trust document
	metaTrust = "realm.trust" // the newest trust document's envelope
)

// realmSettings say where a realm is, or how one is made.
type realmSettings struct {
	name   string // of a new realm; empty: after the host
	trust  string // file with a trust document made elsewhere; empty: none
	policy string // spec of the policy key; empty: in the directory; people: not here
	grant  string // spec of the grant key; empty: in the directory
}

// opener opens a key by its spec.
type opener func(ctx context.Context, spec string) (crypto.Signer, error)

// realm is a realm as this server has it.
type realm struct {
	control.Realm
	made bool     // just now
	says []string // for people, one line each
}

// realm reads the realm of the directory, or makes one where there is none.
//
// trust.json is what makes a realm: it is written last. Keys without it are
// left by a start that was cut off, and are used. Where the store knows a
// realm, none is made: its trust document was lost, and hosts believe no other.
func (d directory) realm(ctx context.Context, s realmSettings, store control.Store, open opener, now time.Time) (realm, error) {
	there, err := d.has(trustFile)
	if err != nil {
		return realm{}, err
	}
	var r realm
	if !there {
		known, err := meta(ctx, store, metaPin)
		if err != nil {
			return realm{}, err
		}
		if known != nil {
			return realm{}, fmt.Errorf("the database belongs to the realm whose first trust document is %s, and %s is missing: copy trust.json, keys, agents and tls from another server of the realm or from a backup", known, d.path(trustFile))
		}
		if s.trust != "" {
			err = d.adopt(s.trust)
		} else {
			r.says, err = d.newRealm(ctx, s, open, now)
			r.made = true
		}
		if err != nil {
			return realm{}, err
		}
	}
	signed, trust, err := d.trust()
	if err != nil {
		return realm{}, err
	}
	if signed, trust, r.Pin, err = d.claim(ctx, store, signed, trust); err != nil {
		return realm{}, err
	}
	r.Signed, r.Trust = signed, trust.Document()
	if r.Grant, err = d.grantKey(ctx, s, open, r.Trust); err != nil {
		return realm{}, err
	}
	var why string
	if r.Policy, why, err = d.policyKey(ctx, s, open, r.Trust); err != nil {
		return realm{}, err
	}
	if why != "" {
		r.says = append(r.says, why)
	}
	if ends := trustEnds(r.Trust, now); ends != "" {
		r.says = append(r.says, ends)
	}
	return r, nil
}

// trustEnds says what is to be done about a trust document that is over, or
// soon will be; nothing if there is time.
func trustEnds(t policy.Trust, now time.Time) string {
	switch left := t.Expires.Sub(now); {
	case left <= 0:
		return fmt.Sprintf("The trust document is over since %s: hosts open nothing. See jitgate-control keys rotate-help.", policy.FormatTime(t.Expires))
	case left < trustWarning:
		return fmt.Sprintf("The trust document ends at %s: see jitgate-control keys rotate-help.", policy.FormatTime(t.Expires))
	}
	return ""
}

// meta reads a value of the store; nil is none.
func meta(ctx context.Context, store control.Store, name string) (value []byte, err error) {
	err = store.View(ctx, func(tx control.Tx) error {
		value, err = tx.Meta(name)
		if errors.Is(err, control.ErrNotFound) {
			value, err = nil, nil
		}
		return err
	})
	return value, err
}

// realmOf is the realm a store belongs to, without any key.
func realmOf(ctx context.Context, store control.Store) (r control.Realm, err error) {
	pin, err := meta(ctx, store, metaPin)
	if err == nil {
		r.Signed, err = meta(ctx, store, metaTrust)
	}
	if err != nil {
		return r, err
	}
	if pin == nil {
		return r, errors.New("the database has no realm yet: start the server once, it completes what is missing")
	}
	v, err := openTrust(r.Signed)
	if err == nil {
		r.Pin, err = policy.ParseDigest(string(pin))
	}
	if err != nil {
		return r, fmt.Errorf("the database's realm: %w", err)
	}
	r.Trust = v.Document()
	return r, nil
}

// trust reads the directory's trust document, which its own root keys signed.
func (d directory) trust() (signed []byte, v policy.Verified[policy.Trust], err error) {
	if signed, err = d.read(trustFile); err != nil {
		return nil, v, err
	}
	if v, err = openTrust(signed); err != nil {
		return nil, v, fmt.Errorf("%s: %w", d.path(trustFile), err)
	}
	return signed, v, nil
}

// openTrust verifies a trust document that whoever put it there vouches for.
func openTrust(signed []byte) (v policy.Verified[policy.Trust], err error) {
	e, err := policy.ParseEnvelope(signed)
	if err != nil {
		return v, err
	}
	return policy.OpenPinnedTrust(signed, e.Digest())
}

// adopt puts a trust document made elsewhere into the directory.
func (d directory) adopt(path string) error {
	signed, err := readLimited(path, policy.MaxEnvelope)
	if err != nil {
		return err
	}
	if _, err := openTrust(signed); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return d.create(trustFile, signed, 0o644)
}

// newRealm makes a realm: keys, and at last a trust document that says what
// each may sign.
func (d directory) newRealm(ctx context.Context, s realmSettings, open opener, now time.Time) (says []string, err error) {
	if s.policy == people {
		return nil, errors.New(`[signing] policy = "none" needs a realm whose policy key people hold: make one with jitgate trust init --add policy=FILE, and name its trust.json under [realm] trust`)
	}
	name := s.name
	if name == "" {
		if name, err = realmName(); err != nil {
			return nil, err
		}
	}
	now = now.UTC().Truncate(time.Second)
	t := policy.Trust{Header: policy.Header{Realm: name, Version: 1, Issued: now, Expires: now.Add(trustValid)}, Roles: []policy.RoleKeys{
		{Name: policy.RolePolicy, Threshold: 1}, {Name: policy.RoleGrant, Threshold: 1, Epoch: 1}, {Name: policy.RoleRoot, Threshold: 1}}}
	var root crypto.Signer
	for _, k := range []struct {
		role       policy.Role
		spec, file string
	}{{policy.RolePolicy, s.policy, policyKeyFile}, {policy.RoleGrant, s.grant, grantKeyFile}, {policy.RoleRoot, "", rootKeyFile}} {
		var key crypto.Signer
		if k.spec != "" {
			key, err = open(ctx, k.spec)
		} else {
			key, err = d.keyOrNew(k.file, newEd25519)
		}
		if err != nil {
			return nil, err
		}
		public, err := policy.NewKey(key.Public())
		if err == nil {
			err = t.Give(k.role, public)
		}
		if err != nil {
			return nil, fmt.Errorf("%s key: %w", k.role, err)
		}
		root = key
	}
	e := policy.Envelope{Type: policy.TypeTrust, Payload: t.Encode()}
	if err := e.Sign(root); err != nil {
		return nil, err
	}
	if _, err := openTrust(e.Encode()); err != nil {
		return nil, err
	}
	if err := d.create(trustFile, e.Encode(), 0o644); err != nil {
		return nil, err
	}
	return []string{
		fmt.Sprintf("Made realm %s. Hosts trust it by %s", name, e.Digest()),
		fmt.Sprintf("Move %s off this machine now, to where only you can get it: it is needed again only to change keys, and whoever has it can replace them all.", d.path(rootKeyFile)),
	}, nil
}

func newEd25519() (crypto.Signer, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	return private, err
}

// realmName is the host's name with something that no other realm has.
func realmName() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	clean := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return '-'
	}, strings.ToLower(host)), "-.")
	var b [3]byte
	rand.Read(b[:])
	return strings.TrimPrefix(clean+"-"+hex.EncodeToString(b[:]), "-"), nil
}

// claim makes the store's realm and the directory's one and the same. The
// store has the pin of the first trust document and the newest of them all:
// a later one in the directory is taken into the store if it follows, and the
// other way round, so that replicas follow each other.
func (d directory) claim(ctx context.Context, store control.Store, signed []byte, v policy.Verified[policy.Trust]) ([]byte, policy.Verified[policy.Trust], policy.Digest, error) {
	var pin policy.Digest
	newest, newestSigned := v, signed
	err := store.Update(ctx, func(tx control.Tx) error {
		known, err := tx.Meta(metaPin)
		if errors.Is(err, control.ErrNotFound) {
			pin = v.Digest()
			return errors.Join(tx.PutMeta(metaPin, []byte(pin.String())), tx.PutMeta(metaTrust, signed))
		}
		if err != nil {
			return err
		}
		if pin, err = policy.ParseDigest(string(known)); err != nil {
			return fmt.Errorf("the database's realm: %w", err)
		}
		have, err := tx.Meta(metaTrust)
		if err != nil {
			return err
		}
		kept, err := openTrust(have)
		if err != nil {
			return fmt.Errorf("the database's trust document: %w", err)
		}
		if kept.Digest() == v.Digest() {
			return nil
		}
		if _, err := policy.OpenTrust(signed, kept.Document()); err == nil && v.Document().Version == kept.Document().Version+1 && v.Document().Realm == kept.Document().Realm {
			return tx.PutMeta(metaTrust, signed)
		}
		if _, err := policy.OpenTrust(have, v.Document()); err == nil && kept.Document().Version == v.Document().Version+1 && v.Document().Realm == kept.Document().Realm {
			newest, newestSigned = kept, have
			return nil
		}
		return fmt.Errorf("%s is version %d of realm %s (%s), the database's is version %d of realm %s (%s), and neither follows the other: this directory and this database do not belong together",
			d.path(trustFile), v.Document().Version, v.Document().Realm, v.Digest(), kept.Document().Version, kept.Document().Realm, kept.Digest())
	})
	if err == nil && newest.Digest() != v.Digest() {
		err = d.replace(trustFile, newestSigned, 0o644)
	}
	return newestSigned, newest, pin, err
}

// grantKey opens the key that signs grants. Without it nothing could be
// granted and nothing revoked.
func (d directory) grantKey(ctx context.Context, s realmSettings, open opener, t policy.Trust) (crypto.Signer, error) {
	spec := s.grant
	if spec == "" {
		there, err := d.has(grantKeyFile)
		if err != nil {
			return nil, err
		}
		if !there {
			return nil, fmt.Errorf("the grant key is missing: put it into %s (mode 600), or say under [signing] where it is", d.path(grantKeyFile))
		}
		spec = "file:" + d.path(grantKeyFile)
	}
	key, err := open(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("grant key: %w", err)
	}
	role, _ := t.Role(policy.RoleGrant)
	if err := holdsRole(key, role); err != nil {
		return nil, err
	}
	if role.Threshold > 1 {
		return nil, fmt.Errorf("trust.json asks for %d signatures under grants: a control plane has one grant key", role.Threshold)
	}
	return key, nil
}

// policyKey opens the key that signs policies; nil: people do, and says so.
func (d directory) policyKey(ctx context.Context, s realmSettings, open opener, t policy.Trust) (key crypto.Signer, says string, err error) {
	const signedByPeople = "Policies wait for a person's signature: jitgate policy pending."
	spec := s.policy
	if spec == people {
		return nil, signedByPeople, nil
	}
	if spec == "" {
		there, err := d.has(policyKeyFile)
		if err != nil {
			return nil, "", err
		}
		if !there {
			return nil, "There is no policy key here. " + signedByPeople, nil
		}
		spec = "file:" + d.path(policyKeyFile)
	}
	if key, err = open(ctx, spec); err != nil {
		return nil, "", fmt.Errorf("policy key: %w", err)
	}
	role, _ := t.Role(policy.RolePolicy)
	if err := holdsRole(key, role); err != nil {
		return nil, "", err
	}
	if role.Threshold > 1 {
		return nil, fmt.Sprintf("trust.json asks for %d signatures under policies. %s", role.Threshold, signedByPeople), nil
	}
	return key, "", nil
}

// holdsRole refuses a key that hosts would not believe.
func holdsRole(key crypto.Signer, role policy.RoleKeys) error {
	public, err := policy.NewKey(key.Public())
	if err != nil {
		return err
	}
	if !slices.Contains(role.Keys, public.ID) {
		return fmt.Errorf("the %s key here is %s, and trust.json does not give it role %[1]s: put the right key in place", role.Name, public.ID)
	}
	return nil
}

// openKey opens keys by the specs of the settings.
func openKey(drivers map[string]signer.Driver) opener {
	return func(ctx context.Context, spec string) (crypto.Signer, error) { return signer.Open(ctx, spec, drivers) }
}
