//go:build linux

package e2e_test

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"
)

// session is an established TCP session through the guard, with an echo at the
// other end.
type session struct{ net.Conn }

// login makes a session from alice to port 22.
func (h *host) login() session {
	h.t.Helper()
	var l net.Listener
	var err error
	h.vm.do(func() { l, err = net.Listen("tcp", vm4+":22") })
	if err != nil {
		h.t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buffer := make([]byte, 64)
		for {
			n, err := c.Read(buffer)
			if err != nil {
				return
			}
			if _, err := c.Write(buffer[:n]); err != nil {
				return
			}
		}
	}()
	var c net.Conn
	h.outside.do(func() {
		d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(alice4)}}
		c, err = d.Dial("tcp", vm4+":22")
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
// the grant that ends on time, a revoked one always cuts.
func TestSessionsAtEnd(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, atEnd string
		revoked     bool
		survives    bool
	}{
		{name: "kept", atEnd: "keep", survives: true},
		{name: "cut", atEnd: "cut"},
		{name: "revoked", atEnd: "cut", revoked: true},
		{name: "revoked though kept", atEnd: "keep", revoked: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := guarding(t, with(port(22, "TCP"), object{"sessionsAtEnd": c.atEnd}))
			length := 3 * time.Second
			if c.revoked {
				length = time.Minute
			}
			h.allow(1, grant("g1", 22, length, alice4+"/32"))
			s := h.login()
			if c.revoked {
				h.allow(2)
			}
			h.closes(patience, ways("22/tcp", alice4))
			if !c.survives && !s.isReset(patience) {
				t.Error("the client is not told that its session is over")
			}
			if survives := s.answers(time.Second); survives != c.survives {
				t.Errorf("the session answers: %t, want %t", survives, c.survives)
			}
		})
	}
}
