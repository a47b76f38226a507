package agent

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/local"
)

// Run is the daemon: it guards until ctx ends, and then leaves the guard
// standing. ready, if not nil, is called once the guard is in place. An error
// before that is final: the supervisor must see it.
func (a *Agent) Run(ctx context.Context, ready func()) error {
	release, err := a.takeDirs()
	if err != nil {
		return err
	}
	defer release()
	a.Load()
	// Watch before the first look, so that nothing falls between.
	watch := newInboxWatch(a.Settings.InboxDir, a.Log, fsnotify.NewWatcher)
	defer watch.close()
	wake, err := newAlarm()
	if err != nil {
		return err
	}
	defer wake.close()
	steps, err := newStepWatch()
	if err != nil {
		return err
	}
	defer steps.close()
	// First in the record, and with the first that is written to it: before the
	// guard stands a disk is waited for once, not twice.
	a.pending = slices.Insert(a.pending, 0, audit.Event{Name: audit.AgentStarted, Time: a.Clock.Wall(), Message: "the agent started in mode " + string(a.toldMode())})
	// Who waits for the guard, as a boot does, does not wait for what the first
	// pass looks at and records after it.
	var stop func()
	var unserved error
	a.stands = sync.OnceFunc(func() {
		if stop, unserved = a.serve(); unserved != nil {
			return
		}
		if ready != nil {
			ready()
		}
		a.Supervisor.tell(supervisorReady)
		if a.absent() == nil {
			a.Log.Info("guarding", "ports", a.guarded(), "mode", a.mode().Mode, "firewall", a.Backend.Describe())
		}
	})
	defer func() {
		if stop != nil {
			stop()
		}
	}()
	if _, err = a.Step(ctx); err != nil && !a.applied && a.absent() == nil {
		return err
	}
	a.stands() // in mode off, where nothing is to stand
	if unserved != nil {
		return unserved
	}
	a.logProblem(nil, err)

	rest := time.NewTimer(restAfter)
	defer rest.Stop()
	var given uint64 // what had been allocated when memory was given back last
	heads := time.NewTicker(headEvery)
	defer heads.Stop()
	a.tellHead(ctx)
	for {
		a.Supervisor.Alive()
		next := a.next
		// Whoever was let in connects now; that it comes from elsewhere is to be
		// told while somebody waits.
		if glance := a.opened.Add(knockEvery + time.Second); a.opened != 0 && a.Clock.Boot() < glance {
			next = min(next, glance)
		}
		if pace := a.Supervisor.Pace(); pace > 0 {
			next = min(next, a.Clock.Boot().Add(pace))
		}
		if err := wake.set(next); err != nil {
			return err
		}
		before := a.problem
		select {
		case <-ctx.Done():
			a.Supervisor.tell(supervisorStopping)
			// The guard stays; only the agent goes.
			a.keepUntil(a.Clock.Boot(), true)
			a.hear(context.WithoutCancel(ctx), false)
			a.keepUses()
			err := a.record(context.WithoutCancel(ctx), []audit.Event{{Name: audit.AgentStopped, Message: "the agent stopped; the guard stays"}})
			a.tellHead(context.WithoutCancel(ctx))
			return err
		case call := <-a.calls:
			call()
			continue
		case <-heads.C:
			a.tellHead(ctx)
			continue
		case <-rest.C:
			if n := allocated(); n-given >= worthGiving {
				given = n
				debug.FreeOSMemory()
			}
			continue
		case <-wake.C:
			watch.renew()
		case <-steps.C:
			// Set forward, as after a snapshot was restored, it may have passed
			// ends that the boot clock puts later. After a sleep the kernel's
			// timeouts lag behind.
			a.Log.Info("the wall clock was set, or the machine slept")
			a.doubt()
		case by := <-a.Backend.Changes():
			a.suspect(by)
		case <-watch.C:
		}
		_, err = a.Step(ctx)
		a.logProblem(before, also(err, a.tellKnocks(ctx)))
		rest.Reset(restAfter)
	}
}

// restAfter is how long after a pass the memory it took is given back to the
// system: the runtime would keep it for work that does not come.
const restAfter = 2 * time.Second

// worthGiving is how many bytes have to have been allocated for that: giving
// back wakes the threads of the collector, which a pass that found nothing to
// do is not worth.
const worthGiving = 1 << 20

// allocated returns how many bytes this process has allocated so far, those
// it has freed included.
func allocated() uint64 {
	s := []runtimemetrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	runtimemetrics.Read(s)
	return s[0].Value.Uint64()
}

// logProblem logs a problem when it begins and when it ends, not every second.
func (a *Agent) logProblem(before, now error) {
	switch {
	case now != nil && (before == nil || before.Error() != now.Error()):
		a.Log.Error("the last pass failed, trying again", "error", now)
	case now == nil && before != nil:
		a.Log.Info("the problem is over")
	}
}

// headersWithin is how long whoever connects may take to ask. A machine that is
// starved takes seconds between the two.
const headersWithin = 30 * time.Second

func (a *Agent) serve() (stop func(), err error) {
	l, err := local.Listen(a.Settings.Socket)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: a.handler(), ConnContext: withCaller, ReadHeaderTimeout: headersWithin, IdleTimeout: time.Minute}
	go server.Serve(l) // returns when it is closed
	return func() { server.Close() }, nil
}

// takeDirs makes the directories and takes the state directory for this
// process. A disk that has no room for them does not keep an agent from
// guarding: nothing opens before its mark and its record are on it.
func (a *Agent) takeDirs() (release func(), err error) {
	if err := errors.Join(makePrivateDir(a.Settings.StateDir), makeInbox(a.Settings.InboxDir)); err != nil {
		a.Log.Error("nothing will open", "error", err)
	}
	unlock, err := lock(a.Settings.StateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	return func() {
		if err := handBack(a.Settings.StateDir); err != nil {
			a.Log.Warn("the agent's own user cannot read all of its state", "error", err)
		}
		unlock()
	}, nil
}

// Once is one pass by itself, for an administrator or a timer.
func (a *Agent) Once(ctx context.Context) error {
	release, err := a.takeDirs()
	if err != nil {
		return err
	}
	defer release()
	a.Load()
	a.inbox.patience = inboxSilence
	_, err = a.Step(ctx)
	return err
}

// DisarmOnce disarms a host whose agent does not run.
func (a *Agent) DisarmOnce(ctx context.Context, q DisarmRequest) error {
	release, err := a.takeDirs()
	if err != nil {
		return err
	}
	defer release()
	a.Load()
	return a.disarm(ctx, ownCaller().String(), q.mode())
}
