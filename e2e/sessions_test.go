//go:build linux

package e2e_test

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// session is an established session through the guard, with an echo at the
// other end.
type session struct{ net.Conn }

// login makes a session from alice to port 22, over tcp or udp.
func (h *host) login(network string) session {
	h.t.Helper()
	h.echo(network)
	var local net.Addr = &net.TCPAddr{IP: net.ParseIP(alice4)}
	if network == "udp" {
		local = &net.UDPAddr{IP: net.ParseIP(alice4)}
	}
	var c net.Conn
	var err error
	h.outside.do(func() {
		d := net.Dialer{Timeout: patience, LocalAddr: local}
		c, err = d.Dial(network, vm4+":22")
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	s := session{c}
	if !s.answers(patience) {
		h.t.Fatal("the new session does not answer")
	}
	return s
}

// echo sends back what the first session to port 22 brings.
func (h *host) echo(network string) {
	h.t.Helper()
	var l net.Listener
	var p net.PacketConn
	var err error
	h.vm.do(func() {
		if network == "udp" {
			p, err = net.ListenPacket(network, vm4+":22")
		} else {
			l, err = net.Listen(network, vm4+":22")
		}
	})
	if err != nil {
		h.t.Fatal(err)
	}
	buffer := make([]byte, 64)
	if network == "udp" {
		h.t.Cleanup(func() { p.Close() })
		go func() {
			for {
				n, from, err := p.ReadFrom(buffer)
				if err != nil {
					return
				}
				p.WriteTo(buffer[:n], from)
			}
		}()
		return
	}
	go func() {
		defer l.Close()
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
}

// answers reports whether what is sent comes back in time.
func (s session) answers(within time.Duration) bool {
	s.SetDeadline(time.Now().Add(within))
	if _, err := s.Write([]byte("hello")); err != nil {
		return false
	}
	n, err := s.Read(make([]byte, 64))
	return err == nil && n > 0
}

// isReset reports whether the session is reset in time, with nothing sent.
func (s session) isReset(within time.Duration) bool {
	s.SetDeadline(time.Now().Add(within))
	_, err := s.Read(make([]byte, 64))
	return errors.Is(err, syscall.ECONNRESET)
}

// What becomes of a session when its grant is over: sessionsAtEnd says it for
// the grant that ends on time, with the agent alive or dead; a revoked one
// always cuts.
func TestSessionsAtEnd(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, atEnd     string
		revoked, killed bool
		survives        bool
	}{
		{name: "kept", atEnd: "keep", survives: true},
		{name: "kept, agent killed", atEnd: "keep", killed: true, survives: true},
		{name: "cut", atEnd: "cut"},
		{name: "cut, agent killed", atEnd: "cut", killed: true},
		{name: "revoked", atEnd: "cut", revoked: true},
		{name: "revoked though kept", atEnd: "keep", revoked: true},
	} {
		for _, network := range []string{"tcp", "udp"} {
			t.Run(network+" "+c.name, func(t *testing.T) {
				t.Parallel()
				h := guarding(t, with(port(22, "*"), object{"sessionsAtEnd": c.atEnd}))
				length := 3 * time.Second
				if c.revoked {
					length = time.Minute
				}
				h.allow(1, grant("g1", 22, length, alice4+"/32"))
				s := h.login(network)
				if c.killed {
					h.kill()
				}
				if c.revoked {
					h.allow(2)
				}
				h.closes(patience, ways("22/tcp", alice4))
				// Without the agent there is nobody to tell the client.
				if !c.survives && !c.killed && network == "tcp" && !s.isReset(patience) {
					t.Error("the client is not told that its session is over")
				}
				if survives := s.answers(time.Second); survives != c.survives {
					t.Errorf("the session answers: %t, want %t", survives, c.survives)
				}
			})
		}
	}
}
