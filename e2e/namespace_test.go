//go:build linux

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace: that of a thread, which runs what it is
// given. It ends with the test, or with the test's process.
type namespace struct {
	calls chan func()
	path  string
}

func newNamespace(t *testing.T) *namespace {
	t.Helper()
	n := &namespace{calls: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		n.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		ready <- err
		for call := range n.calls {
			call()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("unshare: %v", err)
	}
	t.Cleanup(func() { close(n.calls) })
	return n
}

// do runs f in the namespace.
func (n *namespace) do(f func()) {
	done := make(chan struct{})
	n.calls <- func() { f(); close(done) }
	<-done
}

// start starts cmd in the namespace. It is killed when the test's process
// ends, however that comes about.
func (n *namespace) start(cmd *exec.Cmd) (err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	n.do(func() { err = cmd.Start() })
	return err
}

// try runs a command in the namespace.
func (n *namespace) try(name string, args ...string) (output string, err error) {
	cmd := exec.Command(name, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.start(cmd); err != nil {
		return "", err
	}
	err = cmd.Wait()
	return out.String(), err
}

// run runs a command that must succeed.
func (n *namespace) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := n.try(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// The addresses. Each person has one of each family.
const (
	vm4, vm6       = "10.77.0.1", "fd77::1"
	alice4, alice6 = "10.77.0.2", "fd77::2"
	bob4, bob6     = "10.77.0.3", "fd77::3"
	carol4         = "203.0.113.7" // from further away; docs/examples/sign.sh knows her
)

// connect joins the two namespaces by a cable.
func connect(t *testing.T, vm, outside *namespace) {
	t.Helper()
	vm.run(t, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "p0", "netns", outside.path)
	for _, side := range []struct {
		*namespace
		device    string
		addresses []string
	}{
		{vm, "v0", []string{vm4 + "/24", vm6 + "/64"}},
		{outside, "p0", []string{alice4 + "/24", alice6 + "/64", bob4 + "/24", bob6 + "/64", carol4 + "/32"}},
	} {
		for _, a := range side.addresses {
			side.run(t, "ip", "addr", "add", a, "dev", side.device, "nodad")
		}
		side.run(t, "ip", "link", "set", "lo", "up")
		side.run(t, "ip", "link", "set", side.device, "up")
	}
	vm.run(t, "ip", "route", "add", carol4+"/32", "dev", "v0")
	// "Port unreachable" is how a UDP port without a listener answers.
	var err error
	vm.do(func() {
		err = errors.Join(
			os.WriteFile("/proc/sys/net/ipv4/icmp_ratelimit", []byte("0"), 0),
			os.WriteFile("/proc/sys/net/ipv6/icmp/ratelimit", []byte("0"), 0))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A way in: from a source to a port of the vm. The destination is the vm's
// address of the source's family.
type way struct{ port, source string }

func (w way) String() string { return w.source + " to " + w.port }

// ways are all ways from sources to a port like 22/tcp.
func ways(port string, sources ...string) []way {
	var out []way
	for _, s := range sources {
		out = append(out, way{port, s})
	}
	return out
}

// answerTime is how long a knock waits. Shorter than the second after which a
// TCP sends its SYN again: one knock is one packet.
const answerTime = 300 * time.Millisecond

// call sends the first packet on a way. The caller closes the socket.
func (n *namespace) call(w way) (fd int, err error) {
	number, protocol, _ := strings.Cut(w.port, "/")
	var port uint16
	if _, err := fmt.Sscan(number, &port); err != nil {
		return -1, err
	}
	source, target := netip.MustParseAddr(w.source), netip.MustParseAddr(vm4)
	if source.Is6() {
		target = netip.MustParseAddr(vm6)
	}
	return n.send(protocol, source, netip.AddrPortFrom(target, port))
}

// send sends the first packet from an address to another, of one family. The
// caller closes the socket.
func (n *namespace) send(protocol string, source netip.Addr, target netip.AddrPort) (fd int, err error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if source.Is6() {
		family = unix.AF_INET6
	}
	if protocol == "udp" {
		kind = unix.SOCK_DGRAM
	}
	n.do(func() { fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0) })
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = os.NewSyscallError("bind", unix.Bind(fd, sockaddr(source, 0)))
	if err == nil {
		if err = os.NewSyscallError("connect", unix.Connect(fd, sockaddr(target.Addr(), int(target.Port())))); errors.Is(err, unix.EINPROGRESS) {
			err = nil
		}
	}
	if err == nil && kind == unix.SOCK_DGRAM {
		_, err = unix.Write(fd, []byte("knock"))
		err = os.NewSyscallError("write", err)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// knock reports whether a packet gets through the guard: the vm then answers,
// if only that nobody listens.
func (n *namespace) knock(w way, wait time.Duration) (open bool, err error) {
	fd, err := n.call(w)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	ready := int16(unix.POLLOUT)
	if strings.HasSuffix(w.port, "/udp") {
		ready = unix.POLLIN
	}
	return answered(fd, ready, wait)
}

// answered reports whether the other end answers what was sent.
func answered(fd int, ready int16, wait time.Duration) (bool, error) {
	came, err := poll(fd, ready, wait)
	if err != nil || !came {
		return false, err
	}
	result, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return false, os.NewSyscallError("getsockopt", err)
	}
	if e := unix.Errno(result); e != 0 && e != unix.ECONNREFUSED {
		return false, e
	}
	return true, nil
}

func poll(fd int, events int16, wait time.Duration) (bool, error) {
	for deadline := time.Now().Add(wait); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int(max(0, time.Until(deadline).Milliseconds())))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0, os.NewSyscallError("poll", err)
	}
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: port, Addr: a.As16()}
}

// open returns which of the ways are open, knocking on all at once.
func (n *namespace) open(t *testing.T, ways []way) []way {
	t.Helper()
	var mu sync.Mutex
	var all sync.WaitGroup
	var out []way
	for _, w := range ways {
		all.Go(func() {
			open, err := n.knock(w, answerTime)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("%s: %v", w, err)
			}
			if open {
				out = append(out, w)
			}
		})
	}
	all.Wait()
	return out
}

// isOpen requires that the ways are open. A busy machine may answer late, so
// an answer that stays out is asked for again.
func (h *host) isOpen(ways ...[]way) {
	h.t.Helper()
	left := slices.Concat(ways...)
	for deadline := time.Now().Add(patience); ; {
		open := h.outside.open(h.t, left)
		left = slices.DeleteFunc(left, func(w way) bool { return slices.Contains(open, w) })
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("closed, should be open: %v", left)
		}
	}
}

// isClosed requires that the ways are closed.
func (h *host) isClosed(ways ...[]way) {
	h.t.Helper()
	if open := h.outside.open(h.t, slices.Concat(ways...)); len(open) > 0 {
		h.t.Fatalf("open, should be closed: %v", open)
	}
}

// closes waits until the ways are closed.
func (h *host) closes(within time.Duration, ways ...[]way) {
	h.t.Helper()
	all := slices.Concat(ways...)
	until(h.t, within, fmt.Sprintf("%v should close", all), func() bool { return len(h.outside.open(h.t, all)) == 0 })
}

// opens waits until the ways are open.
func (h *host) opens(within time.Duration, ways ...[]way) {
	h.t.Helper()
	all := slices.Concat(ways...)
	until(h.t, within, fmt.Sprintf("%v should open", all), func() bool { return len(h.outside.open(h.t, all)) == len(all) })
}

// watch knocks on a way without a pause until stop, which requires that it was
// never found closed.
func (h *host) watch(w way) (stop func()) {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	knocks, closed := 0, 0
	var failed error
	go func() {
		defer close(ended)
		for ; ctx.Err() == nil && failed == nil; knocks++ {
			// As long as one SYN lasts: a busy machine is no gap.
			var open bool
			if open, failed = h.outside.knock(w, 3*answerTime); !open {
				closed++
			}
			// Two goroutines that wake each other in turns, one of them bound
			// to a thread, are never found to have had their time: with one
			// such pair for each processor nobody else would run for minutes.
			runtime.Gosched()
		}
	}()
	end := func() { cancel(); <-ended }
	h.t.Cleanup(end) // a test that fails does not come to stop
	return func() {
		h.t.Helper()
		end()
		if failed != nil || closed > 0 || knocks == 0 {
			h.t.Fatalf("%s: %d of %d knocks found it closed, %v", w, closed, knocks, failed)
		}
	}
}
