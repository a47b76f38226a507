package web

import (
	"encoding/csv"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jitgate/jitgate/control"
)

// activityData is what the activity log shows.
type activityData struct {
	Scope, Event, Actor, From, To string        // as they were typed
	VM                            *control.VMID // if Scope is a machine's
	Lines                         []control.Activity
	Next                          string
	Error                         *control.Error
}

// dateForms are how browsers write what a person chooses, and what people type
// where the browser has no such field.
var dateForms = []string{"2006-01-02T15:04", "2006-01-02T15:04:05", "2006-01-02", "2006-01-02 15:04", time.RFC3339}

// dateOf reads a time in UTC; nothing is the zero time.
func dateOf(field, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, form := range dateForms {
		if t, err := time.ParseInLocation(form, s, time.UTC); err == nil {
			return t, nil
		}
	}
	e := control.Refuse(control.Invalid, "InvalidTime", "Write a time as 2026-11-22 18:55, in UTC.")
	e.Target = field
	return time.Time{}, e
}

// activityFilter reads which lines a page or a download is about.
func (c *call) activityFilter() (d activityData, f control.ActivityFilter, err error) {
	d = activityData{Scope: strings.TrimSpace(c.query("scope")), Event: c.query("event"), Actor: strings.TrimSpace(c.query("actor")), From: c.query("from"), To: c.query("to")}
	f = control.ActivityFilter{Event: d.Event, Actor: d.Actor, Newest: true}
	if f.Scope, err = scopeOf(d.Scope); err != nil {
		return d, f, err
	}
	if id, err := control.ParseVMID(d.Scope); err == nil {
		d.VM = &id
	}
	if f.From, err = dateOf("from", d.From); err != nil {
		return d, f, err
	}
	if f.To, err = dateOf("to", d.To); err != nil {
		return d, f, err
	}
	if after := c.query("after"); after != "" {
		if f.After, err = strconv.ParseUint(after, 10, 64); err != nil {
			return d, f, control.Refuse(control.Invalid, "InvalidQueryParameter", "There is no such page of the log.")
		}
	}
	return d, f, nil
}

func activityPage(c *call) error {
	d, f, err := c.activityFilter()
	v := view{Title: "Activity log", Here: "activity", Live: f.After == 0}
	if err != nil {
		if d.Error = control.AsError(err); d.Error == nil {
			return err
		}
		v.Data, v.Live = d, false
		c.render(http.StatusBadRequest, "activity", v)
		return nil
	}
	f.Limit = pageRows
	lines, next, err := c.Engine.ListActivity(c.ctx, c.caller, f)
	if err != nil {
		return err
	}
	if d.Lines = lines; next != 0 {
		d.Next = strconv.FormatUint(next, 10)
	}
	v.Data = d
	return c.ok("activity", v)
}

// linesRead is how many lines of a download are read at once.
const linesRead = 1000

// activityCSV downloads every line the filter selects, as the API does. A
// failure on the way cuts the connection, so that nobody takes half of the log
// for all of it.
func activityCSV(c *call) error {
	_, f, err := c.activityFilter()
	if err != nil {
		return err
	}
	f.Limit, f.After = linesRead, 0
	var w *csv.Writer
	for {
		lines, next, err := c.Engine.ListActivity(c.ctx, c.caller, f)
		if err != nil && w != nil {
			c.Log.Error("a download of the activity log was cut short", "call", c.id, "error", err)
			panic(http.ErrAbortHandler)
		}
		if err != nil {
			return err
		}
		c.extend()
		if w == nil {
			h := c.w.Header()
			h.Set("Content-Type", "text/csv; charset=utf-8; header=present")
			h.Set("Content-Disposition", `attachment; filename="activity-`+c.Now().UTC().Format("20060102T150405Z")+`.csv"`)
			w = csv.NewWriter(c.w)
			w.UseCRLF = true
			w.Write(control.ActivityColumns()) // its error stays in w
		}
		for _, l := range lines {
			w.Write(l.Cells())
		}
		if w.Flush(); w.Error() != nil || next == 0 {
			return nil // the browser went away, or that was all
		}
		f.After = next
	}
}
