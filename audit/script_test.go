//go:build unix

package audit

import (
	"context"
	"os/exec"
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
