package main

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// tagPayloadDigest is that of the main header that names the payload's digest.
const tagPayloadDigest = 5092

// made is a header with one tag of each value.
func made(tags map[uint32][]byte, order ...uint32) []byte {
	var index, store []byte
	for _, tag := range order {
		index = binary.BigEndian.AppendUint32(index, tag)
		index = binary.BigEndian.AppendUint32(index, 6)
		index = binary.BigEndian.AppendUint32(index, uint32(len(store)))
		index = binary.BigEndian.AppendUint32(index, 1)
		store = append(store, tags[tag]...)
	}
	head := []byte{0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0}
	head = binary.BigEndian.AppendUint32(head, uint32(len(order)))
	head = binary.BigEndian.AppendUint32(head, uint32(len(store)))
	return append(append(head, index...), store...)
}

// rpm is a whole package around a payload.
func rpm(payload string) []byte {
	main := made(map[uint32][]byte{1000: []byte("jitgate\x00"), tagPayloadDigest: append(digest([]byte(payload)), 0)}, 1000, tagPayloadDigest)
	size := binary.BigEndian.AppendUint32(nil, uint32(len(main)+len(payload)))
	signature := made(map[uint32][]byte{tagSize: size, tagSHA256: append(digest(main), 0)}, tagSize, tagSHA256)
	padding := make([]byte, (8-len(signature)%8)%8)
	return bytes.Join([][]byte{make([]byte, 96), signature, padding, main, []byte(payload)}, nil)
}

// What comes out is the package that packing the other payload would have made.
func TestCompress(t *testing.T) {
	other := func(text string) func([]byte) ([]byte, error) {
		return func(was []byte) ([]byte, error) {
			if string(was) != "the first payload" {
				t.Errorf("it compresses %q", was)
			}
			return []byte(text), nil
		}
	}
	for _, text := range []string{"less", "", "more than the first payload was"} {
		got, err := compress(rpm("the first payload"), other(text))
		if err != nil || !bytes.Equal(got, rpm(text)) {
			t.Errorf("%q: %v\n%q", text, err, got)
		}
	}
}

func TestCompressRefuses(t *testing.T) {
	whole := rpm("the first payload")
	broken := func(at int) []byte {
		b := bytes.Clone(whole)
		b[at] ^= 1
		return b
	}
	for name, c := range map[string]struct {
		rpm  []byte
		want string
	}{
		"nothing":          {nil, "too soon"},
		"a lead":           {whole[:96], "too soon"},
		"half a header":    {whole[:130], "too soon"},
		"no header":        {broken(96), "no header"},
		"another payload":  {broken(len(whole) - 1), "0 times"},
		"a shorter one":    {whole[:len(whole)-1], "0 times"},
		"another header":   {broken(bytes.Index(whole, []byte("jitgate"))), "digest is another"},
		"another tag":      {broken(96 + 16 + 3), "no tag 1000"},
		"another size":     {broken(96 + 16 + 32 + 3), "it says"},
		"a tag outside it": {broken(96 + 16 + 8), "too soon"},
	} {
		if _, err := compress(c.rpm, func(b []byte) ([]byte, error) { return b, nil }); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
