// Command manual writes the manual pages of a program whose commands say what
// they do with --help, a page a command. It asks the program, so that no page
// says anything else.
//
//	manual PROGRAM DIRECTORY DATE
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: manual PROGRAM DIRECTORY DATE")
		os.Exit(2)
	}
	w := writer{program: os.Args[1], dir: os.Args[2], date: os.Args[3]}
	if err := w.write(nil, ""); err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
}

type writer struct{ program, dir, date string }

// write writes the page of a command, by its words behind the program's name,
// and those of the commands below it. short is what its parent says of it.
func (w writer) write(words []string, short string) error {
	out, err := exec.Command(w.program, append(words, "--help")...).Output()
	if err != nil {
		return fmt.Errorf("%s %s --help: %w", w.program, strings.Join(words, " "), err)
	}
	p := parse(string(out))
	p.path = append([]string{filepath.Base(w.program)}, words...)
	if p.short = short; short == "" {
		p.short, _, _ = strings.Cut(p.description, ".")
		p.short = strings.Join(strings.Fields(p.short), " ")
	}
	if err := os.WriteFile(filepath.Join(w.dir, p.name()+".1"), []byte(p.troff(w.date)), 0o644); err != nil {
		return err
	}
	for _, c := range p.commands {
		if c.name == "help" || c.name == "completion" {
			continue // of every such program
		}
		if err := w.write(append(words[:len(words):len(words)], c.name), c.short); err != nil {
			return err
		}
	}
	return nil
}

// page is what one command says of itself.
type page struct {
	path        []string
	short       string
	description string
	sections    map[string]string // by their heading
	commands    []command
}

type command struct{ name, short string }

// parse reads the text of --help: a description, then sections whose heading
// ends in a colon and stands at the margin.
func parse(text string) page {
	p := page{sections: map[string]string{}}
	heading := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		name, isHeading := strings.CutSuffix(line, ":")
		switch {
		case isHeading && headings[name]:
			heading = name
		case strings.HasPrefix(line, `Use "`) && strings.HasSuffix(line, "for more information about a command."):
			heading = name // the end
		case heading == "":
			p.description += line + "\n"
		default:
			p.sections[heading] += line + "\n"
		}
	}
	for line := range strings.Lines(p.sections["Available Commands"]) {
		if name, short, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			p.commands = append(p.commands, command{name, strings.TrimSpace(short)})
		}
	}
	return p
}

var headings = map[string]bool{"Usage": true, "Examples": true, "Available Commands": true, "Flags": true, "Global Flags": true, "Aliases": true}

func (p page) name() string { return strings.Join(p.path, "-") }

func (p page) troff(date string) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s 1 %s %s\n.SH NAME\n%s \\- %s\n", strings.ToUpper(escape(p.name())), date, escape(p.path[0]), escape(p.name()), escape(p.short))
	block := func(title, text string) {
		if text = strings.Trim(text, "\n"); text != "" {
			fmt.Fprintf(&b, ".SH %s\n.nf\n%s\n.fi\n", title, lines(text))
		}
	}
	block("SYNOPSIS", p.sections["Usage"])
	b.WriteString(".SH DESCRIPTION\n")
	for i, paragraph := range strings.Split(strings.Trim(p.description, "\n"), "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		fmt.Fprintf(&b, "%s\n", lines(paragraph))
	}
	block("OPTIONS", p.sections["Flags"]+p.sections["Global Flags"])
	block("EXAMPLES", p.sections["Examples"])
	var also []string
	if len(p.path) > 1 {
		also = append(also, strings.Join(p.path[:len(p.path)-1], "-"))
	}
	for _, c := range p.commands {
		if c.name != "help" && c.name != "completion" {
			also = append(also, p.name()+"-"+c.name)
		}
	}
	for i, name := range also {
		also[i] = fmt.Sprintf(".BR %s (1)", escape(name))
	}
	if len(also) > 0 {
		fmt.Fprintf(&b, ".SH SEE ALSO\n%s\n", strings.Join(also, ",\n"))
	}
	return b.String()
}

// lines escapes text that keeps its lines: none may look like a request.
func lines(text string) string {
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		line = escape(line)
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			line = `\&` + line
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

var escape = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...").Replace
