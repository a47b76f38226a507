package main

import (
	"bytes"
	"crypto/tls"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store/storetest"
)

// Ticket keys are the same for all replicas, change every day, and are good
// for a while after; the store has them sealed.
func TestTickets(t *testing.T) {
	store := storetest.SQLite(t)
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	key, err := newECDSA()
	if err != nil {
		t.Fatal(err)
	}
	replica := func() *tickets {
		t.Helper()
		r, err := newTickets(store, key, func() time.Time { return now })
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	current := func(r *tickets) []ticketKey {
		t.Helper()
		keys, err := r.current(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return keys
	}
	a, b := replica(), replica()
	first := current(a)
	if len(first) != 1 || len(first[0].Key) != 32 || bytes.Equal(first[0].Key, make([]byte, 32)) {
		t.Fatalf("%+v", first)
	}
	if got := current(b); !bytes.Equal(got[0].Key, first[0].Key) {
		t.Error("another replica has another key")
	}
	now = now.Add(ticketPeriod - time.Second)
	if got := current(a); len(got) != 1 {
		t.Error("a new key before its time")
	}
	now = now.Add(time.Second)
	second := current(b)
	if len(second) != 2 || bytes.Equal(second[0].Key, first[0].Key) || !bytes.Equal(second[1].Key, first[0].Key) {
		t.Errorf("after a day: %+v", second)
	}
	if got := current(a); !bytes.Equal(got[0].Key, second[0].Key) {
		t.Error("both replicas made a key")
	}
	for range 5 {
		now = now.Add(ticketPeriod)
		if got := current(a); len(got) > ticketKeys {
			t.Errorf("%d keys", len(got))
		}
	}
	sealed, err := meta(t.Context(), store, metaTickets)
	if err != nil || bytes.Contains(sealed, current(a)[0].Key) {
		t.Errorf("the store has a key as it is: %v", err)
	}
	if err := a.apply(t.Context(), &tls.Config{}); err != nil {
		t.Error(err)
	}
	// Under another CA, or spoilt, they are no keys: new ones are made.
	before := current(a)
	if key, err = newECDSA(); err != nil {
		t.Fatal(err)
	}
	if got := current(replica()); len(got) != 1 || bytes.Equal(got[0].Key, before[0].Key) {
		t.Errorf("under another CA: %+v", got)
	}
	for _, text := range [][]byte{nil, {1}, bytes.Repeat([]byte{1}, 200)} {
		if err := store.Update(t.Context(), func(tx control.Tx) error { return tx.PutMeta(metaTickets, text) }); err != nil {
			t.Fatal(err)
		}
		if got := current(replica()); len(got) != 1 {
			t.Errorf("%x: %+v", text, got)
		}
	}
}
