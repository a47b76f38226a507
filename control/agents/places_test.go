package agents

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/jitgate/jitgate/uplink"
)

// room serves TLS on a listener with places, and answers nothing.
func room(t *testing.T, p *Places) (address string) {
	config := newHandshakes(t, NewTurns(time.Minute), 0).config
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for placed := p.Listen(l); ; {
			c, err := placed.Accept()
			if err != nil {
				return
			}
			go func() {
				over := tls.Server(c, config)
				io.Copy(io.Discard, over) // until it ends, or there is no room
				over.Close()
				c.Close() // once more: it counts once
			}()
		}
	}()
	return l.Addr().String()
}

// comes shakes hands and returns the connection, or why there is none.
func comes(t *testing.T, address string, protos ...string) (net.Conn, error) {
	t.Helper()
	c, err := (&tls.Dialer{NetDialer: &net.Dialer{Timeout: time.Minute}, Config: &tls.Config{InsecureSkipVerify: true, NextProtos: protos}}).DialContext(t.Context(), "tcp", address)
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// Agents have nine of ten places, people the rest too. Beyond that connections
// are closed, and there is room again once others have ended.
func TestPlaces(t *testing.T) {
	var log strings.Builder
	var mu sync.Mutex
	p := NewPlaces(forFiles+20, hclog.New(&hclog.LoggerOptions{Output: &log, Mutex: &mu}), prometheus.NewRegistry())
	at := room(t, p)
	agent := []string{uplink.Proto, "http/1.1"}
	var there []net.Conn
	for range 18 {
		c, err := comes(t, at, agent...)
		if err != nil {
			t.Fatalf("agent %d: %v", len(there), err)
		}
		there = append(there, c)
	}
	for range 3 {
		if _, err := comes(t, at, agent...); err == nil {
			t.Fatal("one agent too many")
		}
	}
	settles := func(taken, byAgents int64) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); p.taken.Load() != taken || p.byAgents.Load() != byAgents; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d places are taken, %d by agents, and not %d, %d", p.taken.Load(), p.byAgents.Load(), taken, byAgents)
			}
		}
	}
	settles(18, 18)
	var people []net.Conn
	for range 2 {
		c, err := comes(t, at, "h2")
		if err != nil {
			t.Fatalf("a person: %v", err)
		}
		people = append(people, c)
	}
	if _, err := comes(t, at, "h2"); err == nil {
		t.Error("one connection too many")
	}
	if a, b := testutil.ToFloat64(p.refused.WithLabelValues("agents")), testutil.ToFloat64(p.refused.WithLabelValues("anybody")); a != 3 || b != 1 {
		t.Errorf("%v agents and %v others were refused", a, b)
	}
	mu.Lock()
	text := log.String()
	mu.Unlock()
	if strings.Count(text, "[WARN]") != 1 || !strings.Contains(text, "LimitNOFILE") {
		t.Errorf("the log: %s", text)
	}
	there[0].Close()
	people[0].Close()
	settles(18, 17)
	if _, err := comes(t, at, agent...); err != nil {
		t.Errorf("an agent, where there is room again: %v", err)
	}
	if _, err := comes(t, at, "http/1.1"); err != nil {
		t.Errorf("a person, where there is room again: %v", err)
	}
	settles(20, 18)
}

// There are places in any case, and without a bound as many as one likes.
func TestPlacesOf(t *testing.T) {
	for descriptors, want := range map[uint64][2]int64{
		1: {16, 14}, forFiles: {16, 14}, 1024: {768, 691}, 65536: {65280, 58752}, 1<<64 - 1: {1<<30 - forFiles, 966367411}, 0: {1 << 30, 966367641},
	} {
		if p := NewPlaces(descriptors, nil, nil); p.all != want[0] || p.agents != want[1] {
			t.Errorf("%d descriptors: %d places, %d for agents", descriptors, p.all, p.agents)
		}
	}
}
