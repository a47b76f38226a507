package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// auto is the host_id that is looked up.
const auto = "auto"

// FromMachineID is the source of a host id that is the machine id; the other
// sources are cloud.Service's. FromSettings is that of one somebody wrote.
const (
	FromMachineID = "machine-id"
	FromSettings  = "settings"
)

// HostFile is host.json: this host's id as it was found when jitgate host-id
// --write was run, and the machine that was run on.
type HostFile struct {
	ID      string    `json:"id"`
	From    string    `json:"from"`
	Machine Machine   `json:"machine"`
	Written time.Time `json:"written"`
}

const hostFile = "host.json"

// HostFilePath is where the host.json of a settings file lies: beside it.
func HostFilePath(config string) string { return filepath.Join(filepath.Dir(config), hostFile) }

// hostFileTerms are those of settings: whoever could write it could make this
// host another one.
var hostFileTerms = terms{limit: 16 << 10, linked: true, named: true}

// LoadHostFile reads host.json and requires that it is whole, written by
// nobody but root, and of machine. The error is fs.ErrNotExist where there is
// none.
func LoadHostFile(path string, machine Machine) (HostFile, error) {
	text, err := readFile(path, hostFileTerms)
	if err != nil {
		return HostFile{}, err
	}
	h, err := parseHostFile(text)
	if err == nil && h.Machine.contradicts(machine) {
		err = errors.New("it was written on another machine, as in a cloned image")
	}
	if err != nil {
		return HostFile{}, fmt.Errorf("%s: %w", path, err)
	}
	return h, nil
}

func parseHostFile(text []byte) (h HostFile, err error) {
	if err := json.Unmarshal(text, &h); err != nil {
		return HostFile{}, err
	}
	if err := policy.CheckHostID(h.ID); err != nil {
		return HostFile{}, err
	}
	if h.From == "" {
		return HostFile{}, errors.New("it does not say where the id is from")
	}
	return h, nil
}

// Write makes h the host.json at path, durable, for all to read.
func (h HostFile) Write(path string) error {
	text, err := json.MarshalIndent(h, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := writeFile(dir, filepath.Base(path), append(text, '\n'), true); err != nil {
		return err
	}
	return errors.Join(os.Chmod(path, 0o644), syncDir(dir)) // whatever the umask
}

// identity is how this host calls itself.
type identity struct {
	id, from string
	// note says what to do about an id that was fallen back to; refused, why a
	// host.json that is there is not used.
	note, refused string
}

// identify looks up host_id = "auto": what the host.json at path says, else
// the machine id.
func identify(path string, machine Machine, machineID func() (string, error)) (identity, error) {
	h, err := LoadHostFile(path, machine)
	if err == nil {
		return identity{id: h.ID, from: h.From}, nil
	}
	i := identity{from: FromMachineID, note: fmt.Sprintf("there is no %s, so the machine id is this host's: jitgate host-id --write asks the cloud", path)}
	if !errors.Is(err, fs.ErrNotExist) {
		i.refused = err.Error()
		i.note = fmt.Sprintf("%v, so the machine id is this host's: jitgate host-id --write makes it anew", err)
	}
	if i.id, err = machineID(); err != nil {
		return identity{}, fmt.Errorf("%w: set host_id, or run jitgate host-id --write", err)
	}
	return i, nil
}
