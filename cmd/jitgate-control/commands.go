package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store"
)

// Commands that change who may what work on the database. One of SQLite's has
// one process: where a server has it, it runs the command in the place of the
// one that was called, asked over a socket in the data directory that only the
// directory's owner reaches.

const (
	socketFile = "control.sock"
	// maxCommand bounds what one process asks of the other, and the answer.
	maxCommand    = 1 << 20
	commandAnswer = time.Minute
	// maxSocketPath is what fits a socket's address on every system.
	maxSocketPath = 100
)

// remote are the commands that a server runs for another process.
var remote = []string{"join", "role", "token", "user"}

// localOwner is who works on the data directory itself.
func localOwner() control.Caller {
	return control.Caller{
		ID: control.LocalPrefix + "root", Name: "root", Type: control.TypeUser,
		Rights: []control.Right{{Role: control.BuiltinRoles()[0], Scope: control.Everywhere}},
	}
}

// What the context of a command has: the engine of the server that runs it,
// and what agents are told to call.
type (
	engineKey struct{}
	publicKey struct{}
)

// withEngine runs work on the engine: of the server that runs this command for
// another process, or one of its own; or has a running server run it all.
func withEngine(c *cobra.Command, o *origin, work func(ctx context.Context, e *control.Engine, who control.Caller) error) error {
	if e, ok := c.Context().Value(engineKey{}).(*control.Engine); ok {
		return work(c.Context(), e, localOwner())
	}
	s, d, err := o.existing(c)
	if err != nil {
		return err
	}
	if !s.overNetwork() {
		asked, err := d.ask(c)
		if asked || err != nil {
			return err
		}
		// A database made here would be one that no server looks at.
		if _, err := os.Stat(s.dsn(d)); err != nil {
			return fmt.Errorf("there is no database: start the server once, or name its settings with --config: %w", err)
		}
	}
	log := hclog.New(&hclog.LoggerOptions{Name: "jitgate-control", Level: hclog.Warn, Output: c.ErrOrStderr()})
	kept, err := store.Open(c.Context(), s.dsn(d), log)
	if err != nil {
		return err
	}
	defer kept.Close()
	ca, err := d.authority("agents", "jitgate agents", time.Now())
	if err != nil {
		return err
	}
	config := control.Config{Store: kept, Log: log, CA: ca.cert, CAKey: ca.key}
	if config.Realm, err = realmOf(c.Context(), kept); err != nil {
		return err
	}
	if s.tlsCert == "" {
		own, err := d.authority("tls", "jitgate control plane", time.Now())
		if err != nil {
			return err
		}
		config.ServerCA = own.fingerprint()
	}
	_, port, err := net.SplitHostPort(s.listen)
	if err != nil {
		return err
	}
	return work(context.WithValue(c.Context(), publicKey{}, s.public(port)), control.New(config), localOwner())
}

// order is a command that a server is asked to run.
type order struct {
	Args []string `json:"args"`
}

// outcome is what became of it.
type outcome struct {
	Out   []byte `json:"out"`
	Error string `json:"error,omitempty"`
	Usage bool   `json:"usage,omitempty"`
}

// socketAddress is the socket's path, or a short way to it where the path is
// too long for a socket's address. keep has to live as long as it is used.
func (d directory) socketAddress() (address string, keep io.Closer, err error) {
	address = d.path(socketFile)
	if len(address) <= maxSocketPath || runtime.GOOS != "linux" {
		return address, io.NopCloser(nil), nil
	}
	dir, err := os.Open(string(d))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketFile), dir, nil
}

// ask has the server of this directory run the command, if there is one.
func (d directory) ask(c *cobra.Command) (asked bool, err error) {
	address, keep, err := d.socketAddress()
	if err != nil {
		return false, err
	}
	defer keep.Close()
	conn, err := (&net.Dialer{}).DialContext(c.Context(), "unix", address)
	if err != nil {
		return false, nil // nobody serves
	}
	defer conn.Close()
	client := http.Client{
		Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }},
		Timeout:   commandAnswer,
	}
	text, err := json.Marshal(order{Args: calledWith(c)})
	if err != nil {
		return true, err
	}
	answer, err := client.Post("http://jitgate-control/", "application/json", bytes.NewReader(text))
	if err != nil {
		return true, fmt.Errorf("the server that runs here did not answer: %w", err)
	}
	defer answer.Body.Close()
	var o outcome
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxCommand)).Decode(&o); err != nil || answer.StatusCode != http.StatusOK {
		return true, fmt.Errorf("the server that runs here answered %s", answer.Status)
	}
	if _, err := c.OutOrStdout().Write(o.Out); err != nil {
		return true, err
	}
	switch {
	case o.Error != "" && o.Usage:
		return true, usage.Errorf("%s", o.Error)
	case o.Error != "":
		return true, errors.New(o.Error)
	}
	return true, nil
}

type argsKey struct{}

// calledWith are the words the command was called with.
func calledWith(c *cobra.Command) []string {
	args, _ := c.Context().Value(argsKey{}).([]string)
	return args
}

// listenCommands opens the socket. The directory is locked, so a socket that
// is there was left by a server that is gone.
func (sv *server) listenCommands() (net.Listener, error) {
	if err := os.Remove(sv.dir.path(socketFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	address, keep, err := sv.dir.socketAddress()
	if err != nil {
		return nil, err
	}
	defer keep.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// By its own name it is removed at the end, not by one that is gone then.
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(sv.dir.path(socketFile), 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// serveCommands runs commands for other processes until ctx ends.
func (sv *server) serveCommands(ctx context.Context, l net.Listener) error {
	// Whoever reaches this socket may read the process's memory anyhow.
	profiles := http.NewServeMux()
	profiles.HandleFunc("GET /debug/pprof/", pprof.Index)
	profiles.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	profiles.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				profiles.ServeHTTP(w, r)
				return
			}
			var in order
			if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCommand)).Decode(&in); err != nil || r.Method != http.MethodPost {
				http.Error(w, "not a command", http.StatusBadRequest)
				return
			}
			text, err := json.Marshal(runFor(context.WithValue(r.Context(), publicKey{}, sv.public), sv.engine, in.Args))
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Write(text)
		}),
		ReadTimeout: commandAnswer, WriteTimeout: commandAnswer, ErrorLog: sv.http.ErrorLog,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() {
		s.Close()
		os.Remove(sv.dir.path(socketFile))
	})
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// runFor runs a command line of another process on e.
func runFor(ctx context.Context, e *control.Engine, args []string) outcome {
	if len(args) == 0 || !slices.Contains(remote, args[0]) {
		return outcome{Error: "that is no command for a running server"}
	}
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(bytes.NewReader(nil))
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(io.Discard)
	err := root.ExecuteContext(context.WithValue(ctx, engineKey{}, e))
	o := outcome{Out: out.Bytes()}
	if err != nil {
		o.Error = cmp.Or(err.Error(), "failed")
		_, o.Usage = errors.AsType[usage.Error](err)
	}
	return o
}
