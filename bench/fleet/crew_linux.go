package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/policy"
)

// Machines live in processes of their own, crews. In the one in which ten
// thousand machines shake hands, whoever calls the API waits for a processor
// behind them all and takes that for the server's time; and a process has
// descriptors for so many machines and not for more.

// crewArgument makes this program a crew.
const crewArgument = "crew"

// orders is what a crew is told first: a value of JSON on its input. The end of
// its input ends it.
type orders struct {
	First      int      // the number of its first machine
	Identities [][]byte // of its machines, as their fetchers keep them
	Replicas   []string // addresses of the control plane
	Roots      []byte   // who signed those' certificates, in PEM
	Pin        policy.Digest
}

// news is what a crew tells of a machine: a value of JSON on its output, with the
// time at which it was so.
type news struct {
	Event   event
	Machine int
	At      time.Time
	Request int           `json:",omitzero"` // that was opened or closed
	Longest time.Duration `json:",omitzero"` // access, by the policy that was admitted
	State   policy.State  `json:",omitzero"` // at the end
}

type event string

const (
	opened   event = "opened"
	closed   event = "closed"
	admitted event = "admitted" // a policy was
	ended    event = "ended"
)

// crew is the machines of one process.
type crew struct {
	orders
	roots *x509.CertPool
	quiet hclog.Logger

	mu   sync.Mutex
	says *json.Encoder
}

// work is what a crew does: its machines run until there is nothing more to read.
func work(in io.Reader, out io.Writer) error {
	c := &crew{roots: x509.NewCertPool(), quiet: hclog.NewNullLogger(), says: json.NewEncoder(out)}
	if err := json.NewDecoder(in).Decode(&c.orders); err != nil {
		return err
	}
	c.roots.AppendCertsFromPEM(c.Roots)
	var hosts []*host
	for i, identity := range c.Identities {
		h, err := newHost(c, c.First+i, identity)
		if err != nil {
			return err
		}
		hosts = append(hosts, h)
	}
	running, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, h := range hosts {
		all.Go(func() { h.fetcher().Run(running) })
	}
	_, err := io.Copy(io.Discard, in)
	stop()
	all.Wait()
	for _, h := range hosts {
		c.tell(news{Event: ended, Machine: h.number, At: time.Now(), State: h.state})
	}
	return err
}

// tell writes news. Who reads them is there for as long as the crew is.
func (c *crew) tell(n news) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.says.Encode(n); err != nil {
		panic(err)
	}
}

// hired is a crew, seen from the process that measures.
type hired struct {
	process *exec.Cmd
	in      io.WriteCloser
	heard   chan error // why there are no more news
	states  map[int]policy.State
}

// hire starts a crew. The ledger hears of what it tells.
func (f *fleet) hire(o orders) (*hired, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &hired{process: exec.Command(program, crewArgument), heard: make(chan error, 1), states: map[int]policy.State{}}
	c.process.Stderr = os.Stderr
	c.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if c.in, err = c.process.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.process.Start(); err != nil {
		return nil, err
	}
	go func() { c.heard <- c.listen(out, f.ledger) }()
	return c, json.NewEncoder(c.in).Encode(o)
}

// listen reads the news until they end.
func (c *hired) listen(out io.Reader, l *ledger) error {
	for told := json.NewDecoder(out); ; {
		var n news
		if err := told.Decode(&n); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if n.Event == ended {
			c.states[n.Machine] = n.State
		} else {
			l.hear(n)
		}
	}
}

// fallen is an error once the crew is gone.
func (c *hired) fallen() error {
	select {
	case err := <-c.heard:
		c.heard <- err
		return errors.Join(errors.New("a crew of machines ended"), err)
	default:
		return nil
	}
}

// dismiss ends the crew, and waits for what its machines have at the end. Once
// more does nothing.
func (c *hired) dismiss() error {
	c.in.Close() // it may have ended by itself
	err := <-c.heard
	c.heard <- err
	if c.process.ProcessState != nil {
		return err
	}
	return errors.Join(err, c.process.Wait())
}

// spent is what the crew has had of processors up to now, in seconds.
func (c *hired) spent() (float64, error) {
	// The clock of another process, as clock_getcpuclockid(3) makes its number.
	const scheduled = 2
	var t unix.Timespec
	err := unix.ClockGettime(int32(^c.process.Process.Pid<<3|scheduled), &t)
	return time.Duration(t.Nano()).Seconds(), err
}

// balanced dials as a balancer in front of replicas does: the one whose turn it
// is, and where nobody listens there any other.
func balanced(d *net.Dialer, replicas []string, turn int) func(context.Context, string, string) (net.Conn, error) {
	first := turn % len(replicas)
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, replicas[first])
		for _, i := range rand.Perm(len(replicas)) {
			if !errors.Is(err, syscall.ECONNREFUSED) {
				break
			}
			if i != first {
				conn, err = d.DialContext(ctx, network, replicas[i])
			}
		}
		return conn, err
	}
}

// crews is how many it takes for so many machines, with what a process may have
// of descriptors: enoughFiles has seen to it that they are some.
func crews(machines int) (int, error) {
	most, err := mostFiles()
	if err != nil {
		return 0, err
	}
	each := most - spareFiles
	return (machines + each - 1) / each, nil
}
