package winfw_test

import (
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/firewall/winfw"
	"github.com/jitgate/jitgate/firewall/winfw/wfptest"
)

// What every backend has to do, on the platform as it is documented.
func TestConforms(t *testing.T) {
	start := time.Now()
	now := func() firewall.BootTime { return firewall.BootTime(time.Since(start)) + 1 }
	var last *wfptest.Platform
	fwtest.Run(t, now, func(t *testing.T, again bool) firewall.Backend {
		if !again {
			last = wfptest.New()
			last.Firewall = wfptest.NewFirewall()
			last.HideBoot = true // the other tests are told of them
		}
		b := winfw.New(last.Engine(), last.Rules(), now)
		b.Warn = func(err error) { t.Error(err) }
		b.Start()
		t.Cleanup(func() { b.Close() })
		return b
	}, fwtest.EndsWithProcess)
}
