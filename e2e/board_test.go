//go:build linux

package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// board is what says which machine a program runs on, in a mount namespace
// of its own: this machine's own files stay as they are.
type board struct {
	etc  string // a directory that holds machine-id, mounted over /etc
	uuid string // the firmware's; empty: this machine has none
}

func newBoard(t *testing.T, id, uuid string) *board {
	t.Helper()
	b := &board{t.TempDir(), uuid}
	if err := os.WriteFile(filepath.Join(b.etc, "machine-id"), []byte(id+"\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	return b
}

// elsewhere is a script that runs a program on another machine.
const elsewhere = `mount --bind "$1" /etc && mount -t tmpfs none /sys/class || exit 99
if [ -n "$2" ]; then
	mkdir -p /sys/class/dmi/id && echo "$2" >/sys/class/dmi/id/product_uuid || exit 99
fi
shift 2
exec "$@"`

// on is jitgate on the host's machine.
func (h *host) on(args ...string) *exec.Cmd {
	if h.board == nil {
		return exec.Command(h.program, args...)
	}
	cmd := exec.Command("unshare", append([]string{"--mount", "sh", "-c", elsewhere, "sh", h.board.etc, h.board.uuid, h.program}, args...)...)
	// A proxy would tell of its own machine; here nobody even listens.
	cmd.Env = append(os.Environ(), "http_proxy=http://"+alice4+":9", "HTTP_PROXY=http://"+alice4+":9")
	return cmd
}
