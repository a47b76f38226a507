// Command resource writes the resources of jitgate.exe as an object file that
// the Go linker takes: the texts of its events for the Event Viewer, and its
// version for Explorer and the installer.
//
//	resource -version 1.2.3 -o jitgate_windows_amd64.syso
//
// The same version gives the same bytes. A program built without it works the
// same; the Event Viewer then shows its events below a line about a missing
// description.
package main

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/jitgate/jitgate/audit"
)

func main() {
	version := flag.String("version", "0.0.0", "three or four numbers")
	out := flag.String("o", "", "the object file")
	flag.Parse()
	if err := write(*out, *version); err != nil {
		fmt.Fprintln(os.Stderr, "resource:", err)
		os.Exit(1)
	}
}

func write(path, version string) error {
	v, err := parseVersion(version)
	if err != nil {
		return err
	}
	return os.WriteFile(path, object([]resource{
		{typeMessageTable, messageTable(audit.FirstEventID, audit.LastEventID, "%1\r\n\r\n%2\r\n")},
		{typeVersion, versionInfo(v, version)},
	}), 0o644)
}

func parseVersion(text string) (v [4]uint16, err error) {
	numbers := strings.Split(text, ".")
	for i, n := range numbers {
		x, err := strconv.ParseUint(n, 10, 16)
		if err != nil || len(numbers) < 3 || len(numbers) > len(v) {
			return v, fmt.Errorf("version %q is not like 1.2.3 or 1.2.3.4", text)
		}
		v[i] = uint16(x)
	}
	return v, nil
}

// Types of resources (winuser.h).
const (
	typeMessageTable = 11
	typeVersion      = 16
)

// resource is one of its type, in every language.
type resource struct {
	typ  uint32
	data []byte
}

const english = 0x409

func utf16z(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// messageTable is a MESSAGE_RESOURCE_DATA (winnt.h) with the same text for every
// id from first to last.
func messageTable(first, last uint32, text string) []byte {
	const unicode = 1
	message := pad(utf16z(text))
	b := binary.LittleEndian.AppendUint32(nil, 1) // blocks
	for _, n := range []uint32{first, last, 16} { // ids, offset of the entries
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	for range last - first + 1 {
		b = binary.LittleEndian.AppendUint16(b, uint16(4+len(message)))
		b = binary.LittleEndian.AppendUint16(b, unicode)
		b = append(b, message...)
	}
	return b
}

// versionInfo is a VS_VERSIONINFO (verrsrc.h).
func versionInfo(v [4]uint16, text string) []byte {
	var fixed bytes.Buffer
	for _, n := range []uint32{
		0xfeef04bd, 0x10000,
		uint32(v[0])<<16 | uint32(v[1]), uint32(v[2])<<16 | uint32(v[3]), // of the file
		uint32(v[0])<<16 | uint32(v[1]), uint32(v[2])<<16 | uint32(v[3]), // of the product
		0x3f, 0, 0x40004, 1, 0, 0, 0, // flags, Windows NT, a program
	} {
		binary.Write(&fixed, binary.LittleEndian, n)
	}
	var table []byte
	for _, s := range [][2]string{{"CompanyName", "jitgate"}, {"FileDescription", "Just-in-time access to management ports"}, {"FileVersion", text},
		{"InternalName", "jitgate"}, {"LegalCopyright", "The jitgate authors, Apache-2.0"}, {"OriginalFilename", "jitgate.exe"},
		{"ProductName", "jitgate"}, {"ProductVersion", text}} {
		value := utf16z(s[1])
		table = append(table, node(s[0], uint16(len(value)/2), true, value, nil)...)
	}
	table = node("040904B0", 0, true, nil, table)
	translation := binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, english), 1200)
	children := append(node("StringFileInfo", 0, true, nil, table), node("VarFileInfo", 0, true, nil, node("Translation", 4, false, translation, nil))...)
	return node("VS_VERSION_INFO", uint16(fixed.Len()), false, fixed.Bytes(), children)
}

// node is one of the nested structures of a version.
func node(key string, valueLength uint16, text bool, value, children []byte) []byte {
	b := make([]byte, 6)
	b = pad(append(b, utf16z(key)...))
	b = pad(append(b, value...))
	b = append(b, children...)
	binary.LittleEndian.PutUint16(b[0:], uint16(len(b)))
	binary.LittleEndian.PutUint16(b[2:], valueLength)
	if text {
		binary.LittleEndian.PutUint16(b[4:], 1)
	}
	return pad(b)
}

// object is a COFF object with the section .rsrc (PE format, "The .rsrc
// Section"). The linker fills in where the data lies by its relocations.
func object(list []resource) []byte {
	const (
		headers    = 20 + 40
		directory  = 16
		entry      = 8
		dataEntry  = 16
		highBit    = 1 << 31
		relocation = 3 // IMAGE_REL_AMD64_ADDR32NB
	)
	n := len(list)
	types := directory + n*entry    // of the root
	each := 2 * (directory + entry) // of a type: its names and languages
	entries := types + n*each       // where the data entries begin
	data := entries + n*dataEntry   // and the data
	var section, relocations []byte
	put := func(values ...uint32) {
		for _, v := range values {
			section = binary.LittleEndian.AppendUint32(section, v)
		}
	}
	dir := func(ids uint32) { put(0, 0, 0, ids<<16) }
	dir(uint32(n))
	for i, r := range list {
		put(r.typ, uint32(types+i*each)|highBit)
	}
	for i := range list {
		dir(1)
		put(1, uint32(types+i*each+directory+entry)|highBit) // the name 1
		dir(1)
		put(english, uint32(entries+i*dataEntry))
	}
	at := data
	for i, r := range list {
		relocations = binary.LittleEndian.AppendUint32(relocations, uint32(entries+i*dataEntry))
		relocations = binary.LittleEndian.AppendUint32(relocations, 0) // symbol
		relocations = binary.LittleEndian.AppendUint16(relocations, relocation)
		put(uint32(at), uint32(len(r.data)), 0, 0)
		at += len(pad(r.data))
	}
	for _, r := range list {
		section = append(section, pad(r.data)...)
	}

	var out bytes.Buffer
	le := func(v any) { binary.Write(&out, binary.LittleEndian, v) }
	symbols := headers + len(section) + len(relocations)
	le([]uint16{0x8664, 1})              // amd64, one section
	le([]uint32{0, uint32(symbols), 1})  // no time, one symbol
	le([]uint16{0, 0})                   // no optional header
	out.WriteString(".rsrc\x00\x00\x00") //
	le([]uint32{0, 0, uint32(len(section)), headers, uint32(headers + len(section)), 0})
	le([]uint16{uint16(n), 0})
	le(uint32(0x40000040)) // initialized data, readable
	out.Write(section)
	out.Write(relocations)
	out.WriteString(".rsrc\x00\x00\x00")
	le(uint32(0))           // value
	le([]uint16{1, 0})      // section 1, no type
	out.Write([]byte{3, 0}) // static
	le(uint32(4))           // an empty table of strings
	return out.Bytes()
}
