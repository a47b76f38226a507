package agents

import (
	"context"
	"crypto/tls"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/jitgate/jitgate/uplink"
)

// Turns has agents begin their handshakes in turn. When a server comes back its
// whole fleet does, and whoever calls the API would wait behind all of them for a
// processor. Agents say who they are in their first message (uplink.Proto), so
// that nobody else waits.
type Turns struct {
	slots    chan struct{}
	lasts    time.Duration // at most: the other end may be far away, or mean ill
	patience time.Duration // a handshake that waited so long goes on without a turn: fetchers give up after a minute
	within   time.Duration // it is done, once it goes on
}

// NewTurns has enough of them to keep the processors busy with agents nearby, and
// 200 begin in a second for each processor where all are far away. within is what
// the server gives a handshake.
func NewTurns(within time.Duration) *Turns {
	return &Turns{slots: make(chan struct{}, 4*runtime.GOMAXPROCS(0)), lasts: 20 * time.Millisecond, patience: 45 * time.Second, within: within}
}

// Take implements tls.Config.GetConfigForClient; the configuration stays as it is.
func (t *Turns) Take(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if !slices.Contains(hello.SupportedProtos, uplink.Proto) {
		return nil, nil
	}
	if p, ok := hello.Conn.(*place); ok {
		if err := p.forAgent(); err != nil {
			return nil, err
		}
	}
	late := time.NewTimer(t.patience)
	defer late.Stop()
	select {
	case t.slots <- struct{}{}:
		end := sync.OnceFunc(func() { <-t.slots })
		context.AfterFunc(hello.Context(), end) // it is over with the handshake
		time.AfterFunc(t.lasts, end)
	case <-late.C:
	case <-hello.Context().Done():
		return nil, hello.Context().Err()
	}
	// net/http has counted from the beginning: whoever waited would be cut off,
	// and come again with a handshake to begin anew.
	return nil, hello.Conn.SetDeadline(time.Now().Add(t.within))
}
