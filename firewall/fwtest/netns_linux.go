package fwtest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// Privileged skips a test that needs root. Under JITGATE_CI it fails instead:
// there a privileged test that does not run is a hole nobody sees.
func Privileged(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("JITGATE_CI") != "" {
		t.Fatal("this test needs root for network namespaces")
	}
	t.Skip("needs root for network namespaces: run make test as root")
}

// Isolate moves the test into a new network namespace, empty but for a
// loopback device that is down. The namespace goes when the test ends: the
// thread is not given back.
func Isolate(t testing.TB) {
	t.Helper()
	Privileged(t)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
}

var namespaces atomic.Int32

// Pair is two network namespaces joined by a cable: VM, which is guarded, and
// Outside. Outside owns every address of 10.64.0.0/10 and fd64::/16 beside its
// own, so that packets can come from any of them.
type Pair struct {
	VM, Outside string
}

// The addresses of a Pair.
const (
	VM4, Outside4 = "192.168.99.1", "192.168.99.2"
	VM6, Outside6 = "fd99::1", "fd99::2"
)

// NewPair makes a pair that is removed when the test ends.
func NewPair(t testing.TB) Pair {
	t.Helper()
	Privileged(t)
	n := namespaces.Add(1)
	p := Pair{fmt.Sprintf("jg-vm-%d-%d", os.Getpid(), n), fmt.Sprintf("jg-out-%d-%d", os.Getpid(), n)}
	t.Cleanup(func() {
		for _, name := range []string{p.VM, p.Outside} {
			_ = exec.Command("ip", "netns", "del", name).Run() // gone already is fine
		}
	})
	script := `
ip netns add VM
ip netns add OUT
ip link add v0 netns VM type veth peer name o0 netns OUT
ip netns exec VM sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.conf.v0.rp_filter=0
ip -n VM addr add ` + VM4 + `/24 dev v0
ip -n OUT addr add ` + Outside4 + `/24 dev o0
ip -n VM addr add ` + VM6 + `/64 dev v0 nodad
ip -n OUT addr add ` + Outside6 + `/64 dev o0 nodad
for n in VM:v0 VM:lo OUT:o0 OUT:lo; do ip -n ${n%:*} link set ${n#*:} up; done
ip netns exec OUT sysctl -qw net.ipv6.ip_nonlocal_bind=1
ip -n OUT route add local 10.64.0.0/10 dev lo
ip -n OUT route add local fd64::/16 dev lo
ip -n VM route add 10.64.0.0/10 via ` + Outside4 + `
ip -n VM route add fd64::/16 via ` + Outside6 + `
`
	script = strings.NewReplacer("VM", p.VM, "OUT", p.Outside).Replace(script)
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("network namespaces: %v: %s", err, out)
	}
	return p
}

// In runs f on a thread inside the namespace. Sockets f opens stay there. f
// may end the test with t.Fatal.
func In(t testing.TB, namespace string, f func()) {
	t.Helper()
	var err error
	finished := false
	done := make(chan struct{})
	go func() {
		defer close(done)      // also where f ends its goroutine
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		fd, openErr := unix.Open("/run/netns/"+namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err = openErr; err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			f()
		}
		finished = true
	}()
	<-done
	if err != nil {
		t.Fatalf("enter %s: %v", namespace, err)
	}
	if !finished {
		t.FailNow()
	}
}

// Command runs a program in the namespace and returns what it printed.
func Command(t testing.TB, namespace string, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", append([]string{"netns", "exec", namespace}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return string(out)
}
