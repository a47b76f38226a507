package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
)

// panel is one curve: a figure by the number of agents.
type panel struct {
	title string
	bound float64 // 0: none
	of    func(figures) float64
}

var panels = []panel{
	{"server memory per idle agent after GC, KB", 25, func(f figures) float64 { return f.inUse / 1000 }},
	{"server processor per request, ms", 0, func(f figures) float64 { return f.load.cpu.server * 1e3 }},
	{"idle: call → machine has it verified, p99 ms", 10, func(f figures) float64 { return f.idle.percentile(99).Seconds() * 1e3 }},
	{"all connected and guarded, s", 0, func(f figures) float64 { return f.connected.Seconds() }},
	{"a policy for all, from the first call, s", 0, func(f figures) float64 { return f.policyAll.Seconds() }},
	{"kill -9: all back after the server's return, s", 10, func(f figures) float64 { return f.storm.Seconds() }},
}

// The measures of a panel, in pixels.
const (
	panelWidth, panelHeight = 360, 220
	left, right, top, below = 50, 20, 36, 34
	columns                 = 2
)

// draw draws the panels as one SVG. The number of agents runs along a
// logarithmic axis, figures along a linear one from zero.
func draw(curve []figures) []byte {
	rows := (len(panels) + columns - 1) / columns
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11" fill="#222">`+"\n",
		columns*panelWidth, rows*panelHeight)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/>`+"\n")
	for i, p := range panels {
		fmt.Fprintf(&b, `<g transform="translate(%d,%d)">`+"\n", i%columns*panelWidth, i/columns*panelHeight)
		p.draw(&b, curve)
		fmt.Fprintln(&b, `</g>`)
	}
	fmt.Fprintln(&b, `</svg>`)
	return b.Bytes()
}

func (p panel) draw(b *bytes.Buffer, curve []figures) {
	most := p.bound
	least, last := math.Inf(1), 0.0
	for _, f := range curve {
		most = max(most, p.of(f))
		least, last = min(least, float64(f.agents)), max(last, float64(f.agents))
	}
	most = max(most*1.1, 1e-3)
	span := max(math.Log(last/least), 1e-9)
	x := func(agents int) float64 {
		if last == least {
			return left + (panelWidth-left-right)/2
		}
		return left + math.Log(float64(agents)/least)/span*(panelWidth-left-right)
	}
	y := func(v float64) float64 { return panelHeight - below - v/most*(panelHeight-top-below) }
	fmt.Fprintf(b, `<text x="%d" y="20" font-weight="bold">%s</text>`+"\n", left, html.EscapeString(p.title))
	fmt.Fprintf(b, `<path d="M%d %d V%d H%d" fill="none" stroke="#888"/>`+"\n", left, top, panelHeight-below, panelWidth-right)
	if p.bound > 0 {
		fmt.Fprintf(b, `<path d="M%d %.1f H%d" stroke="#c33" stroke-dasharray="4 3"/><text x="%d" y="%.1f" fill="#c33" text-anchor="end">%g asked</text>`+"\n",
			left, y(p.bound), panelWidth-right, panelWidth-right, y(p.bound)-4, p.bound)
	}
	line := ""
	for _, f := range curve {
		line += fmt.Sprintf("%.1f,%.1f ", x(f.agents), y(p.of(f)))
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="#26c"/><text x="%.1f" y="%.1f" text-anchor="middle">%.3g</text><text x="%.1f" y="%d" text-anchor="middle" fill="#666">%d</text>`+"\n",
			x(f.agents), y(p.of(f)), x(f.agents), y(p.of(f))-7, p.of(f), x(f.agents), panelHeight-below+16, f.agents)
	}
	fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="#26c"/>`+"\n", line)
	fmt.Fprintf(b, `<text x="%d" y="%d" fill="#666" text-anchor="end">agents</text>`+"\n", panelWidth-right, panelHeight-4)
}
