package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/jitgate/jitgate/audit"
)

const (
	eventsASecond = 10_000
	eventsFor     = 10 * time.Second
	eventsAtOnce  = 100 // that a busy pass records together
)

// measureAudit measures the record: what it adds to an opening, how many
// events it takes, and how fast it is verified.
func measureAudit(ctx context.Context, o options, r *report) error {
	if err := measureIntent(ctx, o, r); err != nil {
		return err
	}
	dir := filepath.Join(o.diskDir, "audit")
	if err := measureEvents(ctx, dir, r); err != nil {
		return err
	}
	return measureVerify(dir, r)
}

// intent is what is durable before a port opens.
func intent(i int) audit.Event {
	return audit.Event{Name: audit.GrantOpening, Message: "about to open port 22 for 203.0.113.7/32", GrantID: fmt.Sprintf("01JD9V3K7Q%06d", i), Port: 22, Protocol: "TCP",
		Source: "203.0.113.7/32", End: time.Now().Add(time.Hour).Truncate(time.Second), Requestor: "alice@example.com", Reason: "INC-1"}
}

// measureIntent compares making an intent durable with one write and one fsync
// of as many bytes to a file beside it.
func measureIntent(ctx context.Context, o options, r *report) error {
	record := audit.NewFile(filepath.Join(o.diskDir, "intent"))
	defer record.Close()
	plain, err := os.OpenFile(filepath.Join(o.diskDir, "plain"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer plain.Close()
	line := []byte(strings.Repeat("x", 399) + "\n")
	runs := max(20, o.runs)
	var kept, bare sample
	for i := range runs {
		if err := pause(ctx, turnPause); err != nil {
			return err
		}
		for turn := range 2 {
			// Who comes first wakes the processor and the disk: each in turn.
			began := monotonic()
			if (i+turn)%2 == 0 {
				err = record.Record(ctx, intent(i))
				kept = append(kept, monotonic()-began)
			} else {
				if _, err = plain.Write(line); err == nil {
					err = plain.Sync()
				}
				bare = append(bare, monotonic()-began)
			}
			if err != nil {
				return err
			}
		}
	}
	ratio := float64(kept.median()) / float64(bare.median())
	r.add(fmt.Sprintf("%d turns: the intent of one opening, made durable, beside write(2) and fsync(2) of 400 bytes to a file on the same disk. Before a port\n"+
		"    opens the record is made durable once (agent TestOpeningWaitsForOneRecord); a second fsync would double the ratio.", runs),
		result{name: "intent on the disk", value: kept.String(), beside: "fsync " + bare.String(), ratio: ratio, bound: "≤ 1.5×", ok: ratio <= 1.5})
	return nil
}

// measureEvents records for ten seconds, with a journal that takes a copy.
func measureEvents(ctx context.Context, dir string, r *report) error {
	taken, socket, stop, err := countingJournal(filepath.Dir(dir))
	if err != nil {
		return err
	}
	lost := 0
	journal := audit.NewJournal(socket, func(string, error) { lost++ }, func(audit.Entry) { lost++ })
	record := audit.NewFile(dir)
	record.Copy = journal.Copy
	defer record.Close()

	before := heap()
	began := time.Now()
	total := int(eventsASecond * eventsFor / time.Second)
	batch := make([]audit.Event, eventsAtOnce)
	behind := time.Duration(0)
	for i := 0; i < total; i += eventsAtOnce {
		due := time.Duration(i) * time.Second / eventsASecond
		if err := pause(ctx, due-time.Since(began)); err != nil {
			return err
		}
		behind = max(behind, time.Since(began)-due)
		for n := range batch {
			batch[n] = intent(i + n)
		}
		if err := record.Record(ctx, batch...); err != nil {
			return err
		}
	}
	took := time.Since(began)
	journal.Close(patience)
	grown := heap() - before
	copies := <-taken
	if stop(); copies != total {
		lost += total - copies
	}
	v, err := audit.Verify(dir)
	if err != nil {
		return err
	}
	whole := v.Whole() && v.Lines == uint64(total) && lost == 0
	r.add(fmt.Sprintf("%d events in calls of %d, each call made durable with one fsync and copied to a journal's socket; then the record is verified and\n"+
		"    the copies are counted. Growth is of the heap, collected before and after.", total, eventsAtOnce),
		result{name: "10,000 events/s for 10 s", value: fmt.Sprintf("%.1f s, at most %s behind", took.Seconds(), span(behind)), beside: fmt.Sprintf("%d recorded, %d copied", v.Lines, copies), bound: "≤ 10.5 s", ok: took <= eventsFor+eventsFor/20},
		result{name: "lost", value: fmt.Sprint(uint64(total) - v.Lines + uint64(lost)), bound: "0", ok: whole, exact: true},
		result{name: "growth in memory", value: fmt.Sprintf("%d KB", grown>>10), bound: "≤ 1 MB", ok: grown <= 1<<20})
	return nil
}

// countingJournal takes entries like a journal, and tells how many once none
// came for a while.
func countingJournal(dir string) (taken <-chan int, socket string, stop func(), err error) {
	socket = filepath.Join(dir, "journal")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, "", nil, err
	}
	count := make(chan int, 1)
	go func() {
		n := 0
		buffer := make([]byte, 64<<10)
		for {
			conn.SetReadDeadline(time.Now().Add(2 * time.Second))
			if _, err := conn.Read(buffer); err != nil {
				count <- n
				return
			}
			n++
		}
	}()
	return count, socket, func() { conn.Close(); os.Remove(socket) }, nil
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// measureVerify verifies what measureEvents recorded.
func measureVerify(dir string, r *report) error {
	const runs = 5
	var times sample
	var v audit.Verdict
	for range runs {
		began := monotonic()
		var err error
		if v, err = audit.Verify(dir); err != nil {
			return err
		}
		times = append(times, monotonic()-began)
	}
	speed := float64(v.Bytes) / 1e6 / times.median().Seconds()
	r.add(fmt.Sprintf("the median of %d times: each line parsed, hashed and compared with the one before it.", runs),
		result{name: "audit verify", value: fmt.Sprintf("%.0f MB/s", speed), beside: fmt.Sprintf("%.0f MB in %d lines, %d files", float64(v.Bytes)/1e6, v.Lines, v.Files), bound: "≥ 30 MB/s", ok: speed >= 30})
	return nil
}
