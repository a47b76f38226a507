package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/jitgate/jitgate/firewall"
)

// baselineFile closes the guarded ports when the machine starts, before an
// agent does: jitgate-baseline.service has nft(8) load it. It is there as long
// as the guard drops for good. A trial is over with the boot it began in.
const baselineFile = "baseline.nft"

// baseline is what the file should hold: nil for no file.
func (a *Agent) baseline() []byte {
	ports := a.guarded()
	if len(ports) == 0 || a.standing.at(a.Settings.Mode, firewall.Never).Mode != Enforce {
		return nil
	}
	return bootRules(ports)
}

// settleBaseline brings the file there. An agent that does not know how the
// guard stood, or which ports it was about, leaves it as one that did left it.
func (a *Agent) settleBaseline() error {
	if a.modeErr != nil || a.unread != nil {
		return nil
	}
	want := a.baseline()
	if a.unsettled == nil && a.settled && bytes.Equal(want, a.closing) {
		return nil
	}
	if err := a.store.saveBaseline(want); err != nil {
		return fmt.Errorf("what the machine closes when it starts cannot be changed: %w", err)
	}
	a.settled, a.closing = true, want
	return nil
}

// saveBaseline makes the file durable as it should be, or its absence.
func (s store) saveBaseline(want []byte) error {
	path := filepath.Join(s.dir, baselineFile)
	if want == nil {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return syncDir(s.dir)
	}
	if have, err := readFile(path, stateTerms); err == nil && bytes.Equal(have, want) {
		return nil
	}
	if err := makePrivateDir(s.dir); err != nil {
		return err
	}
	if err := writeFile(s.dir, baselineFile, want, true); err != nil {
		return err
	}
	return syncDir(s.dir)
}
