package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/boombuler/barcode/qr"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/jitgate/jitgate/armor"
	"github.com/jitgate/jitgate/policy"
)

// asText is in which forms a document is made to cross a console.
type asText struct{ armor, qr bool }

func (a *asText) flags(c *cobra.Command) {
	c.Flags().BoolVar(&a.armor, "armor", false, "write text that can be typed, for jitgate inbox put")
	c.Flags().BoolVar(&a.qr, "qr", false, "draw that text as a QR code on standard output")
}

func (a asText) wanted() bool { return a.armor || a.qr }

// possible fails if write could not show the document.
func (a asText) possible(c *cobra.Command, e policy.Envelope) error {
	if !a.wanted() {
		return nil
	}
	if _, err := armor.Encode(e); err != nil {
		return err
	}
	if a.qr {
		_, err := drawing(e, columns(c.OutOrStdout()))
		return err
	}
	return nil
}

// write writes the document as text to path, "-" or nothing for standard
// output. With a QR code alone path, if given, gets the JSON.
func (a asText) write(c *cobra.Command, path string, e policy.Envelope) error {
	if a.armor {
		text, err := armor.Encode(e)
		if err == nil {
			err = writeOutput(c, orStandard(path), []byte(text), 0o644)
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(c.ErrOrStderr(), "On the host, as root, run jitgate inbox put - and type or paste this text.")
	} else if path != "" && path != "-" {
		if err := writeOutput(c, path, e.Encode(), 0o644); err != nil {
			return err
		}
	}
	if !a.qr {
		return nil
	}
	code, err := drawing(e, columns(c.OutOrStdout()))
	if err != nil {
		return err
	}
	if _, err := io.WriteString(c.OutOrStdout(), code); err != nil {
		return err
	}
	fmt.Fprintln(c.ErrOrStderr(), "Scan this. On the host, as root, run jitgate inbox put - and paste what it says: one line.")
	return nil
}

func orStandard(path string) string {
	if path == "" {
		return "-"
	}
	return path
}

// columns is the width of the terminal behind out; 0 if it is none.
func columns(out io.Writer) int {
	f, ok := out.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// maxScanned is how long the text of a code may be: a terminal takes lines of
// 4,095 bytes (termios(3), canonical mode), and it will be pasted into one.
const maxScanned = 4000

// quiet is the light margin a code needs, in modules (ISO/IEC 18004).
const quiet = 4

// drawing is the document as a QR code for a terminal, width columns wide; 0
// if that does not matter.
func drawing(e policy.Envelope, width int) (string, error) {
	text, err := armor.EncodeLine(e)
	if err != nil {
		return "", err
	}
	code, err := qr.Encode(text, qr.L, qr.AlphaNumeric)
	if err != nil || len(text) > maxScanned {
		return "", fmt.Errorf("the document is too large for a QR code, %d characters where %d are possible: carry the file, or use --armor", len(text), maxScanned)
	}
	size := code.Bounds().Dx()
	if need := size + 2*quiet; width > 0 && width < need {
		return "", fmt.Errorf("the QR code is %d columns wide, this terminal has %d: make it wider, or use --armor", need, width)
	}
	dark := func(x, y int) bool {
		if x < 0 || y < 0 || x >= size || y >= size {
			return false
		}
		r, _, _, _ := code.At(x, y).RGBA()
		return r == 0
	}
	return halfBlocks(size, dark), nil
}

// halfBlocks draws a square of modules, two rows a line. Both colours are said,
// black on white, whatever the terminal's own are: many readers do not take
// light on dark.
func halfBlocks(size int, dark func(x, y int) bool) string {
	var b strings.Builder
	for y := -quiet; y < size+quiet; y += 2 {
		b.WriteString("\033[0;30;47m")
		for x := -quiet; x < size+quiet; x++ {
			switch top, bottom := dark(x, y), dark(x, y+1); {
			case top && bottom:
				b.WriteString("█")
			case top:
				b.WriteString("▀")
			case bottom:
				b.WriteString("▄")
			default:
				b.WriteString(" ")
			}
		}
		b.WriteString("\033[0m\n")
	}
	return b.String()
}
