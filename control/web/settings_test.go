package web

import (
	"crypto/x509"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// refused requires that a form was refused on a page that says so and keeps
// what was typed.
func (b *browser) refused(status int, path string, pairs []string, words ...string) {
	b.t.Helper()
	w := b.post(path, pairs...)
	if w.Code != status {
		b.t.Errorf("POST %s %q answers %d, not %d: %s", path, pairs, w.Code, status, gist(w.Body.String()))
	}
	for _, word := range append(words, `role="alert"`) {
		if !strings.Contains(w.Body.String(), word) {
			b.t.Errorf("POST %s %q: the page lacks %q: %s", path, pairs, word, gist(w.Body.String()))
		}
	}
}

// Each sees the settings that they have a part in, and no others.
func TestSettingsMenu(t *testing.T) {
	s := newSite(t)
	for role, want := range map[string]string{
		"Owner": "approval scopes joining roles signing", "Contributor": "approval scopes joining signing", "Reader": "approval scopes signing",
		"JITRequester": "approval scopes signing", "": "",
	} {
		b := s.signedIn(s.token("u"+strings.ToLower(role), role, groupPath))
		var there []string
		page := b.get("/ui/settings/approval").Body.String()
		for _, section := range sections {
			if strings.Contains(page, `<a href="/ui/settings/`+section.Name+`"`) {
				there = append(there, section.Name)
			}
			status := http.StatusForbidden
			if slices.Contains(strings.Fields(want), section.Name) {
				status = http.StatusOK
			}
			if w := b.get("/ui/settings/" + section.Name); w.Code != status {
				t.Errorf("%s at %s: %d", role, section.Name, w.Code)
			}
		}
		if strings.Join(there, " ") != want {
			t.Errorf("%s sees %v", role, there)
		}
		if w := b.get("/ui/settings"); role == "" && w.Code != http.StatusForbidden || role != "" && w.Result().Header.Get("Location") != "/ui/settings/approval" {
			t.Errorf("%s is led to %v", role, w.Result().Header)
		}
	}
}

func TestApprovalTerms(t *testing.T) {
	s := newSite(t)
	web1 := s.guard("web1", rule(22, "*", "PT3H"))
	id := control.PolicyID{Subscription: web1.Subscription, Group: web1.Group, Location: "westeurope", Name: "default"}
	owner := s.signedIn(s.owner)
	has(t, owner.page("/ui/settings/approval"), ">default</a>", "nobody</span>")
	terms := link("settings/terms", "subscription", id.Subscription, "group", id.Group, "location", id.Location, "name", id.Name)
	has(t, owner.page(link("vm", "id", web1)), strings.ReplaceAll(terms, "&", "&amp;"))
	page := owner.page(terms)
	has(t, page, `<option value="SecurityAdmin" selected>`, "its 1 machine")
	lacks(t, page, `<option value="Reader"`, " disabled") // whoever may not approve
	revision := regexp.MustCompile(`name="revision" value="(\d+)"`).FindStringSubmatch(page)[1]
	fields := func(more ...string) []string {
		return append([]string{"subscription", id.Subscription, "group", id.Group, "location", id.Location, "name", id.Name, "revision", revision}, more...)
	}
	owner.refused(http.StatusBadRequest, "/ui/settings/terms", fields("asks", "on", "approvers", "none", "role", "SecurityAdmin", "expires", "PT1H"), `value="none" aria-invalid="true"`)
	owner.refused(http.StatusBadRequest, "/ui/settings/terms", fields("asks", "on", "approvers", "1", "role", "Nobody", "expires", "PT1H"), `<option value="Nobody" selected>`)
	owner.refused(http.StatusBadRequest, "/ui/settings/terms", fields("asks", "on", "approvers", "1", "role", "SecurityAdmin", "expires", "P1Y"))
	if to := led(t, owner.post("/ui/settings/terms", fields("asks", "on", "approvers", "2", "role", "SecurityAdmin", "expires", "P1D", "justification", "on")...)); to != "/ui/settings/approval" {
		t.Errorf("saved one is led to %s", to)
	}
	v, err := s.engine.GetPolicy(t.Context(), s.admin, id)
	if want := (control.Approval{Approvers: 2, Role: "SecurityAdmin", Justification: true, Expires: "P1D"}); err != nil || v.Approval == nil || *v.Approval != want {
		t.Fatalf("the terms are %+v, %v", v.Approval, err)
	}
	has(t, owner.page("/ui/settings/approval"), "2 × SecurityAdmin")
	has(t, owner.page(terms), `name="asks" value="on" checked`, `name="approvers" inputmode="numeric" size="4" value="2"`, `<option value="P1D" selected>`)
	// Somebody else was faster.
	owner.refused(http.StatusPreconditionFailed, "/ui/settings/terms", fields())
	owner.refused(http.StatusBadRequest, "/ui/settings/terms", append(fields(), "revision", "")[:8])
	// Who may only look does not change it.
	alice := s.signedIn(s.token("alice", "JITRequester", groupPath))
	has(t, alice.page(terms), "<fieldset disabled>")
	lacks(t, alice.page(terms), ">Save<")
	revision = regexp.MustCompile(`name="revision" value="(\d+)"`).FindStringSubmatch(owner.page(terms))[1]
	alice.refused(http.StatusForbidden, "/ui/settings/terms", fields())
	// Who sees none of it is not told whether it is there.
	mallory := s.signedIn(s.token("mallory", "Owner", "/subscriptions/other"))
	if w := mallory.get(terms); w.Code != http.StatusForbidden {
		t.Errorf("a stranger: %d", w.Code)
	}
	led(t, owner.post("/ui/settings/terms", fields()...))
	if v, err := s.engine.GetPolicy(t.Context(), s.admin, id); err != nil || v.Approval != nil {
		t.Errorf("the terms are %+v, %v", v.Approval, err)
	}
}

func TestScopes(t *testing.T) {
	s := newSite(t)
	web1 := s.guard("web1", rule(22, "*", "PT3H"))
	owner := s.signedIn(s.owner)
	has(t, owner.page("/ui/settings/scopes"), "It is on everywhere.")
	for _, scope := range []string{"", "web", "/", web1.String()} {
		owner.refused(http.StatusBadRequest, "/ui/settings/scopes", []string{"scope", scope, "reason", "a move", "do", "off"}, `value="a move"`)
	}
	owner.refused(http.StatusBadRequest, "/ui/settings/scopes", []string{"scope", groupPath})
	led(t, owner.post("/ui/settings/scopes", "scope", groupPath+"/", "reason", "a move", "do", "off"))
	has(t, owner.page("/ui/settings/scopes"), ">off</span>", "a move", "Switch on at")
	if w := owner.post("/ui/request", "vm", web1.String(), "on.0.22", "on", "for.0.22", "PT1H"); w.Code == http.StatusSeeOther {
		t.Error("a request where it is off was taken")
	}
	alice := s.signedIn(s.token("alice", "JITRequester", groupPath))
	page := alice.page("/ui/settings/scopes")
	has(t, page, ">off</span>")
	lacks(t, page, "Switch on")
	alice.refused(http.StatusForbidden, "/ui/settings/scopes", []string{"scope", groupPath, "do", "on"})
	led(t, owner.post("/ui/settings/scopes", "scope", strings.ToLower(groupPath), "do", "on"))
	has(t, owner.page("/ui/settings/scopes"), ">on</span>", "Switch off at")
	led(t, owner.post("/ui/request", "vm", web1.String(), "on.0.22", "on", "for.0.22", "PT1H"))
}

func TestRoles(t *testing.T) {
	s := newSite(t)
	owner := s.signedIn(s.owner)
	has(t, owner.page("/ui/settings/roles"), "local:admin", "everywhere")
	give := func(principal, role, scope string) []string {
		return []string{"principal", principal, "role", role, "scope", scope, "do", "give"}
	}
	owner.refused(http.StatusBadRequest, "/ui/settings/roles", give("Alice", "Reader", "/"), `value="Alice"`, `aria-invalid="true"`)
	owner.refused(http.StatusBadRequest, "/ui/settings/roles", give("local:alice", "Reader", "web"), `value="web" size="52"`)
	owner.refused(http.StatusBadRequest, "/ui/settings/roles", give("local:alice", "King", "/"))
	owner.refused(http.StatusBadRequest, "/ui/settings/roles", []string{"principal", "local:alice", "role", "Reader", "scope", "/"})
	alice := s.signedIn(s.token("alice", "", ""))
	if w := alice.get("/ui/vms"); w.Code != http.StatusForbidden {
		t.Fatalf("without a role: %d", w.Code)
	}
	led(t, owner.post("/ui/settings/roles", give(" local:alice ", "Owner", groupPath)...))
	alice.page("/ui/vms")
	// Alice gives where she is Owner, and sees nothing of elsewhere.
	page := alice.page("/ui/settings/roles")
	has(t, page, "local:alice")
	lacks(t, page, "local:admin")
	alice.refused(http.StatusForbidden, "/ui/settings/roles", give("local:bob", "Reader", "/"))
	led(t, alice.post("/ui/settings/roles", give("local:bob", "JITRequester", groupPath)...))
	has(t, owner.page("/ui/settings/roles?q=BOB"), "local:bob")
	lacks(t, owner.page("/ui/settings/roles?q=BOB"), "local:admin")
	bob := s.signedIn(s.token("bob", "", ""))
	bob.refused(http.StatusForbidden, "/ui/settings/roles", give("local:bob", "Owner", groupPath))
	led(t, owner.post("/ui/settings/roles", "principal", "local:bob", "role", "JITRequester", "scope", groupPath, "do", "take"))
	if w := bob.get("/ui/vms"); w.Code != http.StatusForbidden {
		t.Errorf("with the role taken away: %d", w.Code)
	}
	owner.refused(http.StatusConflict, "/ui/settings/roles", []string{"principal", "local:admin", "role", "Owner", "scope", "/", "do", "take"}, "last Owner")
}

func TestJoining(t *testing.T) {
	s := newSite(t)
	web1 := s.put("web1", control.VMInput{OS: "Linux"})
	owner := s.signedIn(s.owner)
	owner.refused(http.StatusBadRequest, "/ui/settings/joining", []string{"scope", groupPath, "uses", "1", "valid", "PT1H", "do", "make"}, "no key")
	s.engine.CA = &x509.Certificate{}
	has(t, owner.page(link("vm", "id", web1)), ">Join</a>")
	has(t, owner.page(link("settings/joining", "scope", web1)), `value="`+web1.String()+`"`)
	owner.refused(http.StatusBadRequest, "/ui/settings/joining", []string{"scope", "", "uses", "1", "valid", "PT1H", "do", "make"})
	owner.refused(http.StatusBadRequest, "/ui/settings/joining", []string{"scope", groupPath, "uses", "many", "valid", "PT1H", "do", "make"}, `value="many"`)
	owner.refused(http.StatusBadRequest, "/ui/settings/joining", []string{"scope", groupPath, "uses", "0", "valid", "PT1H", "do", "make"})
	owner.refused(http.StatusBadRequest, "/ui/settings/joining", []string{"scope", groupPath, "uses", "1", "valid", "P31D", "do", "make"})
	w := owner.post("/ui/settings/joining", "scope", web1.String(), "uses", "1", "valid", "PT15M", "do", "make")
	page := w.Body.String()
	if w.Code != http.StatusOK || w.Header().Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	harmlessPage(t, "the page with a token", page)
	has(t, page, "jitgate enroll --control "+here+" --token jgj_", " --host-id "+web1.String(), "systemctl restart jitgate")
	token := regexp.MustCompile(`jgj_[-_A-Za-z0-9]+`).FindString(page)
	page = owner.page("/ui/settings/joining")
	lacks(t, page, token) // it is shown once
	id := regexp.MustCompile(`name="id" value="([0-9a-f]+)"`).FindStringSubmatch(page)[1]
	// Who may not enrol sees none, makes none and revokes none.
	alice := s.signedIn(s.token("alice", "Reader", control.Everywhere))
	if w := alice.get("/ui/settings/joining"); w.Code != http.StatusForbidden {
		t.Errorf("a reader: %d", w.Code)
	}
	for _, fields := range [][]string{{"scope", web1.String(), "uses", "1", "valid", "PT1H", "do", "make"}, {"id", id, "do", "revoke"}} {
		if w := alice.post("/ui/settings/joining", fields...); w.Code != http.StatusForbidden {
			t.Errorf("a reader, %q: %d", fields, w.Code)
		}
	}
	lacks(t, alice.page(link("vm", "id", web1)), ">Join</a>")
	has(t, owner.page("/ui/settings/joining"), id)
	owner.refused(http.StatusNotFound, "/ui/settings/joining", []string{"id", "0", "do", "revoke"})
	led(t, owner.post("/ui/settings/joining", "id", id, "do", "revoke"))
	has(t, owner.page("/ui/settings/joining"), "There is none.")
}

func TestSigning(t *testing.T) {
	s := newSite(t)
	owner := s.signedIn(s.owner)
	has(t, owner.page("/ui/settings/signing"), "this control plane, by itself", "Nothing waits for a signature.")
	s.guard("web1", rule(22, "*", "PT3H"))
	key := s.engine.Realm.Policy
	s.engine.Realm.Policy = nil // people sign from now on
	web1 := vmID(t, "web1")
	if _, err := s.engine.EditPorts(t.Context(), s.admin, web1, []control.PortRule{rule(22, "203.0.113.0/24", "PT1H"), rule(8443, "*", "PT30M")}, ""); err != nil {
		t.Fatal(err)
	}
	has(t, owner.page(link("vm", "id", web1)), `<a href="/ui/settings/signing">`)
	page := owner.page("/ui/settings/signing")
	has(t, page, "<dd>people</dd>", ">web1</a>", "0 of 1", "22/tcp from anywhere, for 3 h at most", "22/tcp from 203.0.113.0/24, for 1 h at most", "8443/tcp from anywhere, for 30 min at most",
		"jitgate policy sign --ssh-key KEY.pub web1")
	alice := s.signedIn(s.token("alice", "Reader", "/subscriptions/other"))
	lacks(t, alice.page("/ui/settings/signing"), "web1")
	all, err := s.engine.PendingPolicies(t.Context(), s.admin)
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	e := policy.Envelope{Type: policy.TypePolicy, Payload: all[0].Payload}
	if err := e.Sign(key); err != nil {
		t.Fatal(err)
	}
	if _, done, err := s.engine.AcceptPolicy(t.Context(), s.admin, e.Encode()); err != nil || !done {
		t.Fatal(done, err)
	}
	has(t, owner.page("/ui/settings/signing"), "Nothing waits for a signature.")
}

// A long list comes in pages, each of which is light.
func TestLongSettings(t *testing.T) {
	s := newSite(t)
	owner := s.signedIn(s.owner)
	const all = 2*pageRows + 7
	for i := range all {
		a := control.Assignment{Principal: "local:somebody-with-a-long-name-" + strings.Repeat("x", i%20) + string(rune('a'+i/26)) + string(rune('a'+i%26)), Role: "JITRequester", Scope: groupPath}
		if err := s.engine.Assign(t.Context(), s.admin, a); err != nil {
			t.Fatal(err)
		}
	}
	if w := owner.weight("/ui/settings/roles"); w > 100_000 {
		t.Errorf("a full page weighs %d bytes", w)
	}
	seen := map[string]bool{}
	path := "/ui/settings/roles"
	for range 4 {
		page := owner.page(path)
		for _, m := range regexp.MustCompile(`class="why">(local:[^<]+)</th>`).FindAllStringSubmatch(page, -1) {
			seen[m[1]] = true
		}
		m := regexp.MustCompile(`rel="next" href="([^"]+)"`).FindStringSubmatch(page)
		if m == nil {
			break
		}
		path = strings.ReplaceAll(m[1], "&amp;", "&")
	}
	if len(seen) != all+1 { // and the admin
		t.Errorf("%d of %d were shown", len(seen), all+1)
	}
	for _, from := range []string{"-1", "x", "99999999999999999999", "1000"} {
		has(t, owner.page("/ui/settings/roles?from="+url.QueryEscape(from)), "local:admin")
	}
}
