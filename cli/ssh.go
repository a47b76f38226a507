package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
)

const (
	defaultLease = 15 * time.Minute
	perAddress   = 5 * time.Second  // to connect to an address that is not the last
	lastAddress  = 40 * time.Second // to the last: agents say within seconds who was turned away
	impatient    = 2 * time.Second  // then it is asked who was turned away
	jitSuffix    = ".jit"           // of names in ssh's settings that go this way
	lastWords    = 15 * time.Second // of a holder that nobody needs any more
)

// sessionFlags are those of commands that hold a port open.
type sessionFlags struct {
	at     controlFlags
	order  holdOrder
	length string
	yes    bool
}

func (f *sessionFlags) add(c *cobra.Command) {
	f.at.add(c)
	c.Flags().StringArrayVar(&f.order.Sources, "source", nil, "address or network to open for; may be repeated (default: where the control plane sees you)")
	c.Flags().StringVar(&f.length, "for", "", "for how long at most, like 90m (default: as long as the policy says)")
	c.Flags().StringVar(&f.order.Reason, "reason", "", "why, for whoever approves and for the record")
	c.Flags().DurationVar(&f.order.Lease, "lease", defaultLease, "how much to ask for at a time, which is how long it stays open should this machine die")
	c.Flags().DurationVar(&f.order.Wait, "wait", 2*time.Minute, "how long to wait for the agent")
	c.Flags().BoolVar(&f.yes, "yes", false, "open without asking for another address of yours that the machine turned away, if its agent takes it for yours too")
}

func (f *sessionFlags) check() (err error) {
	if f.order.Lease < 5*time.Second {
		return usage.Errorf("--lease %s is too short: 5s is the least", f.order.Lease)
	}
	if f.length != "" {
		f.order.Longest, err = isoDuration("--for", f.length)
	}
	return err
}

// words are the flags for another process.
func (f *sessionFlags) words() []string {
	words := f.at.words()
	for _, s := range f.order.Sources {
		words = append(words, "--source", s)
	}
	if f.length != "" {
		words = append(words, "--for", f.length)
	}
	if f.order.Reason != "" {
		words = append(words, "--reason", f.order.Reason)
	}
	if f.yes {
		words = append(words, "--yes")
	}
	return append(words, "--lease", f.order.Lease.String(), "--wait", f.order.Wait.String())
}

// giveToken puts the token into the environment of what is started, where it
// comes from a flag.
func (f *sessionFlags) giveToken(c *cobra.Command) error {
	config, err := f.at.config(c)
	if err != nil {
		return err
	}
	if config.Token != "" {
		return os.Setenv(envToken, config.Token)
	}
	return nil
}

func newSSH() *cobra.Command {
	var f sessionFlags
	var proxy, prepare bool
	c := &cobra.Command{
		Use:   "ssh [USER@]VM [-- ARGUMENT…]",
		Short: "Log in to a guarded machine: ask, wait, connect, give back",
		Long: `Asks for the machine's SSH port, waits until its agent says that it is open, and
runs ssh with the arguments that follow. The port is open for as long as the
session lives, within what the policy allows, and given back when it ends,
however it ends.

Options of ssh and a command go behind --. The exit code is that of ssh.

With --proxy it is a ProxyCommand, for ssh, scp, rsync, Ansible and whatever
else uses ssh (jitgate ssh-config prints the settings). With --prepare it only
opens the port, for an hour unless --for says else, and leaves it so: for Match
exec, and for tools that take no ProxyCommand.`,
		Example: `  jitgate ssh web1
  jitgate ssh root@web1 --reason INC-1 -- -A uptime
  jitgate ssh --proxy web1 22                    # what ssh is told to run`,
		Args: usage.Args(1, -1, "a machine"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := cmp.Or(f.check(), usage.OneOf(c, "proxy", "prepare")); err != nil {
				return err
			}
			switch {
			case proxy:
				return f.proxy(c, args)
			case prepare:
				return f.prepare(c, args)
			}
			return f.ssh(c, args)
		},
	}
	f.add(c)
	c.Flags().BoolVar(&proxy, "proxy", false, "be a ProxyCommand: arguments are host and port, %h %p")
	c.Flags().BoolVar(&prepare, "prepare", false, "open the port and leave it open: arguments are host and, if not 22, port")
	c.ValidArgsFunction = completeVMs(&f.at, tabConfigured, 1)
	return c
}

// target reads the arguments of --proxy and --prepare.
func target(args []string) (word string, port uint16, err error) {
	if len(args) > 2 {
		return "", 0, usage.Errorf("expected a host and a port, got %d arguments", len(args))
	}
	port = sshPort
	if len(args) == 2 {
		n, err := strconv.ParseUint(args[1], 10, 16)
		if err != nil || n == 0 {
			return "", 0, usage.Errorf("%q is not a port, 1 to 65535", args[1])
		}
		port = uint16(n)
	}
	return strings.TrimSuffix(args[0], jitSuffix), port, nil
}

// ssh runs ssh in place of this process, with this program as its way there.
func (f *sessionFlags) ssh(c *cobra.Command, args []string) error {
	program, err := openSSH("ssh")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	user, word, ok := strings.Cut(args[0], "@")
	if !ok {
		user, word = "", args[0]
	}
	if word == "" || strings.HasPrefix(word, "-") {
		return usage.Errorf("%q is not a machine", args[0])
	}
	if err := f.giveToken(c); err != nil {
		return err
	}
	way := append([]string{self, "ssh", "--proxy"}, f.words()...)
	for i := range way {
		way[i] = forProxyCommand(way[i])
	}
	way = append(way, "--", forProxyCommand(word), "%p")
	// ssh knows the machine by its name alone: that is what its host key is kept under.
	run := []string{"ssh", "-o", "ProxyCommand=" + strings.Join(way, " ")}
	if user != "" {
		run = append(run, "-l", user)
	}
	run = append(append(run, word[strings.LastIndex(word, "/")+1:]), args[1:]...)
	code, err := become(program, run)
	if err == nil && code != 0 {
		return exitCode(code)
	}
	return err
}

// exitCode is what another program ended with, which has said why.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// forProxyCommand quotes a word for ssh, which expands % and has a shell run
// the rest.
func forProxyCommand(word string) string {
	word = strings.ReplaceAll(word, "%", "%%")
	if runtime.GOOS == "windows" {
		return `"` + word + `"`
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// prepare opens the port and leaves it open.
func (f *sessionFlags) prepare(c *cobra.Command, args []string) error {
	word, port, err := target(args)
	if err != nil {
		return err
	}
	o := requestOrder{ports: []uint16{port}, sources: f.order.Sources, length: f.length, reason: f.order.Reason, wait: f.order.Wait}
	// Match exec is run for each host that is connected to: nothing on
	// standard output.
	c.SetOut(c.ErrOrStderr())
	return f.at.callRequest(c, o, word)
}

// proxy connects its input and output to the port of a machine.
func (f *sessionFlags) proxy(c *cobra.Command, args []string) error {
	word, port, err := target(args)
	if err != nil {
		return err
	}
	f.order.VM, f.order.Port = word, port
	ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt)
	defer stop()
	h, err := f.startHolder(ctx, c)
	if err != nil {
		return err
	}
	defer h.end()
	conn, err := f.connect(ctx, c, h)
	if err != nil {
		return err
	}
	defer conn.Close()
	go h.listen()
	return pump(ctx, conn, c.InOrStdin(), c.OutOrStdout())
}

// pump carries bytes both ways, until the other side ends or ctx does.
func pump(ctx context.Context, conn net.Conn, in io.Reader, out io.Writer) error {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	go func() {
		io.Copy(conn, in)
		if t, ok := conn.(*net.TCPConn); ok {
			t.CloseWrite()
		}
	}()
	_, err := io.Copy(out, conn)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

// heldBy is a running holder, as its user sees it.
type heldBy struct {
	cmd     *exec.Cmd
	tell    *json.Encoder
	pipe    io.Closer
	answers *bufio.Scanner
	say     io.Writer
	ready   ready
}

// startHolder starts a holder and waits until the port is open.
func (f *sessionFlags) startHolder(ctx context.Context, c *cobra.Command) (*heldBy, error) {
	if err := f.giveToken(c); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// It outlives this process, and is in nobody's way: no terminal, and none
	// of the pipes of whoever started this one.
	cmd := exec.Command(self, append([]string{"hold"}, f.at.words()...)...)
	cmd.SysProcAttr = ownSession()
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	h := &heldBy{cmd: cmd, tell: json.NewEncoder(in), pipe: in, answers: bufio.NewScanner(out), say: c.ErrOrStderr()}
	h.answers.Buffer(nil, maxHoldLine)
	stop := context.AfterFunc(ctx, func() { in.Close() }) // it gives back what it has, and ends
	defer stop()
	if err := h.tell.Encode(f.order); err != nil {
		h.end()
		return nil, err
	}
	if _, err := h.next(); err != nil {
		h.end()
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		return nil, err
	}
	return h, nil
}

// next reads answers up to one that is no word to a person.
func (h *heldBy) next() (turnedAway []denied, err error) {
	for h.answers.Scan() {
		var a holdAnswer
		if err := json.Unmarshal(h.answers.Bytes(), &a); err != nil {
			return nil, err
		}
		switch {
		case a.Say != "":
			fmt.Fprintf(h.say, "jitgate: %s\n", a.Say)
		case a.Usage:
			return nil, usage.Errorf("%s", a.Error)
		case a.Error != "":
			return nil, errors.New(a.Error)
		case a.Ready != nil:
			h.ready = *a.Ready
			return nil, nil
		default:
			return a.Denied, nil
		}
	}
	return nil, errors.New("what holds the port open has ended")
}

// listen passes on what the holder says while the port is used.
func (h *heldBy) listen() {
	for {
		if _, err := h.next(); err != nil {
			return
		}
	}
}

// end lets the holder give back what it has. It does so by itself: nobody
// waits for it.
func (h *heldBy) end() { h.pipe.Close() }

// wait lets the holder give back what it has, and waits until it has.
func (h *heldBy) wait() {
	h.end()
	timer := time.AfterFunc(lastWords, func() { h.cmd.Process.Kill() })
	defer timer.Stop()
	_ = h.cmd.Wait() // it said what went wrong, and the port ends on time
}

// connect connects to the machine. If nothing answers, and the machine says
// that it turned somebody away meanwhile, that may be this machine behind
// another address than the control plane sees: it is offered to open for that.
func (f *sessionFlags) connect(ctx context.Context, c *cobra.Command, h *heldBy) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	offered := []string{}
	for {
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan result, 1)
		go func() {
			conn, err := dial(ctx, h.ready)
			done <- result{conn, err}
		}()
		again := false
		for look := time.After(impatient); !again; {
			select {
			case r := <-done:
				cancel()
				return r.conn, r.err
			case <-look:
				source, err := f.offer(ctx, c, h, &offered)
				if err != nil {
					cancel()
					return nil, err
				}
				again = source != ""
				look = time.After(impatient)
			}
		}
		cancel()
		if r := <-done; r.err == nil {
			return r.conn, nil
		}
	}
}

// offer asks who was turned away, and opens for them if they are agreed to be
// the same person. It returns the address it opened for.
func (f *sessionFlags) offer(ctx context.Context, c *cobra.Command, h *heldBy, offered *[]string) (string, error) {
	if err := h.tell.Encode(holdCall{Denied: true}); err != nil {
		return "", err
	}
	list, err := h.next()
	if err != nil {
		return "", err
	}
	list = slices.DeleteFunc(list, func(d denied) bool { return slices.Contains(*offered, d.Source) })
	var sources []string
	for _, d := range list {
		sources = append(sources, d.Source)
	}
	*offered = append(*offered, sources...)
	switch len(list) {
	case 0:
		return "", nil
	case 1:
	default:
		fmt.Fprintf(h.say, "jitgate: %s turned away %s: if one of them is you, say it with --source\n", printable(h.ready.Name), abridge(sources))
		return "", nil
	}
	d := list[0]
	fmt.Fprintf(h.say, "jitgate: %s turned away a connection to port %d from %s. That is you if your provider or a proxy gives you that address.\n", printable(h.ready.Name), h.ready.Port, d.Source)
	// Without anybody to look at it, only what the agent too takes for us:
	// whoever knocks at the right moment is not let in.
	if !(f.yes && d.Ours) && !askTerminal(ctx, "Open for "+d.Source+" too? [y/N] ") {
		return "", fmt.Errorf("%s does not answer, and is not opened for %s: --source %s does that", printable(h.ready.Name), d.Source, d.Source)
	}
	if err := h.tell.Encode(holdCall{Source: d.Source}); err != nil {
		return "", err
	}
	_, err = h.next()
	return d.Source, err
}

// askTerminal asks the person at the terminal, even where input and output are
// pipes. Nobody there is no.
func askTerminal(ctx context.Context, question string) bool {
	in, out := "/dev/tty", "/dev/tty"
	if runtime.GOOS == "windows" {
		in, out = "CONIN$", "CONOUT$"
	}
	r, err := os.Open(in)
	if err != nil {
		return false
	}
	w, err := os.OpenFile(out, os.O_WRONLY, 0)
	if err != nil {
		r.Close()
		return false
	}
	defer w.Close()
	fmt.Fprint(w, question)
	answered := make(chan string, 1)
	go func() {
		defer r.Close()
		line, _ := bufio.NewReader(io.LimitReader(r, 1<<10)).ReadString('\n')
		answered <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case a := <-answered:
		return a == "y" || a == "yes"
	case <-ctx.Done():
		return false
	}
}

// dial connects to the first address that answers, from the address that it
// was opened for where that is this machine's own.
func dial(ctx context.Context, to ready) (net.Conn, error) {
	var wrong error
	own := ownAddresses()
	for i, a := range to.Addresses {
		d := net.Dialer{Timeout: perAddress}
		if i == len(to.Addresses)-1 {
			d.Timeout = lastAddress
		}
		if slices.Contains(own, to.From) && to.From.Is4() == a.Is4() {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.From, 0))
		}
		conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(a, to.Port).String())
		if err == nil {
			return conn, nil
		}
		wrong = errors.Join(wrong, err)
	}
	return nil, fmt.Errorf("%s does not answer: %w", printable(to.Name), wrong)
}

func newSSHConfig() *cobra.Command {
	var at controlFlags
	var install string
	c := &cobra.Command{
		Use:   "ssh-config [NAME…]",
		Short: "Print settings for ~/.ssh/config, so that ssh goes through the guard",
		Long: `Prints what makes ssh, and all that uses it, ask for access by itself: scp,
rsync, Ansible, editors. Without NAME it is for names that end in .jit: ssh
web1.jit. NAME is as in ssh's Host, such as web1 or web*.`,
		Example: `  jitgate ssh-config >> ~/.ssh/config && ssh web1.jit
  jitgate ssh-config 'web*' --context production`,
		Args: func(_ *cobra.Command, args []string) error {
			for _, a := range args {
				if a == "" || strings.ContainsAny(a, " \t\n\r\"#") {
					return usage.Errorf("%q is not a name for Host", a)
				}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			self := install
			if self == "" {
				var err error
				if self, err = os.Executable(); err != nil {
					return err
				}
			}
			names := cmp.Or(strings.Join(args, " "), "*"+jitSuffix)
			way := append([]string{self, "ssh", "--proxy"}, at.words()...)
			for i := range way {
				way[i] = bare(way[i])
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "# jitgate: asks for access, waits until it is open, gives it back at the end.\nHost %s\n    ProxyCommand %s -- %%h %%p\n", names, strings.Join(way, " "))
			return err
		},
	}
	at.add(c)
	c.Flags().StringVar(&install, "program", "", "where jitgate is (default: where this one runs from)")
	c.ValidArgsFunction = completeVMs(&at, tabConfigured, 0)
	return c
}

// bare quotes a word for ProxyCommand only if it needs it.
func bare(word string) string {
	if word != "" && strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._:-") == "" {
		return word
	}
	return forProxyCommand(word)
}
