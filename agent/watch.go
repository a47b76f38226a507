package agent

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/hashicorp/go-hclog"
)

// inboxWatch tells when something was delivered. It works in a goroutine of its
// own: what it asks of the file system may never be answered. Without it the
// look every 30 seconds goes on.
type inboxWatch struct {
	C     chan struct{} // something was delivered, or may have been
	again chan struct{}
	end   chan struct{}
}

// newInboxWatch watches dir. It waits until that is so, but not for ever.
func newInboxWatch(dir string, log hclog.Logger) (*inboxWatch, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	w := &inboxWatch{C: make(chan struct{}, 1), again: make(chan struct{}, 1), end: make(chan struct{})}
	ready := make(chan struct{})
	go func() {
		defer watcher.Close()
		w.add(watcher, dir, log)
		close(ready)
		for {
			select {
			case <-w.end:
				return
			case <-w.again:
				w.add(watcher, dir, log)
			case event := <-watcher.Events:
				if isDocument(event) {
					tell(w.C)
				}
			case err := <-watcher.Errors:
				log.Warn("inbox watch", "error", err)
			}
		}
	}()
	select {
	case <-ready:
	case <-time.After(inboxSilence):
		log.Warn("inbox watch", "error", fmt.Sprintf("%s: no answer within %s", dir, inboxSilence))
	}
	return w, nil
}

// add watches the directory unless it is watched already: it may have been
// removed and made anew. A watch on a file in it would die with the first
// rename over it.
func (w *inboxWatch) add(watcher *fsnotify.Watcher, dir string, log hclog.Logger) {
	if len(watcher.WatchList()) > 0 {
		return
	}
	if err := watcher.Add(dir); err != nil {
		log.Warn("inbox watch", "error", err)
		return
	}
	tell(w.C) // of what came before
}

// renew has the directory watched again if it no longer is.
func (w *inboxWatch) renew() { tell(w.again) }

// close ends the watch, as soon as the file system lets it.
func (w *inboxWatch) close() { close(w.end) }

// isDocument reports whether an event in the inbox can be a document. Most are
// the temporary files documents are renamed from.
func isDocument(event fsnotify.Event) bool {
	for k := range kinds {
		if filepath.Base(event.Name) == k.File() {
			return true
		}
	}
	return false
}

// tell says something on c, unless it was said and not heard yet.
func tell(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
