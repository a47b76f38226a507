//go:build !windows

package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// Listen opens the socket, in place of one a dead process left: the caller has
// made sure that it is dead. The socket gets its name only once it has its
// mode, so that nobody comes in between.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // it goes by another name then
	if err := errors.Join(os.Chmod(temporary, 0o660), os.Rename(temporary, path)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return named{l, path}, nil
}

// named is a listener whose socket is removed when it closes.
type named struct {
	*net.UnixListener
	path string
}

func (l named) Close() error {
	err := l.UnixListener.Close()
	os.Remove(l.path)
	return err
}

// Dial connects to who listens at path.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", path)
}
