package control_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store/storetest"
)

// write appends lines about scopes, an event each.
func (d *desk) write(event string, scopes ...control.Scope) {
	d.t.Helper()
	d.put(func(tx control.Tx) error {
		for _, s := range scopes {
			if err := tx.AppendActivity(control.Activity{Time: d.now(), Event: event, Status: "Succeeded", Actor: "alice", Scope: s}); err != nil {
				return err
			}
		}
		return nil
	})
}

// seqs are those of lines.
func seqs(lines []control.Activity) (list []uint64) {
	for _, l := range lines {
		list = append(list, l.Seq)
	}
	return list
}

func TestListActivity(t *testing.T) {
	vm1, vm2, beside := inS1("g1", "a").Scope(), inS1("g2", "b").Scope(), control.Scope("/subscriptions/s1/resourcegroups/g10")
	scopes := []control.Scope{vm1, vm2, group1, sub1, "/", beside, "/subscriptions/s10", control.PolicyID{Subscription: "s1", Group: "g1", Location: "l", Name: "p"}.Scope()}
	for engine, store := range map[string]control.Store{"SQLite": storetest.SQLite(t), "PostgreSQL": storetest.PostgreSQL(t)} {
		t.Run(engine, func(t *testing.T) {
			d := newDesk(t)
			d.store, d.Engine.Store = store, store
			for i := range 10 {
				d.write([]string{"request.initiated", "policy.written"}[i%2], scopes...)
				d.forward(time.Minute)
			}
			all := d.lines()
			if len(all) != 80 {
				t.Fatalf("%d lines", len(all))
			}
			for name, test := range map[string]struct {
				by     control.Caller
				filter control.ActivityFilter
				want   func(control.Activity) bool
			}{
				"all":         {caller("local:o", "Owner", "/"), control.ActivityFilter{}, func(control.Activity) bool { return true }},
				"a group":     {caller("local:r", "Reader", string(group1)), control.ActivityFilter{}, func(l control.Activity) bool { return group1.Covers(l.Scope) }},
				"a machine":   {caller("local:r", "Reader", string(group1)), control.ActivityFilter{Scope: vm1}, func(l control.Activity) bool { return l.Scope == vm1 }},
				"one's share": {caller("local:r", "Reader", string(group1), "Reader", "/subscriptions/s2"), control.ActivityFilter{Scope: sub1}, func(l control.Activity) bool { return group1.Covers(l.Scope) }},
				"two scopes": {caller("local:r", "Reader", string(group1), "Reader", string(vm2), "JITRequester", "/", "Reader", string(vm1)), control.ActivityFilter{Event: "policy.written"},
					func(l control.Activity) bool {
						return (group1.Covers(l.Scope) || l.Scope == vm2) && l.Event == "policy.written"
					}},
				"a time": {caller("local:r", "Reader", string(sub1)), control.ActivityFilter{From: deskTime.Add(2 * time.Minute), To: deskTime.Add(4 * time.Minute)},
					func(l control.Activity) bool {
						return sub1.Covers(l.Scope) && !l.Time.Before(deskTime.Add(2*time.Minute)) && l.Time.Before(deskTime.Add(4*time.Minute))
					}},
				"an actor": {caller("local:r", "Reader", string(sub1)), control.ActivityFilter{Actor: "bob"}, func(control.Activity) bool { return false }},
			} {
				for _, newest := range []bool{false, true} {
					var want []uint64
					for _, l := range all {
						if test.want(l) {
							want = append(want, l.Seq)
						}
					}
					if newest {
						slices.Reverse(want)
					}
					for _, limit := range []int{0, 7, max(1, len(want))} {
						f := test.filter
						f.Newest, f.Limit = newest, limit
						var got []uint64
						for pages := 0; ; pages++ {
							page, next, err := d.ListActivity(t.Context(), test.by, f)
							if err != nil || pages > len(want) || limit > 0 && len(page) > limit {
								t.Fatalf("%s: %d lines, %v", name, len(page), err)
							}
							got = append(got, seqs(page)...)
							if next == 0 {
								break
							}
							f.After = next
						}
						if !slices.Equal(got, want) {
							t.Errorf("%s, newest %v, by %d: %v, want %v", name, newest, limit, got, want)
						}
					}
				}
			}
			_, _, err := d.ListActivity(t.Context(), caller("local:j", "JITRequester", "/"), control.ActivityFilter{})
			refused(t, "a requester", err, control.Forbidden, "AuthorizationFailed")
			_, _, err = d.ListActivity(t.Context(), caller("local:r", "Reader", string(group1)), control.ActivityFilter{Scope: group2})
			refused(t, "another group's", err, control.Forbidden, "AuthorizationFailed")
		})
	}
}

var errEnough = errors.New("enough")

// follow collects n lines.
func (d *desk) follow(c control.Caller, f control.ActivityFilter, after uint64, n int) (got []uint64, err error) {
	ctx, cancel := context.WithTimeout(d.t.Context(), 30*time.Second)
	defer cancel()
	err = d.FollowActivity(ctx, c, f, after, func(l control.Activity) error {
		if got = append(got, l.Seq); len(got) == n {
			return errEnough
		}
		return nil
	})
	return got, err
}

// Lines that are there and lines that come, while others write: each once, in
// order, and none of what the caller may not see.
func TestFollowActivity(t *testing.T) {
	for engine, store := range map[string]control.Store{"SQLite": storetest.SQLite(t), "PostgreSQL": storetest.PostgreSQL(t)} {
		t.Run(engine, func(t *testing.T) {
			d := newDesk(t)
			d.store, d.Engine.Store = store, store
			mine, other := inS1("g1", "a").Scope(), inS1("g2", "b").Scope()
			for range 400 { // more than is read at once
				d.write("grant.opened", mine, other, mine)
			}
			written := make(chan struct{})
			go func() {
				defer close(written)
				for range 100 {
					d.write("grant.opened", other, mine)
				}
			}()
			got, err := d.follow(caller("local:r", "Reader", string(group1)), control.ActivityFilter{}, 1, 799+100)
			<-written
			if !errors.Is(err, errEnough) {
				t.Fatalf("%d lines, %v", len(got), err)
			}
			var want []uint64
			for _, l := range d.lines() {
				if l.Seq > 1 && l.Scope == mine {
					want = append(want, l.Seq)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d lines, want %d", len(got), len(want))
			}
		})
	}
}

func TestFollowActivityEnds(t *testing.T) {
	d := newDesk(t)
	d.write("x", "/")
	_, err := d.follow(caller("local:j", "JITRequester", "/"), control.ActivityFilter{}, 0, 1)
	refused(t, "no right", err, control.Forbidden, "AuthorizationFailed")
	ctx, cancel := context.WithCancel(t.Context())
	err = d.FollowActivity(ctx, caller("local:o", "Owner", "/"), control.ActivityFilter{}, 0, func(control.Activity) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// deaf is a store that never tells of changes, is away at times, and counts how
// much of the log it is asked for.
type deaf struct {
	control.Store
	mu    *sync.Mutex // of all below
	lines *[]control.Activity
	away  *bool
	read  *int
}

type deafTx struct {
	control.Tx
	deaf
}

func (deaf) Changed(context.Context) <-chan struct{} { return nil }

func (s deaf) View(_ context.Context, f func(control.Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *s.away {
		return fmt.Errorf("%w", control.Refuse(control.Unavailable, "ServiceUnavailable", "away"))
	}
	return f(deafTx{deaf: s})
}

func (x deafTx) Activity(f control.ActivityFilter) (got []control.Activity, err error) {
	if f.Newest {
		if n := len(*x.lines); n > 0 {
			return (*x.lines)[n-1:], nil
		}
		return nil, nil
	}
	for _, l := range *x.lines {
		if l.Seq <= f.After {
			continue
		}
		*x.read++
		if f.Event == "" || f.Event == l.Event {
			got = append(got, l)
		}
	}
	return got, nil
}

// Nothing is missed where nobody tells of changes and the store was away, and
// what the filter leaves out is looked at once.
func TestFollowActivitySweeps(t *testing.T) {
	d := newDesk(t)
	synctest.Test(t, func(t *testing.T) {
		var lines []control.Activity
		away, read := false, 0
		var mu sync.Mutex
		d.Engine.Store = deaf{d.store, &mu, &lines, &away, &read}
		for i := range 100 {
			lines = append(lines, control.Activity{Seq: uint64(i + 1), Event: "dull", Scope: "/"})
		}
		ctx, cancel := context.WithCancel(t.Context())
		var got []uint64
		done := make(chan error)
		go func() {
			done <- d.FollowActivity(ctx, caller("local:o", "Owner", "/"), control.ActivityFilter{Event: "x"}, 0, func(l control.Activity) error {
				got = append(got, l.Seq)
				return nil
			})
		}()
		for i := range 10 {
			synctest.Wait()
			mu.Lock()
			away = i%2 == 1
			lines = append(lines, control.Activity{Seq: uint64(len(lines) + 1), Event: "x", Scope: "/"})
			mu.Unlock()
			time.Sleep(3 * time.Second)
		}
		mu.Lock()
		away = false
		mu.Unlock()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		if len(got) != 10 || got[0] != 101 || got[9] != 110 {
			t.Errorf("%v", got)
		}
		if read != 110 {
			t.Errorf("%d lines were read to show 10 of 110", read)
		}
	})
}
