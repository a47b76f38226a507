package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/control/store"
	"github.com/jitgate/jitgate/policy"
)

// A backup is a gzipped tar file: first manifest.json, which says what comes
// after it and its SHA-256, then the files by the names they have in the data
// directory. The root key never comes along.
const (
	manifestFile  = "manifest.json"
	backupVersion = 1
	maxManifest   = 64 << 10
	maxDatabase   = 1 << 40
)

// backupFile is a file that backups have.
type backupFile struct {
	name     string
	mode     fs.FileMode
	required bool
}

// backedUp are the files of a backup, in order, and what each may be read by.
// Those that not every directory has are not missed.
var backedUp = []backupFile{
	{trustFile, 0o644, true},
	{policyKeyFile, 0o600, false},
	{grantKeyFile, 0o600, false},
	{"agents/ca.key", 0o600, true},
	{"agents/ca.pem", 0o644, true},
	{"tls/ca.key", 0o600, false},
	{"tls/ca.pem", 0o644, false},
	{"tls/server.key", 0o600, false},
	{"tls/server.pem", 0o644, false},
	{adminTokenFile, 0o600, false},
	{metricsTokenFile, 0o600, false},
	{databaseFile, 0o600, false}, // last: it is large
}

// manifest says what is in a backup.
type manifest struct {
	Version int             `json:"version"`
	Created time.Time       `json:"created"`
	Program string          `json:"program"`
	Realm   string          `json:"realm"`
	Trust   policy.Digest   `json:"trust"`
	Files   []manifestEntry `json:"files"`
}

type manifestEntry struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

func newBackup() *cobra.Command {
	var o origin
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write the database, the keys and the certificates into one file",
		Long: `Writes everything a control plane is into FILE (mode 600), whole or not at all,
also while it serves. Whoever has the file can grant access: keep it as you keep
keys. The root key is not in it. A PostgreSQL is not in it either: back it up with
pg_dump, at the same time or later.`,
		Example: "  jitgate-control backup /backup/jitgate-$(date +%F).tar.gz",
		Args:    usage.Args(1, 1, "one file to write"),
		RunE: func(c *cobra.Command, args []string) error {
			s, d, err := o.existing(c)
			if err != nil {
				return err
			}
			m, err := d.backup(c.Context(), s, args[0], time.Now())
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "Realm %s, %d files, is in %s.\n", m.Realm, len(m.Files), args[0])
			if s.overNetwork() {
				fmt.Fprintln(c.OutOrStdout(), "The database is not in it: use pg_dump.")
			}
			return nil
		},
	}
	o.dataFlags(c)
	return c
}

// backup writes the archive.
func (d directory) backup(ctx context.Context, s settings, path string, now time.Time) (m manifest, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return m, err
	}
	_, v, err := d.trust()
	if err != nil {
		return m, err
	}
	m = manifest{Version: backupVersion, Created: now.UTC().Truncate(time.Second), Program: version, Realm: v.Document().Realm, Trust: v.Digest()}
	// What is copied first, is copied beside the archive: there is room there.
	work, err := os.MkdirTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	sources := map[string]string{}
	for _, f := range backedUp {
		if f.name == databaseFile {
			if s.overNetwork() {
				continue
			}
			snapshot := filepath.Join(work, databaseFile)
			if err := store.Backup(ctx, s.dsn(d), snapshot); err != nil {
				return m, fmt.Errorf("copy the database: %w", err)
			}
			sources[f.name] = snapshot
		} else {
			there, err := d.has(f.name)
			if err != nil {
				return m, err
			}
			if !there && f.required {
				return m, fmt.Errorf("%s is missing: start the server once, it completes the directory", d.path(f.name))
			}
			if !there {
				continue
			}
			sources[f.name] = d.path(f.name)
		}
		e, err := entryOf(f.name, sources[f.name])
		if err != nil {
			return m, err
		}
		m.Files = append(m.Files, e)
	}
	archive := filepath.Join(work, "archive")
	if err := writeArchive(archive, m, sources); err != nil {
		return m, err
	}
	if err := os.Rename(archive, path); err != nil {
		return m, err
	}
	return m, syncDirectory(filepath.Dir(path))
}

func entryOf(name, path string) (manifestEntry, error) {
	f, err := os.Open(path)
	if err != nil {
		return manifestEntry{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return manifestEntry{Name: name, Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, err
}

func writeArchive(path string, m manifest, sources map[string]string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z := gzip.NewWriter(f)
	t := tar.NewWriter(z)
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := writeEntry(t, manifestFile, int64(len(text)), 0o600, m.Created, bytes.NewReader(text)); err != nil {
		return err
	}
	for _, e := range m.Files {
		if err := copyEntry(t, e, sources[e.Name], m.Created); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close(), f.Sync())
}

func copyEntry(t *tar.Writer, e manifestEntry, path string, at time.Time) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeEntry(t, e.Name, e.Size, modeOf(e.Name), at, f)
}

func writeEntry(t *tar.Writer, name string, size int64, mode fs.FileMode, at time.Time, r io.Reader) error {
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: int64(mode), ModTime: at}); err != nil {
		return err
	}
	if _, err := io.Copy(t, r); err != nil {
		return fmt.Errorf("%s changed while it was copied: try again: %w", name, err)
	}
	return nil
}

func modeOf(name string) fs.FileMode {
	for _, f := range backedUp {
		if f.name == name {
			return f.mode
		}
	}
	return 0o600
}

func newRestore() *cobra.Command {
	var o origin
	c := &cobra.Command{
		Use:   "restore FILE --data DIR",
		Short: "Make a data directory of a backup",
		Long: `Makes DIR, which must be empty or not there, of a backup. Everything is verified
first: sums, the trust document's signatures, that the keys are those it names,
and the database. What is wrong leaves DIR as it was.

Hosts that got lists after the backup was made refuse older ones: as they come
back, theirs are made anew from what was restored. What was granted since the
backup ends then.`,
		Example: "  jitgate-control restore /backup/jitgate-2026-01-01.tar.gz --data /var/lib/jitgate-control",
		Args:    usage.Args(1, 1, "one backup"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := usage.Required(c, "data"); err != nil {
				return err
			}
			s, err := o.load(c)
			if err != nil {
				return err
			}
			m, err := restore(c.Context(), args[0], s)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "Realm %s as it was at %s is in %s. Start it with jitgate-control serve --data %[3]s.\n", m.Realm, policy.FormatTime(m.Created), s.data)
			return nil
		},
	}
	o.dataFlags(c)
	return c
}

// restore makes a data directory beside the place where it will be, verifies
// it there, and moves it into place.
func restore(ctx context.Context, archive string, s settings) (m manifest, err error) {
	target, err := filepath.Abs(s.data)
	if err != nil {
		return m, err
	}
	entries, err := os.ReadDir(target)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	if len(entries) > 0 {
		return m, fmt.Errorf("%s is not empty: a backup is restored into an empty directory only", target)
	}
	// Once without writing anything, so that what is no backup leaves no trace.
	if m, err = readArchive(archive, nil); err != nil {
		return m, fmt.Errorf("%s: %w", archive, err)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return m, err
	}
	work, err := os.MkdirTemp(filepath.Dir(target), "."+filepath.Base(target)+".*") // mode 0700
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if m, err = readArchive(archive, func(e manifestEntry, r io.Reader) error { return extract(directory(work), e, r) }); err != nil {
		return m, fmt.Errorf("%s: %w", archive, err)
	}
	if err := directory(work).verify(ctx, s, m); err != nil {
		return m, fmt.Errorf("%s: %w", archive, err)
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	if err := os.Rename(work, target); err != nil {
		return m, err
	}
	return m, syncDirectory(filepath.Dir(target))
}

// readArchive reads a backup to its end and holds every file against the
// manifest. each, if not nil, gets the files.
func readArchive(path string, each func(manifestEntry, io.Reader) error) (m manifest, err error) {
	f, err := os.Open(path)
	if err != nil {
		return m, err
	}
	defer f.Close()
	return readBackup(f, each)
}

func readBackup(r io.Reader, each func(manifestEntry, io.Reader) error) (m manifest, err error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return m, fmt.Errorf("not a backup: %w", err)
	}
	t := tar.NewReader(z)
	h, err := t.Next()
	if err != nil || h.Name != manifestFile || h.Size > maxManifest {
		return m, errors.New("not a backup of jitgate-control: it does not begin with manifest.json")
	}
	decoder := json.NewDecoder(t)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m); err != nil {
		return m, fmt.Errorf("manifest.json: %w", err)
	}
	if m.Version != backupVersion {
		return m, fmt.Errorf("the backup has format %d, this program knows %d", m.Version, backupVersion)
	}
	if err := m.check(); err != nil {
		return m, err
	}
	for _, e := range m.Files {
		h, err := t.Next()
		if err != nil {
			return m, fmt.Errorf("%s is missing: the file is cut", e.Name)
		}
		if h.Name != e.Name || h.Typeflag != tar.TypeReg || h.Size != e.Size {
			return m, fmt.Errorf("%q stands where %s should", h.Name, e.Name)
		}
		sum := sha256.New()
		file := io.TeeReader(t, sum)
		if each != nil {
			if err := each(e, file); err != nil {
				return m, err
			}
		}
		if _, err := io.Copy(io.Discard, file); err != nil {
			return m, fmt.Errorf("%s: %w", e.Name, err)
		}
		if hex.EncodeToString(sum.Sum(nil)) != e.SHA256 {
			return m, fmt.Errorf("%s is not as it was when it was backed up: the file is damaged", e.Name)
		}
	}
	if _, err := t.Next(); !errors.Is(err, io.EOF) {
		return m, errors.New("there is more in the backup than manifest.json says")
	}
	// The rest of the stream has the sum of it all.
	if _, err := io.Copy(io.Discard, io.LimitReader(z, 1<<20)); err != nil {
		return m, fmt.Errorf("the file is damaged: %w", err)
	}
	return m, nil
}

// check refuses a manifest that names other files than a backup has, or the
// same one twice.
func (m manifest) check() error {
	next := 0
	for _, e := range m.Files {
		i := slices.IndexFunc(backedUp[next:], func(f backupFile) bool { return f.name == e.Name })
		limit := int64(maxFile)
		if e.Name == databaseFile {
			limit = maxDatabase
		}
		if i < 0 || e.Size < 0 || e.Size > limit {
			return fmt.Errorf("manifest.json names %q, which no backup has there", e.Name)
		}
		next += i + 1
	}
	for _, f := range backedUp {
		if f.required && !slices.ContainsFunc(m.Files, func(e manifestEntry) bool { return e.Name == f.name }) {
			return fmt.Errorf("%s is missing", f.name)
		}
	}
	return nil
}

// extract writes one file of a backup. The caller checks its sum.
func extract(d directory, e manifestEntry, r io.Reader) error {
	path := d.path(e.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, modeOf(e.Name))
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close(), syncDirectory(filepath.Dir(path)))
}

// verify makes sure that a directory made of a backup is one that serves.
func (d directory) verify(ctx context.Context, s settings, m manifest) error {
	_, v, err := d.trust()
	if err != nil {
		return err
	}
	if v.Digest() != m.Trust || v.Document().Realm != m.Realm {
		return errors.New("trust.json is not the one manifest.json names")
	}
	if there, err := d.has(grantKeyFile); err != nil || there {
		if _, err := d.grantKey(ctx, realmSettings{}, openKey(nil), v.Document()); err != nil {
			return err
		}
	}
	if _, _, err := d.policyKey(ctx, realmSettings{}, openKey(nil), v.Document()); err != nil {
		return err
	}
	if _, err := d.authority("agents", "jitgate agents", m.Created); err != nil {
		return err
	}
	there, err := d.has(databaseFile)
	if err != nil || !there {
		return err
	}
	if err := store.Check(ctx, d.path(databaseFile)); err != nil {
		return err
	}
	kept, err := store.Open(ctx, d.path(databaseFile), hclog.NewNullLogger())
	if err != nil {
		return err
	}
	defer kept.Close()
	have, err := meta(ctx, kept, metaTrust)
	if err != nil {
		return err
	}
	inside, err := openTrust(have)
	if err != nil {
		return fmt.Errorf("the database's trust document: %w", err)
	}
	if inside.Document().Realm != m.Realm {
		return fmt.Errorf("the database is of realm %s, trust.json of %s", inside.Document().Realm, m.Realm)
	}
	return nil
}
