package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/firewall"
)

// The end of the record is told, and only then old files go; where a control
// plane collects the record, only such as it has.
func TestHeads(t *testing.T) {
	a, file, first := recording(t)
	file.Full = 500
	for i := range 10 {
		if err := file.Record(t.Context(), audit.Event{Name: audit.GrantOpened, Message: fmt.Sprint(i, strings.Repeat("m", 100))}); err != nil {
			t.Fatal(err)
		}
	}
	a.Settings.Audit.Keep = audit.Keep{Bytes: 1000}
	there := func() bool { _, err := os.Stat(first); return err == nil }
	a.tellHead(t.Context())
	if !there() {
		t.Error("nobody was told, and it is gone")
	}
	var heads []audit.Head
	a.Heads = func(seq uint64, hash string) { heads = append(heads, audit.Head{Seq: seq, Hash: hash}) }
	a.Settings.Control = &Control{URL: "https://control.example.net"}
	a.tellHead(t.Context())
	if !there() {
		t.Error("the control plane has nothing of it, and it is gone")
	}
	for _, query := range []string{"?after=9000", "?from=10", "?after=10"} {
		events(t.Context(), a, query)
		a.tellHead(t.Context())
		if query != "?after=10" && !there() {
			t.Errorf("%s counts as collected", query)
		}
	}
	if there() {
		t.Error("it was collected, and is still there")
	}
	v, err := audit.Verify(filepath.Dir(first), heads...)
	if err != nil || !v.Whole() || len(heads) != 4 || v.Head.Seq != 11 || heads[0].Seq != 10 {
		t.Errorf("%+v, %v, %v", v, heads, err)
	}
}

// counting counts how often the record was made durable before a change.
type counting struct {
	audit.Sink
	syncs int
}

func (c *counting) Record(ctx context.Context, events ...audit.Event) error {
	c.syncs++
	return c.Sink.Record(ctx, events...)
}

type noting struct {
	firewall.Backend
	before func()
}

func (n noting) Apply(ctx context.Context, p firewall.Plan) error {
	n.before()
	return n.Backend.Apply(ctx, p)
}

// An opening waits for one fsync of the record, also with a document to tell
// of.
func TestOpeningWaitsForOneRecord(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.mustPass(0)
	c := &counting{Sink: w.record}
	w.Audit = c
	before := -1
	w.Backend = noting{w.fake, func() { before = c.syncs }}
	w.list(w.grant("a", alice, 0, time.Hour))
	w.mustPass(time.Second)
	if before != 1 || !w.open(alice) {
		t.Errorf("%d fsyncs before the port opened, want 1: %v", before, w.record.take())
	}
}
