package logins

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// told is what a Follower told, and when, from start.
type told struct {
	after time.Duration
	what  string
}

// follow passes entries on in a world with a clock of its own.
func follow(t *testing.T, tell func(n int) error, feed func(entries chan<- Entry)) (list []told, said []string) {
	synctest.Test(t, func(t *testing.T) {
		start, calls := time.Now(), 0
		f := &Follower{
			Tell: func(_ context.Context, cursor string, logins []Login) error {
				if calls++; tell != nil {
					if err := tell(calls); err != nil {
						return err
					}
				}
				list = append(list, told{time.Since(start), fmt.Sprint(cursor, " ", len(logins))})
				return nil
			},
			Say: func(err error) { said = append(said, fmt.Sprint(err)) },
		}
		entries := make(chan Entry)
		go func() {
			defer close(entries)
			feed(entries)
		}()
		f.pass(t.Context(), entries)
	})
	return list, said
}

func someLogin() *Login {
	return &Login{Time: time.Unix(1, 0), Account: "a", Source: netip.MustParseAddrPort("192.0.2.1:1")}
}

// Logins are told soon, many of them together; that there were none now and
// then.
func TestFollowerTells(t *testing.T) {
	const failures = 100_000
	list, said := follow(t, nil, func(entries chan<- Entry) {
		entries <- Entry{"c1", someLogin()}
		time.Sleep(time.Second)
		for i := range 2*MostAtOnce + 1 {
			entries <- Entry{fmt.Sprint("d", i), someLogin()}
		}
		time.Sleep(time.Second)
		for i := range failures { // a minute of them
			entries <- Entry{fmt.Sprint("f", i), nil}
			time.Sleep(time.Minute / failures)
		}
		time.Sleep(time.Hour)
		entries <- Entry{"last", nil}
	})
	if len(list) < 5 || len(said) > 0 {
		t.Fatalf("%v, %v", list, said)
	}
	for i, want := range []told{{together, "c1 1"}, {time.Second, fmt.Sprint("d", MostAtOnce-1, " ", MostAtOnce)}, {time.Second, fmt.Sprint("d", 2*MostAtOnce-1, " ", MostAtOnce)},
		{time.Second + together, fmt.Sprint("d", 2*MostAtOnce, " 1")}} {
		if list[i] != want {
			t.Errorf("told %v, want %v", list[i], want)
		}
	}
	if n := len(list) - 4; n < 6 || n > 8 || list[len(list)-1].what != "last 0" {
		t.Errorf("of %d failures in a minute it was told %d times: %v", failures, n, list[4:])
	}
}

// An agent that is away is told once it is back, and nothing is lost.
func TestFollowerInsists(t *testing.T) {
	list, said := follow(t, func(n int) error {
		if n <= 3 {
			return errors.New("no agent")
		}
		return nil
	}, func(entries chan<- Entry) {
		entries <- Entry{"c1", someLogin()}
		entries <- Entry{"c2", someLogin()}
	})
	if len(list) != 1 || list[0].what != "c2 2" || list[0].after < 3*again {
		t.Errorf("told %v", list)
	}
	if want := []string{"no agent", "<nil>"}; !slices.Equal(said, want) {
		t.Errorf("said %q, want %q", said, want)
	}
}
