package store

import (
	"slices"
	"sync"

	"github.com/jitgate/jitgate/control"
)

// policies are policies that were read lately, by the text of their document.
// A policy may name a thousand machines, and is read for each request under it
// and for each machine of it that gets a document: it is decoded once. What is
// found by its whole text is never an old one.
type policies struct {
	mu   sync.Mutex
	read map[string]control.Policy
	size int // of the texts
}

// policiesAtMost bounds the texts that are kept, in bytes. What is decoded is
// about as large again.
const policiesAtMost = 4 << 20

// decode is decode for a policy. What it returns belongs to the caller.
func (c *policies) decode(doc string) (control.Policy, error) {
	c.mu.Lock()
	p, ok := c.read[doc]
	c.mu.Unlock()
	if ok {
		return own(p), nil
	}
	if err := decode(doc, &p); err != nil {
		return control.Policy{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.size += len(doc); c.read == nil || c.size > policiesAtMost {
		c.read, c.size = map[string]control.Policy{}, len(doc)
	}
	c.read[doc] = p
	return own(p), nil
}

// own is a copy that shares nothing with p that could be changed.
func own(p control.Policy) control.Policy {
	p.VMs = slices.Clone(p.VMs)
	for i := range p.VMs {
		ports := slices.Clone(p.VMs[i].Ports)
		for j := range ports {
			ports[j].Many = slices.Clone(ports[j].Many)
		}
		p.VMs[i].Ports = ports
	}
	if p.Approval != nil {
		a := *p.Approval
		p.Approval = &a
	}
	return p
}

// policies are those of a query whose one column is doc.
func (t *tx) policies(query string, args ...any) ([]control.Policy, error) {
	return documentsOf(t, t.store.policies.decode, query, args...)
}
