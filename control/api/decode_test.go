package api

import (
	"errors"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

const someVM = "/subscriptions/20ff7fc3-e762-44dd-bd96-b71116dcdc23/resourceGroups/myRg1/providers/Microsoft.Compute/virtualMachines/vm1"

const policyBody = `{"kind":"Basic","properties":{"virtualMachines":[{"id":"` + someVM + `","ports":[` +
	`{"number":22,"protocol":"*","allowedSourceAddressPrefix":"*","maxRequestAccessDuration":"PT3H"},` +
	`{"number":"3389","protocol":"TCP","allowedSourceAddressPrefixes":["198.51.100.0/24","192.0.2.10"],"maxRequestAccessDuration":"P1D"}]}],` +
	`"requests":[{"requestor":"eve"}],"provisioningState":"Succeeded","appendMode":null},"id":"x","name":"y","type":"z","location":"l"}`

const initiateBody = `{"virtualMachines":[{"id":"` + someVM + `","ports":[{"number":22,"duration":"PT1H","allowedSourceAddressPrefix":"203.0.113.7"}]}],"justification":"patching"}`

func TestDecodePolicy(t *testing.T) {
	in, err := decodePolicy([]byte(policyBody))
	if err != nil {
		t.Fatal(err)
	}
	if in.Kind != "Basic" || len(in.VMs) != 1 || in.VMs[0].ID.String() != someVM || len(in.VMs[0].Ports) != 2 || in.VMs[0].Ports[1].Number != 3389 {
		t.Errorf("%+v", in)
	}
	// Names in other letter cases, as .NET takes them.
	if in, err = decodePolicy([]byte(`{"Properties":{"VirtualMachines":[{"ID":"` + someVM + `","Ports":[{"Number":22}]}]}}`)); err != nil || in.VMs[0].Ports[0].Number != 22 {
		t.Errorf("%+v, %v", in, err)
	}
}

// Each of these is refused with what is wrong and where.
func TestBodiesRefused(t *testing.T) {
	for _, c := range []struct{ body, says string }{
		{``, "there is none"},
		{` `, "there is none"},
		{`[]`, "not a JSON object"},
		{`null`, "not a JSON object"},
		{`"{}"`, "not a JSON object"},
		{`{`, "ends too early"},
		{`{}{}`, "after the end"},
		{`{"properties":{}`, "ends too early"},
		{`{"a":1,"a":2}`, "duplicate"},
		{`{"properties":{"virtualMachines":[]},"Properties":{}}`, "duplicate"},
		{`{"properties":{"virtualMachines":[],"x":{"y":1,"y":2}}}`, "duplicate"},
		{"{\"kind\":\"\xff\"}", "UTF-8"},
		{`{"kind":"\ud800"}`, "surrogate"},
		{`{"x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`, "deeper"},
		{`{"kind":7}`, "kind"},
		{`{}`, "properties is missing"},
		{`{"properties":null}`, "properties is missing"},
		{`{"properties":{}}`, "properties.virtualMachines is missing"},
		{`{"properties":{"virtualMachines":{}}}`, "properties.virtualMachines"},
		{`{"properties":{"virtualMachines":[{"id":"` + someVM + `"}]}}`, "virtualMachines[0].ports is missing"},
		{`{"properties":{"virtualMachines":[{"ports":[]}]}}`, "virtualMachines[0].id"},
		{`{"properties":{"virtualMachines":[{"id":"/subscriptions//subscriptions/x","ports":[]}]}}`, "virtualMachines[0].id"},
		{`{"properties":{"virtualMachines":[{"id":"/subscriptions/subscriptions/x/resourceGroups/../providers/Microsoft.Compute/virtualMachines/v","ports":[]}]}}`, "virtualMachines[0].id"},
		{`{"properties":{"virtualMachines":[{"id":"` + someVM + `","ports":[{"protocol":"TCP"}]}]}}`, "ports[0].number is missing"},
		{`{"properties":{"virtualMachines":[{"id":"` + someVM + `","ports":[{"number":65536}]}]}}`, "ports[0].number"},
		{`{"properties":{"virtualMachines":[{"id":"` + someVM + `","ports":[{"number":"ssh"}]}]}}`, "ports[0].number"},
		{`{"properties":{"virtualMachines":[{"id":"` + someVM + `","ports":[{"number":22,"allowedSourceAddressPrefixes":"*"}]}]}}`, "allowedSourceAddressPrefixes"},
	} {
		_, err := decodePolicy([]byte(c.body))
		r, ok := errors.AsType[*refusal](err)
		if !ok || r.status != 400 || !strings.Contains(r.message, c.says) {
			t.Errorf("%.100s: %v, want something with %q", c.body, err, c.says)
		}
	}
	for _, c := range []struct{ body, says string }{
		{`{}`, "virtualMachines is missing"},
		{`{"virtualMachines":[{"id":"x","ports":[]}]}`, "virtualMachines[0].ports is missing"},
		{`{"virtualMachines":[{"id":"x","ports":[{}]}]}`, "virtualMachines[0].ports[0].number is missing"},
		{`{"virtualMachines":[{"id":"x","ports":[{"number":22,"endTimeUtc":"tomorrow"}]}]}`, "endTimeUtc"},
		{`{"virtualMachines":[{"id":"x","ports":[{"number":22,"endTimeUtc":1764000000}]}]}`, "endTimeUtc"},
		{`{"virtualMachines":[{"id":"x","ports":[{"number":22,"duration":3600}]}]}`, "duration"},
	} {
		_, err := decodeInitiate([]byte(c.body))
		r, ok := errors.AsType[*refusal](err)
		if !ok || r.status != 400 || !strings.Contains(r.message, c.says) {
			t.Errorf("%.100s: %v, want something with %q", c.body, err, c.says)
		}
	}
	// Our own API takes no name it does not know, and says which.
	var in portsIn
	err := decodeStrict([]byte(`{"ports":[],"portz":[]}`), &in)
	if err == nil || !strings.Contains(err.Error(), `"portz"`) {
		t.Errorf("%v", err)
	}
	if err := decodeStrict([]byte(`{"Ports":[]}`), &in); err == nil {
		t.Error("our own names are taken in any letter case")
	}
}

// duplicates reports whether a reader that keeps the last of two names would
// see another thing than one that keeps the first.
func duplicates(body []byte) bool {
	return !jsontext.Value(body).IsValid() // repeated names are not valid JSON to jsontext
}

func FuzzPolicyBody(f *testing.F) {
	f.Add([]byte(policyBody))
	f.Add([]byte(`{"properties":{"virtualMachines":[]}}`))
	f.Add([]byte(`{"properties":{"virtualMachines":[{"id":"x","id":"y"}]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		in, err := decodePolicy(body)
		if err != nil {
			if r, ok := errors.AsType[*refusal](err); !ok || r.status != 400 || len(r.message) > 2000 {
				t.Fatalf("%v", err)
			}
			return
		}
		if duplicates(body) {
			t.Errorf("taken: %s", body)
		}
		for _, vm := range in.VMs {
			if vm.ID.Name == "" || strings.Count(vm.ID.String(), "/") != 8 {
				t.Errorf("a machine is called %q", vm.ID)
			}
		}
	})
}

func FuzzInitiateBody(f *testing.F) {
	f.Add([]byte(initiateBody))
	f.Add([]byte(`{"virtualMachines":[{"id":"x","ports":[{"number":"22","endTimeUtc":"2026-11-22T18:55:15.4892057Z"}]}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		in, err := decodeInitiate(body)
		if err != nil {
			if r, ok := errors.AsType[*refusal](err); !ok || r.status != 400 || len(r.message) > 2000 {
				t.Fatalf("%v", err)
			}
			return
		}
		if duplicates(body) {
			t.Errorf("taken: %s", body)
		}
		if len(in.VMs) == 0 || len(in.VMs[0].Ports) == 0 {
			t.Errorf("a request for nothing: %s", body)
		}
	})
}

func FuzzBatchBody(f *testing.F) {
	f.Add([]byte(`{"requests":[{"httpMethod":"POST","relativeUrl":"/subscriptions/S/x?api-version=2020-01-01","content":` + initiateBody + `}]}`))
	f.Add([]byte(`{"requests":[{"httpMethod":"GET","url":"https://x/y","name":"a"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		in, err := decodeBatch(body)
		if err != nil {
			return
		}
		if len(in) == 0 || len(in) > maxBatch {
			t.Errorf("%d calls", len(in))
		}
		if duplicates(body) {
			t.Errorf("taken: %s", body)
		}
		for _, q := range in {
			if len(q.Content) > 0 && !q.Content.IsValid() {
				t.Errorf("content: %s", q.Content)
			}
		}
	})
}

func FuzzSkipToken(f *testing.F) {
	f.Add(skipToken("/subscriptions/s/resourcegroups/g"))
	f.Add("!")
	f.Fuzz(func(t *testing.T, s string) {
		after, err := readSkipToken(s)
		if err == nil && skipToken(after) != s {
			t.Errorf("%q and %q are one place", s, skipToken(after))
		}
	})
}
