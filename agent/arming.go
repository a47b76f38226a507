package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

// standing is the mode as commands left it. It outlives the agent (mode.json).
//
// Arming begins with a trial: the guard drops until an instant on the boot
// clock, which the kernel knows too, and then goes back by itself. Confirming
// makes it stand for good.
type standing struct {
	// Mode is how the guard stands for good; empty: as the settings say.
	Mode Mode `json:"mode,omitempty"`
	// Trial says that the guard drops until Until, and then is in Mode again.
	Trial bool `json:"trial,omitempty"`
	// Peers are admitted until Until: the sessions arming came in by.
	Peers  []Session         `json:"peers,omitempty"`
	Until  firewall.BootTime `json:"until,omitempty"` // nanoseconds since boot
	BootID string            `json:"bootID,omitempty"`
}

// guardState is the mode of one instant, with the instant a trial ends.
type guardState struct {
	Mode
	trial firewall.BootTime // 0: none
}

// at says how the guard stands. A host that was never armed is as its settings
// say.
func (s standing) at(settings Mode, boot firewall.BootTime) guardState {
	switch {
	case s.Trial && boot < s.Until:
		return guardState{Enforce, s.Until}
	case s.Mode != "":
		return guardState{Mode: s.Mode}
	}
	return guardState{Mode: settings}
}

// over reports whether a trial has ended.
func (s standing) over(boot firewall.BootTime) bool { return s.Trial && boot >= s.Until }

// in returns the standing as it is in the boot of that name: what was for a
// time ends with the boot whose clock it was on.
func (s standing) in(bootID string) standing {
	if s.BootID == "" || s.BootID != bootID {
		s.Peers, s.Until = nil, 0
	}
	return s
}

// peers are the doors open to those who armed.
func (s standing) peers(boot firewall.BootTime) []firewall.Door {
	var out []firewall.Door
	for _, p := range s.Peers {
		if boot < s.Until {
			out = append(out, p.door())
		}
	}
	return out
}

// The time an arming may wait for its confirmation.
const (
	MinConfirm = 5 * time.Second
	MaxConfirm = 24 * time.Hour
)

// maxPeers bounds how many sessions one arming may admit.
const maxPeers = 16

// Arming is what became of a call to arm.
type Arming struct {
	Mode     Mode      `json:"mode"`
	Back     Mode      `json:"back,omitempty"` // what it goes back to without a confirmation
	Until    time.Time `json:"until,omitzero"` // when; zero: it stands for good
	Admitted []Session `json:"admitted"`       // until then
	Guarded  []string  `json:"guarded"`        // what is dropped unless granted
	Denied   []Denial  `json:"denied"`         // who would have been dropped so far
}

// arm has the guard drop for within, and admits own, the sessions of whoever
// calls, for that time. On an error nothing has changed.
func (a *Agent) arm(ctx context.Context, by string, within time.Duration, own []Session) (Arming, error) {
	boot := a.Clock.Boot()
	now := a.mode()
	result := Arming{Mode: Enforce, Admitted: []Session{}, Guarded: formatPorts(a.guarded()), Denied: []Denial{}}
	absent := a.absent()
	switch {
	case absent != nil:
		return result, fmt.Errorf("not armed: %w", absent)
	case now.Mode == Enforce && now.trial == 0:
		return result, nil
	case within < MinConfirm || within > MaxConfirm:
		return result, fmt.Errorf("confirming within %s: between %s and %s are possible", within, MinConfirm, MaxConfirm)
	case a.unread != nil || a.saveErr != nil:
		return result, fmt.Errorf("not armed, because nothing could be opened afterwards: %w", errors.Join(a.unread, a.saveErr))
	case len(result.Guarded) == 0:
		return result, errors.New("not armed: no port is guarded, neither by the settings nor by a policy")
	}
	denied, err := a.Backend.Denied(ctx)
	if err != nil {
		return result, err
	}
	result.Denied = a.denials(denied)
	for _, s := range own {
		s.Source = s.Source.Unmap().WithZone("")
		if a.guards(s.Port) && len(result.Admitted) < maxPeers && !slices.Contains(result.Admitted, s) {
			result.Admitted = append(result.Admitted, s)
		}
	}
	next := standing{Mode: a.standing.Mode, Trial: true, Peers: result.Admitted, Until: boot.Add(within), BootID: a.Clock.BootID}
	result.Until, result.Back = a.Clock.Wall().Add(within).UTC().Truncate(time.Second), next.at(a.Settings.Mode, next.Until).Mode
	event := audit.Event{Name: audit.GuardArmed, Source: sessionsText(next.Peers), End: result.Until, Requestor: by,
		Message: fmt.Sprintf("the guard drops for %s, and goes back to %s unless that is confirmed", within, result.Back)}
	if err := a.stand(ctx, next, event); err != nil {
		return result, err
	}
	_, err = a.Step(ctx)
	return result, err
}

// stand makes another standing durable and recorded, or leaves the one that is.
func (a *Agent) stand(ctx context.Context, next standing, event audit.Event) error {
	if err := a.store.saveStanding(next); err != nil {
		return fmt.Errorf("the mode cannot be saved: %w", err)
	}
	if err := a.record(ctx, []audit.Event{event}); err != nil {
		a.pending = a.pending[:max(0, len(a.pending)-1)]
		return errors.Join(err, a.store.saveStanding(a.standing))
	}
	a.standing, a.modeErr = next, nil
	return nil
}

// confirm makes a trial stand for good. Sessions it admitted stay admitted for
// the time that was said.
func (a *Agent) confirm(ctx context.Context, by string) error {
	absent := a.absent()
	switch now := a.mode(); {
	case absent != nil:
		return fmt.Errorf("not confirmed: %w", absent)
	case now.Mode != Enforce:
		return fmt.Errorf("nothing to confirm, the guard is in mode %s: run jitgate arm first", now.Mode)
	case now.trial == 0:
		return nil
	}
	next := a.standing
	next.Mode, next.Trial = Enforce, false
	if err := a.stand(ctx, next, audit.Event{Name: audit.GuardConfirmed, Message: "the guard drops for good", Requestor: by}); err != nil {
		return err
	}
	_, err := a.Step(ctx)
	return err
}

// disarm stops dropping, for good: it goes over to mode observe, or takes the
// guard away. It does so even if that cannot be saved or recorded: whoever
// needs to get in must not wait for a disk. The error then says so.
func (a *Agent) disarm(ctx context.Context, by string, mode Mode) error {
	if a.mode() == (guardState{Mode: mode}) {
		_, err := a.Step(ctx)
		return also(err, a.unsettled)
	}
	next := standing{Mode: mode}
	saveErr := a.store.saveStanding(next)
	if saveErr != nil {
		saveErr = fmt.Errorf("a restart of the agent forgets it: %w", saveErr)
	}
	a.standing, a.modeErr = next, nil
	recordErr := a.record(ctx, []audit.Event{{Name: audit.GuardDisarmed, Message: "the guard no longer drops: mode " + string(mode), Requestor: by}})
	_, err := a.Step(ctx)
	return also(errors.Join(saveErr, also(recordErr, err)), a.unsettled)
}

// revert ends a trial that nobody confirmed in time, and returns what to
// record of it. The kernel has let everything pass since.
func (a *Agent) revert() []audit.Event {
	if !a.standing.over(a.Clock.Boot()) {
		return nil
	}
	a.standing = standing{Mode: a.standing.Mode}
	if err := a.store.saveStanding(a.standing); err != nil {
		// The next agent finds the same trial over, and ends it once more.
		a.Log.Warn("the end of the trial is remembered by this process only", "error", err)
	}
	back := a.mode().Mode
	a.Log.Warn("arming was not confirmed in time", "mode", back)
	return []audit.Event{{Name: audit.GuardReverted, Message: fmt.Sprintf("arming was not confirmed in time: the guard is in mode %s again", back)}}
}

// standDown takes the guard away, as a mode of the host: whatever comes back
// under its name is removed too.
func (a *Agent) standDown(ctx context.Context, events []audit.Event) error {
	if a.known && len(a.uses) > 0 {
		// The counters go with the guard. Without them less is known of use.
		if err := a.observe(ctx); err != nil {
			a.Log.Warn("the guard was not looked at before it is removed", "error", err)
		}
	}
	err := a.Backend.Remove(ctx)
	if err != nil {
		err = fmt.Errorf("remove the guard: %w", err)
	}
	a.have, a.known, a.applied, a.drift = firewall.Observed{}, false, false, false
	before := a.live
	a.live, a.decision = map[string]granted{}, policy.Decision{}
	if len(a.uses) > 0 {
		events = append(events, a.settleUses(ctx, before)...)
	}
	return errors.Join(err, a.record(ctx, events))
}

// mode is how the guard stands now.
func (a *Agent) mode() guardState { return a.standing.at(a.Settings.Mode, a.Clock.Boot()) }

// guards reports whether a TCP port is guarded.
func (a *Agent) guards(port uint16) bool {
	return slices.ContainsFunc(a.guarded(), func(p firewall.Port) bool {
		return p.Protocol == firewall.TCP && p.First <= port && port <= p.Last
	})
}

func sessionsText(list []Session) string {
	var text []string
	for _, s := range list {
		text = append(text, s.String())
	}
	return strings.Join(text, ", ")
}
