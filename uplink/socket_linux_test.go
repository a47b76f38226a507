package uplink

import (
	"crypto/tls"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// The pings of the line do what TCP's probes would do once more.
func TestSocketWithoutProbes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, over := range []struct {
		name string
		wrap func(net.Conn) net.Conn
	}{
		{"TCP", func(c net.Conn) net.Conn { return c }},
		{"TLS", func(c net.Conn) net.Conn { return tls.Client(c, &tls.Config{}) }},
	} {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if before := probes(t, conn); before != 1 {
			t.Fatalf("%s: a new connection has SO_KEEPALIVE %d", over.name, before)
		}
		NewSocket(over.wrap(conn), nil, true)
		if after := probes(t, conn); after != 0 {
			t.Errorf("%s: SO_KEEPALIVE is %d", over.name, after)
		}
	}
}

func probes(t *testing.T, c net.Conn) (value int) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	failed := raw.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE) })
	if failed != nil || err != nil {
		t.Fatal(failed, err)
	}
	return value
}
