package control_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"math/big"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// errNothing is what a list is that shows nothing.
var errNothing = errors.New("nothing is shown")

// shown makes a list that shows nothing an error.
func shown[T any](list []T, err error) error {
	if err == nil && len(list) == 0 {
		return errNothing
	}
	return err
}

// scene is a plane with something in it for every call, of somebody else.
type scene struct {
	*plane
	policy      control.PolicyID
	vm          control.VMID
	request     string
	pending     string // waits for approval
	token, join string
}

func newScene(t *testing.T) scene {
	t.Helper()
	s := scene{policy: policyID("default"), vm: vmID("web")}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: noon, NotAfter: noon.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(nil, template, template, key("agents").Public(), key("agents"))
	must(err)
	ca, err := x509.ParseCertificate(der)
	must(err)
	s.plane = newPlane(t, func(c *control.Config) {
		c.Realm.Policy = nil // people sign
		c.CA, c.CAKey = ca, key("agents")
	})
	s.put("default", machine("web", rule(22, "PT3H")))
	s.put("asks", machine("db", rule(22, "PT3H")))
	_, err = s.PutRole(t.Context(), owner, control.Role{Name: "Approver", Actions: []string{"none"}})
	must(err)
	_, err = s.SetApproval(t.Context(), owner, policyID("asks"), &control.Approval{Approvers: 1, Role: "Approver"}, "")
	must(err)
	other := as("other", "JITRequester")
	s.request = s.initiate(other, wants("web", 22, "203.0.113.7", "PT1H")).ID
	r, err := s.Initiate(t.Context(), other, policyID("asks"), wants("db", 22, "203.0.113.7", "PT1H"))
	must(err)
	s.pending = r.ID
	_, token, err := s.CreateToken(t.Context(), owner, control.TokenInput{Principal: "local:other"})
	must(err)
	s.token = token.ID
	_, join, err := s.CreateJoin(t.Context(), owner, s.vm.Scope(), 1, time.Hour)
	must(err)
	s.join = join.ID
	_, err = s.PutVM(t.Context(), owner, vmID("idle"), control.VMInput{})
	must(err)
	_, err = s.SetScope(t.Context(), owner, "/subscriptions/elsewhere", true, "")
	must(err)
	_, err = s.PutRole(t.Context(), owner, control.Role{Name: "Idle", Actions: []string{string(control.ActionRead)}})
	must(err)
	must(s.Assign(t.Context(), owner, control.Assignment{Principal: "local:other", Role: "Reader", Scope: "/"}))
	s.update(func(tx control.Tx) error {
		vm, err := tx.VM(s.vm)
		vm.Agent = &control.Agent{Key: "k", Enrolled: noon}
		return errors.Join(err, tx.PutVM(vm))
	})
	return s
}

// signed is the policy document that waits for the machine, signed.
func (s scene) signed() []byte {
	s.t.Helper()
	var p control.PendingPolicy
	s.view(func(tx control.Tx) (err error) {
		p, err = tx.PendingPolicy(s.vm)
		return err
	})
	e := policy.Envelope{Type: policy.TypePolicy, Payload: p.Payload}
	if err := e.Sign(key("policy")); err != nil {
		s.t.Fatal(err)
	}
	return e.Encode()
}

// attempt is a call of the engine by a caller.
type attempt struct {
	name string
	call func(context.Context, scene, control.Caller) error
}

// everyCall is every call of the engine that a caller makes, in an order in
// which none takes away what a later one needs.
var everyCall = []attempt{
	{"ListPolicies", func(ctx context.Context, s scene, c control.Caller) error {
		page, _, err := s.ListPolicies(ctx, c, control.PolicyFilter{}, "", 0)
		return shown(page, err)
	}},
	{"GetPolicy", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.GetPolicy(ctx, c, s.policy)
		return err
	}},
	{"ListVMs", func(ctx context.Context, s scene, c control.Caller) error {
		page, _, err := s.ListVMs(ctx, c, control.VMFilter{})
		return shown(page, err)
	}},
	{"CountVMs", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.CountVMs(ctx, c, "")
		return err
	}},
	{"GetVM", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.GetVM(ctx, c, s.vm)
		return err
	}},
	{"ListRequests", func(ctx context.Context, s scene, c control.Caller) error {
		page, _, err := s.ListRequests(ctx, c, control.RequestFilter{Principal: "local:other"})
		return shown(page, err)
	}},
	{"GetRequest", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.GetRequest(ctx, c, s.request)
		return err
	}},
	{"ListActivity", func(ctx context.Context, s scene, c control.Caller) error {
		page, _, err := s.ListActivity(ctx, c, control.ActivityFilter{})
		return shown(page, err)
	}},
	{"FollowActivity", func(ctx context.Context, s scene, c control.Caller) error {
		err := s.FollowActivity(ctx, c, control.ActivityFilter{}, 0, func(control.Activity) error { return errEnough })
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	}},
	{"ScopeSettings", func(ctx context.Context, s scene, c control.Caller) error {
		list, err := s.ScopeSettings(ctx, c)
		return shown(list, err)
	}},
	{"ListRoles", func(ctx context.Context, s scene, c control.Caller) error {
		list, err := s.ListRoles(ctx, c)
		return shown(list, err)
	}},
	{"ListAssignments", func(ctx context.Context, s scene, c control.Caller) error {
		list, err := s.ListAssignments(ctx, c, "")
		return shown(list, err)
	}},
	{"ListTokens", func(ctx context.Context, s scene, c control.Caller) error {
		list, err := s.ListTokens(ctx, c)
		return shown(list, err)
	}},
	{"ListJoins", func(ctx context.Context, s scene, c control.Caller) error {
		list, err := s.ListJoins(ctx, c)
		return shown(list, err)
	}},
	{"PendingPolicies", func(ctx context.Context, s scene, c control.Caller) error {
		list, err := s.PendingPolicies(ctx, c)
		return shown(list, err)
	}},
	{"CreateToken", func(ctx context.Context, s scene, c control.Caller) error {
		_, _, err := s.CreateToken(ctx, c, control.TokenInput{Principal: "local:someone"})
		return err
	}},
	{"RevokeToken", func(ctx context.Context, s scene, c control.Caller) error { return s.RevokeToken(ctx, c, s.token) }},
	{"PutRole", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.PutRole(ctx, c, control.Role{Name: "Mine", Actions: []string{string(control.ActionRead)}})
		return err
	}},
	{"DeleteRole", func(ctx context.Context, s scene, c control.Caller) error { return s.DeleteRole(ctx, c, "Idle") }},
	{"Assign", func(ctx context.Context, s scene, c control.Caller) error {
		return s.Assign(ctx, c, control.Assignment{Principal: c.ID, Role: "Owner", Scope: s.vm.Scope()})
	}},
	{"Unassign", func(ctx context.Context, s scene, c control.Caller) error {
		return s.Unassign(ctx, c, control.Assignment{Principal: "local:other", Role: "Reader", Scope: "/"})
	}},
	{"CreateJoin", func(ctx context.Context, s scene, c control.Caller) error {
		_, _, err := s.CreateJoin(ctx, c, s.vm.Scope(), 1, time.Hour)
		return err
	}},
	{"RevokeJoin", func(ctx context.Context, s scene, c control.Caller) error { return s.RevokeJoin(ctx, c, s.join) }},
	{"RevokeAgent", func(ctx context.Context, s scene, c control.Caller) error { return s.RevokeAgent(ctx, c, s.vm, "lost") }},
	{"SetScope", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.SetScope(ctx, c, "/subscriptions/elsewhere", false, "")
		return err
	}},
	{"PutVM", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.PutVM(ctx, c, s.vm, control.VMInput{OS: "Linux"})
		return err
	}},
	{"Approve", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.Approve(ctx, c, s.pending, "", 0)
		return err
	}},
	{"Deny", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.Deny(ctx, c, s.pending, "")
		return err
	}},
	{"InitiateVM", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.InitiateVM(ctx, c, wants("web", 22, "203.0.113.20", "PT1H"))
		return err
	}},
	{"Initiate", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.Initiate(ctx, c, s.policy, wants("web", 22, "203.0.113.21", "PT1H"))
		return err
	}},
	{"Extend", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.Extend(ctx, c, s.request, time.Minute, "")
		return err
	}},
	{"Revoke", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.Revoke(ctx, c, s.request, "")
		return err
	}},
	{"EditPorts", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.EditPorts(ctx, c, s.vm, []control.PortRule{{Number: 22, Protocol: "TCP", Prefixes: control.Prefixes{One: "*"}, MaxDuration: "PT1H"}}, "")
		return err
	}},
	{"SetApproval", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.SetApproval(ctx, c, s.policy, &control.Approval{Approvers: 1, Role: "Owner"}, "")
		return err
	}},
	{"PutPolicy", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.PutPolicy(ctx, c, s.policy, control.PolicyInput{VMs: []control.PolicyVM{machine("web", rule(22, "PT2H"))}})
		return err
	}},
	{"AcceptPolicy", func(ctx context.Context, s scene, c control.Caller) error {
		_, _, err := s.AcceptPolicy(ctx, c, s.signed())
		return err
	}},
	{"DeletePolicy", func(ctx context.Context, s scene, c control.Caller) error {
		_, err := s.DeletePolicy(ctx, c, s.policy)
		return err
	}},
	{"DeleteVM", func(ctx context.Context, s scene, c control.Caller) error { return s.DeleteVM(ctx, c, vmID("idle")) }},
}

// Whoever adds a call has to say here who may make it.
func TestEveryCallIsTried(t *testing.T) {
	engine := reflect.TypeFor[*control.Engine]()
	found := 0
	for i := range engine.NumMethod() {
		m := engine.Method(i)
		if m.Type.NumIn() < 3 || m.Type.In(2) != reflect.TypeFor[control.Caller]() {
			continue
		}
		found++
		if !slices.ContainsFunc(everyCall, func(a attempt) bool { return a.name == m.Name }) {
			t.Errorf("%s is not among everyCall", m.Name)
		}
	}
	if found != len(everyCall) {
		t.Errorf("%d calls, %d tried", found, len(everyCall))
	}
}

// Each role makes the calls it is for and no other, and what is refused
// changes nothing.
func TestRolesMakeTheirCallsOnly(t *testing.T) {
	see := []string{"ListPolicies", "GetPolicy", "ListVMs", "CountVMs", "GetVM", "ListRequests", "GetRequest", "ScopeSettings", "PendingPolicies"}
	log := []string{"ListActivity", "FollowActivity"}
	access := []string{"ListRoles", "ListAssignments", "ListTokens", "CreateToken", "RevokeToken", "PutRole", "DeleteRole", "Assign", "Unassign"}
	var all []string
	for _, c := range everyCall {
		if c.name != "Extend" { // which is for who asked, and nobody else
			all = append(all, c.name)
		}
	}
	allBut := slices.DeleteFunc(slices.Clone(all), func(name string) bool { return slices.Contains(access, name) })
	for who, may := range map[string][]string{
		"nobody":         nil,
		"JITRequester":   append([]string{"Initiate", "InitiateVM"}, see...),
		"Reader":         append(slices.Clone(see), log...),
		"SecurityReader": append(slices.Clone(see), log...),
		"SecurityAdmin":  allBut,
		"Contributor":    allBut,
		"Owner":          all,
	} {
		t.Run(who, func(t *testing.T) {
			s := newScene(t)
			c := as("caller")
			if who != "nobody" {
				c = as("caller", who)
			}
			// Holding the name that an approval asks for gives no action.
			c.Rights = append(c.Rights, control.Right{Role: control.Role{Name: "Approver"}, Scope: "/"})
			for _, call := range everyCall {
				before := s.everything()
				err := call.call(t.Context(), s, c)
				refusal := control.AsError(err)
				refused := errors.Is(err, errNothing) || refusal != nil && (refusal.Kind == control.Forbidden || refusal.Kind == control.NotFound)
				switch want := slices.Contains(may, call.name); {
				case want && refused:
					t.Errorf("%s: %v", call.name, err)
				case !want && !refused:
					t.Errorf("%s is let through (%v)", call.name, err)
				case !want && s.everything() != before:
					t.Errorf("%s is refused, and changes something", call.name)
				}
			}
		})
	}
}

// everything is what the store has, but for the log.
func (s scene) everything() string {
	s.t.Helper()
	var all []any
	err := s.store.View(s.t.Context(), func(tx control.Tx) error {
		var errs []error
		add := func(v any, err error) { all, errs = append(all, v), append(errs, err) }
		policies, err := tx.Policies(control.PolicyFilter{}, "", 0)
		add(policies, err)
		requests, err := tx.Requests(control.RequestFilter{})
		add(requests, err)
		documents, err := tx.DocumentsAfter(0, 0)
		add(documents, err)
		pending, err := tx.PendingPolicies()
		add(pending, err)
		vms, err := tx.VMs(control.VMFilter{})
		add(vms, err)
		joins, err := tx.Joins()
		add(joins, err)
		settings, err := tx.ScopeSettings()
		add(settings, err)
		tokens, err := tx.Tokens()
		add(tokens, err)
		roles, err := tx.Roles()
		add(roles, err)
		given, err := tx.Assignments()
		add(given, err)
		return errors.Join(errs...)
	})
	if err != nil {
		s.t.Fatal(err)
	}
	text, err := json.Marshal(all)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}
