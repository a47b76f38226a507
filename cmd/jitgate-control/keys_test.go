package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control/signer"
	"github.com/jitgate/jitgate/policy"
)

func TestKeysList(t *testing.T) {
	dir := freshRealm(t)
	list := func() map[policy.Role]keyLine {
		t.Helper()
		var lines []keyLine
		if err := json.Unmarshal([]byte(does(t, "keys", "list", "--json", "--data", dir)), &lines); err != nil {
			t.Fatal(err)
		}
		all := map[policy.Role]keyLine{}
		for _, l := range lines {
			all[l.Role] = l
		}
		return all
	}
	got := list()
	for role, file := range map[policy.Role]string{policy.RoleRoot: rootKeyFile, policy.RolePolicy: policyKeyFile, policy.RoleGrant: grantKeyFile} {
		if l := got[role]; l.Where != "file:"+filepath.Join(dir, file) || !strings.HasPrefix(string(l.ID), "sha256:") || l.Scheme != policy.Ed25519 {
			t.Errorf("%s: %+v", role, l)
		}
	}
	if got[policy.RoleRoot].Note == "" || got[policy.RoleGrant].Note != "" {
		t.Errorf("notes: %+v", got)
	}
	// Moved away, as the first start asked for; and a key of nobody's.
	if err := os.Remove(filepath.Join(dir, rootKeyFile)); err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(dir, policyKeyFile), filepath.Join(dir, "other"))
	if err := os.Rename(filepath.Join(dir, "other"), filepath.Join(dir, grantKeyFile)); err != nil {
		t.Fatal(err)
	}
	got = list()
	if got[policy.RoleRoot].Where != "" || !strings.Contains(got[policy.RoleGrant].Note, "does not give this key the role") {
		t.Errorf("%+v", got)
	}
	text := does(t, "keys", "list", "--data", dir)
	if !strings.Contains(text, "not here") || strings.Contains(text, "PRIVATE") {
		t.Errorf("%s", text)
	}
	shown := does(t, "keys", "show", "grant", "--data", dir)
	if strings.Count(shown, "BEGIN PUBLIC KEY") != 1 || strings.Contains(shown, "PRIVATE") {
		t.Errorf("%s", shown)
	}
	refuses(t, exitUsage, "not root, policy or grant", "keys", "show", "admin", "--data", dir)
	if help := does(t, "keys", "rotate-help", "--data", dir); !strings.Contains(help, "--remove grant="+string(got[policy.RoleGrant].ID)) && !strings.Contains(help, "--remove grant=sha256:") {
		t.Errorf("%s", help)
	}
}

// There is time to make the next trust document before the one in force ends.
func TestTrustEnds(t *testing.T) {
	end := time.Date(2030, 6, 1, 0, 0, 0, 0, time.UTC)
	trust := policy.Trust{Header: policy.Header{Expires: end}}
	for _, c := range []struct {
		at   time.Time
		want string
	}{
		{end.Add(-trustWarning), ""},
		{end.Add(-trustWarning + time.Second), "ends at 2030-06-01T00:00:00Z"},
		{end.Add(-time.Second), "ends at"},
		{end, "is over since"},
	} {
		if got := trustEnds(trust, c.at); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("at %v: %q", c.at, got)
		}
	}
}

// signedNext is the next trust document of a directory, edited and signed by
// its root key.
func signedNext(t testing.TB, dir string, root string, change func(*policy.Trust)) []byte {
	t.Helper()
	next := openedTrust(t, dir).Next(time.Now(), 24*time.Hour)
	if change != nil {
		change(&next)
	}
	key, err := signer.File(root)
	if err != nil {
		t.Fatal(err)
	}
	e := policy.Envelope{Type: policy.TypeTrust, Payload: next.Encode()}
	if err := e.Sign(key); err != nil {
		t.Fatal(err)
	}
	return e.Encode()
}

// The next trust document is taken if this server can go on under it; a server
// with the old one follows the database's.
func TestKeysInstall(t *testing.T) {
	dir := freshRealm(t)
	replica := filepath.Join(t.TempDir(), "replica")
	root := filepath.Join(dir, rootKeyFile)
	first, err := os.ReadFile(filepath.Join(dir, trustFile))
	if err != nil {
		t.Fatal(err)
	}
	other := freshRealm(t)
	install := func(signed []byte) []string {
		return []string{"keys", "install", write(t, t.TempDir(), "next.json", string(signed)), "--data", dir}
	}
	refuses(t, exitFailed, "", install(signedNext(t, other, filepath.Join(other, rootKeyFile), nil))...)
	refuses(t, exitFailed, "", install(signedNext(t, dir, filepath.Join(other, rootKeyFile), nil))...)
	refuses(t, exitFailed, "version 3, and 2 is due", install(signedNext(t, dir, root, func(n *policy.Trust) { n.Version = 3 }))...)
	refuses(t, exitFailed, "is of realm elsewhere", install(signedNext(t, dir, root, func(n *policy.Trust) { n.Realm = "elsewhere" }))...)
	refuses(t, exitFailed, "it was over", install(signedNext(t, dir, root, func(n *policy.Trust) {
		n.Expires = n.Issued.Add(time.Millisecond).Truncate(time.Second).Add(time.Second)
		time.Sleep(1100 * time.Millisecond)
	}))...)
	refuses(t, exitFailed, "does not give it role grant", install(signedNext(t, dir, root, func(n *policy.Trust) {
		role, _ := n.Role(policy.RoleGrant)
		key, err := signer.File(filepath.Join(other, grantKeyFile))
		if err != nil {
			t.Fatal(err)
		}
		public, err := policy.NewKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Take(policy.RoleGrant, role.Keys[0]); err != nil {
			t.Fatal(err)
		}
		if err := n.Give(policy.RoleGrant, public); err != nil {
			t.Fatal(err)
		}
	}))...)
	if now, err := os.ReadFile(filepath.Join(dir, trustFile)); err != nil || string(now) != string(first) {
		t.Fatal("what was refused changed the directory")
	}
	good := signedNext(t, dir, root, nil)
	if got := does(t, install(good)...); !strings.Contains(got, "Version 2") {
		t.Errorf("%s", got)
	}
	does(t, install(good)...) // again is no harm
	r := start(t, dir)
	if status, body := r.ask(t, r.client(t), "GET", "/api/v1/trust.json", "", ""); status != 200 || !strings.Contains(fmt.Sprint(body), "payload") {
		t.Errorf("trust: %d %v", status, body)
	}
	r.stop(t)
	// A replica with the former one, at the same database.
	for name := range sums(t, dir) {
		copyFile(t, filepath.Join(dir, name), filepath.Join(replica, name))
	}
	if err := os.WriteFile(filepath.Join(replica, trustFile), first, 0o644); err != nil {
		t.Fatal(err)
	}
	config := write(t, t.TempDir(), "control.toml", fmt.Sprintf("database = %q\n", filepath.Join(dir, databaseFile)))
	start(t, replica, "--config", config).stop(t)
	if got := openedTrust(t, replica); got.Version != 2 {
		t.Errorf("the replica stays at version %d", got.Version)
	}
	// A directory of no realm does not make one on a database that has one.
	refuses(t, exitFailed, "trust.json is missing", "serve", "--data", filepath.Join(t.TempDir(), "new"), "--config", config, "--listen", "127.0.0.1:0")
}
