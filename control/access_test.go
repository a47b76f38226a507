package control_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/identity"
)

const (
	sub1   = control.Scope("/subscriptions/s1")
	group1 = control.Scope("/subscriptions/s1/resourcegroups/g1")
	group2 = control.Scope("/subscriptions/s1/resourcegroups/g2")
)

func TestBootstrap(t *testing.T) {
	d := newDesk(t)
	token, hash := identity.NewToken()
	for i, want := range []bool{true, false} {
		given, err := control.Bootstrap(t.Context(), d.store, hash, d.now())
		if err != nil || given != want {
			t.Fatalf("start %d: given %v, %v", i+1, given, err)
		}
	}
	id, err := identity.New(identity.Config{Store: d.store, Now: d.now})
	if err != nil {
		t.Fatal(err)
	}
	d.forward(10 * 365 * 24 * time.Hour)
	owner, err := id.Authenticate(t.Context(), token)
	if err != nil || owner.ID != control.FirstOwner || !owner.May(control.ActionRoles, control.Everywhere) || !owner.Holds("Owner", group1) {
		t.Errorf("%+v, %v", owner, err)
	}
	// With an Owner there, another token of the first start is nobody's.
	other, hash2 := identity.NewToken()
	if given, err := control.Bootstrap(t.Context(), d.store, hash2, d.now()); given || err != nil {
		t.Errorf("given %v, %v", given, err)
	}
	if c, err := id.Authenticate(t.Context(), other); err == nil {
		t.Errorf("%+v", c)
	}
	if lines := d.lines(); len(lines) != 2 || lines[0].Event != control.EventAccessGiven || lines[1].Event != control.EventTokenCreated {
		t.Errorf("%+v", lines)
	}
}

func TestAssign(t *testing.T) {
	d := newDesk(t)
	owner := caller("local:admin", "Owner", "/")
	of1 := caller("local:boss1", "Owner", string(group1))
	reader := caller("local:reader", "Reader", "/")
	giver := caller("local:giver", "JITRequester", string(group1))
	giver.Rights = append(giver.Rights, control.Right{Role: control.Role{Name: "Giver", Actions: []string{string(control.ActionRoles)}}, Scope: group1})
	type A = control.Assignment
	for _, a := range []A{
		{"local:admin", "Owner", control.Everywhere},
		{"local:boss1", "Owner", group1},
	} {
		if err := d.Assign(t.Context(), owner, a); err != nil {
			t.Fatal(err)
		}
	}
	before := len(d.lines())
	for name, test := range map[string]struct {
		by   control.Caller
		what A
		kind control.Kind
		code string
	}{
		"no right":           {reader, A{"local:x", "Reader", "/"}, control.Forbidden, "AuthorizationFailed"},
		"elsewhere":          {of1, A{"local:x", "Reader", group2}, control.Forbidden, "AuthorizationFailed"},
		"above":              {of1, A{"local:x", "Reader", sub1}, control.Forbidden, "AuthorizationFailed"},
		"more than one has":  {giver, A{"local:giver", "Owner", group1}, control.Forbidden, "AuthorizationFailed"},
		"read, with request": {giver, A{"local:x", "Reader", group1}, control.Forbidden, "AuthorizationFailed"},
		"no such role":       {owner, A{"local:x", "Emperor", "/"}, control.Invalid, "RoleDefinitionDoesNotExist"},
		"nobody":             {owner, A{"", "Reader", "/"}, control.Invalid, "InvalidPrincipalId"},
		"a name alone":       {owner, A{"alice", "Reader", "/"}, control.Invalid, "InvalidPrincipalId"},
		"capitals":           {owner, A{"local:Alice", "Reader", "/"}, control.Invalid, "InvalidPrincipalId"},
		"two lines":          {owner, A{"group:a\nb", "Reader", "/"}, control.Invalid, "InvalidPrincipalId"},
		"no issuer":          {owner, A{"http://x#y", "Reader", "/"}, control.Invalid, "InvalidPrincipalId"},
		"no scope":           {owner, A{"local:x", "Reader", ""}, control.Invalid, "InvalidScope"},
		"half a scope":       {owner, A{"local:x", "Reader", "/subscriptions"}, control.Invalid, "InvalidScope"},
		"a way out":          {owner, A{"local:x", "Reader", "/subscriptions/s1/resourceGroups/.."}, control.Invalid, "InvalidScope"},
	} {
		refused(t, name, d.Assign(t.Context(), test.by, test.what), test.kind, test.code)
	}
	all, err := d.ListAssignments(t.Context(), owner, "")
	if err != nil || len(all) != 2 {
		t.Fatalf("refusals left %+v, %v", all, err)
	}
	failed := d.lines()[before:]
	if len(failed) != 11 { // all but those that name no scope
		t.Errorf("%d refusals recorded", len(failed))
	}
	for _, l := range failed {
		if l.Status != "Failed" || l.Code == "" || l.Event != control.EventAccessGiven || l.Operation != string(control.ActionRoles) || l.Principal == "" || l.Call != "call-of-"+l.Principal {
			t.Errorf("%+v", l)
		}
	}

	for _, a := range []A{
		{"group:ops team", "securityadmin", "/subscriptions/S1/resourceGroups/G1"},
		{"role:Admins", "Contributor", group1},
		{"https://login.example/t/v2.0#t/o", "JITRequester", "/subscriptions/s1/resourcegroups/g1/providers/microsoft.compute/virtualmachines/vm1"},
	} {
		if err := d.Assign(t.Context(), of1, a); err != nil {
			t.Errorf("%+v: %v", a, err)
		}
		if err := d.Assign(t.Context(), of1, a); err != nil { // again is no harm
			t.Errorf("%+v: %v", a, err)
		}
	}
	if err := d.Assign(t.Context(), giver, A{"local:x", "JITRequester", group1}); err != nil {
		t.Errorf("what one has oneself: %v", err)
	}
	if l := d.last(); l.Status != "Succeeded" || l.Reason != "JITRequester to local:x" || l.Scope != group1 || l.Actor != "giver" {
		t.Errorf("%+v", l)
	}
	if all, err = d.ListAssignments(t.Context(), of1, ""); err != nil || len(all) != 5 {
		t.Errorf("of the group: %+v, %v", all, err)
	}
	if !slices.Contains(all, A{"group:ops team", "SecurityAdmin", group1}) {
		t.Errorf("not in the one spelling: %+v", all)
	}
	if all, err = d.ListAssignments(t.Context(), owner, group2); err != nil || len(all) != 0 {
		t.Errorf("of the other group: %+v, %v", all, err)
	}
	_, err = d.ListAssignments(t.Context(), of1, group2)
	refused(t, "another's list", err, control.Forbidden, "AuthorizationFailed")
	_, err = d.ListAssignments(t.Context(), reader, "")
	refused(t, "a reader's list", err, control.Forbidden, "AuthorizationFailed")
}

func TestUnassign(t *testing.T) {
	d := newDesk(t)
	owner, of1 := caller("local:admin", "Owner", "/"), caller("local:boss1", "Owner", string(group1))
	type A = control.Assignment
	given := []A{{"local:admin", "Owner", "/"}, {"group:owners", "Owner", "/"}, {"local:boss1", "Owner", group1}, {"local:x", "gone", group1}, {"local:x", "Reader", "/"}}
	d.put(func(tx control.Tx) error {
		var errs []error
		for _, a := range given {
			errs = append(errs, tx.PutAssignment(a))
		}
		return errors.Join(errs...)
	})
	limited := caller("local:giver")
	limited.Rights = []control.Right{{Role: control.Role{Name: "Giver", Actions: []string{string(control.ActionRoles)}}, Scope: group1}}
	for name, test := range map[string]struct {
		by   control.Caller
		what A
		kind control.Kind
		code string
	}{
		"the last Owner":         {owner, A{"local:admin", "owner", "/"}, control.Conflict, "LastOwner"},
		"not there":              {owner, A{"local:y", "Reader", "/"}, control.NotFound, "RoleAssignmentNotFound"},
		"not at that scope":      {owner, A{"local:x", "Reader", sub1}, control.NotFound, "RoleAssignmentNotFound"},
		"above":                  {of1, A{"local:x", "Reader", "/"}, control.Forbidden, "AuthorizationFailed"},
		"of somebody mightier":   {limited, A{"local:boss1", "Owner", group1}, control.Forbidden, "AuthorizationFailed"},
		"a scope that is no one": {owner, A{"local:x", "Reader", "x"}, control.Invalid, "InvalidScope"},
	} {
		refused(t, name, d.Unassign(t.Context(), test.by, test.what), test.kind, test.code)
	}
	if all, err := d.ListAssignments(t.Context(), owner, ""); err != nil || len(all) != len(given) {
		t.Fatalf("%+v, %v", all, err)
	}
	for name, test := range map[string]struct {
		by   control.Caller
		what A
	}{
		"a group's":                   {owner, A{"group:owners", "Owner", "/"}},
		"a role that is gone":         {limited, A{"local:x", "GONE", group1}},
		"an Owner, but of less":       {owner, A{"local:boss1", "Owner", "/subscriptions/s1/resourceGroups/g1"}},
		"in other letters than given": {owner, A{"local:x", "READER", "/"}},
	} {
		if err := d.Unassign(t.Context(), test.by, test.what); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := d.Assign(t.Context(), owner, A{"local:second", "Owner", "/"}); err != nil {
		t.Fatal(err)
	}
	if err := d.Unassign(t.Context(), owner, A{"local:admin", "Owner", "/"}); err != nil {
		t.Errorf("one of two: %v", err)
	}
	if all, err := d.ListAssignments(t.Context(), owner, ""); err != nil || !slices.Equal(all, []A{{"local:second", "Owner", "/"}}) {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestDefineRoles(t *testing.T) {
	d := newDesk(t)
	owner, contributor := caller("local:admin", "Owner", "/"), caller("local:c", "Contributor", "/")
	// May define roles, and has but Reader beside.
	definer := caller("local:definer", "Reader", "/")
	definer.Rights = append(definer.Rights, control.Right{Role: control.Role{Actions: []string{string(control.ActionRoles)}}, Scope: "/"})
	approver := control.Role{Name: "Approver", Description: "says yes", Actions: []string{string(control.ActionApprove), "Microsoft.Security/*/read"}, NotActions: []string{"x/y"}}
	got, err := d.PutRole(t.Context(), owner, approver)
	if err != nil || got.Name != "Approver" {
		t.Fatalf("%+v, %v", got, err)
	}
	many := make([]string, 51)
	for i := range many {
		many[i] = "a/read"
	}
	for name, test := range map[string]struct {
		by   control.Caller
		role control.Role
		kind control.Kind
		code string
	}{
		"a Contributor":         {contributor, control.Role{Name: "X", Actions: []string{"*/read"}}, control.Forbidden, "AuthorizationFailed"},
		"of a group":            {caller("local:b", "Owner", string(group1)), control.Role{Name: "X", Actions: []string{"*/read"}}, control.Forbidden, "AuthorizationFailed"},
		"more than one has":     {definer, control.Role{Name: "X", Actions: []string{"*"}}, control.Forbidden, "AuthorizationFailed"},
		"less than a mightier":  {definer, control.Role{Name: "approver", Actions: []string{"*/read"}}, control.Forbidden, "AuthorizationFailed"},
		"a built-in one":        {owner, control.Role{Name: "owner", Actions: []string{"*"}}, control.Invalid, "InvalidRoleDefinition"},
		"no name":               {owner, control.Role{Actions: []string{"*"}}, control.Invalid, "InvalidRoleDefinition"},
		"name of two lines":     {owner, control.Role{Name: "a\nb", Actions: []string{"*"}}, control.Invalid, "InvalidRoleDefinition"},
		"name with a space":     {owner, control.Role{Name: "a ", Actions: []string{"*"}}, control.Invalid, "InvalidRoleDefinition"},
		"long name":             {owner, control.Role{Name: strings.Repeat("a", 129), Actions: []string{"*"}}, control.Invalid, "InvalidRoleDefinition"},
		"long description":      {owner, control.Role{Name: "X", Description: strings.Repeat("a", 257), Actions: []string{"*"}}, control.Invalid, "InvalidRoleDefinition"},
		"no actions":            {owner, control.Role{Name: "X"}, control.Invalid, "InvalidRoleDefinition"},
		"too many":              {owner, control.Role{Name: "X", Actions: many}, control.Invalid, "InvalidRoleDefinition"},
		"no action":             {owner, control.Role{Name: "X", Actions: []string{"a b"}}, control.Invalid, "InvalidRoleDefinition"},
		"no action to take out": {owner, control.Role{Name: "X", Actions: []string{"*"}, NotActions: []string{""}}, control.Invalid, "InvalidRoleDefinition"},
	} {
		_, err := d.PutRole(t.Context(), test.by, test.role)
		refused(t, name, err, test.kind, test.code)
	}
	if _, err := d.PutRole(t.Context(), definer, control.Role{Name: "Seer", Actions: []string{"Microsoft.Security/*/read"}}); err != nil {
		t.Errorf("within one's rights: %v", err)
	}
	if got, err = d.PutRole(t.Context(), owner, control.Role{Name: "APPROVER", Actions: []string{string(control.ActionApprove)}}); err != nil || got.Name != "Approver" {
		t.Errorf("changed: %+v, %v", got, err)
	}
	roles, err := d.ListRoles(t.Context(), definer)
	if err != nil || len(roles) != len(control.BuiltinRoles())+2 {
		t.Fatalf("%+v, %v", roles, err)
	}
	_, err = d.ListRoles(t.Context(), caller("local:r", "Reader", "/"))
	refused(t, "a reader", err, control.Forbidden, "AuthorizationFailed")
	if _, err = d.ListRoles(t.Context(), caller("local:b", "Owner", string(group1))); err != nil {
		t.Errorf("who gives roles in a group: %v", err)
	}

	if err := d.Assign(t.Context(), owner, control.Assignment{Principal: "local:x", Role: "approver", Scope: group1}); err != nil {
		t.Fatal(err)
	}
	refused(t, "given", d.DeleteRole(t.Context(), owner, "APPROVER"), control.Conflict, "RoleDefinitionHasAssignments")
	refused(t, "built in", d.DeleteRole(t.Context(), owner, "Reader"), control.Invalid, "InvalidRoleDefinition")
	refused(t, "not there", d.DeleteRole(t.Context(), owner, "X"), control.NotFound, "RoleDefinitionDoesNotExist")
	refused(t, "no right", d.DeleteRole(t.Context(), contributor, "Seer"), control.Forbidden, "AuthorizationFailed")
	refused(t, "mightier", d.DeleteRole(t.Context(), definer, "Approver"), control.Forbidden, "AuthorizationFailed")
	if err := d.DeleteRole(t.Context(), definer, "seer"); err != nil {
		t.Error(err)
	}
	if l := d.last(); l.Event != control.EventRoleDeleted || l.Status != "Succeeded" {
		t.Errorf("%+v", l)
	}
	if roles, err = d.ListRoles(t.Context(), owner); err != nil || len(roles) != len(control.BuiltinRoles())+1 {
		t.Errorf("%+v, %v", roles, err)
	}
}

func TestTokens(t *testing.T) {
	d := newDesk(t)
	id, err := identity.New(identity.Config{Store: d.store, Now: d.now})
	if err != nil {
		t.Fatal(err)
	}
	owner := caller("local:admin", "Owner", "/")
	alice := caller("https://i.example#alice", "JITRequester", string(group1))
	program := alice
	program.ID, program.Type = "https://i.example#program", control.TypeApplication
	giver := caller("local:giver", "Reader", "/")
	giver.Rights = append(giver.Rights, control.Right{Role: control.Role{Actions: []string{string(control.ActionRoles)}}, Scope: "/"})
	bounded := owner
	bounded.Limits = []control.Right{owner.Rights[0]}
	d.put(func(tx control.Tx) error {
		return errors.Join(
			tx.PutAssignment(control.Assignment{Principal: alice.ID, Role: "JITRequester", Scope: group1}),
			tx.PutAssignment(control.Assignment{Principal: "local:boss1", Role: "Owner", Scope: group1}),
			tx.PutAssignment(control.Assignment{Principal: "local:seer", Role: "SecurityReader", Scope: group1}))
	})
	for name, test := range map[string]struct {
		by   control.Caller
		in   control.TokenInput
		kind control.Kind
		code string
	}{
		"with a bounded token":  {bounded, control.TokenInput{}, control.Forbidden, "AuthorizationFailed"},
		"a program":             {program, control.TokenInput{}, control.Forbidden, "AuthorizationFailed"},
		"another's":             {alice, control.TokenInput{Principal: "local:boss1"}, control.Forbidden, "AuthorizationFailed"},
		"of somebody mightier":  {giver, control.TokenInput{Principal: "local:boss1"}, control.Forbidden, "AuthorizationFailed"},
		"of one from elsewhere": {owner, control.TokenInput{Principal: alice.ID}, control.Invalid, "InvalidToken"},
		"of a group":            {owner, control.TokenInput{Principal: "group:x"}, control.Invalid, "InvalidToken"},
		"too long":              {alice, control.TokenInput{Valid: 367 * 24 * time.Hour}, control.Invalid, "InvalidToken"},
		"backwards":             {alice, control.TokenInput{Valid: -time.Second}, control.Invalid, "InvalidToken"},
		"no such role":          {alice, control.TokenInput{Role: "Emperor"}, control.Invalid, "RoleDefinitionDoesNotExist"},
		"no scope":              {alice, control.TokenInput{Scope: "x"}, control.Invalid, "InvalidScope"},
		"a long note":           {alice, control.TokenInput{Note: strings.Repeat("x", 257)}, control.Invalid, "InvalidToken"},
		"a note of two lines":   {alice, control.TokenInput{Note: "a\nb"}, control.Invalid, "InvalidToken"},
		"a name of two lines":   {alice, control.TokenInput{Name: "a\nb"}, control.Invalid, "InvalidToken"},
	} {
		secret, _, err := d.CreateToken(t.Context(), test.by, test.in)
		refused(t, name, err, test.kind, test.code)
		if secret != "" {
			t.Errorf("%s: refused, and yet a token", name)
		}
	}
	if all, err := d.ListTokens(t.Context(), owner); err != nil || len(all) != 0 {
		t.Fatalf("%+v, %v", all, err)
	}

	secret, made, err := d.CreateToken(t.Context(), alice, control.TokenInput{Note: "laptop"})
	if err != nil {
		t.Fatal(err)
	}
	if made.Principal != alice.ID || made.Name != alice.Name || made.Note != "laptop" || !made.Expires.Equal(deskTime.Add(30*24*time.Hour)) {
		t.Errorf("%+v", made)
	}
	who, err := id.Authenticate(t.Context(), secret)
	if err != nil || who.ID != alice.ID || !who.May(control.ActionInitiate, group1) || who.May(control.ActionInitiate, group2) || who.Limits != nil {
		t.Fatalf("%+v, %v", who, err)
	}
	if l := d.last(); l.Event != control.EventTokenCreated || l.Status != "Succeeded" || strings.Contains(l.Reason, secret) {
		t.Errorf("%+v", l)
	}
	wide, _, err := d.CreateToken(t.Context(), alice, control.TokenInput{Role: "owner", Scope: "/"})
	if err != nil {
		t.Fatal(err)
	}
	if who, err = id.Authenticate(t.Context(), wide); err != nil || !who.May(control.ActionInitiate, group1) || who.May(control.ActionWrite, group1) {
		t.Errorf("bounds wider than the rights: %+v, %v", who, err)
	}
	narrow, _, err := d.CreateToken(t.Context(), owner, control.TokenInput{Principal: "local:boss1", Name: "Boss", Role: "Reader", Scope: "/subscriptions/S1/resourceGroups/G1", Valid: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if who, err = id.Authenticate(t.Context(), narrow); err != nil || who.Name != "Boss" || !who.May(control.ActionRead, group1) || who.May(control.ActionWrite, group1) {
		t.Errorf("%+v, %v", who, err)
	}
	if _, _, err := d.CreateToken(t.Context(), giver, control.TokenInput{Principal: "local:seer"}); err != nil {
		t.Errorf("of one with less: %v", err)
	}

	mine, err := d.ListTokens(t.Context(), alice)
	if err != nil || len(mine) != 2 || mine[0].Hash != "" {
		t.Fatalf("%+v, %v", mine, err)
	}
	leaked := alice
	leaked.Limits = []control.Right{alice.Rights[0]}
	_, err = d.ListTokens(t.Context(), leaked)
	refused(t, "list with a bounded token", err, control.Forbidden, "AuthorizationFailed")
	refused(t, "revoke with a bounded token", d.RevokeToken(t.Context(), leaked, made.ID), control.Forbidden, "AuthorizationFailed")
	everybodys, err := d.ListTokens(t.Context(), owner)
	if err != nil || len(everybodys) != 4 {
		t.Errorf("%+v, %v", everybodys, err)
	}
	boss := everybodys[slices.IndexFunc(everybodys, func(t control.Token) bool { return t.Principal == "local:boss1" })]
	refused(t, "another's", d.RevokeToken(t.Context(), alice, boss.ID), control.NotFound, "TokenNotFound")
	refused(t, "nobody's", d.RevokeToken(t.Context(), owner, "x"), control.NotFound, "TokenNotFound")
	if _, err := id.Authenticate(t.Context(), narrow); err != nil {
		t.Errorf("a refused revocation revoked: %v", err)
	}
	for _, revoke := range []struct {
		by control.Caller
		id string
	}{{alice, made.ID}, {alice, made.ID}, {owner, boss.ID}} {
		if err := d.RevokeToken(t.Context(), revoke.by, revoke.id); err != nil {
			t.Error(err)
		}
	}
	if l := d.last(); l.Event != control.EventTokenRevoked || l.Reason != boss.ID {
		t.Errorf("%+v", l)
	}
	for _, secret := range []string{secret, narrow} {
		_, err := id.Authenticate(t.Context(), secret)
		refused(t, "revoked", err, control.Unknown, "InvalidAuthenticationToken")
	}
	if _, err := id.Authenticate(t.Context(), wide); err != nil {
		t.Errorf("the other one: %v", err)
	}
	d.forward(30 * 24 * time.Hour)
	_, err = id.Authenticate(t.Context(), wide)
	refused(t, "expired", err, control.Unknown, "InvalidAuthenticationToken")
}

// What is taken away is gone with the next call.
func TestRightsAreReadWithEachCall(t *testing.T) {
	d := newDesk(t)
	token, hash := identity.NewToken()
	if _, err := control.Bootstrap(t.Context(), d.store, hash, d.now()); err != nil {
		t.Fatal(err)
	}
	id, err := identity.New(identity.Config{Store: d.store, Now: d.now})
	if err != nil {
		t.Fatal(err)
	}
	owner := caller("local:other", "Owner", "/")
	if err := d.Assign(t.Context(), owner, control.Assignment{Principal: "local:other", Role: "Owner", Scope: "/"}); err != nil {
		t.Fatal(err)
	}
	if err := d.Unassign(t.Context(), owner, control.Assignment{Principal: control.FirstOwner, Role: "Owner", Scope: "/"}); err != nil {
		t.Fatal(err)
	}
	who, err := id.Authenticate(t.Context(), token)
	if err != nil || who.May(control.ActionRead, "/") || len(who.Rights) != 0 {
		t.Errorf("%+v, %v", who, err)
	}
}
