package audit

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// JournalSocket is where systemd's journal takes entries.
const JournalSocket = "/run/systemd/journal/socket"

// Journal copies entries of the record to the log of the system: systemd's
// journal or, on Windows, the event log. Nobody waits for
// it: entries queue, and go by a goroutine of its own. A journal that hangs
// holds up that goroutine alone; what does not fit into the queue meanwhile is
// counted, and told once the journal takes entries again. The record has it in
// any case.
type Journal struct {
	// Say is told, once each time, that the journal is not there, or hangs.
	Say func(what string, err error)
	// Instead takes entries while there is no journal.
	Instead func(Entry)

	to     carrier
	silent bool // it was said that the journal is not there or hangs

	mu     sync.Mutex
	queue  []queued
	size   int       // of the queue, in bytes
	missed Entry     // Seq, Count: the first and how many did not fit
	until  time.Time // when to give up; zero: never
	more   chan struct{}
	done   chan struct{}
}

// carrier takes entries to the log of a system.
type carrier interface {
	// encode is an entry as the log takes it.
	encode(Entry) []byte
	// send sends an encoded entry. The error is os.ErrDeadlineExceeded where
	// the log hangs; with a time to give up it waits no longer than that.
	send(e queued, until time.Time) error
	close()
}

type queued struct {
	Entry
	encoded []byte
}

const (
	maxQueue     = 8 << 20         // bytes that wait for the journal
	journalStall = 2 * time.Second // after which it hangs
)

// NewJournal begins to copy to the journal behind a socket. What is copied goes
// there from the first Copy on; Close ends it.
func NewJournal(socket string, say func(what string, err error), instead func(Entry)) *Journal {
	return newJournal(&journalSocket{path: socket}, say, instead)
}

func newJournal(to carrier, say func(what string, err error), instead func(Entry)) *Journal {
	j := &Journal{Say: say, Instead: instead, to: to, more: make(chan struct{}, 1), done: make(chan struct{})}
	go j.run()
	return j
}

// Copy queues entries. It does not wait.
func (j *Journal) Copy(entries []Entry) {
	j.mu.Lock()
	for _, e := range entries {
		d := j.to.encode(e)
		if j.size+len(d) > maxQueue {
			if j.missed.Count++; j.missed.Count == 1 {
				j.missed.Seq = e.Seq
			}
			continue
		}
		j.size += len(d)
		j.queue = append(j.queue, queued{e, d})
	}
	j.mu.Unlock()
	j.wake()
}

// Head queues where the record ends, so that somebody who cuts it would have
// to change the journal too.
func (j *Journal) Head(seq uint64, hash string) {
	e := Entry{Seq: seq, Hash: hash, Event: Event{Name: auditHead, Head: Head{seq, hash}.String()}}
	e.Message = "the record ends with " + e.Head
	j.Copy([]Entry{e})
}

// Close sends what waits, for as long as that, and ends; a log that answers
// nothing at all holds it up for little longer.
func (j *Journal) Close(wait time.Duration) {
	j.mu.Lock()
	j.until = time.Now().Add(wait)
	j.mu.Unlock()
	j.wake()
	select {
	case <-j.done:
	case <-time.After(wait + journalStall):
	}
}

func (j *Journal) wake() {
	select {
	case j.more <- struct{}{}:
	default:
	}
}

func (j *Journal) run() {
	defer close(j.done)
	for {
		item, until, ok := j.next()
		switch {
		case ok && j.offer(item, until):
			j.taken(item)
		case !until.IsZero() && (!ok || !time.Now().Before(until)):
			j.to.close()
			return
		case !ok:
			<-j.more
		}
	}
}

// next is the entry to send: first, that some were missed, if there is room
// again.
func (j *Journal) next() (item queued, until time.Time, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.missed.Count > 0 && j.size < maxQueue/2 {
		e := Entry{Event: Event{Name: auditMissed, Count: j.missed.Count}}
		e.Message = fmt.Sprintf("the journal did not take %d entries from line %d on; the record has them", j.missed.Count, j.missed.Seq)
		return queued{e, j.to.encode(e)}, j.until, true
	}
	if len(j.queue) == 0 {
		return queued{}, j.until, false
	}
	return j.queue[0], j.until, true
}

// taken removes an entry that was sent.
func (j *Journal) taken(item queued) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if item.Name == auditMissed {
		j.missed.Count -= item.Count // more may have come meanwhile
		return
	}
	j.queue[0] = queued{}
	if j.queue = j.queue[1:]; len(j.queue) == 0 {
		j.queue = nil // what a thousand entries took is not kept for the next one
	}
	j.size -= len(item.encoded)
}

// offer sends an entry, and reports whether it need not be sent again.
func (j *Journal) offer(item queued, until time.Time) bool {
	err := j.to.send(item, until)
	switch {
	case err == nil:
		j.silent = false
		return true
	case errors.Is(err, os.ErrDeadlineExceeded):
		j.say("the journal hangs; the record has what it does not take", err)
		return false
	}
	j.say("no journal: events go to this log, and to the record", err)
	j.Instead(item.Entry)
	return true
}

func (j *Journal) say(what string, err error) {
	if !j.silent {
		j.silent = true
		j.Say(what, err)
	}
}

// journalSocket is the socket of systemd's journal.
type journalSocket struct {
	path string
	conn net.Conn
}

func (s *journalSocket) encode(e Entry) []byte { return e.datagram() }

func (s *journalSocket) close() {
	if s.conn != nil {
		s.conn.Close()
	}
}

// send sends a datagram, over a new connection if the old one is no good: the
// journal was restarted.
func (s *journalSocket) send(e queued, until time.Time) error {
	var err error
	for range 2 {
		if s.conn == nil {
			if s.conn, err = net.Dial("unixgram", s.path); err != nil {
				s.conn = nil
				return err
			}
		}
		deadline := time.Now().Add(journalStall)
		if !until.IsZero() && until.Before(deadline) {
			deadline = until
		}
		if err = s.conn.SetWriteDeadline(deadline); err == nil {
			_, err = s.conn.Write(e.encoded)
		}
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		s.conn.Close()
		s.conn = nil
	}
	return err
}
