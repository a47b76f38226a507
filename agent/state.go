package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

const (
	markFile    = "mark.json"
	horizonFile = "horizon.json"
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
	// Pin is the first trust document the marks belong to. With another pin
	// in the settings this is another realm, and the marks begin anew.
	Pin policy.Digest `json:"pin,omitzero"`
	// Guarded is what the last policy guarded. If its document is lost, its
	// ports stay closed all the same.
	Guarded []string `json:"guarded,omitempty"`
	// Void lists the ids of listed grants that a lockdown ended for good.
	Void []string `json:"void,omitempty"`
}

// store keeps the mark and the admitted documents in the state directory.
type store struct{ dir string }

// load returns what was saved: the zero mark if nothing was.
func (s store) load() (m mark, documents [kinds][]byte, err error) {
	text, err := os.ReadFile(filepath.Join(s.dir, markFile))
	if errors.Is(err, fs.ErrNotExist) {
		return mark{}, documents, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		return mark{}, documents, fmt.Errorf("%s: %w", filepath.Join(s.dir, markFile), err)
	}
	for k := range kinds {
		documents[k], err = os.ReadFile(filepath.Join(s.dir, k.File()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return mark{}, documents, err
		}
	}
	return m, documents, nil
}

// former returns the trust document that was replaced last, or nil.
func (s store) former() []byte {
	raw, err := os.ReadFile(filepath.Join(s.dir, formerFile))
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
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if changed[Trust] && former != nil && !bytes.Equal(former, documents[Trust]) {
		if err := writeFile(s.dir, formerFile, former, 0o600); err != nil {
			return err
		}
	}
	for k := range kinds {
		if !changed[k] {
			continue
		}
		if err := writeFile(s.dir, k.File(), documents[k], 0o600); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(s.dir, markFile, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return syncDir(s.dir)
}

// savedHorizon is a horizon with the boot whose clock it is on.
type savedHorizon struct {
	BootID  string  `json:"bootID"`
	Anchors horizon `json:"anchors"`
}

// saveHorizon keeps the horizon for the next agent of this boot. It need not
// outlive a power cut: the boot clock it is on does not either.
func (s store) saveHorizon(bootID string, h horizon) error {
	if bootID == "" {
		return nil
	}
	text, err := json.Marshal(savedHorizon{bootID, h})
	if err != nil {
		return err
	}
	temporary := filepath.Join(s.dir, "."+horizonFile+".new")
	if err := os.WriteFile(temporary, text, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(s.dir, horizonFile))
}

// loadHorizon returns what an earlier agent of this boot saved; else an empty
// horizon.
func (s store) loadHorizon(bootID string) horizon {
	var saved savedHorizon
	text, err := os.ReadFile(filepath.Join(s.dir, horizonFile))
	if err != nil || json.Unmarshal(text, &saved) != nil || saved.BootID != bootID || bootID == "" || saved.Anchors == nil {
		return horizon{}
	}
	return saved.Anchors
}

// saveStanding makes the mode durable.
func (s store) saveStanding(m standing) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(s.dir, modeFile, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return syncDir(s.dir)
}

// loadStanding returns the mode as commands left it: the zero standing if none
// did.
func (s store) loadStanding() (m standing, err error) {
	text, err := os.ReadFile(filepath.Join(s.dir, modeFile))
	if errors.Is(err, fs.ErrNotExist) {
		return standing{}, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err == nil && m.Mode != "" && m.Mode != Observe && m.Mode != Enforce && m.Mode != Off {
		err = fmt.Errorf("mode %q is none", m.Mode)
	}
	if err != nil {
		return standing{}, fmt.Errorf("%s: %w", filepath.Join(s.dir, modeFile), err)
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
