package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Next returns t as its successor begins: the next version, issued now and
// valid for so long. It shares nothing with t. Changes are made to it with
// Give, Take, SetThreshold and Restart; ParseDocument of its Encode says
// whether an agent would read the outcome.
func (t Trust) Next(now time.Time, valid time.Duration) Trust {
	now = now.UTC().Truncate(time.Second)
	t.Version++
	t.Issued, t.Expires = now, now.Add(valid)
	t.Keys, t.Roles = slices.Clone(t.Keys), slices.Clone(t.Roles)
	for i := range t.Roles {
		t.Roles[i].Keys = slices.Clone(t.Roles[i].Keys)
	}
	return t
}

// Give gives a role to a key.
func (t *Trust) Give(name Role, k Key) error {
	r, err := t.role(name)
	if err != nil {
		return err
	}
	if slices.Contains(r.Keys, k.ID) {
		return fmt.Errorf("%s has role %s already", k.ID, name)
	}
	r.Keys = append(r.Keys, k.ID)
	if _, known := t.key(k.ID); !known {
		t.Keys = append(t.Keys, k)
	}
	return nil
}

// Take takes a role from a key, and the key from the document if that was its
// last role. A threshold above the keys that are left stays: ParseDocument
// says so.
func (t *Trust) Take(name Role, id KeyID) error {
	r, err := t.role(name)
	if err != nil {
		return err
	}
	if !slices.Contains(r.Keys, id) {
		return fmt.Errorf("%s does not have role %s", id, name)
	}
	r.Keys = slices.DeleteFunc(r.Keys, func(k KeyID) bool { return k == id })
	if !slices.ContainsFunc(t.Roles, func(r RoleKeys) bool { return slices.Contains(r.Keys, id) }) {
		t.Keys = slices.DeleteFunc(t.Keys, func(k Key) bool { return k.ID == id })
	}
	return nil
}

// SetThreshold says how many different keys of a role must sign.
func (t *Trust) SetThreshold(name Role, n int) error {
	r, err := t.role(name)
	if err == nil {
		r.Threshold = n
	}
	return err
}

// Restart raises the epoch of a role, so that the versions its keys sign begin
// anew. Whoever had one of them may have signed the largest.
func (t *Trust) Restart(name Role) error {
	r, err := t.role(name)
	if err != nil {
		return err
	}
	if name == RoleRoot {
		return fmt.Errorf("role %s has no epoch: trust documents come one by one", name)
	}
	r.Epoch++
	return nil
}

// Find returns the key of a role whose name is what was typed, or whose id is
// or begins with it, with "sha256:" or without. It refuses what fits several.
func (t Trust) Find(name Role, typed string) (KeyID, error) {
	r, err := t.role(name)
	if err != nil {
		return "", err
	}
	digits := strings.TrimPrefix(typed, "sha256:")
	var found []KeyID
	for _, id := range r.Keys {
		k, _ := t.key(id)
		if typed != "" && k.Name == typed || digits != "" && strings.HasPrefix(strings.TrimPrefix(string(id), "sha256:"), digits) {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fmt.Errorf("no key of role %s is %q", name, typed)
	}
	return "", fmt.Errorf("%d keys of role %s are called %q or begin so: write more of the id", len(found), name, typed)
}

func (t *Trust) role(name Role) (*RoleKeys, error) {
	i := slices.IndexFunc(t.Roles, func(r RoleKeys) bool { return r.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("role %q is not root, policy or grant", name)
	}
	return &t.Roles[i], nil
}
