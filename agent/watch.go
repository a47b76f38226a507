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
// look every 30 seconds goes on: a user has so many inotify instances and no
// more, and a host with none left is guarded all the same.
type inboxWatch struct {
	C     chan struct{} // something was delivered, or may have been
	again chan struct{}
	end   chan struct{}
}

// newInboxWatch watches dir. It waits until that is so, but not for ever.
func newInboxWatch(dir string, log hclog.Logger, watcher func() (*fsnotify.Watcher, error)) *inboxWatch {
	w := &inboxWatch{C: make(chan struct{}, 1), again: make(chan struct{}, 1), end: make(chan struct{})}
	ready := make(chan struct{})
	go func() {
		var by *fsnotify.Watcher // nil: none was to be had yet
		var events chan fsnotify.Event
		var failures chan error
		look := func() {
			if by == nil {
				made, err := watcher()
				if err != nil {
					log.Warn("inbox watch", "error", err)
					return
				}
				by, events, failures = made, made.Events, made.Errors
			}
			w.add(by, dir, log)
		}
		look()
		close(ready)
		for {
			select {
			case <-w.end:
				if by != nil {
					by.Close()
				}
				return
			case <-w.again:
				look()
			case event := <-events:
				if isDocument(event) {
					tell(w.C)
				}
			case err := <-failures:
				log.Warn("inbox watch", "error", err)
			}
		}
	}()
	select {
	case <-ready:
	case <-time.After(inboxSilence):
		log.Warn("inbox watch", "error", fmt.Sprintf("%s: no answer within %s", dir, inboxSilence))
	}
	return w
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
