//go:build linux

package e2e_test

import (
	"cmp"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// shrink writes the pictures of a directory anew with 256 colours, those that
// they have most of: text and its edges need no more, and weigh a third.
func shrink(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.png"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no pictures in %s: %v", dir, err)
	}
	for _, name := range names {
		if err := shrinkFile(name); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

func shrinkFile(name string) error {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	full, err := png.Decode(in)
	in.Close()
	if err != nil {
		return err
	}
	count := map[color.Color]int{}
	each := func(f func(x, y int, c color.Color)) {
		for y := full.Bounds().Min.Y; y < full.Bounds().Max.Y; y++ {
			for x := full.Bounds().Min.X; x < full.Bounds().Max.X; x++ {
				f(x, y, full.At(x, y))
			}
		}
	}
	each(func(_, _ int, c color.Color) { count[c]++ })
	colours := slices.SortedFunc(maps.Keys(count), func(a, b color.Color) int { return cmp.Compare(count[b], count[a]) })
	palette := color.Palette(colours[:min(256, len(colours))])
	nearest := map[color.Color]uint8{}
	for c := range count {
		nearest[c] = uint8(palette.Index(c))
	}
	small := image.NewPaletted(full.Bounds(), palette)
	each(func(x, y int, c color.Color) { small.SetColorIndex(x, y, nearest[c]) })
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	defer out.Close()
	return (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(out, small)
}
