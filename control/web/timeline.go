package web

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jitgate/jitgate/control"
)

// timelineData is what the timeline shows: a picture, and the same as a table.
type timelineData struct {
	Scope   string
	Span    string
	Picture picture
	Cut     bool // there is more than is shown
	Error   *control.Error
}

// span is a stretch of time a picture may have.
type span struct {
	Name, Label string
	Of          time.Duration
	Step        time.Duration // between its lines
}

var spans = []span{
	{"6h", "6 hours", 6 * time.Hour, time.Hour},
	{"1d", "1 day", 24 * time.Hour, 4 * time.Hour},
	{"7d", "7 days", 7 * 24 * time.Hour, 24 * time.Hour},
	{"30d", "30 days", 30 * 24 * time.Hour, 5 * 24 * time.Hour},
}

// The picture's measures, in its own units.
const (
	pictureWide = 1000
	labelWide   = 190
	rowHigh     = 26
	axisHigh    = 24
	mostRows    = 80
	mostAsked   = 1000 // requests that are looked at
	askedAtOnce = 250
)

// picture is who had what open. All of it is words and numbers: the template
// draws them.
type picture struct {
	Wide, High, Axis, Left int
	Now                    int // where now is
	Lines                  []gridLine
	Rows                   []pictureRow
}

type gridLine struct {
	X     int
	Label string
}

type pictureRow struct {
	Y     int
	VM    control.VMID
	Label string
	Bars  []bar
}

// bar is the time one request had a port.
type bar struct {
	X, Y, Wide int
	Class      string
	Request    string
	Who, What  string
	From, To   time.Time
	Source     string
	Why        string
}

func timelinePage(c *call) error {
	d := timelineData{Scope: strings.TrimSpace(c.query("scope")), Span: c.query("span")}
	i := slices.IndexFunc(spans, func(s span) bool { return s.Name == d.Span })
	if i < 0 {
		i, d.Span = 1, spans[1].Name
	}
	scope, err := scopeOf(d.Scope)
	if err != nil {
		d.Error = control.AsError(err)
		c.render(http.StatusBadRequest, "timeline", view{Title: "Timeline", Here: "timeline", Data: d})
		return nil
	}
	now := c.Now()
	from := now.Add(-spans[i].Of)
	// What began before may still have been open. Of a large fleet the newest
	// few fill the picture.
	f := control.RequestFilter{Scope: scope, Since: from.Add(-24 * time.Hour), Newest: true, Limit: askedAtOnce}
	for list := []control.Request(nil); ; {
		page, next, err := c.Engine.ListRequests(c.ctx, c.caller, f)
		if err != nil {
			return err
		}
		list, f.After = append(list, page...), next
		d.Picture, d.Cut = draw(list, scope, from, now.Add(spans[i].Of/8), now, spans[i].Step)
		if d.Cut || next == "" {
			break
		}
		if len(list) >= mostAsked {
			d.Cut = true
			break
		}
	}
	return c.ok("timeline", view{Title: "Timeline", Here: "timeline", Live: true, Data: d})
}

// Spans are the spans there are.
func (timelineData) Spans() []span { return spans }

// draw lays out what requests had open between from and to. It is pure.
func draw(list []control.Request, scope control.Scope, from, to, now time.Time, step time.Duration) (p picture, cut bool) {
	p = picture{Wide: pictureWide, Axis: axisHigh, Left: labelWide}
	x := func(t time.Time) int {
		part := float64(t.Sub(from)) / float64(to.Sub(from))
		return labelWide + int(max(0, min(1, part))*(pictureWide-labelWide))
	}
	rows := map[string]*pictureRow{}
	for _, r := range list {
		for _, vm := range r.VMs {
			if !scope.Covers(vm.ID.Scope()) {
				continue
			}
			for _, port := range vm.Ports {
				if port.GrantID == "" {
					continue // never granted
				}
				b := barOf(r, port)
				if !b.To.After(from) || !b.From.Before(to) {
					continue
				}
				b.X = x(b.From)
				b.Wide = max(3, x(b.To)-b.X)
				key := fmt.Sprintf("%s:%05d", vm.ID.Key(), port.Number)
				row := rows[key]
				if row == nil {
					row = &pictureRow{VM: vm.ID, Label: fmt.Sprintf("%s:%d", vm.ID.Name, port.Number)}
					rows[key] = row
				}
				b.What = row.Label
				row.Bars = append(row.Bars, b)
			}
		}
	}
	keys := make([]string, 0, len(rows))
	for key := range rows {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	if len(keys) > mostRows {
		keys, cut = keys[:mostRows], true
	}
	for i, key := range keys {
		row := rows[key]
		row.Y = axisHigh + i*rowHigh
		slices.SortFunc(row.Bars, func(a, b bar) int { return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.Request, b.Request)) })
		for j := range row.Bars {
			row.Bars[j].Y = row.Y + 4
		}
		p.Rows = append(p.Rows, *row)
	}
	p.High = axisHigh + len(p.Rows)*rowHigh + 4
	p.Now = x(now)
	form := "15:04"
	if step >= 24*time.Hour {
		form = "01-02"
	}
	for t := from.UTC().Truncate(step).Add(step); t.Before(to); t = t.Add(step) {
		p.Lines = append(p.Lines, gridLine{x(t), t.Format(form)})
	}
	return p, cut
}

// barOf is when a port of a request was open. Before its agent said so it
// counts from when it was granted.
func barOf(r control.Request, p control.RequestPort) bar {
	b := bar{Request: r.ID, Who: cmp.Or(r.Requestor, r.Principal), Source: strings.Join(p.All(), ", "), Why: r.Justification, From: p.Opened, To: p.Closed, Class: "over"}
	if b.From.IsZero() {
		b.From = r.Start
	}
	switch p.Status {
	case control.Initiated:
		b.Class = "good"
	case control.Initiating:
		b.Class = "wait"
	}
	if b.To.IsZero() {
		b.To = p.Until
	}
	return b
}
