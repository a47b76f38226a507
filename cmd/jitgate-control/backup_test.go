package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// What is backed up while a server runs is what is restored: the same realm,
// the same people, the same policies.
func TestBackupAndRestore(t *testing.T) {
	r := start(t, filepath.Join(t.TempDir(), "data"))
	admin := r.token(t, adminTokenFile)
	if status, body := r.ask(t, r.client(t), "PUT", policy1+version1, admin, policyBody); status/100 != 2 {
		t.Fatalf("PUT: %d %v", status, body)
	}
	file := filepath.Join(t.TempDir(), "backup.tar.gz")
	does(t, "backup", file, "--data", r.dir)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 1 {
		t.Errorf("beside the backup: %v", left)
	}
	does(t, "backup", file, "--data", r.dir) // in place of the one before
	// What came after the backup is not in it.
	if status, _ := r.ask(t, r.client(t), "DELETE", policy1+version1, admin, ""); status/100 != 2 {
		t.Fatalf("DELETE: %d", status)
	}
	before := sums(t, r.dir)
	r.stop(t)

	dir := filepath.Join(t.TempDir(), "restored")
	does(t, "restore", file, "--data", dir)
	after := sums(t, dir)
	for name, sum := range before {
		if kept := after[name] == sum; kept == strings.HasPrefix(name, "/offline/") && name != "/"+lockFile {
			t.Errorf("%s: restored %v", name, kept)
		}
	}
	again := start(t, dir)
	if again.said != "" {
		t.Errorf("it says %q", again.said)
	}
	if status, _ := again.ask(t, again.client(t), "GET", policy1+version1, admin, ""); status != 200 {
		t.Errorf("the policy: %d", status)
	}
	again.stop(t)
	refuses(t, exitFailed, "not empty", "restore", file, "--data", dir)
	refuses(t, exitUsage, "--data is missing", "restore", file)
	refuses(t, exitFailed, "no data directory yet", "backup", file, "--data", filepath.Join(t.TempDir(), "none"))
}

// entry is a file of an archive made by hand.
type entry struct {
	name string
	text []byte
	kind byte
}

// unpacked are the entries of an archive.
func unpacked(t testing.TB, path string) (all []entry) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, entry{h.Name, text, h.Typeflag})
	}
}

func packed(t testing.TB, all []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, e := range all {
		size := int64(len(e.text))
		if e.kind != tar.TypeReg {
			size = 0
		}
		if err := w.WriteHeader(&tar.Header{Name: e.name, Size: size, Mode: 0o600, Typeflag: e.kind, Linkname: "/etc/passwd"}); err != nil {
			t.Fatal(err)
		}
		if size > 0 {
			if _, err := w.Write(e.text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// resealed writes the manifest anew for files that were changed: what an
// attacker would do, or a mistake with the right tools.
func resealed(t testing.TB, all []entry, change func(*manifest)) []entry {
	t.Helper()
	var m manifest
	if err := json.Unmarshal(all[0].text, &m); err != nil {
		t.Fatal(err)
	}
	m.Files = nil
	for _, e := range all[1:] {
		path := write(t, t.TempDir(), "file", string(e.text))
		made, err := entryOf(e.name, path)
		if err != nil {
			t.Fatal(err)
		}
		m.Files = append(m.Files, made)
	}
	if change != nil {
		change(&m)
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	all[0].text = text
	return all
}

// What is no backup, or not one any more, makes nothing.
func TestRefusedBackups(t *testing.T) {
	source, other := freshRealm(t), freshRealm(t)
	file := filepath.Join(t.TempDir(), "backup")
	does(t, "backup", file, "--data", source)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	read := func(dir, name string) []byte { return (&running{dir: dir}).file(t, name) }
	with := func(name string, text []byte) []entry {
		all := unpacked(t, file)
		for i := range all {
			if all[i].name == name {
				all[i].text = text
			}
		}
		return all
	}
	without := func(name string) (rest []entry) {
		for _, e := range unpacked(t, file) {
			if e.name != name {
				rest = append(rest, e)
			}
		}
		return rest
	}
	// Of the sum at the end, where no bit is without a meaning: see TestFlippedBits.
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-8] ^= 1
	link := resealed(t, with(adminTokenFile, nil), nil)
	for i := range link {
		if link[i].name == adminTokenFile {
			link[i].kind = tar.TypeSymlink
		}
	}
	for _, c := range []struct {
		name, want string
		text       []byte
	}{
		{"empty", "not a backup", nil},
		{"text", "not a backup", []byte("hello")},
		{"cut", "", whole[:len(whole)/2]},
		{"cut at the end", "", whole[:len(whole)-4]},
		{"a bit", "", flipped},
		{"no manifest", "does not begin with manifest.json", packed(t, without(manifestFile))},
		{"a file less", "stands where", packed(t, without(trustFile))},
		{"a file more", "more in the backup", packed(t, append(unpacked(t, file), entry{"extra", []byte("x"), tar.TypeReg}))},
		{"another file", "is not as it was", packed(t, with(adminTokenFile, []byte("jgt_9VLVeMDCjDwzL6-FAuL_DHAan5bYhav7nbEORga9f1s\n")))},
		{"a link", "stands where", packed(t, link)},
		{"a path out", "which no backup has", packed(t, resealed(t, append(unpacked(t, file), entry{"../../etc/cron.d/x", []byte("x"), tar.TypeReg}), nil))},
		{"twice", "which no backup has", packed(t, resealed(t, append(unpacked(t, file), unpacked(t, file)[1]), nil))},
		{"a newer format", "format 2", packed(t, resealed(t, unpacked(t, file), func(m *manifest) { m.Version = 2 }))},
		{"no trust", "trust.json is missing", packed(t, resealed(t, without(trustFile), nil))},
		{"another grant key", "does not give it role grant", packed(t, resealed(t, with(grantKeyFile, read(other, grantKeyFile)), nil))},
		{"another trust", "not the one manifest.json names", packed(t, resealed(t, with(trustFile, read(other, trustFile)), nil))},
		{"another agents' CA", "is not the certificate of", packed(t, resealed(t, with("agents/ca.pem", read(other, "agents/ca.pem")), nil))},
		{"another database", "the database is of realm", packed(t, resealed(t, with(databaseFile, read(other, databaseFile)), nil))},
		{"no database", "database", packed(t, resealed(t, with(databaseFile, []byte("text")), nil))},
	} {
		t.Run(c.name, func(t *testing.T) {
			place := t.TempDir()
			refuses(t, exitFailed, c.want, "restore", write(t, t.TempDir(), "backup", string(c.text)), "--data", filepath.Join(place, "data"))
			if left, err := os.ReadDir(place); err != nil || len(left) > 0 {
				t.Errorf("it left %v", left)
			}
		})
	}
	// An empty directory that is there already may be used.
	place := t.TempDir()
	does(t, "restore", file, "--data", place)
	if info, err := os.Stat(place); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info, err)
	}
	for name := range sums(t, place) {
		if info, err := os.Stat(filepath.Join(place, name)); err != nil || info.Mode().Perm()&0o077 != 0 && !strings.HasSuffix(name, ".pem") && name != "/"+trustFile {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	if _, err := os.Stat(filepath.Join(place, "offline")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the root key came along")
	}
}

// A flipped bit is refused, or it changed nothing: deflate can say the same in
// more ways than one (a run of zeros may be copied from here or from there),
// and the bits between two of its blocks mean nothing. Of the 130,112 bits of a
// backup 229 were such.
func TestFlippedBits(t *testing.T) {
	file := filepath.Join(t.TempDir(), "backup")
	does(t, "backup", file, "--data", freshRealm(t))
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	read := func(text []byte) (files []entry, err error) {
		_, err = readBackup(bytes.NewReader(text), func(e manifestEntry, r io.Reader) error {
			text, err := io.ReadAll(r)
			files = append(files, entry{e.Name, text, tar.TypeReg})
			return err
		})
		return files, err
	}
	same, err := read(whole)
	if err != nil {
		t.Fatal(err)
	}
	const flips = 500
	refused := 0
	for i := range flips {
		bit := len(whole) * 8 / flips * i
		flipped := bytes.Clone(whole)
		flipped[bit/8] ^= 1 << (bit % 8)
		files, err := read(flipped)
		if err != nil {
			refused++
		} else if !reflect.DeepEqual(files, same) {
			t.Errorf("bit %d of %d: another backup, and taken", bit, len(whole)*8)
		}
	}
	t.Logf("%d of %d flipped bits of %d bytes refused", refused, flips, len(whole))
	if refused < flips/2 {
		t.Error("too few")
	}
}

func FuzzBackup(f *testing.F) {
	text, err := json.Marshal(manifest{Version: 1, Files: []manifestEntry{{Name: trustFile, Size: 1, SHA256: fmt.Sprintf("%064d", 0)}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed(f, []entry{{manifestFile, text, tar.TypeReg}, {trustFile, []byte("x"), tar.TypeReg}}))
	f.Add(packed(f, []entry{{manifestFile, []byte("{}"), tar.TypeReg}}))
	f.Add([]byte{0x1f, 0x8b})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := readBackup(bytes.NewReader(data), func(e manifestEntry, r io.Reader) error {
			if modeOf(e.Name)&0o077 != 0 && e.Name != trustFile && !strings.HasSuffix(e.Name, ".pem") {
				t.Errorf("%q would be written for all to read", e.Name)
			}
			_, err := io.Copy(io.Discard, r)
			return err
		})
		if err == nil && m.check() != nil {
			t.Error("taken, and refused when looked at again")
		}
	})
}
