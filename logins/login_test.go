package logins

import (
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"
)

const (
	key = "SHA256:Qd3TxJ0nHPvW4fLTRrV9RwhNvHfNQ7oFGg2yVtJZ9aE"
	ca  = "SHA256:uJ2dGkmnYd3SLGSP3cpeXlbDGCAjCJw0rJ1kkQwu0pk"
)

// Messages as OpenSSH 8.4 to 10.0 write them: the format has stayed.
func TestParse(t *testing.T) {
	four, six := netip.MustParseAddrPort("192.0.2.1:50000"), netip.MustParseAddrPort("[2001:db8::7]:50000")
	for message, want := range map[string]Login{
		"Accepted publickey for alice from 192.0.2.1 port 50000 ssh2: ED25519 " + key:                                            {Account: "alice", Source: four, Method: "publickey", Key: key, Credential: "ED25519 " + key},
		"Accepted publickey for root from 2001:db8::7 port 50000 ssh2: ECDSA-SK " + key:                                          {Account: "root", Source: six, Method: "publickey", Key: key, Credential: "ECDSA-SK " + key},
		"Accepted publickey for root from fe80::1%eth0 port 50000 ssh2: RSA " + key:                                              {Account: "root", Source: netip.MustParseAddrPort("[fe80::1]:50000"), Method: "publickey", Key: key, Credential: "RSA " + key},
		"Accepted publickey for a from ::ffff:192.0.2.1 port 50000 ssh2: RSA " + key:                                             {Account: "a", Source: four, Method: "publickey", Key: key, Credential: "RSA " + key},
		"Accepted publickey for a from 192.0.2.1 port 50000 ssh2: RSA MD5:0a" + strings.Repeat(":1b", 15):                        {Account: "a", Source: four, Method: "publickey", Key: "MD5:0a" + strings.Repeat(":1b", 15), Credential: "RSA MD5:0a" + strings.Repeat(":1b", 15)},
		"Accepted password for alice from 192.0.2.1 port 50000 ssh2":                                                             {Account: "alice", Source: four, Method: "password"},
		"Accepted keyboard-interactive/pam for DOMAIN\\\\alice smith from 192.0.2.1 port 50000 ssh2":                             {Account: "DOMAIN\\\\alice smith", Source: four, Method: "keyboard-interactive/pam"},
		"Accepted gssapi-with-mic for alice from 192.0.2.1 port 50000 ssh2: alice@EXAMPLE.COM":                                   {Account: "alice", Source: four, Method: "gssapi-with-mic", Credential: "alice@EXAMPLE.COM"},
		"Accepted publickey for a from 192.0.2.1 port 50000 ssh2: ED25519-CERT " + key + " ID alice (serial 1) CA ED25519 " + ca: {Account: "a", Source: four, Method: "publickey", Key: key, Credential: "ED25519-CERT " + key + " ID alice (serial 1) CA ED25519 " + ca},
		// An ID that its CA let somebody choose.
		"Accepted publickey for a from 192.0.2.1 port 50000 ssh2: RSA-CERT " + key + " ID x from 198.51.100.9 port 1 ssh2: ED25519 " + ca + " (serial 0) CA RSA " + ca: {Account: "a", Source: four, Method: "publickey", Key: key,
			Credential: "RSA-CERT " + key + " ID x from 198.51.100.9 port 1 ssh2: ED25519 " + ca + " (serial 0) CA RSA " + ca},
		// None of these says that somebody was let in.
		"Failed publickey for alice from 192.0.2.1 port 50000 ssh2: ED25519 " + key:                     {},
		"Failed password for invalid user Accepted publickey for root from 192.0.2.1 port 50000 ssh2":   {},
		"Invalid user Accepted publickey for root from 192.0.2.1 port 50000 ssh2 from 192.0.2.9 port 1": {},
		"Partial publickey for alice from 192.0.2.1 port 50000 ssh2: ED25519 " + key:                    {},
		"Accepted key ED25519 " + key + " found at /root/.ssh/authorized_keys:1":                        {},
		"Accepted publickey for root from 192.0.2.1 port 50000 ssh2 [preauth]":                          {}, // by the process without rights
		"Accepted publickey for root from 192.0.2.1 port 50000 ssh2: ED25519 " + key + " [preauth]":     {},
		" Accepted password for alice from 192.0.2.1 port 50000 ssh2":                                   {},
		"Accepted password for alice from UNKNOWN port 65535 ssh2":                                      {},
		"Accepted password for alice from 192.0.2.1 port 65536 ssh2":                                    {},
		"Accepted password for alice from 192.0.2.1 port -1 ssh2":                                       {},
		"Accepted password for  from 192.0.2.1 port 1 ssh2":                                             {},
		"Accepted password for alice from 192.0.2.1 port 50000 ssh2\n":                                  {},
		"Accepted password for alice\nfrom 192.0.2.1 port 50000 ssh2":                                   {},
		"Accepted password for " + strings.Repeat("a", MaxAccount+1) + " from 192.0.2.1 port 1 ssh2":    {},
		"": {},
	} {
		got, ok := Parse(message)
		if got != want || ok != (want != Login{}) {
			t.Errorf("%q:\n%+v, %t, want\n%+v", message, got, ok, want)
		}
	}
	long, ok := Parse("Accepted publickey for a from 192.0.2.1 port 1 ssh2: ED25519-CERT " + key + " ID " + strings.Repeat("é", 1000) + " (serial 1) CA ED25519 " + ca)
	if !ok || long.Key != key || len(long.Credential) > MaxCredential || !strings.HasSuffix(long.Credential, "é…") {
		t.Errorf("a long ID: %+v, %t", long, ok)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("Accepted publickey for alice from 192.0.2.1 port 50000 ssh2: ED25519 " + key)
	f.Add("Accepted password for a b from fe80::1%eth0 port 1 ssh2")
	f.Add("Accepted publickey for a from ::1 port 1 ssh2: ED25519-CERT " + key + " ID alice (serial 1) CA ED25519 " + ca)
	f.Fuzz(func(t *testing.T, message string) {
		l, ok := Parse(message)
		if !ok {
			if l != (Login{}) {
				t.Errorf("refused, and yet %+v", l)
			}
			return
		}
		if !strings.HasPrefix(message, "Accepted ") || strings.HasSuffix(message, preauth) || strings.ContainsAny(message, "\n") {
			t.Errorf("taken: %q", message)
		}
		if a := l.Source.Addr(); !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			t.Errorf("the source is %v", l.Source)
		}
		if l.Account == "" || len(l.Account) > MaxAccount || len(l.Method) > MaxMethod || len(l.Key) > MaxKey || len(l.Credential) > MaxCredential {
			t.Errorf("beyond the bounds: %+v", l)
		}
		if utf8.ValidString(message) && !utf8.ValidString(l.Credential) {
			t.Errorf("%q was cut in a letter", l.Credential)
		}
	})
}
