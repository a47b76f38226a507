package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/client"
	"github.com/jitgate/jitgate/signin"
)

// loginOrder is what jitgate login is asked for.
type loginOrder struct {
	ca, tokenFile, name, issuer string
	device, browser             bool
	asJSON                      bool
}

func newLogin() *cobra.Command {
	var o loginOrder
	c := &cobra.Command{
		Use:   "login [URL]",
		Short: "Sign in to a control plane",
		Long: `Signs in to a control plane and keeps it as a context, which becomes the current
one. Without URL it signs in again where it was.

The control plane says which issuer people sign in at. With a browser on this
machine that is used; else, or with --device, a code is shown to type in any
other. With --token-file nobody is asked: for automation, and for a control
plane's first token.

What is kept is in your own configuration directory, in a file that only you
can read.`,
		Example: `  jitgate login https://jit.example.net:8443
  jitgate login https://jit.example.net:8443 --device
  jitgate login https://center:8443 --ca ca.pem --token-file admin.token --name lab`,
		Args: usage.Args(0, 1, "at most the address of a control plane"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := usage.OneOf(c, "device", "browser", "token-file"); err != nil {
				return err
			}
			return login(c, o, args)
		},
	}
	c.Flags().StringVar(&o.ca, "ca", "", "certificates to trust for the control plane, PEM (or $"+envCA+"; neither: the system's)")
	c.Flags().StringVar(&o.tokenFile, "token-file", "", "file with a bearer token, - for standard input")
	c.Flags().StringVar(&o.name, "name", "", "what to call the context (default: the control plane's host)")
	c.Flags().StringVar(&o.issuer, "issuer", "", "which issuer, where the control plane has several")
	c.Flags().BoolVar(&o.device, "device", false, "show a code to type in a browser anywhere")
	c.Flags().BoolVar(&o.browser, "browser", false, "open the browser of this machine")
	jsonFlag(c, &o.asJSON)
	return c
}

func login(c *cobra.Command, o loginOrder, args []string) error {
	file, err := loadContexts()
	if err != nil {
		return err
	}
	name, kept, err := o.which(file, args)
	if err != nil {
		return err
	}
	if o.name == "" && !contextName.MatchString(name) {
		name = "default"
	}
	if !contextName.MatchString(name) {
		return usage.Errorf("--name %q is not one to 64 letters, digits, dots, dashes and underscores", name)
	}
	text, err := controlFlags{ca: o.ca}.authorities(c, kept.CA)
	if err != nil {
		return err
	}
	next := controlContext{URL: strings.TrimRight(kept.URL, "/"), CA: string(text)}
	config := client.Config{URL: next.URL, CA: text, UserAgent: "jitgate/" + version}
	ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt)
	defer stop()
	if o.tokenFile != "" {
		if next.Token, err = readToken(c, o.tokenFile); err != nil {
			return err
		}
		config.Token = next.Token
	} else {
		t, i, err := o.signIn(ctx, c, config)
		if ctx.Err() != nil && c.Context().Err() == nil {
			return errors.New("interrupted: not signed in")
		}
		if err != nil {
			return err
		}
		i.take(t)
		next.Issuer, config.Token = &i, t.Bearer
	}
	// What does not get in is not kept.
	control, err := client.New(config)
	if err != nil {
		return err
	}
	defer control.Close()
	who, err := control.WhoAmI(ctx)
	if err != nil {
		return err
	}
	err = changeContexts(func(f *contextFile) error {
		f.Contexts[name], f.Current = next, name
		return nil
	})
	if err != nil {
		return err
	}
	if o.asJSON {
		return printJSON(c.OutOrStdout(), who)
	}
	out := c.OutOrStdout()
	fmt.Fprintf(out, "signed in to %s as %s (context %s)\n", next.URL, printable(cmp.Or(who.Name, who.ID)), name)
	if len(who.Rights) == 0 {
		fmt.Fprintf(out, "you have no role there yet: somebody who may gives you one, as %s\n", printable(who.ID))
	}
	return nil
}

// which is the context to sign in to.
func (o loginOrder) which(file contextFile, args []string) (name string, kept controlContext, err error) {
	address := os.Getenv(envControl)
	if len(args) > 0 {
		address = args[0]
	}
	if address == "" {
		if name, kept, err = file.pick(o.name); err == nil && name == "" {
			err = usage.Errorf("the address of a control plane is missing: jitgate login https://…")
		}
		return name, kept, err
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return "", kept, usage.Errorf("%q is not the address of a control plane, like https://jit.example.net:8443", address)
	}
	name = o.name
	for n, k := range file.Contexts {
		if k.URL == strings.TrimRight(address, "/") && (name == "" || name == n) {
			name, kept = n, k
		}
	}
	kept.URL = address
	return cmp.Or(name, u.Hostname()), kept, nil
}

// signIn signs in at the issuer that the control plane names.
func (o loginOrder) signIn(ctx context.Context, c *cobra.Command, config client.Config) (signin.Token, issuerData, error) {
	l, err := client.Discover(ctx, config)
	if err != nil {
		return signin.Token{}, issuerData{}, err
	}
	at, err := chooseIssuer(l.Issuers, o.issuer)
	if err != nil {
		return signin.Token{}, issuerData{}, err
	}
	i := issuerData{URL: at.Issuer, Discovery: at.Discovery, ClientID: at.ClientID, Scopes: at.Scopes, CA: at.CA}
	p, err := signin.Open(ctx, i.issuer())
	if err != nil {
		return signin.Token{}, i, err
	}
	say := c.ErrOrStderr()
	if o.browser || !o.device && p.HasBrowser() && (hasScreen() || !p.HasDevice()) {
		t, err := p.Browser(ctx, func(address string) error {
			fmt.Fprintf(say, "Sign in with the browser. If it does not open, go to\n\n  %s\n\n", address)
			// The address is on the screen: whether a browser came is not known for sure.
			_ = openInBrowser(address)
			return nil
		})
		return t, i, err
	}
	t, err := p.Device(ctx, func(p signin.Prompt) { showPrompt(say, p) })
	return t, i, err
}

func showPrompt(out io.Writer, p signin.Prompt) {
	fmt.Fprintf(out, "In any browser go to\n\n  %s\n\nand type the code  %s  (good for %s)\n", p.Address, p.Code, time.Until(p.Expires).Round(time.Minute))
	if p.Complete != "" {
		fmt.Fprintf(out, "or open %s\n", p.Complete)
	}
}

// chooseIssuer takes the only one there is, or the one that is named.
func chooseIssuer(all []client.LoginIssuer, named string) (client.LoginIssuer, error) {
	if len(all) == 0 {
		return client.LoginIssuer{}, errors.New("the control plane names no issuer to sign in at (client_id in its [[oidc]]): use --token-file")
	}
	var names []string
	for _, i := range all {
		if named == i.Issuer || named == "" && len(all) == 1 {
			return i, nil
		}
		names = append(names, printable(i.Issuer))
	}
	return client.LoginIssuer{}, usage.Errorf("--issuer must be one of %s", strings.Join(names, ", "))
}

// hasScreen reports whether a browser could be shown here.
func hasScreen() bool {
	if os.Getenv("SSH_CONNECTION") != "" {
		return false
	}
	return runtime.GOOS != "linux" || os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != ""
}

// openInBrowser shows an address that begins with https.
func openInBrowser(address string) error {
	switch runtime.GOOS {
	case "windows":
		return exec.Command("rundll32", "url.dll,FileProtocolHandler", address).Start()
	case "darwin":
		return exec.Command("open", address).Start()
	}
	return exec.Command("xdg-open", address).Start()
}

func newLogout() *cobra.Command {
	var name string
	var all bool
	c := &cobra.Command{
		Use:   "logout",
		Short: "Forget what you signed in with",
		Long: `Forgets the current context, or the one that is named, with its tokens. A static
token stays good until it is revoked on the control plane.`,
		Example: "  jitgate logout --all",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			if all {
				return changeContexts(func(f *contextFile) error { *f = contextFile{Contexts: map[string]controlContext{}}; return nil })
			}
			f, err := loadContexts()
			if err != nil {
				return err
			}
			picked, _, err := f.pick(name)
			if err == nil && picked == "" {
				err = errors.New("you are not signed in")
			}
			if err != nil {
				return err
			}
			return forgetContext(picked)
		},
	}
	c.Flags().StringVar(&name, "context", "", "another than the current one")
	c.Flags().BoolVar(&all, "all", false, "forget every context")
	return c
}
