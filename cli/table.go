package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// colour is one of a terminal's own, so that it goes with its background.
type colour int

const (
	noColour colour = 0
	red      colour = 31
	green    colour = 32
	yellow   colour = 33
)

// cell is one of a table. What others wrote is made printable.
type cell struct {
	text   string
	colour colour
}

func plain(s string) cell { return cell{text: printable(s)} }

func tinted(c colour, s string) cell { return cell{printable(s), c} }

// table lines up cells.
type table struct {
	head []string
	rows [][]cell
}

func (t *table) add(cells ...cell) { t.rows = append(t.rows, cells) }

// print writes the table: to a terminal in its width and with colours, to
// anything else whole and plain.
func (t table) print(out io.Writer) error {
	width, coloured := 0, false
	if fd, ok := terminalOf(out); ok {
		if w, _, err := term.GetSize(fd); err == nil {
			width = w
		}
		coloured = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	_, err := io.WriteString(out, t.format(width, coloured))
	return err
}

// terminalOf is the terminal that out is.
func terminalOf(out any) (fd int, ok bool) {
	f, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	return int(f.Fd()), true
}

const (
	gap      = 2 // between columns
	narrow   = 8 // no column is made narrower
	ellipsis = "…"
)

// format lays the table out. In a width that is not 0 the widest columns give
// way until it fits.
func (t table) format(width int, coloured bool) string {
	rows := make([][]cell, 0, len(t.rows)+1)
	var head []cell
	for _, h := range t.head {
		head = append(head, cell{text: h})
	}
	rows = append(append(rows, head), t.rows...)
	widths := make([]int, len(t.head))
	for _, row := range rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	if width > 0 {
		for total(widths) > width {
			widest := slices.Max(widths)
			if widest <= narrow {
				break
			}
			widths[slices.Index(widths, widest)]--
		}
	}
	var b strings.Builder
	for _, row := range rows {
		var line strings.Builder
		blank := 0 // not written unless something follows
		for i, c := range row {
			text := shorten(c.text, widths[i])
			if text != "" {
				line.WriteString(strings.Repeat(" ", blank))
				blank = 0
			}
			blank += widths[i] - utf8.RuneCountInString(text) + gap
			if coloured && c.colour != noColour && text != "" {
				text = fmt.Sprintf("\033[%dm%s\033[0m", c.colour, text)
			}
			line.WriteString(text)
		}
		b.WriteString(line.String())
		b.WriteByte('\n')
	}
	return b.String()
}

func total(widths []int) int {
	n := gap * (len(widths) - 1)
	for _, w := range widths {
		n += w
	}
	return n
}

func shorten(s string, width int) string {
	r := []rune(s)
	if len(r) <= width {
		return s
	}
	return string(r[:max(width-1, 0)]) + ellipsis
}

func jsonFlag(c *cobra.Command, asJSON *bool) {
	c.Flags().BoolVar(asJSON, "json", false, "print JSON")
}
