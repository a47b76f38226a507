//go:build unix

package audit

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script verifies a record with sh and sha256sum, as docs/examples says.
func script(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "sh", append([]string{"../docs/examples/audit-verify.sh"}, args...)...).CombinedOutput()
	return string(out), err
}

// What Verify finds is found with sh and sha256sum alone.
func TestScriptVerifies(t *testing.T) {
	dir, heads := filled(t)
	for _, args := range [][]string{{dir}, {dir, heads[40].String()}, {dir, heads[7].String()}} {
		if out, err := script(t, args...); err != nil || !strings.HasSuffix(out, "head "+heads[40].String()+"\n") {
			t.Errorf("%v: %v\n%s", args[1:], err, out)
		}
	}
	l := NewFile(dir)
	defer l.Close()
	if err := l.Prune(t.Context(), Keep{Bytes: 1}, heads[len(lines(t, dir, 1))].Seq); err != nil {
		t.Fatal(err)
	}
	if out, err := script(t, dir); err != nil {
		t.Errorf("pruned: %v\n%s", err, out)
	}
	for _, c := range tamperings() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir, heads := filled(t)
			c.do(t, dir)
			args := []string{dir}
			if c.head {
				args = append(args, heads[40].String())
			}
			if out, err := script(t, args...); err == nil {
				t.Errorf("nothing was found:\n%s", out)
			}
		})
	}
}

// What a crash left of a line is checked too: it must be there, as it was.
func TestScriptVerifiesWhatWasSetAside(t *testing.T) {
	dir, _ := filled(t)
	numbers, err := fileNumbers(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, fileName(numbers[len(numbers)-1]))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString("half a li")
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := script(t, dir); err != nil {
		t.Errorf("before the next start: %v\n%s", err, out)
	}
	record(t, NewFile(dir), AgentStarted)
	aside := tornName(path, digest([]byte("half a li")))
	keep := func(text string) func() error {
		return func() error { return os.WriteFile(aside, []byte(text), 0o600) }
	}
	for _, c := range []struct {
		do   func() error
		want string
	}{
		{keep("half a li"), "head "},
		{keep("half a lie"), "is not what was set aside: it was edited"},
		{keep("half a li\n"), "is not what was set aside: it was edited"},
		{func() error { return os.Remove(aside) }, "what was left of it is not there"},
		{func() error { return os.Symlink("/etc/passwd", aside) }, "what was left of it is not there"},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		out, err := script(t, dir)
		if (err == nil) != (c.want == "head ") || !strings.Contains(out, c.want) {
			t.Errorf("want %q: %v\n%s", c.want, err, out)
		}
		if v := verdict(t, dir); v.Whole() != (err == nil) {
			t.Errorf("the script says %v, and the program %v", err, v.Faults)
		}
	}
}
