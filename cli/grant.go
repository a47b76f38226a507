package cli

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"crypto/sha256"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/policy"
)

// grantOrder is what jitgate grant is asked for.
type grantOrder struct {
	dir, host, install, policyFile, out string
	sshKey                              string
	ports                               []uint
	sources                             []string
	length                              string
	start                               string
	reason, requestor                   string
	revoke                              []string
	after                               uint64
	as                                  asText
}

func newGrant() *cobra.Command {
	var o grantOrder
	c := &cobra.Command{
		Use:   "grant --dir DIR --host ID --port N --source PREFIX --for DURATION -o FILE",
		Short: "Make an offline grant, signed with the realm's grant key",
		Long: `Makes the next list of grants for a host and signs it with DIR/grant.key, or
with --ssh-key as ssh-keygen does, on a FIDO2 token for example. Grants made
before that are still good stay on the list. Every list is kept in
DIR/grants, so versions never repeat. If DIR/policy.json (or --policy) is there,
a grant outside the policy is refused here already.

A list is complete: it takes the place of the one in force on the host, and what
only that one grants is closed. Where another signer made that one, --after says
its version, as jitgate status shows it on the host.

Without a network, carry the file; or make text with --armor, or a QR code with
--qr, and give it to jitgate inbox put on the host's console.`,
		Example: `  jitgate grant --dir keys --host web1 --port 22 --source 203.0.113.7 --for 1h --reason INC-1 -o grants.json
  jitgate grant --dir keys --host web1 --port 22 --source 203.0.113.7 --for 1h --after 1187 --armor
  jitgate grant --dir keys --host web1 --port 22 --source 203.0.113.7 --for 1h --ssh-key ~/.ssh/id_ed25519_sk --qr
  jitgate grant --dir keys --host web1 --revoke all -o grants.json`,
		Args: usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := usage.Required(c, "dir", "host"); err != nil {
				return err
			}
			if !o.as.wanted() {
				if err := usage.Required(c, "out"); err != nil {
					return err
				}
			}
			if o.after >= policy.MaxVersion {
				return usage.Errorf("--after: %d is no version that another can follow", o.after)
			}
			if len(o.revoke) == 0 || len(o.ports) > 0 {
				if err := usage.Required(c, "port", "source", "for"); err != nil {
					return err
				}
			}
			return o.run(c)
		},
	}
	f := c.Flags()
	f.StringVar(&o.dir, "dir", "", "the realm's directory, with grant.key and trust.json")
	f.StringVar(&o.sshKey, "ssh-key", "", "sign with this SSH key (private key or .pub file), not with DIR/grant.key")
	f.StringVar(&o.host, "host", "", "the host's id")
	f.StringVar(&o.install, "install", "", "only for this installation of the host")
	f.UintSliceVar(&o.ports, "port", nil, "port to open; may be repeated")
	f.StringSliceVar(&o.sources, "source", nil, `address or prefix to open it for, "*" for any; may be repeated`)
	f.StringVar(&o.length, "for", "", "how long: 1h, 90m or PT1H")
	f.StringVar(&o.start, "start", "", "when it begins, like 2026-11-22T12:00:00Z (default now)")
	f.StringVar(&o.reason, "reason", "", "why, for the record")
	f.StringVar(&o.requestor, "requestor", "", "who, for the record (default you)")
	f.StringSliceVar(&o.revoke, "revoke", nil, `take the grant with this id off the list, "all" for every one`)
	f.StringVar(&o.policyFile, "policy", "", "policy to check the grant against (default DIR/policy.json, if there)")
	f.Uint64Var(&o.after, "after", 0, "the version in force on the host: the next one is above it")
	f.StringVarP(&o.out, "out", "o", "", `file to write, "-" for standard output; not needed with --armor or --qr`)
	o.as.flags(c)
	return c
}

func (o grantOrder) run(c *cobra.Command) error {
	sign, key := signWithSSH, o.sshKey
	if key == "" {
		sign, key = signWithKey, filepath.Join(o.dir, keyFile(policy.RoleGrant))
	}
	_, trust, err := trustFile(c, filepath.Join(o.dir, agent.Trust.File()), nil)
	if err != nil {
		return err
	}
	role, _ := trust.Document().Role(policy.RoleGrant)
	now := time.Now().UTC().Truncate(time.Second)
	fresh, err := o.grants(now)
	if err != nil {
		return err
	}
	lists := ledger{filepath.Join(o.dir, "grants", hostDir(o.host))}
	for {
		last, err := lists.last(role.Epoch)
		if err != nil {
			return err
		}
		next, err := o.next(last, fresh, trust.Document(), role.Epoch, now)
		if err != nil {
			return err
		}
		if err := o.check(c, trust.Document(), next, fresh, now); err != nil {
			return err
		}
		envelope := policy.Envelope{Type: policy.TypeGrants, Payload: next.Encode()}
		signer, err := sign(c, &envelope, key)
		if err == nil {
			err = counts(envelope, []side{{"the trust document", trust.Document()}}, signer)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		// What cannot be shown takes no version.
		if err := o.as.possible(c, envelope); err != nil {
			return err
		}
		// Whoever writes a version first has it; the other one tries the next.
		err = lists.add(role.Epoch, next.Version, envelope.Encode())
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := o.write(c, envelope); err != nil {
			return err
		}
		for _, g := range fresh {
			fmt.Fprintf(c.ErrOrStderr(), "grant %s: port %d for %s until %s\n", g.ID, g.Number, strings.Join(o.sources, ","), policy.FormatTime(g.End))
		}
		return nil
	}
}

// write hands the list over: as a file, or as what --armor and --qr ask for.
func (o grantOrder) write(c *cobra.Command, e policy.Envelope) error {
	if o.as.wanted() {
		return o.as.write(c, o.out, e)
	}
	return writeOutput(c, o.out, e.Encode(), 0o644)
}

// grants are the new grants, one a port.
func (o grantOrder) grants(now time.Time) ([]policy.Grant, error) {
	if len(o.ports) == 0 {
		return nil, nil
	}
	length, err := parseLength(o.length)
	if err != nil {
		return nil, usage.Errorf("--for: %w", err)
	}
	start := now
	if o.start != "" {
		if start, err = time.Parse(time.RFC3339, o.start); err != nil {
			return nil, usage.Errorf("--start: %q is not a time like 2026-11-22T12:00:00Z", o.start)
		}
		start = start.UTC().Truncate(time.Second)
	}
	sources, err := parseSources(o.sources)
	if err != nil {
		return nil, usage.Errorf("--source: %w", err)
	}
	requestor := o.requestor
	if requestor == "" {
		requestor = whoami()
	}
	var out []policy.Grant
	for _, p := range o.ports {
		if p == 0 || p > 65535 {
			return nil, usage.Errorf("--port: %d is not a port", p)
		}
		out = append(out, policy.Grant{ID: rand.Text(), Number: uint16(p), Sources: sources, Start: start, End: start.Add(length),
			Requestor: requestor, Justification: o.reason})
	}
	return out, nil
}

// next is the list that follows last.
func (o grantOrder) next(last policy.Grants, fresh []policy.Grant, trust policy.Trust, epoch uint64, now time.Time) (policy.Grants, error) {
	next := policy.Grants{
		Header: policy.Header{Realm: trust.Realm, Version: max(last.Version, o.after) + 1, Issued: now, Expires: now.Add(time.Hour)},
		Epoch:  epoch, Host: policy.Host{ID: o.host, Install: o.install}, Grants: []policy.Grant{},
	}
	if next.Issued.Before(last.Issued) {
		return next, fmt.Errorf("the last list was issued at %s, the clock here says %s: set the clock", policy.FormatTime(last.Issued), policy.FormatTime(now))
	}
	known := map[string]bool{"all": true}
	for _, g := range last.Grants {
		known[g.ID] = true
		if g.Phase(now) != policy.PhaseExpired && !slices.Contains(o.revoke, g.ID) && !slices.Contains(o.revoke, "all") {
			next.Grants = append(next.Grants, g)
		}
	}
	for _, id := range o.revoke {
		if !known[id] {
			return next, fmt.Errorf("--revoke: no grant %s on the last list for %s", id, o.host)
		}
	}
	next.Grants = append(next.Grants, fresh...)
	for _, g := range next.Grants {
		if g.End.After(next.Expires) {
			next.Expires = g.End
		}
	}
	return next, nil
}

// check holds the new grants against the policy, where one is at hand.
func (o grantOrder) check(c *cobra.Command, trust policy.Trust, list policy.Grants, fresh []policy.Grant, now time.Time) error {
	path := o.policyFile
	if path == "" {
		path = filepath.Join(o.dir, agent.Policy.File())
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	raw, err := readFile(c, path)
	if err != nil {
		return err
	}
	v, err := policy.OpenPolicy(raw, trust)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	f := policy.Facts{Host: o.host, Install: o.install, Now: now}
	if _, err := policy.AdmitPolicy(policy.State{}, v, trust, f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, verdict := range policy.Evaluate(policy.State{}, trust, v.Document(), list, f).Verdicts {
		isNew := slices.ContainsFunc(fresh, func(g policy.Grant) bool { return g.ID == verdict.Grant.ID })
		if isNew && verdict.Refusal != nil {
			return verdict.Refusal
		}
	}
	return nil
}

// parseLength reads a Go or an ISO 8601 duration of whole seconds.
func parseLength(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		d, err = policy.ParseDuration(s)
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q is not a duration like 1h, 90m or PT1H", s)
	case d < time.Second || d%time.Second != 0:
		return 0, fmt.Errorf("%q is not a whole number of seconds above zero", s)
	}
	return d, nil
}

// parseSources reads addresses and prefixes as people type them.
func parseSources(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		if s == "*" {
			out = append(out, netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0))
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, addressErr := netip.ParseAddr(s)
			if addressErr != nil || a.Zone() != "" {
				return nil, fmt.Errorf("%q is not an address or prefix like 203.0.113.7 or 10.0.0.0/8", s)
			}
			a = a.Unmap()
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s has host bits set: write %s", s, p.Masked())
		}
		out = append(out, p)
	}
	return out, nil
}

func whoami() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

// ledger keeps every list made for one host, so that no version is given
// twice.
type ledger struct{ dir string }

// hostDir is a directory name for a host: readable, and its own for every id.
func hostDir(host string) string {
	host = strings.ToLower(host)
	sum := sha256.Sum256([]byte(host))
	readable := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return '_'
	}, filepath.Base(host))
	return readable + "-" + hex.EncodeToString(sum[:6])
}

// last returns the newest list of an epoch, or the zero list.
func (l ledger) last(epoch uint64) (policy.Grants, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return policy.Grants{}, err
	}
	newest := uint64(0)
	for _, e := range entries {
		prefix := fmt.Sprintf("%d-", epoch)
		number, ok := strings.CutPrefix(strings.TrimSuffix(e.Name(), ".json"), prefix)
		if v, err := strconv.ParseUint(number, 10, 64); ok && err == nil {
			newest = max(newest, v)
		}
	}
	if newest == 0 {
		return policy.Grants{}, nil
	}
	raw, err := os.ReadFile(l.file(epoch, newest))
	if err != nil {
		return policy.Grants{}, err
	}
	e, err := policy.ParseEnvelope(raw)
	if err != nil {
		return policy.Grants{}, err
	}
	document, err := policy.ParseDocument(policy.TypeGrants, e.Payload)
	if err != nil {
		return policy.Grants{}, err
	}
	return document.(policy.Grants), nil
}

func (l ledger) file(epoch, version uint64) string {
	return filepath.Join(l.dir, fmt.Sprintf("%d-%d.json", epoch, version))
}

// add keeps a list. It fails with fs.ErrExist if the version is taken.
func (l ledger) add(epoch, version uint64, raw []byte) error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	// Linking a whole file makes the version appear whole or not at all.
	f, err := os.CreateTemp(l.dir, ".list-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(raw)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), l.file(epoch, version))
}
