package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// People and tokens live and end in the same way, whether a server runs or not.
func TestAccess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	r := start(t, dir)
	for _, serving := range []bool{true, false} {
		if !serving {
			r.stop(t)
		}
		status := func(token string) int {
			t.Helper()
			if !serving {
				r = start(t, dir)
				defer r.stop(t)
			}
			status, _ := r.ask(t, r.client(t), "GET", policy1+version1, token, "")
			return status
		}
		out := does(t, "token", "create", "--for", "Alice@example.com", "--note", "her laptop", "--expires", "2d", "--json", "--data", dir)
		var made struct {
			Token, ID, Principal string
			Expires              time.Time
		}
		if err := json.Unmarshal([]byte(out), &made); err != nil || made.Principal != "local:alice@example.com" || time.Until(made.Expires) > 48*time.Hour {
			t.Fatalf("%v: %s", err, out)
		}
		if got := status(made.Token); got != 403 {
			t.Errorf("serving %v: without a role: %d", serving, got)
		}
		does(t, "user", "add", "alice@example.com", "--role", "jitrequester", "--scope", group1, "--data", dir)
		if got := does(t, "user", "list", "--data", dir); !regexp.MustCompile(`local:alice@example\.com +JITRequester +` + strings.ToLower(group1)).MatchString(got) {
			t.Errorf("user list: %s", got)
		}
		if got := status(made.Token); got != 404 { // she may look, and there is no such policy
			t.Errorf("serving %v: with a role: %d", serving, got)
		}
		if got := does(t, "token", "list", "--data", dir); !strings.Contains(got, made.ID) || !strings.Contains(got, "her laptop") || strings.Contains(got, made.Token) {
			t.Errorf("token list: %s", got)
		}
		does(t, "token", "revoke", made.ID, "--data", dir)
		if got := status(made.Token); got != 401 {
			t.Errorf("serving %v: with a token revoked: %d", serving, got)
		}
		bounded := strings.Fields(does(t, "token", "create", "--for", "alice@example.com", "--role", "Reader", "--scope", "/subscriptions/other", "--data", dir))[0]
		if got := status(bounded); got != 403 {
			t.Errorf("serving %v: with a token for elsewhere: %d", serving, got)
		}
		if got := does(t, "user", "remove", "alice@example.com", "--data", dir); !strings.Contains(got, "1 roles taken away, 1 tokens revoked") {
			t.Errorf("user remove: %s", got)
		}
		if got := status(bounded); got != 401 {
			t.Errorf("serving %v: after user remove: %d", serving, got)
		}
		refuses(t, exitFailed, "has no role and no token", "user", "remove", "alice@example.com", "--data", dir)
		refuses(t, exitFailed, "last Owner", "user", "remove", "admin", "--data", dir)
		refuses(t, exitFailed, "There is no role 'Nobody'", "user", "add", "x", "--role", "Nobody", "--scope", "/", "--data", dir)
		refuses(t, exitFailed, "is not a scope", "user", "add", "x", "--role", "Reader", "--scope", "subscriptions", "--data", dir)
		refuses(t, exitFailed, "not a principal", "user", "add", "x y", "--role", "Reader", "--scope", "/", "--data", dir)
		refuses(t, exitFailed, "no token", "token", "revoke", "abc", "--data", dir)
		refuses(t, exitUsage, "not a time", "token", "create", "--for", "x", "--expires", "soon", "--data", dir)
		refuses(t, exitUsage, "--role is missing", "user", "add", "x", "--data", dir)
		refuses(t, exitUsage, "go together", "user", "remove", "x", "--role", "Reader", "--data", dir)

		does(t, "role", "put", "Approver", "--action", "*/read", "--action", "Microsoft.Security/locations/jitNetworkAccessPolicies/approve/action", "--not-action", "Microsoft.Compute/*", "--description", "agrees", "--data", dir)
		if got := does(t, "role", "list", "--data", dir); !strings.Contains(got, "JITRequester") || !regexp.MustCompile(`Approver +agrees +\*/read .*approve/action but Microsoft\.Compute/\*`).MatchString(got) {
			t.Errorf("role list: %s", got)
		}
		does(t, "user", "add", "group:admins", "--role", "approver", "--scope", "/", "--data", dir)
		refuses(t, exitFailed, "still given to", "role", "delete", "Approver", "--data", dir)
		does(t, "user", "remove", "group:admins", "--role", "Approver", "--scope", "/", "--data", dir)
		does(t, "role", "delete", "approver", "--data", dir)
		refuses(t, exitFailed, "built-in role", "role", "delete", "Owner", "--data", dir)

		join := does(t, "join", "create", "--scope", group1, "--uses", "3", "--expires", "2h", "--json", "--data", dir)
		var token struct{ Token, ID, Scope string }
		if err := json.Unmarshal([]byte(join), &token); err != nil || !strings.HasPrefix(token.Token, "jgj_") || token.Scope != strings.ToLower(group1) {
			t.Fatalf("%v: %s", err, join)
		}
		if got := does(t, "join", "list", "--data", dir); !regexp.MustCompile(token.ID + ` +` + token.Scope + ` +3 `).MatchString(got) {
			t.Errorf("join list: %s", got)
		}
		does(t, "join", "revoke", token.ID, "--data", dir)
		if got := does(t, "join", "list", "--data", dir); strings.Contains(got, token.ID) {
			t.Errorf("join list after revoke: %s", got)
		}
		at := "https://"
		if serving {
			at = r.url
		}
		command := regexp.MustCompile(`\n  jitgate enroll --control ` + regexp.QuoteMeta(at) + `\S* --token jgj_[-\w]+ --host-id ` + regexp.QuoteMeta(vm1) + `\n`)
		if got := does(t, "join", "create", "--vm", vm1, "--data", dir); !command.MatchString(got) {
			t.Errorf("join create: %s", got)
		}
		refuses(t, exitUsage, "--vm: ", "join", "create", "--vm", "web1", "--data", dir)
		refuses(t, exitUsage, "one of them", "join", "create", "--vm", vm1, "--scope", "/", "--data", dir)
		refuses(t, exitUsage, "--uses 0", "join", "create", "--scope", "/", "--uses", "0", "--data", dir)
	}
	if got := does(t, "user", "list", "--data", dir, "--scope", "/subscriptions/none"); strings.Contains(got, "admin") {
		t.Errorf("user list of a scope: %s", got)
	}
	refuses(t, exitFailed, "no data directory yet", "user", "list", "--data", filepath.Join(t.TempDir(), "none"))
	// Settings that were forgotten do not make a second database.
	if err := os.Rename(filepath.Join(dir, databaseFile), filepath.Join(dir, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"user", "list"}, {"migrate"}} {
		refuses(t, exitFailed, "there is no database", append(args, "--data", dir)...)
	}
	if _, err := os.Stat(filepath.Join(dir, databaseFile)); !os.IsNotExist(err) {
		t.Errorf("%v", err)
	}
}

// A path too long for a socket's address works as well.
func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("a-long-name-", 15), "data")
	r := start(t, dir)
	does(t, "user", "add", "bob", "--role", "Reader", "--scope", "/", "--data", dir)
	if got := does(t, "user", "list", "--data", dir); !strings.Contains(got, "local:bob") {
		t.Errorf("%s", got)
	}
	r.stop(t)
}

// A server runs nothing for others but what works on its database.
func TestRemoteCommands(t *testing.T) {
	for _, args := range [][]string{nil, {"serve"}, {"backup", "/x"}, {"restore", "/x"}, {"migrate"}, {"help"}, {"--help"}} {
		if o := runFor(t.Context(), nil, args); o.Error == "" || len(o.Out) > 0 {
			t.Errorf("%v: %+v", args, o)
		}
	}
}

// The admin's token is made once: an administrator who removed it, after other
// people were made Owners, does not find it again.
func TestAdminTokenStaysAway(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	start(t, dir).stop(t)
	does(t, "user", "add", "alice", "--role", "Owner", "--scope", "/", "--data", dir)
	does(t, "user", "remove", "admin", "--data", dir)
	if err := os.Remove(filepath.Join(dir, adminTokenFile)); err != nil {
		t.Fatal(err)
	}
	start(t, dir).stop(t)
	if _, err := os.Stat(filepath.Join(dir, adminTokenFile)); !os.IsNotExist(err) {
		t.Errorf("%v", err)
	}
	if got := does(t, "user", "list", "--data", dir); strings.Contains(got, "local:admin") {
		t.Errorf("%s", got)
	}
}
