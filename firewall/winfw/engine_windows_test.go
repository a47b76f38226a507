package winfw

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
)

// Where there is no filtering platform, as under Wine, that is what is said.
// Where there is one, opening it changes nothing.
func TestOpen(t *testing.T) {
	start := time.Now()
	b, err := Open(func() firewall.BootTime { return firewall.BootTime(time.Since(start)) }, func(err error) { t.Error(err) })
	if err != nil {
		t.Log(err)
		if !errors.Is(err, ErrUnavailable) {
			t.Error("a platform that is there refuses, and nobody says what to do")
		}
		return
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// Windows Firewall is read, or says why not.
func TestReadPolicy(t *testing.T) {
	p, err := ReadPolicy()
	t.Logf("%d profiles, %d rules, %v", len(p.Profiles), len(p.Rules), err)
	if err == nil && len(p.Profiles) != 3 {
		t.Error("not three profiles")
	}
	if _, err := (policyRules{}).Read(); err != nil {
		t.Log(err)
	}
}

// The tables of sockets show a listener and a connection of this process.
func TestSockets(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	list, err := Sockets()
	if err != nil {
		t.Fatal(err)
	}
	at := func(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }
	for what, want := range map[string]Socket{
		"listener":   {Protocol: firewall.TCP, Local: at(l.Addr()), State: Listening, PID: uint32(os.Getpid())},
		"connection": {Protocol: firewall.TCP, Local: at(c.LocalAddr()), Remote: at(c.RemoteAddr()), State: Established, PID: uint32(os.Getpid())},
	} {
		if !slices.Contains(list, want) {
			t.Errorf("%s: no %+v in %+v", what, want, list)
		}
	}
}
