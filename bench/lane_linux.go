package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Ports of a lane's far end, which nobody guards.
const (
	connectPort  = 8080
	answeredPort = 7777
	oneWayPort   = 7778
)

const (
	burstDatagrams = 500
	burstConnects  = 50
	receiveBuffer  = 8 << 20 // several bursts
)

// lane is the way from a client of its own into a world.
type lane struct {
	inside, outside  *world
	listener         int
	answered, oneWay wire
	costs
}

// costs are CPU times for one datagram or connection, round by round.
type costs struct{ ofAnswered, ofOneWay, ofConnect sample }

// wire is a connected UDP socket and the one that receives from it. The zero
// wire is not laid yet.
type wire struct{ from, to int }

// newLane leads into inside, which it takes over.
func newLane(inside *world) (l *lane, err error) {
	l = &lane{inside: inside}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.outside, err = inside.newOutside(); err != nil {
		return l, err
	}
	if err := inside.do(l.listen); err != nil {
		return l, err
	}
	for port, w := range map[int]*wire{answeredPort: &l.answered, oneWayPort: &l.oneWay} {
		if err := w.lay(inside, l.outside, port); err != nil {
			return l, err
		}
	}
	return l, l.answered.greet()
}

func (l *lane) close() {
	l.answered.close()
	l.oneWay.close()
	if l.listener > 0 {
		unix.Close(l.listener)
	}
	if l.outside != nil {
		l.outside.close()
	}
	l.inside.close()
}

func inside(port int) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: port, Addr: insideAddress.As4()}
}

func (l *lane) listen() (err error) {
	if l.listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return os.NewSyscallError("socket", err)
	}
	return errors.Join(
		os.NewSyscallError("bind", unix.Bind(l.listener, inside(connectPort))),
		os.NewSyscallError("listen", unix.Listen(l.listener, 2*burstConnects)))
}

func (w *wire) lay(to, from *world, port int) error {
	return errors.Join(
		to.do(func() (err error) {
			if w.to, err = datagramSocket(); err != nil {
				return err
			}
			return errors.Join(
				unix.SetsockoptInt(w.to, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
				unix.Bind(w.to, inside(port)))
		}),
		from.do(func() (err error) {
			if w.from, err = datagramSocket(); err != nil {
				return err
			}
			return unix.Connect(w.from, inside(port))
		}))
}

func (w *wire) close() {
	for _, fd := range []int{w.from, w.to} {
		if fd > 0 {
			unix.Close(fd)
		}
	}
}

func datagramSocket() (int, error) {
	return unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

// greet has the receiver answer: from then on conntrack takes the datagrams
// for parts of an established conversation.
func (w *wire) greet() error {
	var b [64]byte
	for range 200 {
		_, _ = unix.Write(w.from, b[:]) // refused or lost until the cable is up
		if _, peer, err := unix.Recvfrom(w.to, b[:], 0); err == nil {
			return unix.Sendto(w.to, b[:], 0, peer)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("no datagram arrives")
}

// turn measures one burst of each kind.
func (l *lane) turn() error {
	return l.outside.do(func() error {
		for _, kind := range []struct {
			measure func() (time.Duration, error)
			into    *sample
		}{{l.answered.burst, &l.ofAnswered}, {l.oneWay.burst, &l.ofOneWay}, {l.connects, &l.ofConnect}} {
			each, err := kind.measure()
			if err != nil {
				return err
			}
			*kind.into = append(*kind.into, each)
		}
		return nil
	})
}

// threadTime is the CPU time of the calling thread.
func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic(err) // no Linux lacks it
	}
	return time.Duration(ts.Nano())
}

// burst returns the cost of one datagram of many, on one thread that stays
// outside. All have to arrive; to receive them is not measured.
func (w *wire) burst() (each time.Duration, err error) {
	w.drain()
	var b [64]byte
	from := threadTime()
	for range burstDatagrams {
		if _, err := unix.Write(w.from, b[:]); err != nil {
			return 0, os.NewSyscallError("write", err)
		}
	}
	each = (threadTime() - from) / burstDatagrams
	if n := w.drain(); n != burstDatagrams {
		return 0, fmt.Errorf("%d of %d datagrams arrived", n, burstDatagrams)
	}
	return each, nil
}

// drain reads what has arrived, and says how much.
func (w *wire) drain() (n int) {
	var b [64]byte
	for {
		if _, err := unix.Read(w.to, b[:]); err != nil {
			return n // EAGAIN
		}
		n++
	}
}

// connects returns the cost of one connection of many, each from a port of
// its own and reset by its client. All have to arrive; to accept them is not
// measured.
func (l *lane) connects() (each time.Duration, err error) {
	to := inside(connectPort)
	from := threadTime()
	for range burstConnects {
		if err := connectAndReset(to); err != nil {
			return 0, err
		}
	}
	each = (threadTime() - from) / burstConnects
	for n := 0; ; n++ {
		fd, _, err := unix.Accept4(l.listener, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EAGAIN) && n == burstConnects {
			return each, nil
		}
		if err != nil {
			return 0, fmt.Errorf("%d of %d connections arrived: %w", n, burstConnects, err)
		}
		unix.Close(fd)
	}
}

func connectAndReset(to unix.Sockaddr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	return errors.Join(
		os.NewSyscallError("setsockopt", unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})),
		os.NewSyscallError("connect", unix.Connect(fd, to)))
}
