package watchdog

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// What is heard between looks decides, and nothing does before the first word or
// after the last.
func TestWatch(t *testing.T) {
	for _, c := range []struct {
		what string // w: a word, l: time until a look
		ends bool
	}{
		{"", false},
		{"llllllllllllllll", false},
		{"w", false},
		{"wllll", false},
		{"wlllll", true},
		{"llllllwllll", false},
		{"llllllwlllll", true},
		{"wllllwllllwllllwllll", false},
		{"wllllwllllwlllll", true},
		{"wwwwwlllll", true},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				words, say := io.Pipe()
				stands := errors.New("it stands still")
				result := make(chan error, 1)
				go func() { result <- Watch(words, func() error { return stands }) }()
				synctest.Wait()
				for _, what := range c.what {
					if what == 'w' {
						say.Write([]byte("."))
					} else {
						time.Sleep(Within / looks)
					}
					synctest.Wait()
				}
				say.Close() // nobody is ended who is gone
				if err := <-result; err != nil && err != stands || (err == stands) != c.ends {
					t.Errorf("it returns %v; is the other to be ended: %v", err, c.ends)
				}
			})
		})
	}
}
