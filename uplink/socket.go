package uplink

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gobwas/ws"
)

// The times of a WebSocket.
const (
	PingEvery = 25 * time.Second // by the fetcher: proxies forget silent connections
	Silence   = 75 * time.Second // after which either end takes the other for lost
	slowest   = 15 * time.Second // that the other end may take to read one message
)

// Closed is the error of a WebSocket that the other end closed in good order.
type Closed struct {
	Code   int
	Reason string
}

func (c *Closed) Error() string {
	return fmt.Sprintf("closed by the other end: %d %s", c.Code, c.Reason)
}

// Codes of a close.
const (
	CloseGoing    = int(ws.StatusGoingAway)
	CloseProtocol = int(ws.StatusProtocolError)
	CloseRefused  = int(ws.StatusPolicyViolation)
	CloseTooBig   = int(ws.StatusMessageTooBig)
)

// Socket is a WebSocket that carries text messages. One goroutine reads; any
// may write.
type Socket struct {
	// Heard, if not nil, is called for every frame that came in.
	Heard func()

	conn   net.Conn
	early  *bufio.Reader // what was read with the handshake; nil: nothing
	client bool

	writing sync.Mutex
}

// NewSocket makes a Socket of a connection whose handshake is done. client
// says which end this is. early, if not nil, is read first.
func NewSocket(conn net.Conn, early *bufio.Reader, client bool) *Socket {
	if early != nil && early.Buffered() == 0 {
		early = nil // it would hold its buffer for as long as the line lives
	}
	withoutProbes(conn)
	return &Socket{conn: conn, early: early, client: client}
}

// withoutProbes ends TCP's own probes, one in 15 s by Go's default: pings and
// Silence find out who is gone, and 10,000 connections had their kernels send
// 1,300 packets a second for nothing.
func withoutProbes(conn net.Conn) {
	type layer interface{ NetConn() net.Conn } // TLS, and what is below it
	for over, ok := conn.(layer); ok; over, ok = conn.(layer) {
		conn = over.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAlive(false) // no harm if it stays
	}
}

// reader is what the next bytes come from.
func (s *Socket) reader() io.Reader {
	if s.early == nil {
		return s.conn
	}
	if s.early.Buffered() == 0 {
		s.early = nil
		return s.conn
	}
	// One read never waits for more than the buffer holds.
	return io.MultiReader(io.LimitReader(s.early, int64(s.early.Buffered())), s.conn)
}

// Read returns the next message of at most limit bytes. It answers pings and
// closes. After an error the Socket is of no more use but to be closed.
func (s *Socket) Read(limit int) ([]byte, error) {
	var message []byte
	for begun := false; ; {
		if err := s.conn.SetReadDeadline(time.Now().Add(Silence)); err != nil {
			return nil, err
		}
		h, err := ws.ReadHeader(s.reader())
		if err != nil {
			return nil, err
		}
		if err := s.judge(h, begun, limit-len(message)); err != nil {
			return nil, err
		}
		from := len(message)
		payload := make([]byte, h.Length)
		if _, err := io.ReadFull(s.reader(), payload); err != nil {
			return nil, err
		}
		if h.Masked {
			ws.Cipher(payload, h.Mask, 0)
		}
		if s.Heard != nil {
			s.Heard()
		}
		switch h.OpCode {
		case ws.OpPing:
			if err := s.frame(ws.NewPongFrame(payload)); err != nil {
				return nil, err
			}
			continue
		case ws.OpPong:
			continue
		case ws.OpClose:
			code, reason := ws.ParseCloseFrameData(payload)
			return nil, errors.Join(&Closed{int(code), Trim(reason)}, s.frame(ws.NewCloseFrame(payload[:min(len(payload), 2)])))
		}
		message, begun = append(message[:from], payload...), true
		if !h.Fin {
			continue
		}
		if !utf8.Valid(message) {
			return nil, s.refuse(CloseProtocol, "a text that is not UTF-8")
		}
		return message, nil
	}
}

// judge refuses a frame before anything is allocated for it.
func (s *Socket) judge(h ws.Header, begun bool, room int) error {
	switch {
	case h.Rsv != 0 || h.OpCode.IsReserved():
		return s.refuse(CloseProtocol, "a frame of an extension nobody asked for")
	case h.Masked == s.client:
		return s.refuse(CloseProtocol, "a frame masked the wrong way")
	case h.OpCode.IsControl():
		if h.Length > ws.MaxControlFramePayloadSize || !h.Fin {
			return s.refuse(CloseProtocol, "a control frame too long")
		}
	case h.OpCode == ws.OpBinary, (h.OpCode == ws.OpContinuation) != begun:
		return s.refuse(CloseProtocol, "a frame out of place")
	case h.Length > int64(room):
		return s.refuse(CloseTooBig, "a message too long")
	case h.Length == 0 && !h.Fin:
		return s.refuse(CloseProtocol, "an empty part of a message") // without end they would cost for ever
	}
	return nil
}

// refuse tells the other end why, and returns that.
func (s *Socket) refuse(code int, why string) error {
	return errors.Join(errors.New("the other end sent "+why), s.Close(code, why))
}

// Write sends a message.
func (s *Socket) Write(message []byte) error { return s.frame(ws.NewTextFrame(message)) }

// Ping asks for a sign of life.
func (s *Socket) Ping() error { return s.frame(ws.NewPingFrame(nil)) }

// Close says why and closes the connection. An other end that does not read is
// not waited for long.
func (s *Socket) Close(code int, reason string) error {
	err := s.frameWithin(time.Second, ws.NewCloseFrame(ws.NewCloseFrameBody(ws.StatusCode(code), Trim(reason)[:min(len(Trim(reason)), 120)])))
	return errors.Join(err, s.conn.Close())
}

// Cut closes the connection without a word.
func (s *Socket) Cut() error { return s.conn.Close() }

func (s *Socket) frame(f ws.Frame) error { return s.frameWithin(slowest, f) }

func (s *Socket) frameWithin(most time.Duration, f ws.Frame) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.client {
		f = ws.MaskFrame(f)
	}
	// In one write: header and payload in one TLS record.
	b, err := ws.CompileFrame(f)
	if err == nil {
		err = s.conn.SetWriteDeadline(time.Now().Add(most))
	}
	if err == nil {
		_, err = s.conn.Write(b)
	}
	return err
}
