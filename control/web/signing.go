package web

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// signingData is what the page of policies that wait for signatures shows.
type signingData struct {
	list[signingRow]
	Itself bool // this control plane signs policies, with a key of its own
	Needs  int  // signatures
	Keys   []string
	All    command
}

// signingRow is a policy that waits.
type signingRow struct {
	control.PendingPolicy
	Has     int      // signatures
	Missing []string // whose would count
	Now     []string // what the machine guards
	Next    []string // and will guard
	Command command
}

func signingPage(c *call) error {
	all, err := c.Engine.PendingPolicies(c.ctx, c.caller)
	if err != nil {
		return err
	}
	names := map[string]int{}
	for _, p := range all {
		names[strings.ToLower(p.VM.Name)]++
	}
	shown := shownOf(c, all)
	d := signingData{Itself: c.Engine.Realm.Policy != nil, All: command{"all", "jitgate policy sign --ssh-key KEY.pub --all"}}
	d.list = list[signingRow]{All: shown.All, Next: shown.Next}
	tally := policy.Envelope{Type: policy.TypePolicy}.Tally(c.Engine.Realm.Trust)
	d.Needs = tally.Threshold
	for _, key := range tally.Missing {
		d.Keys = append(d.Keys, keyName(key))
	}
	for _, p := range shown.Shown {
		row, err := rowOfPending(p, c.Engine.Realm.Trust)
		if err != nil {
			return err
		}
		name := p.VM.Name
		if names[strings.ToLower(name)] > 1 {
			name = "'" + p.VM.String() + "'"
		}
		row.Command = command{"sign", "jitgate policy sign --ssh-key KEY.pub " + name}
		d.Shown = append(d.Shown, row)
	}
	return c.settings("signing", nil, d)
}

// keyName is what people know a key by.
func keyName(k policy.Key) string {
	if k.Name != "" {
		return k.Name
	}
	return string(k.ID)
}

// rowOfPending reads a policy that waits.
func rowOfPending(p control.PendingPolicy, trust policy.Trust) (row signingRow, err error) {
	row.PendingPolicy = p
	if row.Next, err = guarded(p.Payload); err != nil {
		return row, fmt.Errorf("the policy of %s that waits: %w", p.VM, err)
	}
	if p.InForce != nil {
		if row.Now, err = guarded(p.InForce); err != nil {
			return row, fmt.Errorf("the policy in force of %s: %w", p.VM, err)
		}
	}
	envelope := policy.Envelope{Type: policy.TypePolicy, Payload: p.Payload}
	if p.Partial != nil {
		if envelope, err = policy.ParseEnvelope(p.Partial); err != nil {
			return row, fmt.Errorf("the policy of %s that is signed in part: %w", p.VM, err)
		}
	}
	tally := envelope.Tally(trust)
	row.Has = len(tally.Signers)
	for _, key := range tally.Missing {
		row.Missing = append(row.Missing, keyName(key))
	}
	return row, nil
}

// sources says in words what a port is open to.
func sources(prefixes []netip.Prefix) string {
	var all []string
	wide := 0
	for _, p := range prefixes {
		if p.Bits() == 0 {
			wide++
		}
		all = append(all, p.String())
	}
	if wide == 2 { // IPv4 and IPv6
		return "anywhere"
	}
	return strings.Join(all, ", ")
}

// guarded says in words what a policy document guards.
func guarded(payload []byte) (lines []string, err error) {
	doc, err := policy.ParseDocument(policy.TypePolicy, payload)
	if err != nil {
		return nil, err
	}
	for _, p := range doc.(policy.Policy).Ports {
		lines = append(lines, fmt.Sprintf("%s from %s, for %s at most", p, sources(p.AllowedSources), spell(p.MaxRequestAccessDuration)))
	}
	if len(lines) == 0 {
		lines = []string{"nothing"}
	}
	return lines, nil
}
