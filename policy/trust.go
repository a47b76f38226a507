package policy

import (
	"errors"
	"fmt"
	"slices"
)

// Role is what a key may sign.
type Role string

// The roles. Every trust document has each of them once.
const (
	RoleRoot   Role = "root"   // trust documents
	RolePolicy Role = "policy" // policies
	RoleGrant  Role = "grant"  // grants
)

// Trust says which keys sign what. The zero Trust trusts nobody.
type Trust struct {
	Header
	Keys  []Key
	Roles []RoleKeys
}

// RoleKeys gives a role to keys.
type RoleKeys struct {
	Name      Role
	Keys      []KeyID
	Threshold int // how many distinct keys must sign
	// Epoch is raised to restart the count of the versions that the role
	// signs, after a key was lost. Role root has none: trust documents come
	// one by one. Zero, where role policy never had to.
	Epoch uint64
}

type trustJSON struct {
	headerJSON
	Keys  *[]keyJSON  `json:"keys"`
	Roles *[]roleJSON `json:"roles"`
}

type keyJSON struct {
	ID     *string `json:"id"`
	Scheme *string `json:"scheme"`
	Public *string `json:"public"`
	Name   *string `json:"name,omitempty"`
}

type roleJSON struct {
	Name      *string   `json:"name"`
	Keys      *[]string `json:"keys"`
	Threshold *int      `json:"threshold"`
	Epoch     *uint64   `json:"epoch,omitempty"`
}

func parseTrust(payload []byte) (Trust, error) {
	var raw trustJSON
	err := decodeStrict(payload, &raw)
	var t Trust
	if err == nil {
		t, err = raw.trust()
	}
	if err != nil {
		return Trust{}, Refuse(Malformed, "trust: %v", err)
	}
	return t, nil
}

func (raw trustJSON) trust() (t Trust, err error) {
	if t.Header, err = raw.header(); err != nil {
		return t, err
	}
	keys, err := need("keys", raw.Keys)
	if err != nil {
		return t, err
	}
	if len(keys) > MaxKeys {
		return t, fmt.Errorf("%d keys, the limit is %d", len(keys), MaxKeys)
	}
	for i, r := range keys {
		k, err := r.key()
		if err != nil {
			return t, fmt.Errorf("keys[%d]: %w", i, err)
		}
		if _, ok := t.key(k.ID); ok {
			return t, fmt.Errorf("keys[%d]: %s is there twice", i, k.ID)
		}
		t.Keys = append(t.Keys, k)
	}
	roles, err := need("roles", raw.Roles)
	if err != nil {
		return t, err
	}
	for i, r := range roles {
		role, err := r.role()
		if err != nil {
			return t, fmt.Errorf("roles[%d]: %w", i, err)
		}
		t.Roles = append(t.Roles, role)
	}
	return t, t.checkRoles()
}

func (raw keyJSON) key() (Key, error) {
	id, err := need("id", raw.ID)
	if err != nil {
		return Key{}, err
	}
	scheme, err := need("scheme", raw.Scheme)
	if err != nil {
		return Key{}, err
	}
	public, err := need("public", raw.Public)
	if err != nil {
		return Key{}, err
	}
	k, err := parseKey(KeyID(id), Scheme(scheme), public)
	if err != nil || raw.Name == nil {
		return k, err
	}
	if k.Name = *raw.Name; k.Name == "" {
		return Key{}, errors.New("name is empty: leave it out instead")
	}
	return k, text("name", k.Name, 128)
}

func (raw roleJSON) role() (r RoleKeys, err error) {
	name, err := need("name", raw.Name)
	if err != nil {
		return r, err
	}
	keys, err := need("keys", raw.Keys)
	if err != nil {
		return r, err
	}
	if r.Threshold, err = need("threshold", raw.Threshold); err != nil {
		return r, err
	}
	r.Name = Role(name)
	for _, id := range keys {
		r.Keys = append(r.Keys, KeyID(id))
	}
	switch r.Name {
	case RoleGrant:
		r.Epoch, err = grantEpoch(raw.Epoch)
	case RolePolicy:
		r.Epoch, err = policyEpoch(raw.Epoch)
	default:
		if raw.Epoch != nil {
			err = fmt.Errorf("role %s has an epoch: only the roles policy and grant do", r.Name)
		}
	}
	return r, err
}

// grantEpoch reads the epoch of role grant, or of a list of grants.
func grantEpoch(raw *uint64) (uint64, error) {
	epoch, err := need("epoch", raw)
	if err == nil && (epoch == 0 || epoch > MaxVersion) {
		err = fmt.Errorf("epoch %d is outside 1 to 2^53-1", epoch)
	}
	return epoch, err
}

// policyEpoch reads the epoch of role policy, or of a policy.
func policyEpoch(raw *uint64) (uint64, error) {
	if raw == nil {
		return 0, nil
	}
	if *raw > MaxVersion {
		return 0, fmt.Errorf("epoch %d is outside 0 to 2^53-1", *raw)
	}
	return *raw, nil
}

func (t Trust) checkRoles() error {
	held := map[KeyID]Role{}
	for i, r := range t.Roles {
		if !slices.Contains([]Role{RoleRoot, RolePolicy, RoleGrant}, r.Name) {
			return fmt.Errorf("roles[%d]: %q is not root, policy or grant", i, r.Name)
		}
		if slices.ContainsFunc(t.Roles[:i], func(o RoleKeys) bool { return o.Name == r.Name }) {
			return fmt.Errorf("roles[%d]: role %s is there twice", i, r.Name)
		}
		if r.Threshold < 1 || r.Threshold > len(r.Keys) {
			return fmt.Errorf("role %s: threshold %d with %d keys", r.Name, r.Threshold, len(r.Keys))
		}
		for j, id := range r.Keys {
			if _, ok := t.key(id); !ok {
				return fmt.Errorf("role %s: key %s is not among the keys", r.Name, id)
			}
			if slices.Contains(r.Keys[:j], id) {
				return fmt.Errorf("role %s: key %s is there twice", r.Name, id)
			}
			// A thief of the grant key must not be able to widen the policy.
			if other, ok := held[id]; ok && (other == RoleGrant || r.Name == RoleGrant) {
				return fmt.Errorf("key %s has role %s and role %s: a grant key has no other role", id, other, r.Name)
			}
			held[id] = r.Name
		}
	}
	if len(t.Roles) != 3 {
		return fmt.Errorf("%d roles: root, policy and grant are needed", len(t.Roles))
	}
	return nil
}

// Encode writes the trust document as a payload to sign.
func (t Trust) Encode() []byte {
	keys := make([]keyJSON, len(t.Keys))
	for i, k := range t.Keys {
		id, public := string(k.ID), k.Public()
		keys[i] = keyJSON{ID: &id, Scheme: (*string)(&k.Scheme), Public: &public}
		if k.Name != "" {
			keys[i].Name = &k.Name
		}
	}
	roles := make([]roleJSON, len(t.Roles))
	for i, r := range t.Roles {
		ids := make([]string, len(r.Keys))
		for j, id := range r.Keys {
			ids[j] = string(id)
		}
		roles[i] = roleJSON{Name: (*string)(&r.Name), Keys: &ids, Threshold: &r.Threshold}
		if r.Name == RoleGrant || r.Epoch != 0 {
			roles[i].Epoch = &r.Epoch
		}
	}
	return encode(trustJSON{t.Header.json(), &keys, &roles})
}

func (t Trust) key(id KeyID) (Key, bool) {
	i := slices.IndexFunc(t.Keys, func(k Key) bool { return k.ID == id })
	if i < 0 {
		return Key{}, false
	}
	return t.Keys[i], true
}

// Role returns the keys that hold a role.
func (t Trust) Role(name Role) (RoleKeys, bool) {
	i := slices.IndexFunc(t.Roles, func(r RoleKeys) bool { return r.Name == name })
	if i < 0 {
		return RoleKeys{}, false
	}
	return t.Roles[i], true
}

// epoch is the one in which documents of a role count their versions.
func (t Trust) epoch(name Role) uint64 {
	r, _ := t.Role(name)
	return r.Epoch
}

// keyring is what a signature is checked against: the keys of one role.
type keyring struct {
	role      Role
	keys      map[KeyID]Key
	threshold int
}

func (t Trust) keyring(name Role) keyring {
	ring := keyring{role: name, keys: map[KeyID]Key{}}
	if r, ok := t.Role(name); ok {
		ring.threshold = r.Threshold
		for _, id := range r.Keys {
			if k, ok := t.key(id); ok {
				ring.keys[id] = k
			}
		}
	}
	return ring
}
