package agents_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
)

func decoded[T any](t testing.TB, text []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

// initiating records a request for port 22 that waits for the agent.
func (w *world) initiating(vm control.VMID, id string) {
	w.t.Helper()
	w.update(func(tx control.Tx) error {
		return tx.PutRequest(control.Request{ID: "req-" + id, Policy: control.PolicyID{Subscription: vm.Subscription, Group: vm.Group, Location: "westeurope", Name: "default"},
			Requestor: "alice@example.com", Principal: "local:alice", Start: time.Now(),
			VMs: []control.RequestVM{{ID: vm, Ports: []control.RequestPort{{Number: 22, Status: control.Initiating, Reason: control.UserRequested, GrantID: id, End: time.Now().Add(time.Hour)}}}}})
	})
}

func (w *world) port(id string) (p control.RequestPort) {
	w.t.Helper()
	w.view(func(tx control.Tx) error {
		r, err := tx.Request("req-" + id)
		if err == nil {
			p = r.VMs[0].Ports[0]
		}
		return err
	})
	return p
}

// A host enrols, gets what it is to have, opens a port, and the request says
// so; and its record is kept line by line.
func TestLine(t *testing.T) {
	w := newWorld(t)
	h := w.host("web1")
	w.policyOf(h.vm, 1)
	out, code := h.enroll(w, w.join(h.vm.Scope(), 1))
	if code != 0 || !strings.Contains(out, "trusts realm acme") || !strings.Contains(out, "jitgate fetch") {
		t.Fatal(out)
	}
	text := string(must(os.ReadFile(h.config))(t))
	if !strings.Contains(text, "# kept\n") || !strings.Contains(text, "[control] # kept too\n") || !strings.Contains(text, w.url) || strings.Contains(text, "elsewhere") {
		t.Errorf("settings:\n%s", text)
	}
	if info := must(os.Stat(filepath.Join(h.dir, "fetch", "identity.pem")))(t); info.Mode().Perm() != 0o600 {
		t.Errorf("identity.pem has mode %s", info.Mode())
	}
	h.run()
	h.fetching()
	within(t, 10*time.Second, "the policy is in force", func() bool { return h.versions() == [3]uint64{1, 1, 0} })

	w.initiating(h.vm, "g1")
	w.grantsOf(h.vm, 1, "g1")
	within(t, 10*time.Second, "the port is open", func() bool { return len(h.status().Openings) == 1 })
	within(t, 10*time.Second, "the request is Initiated", func() bool { return w.port("g1").Status == control.Initiated })
	if p := w.port("g1"); p.Opened.IsZero() || time.Since(p.Opened) > time.Minute {
		t.Errorf("opened at %s", p.Opened)
	}
	vm := w.vm(h.vm)
	if vm.LastUser != "alice@example.com" || vm.LastAccess.IsZero() || vm.Agent.Mode != "enforce" || vm.Agent.Version != "test" {
		t.Errorf("%+v, %+v", vm, vm.Agent)
	}
	within(t, 10*time.Second, "the versions are known", func() bool {
		return w.vm(h.vm).Agent.Versions == control.Versions{Trust: 1, Policy: 1, Grants: 1}
	})
	opened := w.activity("grant.opened")
	if len(opened) != 1 || opened[0].Request != "req-g1" || opened[0].Actor != "alice@example.com" || opened[0].Port != 22 {
		t.Errorf("%+v", opened)
	}

	w.grantsOf(h.vm, 2)
	within(t, 10*time.Second, "the port is closed", func() bool { return !w.port("g1").Closed.IsZero() })
	record := strings.Split(strings.TrimSpace(string(must(os.ReadFile(filepath.Join(h.dir, "state/audit/000001.jsonl")))(t))), "\n")
	within(t, 10*time.Second, "the record is here", func() bool { return w.vm(h.vm).Agent.Head.Seq >= uint64(len(record)) })
	w.view(func(tx control.Tx) error {
		kept, err := tx.AgentEvents(control.Record{VM: h.vm}, 0, 1000)
		for i, line := range record {
			if string(kept[i].Line) != line {
				t.Errorf("line %d is %s, kept %s", i+1, line, kept[i].Line)
			}
		}
		return err
	})
}
