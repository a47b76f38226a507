package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// postgres is a PostgreSQL of the benchmark's own, as durable as it is by
// default.
type postgres struct {
	dir     string
	process *exec.Cmd
	dsn     string
}

// startPostgres makes a database cluster and starts its server, as the user
// nobody where this is root: PostgreSQL refuses to be root.
func startPostgres() (_ *postgres, err error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(found) == 0 {
		return nil, errors.Join(err, errors.New("PostgreSQL is not installed: make setup"))
	}
	bin := filepath.Dir(found[len(found)-1])
	p := &postgres{}
	if p.dir, err = os.MkdirTemp("", "jitgate-fleet-postgres-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.stop()
		}
	}()
	as := &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if os.Geteuid() == 0 {
		nobody, err := user.Lookup("nobody")
		if err != nil {
			return nil, err
		}
		uid, _ := strconv.Atoi(nobody.Uid) // digits on Linux
		gid, _ := strconv.Atoi(nobody.Gid)
		if err := os.Chown(p.dir, uid, gid); err != nil {
			return nil, err
		}
		as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	command := func(name string, args ...string) *exec.Cmd {
		c := exec.Command(filepath.Join(bin, name), args...)
		c.Dir, c.SysProcAttr = p.dir, as
		c.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
		return c
	}
	data := filepath.Join(p.dir, "data")
	if out, err := command("initdb", "--auth=trust", "--username=fleet", "--encoding=UTF8", "--locale=C", "--pgdata", data).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	server := command("postgres", "-D", data, "-p", strconv.Itoa(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "logging_collector=off")
	if err := server.Start(); err != nil {
		return nil, err
	}
	p.process = server
	p.dsn = fmt.Sprintf("postgres://fleet@127.0.0.1:%d/postgres?sslmode=disable", port)
	for deadline := time.Now().Add(patience); ; {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		c, err := pgx.Connect(ctx, p.dsn)
		if err == nil {
			c.Close(ctx)
		}
		cancel()
		if err == nil {
			return p, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("PostgreSQL does not answer: %w", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// stop ends the server, and removes what it kept.
func (p *postgres) stop() {
	if p.process != nil {
		p.process.Process.Signal(syscall.SIGINT)
		p.process.Wait()
	}
	os.RemoveAll(p.dir)
}
