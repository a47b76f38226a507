//go:build !linux

package agent

import (
	"time"

	"github.com/jitgate/jitgate/firewall"
)

// alarm fires once at a time on the boot clock.
type alarm struct {
	C     chan struct{}
	timer *time.Timer
}

func newAlarm() (*alarm, error) {
	a := &alarm{C: make(chan struct{}, 1)}
	a.timer = time.AfterFunc(time.Hour, func() { tell(a.C) })
	return a, nil
}

// set arms the alarm for at, in place of any earlier time.
func (a *alarm) set(at firewall.BootTime) error {
	a.timer.Reset(max(at.Sub(BootNow()), 0))
	return nil
}

func (a *alarm) close() error { a.timer.Stop(); return nil }

// stepWatch tells when somebody set the wall clock; no other platform is asked
// yet, and the look every 30 seconds finds it.
type stepWatch struct{ C chan struct{} }

func newStepWatch() (*stepWatch, error) { return &stepWatch{}, nil }

func (w *stepWatch) close() error { return nil }
