package main

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/jitgate/jitgate/audit"
)

// The object is one that a linker reads, the same every time, and its table
// has a text for every id an event may have.
func TestObject(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.syso")
	if err := write(path, "1.2.3"); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := write(path, "1.2.3"); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(path); err != nil || !bytes.Equal(first, again) {
		t.Errorf("the second time it differs, %v", err)
	}
	f, err := pe.NewFile(bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	section := f.Section(".rsrc")
	if section == nil || len(section.Relocs) != 2 || f.Machine != pe.IMAGE_FILE_MACHINE_AMD64 {
		t.Fatalf("%+v", f)
	}
	data, err := section.Data()
	if err != nil {
		t.Fatal(err)
	}
	table := follow(data, typeMessageTable)
	if table == nil || follow(data, typeVersion) == nil || follow(data, 3) != nil {
		t.Fatal("the directory does not lead to the resources")
	}
	u32 := binary.LittleEndian.Uint32
	if u32(table) != 1 || u32(table[4:]) != audit.FirstEventID || u32(table[8:]) != audit.LastEventID {
		t.Fatalf("the table begins with %x", table[:16])
	}
	at := int(u32(table[12:]))
	for id := audit.FirstEventID; id <= audit.LastEventID; id++ {
		length := int(binary.LittleEndian.Uint16(table[at:]))
		if text := table[at+4 : at+length]; !bytes.HasPrefix(text, []byte("%\x001\x00")) || binary.LittleEndian.Uint16(table[at+2:]) != 1 {
			t.Fatalf("%d: %x", id, text)
		}
		at += length
	}
	if at != len(table) {
		t.Errorf("%d bytes, the messages end at %d", len(table), at)
	}
}

// follow finds a resource by its type, as Windows does.
func follow(section []byte, typ uint32) []byte {
	u32 := func(at uint32) uint32 { return binary.LittleEndian.Uint32(section[at:]) }
	find := func(dir, id uint32, any bool) uint32 {
		for i := range u32(dir+12) >> 16 {
			if e := dir + 16 + i*8; any || u32(e) == id {
				return u32(e+4) &^ (1 << 31)
			}
		}
		return 0
	}
	names := find(0, typ, false)
	if names == 0 {
		return nil
	}
	entry := find(find(names, 0, true), 0, true)
	return section[u32(entry) : u32(entry)+u32(entry+4)]
}

func TestVersion(t *testing.T) {
	for text, want := range map[string][4]uint16{"1.2.3": {1, 2, 3, 0}, "1.2.3.4": {1, 2, 3, 4}, "0.0.0": {}} {
		if v, err := parseVersion(text); err != nil || v != want {
			t.Errorf("%s: %v, %v", text, v, err)
		}
	}
	for _, text := range []string{"", "1.2", "x", "1.2.x", "70000.1.1"} {
		if v, err := parseVersion(text); err == nil {
			t.Errorf("%q is %v", text, v)
		}
	}
}
