package local

import (
	"context"
	"fmt"
	"net"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"

	"github.com/jitgate/jitgate/acl"
)

// Listen opens the pipe, for SYSTEM, administrators and the fetcher of this
// machine. Nobody else can have made a pipe of a name below
// \\.\pipe\ProtectedPrefix\Administrators; elsewhere it is an error if somebody
// has.
func Listen(path string) (net.Listener, error) {
	l, err := winio.ListenPipe(path, &winio.PipeConfig{SecurityDescriptor: acl.Pipe, InputBufferSize: 64 << 10, OutputBufferSize: 64 << 10})
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	return l, nil
}

// Dial connects to who listens at path, who may ask who calls, and no more.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	return winio.DialPipeAccessImpLevel(ctx, path, windows.GENERIC_READ|windows.GENERIC_WRITE, winio.PipeImpLevelIdentification)
}
