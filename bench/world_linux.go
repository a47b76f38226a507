package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// world is a network namespace of its own, held by one OS thread that never
// leaves it. Sockets opened and processes started there belong to it. It has
// no name, so nothing is left of it once thread, sockets and processes are
// gone, whatever ended the benchmark.
type world struct {
	calls chan func()
}

func newWorld() (*world, error) {
	w := &world{calls: make(chan func())}
	entered := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: a thread in another namespace is of no use to others
		err := os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET))
		entered <- err
		if err != nil {
			return
		}
		for call := range w.calls {
			call()
		}
	}()
	return w, <-entered
}

// close lets the thread end. Processes started there die with it.
func (w *world) close() { close(w.calls) }

// do runs f on the thread and waits for it.
func (w *world) do(f func() error) error {
	done := make(chan error)
	w.calls <- func() { done <- f() }
	return <-done
}

// start starts a process in the world. It gets no signal meant for the
// benchmark's group, so that ^C leaves ending it to us, and the kernel kills
// it should the benchmark itself be killed.
func (w *world) start(c *exec.Cmd) error {
	c.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	return w.do(c.Start)
}

// stop ends a process that start started.
func stop(c *exec.Cmd) {
	_ = c.Process.Kill() // it may be gone already
	_ = c.Wait()         // says that we killed it
}

// nft feeds a script to nft in the world.
func (w *world) nft(scratch, script string) error {
	return w.do(func() error {
		c, err := nftCommand(scratch, script)
		if err != nil {
			return err
		}
		return runNft(c)
	})
}

// nftCommand prepares nft with the script as a plain file on its standard
// input: a pipe would need a goroutine to fill it, and cost time.
func nftCommand(scratch, script string) (*exec.Cmd, error) {
	path := filepath.Join(scratch, "script.nft")
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	c := exec.Command("nft", "-f", "-")
	c.Stdin, c.Stderr = f, os.Stderr
	return c, nil
}

func runNft(c *exec.Cmd) error {
	err := c.Run()
	c.Stdin.(*os.File).Close()
	if err != nil {
		return fmt.Errorf("nft -f -: %w (its message stands above)", err)
	}
	return nil
}

// plainTable is a table nobody owns with the set jitgate keeps single IPv4
// hosts in. It has a counter for each element as that has: the kernel makes one
// for each processor, a good part of what an element costs it, and what is
// compared is the agent's work and not the kernel's.
func plainTable(name string) string {
	return fmt.Sprintf("table inet %s {\n set %s { type ipv4_addr . inet_proto . inet_service; flags timeout; counter; }\n}\n", name, hostSet)
}
