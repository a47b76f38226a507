// Package logins reads in the journal whom the host's sshd let in.
//
// Anybody on a host may write into its journal that he is sshd. What is
// believed is what the journal's daemon adds by itself: who wrote an entry, in
// which unit, with which program.
package logins

import (
	"net/netip"
	"regexp"
	"strings"
	"time"
)

// Login is somebody whom sshd let in.
type Login struct {
	Time    time.Time      `json:"time"` // when the journal took the entry
	Account string         `json:"account"`
	Source  netip.AddrPort `json:"source"`
	Method  string         `json:"method"` // as sshd names it: publickey, password, keyboard-interactive/pam
	// Key is the fingerprint of the key, or of the key that a certificate is
	// for, with its kind before it: SHA256:… Empty where there is none.
	Key string `json:"key,omitempty"`
	// Credential is all that sshd says of what was shown: a key's type and
	// fingerprint; of a certificate its ID, serial and CA; a Kerberos principal.
	Credential string `json:"credential,omitempty"`
}

// Bounds of what is taken from a message, in bytes. sshd has its own: 100 of
// an account. A certificate's ID is as long as whoever signed it liked.
const (
	MaxAccount    = 256
	MaxMethod     = 64
	MaxKey        = 160
	MaxCredential = 512
)

// accepted is sshd's message, of auth_log in its auth.c. The first " from …
// port … ssh2" counts: what a certificate's ID has in it comes behind, and what
// stands before is an account of this host.
var accepted = regexp.MustCompile(`^Accepted ([^ ]+) for (.+?) from ([^ ]+) port ([0-9]{1,5}) ssh2(?:: (.+))?$`)

// fingerprint is a key, or a certificate, with what ssh-keygen -l prints of it.
var fingerprint = regexp.MustCompile(`^[A-Z0-9-]+ ((?:SHA256:[A-Za-z0-9+/]{43}|MD5(?::[0-9a-f]{2}){16}))(?: ID .*)?$`)

// preauth ends what a process says that nobody has logged in to yet. It has no
// rights, and sshd passes on what it says.
const preauth = " [preauth]"

// Parse reads a message of sshd. It reports false for all that does not say
// that somebody was let in.
func Parse(message string) (Login, bool) {
	m := accepted.FindStringSubmatch(message)
	if m == nil || strings.HasSuffix(message, preauth) {
		return Login{}, false
	}
	l := Login{Method: m[1], Account: m[2], Credential: m[5]}
	host, err := netip.ParseAddr(m[3])
	if err != nil {
		return Login{}, false
	}
	if l.Source, err = netip.ParseAddrPort("0.0.0.0:" + m[4]); err != nil {
		return Login{}, false
	}
	l.Source = netip.AddrPortFrom(host.WithZone("").Unmap(), l.Source.Port())
	if len(l.Account) > MaxAccount || len(l.Method) > MaxMethod {
		return Login{}, false
	}
	if f := fingerprint.FindStringSubmatch(l.Credential); f != nil {
		l.Key = f[1]
	}
	l.Credential = clip(l.Credential, MaxCredential)
	return l, true
}

// clip cuts a text that is too long, and says so at its end.
func clip(s string, most int) string {
	const mark = "…"
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most-len(mark)], "") + mark
}
