package winfw_test

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/winfw"
	"github.com/jitgate/jitgate/firewall/winfw/wfptest"
)

func ExampleNew() {
	platform := wfptest.New() // on Windows, winfw.Open takes the host's own
	now := func() firewall.BootTime { return firewall.BootTime(time.Hour) }
	b := winfw.New(platform.Engine(), nil, now)
	from := func(source string) firewall.Door {
		return firewall.Door{Source: netip.MustParsePrefix(source), Protocol: firewall.TCP, Port: 22}
	}
	plan := firewall.Diff(firewall.Observed{}, firewall.Ruleset{
		Ports:    []firewall.Port{{Protocol: firewall.TCP, First: 22, Last: 22}},
		Openings: map[firewall.Door]firewall.End{from("203.0.113.7/32"): {Until: now().Add(time.Hour), Label: "01JD9V3K7Q"}},
	})
	if err := b.Apply(context.Background(), plan); err != nil {
		fmt.Println(err)
	}
	fmt.Println("granted:", platform.Admits(from("203.0.113.7/32")))
	fmt.Println("not granted:", platform.Admits(from("203.0.113.8/32")))
	platform.Kill()
	fmt.Println("the agent is dead:", platform.Admits(from("203.0.113.7/32")))
	// Output:
	// granted: true
	// not granted: false
	// the agent is dead: false
}
