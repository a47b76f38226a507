package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// The addresses of a pair. The outside has those of every source too: a
// client binds to the one it wants to be.
var (
	insideAddress  = netip.MustParseAddr("192.168.77.1")
	outsideAddress = netip.MustParseAddr("192.168.77.2")
)

// newOutside makes the world that a cable joins to w. What is sent there to
// insideAddress arrives in w within the sender's own system call: the kernel
// does the receiver's work on the sender's CPU.
func (w *world) newOutside() (*world, error) {
	o, err := newWorld()
	if err != nil {
		return nil, err
	}
	thread := 0
	_ = o.do(func() error { thread = unix.Gettid(); return nil }) // nothing in it fails
	err = errors.Join(
		w.ip("link", "add", "e0", "type", "veth", "peer", "name", "e0", "netns", fmt.Sprint(thread)),
		w.up(insideAddress, "10.0.0.0/8"),
		o.up(outsideAddress, ""),
		o.ip("route", "add", "local", "10.0.0.0/8", "dev", "lo"))
	if err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// up gives the world's end of the cable its address, and sends beyond it what
// is for other.
func (w *world) up(a netip.Addr, other string) error {
	err := errors.Join(
		w.ip("link", "set", "lo", "up"),
		w.ip("addr", "add", a.String()+"/24", "dev", "e0"),
		w.ip("link", "set", "e0", "up"))
	if other != "" {
		err = errors.Join(err, w.ip("route", "add", other, "via", outsideAddress.String()))
	}
	return err
}

func (w *world) ip(args ...string) error {
	return w.do(func() error {
		c := exec.Command("ip", args...)
		c.Stderr = os.Stderr
		if err := c.Run(); err != nil {
			return fmt.Errorf("%s: %w (its message stands above)", c, err)
		}
		return nil
	})
}
