package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

const (
	markFile    = "mark.json"
	horizonFile = "horizon.json"
	usesFile    = "uses.json"
	modeFile    = "mode.json"
	// formerFile is the trust document before trust.json. Without it a crash
	// between a new one and its mark would leave nobody to say who may follow
	// the old one.
	formerFile = "trust.former.json"
)

// mark is what the agent must not forget across a restart. It is written
// before anything opens on the strength of it.
type mark struct {
	policy.State
	// Host is whose policy and grants the marks count; empty before there was
	// this name.
	Host string `json:"host,omitempty"`
	// Former is what is remembered of the host this was before: a name that
	// goes and comes back brings nothing old with it.
	Former *formerHost `json:"former,omitempty"`
	// Pin is the first trust document the marks belong to. With another pin
	// in the settings this is another realm, and the marks begin anew.
	Pin policy.Digest `json:"pin,omitzero"`
	// Guarded is what the last policy guarded. If its document is lost, its
	// ports stay closed all the same.
	Guarded []string `json:"guarded,omitempty"`
	// Void lists the ids of listed grants that a lockdown ended for good.
	Void []string `json:"void,omitempty"`
}

// formerHost is what a mark holds of one host id.
type formerHost struct {
	Host   string      `json:"host"`
	Policy policy.Mark `json:"policy,omitzero"`
	Grants policy.Mark `json:"grants,omitzero"`
	Void   []string    `json:"void,omitempty"`
}

// of returns the mark for a host id. What counts versions of documents for
// another one is put by; the trust mark, the clock floor and the ports that
// are guarded belong to the machine whatever its name. It is pure.
func (m mark) of(host string) mark {
	if m.Host == "" {
		m.Host = host
	}
	if strings.EqualFold(m.Host, host) {
		return m
	}
	next := formerHost{Host: host}
	if m.Former != nil && strings.EqualFold(m.Former.Host, host) {
		next = *m.Former
	}
	m.Former = &formerHost{m.Host, m.Policy, m.Grants, m.Void}
	m.Host, m.Policy, m.Grants, m.Void = next.Host, next.Policy, next.Grants, next.Void
	return m
}

// store keeps the mark and the admitted documents in the state directory.
type store struct{ dir string }

// load returns what was saved: the zero mark if nothing was.
func (s store) load() (m mark, documents [kinds][]byte, err error) {
	err = s.read(markFile, &m)
	var damaged damage
	switch {
	case errors.As(err, &damaged):
		return mark{}, documents, fmt.Errorf("%w: restore it, or remove it to trust the next documents anew", err)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return mark{}, documents, err
	}
	for k := range kinds {
		documents[k], err = readFile(filepath.Join(s.dir, k.File()), stateTerms)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return mark{}, documents, err
		}
	}
	return m, documents, nil
}

// Followed reports whether the state directory has a trust document of the
// realm that trust_pin is of.
func (s Settings) Followed() bool {
	m, documents, err := store{s.StateDir}.load()
	return err == nil && m.Pin == s.TrustPin && documents[Trust] != nil
}

// Trusts reports whether the trust document in force here, of the realm that
// trust_pin is of, has the digest d.
func (s Settings) Trusts(d policy.Digest) bool {
	m, documents, err := store{s.StateDir}.load()
	return err == nil && m.Pin == s.TrustPin && m.State.Trust.Digest == d && documents[Trust] != nil
}

// damage is the error of a file that may be read, and is not what an agent
// wrote.
type damage struct {
	path string
	err  error
}

func (d damage) Error() string { return d.path + ": " + d.err.Error() }

// read decodes what write wrote.
func (s store) read(name string, v any) error {
	path := filepath.Join(s.dir, name)
	text, err := readFile(path, stateTerms)
	if err != nil {
		return err
	}
	if err := decodeState(text, v); err != nil {
		return damage{path, err}
	}
	return nil
}

// readIfThere is read, to which a file that is not there is no error.
func (s store) readIfThere(name string, v any) (found bool, err error) {
	err = s.read(name, v)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// decodeState reads the text of a file of the state directory into v.
func decodeState(text []byte, v any) error {
	text, err := unsum(text)
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields() // of a newer program, and not to be forgotten
	switch err = decoder.Decode(v); err {
	case nil:
		if _, end := decoder.Token(); end != io.EOF {
			return errors.New("more than one value")
		}
	case io.EOF:
		return errors.New("empty")
	}
	return err
}

// write replaces a file by v as JSON, with the sum of that in its last line.
// With flush that is durable, and so is every name given in the directory
// before.
func (s store) write(name string, v any, flush bool) error {
	if err := makePrivateDir(s.dir); err != nil {
		return err
	}
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(s.dir, name, withSum(text), flush); err != nil || !flush {
		return err
	}
	return syncDir(s.dir)
}

// sumLine is the last name in a file of the state directory: the SHA-256 of the
// file without it. A disk that changed a bit shows. Without the line a file
// counts as it is: an older program wrote it, or somebody by hand.
var sumLine = regexp.MustCompile(`,?\n  "sum": "sha256:([0-9a-f]{64})"\n}\n$`)

func withSum(text []byte) []byte {
	members, comma := bytes.TrimSuffix(text, []byte("\n}")), ","
	if string(text) == "{}" {
		members, comma = []byte("{"), ""
	}
	return fmt.Appendf(nil, "%s%s\n  \"sum\": \"sha256:%x\"\n}\n", members, comma, sha256.Sum256(text))
}

func unsum(text []byte) ([]byte, error) {
	at := sumLine.FindSubmatchIndex(text)
	if at == nil {
		return text, nil
	}
	rest := append(bytes.Clone(text[:at[0]]), "\n}"...)
	if string(rest) == "{\n}" {
		rest = []byte("{}")
	}
	if sum := sha256.Sum256(rest); hex.EncodeToString(sum[:]) != string(text[at[2]:at[3]]) {
		return nil, errors.New("changed since it was written: its sum is another")
	}
	return rest, nil
}

// former returns the trust document that was replaced last, or nil.
func (s store) former() []byte {
	raw, err := readFile(filepath.Join(s.dir, formerFile), stateTerms)
	if err != nil {
		return nil
	}
	return raw
}

// save makes changed documents and the mark durable, the documents first: a
// crash in between leaves a document newer than the mark, which is admitted
// again at the next start. The other way round the mark would ask for a
// document nobody has. former is the trust document of the mark on the disk.
func (s store) save(m mark, documents [kinds][]byte, changed [kinds]bool, former []byte) error {
	if err := makePrivateDir(s.dir); err != nil {
		return err
	}
	if changed[Trust] && former != nil && !bytes.Equal(former, documents[Trust]) {
		if err := writeFile(s.dir, formerFile, former, true); err != nil {
			return err
		}
	}
	for k := range kinds {
		if !changed[k] {
			continue
		}
		if err := writeFile(s.dir, k.File(), documents[k], true); err != nil {
			return err
		}
	}
	return s.write(markFile, m, true)
}

// savedHorizon is a horizon with the boot whose clock it is on, and how far
// that clock had come.
type savedHorizon struct {
	BootID  string            `json:"bootID"`
	Seen    firewall.BootTime `json:"seen"`
	Stopped bool              `json:"stopped,omitempty"` // by an agent that went in an orderly way
	Anchors horizon           `json:"anchors"`
}

// crashLoss is how much of a boot's time may be missing in what a crash left:
// the time between two saves, and what the disk was not told of yet.
const crashLoss = 2 * Resync

// in returns the horizon on the clock of the boot of that name, or nil if
// nothing is known of it. Another boot began when what was seen last had passed
// at the least, so an end is no farther than it was then: a wall clock that is
// set back before a reboot lengthens nothing.
func (s savedHorizon) in(bootID string) horizon {
	if bootID == "" || s.BootID == "" || s.Anchors == nil {
		return nil
	}
	passed := firewall.BootTime(0)
	if s.BootID != bootID {
		if passed = s.Seen; !s.Stopped {
			passed = passed.Add(crashLoss)
		}
	}
	h := make(horizon, len(s.Anchors))
	for name, a := range s.Anchors {
		h[name] = anchor{a.End, a.At - passed}
	}
	return h
}

// saveHorizon keeps the horizon for the next agent. A crash may lose the last
// one saved (crashLoss).
func (s store) saveHorizon(h savedHorizon) error {
	if h.BootID == "" {
		return nil
	}
	return s.write(horizonFile, h, false)
}

// loadHorizon returns what an earlier agent saved, on the clock of this boot;
// else an empty horizon. The error says what was lost.
func (s store) loadHorizon(bootID string) (horizon, error) {
	var saved savedHorizon
	err := s.read(horizonFile, &saved)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		if h := saved.in(bootID); h != nil {
			return h, nil
		}
	}
	return horizon{}, err
}

// saveStanding makes the mode durable.
func (s store) saveStanding(m standing) error {
	return s.write(modeFile, m, true)
}

// loadStanding returns the mode as commands left it: the zero standing if none
// did.
func (s store) loadStanding() (m standing, err error) {
	err = s.read(modeFile, &m)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return standing{}, nil
	case err != nil:
		return standing{}, err
	case m.Mode != "" && m.Mode != Observe && m.Mode != Enforce && m.Mode != Off:
		return standing{}, damage{filepath.Join(s.dir, modeFile), fmt.Errorf("mode %q is none", m.Mode)}
	}
	return m, nil
}

func formatPorts(ports []firewall.Port) []string {
	var out []string
	for _, p := range ports {
		out = append(out, p.String())
	}
	return out
}

func parsePorts(list []string) ([]firewall.Port, error) {
	var out []firewall.Port
	for _, s := range list {
		p, err := firewall.ParsePort(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}
