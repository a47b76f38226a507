package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal opens a pseudo-terminal: what is written to the first is typed at
// the second.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	fd := int(person.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// At a terminal a person is asked, and anything but yes signs nothing.
func TestPolicySignAsks(t *testing.T) {
	for typed, signs := range map[string]bool{"y\n": true, "YES\n": true, "n\n": false, "\n": false, "yesterday\n": false, "\x04": false} {
		d, dir, flags := signersDesk(t)
		web1 := vmNamed("g", "web1")
		d.wait(web1, document(web1, 2), nil)
		person, program := terminal(t)
		if _, err := person.WriteString(typed); err != nil {
			t.Fatal(err)
		}
		var out, complaints strings.Builder
		code := Main(append([]string{"policy", "sign", "--all", "--key", filepath.Join(dir, "alice.key")}, flags...), program, &out, &complaints)
		if !strings.HasPrefix(complaints.String(), "Sign 1 policy? [y/N] ") || !strings.Contains(out.String(), web1) {
			t.Errorf("%q: asked %q after %q", typed, &complaints, &out)
		}
		if refused := strings.HasSuffix(complaints.String(), "jitgate: nothing was signed\n"); refused == signs || (code == exitDone) != signs {
			t.Errorf("%q: exit code %d, %q", typed, code, &complaints)
		}
		if signed := len(d.pending[web1].envelope.Signatures) == 1; signed != signs {
			t.Errorf("%q: signed is %v", typed, signed)
		}
	}
}
