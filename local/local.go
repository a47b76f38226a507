// Package local is the line between programs of one host: a Unix socket, on
// Windows a named pipe.
package local
