package control_test

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store/storetest"
)

// deskTime is when the tests of access, inventory and activity begin.
var deskTime = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

// desk is an engine on a real store, with a clock that tests move.
type desk struct {
	*control.Engine
	t     *testing.T
	store control.Store
	since atomic.Int64
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{t: t, store: storetest.SQLite(t)}
	d.Engine = control.New(control.Config{Store: d.store, Now: d.now, Log: hclog.NewNullLogger()})
	return d
}

func (d *desk) now() time.Time           { return deskTime.Add(time.Duration(d.since.Load())) }
func (d *desk) forward(by time.Duration) { d.since.Add(int64(by)) }
func (d *desk) put(f func(control.Tx) error) {
	d.t.Helper()
	if err := d.store.Update(d.t.Context(), f); err != nil {
		d.t.Fatal(err)
	}
}

// lines is the activity log, oldest first.
func (d *desk) lines() (lines []control.Activity) {
	d.t.Helper()
	err := d.store.View(d.t.Context(), func(tx control.Tx) (err error) {
		lines, err = tx.Activity(control.ActivityFilter{})
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return lines
}

// last is the newest line.
func (d *desk) last() control.Activity {
	d.t.Helper()
	lines := d.lines()
	if len(lines) == 0 {
		d.t.Fatal("the activity log is empty")
	}
	return lines[len(lines)-1]
}

// caller is somebody with built-in roles: "Owner", "/", "Reader", "/subscriptions/s1", …
func caller(id string, rights ...string) control.Caller {
	c := control.Caller{ID: id, Name: strings.TrimPrefix(id, "local:"), Type: control.TypeUser, Request: "call-of-" + id}
	for pair := range slices.Chunk(rights, 2) {
		c.Rights = append(c.Rights, control.ResolveRights([]control.Assignment{{Role: pair[0], Scope: control.Scope(pair[1])}}, nil)...)
	}
	return c
}

// refused checks that err is a refusal of that kind and code.
func refused(t *testing.T, what string, err error, kind control.Kind, code string) {
	t.Helper()
	e := control.AsError(err)
	if e == nil || e.Kind != kind || e.Code != code {
		t.Errorf("%s: %v (%+v); want kind %d, code %s", what, err, e, kind, code)
	}
}
