package fwtest_test

import (
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
)

func TestFakeConforms(t *testing.T) {
	start := time.Now()
	now := func() firewall.BootTime { return firewall.BootTime(time.Since(start)) + 1 }
	var last *fwtest.Fake
	fwtest.Run(t, now, func(_ *testing.T, again bool) firewall.Backend {
		if !again {
			last = &fwtest.Fake{Now: now}
		}
		return last
	})
}
