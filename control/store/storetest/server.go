package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// PostgresServer is a PostgreSQL of the tests' own, on a port of this machine
// that stays the same over a restart. Nothing about it is faked but its
// database being small.
type PostgresServer struct {
	bin, dir string
	owner    *syscall.SysProcAttr // who its processes run as
	port     int
	settings []string
	process  *os.Process
	exited   chan struct{} // closed when process is no more
	warden   io.Closer     // see ward
	warded   *exec.Cmd
}

// patience is how long a server may take to start or to stop.
const patience = time.Minute

// databases numbers the databases made here.
var databases atomic.Int64

// shared starts the one server of this program, at the first use. It ends with
// the program.
var shared = sync.OnceValues(func() (*PostgresServer, error) { return StartServer() })

// Server starts a server that the test may stop and kill; it is gone when the
// test ends. settings are lines of its configuration, such as "fsync=off".
func Server(t testing.TB, settings ...string) *PostgresServer {
	t.Helper()
	s, err := StartServer(settings...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// Close ends the server and removes its files.
func (s *PostgresServer) Close() {
	s.warden.Close()
	s.warded.Wait() // whatever it says, it is over
}

// NewDatabase makes an empty database and returns its URL. It sorts text as
// English does, so that what relies on the order of bytes shows.
func (s *PostgresServer) NewDatabase(t testing.TB) (dsn string) {
	t.Helper()
	dsn, err := s.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return dsn
}

// CreateDatabase is NewDatabase outside a test.
func (s *PostgresServer) CreateDatabase(ctx context.Context) (dsn string, err error) {
	name := fmt.Sprintf("test_%d", databases.Add(1))
	err = s.exec(ctx, "postgres", "CREATE DATABASE "+name+" TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en'")
	return s.DSN(name), err
}

// DSN is the URL of a database.
func (s *PostgresServer) DSN(database string) string {
	return fmt.Sprintf(address, s.port, database)
}

// address is the URL of a database on a port.
const address = "postgres://tester@127.0.0.1:%d/%s?sslmode=disable"

// Exec runs a statement as the server's superuser.
func (s *PostgresServer) Exec(t testing.TB, database, statement string) {
	t.Helper()
	if err := s.exec(t.Context(), database, statement); err != nil {
		t.Fatal(err)
	}
}

func (s *PostgresServer) exec(ctx context.Context, database, statement string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := pgx.Connect(ctx, s.DSN(database))
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	if _, err := c.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

// Start starts the server again after Stop or Kill.
func (s *PostgresServer) Start(t testing.TB) {
	t.Helper()
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
}

// Stop shuts the server down in order, without waiting for its clients.
func (s *PostgresServer) Stop(t testing.TB) { t.Helper(); s.end(t, syscall.SIGINT) }

// Kill ends the server as a crash of its machine does: all of it at once.
func (s *PostgresServer) Kill(t testing.TB) {
	t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", s.process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	s.end(t, syscall.SIGKILL)
	for _, child := range strings.Fields(string(children)) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := os.FindProcess(pid); err == nil {
			p.Kill() // it may be gone by itself
		}
	}
}

func (s *PostgresServer) end(t testing.TB, how syscall.Signal) {
	t.Helper()
	if err := s.process.Signal(how); err != nil {
		t.Fatal(err)
	}
	<-s.exited
}

// StartServer is Server outside a test: the caller closes it.
func StartServer(settings ...string) (_ *PostgresServer, err error) {
	s := &PostgresServer{settings: settings}
	if s.bin, err = binaries(); err != nil {
		return nil, err
	}
	if s.dir, err = os.MkdirTemp("", "jitgate-postgres-"); err != nil {
		return nil, err
	}
	if s.owner, err = ownedByNobody(s.dir); err != nil {
		os.RemoveAll(s.dir)
		return nil, err
	}
	if err := s.ward(); err != nil {
		os.RemoveAll(s.dir)
		return nil, err
	}
	initdb := s.command(filepath.Join(s.bin, "initdb"), "--no-sync", "--wal-segsize=1", "--auth=trust", "--username=tester", "--encoding=UTF8", "--locale=C", "--pgdata", filepath.Join(s.dir, "data"))
	if out, err := initdb.CombinedOutput(); err != nil {
		s.warden.Close()
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if err := s.start(); err != nil {
		s.warden.Close()
		return nil, err
	}
	return s, nil
}

// binaries is the directory of PostgreSQL's programs: the newest of Debian's,
// or that of the PATH.
func binaries() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", err
	}
	if len(found) > 0 {
		version := func(path string) int { n, _ := strconv.Atoi(strings.Split(path, "/")[4]); return n }
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
	}
	path, err := exec.LookPath("postgres")
	if err != nil {
		return "", errors.New("PostgreSQL is not installed, which these tests run against: make setup")
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", err
	}
	return filepath.Dir(path), nil
}

// command is a program that works for the server, in its directory.
func (s *PostgresServer) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = s.owner
	return cmd
}

// wardScript waits for the end of its input, which is that of the test or of
// the program, even of a killed one; then the server goes, with its files.
const wardScript = `cat >/dev/null
n=0
if pid=$(head -n 1 data/postmaster.pid 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null; then
	while [ -e data/postmaster.pid ] && [ $((n += 1)) -le 200 ]; do sleep 0.05; done
fi
rm -rf "$PWD"`

// ward sees to it that nothing is left behind.
func (s *PostgresServer) ward() (err error) {
	s.warded = s.command("/bin/sh", "-c", wardScript)
	if s.warden, err = s.warded.StdinPipe(); err != nil {
		return err
	}
	return s.warded.Start()
}

// start starts the server and waits until it answers. It tries again where
// somebody else took the port, or the last of a killed server is not gone yet.
func (s *PostgresServer) start() (err error) {
	port := s.port
	for range 5 {
		if s.port == 0 {
			if port, err = freePort(); err != nil {
				return err
			}
		}
		if err = s.startOn(port); err == nil {
			s.port = port
			return nil
		}
		time.Sleep(200 * time.Millisecond)
	}
	return err
}

func (s *PostgresServer) startOn(port int) error {
	args := []string{"-D", filepath.Join(s.dir, "data"), "-p", strconv.Itoa(port)}
	for _, setting := range append([]string{
		"listen_addresses=127.0.0.1", "unix_socket_directories=", "shared_buffers=16MB", "max_connections=100",
		"wal_level=minimal", "max_wal_senders=0", "log_line_prefix=%m %p "}, s.settings...) {
		args = append(args, "-c", setting)
	}
	process := s.command(filepath.Join(s.bin, "postgres"), args...)
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	process.Stdout, process.Stderr = log, log
	if err := process.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		process.Wait() // whatever it says, it is over
	}()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	url := fmt.Sprintf(address, port, "postgres")
	for {
		c, err := pgx.Connect(ctx, url)
		if err == nil {
			s.process, s.exited = process.Process, exited
			return c.Close(ctx)
		}
		select {
		case <-exited:
		case <-ctx.Done():
			process.Process.Kill()
			<-exited
		case <-time.After(20 * time.Millisecond):
			continue
		}
		said, _ := os.ReadFile(log.Name())
		return fmt.Errorf("the test's PostgreSQL does not start: %w\n%s", err, said)
	}
}

// freePort finds a port nobody listens on.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
