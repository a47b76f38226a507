package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

// Mode says whether the guard drops.
type Mode string

// The modes of an agent.
const (
	Observe Mode = "observe" // counts what a guard would drop
	Enforce Mode = "enforce"
	Off     Mode = "off" // no guard at all: only by jitgate disarm, never in the settings
)

// Settings is agent.toml, checked.
type Settings struct {
	HostID   string
	HostFrom string // who said so: FromSettings, FromMachineID, a cloud's service
	HostNote string // what to do about a HostID that was fallen back to
	// HostRefused says why a host.json that is there is not used.
	HostRefused string

	Mode     Mode
	Guard    []firewall.Port // guarded until a policy says which
	InboxDir string
	StateDir string
	Socket   string
	TrustPin policy.Digest // zero: none was set
	// Metrics is where a process of its own offers the agent's metrics, on
	// loopback. The agent makes no use of it: it has no such socket.
	Metrics netip.AddrPort
	// Control is where the fetcher finds the control plane; nil: this host has
	// none. The agent reads it and makes no use of it.
	Control *Control
	Audit   AuditSettings
}

// AuditSettings is the table [audit], checked: how the record is kept.
type AuditSettings struct {
	FileSize int64 // of each of its files, in bytes
	Keep     audit.Keep
}

// Control is the table [control], checked.
type Control struct {
	URL          string   // https://NAME[:PORT]; empty: Fallback alone
	CA           string   // file with the certificate the server's is signed by; empty: the system's
	IdentityDir  string   // the fetcher's own
	Proxy        string   // http://[USER:PASSWORD@]HOST:PORT; empty: HTTPS_PROXY
	Fallback     []string // where the same signed files lie: URLs, or directories
	PollInterval time.Duration
}

type settingsTOML struct {
	HostID   string       `toml:"host_id"`
	Mode     string       `toml:"mode"`
	Guard    []any        `toml:"guard"`
	InboxDir string       `toml:"inbox_dir"`
	StateDir string       `toml:"state_dir"`
	Socket   string       `toml:"socket"`
	TrustPin string       `toml:"trust_pin"`
	Metrics  string       `toml:"metrics"`
	Control  *controlTOML `toml:"control"`
	Audit    auditTOML    `toml:"audit"`
}

type auditTOML struct {
	FileMiB  int64 `toml:"file_mib"`
	KeepMiB  int64 `toml:"keep_mib"`
	KeepDays int64 `toml:"keep_days"`
}

const (
	defaultKeepMiB = 1024
	maxMiB         = 1 << 20 // 1 TiB
	maxDays        = 100 * 366
)

func (raw auditTOML) audit() (s AuditSettings, err error) {
	for _, n := range []struct {
		name          string
		value, lo, hi int64
	}{{"file_mib", raw.FileMiB, 1, 1024}, {"keep_mib", raw.KeepMiB, 0, maxMiB}, {"keep_days", raw.KeepDays, 0, maxDays}} {
		if n.value < n.lo || n.value > n.hi {
			return s, fmt.Errorf("%s %d is not from %d to %d", n.name, n.value, n.lo, n.hi)
		}
	}
	if raw.KeepMiB > 0 && raw.KeepMiB < 2*raw.FileMiB {
		return s, fmt.Errorf("keep_mib %d is less than two files of file_mib %d", raw.KeepMiB, raw.FileMiB)
	}
	return AuditSettings{raw.FileMiB << 20, audit.Keep{Bytes: raw.KeepMiB << 20, For: time.Duration(raw.KeepDays) * 24 * time.Hour}}, nil
}

type controlTOML struct {
	URL          string   `toml:"url"`
	CA           string   `toml:"ca"`
	IdentityDir  *string  `toml:"identity_dir"`
	Proxy        string   `toml:"proxy"`
	Fallback     []string `toml:"fallback"`
	PollInterval *string  `toml:"poll_interval"`
}

const (
	defaultPoll  = time.Minute
	shortestPoll = 5 * time.Second
	longestPoll  = 24 * time.Hour
	maxFallback  = 8
)

func (raw *controlTOML) control() (*Control, error) {
	c := &Control{URL: strings.TrimSuffix(raw.URL, "/"), CA: raw.CA, IdentityDir: defaultIdentityDir, Proxy: raw.Proxy, Fallback: raw.Fallback, PollInterval: defaultPoll}
	if raw.IdentityDir != nil {
		c.IdentityDir = *raw.IdentityDir
	}
	switch u, err := url.Parse(c.URL); {
	case c.URL == "": // not enrolled yet, or there is a fallback
	case err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil:
		return nil, fmt.Errorf("url %q is not https://NAME or https://NAME:PORT", raw.URL)
	}
	for _, p := range []struct{ name, path string }{{"ca", c.CA}, {"identity_dir", c.IdentityDir}} {
		if !filepath.IsAbs(p.path) && (p.name != "ca" || p.path != "") {
			return nil, fmt.Errorf("%s %q is not an absolute path", p.name, p.path)
		}
	}
	if u, err := url.Parse(c.Proxy); c.Proxy != "" && (err != nil || u.Scheme != "http" || u.Host == "") {
		return nil, errors.New("proxy is not http://HOST:PORT or http://USER:PASSWORD@HOST:PORT") // it may hold a password
	}
	if len(c.Fallback) > maxFallback {
		return nil, fmt.Errorf("%d entries of fallback, the limit is %d", len(c.Fallback), maxFallback)
	}
	for i, f := range c.Fallback {
		u, err := url.Parse(f)
		if !filepath.IsAbs(f) && (err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "") {
			return nil, fmt.Errorf("fallback[%d] %q is neither a URL of http or https nor an absolute path", i, f)
		}
	}
	if raw.PollInterval != nil {
		d, err := time.ParseDuration(*raw.PollInterval)
		if err != nil || d < shortestPoll || d > longestPoll {
			return nil, fmt.Errorf(`poll_interval %q is not a time from %s to %s, like "1m"`, *raw.PollInterval, shortestPoll, longestPoll)
		}
		c.PollInterval = d
	}
	return c, nil
}

// LoadSettings reads and checks a settings file. One that somebody else than
// root or this process's user may have written, or exchanged, is refused
// unread.
func LoadSettings(path string) (Settings, error) {
	whole, err := filepath.Abs(path)
	if err != nil {
		return Settings{}, fmt.Errorf("settings: %w", err)
	}
	text, err := readFile(whole, settingsTerms)
	if errors.Is(err, fs.ErrNotExist) {
		return Settings{}, fmt.Errorf("settings: %w: make it (one line, host_id = \"…\", is enough) or name another with --config", err)
	}
	if err != nil {
		return Settings{}, fmt.Errorf("settings: %w", err)
	}
	s, err := ParseSettings(text)
	if err != nil {
		return Settings{}, fmt.Errorf("%s:%w", path, err)
	}
	if s.HostID == auto {
		i, err := identify(HostFilePath(path), ThisMachine(), MachineID)
		if err != nil {
			return Settings{}, fmt.Errorf("%s: host_id = \"auto\": %w", path, err)
		}
		s.HostID, s.HostFrom, s.HostNote, s.HostRefused = i.id, i.from, i.note, i.refused
	}
	return s, nil
}

// ParseSettings checks the text of a settings file. Its errors begin with the
// line they are about, or with a space where there is none. Editors of Windows
// put a byte order mark before it.
func ParseSettings(text []byte) (Settings, error) {
	raw := settingsTOML{
		Mode:     string(Observe),
		Guard:    []any{int64(22)},
		InboxDir: defaultInboxDir,
		StateDir: defaultStateDir,
		Socket:   defaultSocket,
		Audit:    auditTOML{FileMiB: audit.DefaultFull >> 20, KeepMiB: defaultKeepMiB},
	}
	decoder := toml.NewDecoder(strings.NewReader(strings.TrimPrefix(string(text), "\ufeff"))).DisallowUnknownFields()
	if err := decoder.Decode(&raw); err != nil {
		return Settings{}, locate(err)
	}
	s, err := raw.settings()
	if err != nil {
		return Settings{}, fmt.Errorf(" %w", err)
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

func (raw settingsTOML) settings() (s Settings, err error) {
	if raw.HostID == "" {
		return s, errors.New(`host_id is missing: set it to this VM's resource id, or to "auto"`)
	}
	s = Settings{HostID: raw.HostID, HostFrom: FromSettings, Mode: Mode(raw.Mode), InboxDir: raw.InboxDir, StateDir: raw.StateDir, Socket: raw.Socket}
	if s.Mode != Observe && s.Mode != Enforce {
		return s, fmt.Errorf("mode %q is not observe or enforce", raw.Mode)
	}
	for i, entry := range raw.Guard {
		ports, err := parseGuard(entry)
		if err != nil {
			return s, fmt.Errorf("guard[%d]: %w", i, err)
		}
		s.Guard = firewall.Union(s.Guard, ports)
	}
	for _, p := range []struct{ name, path string }{{"inbox_dir", s.InboxDir}, {"state_dir", s.StateDir}, {"socket", s.Socket}} {
		if !filepath.IsAbs(p.path) {
			return s, fmt.Errorf("%s %q is not an absolute path", p.name, p.path)
		}
	}
	if raw.TrustPin != "" {
		if s.TrustPin, err = policy.ParseDigest(raw.TrustPin); err != nil {
			return s, fmt.Errorf("trust_pin: %w", err)
		}
	}
	if raw.Metrics != "" {
		if s.Metrics, err = netip.ParseAddrPort(raw.Metrics); err != nil || !s.Metrics.Addr().IsLoopback() || s.Metrics.Port() == 0 {
			return s, fmt.Errorf("metrics %q is not a port of this host alone, like 127.0.0.1:9477", raw.Metrics)
		}
	}
	if raw.Control != nil {
		if s.Control, err = raw.Control.control(); err != nil {
			return s, fmt.Errorf("[control]: %w", err)
		}
	}
	if s.Audit, err = raw.Audit.audit(); err != nil {
		return s, fmt.Errorf("[audit]: %w", err)
	}
	return s, nil
}

// parseGuard reads 22, "3389/udp" or "5985-5986/tcp". Without a protocol it
// is both.
func parseGuard(entry any) ([]firewall.Port, error) {
	var s string
	switch v := entry.(type) {
	case int64:
		s = fmt.Sprint(v)
	case string:
		s = v
	default:
		return nil, fmt.Errorf("%v is not a port", entry)
	}
	protocols := []string{""}
	if !strings.Contains(s, "/") {
		protocols = []string{"/tcp", "/udp"}
	}
	var ports []firewall.Port
	for _, protocol := range protocols {
		p, err := firewall.ParsePort(s + protocol)
		if err != nil || p.Cut {
			return nil, fmt.Errorf(`%q is not a port like 22, "3389/udp" or "5985-5986/tcp"`, s)
		}
		ports = append(ports, p)
	}
	return ports, nil
}
