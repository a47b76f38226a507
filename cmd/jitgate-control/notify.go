package main

import (
	"net"
	"os"
)

// notify tells systemd, where it wants to know, how the service stands. There
// is nothing to do about a service manager that does not listen.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte(state))
}
