package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/client"
)

// Where the control plane is, for commands that are not told by flags.
const (
	envControl = "JITGATE_CONTROL"    // its address
	envCA      = "JITGATE_CONTROL_CA" // file with the certificates to trust for it
	envToken   = "JITGATE_TOKEN"      // bearer token
)

// Limits of the files that say how to reach the control plane.
const (
	maxTokenFile = 64 << 10
	maxCAFile    = 1 << 20
)

// controlFlags say where the control plane is and who calls it.
type controlFlags struct{ url, ca, tokenFile string }

func (f *controlFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.url, "control", "", "address of the control plane, like https://jit.example.net:8443 (or $"+envControl+")")
	c.Flags().StringVar(&f.ca, "ca", "", "certificates to trust for it, PEM (or $"+envCA+"; neither: the system's)")
	c.Flags().StringVar(&f.tokenFile, "token-file", "", "file with a bearer token, - for standard input (or $"+envToken+" holds one)")
}

// config resolves how to reach the control plane: a flag goes before the
// environment.
func (f controlFlags) config(c *cobra.Command) (client.Config, error) {
	config := client.Config{URL: f.url, Token: os.Getenv(envToken), UserAgent: "jitgate/" + version}
	if config.URL == "" {
		config.URL = os.Getenv(envControl)
	}
	if config.URL == "" {
		return config, usagef("--control is missing, or $%s: see %s --help", envControl, c.CommandPath())
	}
	if f.tokenFile != "" {
		text, err := readUpTo(c, f.tokenFile, maxTokenFile)
		if err != nil {
			return config, err
		}
		config.Token = strings.TrimSpace(string(text))
		if config.Token == "" || len(text) > maxTokenFile {
			return config, fmt.Errorf("%s is not one line with a bearer token", f.tokenFile)
		}
	}
	if config.Token == "" {
		return config, usagef("--token-file is missing, or $%s: see %s --help", envToken, c.CommandPath())
	}
	ca := f.ca
	if ca == "" {
		ca = os.Getenv(envCA)
	}
	if ca != "" {
		var err error
		if config.CA, err = readUpTo(c, ca, maxCAFile); err != nil {
			return config, err
		}
		if len(config.CA) > maxCAFile {
			return config, fmt.Errorf("%s has more than %d bytes", ca, maxCAFile)
		}
	}
	return config, nil
}

// call runs f with a client of the control plane. An interrupt ends f.
func (f controlFlags) call(c *cobra.Command, run func(context.Context, *client.Client) error) error {
	config, err := f.config(c)
	if err != nil {
		return err
	}
	control, err := client.New(config)
	if err != nil {
		return err
	}
	defer control.Close()
	ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt)
	defer stop()
	err = run(ctx, control)
	if ctx.Err() != nil && c.Context().Err() == nil {
		return errors.New("interrupted")
	}
	return err
}
