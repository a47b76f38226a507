package agent

import (
	"context"
	"net/netip"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/winfw"
	"github.com/jitgate/jitgate/firewall/winfw/wfptest"
)

// winMachine is a machine with the filtering platform of Windows as it is
// documented: what a process opened goes with it. Windows Firewall lets
// everything through, so that the guard alone decides.
type winMachine struct {
	*winfw.Backend
	platform *wfptest.Platform
	now      func() firewall.BootTime
	exists   bool
	broken   bool
}

func newWindows(now func() firewall.BootTime) machine {
	w := &winMachine{platform: wfptest.New(), now: now}
	w.platform.Firewall = wfptest.NewFirewall()
	w.platform.Firewall.Profiles[wfptest.Public] = wfptest.ProfileState{On: true, AllowAll: true}
	w.start()
	return w
}

func (w *winMachine) start() { w.Backend = winfw.New(w.platform.Engine(), w.platform.Rules(), w.now) }

func (w *winMachine) Apply(ctx context.Context, p firewall.Plan) error {
	err := w.Backend.Apply(ctx, p)
	if err == nil {
		w.exists, w.broken = true, w.broken && !p.Rules
	}
	return err
}

func (w *winMachine) Remove(ctx context.Context) error {
	w.exists, w.broken = false, false
	return w.Backend.Remove(ctx)
}

// Admits lets the clock of the backend, which runs beside the agent, close what
// is over.
func (w *winMachine) Admits(packet firewall.Door) bool {
	w.Expire()
	return w.platform.Admits(packet)
}

func (w *winMachine) Whole() bool { return w.exists && !w.broken }

func (w *winMachine) Tamper(all bool) {
	w.broken = true
	w.platform.Delete(func(f winfw.Filter) bool {
		return f.Lifetime == winfw.Dynamic && all || f.Lifetime != winfw.Dynamic && f.Last != 0
	})
}

func (w *winMachine) Insert(d firewall.Door, _ firewall.End) {
	f := winfw.Filter{Key: winfw.GUID{Data1: 1}, Name: "a stranger's", Layer: winfw.AcceptV4, Weight: 1 << 40, Lifetime: winfw.Persistent,
		Protocol: d.Protocol, First: d.Port, Last: d.Port, Source: d.Source}
	if d.Source.Bits() == 0 {
		f.Source = netip.Prefix{}
	}
	w.platform.Insert(f)
}

func (w *winMachine) Sleep(time.Duration) bool { return false } // the boot clock goes on

func (w *winMachine) Reboot() {
	w.platform.Reboot()
	w.platform.StartService()
	w.start()
}

func (w *winMachine) Dies() bool {
	w.platform.Kill()
	w.start()
	return true
}
