// Command repack compresses the payload of an rpm anew with xz(1): what packs
// it knows xz too, but makes it a quarter larger. Everything else stays as it
// is, and the digests and sizes that rpm checks are made to agree.
//
//	repack PACKAGE
//
// The format: https://rpm-software-management.github.io/rpm/manual/format_v4.html
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: repack PACKAGE")
		os.Exit(2)
	}
	if err := repack(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "repack: %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func repack(path string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	made, err := compress(old, xz)
	if err != nil {
		return err
	}
	return os.WriteFile(path, made, 0o644)
}

// xz compresses again what xz compressed: on one thread, so that the same bytes
// give the same bytes on every machine.
func xz(payload []byte) ([]byte, error) {
	for _, options := range [][]string{{"--decompress"}, {"--threads=1", "-6"}} {
		c := exec.Command("xz", append(options, "--stdout")...)
		c.Stdin, c.Stderr = bytes.NewReader(payload), os.Stderr
		var err error
		if payload, err = c.Output(); err != nil {
			return nil, fmt.Errorf("xz %s: %w", options[0], err)
		}
	}
	return payload, nil
}

// Tags of the signature header: the sizes of what follows it, and the digest of
// the main header, which itself names that of the payload.
const (
	tagSize   = 1000
	tagSHA256 = 273
)

// compress gives an rpm another payload of the same content. Digests and sizes
// keep their width, so nothing moves.
func compress(rpm []byte, again func([]byte) ([]byte, error)) ([]byte, error) {
	const lead = 96
	if len(rpm) < lead {
		return nil, errShort
	}
	signature, rest, err := header(rpm[lead:])
	if err != nil {
		return nil, err
	}
	padding := (8 - len(signature)%8) % 8
	if len(rest) < padding {
		return nil, errShort
	}
	main, payload, err := header(rest[padding:])
	if err != nil {
		return nil, err
	}
	smaller, err := again(payload)
	if err != nil {
		return nil, err
	}
	next, err := swap(main, digest(payload), digest(smaller))
	if err != nil {
		return nil, fmt.Errorf("the payload's digest: %w", err)
	}
	size, err := value(signature, tagSize, 4)
	if err != nil {
		return nil, err
	}
	if have := binary.BigEndian.Uint32(size); int(have) != len(main)+len(payload) {
		return nil, fmt.Errorf("it says that it has %d bytes, and has %d", have, len(main)+len(payload))
	}
	signed := bytes.Clone(signature)
	if size, err = value(signed, tagSize, 4); err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint32(size, uint32(len(next)+len(smaller)))
	sum, err := value(signed, tagSHA256, 2*sha256.Size)
	if err != nil {
		return nil, err
	}
	if string(sum) != string(digest(main)) {
		return nil, errors.New("the header's digest is another")
	}
	copy(sum, digest(next))
	return bytes.Join([][]byte{rpm[:lead], signed, make([]byte, padding), next, smaller}, nil), nil
}

var errShort = errors.New("it ends too soon")

// header splits what begins with a header behind it.
func header(b []byte) (head, rest []byte, err error) {
	const intro, entry = 16, 16
	if len(b) < intro {
		return nil, nil, errShort
	}
	if !bytes.HasPrefix(b, []byte{0x8e, 0xad, 0xe8, 1}) {
		return nil, nil, errors.New("there is no header where one should be")
	}
	length := intro + entry*int64(binary.BigEndian.Uint32(b[8:])) + int64(binary.BigEndian.Uint32(b[12:]))
	if int64(len(b)) < length {
		return nil, nil, errShort
	}
	return b[:length], b[length:], nil
}

// value is where a header holds the first bytes of a tag's value.
func value(head []byte, tag uint32, width int) ([]byte, error) {
	entries := int(binary.BigEndian.Uint32(head[8:]))
	store := head[16+16*entries:]
	for i := range entries {
		entry := head[16+16*i:]
		if binary.BigEndian.Uint32(entry) != tag {
			continue
		}
		at := int(binary.BigEndian.Uint32(entry[8:]))
		if at+width > len(store) {
			return nil, errShort
		}
		return store[at : at+width], nil
	}
	return nil, fmt.Errorf("there is no tag %d", tag)
}

// swap replaces the one place where b has old.
func swap(b, old, new []byte) ([]byte, error) {
	if n := bytes.Count(b, old); n != 1 {
		return nil, fmt.Errorf("it is there %d times", n)
	}
	return bytes.Replace(b, old, new, 1), nil
}

func digest(b []byte) []byte { return fmt.Appendf(nil, "%x", sha256.Sum256(b)) }
