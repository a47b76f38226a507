package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
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
type controlFlags struct{ url, ca, tokenFile, context string }

func (f *controlFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.url, "control", "", "address of the control plane, like https://jit.example.net:8443 (or $"+envControl+"; neither: the context's)")
	c.Flags().StringVar(&f.ca, "ca", "", "certificates to trust for it, PEM (or $"+envCA+"; neither: the system's)")
	c.Flags().StringVar(&f.tokenFile, "token-file", "", "file with a bearer token, - for standard input (or $"+envToken+" holds one)")
	c.Flags().StringVar(&f.context, "context", "", "what jitgate login has kept under this name (or $"+envContext+"; neither: the current one)")
	// The names are the operator's own, so that this cannot fail.
	_ = c.RegisterFlagCompletionFunc("context", func(c *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return completeContexts(c, nil, typed)
	})
}

// words are the flags for another process that runs in place of this one. Its
// token comes in the environment.
func (f controlFlags) words() (words []string) {
	for _, p := range []struct{ name, value string }{{"control", f.url}, {"ca", f.ca}, {"context", f.context}} {
		if p.value != "" {
			words = append(words, "--"+p.name, p.value)
		}
	}
	return words
}

// config resolves how to reach the control plane: a flag goes before the
// environment, and both go before what login has kept. What it has kept for
// one control plane is for no other.
func (f controlFlags) config(c *cobra.Command) (client.Config, error) {
	config := client.Config{URL: f.url, Token: os.Getenv(envToken), UserAgent: "jitgate/" + version}
	if config.URL == "" && f.context == "" {
		config.URL = os.Getenv(envControl)
	}
	file, err := loadContexts()
	if err != nil {
		return config, err
	}
	var name string
	var kept controlContext
	if config.URL == "" {
		if name, kept, err = file.pick(f.context); err != nil {
			return config, err
		}
		config.URL = kept.URL
	} else {
		for n, k := range file.Contexts {
			if k.URL == config.URL {
				name, kept = n, k
			}
		}
	}
	if config.URL == "" {
		return config, usage.Errorf("--control is missing, or $%s, or sign in with jitgate login: see %s --help", envControl, c.CommandPath())
	}
	if config.CA, err = f.authorities(c, kept.CA); err != nil {
		return config, err
	}
	if f.tokenFile != "" {
		if config.Token, err = readToken(c, f.tokenFile); err != nil {
			return config, err
		}
	}
	switch {
	case config.Token != "":
	case kept.Issuer != nil:
		config.Bearer = bearerOf(name, kept)
	default:
		config.Token = kept.Token
	}
	if config.Token == "" && config.Bearer == nil {
		return config, usage.Errorf("--token-file is missing, or $%s, or sign in with jitgate login %s: see %s --help", envToken, config.URL, c.CommandPath())
	}
	return config, nil
}

// authorities are the certificates to trust, nil for the system's.
func (f controlFlags) authorities(c *cobra.Command, kept string) ([]byte, error) {
	path := f.ca
	if path == "" {
		path = os.Getenv(envCA)
	}
	if path == "" {
		if kept == "" {
			return nil, nil
		}
		return []byte(kept), nil
	}
	text, err := readUpTo(c, path, maxCAFile)
	if err == nil && len(text) > maxCAFile {
		err = fmt.Errorf("%s has more than %d bytes", path, maxCAFile)
	}
	return text, err
}

// readToken reads a file with a bearer token.
func readToken(c *cobra.Command, path string) (string, error) {
	text, err := readUpTo(c, path, maxTokenFile)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	if token == "" || len(text) > maxTokenFile {
		return "", fmt.Errorf("%s is not one line with a bearer token", path)
	}
	return token, nil
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
