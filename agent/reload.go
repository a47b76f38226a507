package agent

import (
	"context"
	"fmt"
	"net/http"

	"github.com/jitgate/jitgate/audit"
)

// Reload reads the settings again and takes them, or leaves those that are in
// force and says why. Openings are not touched.
func (a *Agent) Reload(ctx context.Context) error {
	// Outside the passes: a file system that does not answer holds up none.
	s, err := a.Reread()
	if err != nil {
		return err
	}
	if busy := a.do(ctx, func() { err = a.adopt(ctx, s) }); busy != nil {
		return busy
	}
	return err
}

// adopt takes other settings. What says who this host is and where it keeps
// what it knows takes a start: an agent would have to forget half of itself.
func (a *Agent) adopt(ctx context.Context, s Settings) error {
	now := a.Settings
	for _, fixed := range []struct {
		name string
		same bool
	}{
		{"host_id", s.HostID == now.HostID},
		{"trust_pin", s.TrustPin == now.TrustPin},
		{"inbox_dir", s.InboxDir == now.InboxDir},
		{"state_dir", s.StateDir == now.StateDir},
		{"socket", s.Socket == now.Socket},
	} {
		if !fixed.same {
			return fmt.Errorf("%s changes only when the agent starts, which keeps what is open: systemctl restart jitgate", fixed.name)
		}
	}
	a.Settings = s
	event := audit.Event{Name: audit.AgentReloaded, Message: "other settings are in force, in mode " + string(a.mode().Mode)}
	if err := a.recordIntents(ctx, nil, []audit.Event{event}); err != nil {
		a.Settings = now
		return err
	}
	a.Log.Info("other settings are in force", "mode", a.mode().Mode, "guard", formatPorts(s.Guard))
	_, err := a.Step(ctx)
	return err
}

// reloading answers a call to read the settings again.
func (a *Agent) reloading(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	by := callerOf(r)
	if err := by.mustBeOfTheAgent(); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	if err := a.Reload(ctx); err != nil {
		a.Log.Error("the settings stay as they are", "error", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
