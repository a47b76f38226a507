package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store"
	"github.com/jitgate/jitgate/control/store/storetest"
)

// copyDirectory is what an administrator does for another replica.
func copyDirectory(t testing.TB, from, to string) string {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return to
}

// Two replicas over one PostgreSQL are one control plane: what one took the
// other knows, sessions resume at either, and one is enough.
func TestReplicas(t *testing.T) {
	t.Setenv(databaseVariable, "")
	database := []string{databaseVariable + "=" + storetest.Shared(t).NewDatabase(t)}
	first := filepath.Join(t.TempDir(), "first")
	a, err := tryStart(t, first, database)
	if err != nil {
		t.Fatal(err)
	}
	b, err := tryStart(t, copyDirectory(t, first, filepath.Join(t.TempDir(), "second")), database)
	if err != nil {
		t.Fatal(err)
	}
	if b.said != "" {
		t.Errorf("the second says %q", b.said)
	}
	admin := a.token(t, adminTokenFile)
	if status, body := a.ask(t, a.client(t), "PUT", policy1+version1, admin, policyBody); status/100 != 2 {
		t.Fatalf("PUT at the first: %d %v", status, body)
	}
	if status, body := b.ask(t, b.client(t), "GET", policy1+version1, admin, ""); status != 200 {
		t.Errorf("GET at the second: %d %v", status, body)
	}
	// A session of the first at the second.
	config := a.client(t).Transport.(*http.Transport).TLSClientConfig.Clone()
	config.ClientSessionCache, config.ServerName = tls.NewLRUClientSessionCache(8), "localhost"
	resumed := func(r *running) bool {
		t.Helper()
		c, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), config)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			t.Fatal(err)
		}
		return c.ConnectionState().DidResume
	}
	if resumed(a) || !resumed(b) {
		t.Error("a session of the first is not resumed at the second")
	}
	a.kill()
	if status, body := b.ask(t, b.client(t), "POST", policy1+"/initiate"+version1, admin, `{"virtualMachines":[{"id":"`+vm1+`","ports":[{"number":22,"duration":"PT1H","allowedSourceAddressPrefix":"192.0.2.7"}]}]}`); status != 202 {
		t.Errorf("a request with the first killed: %d %v", status, body)
	}
	// Commands go to the database, beside the servers.
	c := command(t, "user", "add", "alice", "--role", "Reader", "--scope", "/", "--data", first)
	c.Env = append(c.Env, database...)
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("user add: %v: %s", err, out)
	}
	// Somebody else's directory does not become a second realm.
	strange, err := tryStart(t, filepath.Join(t.TempDir(), "strange"), database)
	if err == nil {
		strange.kill()
		t.Error("a second realm was made on one database")
	} else if !strings.Contains(err.Error(), "trust.json is missing") {
		t.Error(err)
	}
	b.stop(t)
}

// documentsOf are the signed documents of a store that no server has open.
func documentsOf(t *testing.T, dsn string) (all string) {
	t.Helper()
	s, err := store.Open(t.Context(), dsn, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.View(t.Context(), func(tx control.Tx) error {
		documents, err := tx.DocumentsAfter(0, 0)
		for _, d := range documents {
			all += fmt.Sprintf("%s %s %d %s\n", d.VM, d.Type, d.Version, d.Signed)
		}
		return err
	})
	if err != nil || !strings.Contains(all, "web1") {
		t.Fatalf("%v: %q", err, all)
	}
	return all
}

// Everything moves from SQLite to PostgreSQL, and back.
func TestMigrate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	r := start(t, dir)
	admin := r.token(t, adminTokenFile)
	if status, body := r.ask(t, r.client(t), "PUT", policy1+version1, admin, policyBody); status/100 != 2 {
		t.Fatalf("PUT: %d %v", status, body)
	}
	if status, body := r.ask(t, r.client(t), "POST", policy1+"/initiate"+version1, admin, `{"virtualMachines":[{"id":"`+vm1+`","ports":[{"number":22,"duration":"PT1H","allowedSourceAddressPrefix":"192.0.2.7"}]}]}`); status != 202 {
		t.Fatalf("initiate: %d %v", status, body)
	}
	does(t, "user", "add", "alice", "--role", "JITRequester", "--scope", group1, "--data", dir)
	does(t, "role", "put", "Approver", "--action", "*/read", "--data", dir)
	token := strings.Fields(does(t, "token", "create", "--for", "alice", "--data", dir))[0]
	does(t, "join", "create", "--scope", group1, "--data", dir)
	// seen is everything that the API shows, but for what changes by itself.
	seen := func(r *running) string {
		t.Helper()
		var all strings.Builder
		for _, path := range []string{policy1 + version1, "/api/v1/vms", "/api/v1/requests", "/api/v1/activity", "/api/v1/roles", "/api/v1/assignments", "/api/v1/tokens", "/api/v1/joins", "/api/v1/scopes"} {
			status, body := r.ask(t, r.client(t), "GET", path, admin, "")
			fmt.Fprintln(&all, path, status, body)
		}
		if status, _ := r.ask(t, r.client(t), "GET", policy1+version1, token, ""); status != 200 {
			t.Errorf("alice's token: %d", status)
		}
		return strings.ReplaceAll(all.String(), r.url, "")
	}
	before := seen(r)
	if strings.Contains(before, " 4") && regexp.MustCompile(`(?m)^\S+ [45]\d\d `).MatchString(before) {
		t.Fatalf("%s", before)
	}
	dsn := storetest.Shared(t).NewDatabase(t)
	refuses(t, exitFailed, "another jitgate-control serves", "migrate", "--to", dsn, "--data", dir)
	r.stop(t)
	if got := does(t, "migrate", "--data", dir); !strings.Contains(got, "schema is version") {
		t.Errorf("%s", got)
	}
	migrate := func(to string, env ...string) {
		t.Helper()
		c := command(t, "migrate", "--to", to, "--data", dir)
		c.Env = append(c.Env, env...)
		if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "Copied ") {
			t.Fatalf("%v: %s", err, out)
		}
	}
	documents := documentsOf(t, filepath.Join(dir, databaseFile))
	migrate(dsn)
	if got := documentsOf(t, dsn); got != documents {
		t.Errorf("documents on PostgreSQL:\n%s\nbefore:\n%s", got, documents)
	}
	c := command(t, "migrate", "--to", dsn, "--data", dir)
	if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "has a realm already") {
		t.Errorf("a second time: %v: %s", err, out)
	}
	database := []string{databaseVariable + "=" + dsn}
	r, err := tryStart(t, dir, database)
	if err != nil {
		t.Fatal(err)
	}
	if after := seen(r); after != before {
		t.Errorf("on PostgreSQL:\n%s\nbefore:\n%s", after, before)
	}
	r.stop(t)
	file := filepath.Join(t.TempDir(), "back.db")
	migrate(file, database...)
	if r, err = tryStart(t, dir, []string{databaseVariable + "=" + file}); err != nil {
		t.Fatal(err)
	}
	if after := seen(r); after != before {
		t.Errorf("back on SQLite:\n%s\nbefore:\n%s", after, before)
	}
	r.stop(t)
	refuses(t, exitUsage, "--to: not an address", "migrate", "--to", "somewhere", "--data", dir)
}

// A database that goes away takes nothing with it: the server says that it is
// not ready, refuses with 503, and goes on by itself when it is back.
func TestDatabaseAway(t *testing.T) {
	server := storetest.Server(t)
	r, err := tryStart(t, filepath.Join(t.TempDir(), "data"), []string{databaseVariable + "=" + server.NewDatabase(t)})
	if err != nil {
		t.Fatal(err)
	}
	admin := r.token(t, adminTokenFile)
	if status, body := r.ask(t, r.client(t), "PUT", policy1+version1, admin, policyBody); status/100 != 2 {
		t.Fatalf("PUT: %d %v", status, body)
	}
	ready := func(want int) func() bool {
		return func() bool {
			status, _ := r.ask(t, r.client(t), "GET", "/readyz", "", "")
			return status == want
		}
	}
	server.Kill(t)
	await(t, ready(503))
	if status, body := r.ask(t, r.client(t), "DELETE", policy1+version1, admin, ""); status != 503 {
		t.Errorf("DELETE without a database: %d %v", status, body)
	}
	if status, _ := r.ask(t, r.client(t), "GET", "/healthz", "", ""); status != 200 {
		t.Errorf("the process answers: %d", status)
	}
	server.Start(t)
	await(t, ready(200))
	if status, body := r.ask(t, r.client(t), "GET", policy1+version1, admin, ""); status != 200 {
		t.Errorf("GET afterwards: %d %v", status, body)
	}
	r.stop(t)
}
