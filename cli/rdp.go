package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
)

func newRDP() *cobra.Command {
	var f sessionFlags
	var file string
	c := &cobra.Command{
		Use:   "rdp [USER@]VM",
		Short: "Open the desktop of a guarded machine: ask, wait, connect, give back",
		Long: `Asks for the machine's RDP port, waits until its agent says that it is open, and
opens the desktop: with mstsc on Windows, with xfreerdp elsewhere. The port is
given back when that ends.

With --file it writes a file for any RDP client, and holds the port until it is
interrupted.`,
		Example: `  jitgate rdp win1 --reason INC-1
  jitgate rdp alice@win1 --file win1.rdp`,
		Args: usage.Args(1, 1, "a machine"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return f.rdp(c, args[0], file)
		},
	}
	f.add(c)
	c.Flags().Uint16Var(&f.order.Port, "port", rdpPort, "the port")
	c.Flags().StringVar(&file, "file", "", "write an .rdp file here instead of opening it")
	c.ValidArgsFunction = completeVMs(&f.at, tabConfigured, 1)
	return c
}

func (f *sessionFlags) rdp(c *cobra.Command, whom, file string) error {
	user, word, ok := strings.Cut(whom, "@")
	if !ok {
		user, word = "", whom
	}
	var program string
	if file == "" {
		var err error
		if program, err = desktopClient(); err != nil {
			return err
		}
	}
	f.order.VM = strings.TrimSuffix(word, jitSuffix)
	ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	h, err := f.startHolder(ctx, c)
	if err != nil {
		return err
	}
	defer h.wait()
	// Nothing is sent over it: it shows that there is a way, and which.
	conn, err := f.connect(ctx, c, h)
	if err != nil {
		return err
	}
	at := conn.RemoteAddr().String()
	conn.Close()
	if file != "" {
		if err := writeOutput(c, file, rdpFile(at, user), 0o600); err != nil {
			return err
		}
		fmt.Fprintf(c.ErrOrStderr(), "%s is open at %s until you interrupt this\n", printable(h.ready.Name), at)
		go h.listen()
		<-ctx.Done()
		return nil
	}
	go h.listen()
	return openDesktop(ctx, c, program, at, user)
}

// desktopClient is the program that shows desktops here.
func desktopClient() (string, error) {
	names := []string{"xfreerdp3", "xfreerdp"}
	if runtime.GOOS == "windows" {
		names = []string{"mstsc.exe"}
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no %s here: use --file and your own RDP client", strings.Join(names, " or "))
}

// openDesktop shows a desktop until the person closes it.
func openDesktop(ctx context.Context, c *cobra.Command, program, at, user string) error {
	args := []string{"/v:" + at}
	if runtime.GOOS == "windows" {
		dir, err := os.MkdirTemp("", "jitgate-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "desktop.rdp")
		if err := os.WriteFile(path, rdpFile(at, user), 0o600); err != nil {
			return err
		}
		args = []string{path}
	} else if user != "" {
		args = append(args, "/u:"+user)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr()
	err := cmd.Run()
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if failed, ok := errors.AsType[*exec.ExitError](err); ok && failed.ExitCode() > 0 {
		return exitCode(failed.ExitCode())
	}
	return err
}

// rdpFile is what RDP clients read. A user cannot add a line to it.
func rdpFile(at, user string) []byte {
	text := "full address:s:" + at + "\r\nprompt for credentials:i:1\r\n"
	if user != "" {
		text += "username:s:" + printable(user) + "\r\n"
	}
	return []byte(text)
}
