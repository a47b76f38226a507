package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// The API is called during a storm by a process of its own: in the one in which
// ten thousand machines shake hands, whoever calls waits for a processor behind
// them all, for seconds, and takes that for the server's time.

// callerArgument makes this program one that calls.
const callerArgument = "call"

const (
	callEvery  = 50 * time.Millisecond
	lookEvery  = 5 * time.Millisecond // while nobody answers
	callWithin = 30 * time.Second
)

// wanted is a request that a caller is to make: a line of JSON on its input.
type wanted struct{ Number, Host int }

// made is what became of it: a line of its output. Its times are its own.
type made struct {
	Number       int
	Began, Ended time.Time
	Error        string `json:",omitempty"`
}

// call is what a caller does: one request after another, each on a connection of
// its own, until there is no more.
func call(in io.Reader, out io.Writer, data, listen string) error {
	s := &server{data: data, listen: listen}
	if err := s.connect(); err != nil {
		return err
	}
	asks, says := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var w wanted
		if err := asks.Decode(&w); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), callWithin)
		m, wait := made{Number: w.Number, Began: time.Now()}, callEvery
		if err := s.initiate(ctx, w.Host, sourceOf(w.Number)); err != nil {
			m.Error, wait = err.Error(), lookEvery
		}
		m.Ended = time.Now()
		cancel()
		s.client.CloseIdleConnections()
		if err := says.Encode(m); err != nil {
			return err
		}
		time.Sleep(wait)
	}
}

// initiate asks for access to a machine.
func (s *server) initiate(ctx context.Context, host int, source netip.Addr) error {
	body := fmt.Sprintf(`{"virtualMachines":[{"id":%q,"ports":[{"number":22,"allowedSourceAddressPrefix":"%s","duration":"PT1H"}]}]}`, machine(host), source)
	_, err := s.call(ctx, http.MethodPost, policyOf(host)+"/initiate?api-version=2020-01-01", []byte(body))
	return err
}

// caller is such a process.
type caller struct {
	process *exec.Cmd
	both    sync.WaitGroup

	mu   sync.Mutex
	made []made
}

// calls starts one, which asks for access to any machine, again and again.
func (f *fleet) calls() (*caller, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &caller{process: exec.Command(program, callerArgument, f.server.data, f.server.listen)}
	c.process.Stderr = os.Stderr
	c.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := c.process.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.process.Start(); err != nil {
		return nil, err
	}
	c.both.Go(func() {
		for asks := json.NewEncoder(in); ; { // as fast as the pipe takes them
			h := f.any()
			number, _ := f.ledger.begin(h.number)
			if asks.Encode(wanted{number, h.number}) != nil {
				return // it has ended
			}
		}
	})
	c.both.Go(func() {
		for says := json.NewDecoder(out); ; {
			var m made
			if says.Decode(&m) != nil {
				return
			}
			if m.Error == "" {
				f.ledger.acknowledged(m.Number)
			}
			c.mu.Lock()
			c.made = append(c.made, m)
			c.mu.Unlock()
		}
	})
	return c, nil
}

// since returns the calls from the first on that began after a time and was
// answered.
func (c *caller) since(t time.Time) []made {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, m := range c.made {
		if m.Error == "" && m.Began.After(t) {
			return c.made[i:]
		}
	}
	return nil
}

// end ends the process. What it was about to ask is asked by nobody.
func (c *caller) end() {
	c.process.Process.Kill() // it may have ended by itself
	c.both.Wait()
	c.process.Wait()
}
