package audit

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/windows"
)

// EventSource is jitgate's name in Windows's event log, Application.
const EventSource = "jitgate"

// NewEventLog begins to copy to Windows's event log, as NewJournal does to
// systemd's journal.
func NewEventLog(say func(what string, err error), instead func(Entry)) *Journal {
	return newJournal(&eventLog{}, say, instead)
}

// eventLog is an event source. A call that hangs stays in the air, and nothing
// is sent before it came back.
type eventLog struct {
	source  windows.Handle
	pending chan error // nil: none
	seq     uint64     // of the entry that is in the air
}

func (l *eventLog) encode(e Entry) []byte { return []byte(e.eventStrings()[1]) }

func (l *eventLog) close() {
	if l.source != 0 && l.pending == nil {
		windows.DeregisterEventSource(l.source)
	}
}

func (l *eventLog) send(e queued, until time.Time) error {
	wait := journalStall
	if left := time.Until(until); !until.IsZero() && left < wait {
		wait = left
	}
	hangs := time.After(wait)
	for {
		if l.pending == nil {
			l.pending, l.seq = make(chan error, 1), e.Seq
			go func(answer chan error) { answer <- l.report(e.Entry) }(l.pending)
		}
		select {
		case err := <-l.pending:
			l.pending = nil
			if l.seq == e.Seq {
				return err
			}
		case <-hangs:
			return fmt.Errorf("the event log: %w", os.ErrDeadlineExceeded)
		}
	}
}

// report is one call. The source is opened anew after a failure: the service
// behind it may have been restarted.
func (l *eventLog) report(e Entry) error {
	name, err := windows.UTF16PtrFromString(EventSource)
	if err != nil {
		return err
	}
	if l.source == 0 {
		if l.source, err = windows.RegisterEventSource(nil, name); err != nil {
			return fmt.Errorf("RegisterEventSource: %w", err)
		}
	}
	var strings [2]*uint16
	for i, s := range e.eventStrings() {
		if strings[i], err = windows.UTF16PtrFromString(s); err != nil {
			return err
		}
	}
	level := uint16(windows.EVENTLOG_INFORMATION_TYPE)
	if k, ok := kinds[e.Name]; ok && k.priority <= warning {
		level = windows.EVENTLOG_WARNING_TYPE
	}
	err = windows.ReportEvent(l.source, level, 0, e.eventID(), 0, uint16(len(strings)), 0, &strings[0], nil)
	if err != nil {
		err = errors.Join(fmt.Errorf("ReportEvent: %w", err), windows.DeregisterEventSource(l.source))
		l.source = 0
	}
	return err
}
