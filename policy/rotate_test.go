package policy

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// Every change of a successor leaves the document it follows as it was.
func TestNext(t *testing.T) {
	before := trustDoc()
	now := noon.Add(90*time.Minute + time.Millisecond)
	next := before.Next(now, day)
	if next.Version != before.Version+1 || !next.Issued.Equal(noon.Add(90*time.Minute)) || !next.Expires.Equal(next.Issued.Add(day)) {
		t.Errorf("got %+v", next.Header)
	}
	for name, err := range map[string]error{
		"take":      next.Take(RolePolicy, idOf(policyA)),
		"give":      next.Give(RolePolicy, describe(mallory)),
		"give two":  next.Give(RoleGrant, describe(grantNew)),
		"threshold": next.SetThreshold(RoleRoot, 1),
		"restart":   next.Restart(RoleGrant),
		"restart 2": next.Restart(RolePolicy),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !reflect.DeepEqual(before, trustDoc()) {
		t.Errorf("the document before changed: %+v", before)
	}
	want := trustDoc(func(d *Trust) {
		d.Header = next.Header
		d.Roles[0].Threshold = 1
		d.Roles[1].Keys, d.Roles[1].Epoch = ids(policyB, mallory), 1
		d.Roles[2].Keys, d.Roles[2].Epoch = ids(grantA, grantNew), 2
	})
	if !reflect.DeepEqual(next.Roles, want.Roles) {
		t.Errorf("got %+v, want %+v", next.Roles, want.Roles)
	}
	if _, there := next.key(idOf(policyA)); there {
		t.Error("a key without a role stays in the document")
	}
	if _, there := next.key(idOf(mallory)); !there {
		t.Error("a key with a role is not in the document")
	}
	parses(t, TypeTrust, next.Encode())
}

func TestNextRefuses(t *testing.T) {
	for name, change := range map[string]func(*Trust) error{
		"give a role twice":        func(d *Trust) error { return d.Give(RoleRoot, describe(rootA)) },
		"give an unknown role":     func(d *Trust) error { return d.Give("admin", describe(rootA)) },
		"take what is not held":    func(d *Trust) error { return d.Take(RoleRoot, idOf(grantA)) },
		"take from an unknown one": func(d *Trust) error { return d.Take("admin", idOf(grantA)) },
		"restart root":             func(d *Trust) error { return d.Restart(RoleRoot) },
		"restart an unknown role":  func(d *Trust) error { return d.Restart("admin") },
		"threshold of nothing":     func(d *Trust) error { return d.SetThreshold("admin", 1) },
	} {
		d := trustDoc()
		if err := change(&d); err == nil || !reflect.DeepEqual(d, trustDoc()) {
			t.Errorf("%s: %v, and the document is %+v", name, err, d)
		}
	}
	// Taking the last key away is for ParseDocument to refuse.
	d := trustDoc()
	if err := d.Take(RoleGrant, idOf(grantA)); err != nil {
		t.Fatal(err)
	}
	if _, err := ParseDocument(TypeTrust, d.Encode()); CodeOf(err) != Malformed {
		t.Errorf("a role without keys: %v", err)
	}
}

func TestFind(t *testing.T) {
	d := trustDoc()
	id := idOf(policyA)
	digits := strings.TrimPrefix(string(id), "sha256:")
	for typed, want := range map[string]KeyID{
		string(id): id, digits: id, digits[:8]: id, "sha256:" + digits[:8]: id,
		"": "", "sha256:": "", digits[1:]: "", digits + "0": "",
		string(idOf(grantA)): "", // of another role
	} {
		if got, err := d.Find(RolePolicy, typed); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", typed, got, err, want)
		}
	}
	// Two keys that begin alike.
	d.Keys = append(d.Keys, Key{ID: "sha256:ab1"}, Key{ID: "sha256:ab2"})
	d.Roles[1].Keys = []KeyID{"sha256:ab1", "sha256:ab2"}
	if got, err := d.Find(RolePolicy, "ab"); err == nil {
		t.Errorf("found %q for what fits two", got)
	}
	d.Keys[len(d.Keys)-1].Name = "carol"
	if got, err := d.Find(RolePolicy, "carol"); got != "sha256:ab2" || err != nil {
		t.Errorf("found %q, %v", got, err)
	}
	d.Keys[len(d.Keys)-2].Name = "carol"
	if got, err := d.Find(RolePolicy, "carol"); err == nil {
		t.Errorf("found %q for a name of two", got)
	}
	if got, err := d.Find(RolePolicy, "ab2"); got != "sha256:ab2" || err != nil {
		t.Errorf("found %q, %v", got, err)
	}
}
