package uplink

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// ends are both ends of one connection.
func ends(t testing.TB) (server *Socket, raw net.Conn) {
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	return NewSocket(a, nil, false), b
}

func masked(f ws.Frame) []byte { return ws.MustCompileFrame(ws.MaskFrame(f)) }

func TestSocket(t *testing.T) {
	a, b := net.Pipe()
	server, client := NewSocket(a, nil, false), NewSocket(b, nil, true)
	defer server.Cut()
	heard := 0
	server.Heard = func() { heard++ }
	long := strings.Repeat("x", 100_000)
	go func() {
		client.Write([]byte("hello"))
		client.Write([]byte(long))
		client.Ping()
		client.Close(CloseGoing, "bye")
	}()
	go io.Copy(io.Discard, connOf(client)) // the pong, and the answer to the close
	for _, want := range []string{"hello", long} {
		if got, err := server.Read(len(long)); err != nil || string(got) != want {
			t.Fatalf("%.20q, %v", got, err)
		}
	}
	_, err := server.Read(1)
	closed := &Closed{}
	if !errors.As(err, &closed) || closed.Code != CloseGoing || closed.Reason != "bye" {
		t.Errorf("%v", err)
	}
	if heard != 4 {
		t.Errorf("%d frames were heard", heard)
	}
}

func connOf(s *Socket) net.Conn { return s.conn }

// What came with the handshake is read first.
func TestSocketEarly(t *testing.T) {
	server, raw := ends(t)
	text := append(masked(ws.NewTextFrame([]byte("early"))), masked(ws.NewTextFrame([]byte("late")))...)
	early := bufio.NewReader(io.MultiReader(bytes.NewReader(text[:13]), eof{}))
	if _, err := early.Peek(13); err != nil {
		t.Fatal(err)
	}
	server = NewSocket(server.conn, early, false)
	go raw.Write(text[13:])
	for _, want := range []string{"early", "late"} {
		if got, err := server.Read(100); err != nil || string(got) != want {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, errors.New("nobody may read on here") }

// Frames that nobody should send end the connection, and cost nothing.
func TestSocketRefuses(t *testing.T) {
	unmasked := ws.MustCompileFrame(ws.NewTextFrame([]byte("x")))
	part := ws.NewFrame(ws.OpText, false, []byte("x"))
	reserved := ws.NewTextFrame([]byte("x"))
	reserved.Header.Rsv = ws.Rsv(true, false, false)
	huge := append([]byte{0x81, 0xff}, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4)
	for what, text := range map[string][]byte{
		"unmasked":                  unmasked,
		"binary":                    masked(ws.NewBinaryFrame([]byte("x"))),
		"an extension":              masked(reserved),
		"a reserved opcode":         masked(ws.NewFrame(3, true, nil)),
		"a part without its begin":  masked(ws.NewFrame(ws.OpContinuation, true, []byte("x"))),
		"a begin in the middle":     append(masked(part), masked(ws.NewTextFrame([]byte("x")))...),
		"an empty part":             masked(ws.NewFrame(ws.OpText, false, nil)),
		"a ping in parts":           masked(ws.NewFrame(ws.OpPing, false, nil)),
		"a long ping":               masked(ws.NewPingFrame(make([]byte, 126))),
		"one byte too many":         masked(ws.NewTextFrame(make([]byte, 101))),
		"one too many in parts":     append(masked(ws.NewFrame(ws.OpText, false, make([]byte, 60))), masked(ws.NewFrame(ws.OpContinuation, true, make([]byte, 41)))...),
		"no text":                   masked(ws.NewTextFrame([]byte{0xff, 0xfe})),
		"a header of 2^63-1 bytes":  huge,
		"an HTTP request, garbage":  []byte("GET / HTTP/1.1\r\n\r\n"),
		"a length of more than int": append([]byte{0x81, 0xff}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4),
	} {
		t.Run(what, func(t *testing.T) {
			server, raw := ends(t)
			go func() {
				raw.Write(text)
				raw.Close()
			}()
			done := make(chan error, 1)
			go func() {
				_, err := server.Read(100)
				done <- err
			}()
			go io.Copy(io.Discard, raw)
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), "the other end sent") && !errors.Is(err, ws.ErrHeaderLengthMSB) {
					t.Errorf("%v", err)
				}
			case <-time.After(5 * time.Second):
				t.Error("still waiting")
			}
		})
	}
}

func FuzzSocket(f *testing.F) {
	f.Add(masked(ws.NewTextFrame([]byte("x"))))
	f.Add(append(masked(ws.NewFrame(ws.OpText, false, []byte("x"))), masked(ws.NewFrame(ws.OpContinuation, true, []byte("y")))...))
	f.Add(masked(ws.NewCloseFrame(ws.NewCloseFrameBody(1000, "x"))))
	f.Fuzz(func(t *testing.T, text []byte) {
		s := NewSocket(&script{in: bytes.NewReader(text)}, nil, false)
		for {
			message, err := s.Read(1 << 10)
			if err != nil {
				return
			}
			if len(message) > 1<<10 {
				t.Errorf("a message of %d bytes", len(message))
			}
		}
	})
}

// script is a connection that says what it was told to.
type script struct {
	net.Conn
	in io.Reader
}

func (s *script) Read(p []byte) (int, error)       { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return len(p), nil }
func (s *script) Close() error                     { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }
