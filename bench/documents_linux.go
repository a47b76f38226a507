package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"net/netip"
	"time"

	"github.com/jitgate/jitgate/policy"
)

const hostID = "bench"

// realm signs documents as a control plane would, with the same code.
type realm struct {
	start   time.Time
	trust   policy.Trust
	ports   []policy.Port
	keys    map[policy.Role]ed25519.PrivateKey
	version uint64 // of the last list of grants
}

func newRealm(ports []policy.Port) (*realm, error) {
	r := &realm{start: time.Now().UTC().Truncate(time.Second), ports: ports, keys: map[policy.Role]ed25519.PrivateKey{}}
	r.trust.Header = r.header(1)
	for _, name := range []policy.Role{policy.RoleRoot, policy.RolePolicy, policy.RoleGrant} {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		key, err := policy.NewKey(public)
		if err != nil {
			return nil, err
		}
		role := policy.RoleKeys{Name: name, Keys: []policy.KeyID{key.ID}, Threshold: 1}
		if name == policy.RoleGrant {
			role.Epoch = 1
		}
		r.keys[name] = private
		r.trust.Keys, r.trust.Roles = append(r.trust.Keys, key), append(r.trust.Roles, role)
	}
	return r, nil
}

func (r *realm) header(version uint64) policy.Header {
	return policy.Header{Realm: "bench", Version: version, Issued: r.start, Expires: r.start.Add(24 * time.Hour)}
}

func (r *realm) sealedTrust() (envelope []byte, pin policy.Digest, err error) {
	e := policy.Envelope{Type: policy.TypeTrust, Payload: r.trust.Encode()}
	err = e.Sign(r.keys[policy.RoleRoot])
	return e.Encode(), e.Digest(), err
}

// guardedPort allows any source.
func guardedPort(number uint16, protocol policy.Protocol, atEnd policy.Sessions) policy.Port {
	anywhere := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	return policy.Port{Number: number, EndNumber: number, Protocol: protocol, AllowedSources: anywhere,
		MaxRequestAccessDuration: 3 * time.Hour, SessionsAtEnd: atEnd}
}

func (r *realm) sealedPolicy() ([]byte, error) {
	p := policy.Policy{Header: r.header(1), Host: policy.Host{ID: hostID}, MaxGrantsAge: policy.DefaultMaxGrantsAge, Ports: r.ports}
	e := policy.Envelope{Type: policy.TypePolicy, Payload: p.Encode()}
	err := e.Sign(r.keys[policy.RolePolicy])
	return e.Encode(), err
}

// seal signs the next list of grants.
func (r *realm) seal(list []policy.Grant) ([]byte, error) {
	r.version++
	g := policy.Grants{Header: r.header(r.version), Epoch: 1, Host: policy.Host{ID: hostID}, PolicyVersion: 1, Grants: list}
	e := policy.Envelope{Type: policy.TypeGrants, Payload: g.Encode()}
	if err := e.Sign(r.keys[policy.RoleGrant]); err != nil {
		return nil, fmt.Errorf("sign %d grants: %w", len(list), err)
	}
	return e.Encode(), nil
}

// grant opens port 22 for sources, for the whole run.
func (r *realm) grant(id string, sources ...netip.Addr) policy.Grant {
	g := policy.Grant{ID: id, Number: 22, Start: r.start.Add(-time.Minute), End: r.start.Add(2 * time.Hour),
		Requestor: "alice@example.com", Justification: "INC-10427"}
	for _, a := range sources {
		g.Sources = append(g.Sources, prefixOf(a))
	}
	return g
}

// grants returns n grants of 50 sources each, from the first-th source on.
func (r *realm) grants(first, n int) []policy.Grant {
	list := make([]policy.Grant, n)
	for i := range list {
		list[i] = r.grant(grantID(i), sources(first+i*perGrant, perGrant)...)
	}
	return list
}

const perGrant = 50

func grantID(i int) string { return fmt.Sprintf("grant-%05d", i) }

// sources returns n addresses from the first-th on, the same for everything
// that is compared.
func sources(first, n int) []netip.Addr {
	out := make([]netip.Addr, n)
	for i := range out {
		out[i] = source(first + i)
	}
	return out
}

func source(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}
