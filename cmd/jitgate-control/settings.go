package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/pelletier/go-toml/v2"

	"github.com/jitgate/jitgate/control/azure"
	"github.com/jitgate/jitgate/control/identity"
)

const (
	defaultListen = ":8443"
	defaultData   = "/var/lib/jitgate-control"
	// databaseVariable has the database where its password must not be in a
	// file of settings. It comes before the file.
	databaseVariable = "JITGATE_CONTROL_DATABASE"
	maxSettings      = 256 << 10
)

// settings are those of the file, checked, with what the command line says.
type settings struct {
	listen    string
	publicURL string // with scheme, without a slash at the end; empty: by listen
	data      string
	database  string // empty: SQLite in the data directory
	tenantID  string
	proxies   []netip.Prefix

	logLevel hclog.Level
	logJSON  bool

	tlsCert, tlsKey string // both or none
	realm           realmSettings
	rate            float64
	burst           int
	oidc            []identity.Issuer
	azure           *azure.Settings // nil: there is no section
}

type settingsTOML struct {
	Listen         string          `toml:"listen"`
	PublicURL      string          `toml:"public_url"`
	Data           string          `toml:"data"`
	Database       string          `toml:"database"`
	TenantID       string          `toml:"tenant_id"`
	TrustedProxies []string        `toml:"trusted_proxies"`
	Log            logTOML         `toml:"log"`
	TLS            tlsTOML         `toml:"tls"`
	Realm          realmTOML       `toml:"realm"`
	Signing        signingTOML     `toml:"signing"`
	Limits         limitsTOML      `toml:"limits"`
	OIDC           []issuerTOML    `toml:"oidc"`
	Azure          *azure.Settings `toml:"azure"`
}

type logTOML struct {
	Level  string `toml:"level"`
	Format string `toml:"format"`
}

type tlsTOML struct {
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
}

type realmTOML struct {
	Name  string `toml:"name"`
	Trust string `toml:"trust"`
}

type signingTOML struct {
	Policy string `toml:"policy"`
	Grant  string `toml:"grant"`
}

type limitsTOML struct {
	Rate  float64 `toml:"rate"`
	Burst int     `toml:"burst"`
}

type issuerTOML struct {
	Issuer           string   `toml:"issuer"`
	Discovery        string   `toml:"discovery"`
	Audience         []string `toml:"audience"`
	ClientID         string   `toml:"client_id"`
	ClientSecretFile string   `toml:"client_secret_file"`
	Scopes           []string `toml:"scopes"`
	NameClaim        string   `toml:"name_claim"`
	GroupsClaim      string   `toml:"groups_claim"`
	GroupPrefix      string   `toml:"group_prefix"`
	Tenants          []string `toml:"tenants"`
	Entra            bool     `toml:"entra"`
	CAFile           string   `toml:"ca_file"`
}

// loadSettings reads a settings file; without a path there are only defaults.
func loadSettings(path string) (settings, error) {
	var text []byte
	if path != "" {
		var err error
		if text, err = readLimited(path, maxSettings); err != nil {
			return settings{}, fmt.Errorf("settings: %w", err)
		}
	}
	s, err := parseSettings(text)
	if err != nil {
		return settings{}, fmt.Errorf("%s:%w", cmp.Or(path, "settings"), err)
	}
	if dsn, ok := os.LookupEnv(databaseVariable); ok && dsn != "" {
		s.database = dsn
		if err := checkDatabase(dsn); err != nil {
			return settings{}, fmt.Errorf("%s: %w", databaseVariable, err)
		}
	}
	return s, nil
}

// parseSettings checks the text of a settings file. Its errors begin with the
// line they are about, or with a space where there is none.
func parseSettings(text []byte) (settings, error) {
	raw := settingsTOML{Listen: defaultListen, Data: defaultData, Log: logTOML{Level: "info", Format: "text"}}
	decoder := toml.NewDecoder(strings.NewReader(string(text))).DisallowUnknownFields()
	if err := decoder.Decode(&raw); err != nil {
		return settings{}, locate(err)
	}
	s, err := raw.settings()
	if err != nil {
		return settings{}, fmt.Errorf(" %w", err)
	}
	return s, nil
}

// locate puts the line first and says which key it is.
func locate(err error) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(strict.Errors) > 0 {
		first := strict.Errors[0]
		row, _ := first.Position()
		return fmt.Errorf("%d: unknown key %q", row, strings.Join(first.Key(), "."))
	}
	if wrong, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, _ := wrong.Position()
		return fmt.Errorf("%d: %s", row, strings.TrimPrefix(wrong.Error(), "toml: "))
	}
	return fmt.Errorf(" %w", err)
}

func (raw settingsTOML) settings() (s settings, err error) {
	s = settings{
		data: raw.Data, database: raw.Database, tenantID: raw.TenantID, tlsCert: raw.TLS.Cert, tlsKey: raw.TLS.Key,
		realm: realmSettings{name: raw.Realm.Name, trust: raw.Realm.Trust, policy: raw.Signing.Policy, grant: raw.Signing.Grant},
		rate:  raw.Limits.Rate, burst: raw.Limits.Burst, azure: raw.Azure,
	}
	if s.data == "" {
		return s, errors.New("data is empty: name the data directory")
	}
	if s.listen, err = checkListen(raw.Listen); err != nil {
		return s, fmt.Errorf("listen: %w", err)
	}
	if s.publicURL, err = checkPublicURL(raw.PublicURL); err != nil {
		return s, fmt.Errorf("public_url: %w", err)
	}
	if raw.Database != "" {
		if err := checkDatabase(raw.Database); err != nil {
			return s, fmt.Errorf("database: %w", err)
		}
	}
	for i, p := range raw.TrustedProxies {
		prefix, err := parsePrefix(p)
		if err != nil {
			return s, fmt.Errorf("trusted_proxies[%d]: %w", i, err)
		}
		s.proxies = append(s.proxies, prefix)
	}
	if s.logLevel = hclog.LevelFromString(raw.Log.Level); s.logLevel == hclog.NoLevel {
		return s, fmt.Errorf("log.level %q is not error, warn, info or debug", raw.Log.Level)
	}
	switch raw.Log.Format {
	case "json":
		s.logJSON = true
	case "text":
	default:
		return s, fmt.Errorf("log.format %q is not text or json", raw.Log.Format)
	}
	if (s.tlsCert == "") != (s.tlsKey == "") {
		return s, errors.New("tls.cert and tls.key go together: set both, or none for a certificate that is made here")
	}
	if s.realm.grant == people {
		return s, errors.New(`signing.grant cannot be "none": nobody would wait for a person to sign each grant`)
	}
	for _, k := range []struct{ name, spec string }{{"policy", s.realm.policy}, {"grant", s.realm.grant}} {
		if k.spec != "" && k.spec != people && !strings.Contains(k.spec, ":") {
			return s, fmt.Errorf("signing.%s: %q does not name a key: write file:PATH, command:PROGRAM or keyvault:ID", k.name, k.spec)
		}
	}
	if s.rate < 0 || s.burst < 0 {
		return s, errors.New("limits: rate and burst are not negative")
	}
	for i, o := range raw.OIDC {
		if u, err := url.Parse(o.Issuer); err != nil || u.Scheme != "https" || u.Host == "" {
			return s, fmt.Errorf("oidc[%d].issuer: %q is not an address beginning with https://", i, o.Issuer)
		}
		if len(o.Audience) == 0 {
			return s, fmt.Errorf("oidc[%d].audience is missing: without one, a token meant for another service would be taken", i)
		}
		if o.ClientSecretFile != "" && o.ClientID == "" {
			return s, fmt.Errorf("oidc[%d].client_secret_file is of a client: set client_id as well", i)
		}
		s.oidc = append(s.oidc, identity.Issuer{URL: o.Issuer, Discovery: o.Discovery, Audience: o.Audience, ClientID: o.ClientID, ClientSecretFile: o.ClientSecretFile, Scopes: o.Scopes, NameClaim: o.NameClaim,
			GroupsClaim: o.GroupsClaim, GroupPrefix: o.GroupPrefix, AllowedTenants: o.Tenants, Entra: o.Entra, CAFile: o.CAFile})
	}
	if s.azure != nil {
		if err := s.azure.Check(); err != nil {
			return s, err
		}
	}
	return s, nil
}

// checkListen reads HOST:PORT; without a host it is every address.
func checkListen(s string) (string, error) {
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return "", fmt.Errorf("%q is not HOST:PORT, such as :8443 or 127.0.0.1:8443", s)
	}
	return s, nil
}

// checkPublicURL reads what clients and agents are told to call.
func checkPublicURL(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%q is not an address like https://jit.example.com or https://jit.example.com:8443", s)
	}
	return "https://" + u.Host, nil
}

// checkDatabase tells a database's address from the rest.
func checkDatabase(dsn string) error {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") || filepath.IsAbs(dsn) {
		return nil
	}
	// It may have a password in it: not said.
	return errors.New("not an address like postgres://USER@HOST/DATABASE, nor the absolute path of a file for SQLite")
}

// parsePrefix reads a network, or one address.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p != p.Masked() {
		return p, fmt.Errorf("%q is not an address or a network like 10.0.0.0/8", s)
	}
	return p, nil
}

// dsn is the database: the settings', or SQLite in the directory.
func (s settings) dsn(d directory) string { return cmp.Or(s.database, d.path(databaseFile)) }

// overNetwork reports whether the database is one that several processes use.
func (s settings) overNetwork() bool { return strings.Contains(s.database, "://") }

// public is what clients and agents are told to call, once the port is known.
func (s settings) public(port string) string {
	if s.publicURL != "" {
		return s.publicURL
	}
	host, _, err := net.SplitHostPort(s.listen)
	if ip := net.ParseIP(host); err != nil || host == "" || ip != nil && ip.IsUnspecified() {
		if host, err = os.Hostname(); err != nil {
			host = "localhost"
		}
	}
	return "https://" + net.JoinHostPort(strings.ToLower(host), port)
}

// publicHost is the name in the public URL, if it was set.
func (s settings) publicHost() string {
	u, err := url.Parse(s.publicURL)
	if err != nil {
		return ""
	}
	return u.Hostname()
}
