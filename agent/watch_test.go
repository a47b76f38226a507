package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/hashicorp/go-hclog"
)

// A user that has no inotify instance left gets no watch, and goes on without.
// It is there once one is to be had.
func TestWatchToBeHadLater(t *testing.T) {
	dir := t.TempDir()
	var err error = errors.New("too many open files")
	asked := make(chan error, 3)
	w := newInboxWatch(dir, hclog.NewNullLogger(), func() (*fsnotify.Watcher, error) {
		was := err
		err = nil
		asked <- was
		if was != nil {
			return nil, was
		}
		return fsnotify.NewWatcher()
	})
	defer w.close()
	told := func() bool {
		select {
		case <-w.C:
			return true
		case <-time.After(10 * time.Second):
			return false
		}
	}
	if <-asked == nil {
		t.Fatal("it was to be had at once")
	}
	w.renew()
	if err := <-asked; err != nil || !told() { // of what came before
		t.Fatal("there is no watch", err)
	}
	if err := os.WriteFile(filepath.Join(dir, Grants.File()), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if !told() {
		t.Error("a document was not told of")
	}
}
