package store

import (
	"database/sql"
	"slices"
	"strings"

	"github.com/jitgate/jitgate/control"
)

// keyIndex has the Keys of all machines and their tabs, as the database had
// them in one version: some hundred bytes a machine. Part of a name is found
// in it in milliseconds, which takes a database a tenth of a second.
type keyIndex struct {
	version int64
	keys    string // each ends with keyEnd, in their order
	starts  []int  // of each in keys
	tabs    []control.Tab
}

// keyEnd is in no name.
const keyEnd = "\n"

// machineVersion is the counter that rises with every change of the machines
// that there are and of their tabs.
const machineVersion = "machine"

// keyIndex is that of the state that the transaction sees. It is read anew when
// something has changed.
func (t *tx) keyIndex() (*keyIndex, error) {
	x := &keyIndex{}
	err := t.read(func(rows *sql.Rows) error { return rows.Scan(&x.version) }, "SELECT value FROM counter WHERE name = ?", machineVersion)
	if err != nil {
		return nil, err
	}
	if kept := t.store.keys.Load(); kept != nil && kept.version == x.version {
		return kept, nil
	}
	var keys strings.Builder
	err = t.read(func(rows *sql.Rows) error {
		var key string
		var tab control.Tab
		if err := rows.Scan(&key, &tab); err != nil {
			return err
		}
		for _, known := range []control.Tab{control.Configured, control.NotConfigured, control.Unsupported} {
			if tab == known {
				tab = known // one string for all
			}
		}
		x.starts, x.tabs = append(x.starts, keys.Len()), append(x.tabs, tab)
		keys.WriteString(key + keyEnd)
		return nil
	}, "SELECT id, tab FROM machine ORDER BY id")
	if err != nil {
		return nil, err
	}
	x.keys = keys.String()
	if !t.readOnly {
		return x, nil // nobody else may see it yet
	}
	t.store.keys.Store(x)
	return x, nil
}

// key is number i.
func (x *keyIndex) key(i int) string {
	return x.keys[x.starts[i] : x.end(i+1)-len(keyEnd)]
}

// end is where those before number i end.
func (x *keyIndex) end(i int) int {
	if i < len(x.starts) {
		return x.starts[i]
	}
	return len(x.keys)
}

// from is the first that is not before a Key.
func (x *keyIndex) from(key string) int {
	i, _ := slices.BinarySearchFunc(x.starts, key, func(start int, key string) int {
		end := start + strings.Index(x.keys[start:], keyEnd)
		return strings.Compare(x.keys[start:end], key)
	})
	return i
}

// find finds what a filter with a Search selects.
func (x *keyIndex) find(f control.MachineFilter) (found []string) {
	part := fold(f.Search)
	if strings.Contains(part, keyEnd) {
		return nil
	}
	at, to := x.from(fold(f.From)), len(x.starts)
	if f.After != "" {
		after := fold(f.After)
		behind := x.from(after)
		if behind < len(x.starts) && x.key(behind) == after {
			behind++
		}
		at = max(at, behind)
	}
	if f.To != "" {
		to = x.from(fold(f.To))
	}
	for at < to && (f.Limit <= 0 || len(found) < f.Limit) {
		hit := strings.Index(x.keys[x.starts[at]:x.end(to)], part)
		if hit < 0 {
			break
		}
		hit += x.starts[at]
		of, exact := slices.BinarySearch(x.starts, hit)
		if !exact {
			of--
		}
		if f.Tab == "" || x.tabs[of] == f.Tab {
			found = append(found, x.key(of))
		}
		at = of + 1
	}
	return found
}
