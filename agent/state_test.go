package agent

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

// A file of the state directory in which the disk changed any bit is not
// believed.
func TestOneChangedBitOfTheState(t *testing.T) {
	s := store{memoryDir(t)}
	m := mark{State: policy.State{Trust: policy.Mark{Version: 3, Digest: policy.Digest{1}}, Grants: policy.Mark{Epoch: 1, Version: 1}, Floor: noon},
		Guarded: []string{"22/tcp"}, Void: []string{"a", "b"}}
	armed := standing{Mode: Observe, Trial: true, Until: 5, BootID: "this boot"}
	ends := savedHorizon{BootID: "this boot", Seen: 7, Anchors: horizon{"grant a": {noon, firewall.BootTime(time.Hour)}}}
	for name, v := range map[string]any{markFile: m, modeFile: armed, horizonFile: ends, "empty.json": standing{}} {
		if err := s.write(name, v, false); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(s.dir, name)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		read := func(text []byte) (any, error) {
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			into := reflect.New(reflect.TypeOf(v))
			err := s.read(name, into.Interface())
			return into.Elem().Interface(), err
		}
		if got, err := read(text); err != nil || !reflect.DeepEqual(got, v) {
			t.Fatalf("%s: read %+v, %v", name, got, err)
		}
		var any map[string]any
		if err := json.Unmarshal(text, &any); err != nil || any["sum"] == nil {
			t.Errorf("%s is no JSON with a sum: %v\n%s", name, err, text)
		}
		// Without its sum it counts: an older program wrote it, or somebody by hand.
		at := bytes.LastIndex(text, []byte(`,`+"\n"+`  "sum"`))
		if at > 0 {
			if got, err := read(append(bytes.Clone(text[:at]), '}')); err != nil || !reflect.DeepEqual(got, v) {
				t.Errorf("%s without its sum: read %+v, %v", name, got, err)
			}
		}
		for i := range text {
			for bit := range 8 {
				changed := bytes.Clone(text)
				changed[i] ^= 1 << bit
				if got, err := read(changed); err == nil && !reflect.DeepEqual(got, v) {
					t.Fatalf("%s with bit %d of byte %d changed is read as %+v:\n%s", name, bit, i, got, changed)
				}
			}
			if _, err := read(text[:i]); err == nil && i < len(text)-1 {
				t.Errorf("%s cut at %d is read", name, i)
			}
		}
	}
}

// What no agent wrote is not believed either.
func TestStateNobodyWrote(t *testing.T) {
	s := store{t.TempDir()}
	for text, want := range map[string]string{
		"":                           "empty",
		"\x00\x00\x00\x00":           "invalid character",
		`{"void": ["a"]} {}`:         "more than one value",
		`{"void": ["a"], "vod": 1}`:  `unknown field "vod"`,
		`{"trust": {"version": -1}}`: "cannot unmarshal",
		"[]":                         "cannot unmarshal",
	} {
		if err := os.WriteFile(filepath.Join(s.dir, markFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.load(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "restore it, or remove it") {
			t.Errorf("%q: got %v, want %s and what to do", text, err, want)
		}
	}
}

func FuzzUnsum(f *testing.F) {
	f.Add([]byte("{}"), []byte("{}"))
	f.Add(withSum([]byte("{}")), []byte("{\n  \"a\": 1\n}"))
	f.Fuzz(func(t *testing.T, text, v []byte) {
		// Nothing crashes, and what has a sum that holds is what was summed.
		if rest, err := unsum(text); err == nil && !bytes.Equal(rest, text) && !bytes.Equal(withSum(rest), text) &&
			!bytes.Equal(rest, []byte("{}")) {
			t.Errorf("%q is read as %q", text, rest)
		}
		if !bytes.HasSuffix(v, []byte("\n}")) || len(v) == 3 {
			return
		}
		if rest, err := unsum(withSum(v)); err != nil || !bytes.Equal(rest, v) {
			t.Errorf("%q comes back as %q, %v", v, rest, err)
		}
	})
}

// The mark is lost: what was admitted is judged anew, as if it were delivered,
// and does not wait for a delivery.
func TestMarkLost(t *testing.T) {
	w := newWorld(t)
	w.deliver(func(p *policy.Policy) { p.Ports[0].Number, p.Ports[0].EndNumber = 2222, 2222 })
	g := w.grant("a", alice, 0, time.Hour)
	g.Number = 2222
	w.list(g)
	w.mustPass(0)
	v, err := policy.OpenPinnedTrust(w.trust.Encode(), w.trust.Digest())
	if err != nil {
		t.Fatal(err)
	}
	next := v.Document()
	next.Version++ // the pin names the one before
	w.put(Trust, w.sign(policy.TypeTrust, policy.RoleRoot, next.Encode()))
	w.mustPass(time.Second)
	for _, remove := range []string{w.Settings.InboxDir, filepath.Join(w.Settings.StateDir, markFile)} {
		if err := os.RemoveAll(remove); err != nil {
			t.Fatal(err)
		}
	}
	w.restart()
	w.mustPass(time.Second)
	if w.mark.Trust.Version != 2 || w.mark.Policy.Version != 1 || w.mark.Grants.Version != 1 || len(w.live) != 1 {
		t.Errorf("the mark is %+v, in force are %v", w.mark, w.live)
	}
	if got := formatPorts(w.guarded()); len(got) != 1 || got[0] != "2222/tcp" {
		t.Errorf("guarded: %v", got)
	}
}
