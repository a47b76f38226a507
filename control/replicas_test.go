package control_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store/storetest"
	"github.com/jitgate/jitgate/policy"
)

// Two replicas over one PostgreSQL grant access to one machine at once: no
// grant is lost, no version is skipped or used twice.
func TestReplicasGrantTogether(t *testing.T) {
	dsn := storetest.Shared(t).NewDatabase(t)
	on := func(c *control.Config) { c.Store = storetest.Open(t, dsn) }
	// One of them signs with a key that is elsewhere, between two transactions.
	planes := []*plane{newPlane(t, on), newPlane(t, on, slow(t, func() error { return nil }))}
	first := planes[0]
	first.put("default", machine("vm1", rule(22, "PT3H")))
	const each = 15
	var wait sync.WaitGroup
	for r, p := range planes {
		wait.Go(func() {
			for i := range each {
				in := wants("vm1", 22, fmt.Sprintf("192.0.2.%d", r*each+i), "PT1H")
				for tries := 1; ; tries++ {
					_, err := p.Initiate(t.Context(), owner, policyID("default"), in)
					if e := control.AsError(err); e != nil && e.Code == "ServerBusy" && tries < 20 {
						continue // always overtaken: told to try again
					}
					if err != nil {
						t.Errorf("replica %d: %v", r, err)
					}
					break
				}
			}
		})
	}
	wait.Wait()
	for _, p := range planes {
		equal(t, "open", len(p.openAt("vm1", 0)), 2*each)
	}
	h := host{vm: vmID("vm1")}
	h.deliver(first, first.clock())
	equal(t, "version", h.grants.Version, 1+2*each)
	seen := map[string]bool{}
	for _, r := range first.get().Requests {
		seen[r.ID] = true
	}
	equal(t, "requests", len(seen), 2*each)
	equal(t, "lines", len(first.log()), 1+2*each)
	var documents int
	first.view(func(tx control.Tx) error {
		list, err := tx.DocumentsAfter(0, 0)
		documents = len(list)
		return err
	})
	equal(t, "documents: one of each kind", documents, 2)
	if h.policy.Version != 1 || h.grants.PolicyVersion != 1 || h.policy.Ports[0].Protocol != policy.TCP {
		t.Errorf("policy %+v", h.policy)
	}
}
