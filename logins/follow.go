package logins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
)

// Follower tells of logins as they come. What it was told of before it does
// not keep: whoever it tells does.
type Follower struct {
	// From returns the cursor up to which all was told; empty: nothing was.
	From func(ctx context.Context) (cursor string, err error)
	// Tell takes logins, in order, and the cursor up to which there are no
	// others. Once it returns nil, none of them comes again.
	Tell func(ctx context.Context, cursor string, logins []Login) error
	// Say is told that Tell or From fail, and then that they do no more, with
	// nil.
	Say func(error)

	trouble string
}

const (
	together   = 200 * time.Millisecond // logins that come within it are told at once
	MostAtOnce = 16                     // logins of one Tell
	cursorOnly = 10 * time.Second       // between two that tell of no login
	again      = time.Second            // after an error
)

// journalctl is where systemd has it.
const journalctl = "/usr/bin/journalctl"

// arguments are journalctl's, to read all behind a cursor, or what comes from
// now on. The fields are matched by the journal's index: what others write
// costs nothing here.
func arguments(cursor string) []string {
	list := []string{"--follow", "--quiet", "--no-pager", "--no-tail", "--output=json",
		"--output-fields=MESSAGE,_UID,_COMM,_SYSTEMD_UNIT"}
	if cursor == "" {
		list = append(list, "--since=now")
	} else {
		list = append(list, "--after-cursor="+cursor)
	}
	return append(list, "_UID=0", "_COMM=sshd", "_COMM=sshd-session")
}

// Run follows the journal until ctx ends or journalctl does, which is an
// error.
func (f *Follower) Run(ctx context.Context) error {
	var cursor string
	err := f.insist(ctx, func() (err error) { cursor, err = f.From(ctx); return err })
	if err != nil {
		return nil
	}
	cmd := exec.CommandContext(ctx, journalctl, arguments(cursor)...)
	cmd.WaitDelay = time.Second
	var complaints strings.Builder
	cmd.Stderr = &limited{w: &complaints, left: 1 << 10}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	entries := make(chan Entry, MostAtOnce)
	ended := make(chan error, 1)
	go func() {
		defer close(entries)
		ended <- Read(out, func(e Entry) {
			select {
			case entries <- e:
			case <-ctx.Done():
			}
		})
	}()
	f.pass(ctx, entries)
	err = errors.Join(<-ended, cmd.Wait())
	if ctx.Err() != nil {
		return nil
	}
	if err == nil {
		err = errors.New("it ended")
	}
	return fmt.Errorf("%s: %w: %s", journalctl, err, strings.TrimSpace(complaints.String()))
}

// pass tells of entries until they end or ctx does. While it waits, entries
// wait in the journal.
func (f *Follower) pass(ctx context.Context, entries <-chan Entry) {
	var batch []Login
	cursor, due := "", time.NewTimer(0)
	due.Stop() // nothing waits
	defer due.Stop()
	tell := func() bool {
		if cursor != "" && f.insist(ctx, func() error { return f.Tell(ctx, cursor, batch) }) != nil {
			return false
		}
		batch, cursor = nil, ""
		due.Stop()
		return true
	}
	for {
		select {
		case e, ok := <-entries:
			if !ok {
				tell()
				return
			}
			if cursor == "" {
				due.Reset(cursorOnly)
			}
			if cursor = e.Cursor; e.Login == nil {
				continue
			}
			if batch = append(batch, *e.Login); len(batch) == 1 {
				due.Reset(together)
			}
			if len(batch) == MostAtOnce && !tell() {
				return
			}
		case <-due.C:
			if !tell() {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// insist tries until it succeeds. The error is that of ctx.
func (f *Follower) insist(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil {
			if f.trouble != "" {
				f.trouble = ""
				f.Say(nil)
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err.Error() != f.trouble {
			f.trouble = err.Error()
			f.Say(err)
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// limited keeps the beginning of what is written.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if _, err := l.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}
