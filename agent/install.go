package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/policy"
)

const installFile = "install.json"

// installation is install.json: this one installation of a host, and what was
// known of the machine it is on. The zero installation is none.
type installation struct {
	ID      string    `json:"id"`
	Machine Machine   `json:"machine"`
	Since   time.Time `json:"since"`
}

// on returns the installation on the machine of now: the same as long as no
// fact says that this is another one. fresh is the id of a new one. It is
// pure.
//
// A restored snapshot or backup of the same machine is the same installation:
// nothing tells them apart.
func (i installation) on(now Machine, fresh string, at time.Time) installation {
	if i.ID == "" || i.Machine.contradicts(now) {
		return installation{fresh, now, at}
	}
	i.Machine = i.Machine.with(now)
	return i
}

// installing is an installation that may still have to be written down. It
// counts once it is.
type installing struct {
	installation
	due   bool // not on the disk as it is here
	known bool // its id is on the disk
	told  []audit.Event
	err   error // why it is not on the disk
}

// id is what documents may name: empty until it is durable, because nothing
// else tells a crash from a clone.
func (i installing) id() string {
	if !i.known {
		return ""
	}
	return i.ID
}

// install decides which installation this is, from what an earlier one left,
// or why that could not be read. It writes nothing.
func install(was installation, unread error, machine Machine, at time.Time) installing {
	next := installing{installation: was.on(machine, rand.Text(), at.UTC())}
	next.due, next.known = next.installation != was, next.ID == was.ID
	event := audit.Event{Install: next.ID, FormerInstall: was.ID}
	switch {
	case next.known:
		return next
	case unread != nil:
		event.Name, event.Message = audit.InstallRenewed, fmt.Sprintf("a new installation: the former id cannot be read: %v", unread)
	case was.ID != "":
		event.Name, event.Message = audit.InstallRenewed, "a new installation: the state was made on another machine"
	default:
		event.Name, event.Message = audit.InstallCreated, "a new installation"
	}
	next.told = []audit.Event{event}
	return next
}

// settleInstall records a new installation and then makes it durable. Until
// that succeeds documents that name one are refused; all else goes on.
func (a *Agent) settleInstall(ctx context.Context) {
	if !a.install.due {
		return
	}
	var err error
	if len(a.install.told) > 0 {
		// The record first: a crash in between leaves an id that never counted.
		if err = a.recordIntents(ctx, nil, a.install.told); err == nil {
			a.install.told = nil
		}
	}
	if err == nil {
		err = a.store.saveInstall(a.install.installation)
	}
	if err != nil && a.install.err == nil {
		a.Log.Warn("what is known of this installation cannot be written down", "error", err)
	}
	if a.install.err = err; err == nil {
		a.install.due, a.install.known = false, true
	}
}

func (s store) saveInstall(i installation) error {
	return s.write(installFile, i, true)
}

// loadInstall returns what was saved: the zero installation if nothing was, or
// if it cannot be read.
func (s store) loadInstall() (i installation, err error) {
	err = s.read(installFile, &i)
	if errors.Is(err, fs.ErrNotExist) {
		return installation{}, nil
	}
	if err == nil {
		err = policy.CheckInstall(i.ID)
	}
	if err != nil {
		return installation{}, fmt.Errorf("%s: %w", installFile, err)
	}
	return i, nil
}
