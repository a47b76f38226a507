package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/signin"
)

// envContext names the context to use in place of the current one.
const envContext = "JITGATE_CONTEXT"

const maxContexts = 4 << 20 // bytes of the file

// contextFile is what an operator's own file holds: the control planes they
// use, and what they sign in to each with.
type contextFile struct {
	Current  string                    `json:"current,omitempty"`
	Contexts map[string]controlContext `json:"contexts"`
}

// controlContext is one control plane.
type controlContext struct {
	URL    string      `json:"url"`
	CA     string      `json:"ca,omitempty"`    // PEM; empty: the system's
	Token  string      `json:"token,omitempty"` // one that lasts; empty: there is none, or an issuer's
	Issuer *issuerData `json:"issuer,omitempty"`
}

// issuerData is what is needed to get the next token of an issuer.
type issuerData struct {
	URL       string    `json:"url"`
	Discovery string    `json:"discovery,omitempty"`
	ClientID  string    `json:"clientId"`
	Scopes    []string  `json:"scopes"`
	CA        string    `json:"ca,omitempty"`
	Token     string    `json:"token"`
	Refresh   string    `json:"refresh,omitempty"`
	Expires   time.Time `json:"expires,omitzero"`
}

func (i issuerData) issuer() signin.Issuer {
	return signin.Issuer{URL: i.URL, Discovery: i.Discovery, ClientID: i.ClientID, Scopes: i.Scopes, CA: []byte(i.CA)}
}

func (i *issuerData) take(t signin.Token) {
	i.Token, i.Refresh, i.Expires = t.Bearer, t.Refresh, t.Expires
}

// contextName is one that can be typed, and be part of a file's name.
var contextName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func contextPath() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "jitgate", "contexts.json"), nil
}

// loadContexts reads the file; one that is not there is empty. A file that
// others can read is refused: it has tokens in it.
func loadContexts() (contextFile, error) {
	none := contextFile{Contexts: map[string]controlContext{}}
	path, err := contextPath()
	if err != nil {
		return none, nil // nobody's home directory: nobody has signed in
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	} else if err != nil {
		return none, err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return none, fmt.Errorf("%s has tokens in it and others may read it: chmod 600 it, and sign in anew if they have", path)
	}
	if info.Size() > maxContexts {
		return none, fmt.Errorf("%s has more than %d bytes", path, maxContexts)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return none, err
	}
	return parseContexts(path, text)
}

func parseContexts(path string, text []byte) (contextFile, error) {
	var f contextFile
	if err := json.Unmarshal(text, &f); err != nil {
		return contextFile{}, fmt.Errorf("%s: %w: remove it and sign in anew", path, err)
	}
	if f.Contexts == nil {
		f.Contexts = map[string]controlContext{}
	}
	return f, nil
}

// changeContexts changes the file, whole or not at all. Others who change it
// at the same time wait: a refresh token may be used once.
func changeContexts(change func(*contextFile) error) error {
	path, err := contextPath()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	lock, err := lockFile(path+".lock", exclusive)
	if err != nil {
		return err
	}
	defer lock.Close()
	f, err := loadContexts()
	if err != nil {
		return err
	}
	if err := change(&f); err != nil {
		return err
	}
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return writeOutput(nil, path, append(text, '\n'), 0o600)
}

// pick is the context to use: that of a name, else the environment's, else
// the current one. There may be none.
func (f contextFile) pick(name string) (string, controlContext, error) {
	from := "--context"
	if name == "" {
		name, from = os.Getenv(envContext), "$"+envContext
	}
	if name == "" {
		name, from = f.Current, "the current context"
	}
	if name == "" {
		return "", controlContext{}, nil
	}
	c, ok := f.Contexts[name]
	if !ok {
		return "", c, fmt.Errorf("%s is %q, which there is not: see jitgate context list", from, printable(name))
	}
	return name, c, nil
}

// early is how long before its end a token is not used any more.
const early = time.Minute

// bearerOf returns what gives the token of a context's issuer, and gets the
// next one when its time comes.
func bearerOf(name string, c controlContext) func(context.Context) (string, error) {
	var mu sync.Mutex
	return func(ctx context.Context) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		i := c.Issuer
		if i.Expires.IsZero() || time.Until(i.Expires) > early {
			return i.Token, nil
		}
		err := changeContexts(func(f *contextFile) error {
			// Another process may have been here first.
			now, ok := f.Contexts[name]
			if !ok || now.Issuer == nil || now.URL != c.URL {
				return fmt.Errorf("signed out of %s meanwhile: sign in with jitgate login", c.URL)
			}
			if time.Until(now.Issuer.Expires) <= early {
				if err := renew(ctx, now.Issuer); err != nil {
					return err
				}
			}
			f.Contexts[name], c = now, now
			return nil
		})
		if err != nil {
			return "", err
		}
		return c.Issuer.Token, nil
	}
}

// renew gets the next token.
func renew(ctx context.Context, i *issuerData) error {
	const again = "sign in again with jitgate login"
	if i.Refresh == "" {
		return errors.New("the token has expired, and the issuer gave none to renew it with: " + again)
	}
	p, err := signin.Open(ctx, i.issuer())
	if err != nil {
		return err
	}
	t, err := p.Refresh(ctx, i.Refresh)
	if _, refused := errors.AsType[*signin.Refusal](err); refused {
		return fmt.Errorf("%w: %s", err, again)
	} else if err != nil {
		return err
	}
	i.take(t)
	return nil
}

func newContext() *cobra.Command {
	return usage.Group(&cobra.Command{
		Use:   "context",
		Short: "Choose among several control planes",
		Long: `jitgate login keeps one context for each control plane. One of them is the
current one, which commands use unless --context or $JITGATE_CONTEXT names
another, or --control or $JITGATE_CONTROL says an address.`,
		Example: `  jitgate context list
  jitgate context use production`,
	}, newContextList(), newContextUse(), newContextDelete())
}

// contextView is an element of what context list --json prints.
type contextView struct {
	Name    string    `json:"name"`
	Current bool      `json:"current"`
	URL     string    `json:"url"`
	Kind    string    `json:"kind"` // token or issuer
	Issuer  string    `json:"issuer,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
}

func newContextList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the control planes you have signed in to",
		Example: "  jitgate context list --json",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := loadContexts()
			if err != nil {
				return err
			}
			views := []contextView{}
			for _, name := range slices.Sorted(maps.Keys(f.Contexts)) {
				c := f.Contexts[name]
				v := contextView{Name: name, Current: name == f.Current, URL: c.URL, Kind: "token"}
				if c.Issuer != nil {
					v.Kind, v.Issuer, v.Expires = "issuer", c.Issuer.URL, c.Issuer.Expires
				}
				views = append(views, v)
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), views)
			}
			if len(views) == 0 {
				_, err := fmt.Fprintln(c.OutOrStdout(), "none: sign in with jitgate login https://…")
				return err
			}
			t := table{head: []string{"", "NAME", "CONTROL PLANE", "SIGNED IN BY"}}
			for _, v := range views {
				mark := ""
				if v.Current {
					mark = "*"
				}
				by := "a token"
				if v.Issuer != "" {
					by = v.Issuer
				}
				t.add(plain(mark), plain(v.Name), plain(v.URL), plain(by))
			}
			return t.print(c.OutOrStdout())
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

// completeContexts completes the name of a context.
func completeContexts(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	f, err := loadContexts()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return slices.Sorted(maps.Keys(f.Contexts)), cobra.ShellCompDirectiveNoFileComp
}

func newContextUse() *cobra.Command {
	return &cobra.Command{
		Use:               "use NAME",
		Short:             "Make a control plane the one that commands use",
		Example:           "  jitgate context use production",
		Args:              usage.Args(1, 1, "the name of a context"),
		ValidArgsFunction: completeContexts,
		RunE: func(c *cobra.Command, args []string) error {
			return changeContexts(func(f *contextFile) error {
				_, _, err := f.pick(args[0])
				f.Current = args[0]
				return err
			})
		},
	}
}

func newContextDelete() *cobra.Command {
	return &cobra.Command{
		Use:               "delete NAME",
		Short:             "Forget a control plane and what you signed in with",
		Example:           "  jitgate context delete old",
		Args:              usage.Args(1, 1, "the name of a context"),
		ValidArgsFunction: completeContexts,
		RunE:              func(_ *cobra.Command, args []string) error { return forgetContext(args[0]) },
	}
}

func forgetContext(name string) error {
	return changeContexts(func(f *contextFile) error {
		if _, _, err := f.pick(name); err != nil {
			return err
		}
		delete(f.Contexts, name)
		if f.Current == name {
			f.Current = ""
		}
		return nil
	})
}
