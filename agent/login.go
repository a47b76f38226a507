package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/logins"
)

// LoginsReport tells the agent whom sshd let in. It comes from a process of its
// own, which reads the journal: the agent does not.
type LoginsReport struct {
	Cursor string         `json:"cursor"` // of the journal: there are no others up to it
	Logins []logins.Login `json:"logins,omitempty"`
}

// check holds a report against its bounds.
func (r LoginsReport) check() error {
	if !logins.ValidCursor(r.Cursor) {
		return errors.New("the cursor is none of the journal's")
	}
	if len(r.Logins) > logins.MostAtOnce {
		return fmt.Errorf("%d logins at once: %d at most", len(r.Logins), logins.MostAtOnce)
	}
	for _, l := range r.Logins {
		if l.Account == "" || len(l.Account) > logins.MaxAccount || len(l.Method) > logins.MaxMethod || len(l.Key) > logins.MaxKey ||
			len(l.Credential) > logins.MaxCredential || !l.Source.IsValid() || l.Time.IsZero() {
			return errors.New("a login lacks its time, account or source, or has longer ones than sshd")
		}
	}
	return nil
}

// logged is what was said of logins over one grant.
type logged struct {
	Count uint64   `json:"count"`
	Lines int      `json:"lines"`
	Named []string `json:"named,omitempty"` // digests of identities that have a line
}

// loginLines is how many logins over one grant are recorded. Once there are as
// many, as many more have a line whose account, credential or address has none
// yet; of all others grant.used has the number.
const loginLines = 100

// line reports whether a login has a line of its own.
func (l *logged) line(login logins.Login) bool {
	l.Count++
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %s", login.Account, login.Method, login.Credential, login.Source.Addr()))
	who := hex.EncodeToString(sum[:8])
	known := slices.Contains(l.Named, who)
	if l.Lines >= 2*loginLines || known && l.Lines >= loginLines {
		return false
	}
	if !known {
		l.Named = append(l.Named, who)
	}
	l.Lines++
	return true
}

// sshPort is where sshd listens if nothing else is known.
const sshPort = 22

// over finds the grants that let a login's connection in. It knows them by the
// connection, where that is followed; else by what covers the source at the
// port of ssh since before the login. seen says that it is the former.
func (l uses) over(login logins.Login) (grants uses, seen bool) {
	for _, u := range l {
		for i := range u.Flows {
			f := &u.Flows[i]
			if f.ID.Protocol != firewall.TCP || f.ID.From != login.Source {
				continue
			}
			if seen = true; !f.LoggedIn { // else it is told again
				f.LoggedIn = true
				grants = append(grants, u)
			}
		}
	}
	if seen {
		return grants, true
	}
	a := login.Source.Addr()
	door := firewall.Door{Source: netip.PrefixFrom(a, a.BitLen()), Protocol: firewall.TCP, Port: sshPort}
	for _, u := range l {
		if !u.Ended && !login.Time.Before(u.Since) && u.covers(door) {
			grants = append(grants, u)
		}
	}
	return grants, false
}

// loginEvent says that somebody logged in over a grant.
func (u *use) loginEvent(l logins.Login, seen bool) audit.Event {
	e := u.Event
	e.Name, e.First = audit.GrantLogin, l.Time.UTC().Truncate(time.Millisecond)
	e.Source, e.SourcePort = l.Source.Addr().String(), l.Source.Port()
	e.Account, e.Method, e.Key, e.Credential = l.Account, l.Method, l.Key, l.Credential
	e.Message = fmt.Sprintf("%s logged in from %s, port %d, by %s", l.Account, e.Source, e.SourcePort, cmp.Or(l.Credential, l.Method))
	if !seen {
		e.Message += "; its connection was not seen"
	}
	return e
}

// loggedIn joins logins to grants, and records them.
func (a *Agent) loggedIn(ctx context.Context, r LoginsReport) error {
	if err := r.check(); err != nil {
		return err
	}
	var events []audit.Event
	if len(r.Logins) > 0 && len(a.uses) > 0 {
		a.hear(ctx, false) // sshd may be faster than the next pass
	}
	for _, l := range r.Logins {
		grants, seen := a.uses.over(l)
		for _, u := range grants {
			if u.Logins.line(l) {
				events = append(events, u.loginEvent(l, seen))
			}
		}
	}
	// What cannot be recorded now is with the next events: it need not come again.
	err := a.record(ctx, events)
	if err != nil {
		a.Log.Error("logins wait until they can be recorded", "error", err)
	}
	a.loginsUpTo, a.usesChanged = r.Cursor, true
	a.keepUses()
	return nil
}

// mustTellLogins lets in root and the user whose word about logins counts.
func (c caller) mustTellLogins() error {
	if c.user() == loginsUser {
		return nil
	}
	return c.mustBeRoot()
}
