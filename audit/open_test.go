//go:build unix

package audit

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A record that leads elsewhere, or that others write too, is refused, and
// what it leads to is not touched.
func TestRecordIsAPlainFile(t *testing.T) {
	for _, c := range []struct {
		name, want string
		make       func(path string) error
	}{
		{"symbolic link", "too many levels of symbolic links", func(path string) error { return os.Symlink(path+".real", path) }},
		{"hard link", "not a plain file with one name", func(path string) error { return os.Link(path+".real", path) }},
		{"FIFO", "not a plain file with one name", func(path string) error { return syscall.Mkfifo(path, 0o600) }},
		{"writable by others", "chmod go-w", func(path string) error {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return err
			}
			return os.Chmod(path, 0o606)
		}},
		{"of another user", "belongs to uid 4242", func(path string) error {
			if os.Geteuid() != 0 {
				return os.ErrPermission
			}
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return err
			}
			return os.Chown(path, 4242, -1)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, firstFile)
			if err := os.WriteFile(path+".real", []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := c.make(path); os.IsPermission(err) {
				t.Skip("needs root")
			} else if err != nil {
				t.Fatal(err)
			}
			err := NewFile(dir).Record(t.Context(), Event{Name: GrantOpening})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if text, err := os.ReadFile(path + ".real"); string(text) != "precious" {
				t.Errorf("the file behind it holds %q, %v", text, err)
			}
		})
	}
}

// A torn line is set aside beside the record, not into what somebody planted
// under that name.
func TestTornLineFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	real := filepath.Join(dir, "real")
	for path, text := range map[string]string{filepath.Join(dir, firstFile): "torn", real: "precious"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	aside := filepath.Join(dir, firstFile+".torn-"+digest([]byte("torn"))[:16])
	if err := os.Symlink(real, aside); err != nil {
		t.Fatal(err)
	}
	record(t, NewFile(dir), AgentStarted)
	if text, err := os.ReadFile(real); string(text) != "precious" {
		t.Errorf("the file behind the link holds %q, %v", text, err)
	}
	if text, err := os.ReadFile(aside); string(text) != "torn" {
		t.Errorf("set aside: %q, %v", text, err)
	}
}
