// Package agent is the daemon on every host: it reads what was delivered to
// the inbox, verifies and admits it, decides what may be open, brings the
// firewall there and records it.
//
//	inbox ─ read ─ admit ─ save ─ evaluate ─ want ─ diff ─ record ─ apply ─ record
//
// Step is one pass through that line. Run repeats it when the inbox changes,
// when something ends, and every 30 seconds in any case: events only shorten
// the wait.
//
// What the pass decides is decided by pure functions (policy, firewall, and
// documents, want and narrate here). Files, kernel and clocks stand at the
// edge: store, readInbox, firewall.Backend, audit.Sink, Clock.
package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

// Resync is how often the inbox and the firewall are looked at with no event
// to say so.
const Resync = 30 * time.Second

// Clock is the two clocks an agent reads.
type Clock struct {
	Wall func() time.Time
	Boot func() firewall.BootTime
	// BootID names this run of the boot clock: another one begins with every
	// boot. Empty where the platform has no name for it.
	BootID string
}

// SystemClock reads the host's clocks.
func SystemClock() Clock { return Clock{Wall: time.Now, Boot: BootNow, BootID: bootID()} }

// Agent guards one host. It is used by one goroutine; what comes in by the
// local socket waits its turn.
type Agent struct {
	Settings Settings
	Backend  firewall.Backend
	Audit    audit.Sink
	Log      hclog.Logger
	Clock    Clock
	Machine  Machine   // that it runs on
	Built    time.Time // when the program was built; zero if unknown
	// Supervisor hears when the guard is in place, and that the agent is alive.
	Supervisor Supervisor
	// Reread reads the settings again, for Reload.
	Reread func() (Settings, error)
	// Heads is told where the record ends, every few minutes and at the stop,
	// to keep it where the record is not. It must not wait for anything. Nil:
	// it is told nobody, and nothing of the record is ever removed.
	Heads func(seq uint64, hash string)

	inbox    inbox
	late     bool // something in the inbox was not read in time
	store    store
	started  time.Time
	install  installing
	mark     mark
	standing standing
	modeErr  error // the saved mode cannot be read: the guard drops
	docs     documents
	unread   error // the saved state cannot be read: nothing opens
	unsaved  [kinds]bool
	former   []byte // the trust document of the mark on the disk
	dirty    bool   // the mark is not on the disk yet
	saveErr  error

	closing   []byte // what baselineFile holds
	settled   bool   // that is known
	unsettled error  // why it is not as it should be

	have     firewall.Observed
	known    bool // have is what the firewall holds
	observed firewall.BootTime
	wrote    []firewall.Port   // guarded by what this agent wrote last, or one before it
	applied  bool              // the first pass is through
	stands   func()            // told when the guard is in place, by every pass; nil: nobody
	drift    bool              // somebody else changed the guard, and it is not mended yet
	opened   firewall.BootTime // when something was opened last; 0: nothing yet
	// driftTold says that the record has it.
	driftTold bool
	culprit   firewall.Alteration
	pending   []audit.Event // could not be recorded yet

	decision policy.Decision   // of the last pass
	problem  error             // what the last pass could not do
	next     firewall.BootTime // when the next pass is due
	horizon  horizon
	kept     firewall.BootTime // when it was saved last
	live     map[string]granted

	metrics     *metrics
	uses        uses
	addresses   formerAddresses
	knocks      knocks
	passed      map[firewall.Door]uint64 // what the openings had let in at the last look
	looked      bool                     // at every connection, since the start
	blind       error                    // connections cannot be looked at
	usesLost    bool                     // what was saved of uses cannot be read
	usesChanged bool                     // and are not saved
	usesUnkept  bool                     // that was said
	loginsUpTo  string                   // the journal's cursor: logins up to it are told

	refusals [kinds]refusal
	reported map[string]policy.Code // refused grants, so that each is recorded once

	calls chan func() // run between passes, by the goroutine that runs those
	// readers has a place for each call that reads the record.
	readers chan struct{}
	// collected is up to which line somebody has the record who reads it.
	collected atomic.Uint64
}

// refusal is the last document of a kind that was refused.
type refusal struct {
	raw  []byte
	err  error
	when time.Time
}

// Load reads what an earlier run saved. It changes nothing.
func (a *Agent) Load() {
	a.store = store{a.Settings.StateDir}
	a.live, a.reported = map[string]granted{}, map[string]policy.Code{}
	a.calls = make(chan func())
	a.metrics = newMetrics()
	a.readers = make(chan struct{}, eventsCalls)
	a.started = a.Clock.Wall()
	if a.Settings.HostNote != "" {
		a.Log.Warn("host_id = \"auto\"", "note", a.Settings.HostNote)
	}
	was, err := a.store.loadInstall()
	if err != nil {
		a.Log.Warn("the id of this installation is made anew", "error", err)
	}
	a.install = install(was, err, a.Machine, a.started)
	if a.horizon, err = a.store.loadHorizon(a.Clock.BootID); err != nil {
		a.Log.Error("where the ends of openings lie is drawn anew by the wall clock", "error", err)
	}
	stood, err := a.store.loadStanding()
	if err != nil {
		a.modeErr = fmt.Errorf("the saved mode cannot be read, the guard drops: %w; mend that and restart the agent, or write it anew with jitgate disarm", err)
		a.Log.Error("enforcing", "error", a.modeErr)
		stood = standing{Mode: Enforce}
	}
	a.standing = stood.in(a.Clock.BootID)
	a.loadUses()
	m, saved, err := a.store.load()
	if err != nil {
		// Without the mark an old list could be replayed.
		a.unread = policy.Refuse(policy.NotDurable, "the saved state cannot be read: %v; then restart the agent", err)
		a.Log.Error("nothing will open", "error", a.unread)
		return
	}
	if m.Pin != a.Settings.TrustPin {
		if m.Pin != (policy.Digest{}) {
			a.Log.Warn("trust_pin names another realm than the saved mark: documents that do not follow from it no longer count")
		}
		m = mark{Pin: a.Settings.TrustPin, Guarded: m.Guarded}
	}
	if ours := m.of(a.Settings.HostID); ours.Host != m.Host {
		if m.Host != "" {
			a.Log.Warn("this host has another id than before: its policy and grants begin anew", "former", m.Host, "host", ours.Host)
		}
		m, a.dirty = ours, m.Trust.Version != 0
	}
	a.mark, a.docs = m, restore(m.State, saved, a.facts())
	if a.docs.raw[Trust] == nil {
		before := saved
		before[Trust] = a.store.former()
		a.docs = restore(m.State, before, a.facts())
		if m.Trust.Version == 0 && before[Trust] != nil {
			// The mark is lost. The one before may be the one that is pinned.
			_ = a.admit(Trust, before[Trust])
		}
	}
	a.former, a.wrote = a.docs.raw[Trust], a.guarded()
	for k := range kinds {
		// A newer document than the mark: saved just before a crash, or the
		// mark is lost. It is judged as if it were delivered now.
		if saved[k] != nil && !a.docs.delivered(k, saved[k]) && a.admit(k, saved[k]) == nil {
			a.pending = append(a.pending, a.admitted(k))
		}
	}
}

// Step is one pass. It returns when the next is due at the latest. An error
// means that the firewall may not be as wanted; the next pass tries again.
func (a *Agent) Step(ctx context.Context) (next firewall.BootTime, err error) {
	defer func() {
		if a.late || a.unsettled != nil {
			next = min(next, a.Clock.Boot().Add(time.Second))
		}
		a.problem = also(a.problem, a.unsettled)
		a.next = next
		a.keepUses()
	}()
	a.settleInstall(ctx)
	if a.applied {
		a.hear(ctx, false) // what came in by the grants in force so far
	}
	glance := a.glance()
	events := append(a.revert(), a.takeInbox()...)
	a.save()
	// Before the guard: ports that are new in it are closed at a start from
	// here on.
	was := a.unsettled
	if a.unsettled = a.settleBaseline(); a.unsettled != nil && was == nil {
		a.Log.Error("trying again", "error", a.unsettled)
	}
	if a.mode().Mode == Off {
		a.problem = a.standDown(ctx, events)
		return a.Clock.Boot().Add(Resync), a.problem
	}
	plan, w, err := a.plan(ctx)
	if err != nil {
		err = errors.Join(err, a.record(ctx, events))
	} else {
		// The first pass writes the rules in any case: that takes over the
		// table an earlier agent left, or finds out that one still lives.
		plan.Rules = plan.Rules || !a.applied
		err = a.carryOut(ctx, plan, w, events)
		a.decision = w.decision
	}
	if a.problem = err; err != nil {
		return a.Clock.Boot().Add(time.Second), err
	}
	if glance <= a.Clock.Boot() || glance == firewall.Never {
		glance = a.glance()
	}
	return min(w.next, glance, a.Clock.Boot().Add(Resync)), nil
}

// DryRun returns the plan of a pass, and changes nothing.
func (a *Agent) DryRun(ctx context.Context) (firewall.Plan, []error, error) {
	a.inbox.patience = inboxSilence // there is no later pass
	a.takeInbox()
	if a.mode().Mode == Off {
		return firewall.Plan{}, nil, nil
	}
	plan, w, err := a.plan(ctx)
	a.decision = w.decision
	var refused []error
	for k, r := range a.refusals {
		if r.err != nil {
			refused = append(refused, fmt.Errorf("%s: %w", Kind(k), r.err))
		}
	}
	return plan, refused, err
}

func (a *Agent) facts() policy.Facts {
	return policy.Facts{Host: a.Settings.HostID, Install: a.install.id(), Now: a.Clock.Wall(), Built: a.Built}
}

// takeInbox admits what was delivered, in the order documents depend on each
// other, and returns what to record of it.
func (a *Agent) takeInbox() []audit.Event {
	var events []audit.Event
	a.late = false
	for i, found := range a.inbox.look(a.Settings.InboxDir) {
		k, raw, byHand, err := Kind(i), found.raw, found.byHand, found.err
		a.late = a.late || found.late
		if found.none && err == nil {
			continue // it may only be slow
		}
		if err == nil && (raw == nil || a.docs.delivered(k, raw)) {
			a.refusals[k] = refusal{}
			continue
		}
		before := a.docs.version(k)
		if err == nil {
			err = a.admit(k, raw)
		}
		switch last := a.refusals[k]; {
		case err == nil:
			a.refusals[k] = refusal{}
			if a.docs.version(k) != before {
				events = append(events, a.told(byHand, a.admitted(k)))
			}
		case last.err == nil || policy.CodeOf(last.err) != policy.CodeOf(err) || !bytes.Equal(last.raw, raw):
			// Once a file and a code: the sentence may hold the time of day.
			a.refusals[k] = refusal{raw, err, a.Clock.Wall()}
			events = append(events, a.told(byHand, refusedDocument(k, err)))
			a.Log.Warn("document refused", "document", k.String(), "error", err)
		}
	}
	return events
}

// told is the event of a document, which says so, loudly, if root put it where
// somebody else delivers: a call on the socket may not have told of it.
func (a *Agent) told(byHand bool, e audit.Event) audit.Event {
	if byHand {
		e.Message += " (by hand: the file belongs to root, the inbox does not)"
		a.Log.Warn("a document was put into the inbox by hand", "document", e.Document, "event", e.Name)
	}
	return e
}

// admitted is the event of the document of kind k that is in force.
func (a *Agent) admitted(k Kind) audit.Event {
	version := a.docs.version(k)
	marks := [kinds]policy.Mark{Trust: a.mark.Trust, Policy: a.mark.Policy, Grants: a.mark.Grants}
	return audit.Event{Name: audit.DocumentAdmit, Time: a.Clock.Wall(), Document: k.String(), Version: version, Digest: marks[k].Digest.String(),
		Message: fmt.Sprintf("%s version %d is in force", k, version)}
}

func refusedDocument(k Kind, err error) audit.Event {
	code := policy.CodeOf(err)
	if code == "" {
		code = policy.Malformed
	}
	return audit.Event{Name: audit.DocumentRefused, Document: k.String(), Code: string(code), Message: err.Error()}
}

// admit puts raw in force if it may be. What it changes is saved before
// anything opens.
func (a *Agent) admit(k Kind, raw []byte) error {
	if a.unread != nil {
		return a.unread
	}
	docs, state, err := a.docs.admit(a.mark.State, k, raw, a.Settings.TrustPin, a.facts())
	if err != nil {
		return err
	}
	a.docs, a.mark.State = docs, state
	if k == Trust && a.former == nil {
		a.former = raw // the one the mark names, which was lost, or the first
	}
	if k == Policy {
		a.mark.Guarded = formatPorts(guardedPorts(docs.policy))
	}
	if k == Grants {
		a.mark.Void = stillListed(a.mark.Void, docs.grants)
	}
	a.unsaved[k], a.dirty = true, true
	a.Log.Info("document admitted", "document", k.String(), "version", docs.version(k))
	return nil
}

// stillListed drops the void ids that no list holds any more.
func stillListed(void []string, g policy.Grants) []string {
	listed := map[string]bool{}
	for _, x := range g.Grants {
		listed[x.ID] = true
	}
	var out []string
	for _, id := range void {
		if listed[id] {
			out = append(out, id)
		}
	}
	return out
}

// save makes the mark and new documents durable. Until it succeeds, carryOut
// only closes.
func (a *Agent) save() {
	if !a.dirty {
		return
	}
	if err := a.store.save(a.mark, a.docs.raw, a.unsaved, a.former); err != nil {
		a.saveErr = policy.Refuse(policy.NotDurable, "%v", err)
		return
	}
	a.unsaved, a.dirty, a.saveErr, a.former = [kinds]bool{}, false, nil, a.docs.raw[Trust]
}

// guarded returns the ports to guard: those of the last policy this host
// admitted, else those of the settings. A policy that is over, or whose
// signer lost the right, goes on guarding its ports.
func (a *Agent) guarded() []firewall.Port {
	if a.docs.policy.Version != 0 {
		return guardedPorts(a.docs.policy)
	}
	if a.mark.Guarded != nil {
		if ports, err := parsePorts(a.mark.Guarded); err == nil {
			return ports
		}
	}
	if a.unread != nil {
		return firewall.Union(a.Settings.Guard, a.have.Ports)
	}
	return a.Settings.Guard
}

// plan compares what should be with what is.
func (a *Agent) plan(ctx context.Context) (firewall.Plan, wanted, error) {
	boot := a.Clock.Boot()
	if !a.known || boot.Sub(a.observed) >= Resync {
		if err := a.observe(ctx); err != nil {
			return firewall.Plan{}, wanted{}, err
		}
	}
	boot = a.Clock.Boot()
	f := a.facts()
	decision := policy.Evaluate(a.mark.State, a.docs.trust, a.docs.policy, a.docs.grants, f)
	w := want(decision, pass{wall: f.Now, boot: boot, horizon: a.horizon,
		running: a.live, void: set(a.mark.Void), have: a.have.Openings,
		peers: a.standing.peers(boot), until: a.standing.Until})
	w.decision = decision
	mode := a.mode()
	if mode.trial != 0 {
		w.wake(mode.trial)
	}
	return firewall.Diff(a.have, firewall.Ruleset{
		Ports:    a.guarded(),
		Observe:  mode.Mode == Observe,
		Trial:    mode.trial,
		Openings: w.openings,
	}), w, nil
}

func (a *Agent) observe(ctx context.Context) error {
	before, checked := a.have, a.known && a.applied
	have, err := a.Backend.Observe(ctx)
	if err != nil {
		a.known = false
		return err
	}
	a.have, a.known, a.observed = have, true, a.Clock.Boot()
	a.uses.passed(have.Passed, a.passed)
	a.passed = have.Passed
	a.drift = a.drift || checked && drifted(before, have, a.observed)
	if !a.drift {
		a.culprit = firewall.Alteration{} // whatever he did, it is as it was
	}
	return nil
}

// drifted reports whether somebody changed the guard. Openings that ran out
// meanwhile do not count.
func drifted(before, have firewall.Observed, now firewall.BootTime) bool {
	if !have.Intact {
		return true
	}
	p := firewall.Diff(have, before.Ruleset)
	for _, c := range p.Open {
		if c.Until > now.Add(firewall.Slack) {
			return true
		}
	}
	return p.Rules || len(p.Close) > 0
}

// carryOut records the intents, applies the plan and records the outcome. No
// record, no opening: while anything cannot be written down, only what closes
// is done. A close never waits.
func (a *Agent) carryOut(ctx context.Context, plan firewall.Plan, w wanted, events []audit.Event) error {
	story := a.narrate(plan, w)
	problem := errors.Join(a.unread, a.saveErr)
	if len(a.install.told) > 0 { // the record took nothing in this pass
		problem = also(problem, a.install.err)
	}
	if problem == nil {
		// Together: an opening waits for one fsync.
		problem = a.recordIntents(ctx, events, story.intents)
	} else {
		problem = also(problem, a.record(ctx, events))
	}
	if problem != nil {
		observe := plan.Observe && a.standing.Mode == Observe
		if plan = plan.ClosesOnly(a.have); plan.Rules {
			// Also where somebody has taken the rules away meanwhile.
			plan.Ports = firewall.Union(plan.Ports, a.wrote)
		}
		if observe { // root said so: who needs to get in does not wait for a disk
			plan.Observe, plan.Trial = true, 0
		}
	}
	// Before the change: a kernel that carries it out and says that it did
	// not, or a crash, must not have the ends drawn anew by a clock set back.
	a.keep(w.horizon)
	if !plan.Empty() {
		began := time.Now()
		err := a.Backend.Apply(ctx, plan)
		a.metrics.took(time.Since(began))
		if err != nil {
			a.known = false
			return errors.Join(problem, fmt.Errorf("apply: %w", err), a.record(ctx, a.tellDrift(plan)))
		}
		a.have = firewall.Observed{Ruleset: plan.Apply(a.have.Ruleset), Intact: true}
	}
	a.wrote = a.have.Ports
	for _, c := range plan.Open {
		delete(a.passed, c.Door) // counted anew
	}
	a.applied = true
	if a.stands != nil {
		a.stands()
	}
	before := a.live
	if a.live = w.live; problem != nil {
		// Nothing opened. What was in force and still should be is.
		a.live = maps.Clone(before)
		maps.DeleteFunc(a.live, func(id string, _ granted) bool { _, ok := w.live[id]; return !ok })
	}
	story.always = append(story.always, a.settleUses(ctx, before)...)
	if a.drift {
		story.always = append(story.always, a.tellDrift(plan)...)
		repaired := a.altered(audit.GuardRepaired, "the guard is whole again")
		if a.culprit.At != 0 {
			repaired.ExposedMS = a.Clock.Boot().Sub(a.culprit.At).Milliseconds()
		}
		story.always = append(story.always, repaired)
		a.drift, a.driftTold, a.culprit = false, false, firewall.Alteration{}
	}
	if problem != nil {
		return also(problem, a.record(ctx, story.always))
	}
	a.forgetExpired()
	if len(story.opened) > 0 {
		a.opened = a.Clock.Boot()
	}
	return a.record(ctx, append(story.opened, story.always...))
}

// tellDrift is what to say, once, of a guard that somebody else changed. It is
// said after the attempt to mend it, which must not wait for a disk.
func (a *Agent) tellDrift(mend firewall.Plan) []audit.Event {
	if !a.drift || a.driftTold {
		return nil
	}
	a.driftTold = true
	a.Log.Warn("the firewall is not as this agent left it", "plan", mend.Describe(a.Clock.Boot()))
	return []audit.Event{a.altered(audit.GuardDrift, "the guard was changed by somebody else")}
}

// keep remembers the horizon, and for an agent that starts later: as soon as
// it changes, and while there are ends to come how far time has gone. A
// failure only means that such an agent draws it anew.
func (a *Agent) keep(h horizon) {
	now := a.Clock.Boot()
	if maps.Equal(a.horizon, h) && (len(h) == 0 || now.Sub(a.kept) < Resync) {
		return
	}
	a.horizon = h
	a.keepUntil(now, false)
}

func (a *Agent) keepUntil(now firewall.BootTime, stopped bool) {
	a.kept = now
	if err := a.store.saveHorizon(savedHorizon{a.Clock.BootID, now, stopped, a.horizon}); err != nil {
		a.Log.Warn("the ends of openings are remembered by this process only", "error", err)
	}
}

// also joins err to problem, unless problem says the same already.
func also(problem, err error) error {
	if err != nil && problem != nil && strings.Contains(problem.Error(), err.Error()) {
		return problem
	}
	return errors.Join(problem, err)
}

// altered is an event about a change by somebody else, with what is known of
// him.
func (a *Agent) altered(name audit.Name, message string) audit.Event {
	return audit.Event{Name: name, Message: message, Process: a.culprit.Process, PID: a.culprit.PID}
}

// doubt has the next pass look at the firewall.
func (a *Agent) doubt() { a.observed = a.Clock.Boot().Add(-Resync) }

// suspect has the next pass look at the firewall: somebody changed it.
func (a *Agent) suspect(by firewall.Alteration) {
	a.doubt()
	if !a.drift {
		a.culprit = by
	}
}

// forgetExpired drops openings the kernel has closed by now from what is
// remembered of it.
func (a *Agent) forgetExpired() {
	now := a.Clock.Boot()
	for door, end := range a.have.Openings {
		if end.Until <= now {
			delete(a.have.Openings, door)
		}
	}
}

// maxPending bounds what is remembered while nothing can be recorded.
const maxPending = 4096

// record makes events durable, after those an earlier call could not write.
func (a *Agent) record(ctx context.Context, events []audit.Event) error {
	now := a.Clock.Wall()
	for _, e := range events {
		if e.Time.IsZero() {
			e.Time = now
		}
		a.pending = append(a.pending, e)
	}
	if len(a.pending) > maxPending {
		a.pending = slices.Delete(a.pending, 0, len(a.pending)-maxPending)
	}
	if len(a.pending) == 0 {
		return nil
	}
	if err := a.Audit.Record(ctx, a.pending...); err != nil {
		return policy.Refuse(policy.NotDurable, "%v", err)
	}
	a.metrics.count(a.pending)
	a.pending = nil
	return nil
}

// recordIntents makes events durable, and the intents behind them. An intent
// that cannot be recorded is forgotten: nothing comes of it.
func (a *Agent) recordIntents(ctx context.Context, events, intents []audit.Event) error {
	err := a.record(ctx, slices.Concat(events, intents))
	if err != nil {
		a.pending = a.pending[:max(0, len(a.pending)-len(intents))]
	}
	return err
}

// endAll closes every opening and ends all listed grants for good.
func (a *Agent) endAll(ctx context.Context, by string) error {
	if a.unread == nil {
		a.mark.Void = nil
		for _, g := range a.docs.grants.Grants {
			a.mark.Void = append(a.mark.Void, g.ID)
		}
		a.dirty = true
	}
	_, err := a.Step(ctx) // closes even if it cannot save
	return errors.Join(err, a.record(ctx, []audit.Event{{Name: audit.GuardLockdown, Message: "every opening was closed", Requestor: by}}))
}

func set(list []string) map[string]bool {
	out := make(map[string]bool, len(list))
	for _, s := range list {
		out[s] = true
	}
	return out
}
