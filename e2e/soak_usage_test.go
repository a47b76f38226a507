//go:build linux && soak

package e2e_test

import (
	"cmp"
	"context"
	"debug/dwarf"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// usage is what a process takes up.
type usage struct {
	descriptors, goroutines int
	resident                int64 // bytes
	live                    int64 // bytes of the heap that the last collection left
}

// runtimeOf is where the runtime of a Go program keeps what it knows of
// itself. Agent and fetcher have no door for profiles: their memory is read as
// a debugger does.
type runtimeOf struct {
	allgs        uint64 // the slice of pointers to all goroutines that ever were
	status       uint64 // of a goroutine, from its beginning
	marked       uint64 // what the last collection left
	gdead, gscan uint32
}

// newRuntimeOf reads the symbols and types of a program.
func newRuntimeOf(program string) (r runtimeOf, err error) {
	file, err := elf.Open(program)
	if err != nil {
		return r, err
	}
	defer file.Close()
	symbols, err := file.Symbols()
	if err != nil {
		return r, err
	}
	at := map[string]uint64{}
	for _, s := range symbols {
		at[s.Name] = s.Value
	}
	data, err := file.DWARF()
	if err != nil {
		return r, err
	}
	found := map[string]uint64{}
	for entries := data.Reader(); ; {
		e, err := entries.Next()
		if err != nil {
			return r, err
		}
		if e == nil {
			break
		}
		name, _ := e.Val(dwarf.AttrName).(string)
		switch {
		case e.Tag == dwarf.TagStructType && (name == "runtime.g" || name == "runtime.gcControllerState"):
			t, err := data.Type(e.Offset)
			if err != nil {
				return r, err
			}
			for _, field := range t.(*dwarf.StructType).Field {
				found[name+"."+field.Name] = uint64(field.ByteOffset)
			}
		case e.Tag == dwarf.TagConstant && (name == "runtime._Gdead" || name == "runtime._Gscan"):
			n, _ := e.Val(dwarf.AttrConstValue).(int64)
			found[name] = uint64(n)
		}
		if e.Tag != dwarf.TagCompileUnit {
			entries.SkipChildren()
		}
	}
	r.allgs = at["runtime.allgs"]
	r.status = found["runtime.g.atomicstatus"]
	r.marked = at["runtime.gcController"] + found["runtime.gcControllerState.heapMarked"]
	r.gdead, r.gscan = uint32(found["runtime._Gdead"]), uint32(found["runtime._Gscan"])
	if r.allgs == 0 || r.status == 0 || at["runtime.gcController"] == 0 || found["runtime.gcControllerState.heapMarked"] == 0 || r.gdead == 0 || r.gscan == 0 {
		return r, fmt.Errorf("%s: the runtime is laid out otherwise: %+v of %v", program, r, found)
	}
	return r, nil
}

// usage measures a process of the program.
func (r runtimeOf) usage(pid int) (u usage, err error) {
	descriptors, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return u, err
	}
	u.descriptors = len(descriptors)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return u, err
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		return u, err
	}
	u.resident = resident * int64(os.Getpagesize())
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return u, err
	}
	defer memory.Close()
	word := func(at uint64) uint64 {
		var b [8]byte
		_, e := memory.ReadAt(b[:], int64(at))
		err = errors.Join(err, e)
		return binary.LittleEndian.Uint64(b[:])
	}
	u.live = int64(word(r.marked))
	first, length := word(r.allgs), word(r.allgs+8)
	if err != nil || length > 1<<20 {
		return u, errors.Join(err, fmt.Errorf("%d goroutines", length))
	}
	goroutines := make([]byte, 8*length)
	if _, err := memory.ReadAt(goroutines, int64(first)); err != nil {
		return u, err
	}
	for ; len(goroutines) > 0; goroutines = goroutines[8:] {
		status := uint32(word(binary.LittleEndian.Uint64(goroutines) + r.status))
		if status&^r.gscan != r.gdead {
			u.goroutines++
		}
	}
	return u, err
}

// median is that of a list, or the zero value of an empty one.
func median[T cmp.Ordered](list []T) (m T) {
	if len(list) == 0 {
		return m
	}
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// sizeOf is what the files of a directory take up.
func sizeOf(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			bytes += info.Size()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a log that went on
		}
		return err
	})
	return bytes, err
}

// program of a soak, as the account has it.
type kind struct {
	name string
	// What it may have more of at the end than near its beginning.
	more usage
}

var (
	agents   = kind{"agent", usage{4, 6, 24 << 20, 4 << 20}}
	fetchers = kind{"fetcher", usage{4, 6, 24 << 20, 4 << 20}}
	// The control plane keeps what it has read of its database.
	planes = kind{"control plane", usage{16, 16, 128 << 20, 48 << 20}}
)

// life is one life of a program, measured near its beginning and at the end.
type life struct {
	kind
	where       string
	age         time.Duration
	first, last usage
}

// leaks says what grew too much.
func (l life) leaks() (what []string) {
	for _, m := range []struct {
		name              string
		first, last, more int64
	}{
		{"descriptors", int64(l.first.descriptors), int64(l.last.descriptors), int64(l.more.descriptors)},
		{"goroutines", int64(l.first.goroutines), int64(l.last.goroutines), int64(l.more.goroutines)},
		{"bytes resident", l.first.resident, l.last.resident, l.more.resident},
		{"bytes of live heap", l.first.live, l.last.live, l.more.live},
	} {
		if m.last > m.first+m.more {
			what = append(what, fmt.Sprintf("%s of %s, %s old: %d %s, and had %d", l.name, l.where, l.age.Round(time.Second), m.last, m.name, m.first))
		}
	}
	return what
}

// grown is the age at which a program has what it needs.
const grown = 30 * time.Second

// baseline notes what each program takes up that is old enough, unless that is
// noted already.
func (s *soak) baseline(least time.Duration) {
	s.eachLife(func(_ kind, _ string, r runtimeOf, pid int, since time.Time, base **usage) {
		if *base == nil && time.Since(since) >= least {
			if u, err := r.usage(pid); err == nil { // else it has ended meanwhile
				*base = &u
			}
		}
	})
}

// lives measures every program of which the beginning is noted.
func (s *soak) lives() (list []life) {
	s.eachLife(func(k kind, where string, r runtimeOf, pid int, since time.Time, base **usage) {
		if *base == nil {
			return
		}
		u, err := r.usage(pid)
		if err != nil {
			s.violated(nil, "%s of %s cannot be measured: %v", k.name, where, err)
			return
		}
		list = append(list, life{k, where, time.Since(since), **base, u})
	})
	return list
}

func (s *soak) eachLife(do func(k kind, where string, r runtimeOf, pid int, since time.Time, base **usage)) {
	for _, h := range s.hosts {
		h.mu.Lock()
		do(agents, h.dir, s.agentOf, h.guard.cmd.Process.Pid, h.guard.since, &h.guard.base)
		do(fetchers, h.dir, s.agentOf, h.fetcher.cmd.Process.Pid, h.fetcher.since, &h.fetcher.base)
		h.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	do(planes, s.dir, s.planeOf, s.planeProcess, s.planeSince, &s.planeBase)
}

// progress prints a line every ten seconds.
func (s *soak) progress(ctx context.Context) {
	for wait(ctx, 10*time.Second) {
		s.baseline(grown)
		var resident [3][]int64
		s.eachLife(func(k kind, _ string, r runtimeOf, pid int, _ time.Time, _ **usage) {
			if u, err := r.usage(pid); err == nil {
				i := slices.Index([]string{agents.name, fetchers.name, planes.name}, k.name)
				resident[i] = append(resident[i], u.resident)
			}
		})
		load, _ := os.ReadFile("/proc/loadavg")
		one, _, _ := strings.Cut(string(load), " ")
		s.mu.Lock()
		faults, actions := 0, 0
		for what, n := range s.counts {
			switch {
			case strings.HasPrefix(what, asFault):
				faults += n
			case !strings.HasPrefix(what, asPacket) && !strings.HasPrefix(what, asTry):
				actions += n
			}
		}
		violations, in, dropped := s.violations, s.counts[letIn], s.counts[notLetIn]
		s.mu.Unlock()
		s.say("%d calls, %d faults, connects: %d let in, %d dropped; %d violations; MB resident: agent %d, fetcher %d, control plane %d; load %s",
			actions, faults, in, dropped, violations, median(resident[0])>>20, median(resident[1])>>20, median(resident[2])>>20, one)
	}
}

// account prints what was done and what is left, and holds it against what may
// be.
func (s *soak) account() {
	s.t.Helper()
	s.say("the account: %s", s.counted())
	s.say("the longest time in which, as documented, nothing guarded a host: %s", s.exposed.Round(time.Millisecond))
	lives := s.lives()
	for _, k := range []kind{agents, fetchers, planes} {
		var ages []time.Duration
		var first, last [4][]int64
		for _, l := range lives {
			if l.name != k.name {
				continue
			}
			ages = append(ages, l.age)
			for i, u := range []usage{l.first, l.last} {
				to := []*[4][]int64{&first, &last}[i]
				for j, n := range []int64{int64(u.descriptors), int64(u.goroutines), u.resident >> 10, u.live >> 10} {
					to[j] = append(to[j], n)
				}
			}
		}
		text := ""
		for j, name := range []string{"descriptors", "goroutines", "KB resident", "KB of live heap"} {
			text += fmt.Sprintf("; %s %d, then %d (most %d, then %d)", name, median(first[j]), median(last[j]), most(first[j]), most(last[j]))
		}
		s.say("%ss: %d, half of them older than %s%s", k.name, len(ages), median(ages).Round(time.Second), text)
	}
	for _, l := range lives {
		for _, leak := range l.leaks() {
			s.violated(nil, "leak: %s", leak)
		}
	}
	s.leftovers()
}

func most(list []int64) int64 {
	if len(list) == 0 {
		return 0
	}
	return slices.Max(list)
}

// leftovers are what all the openings have left behind in kernel and files.
func (s *soak) leftovers() {
	s.t.Helper()
	var states, records, conntrack, elements []int64
	for _, h := range s.hosts {
		listing, err := h.vm.try("nft", "-n", "list", "ruleset")
		if err != nil {
			s.violated(h, "nft: %v: %s", err, listing)
			continue
		}
		open, all := elementsOf(listing)
		if open > 0 {
			s.violated(h, "%d openings are left in the kernel:\n%s", open, listing)
		}
		if n := strings.Count("\n"+listing, "\ntable "); n != 1 {
			s.violated(h, "it has %d tables:\n%s", n, listing)
		}
		elements = append(elements, int64(all))
		var text []byte
		h.vm.do(func() { text, err = os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count") })
		var n int64
		if err == nil {
			_, err = fmt.Sscan(string(text), &n)
		}
		if err != nil {
			s.t.Error(err)
		}
		conntrack = append(conntrack, n)
		state, err := sizeOf(h.path("state"))
		if err != nil {
			s.t.Error(err)
		}
		record, err := sizeOf(h.path("state", "audit"))
		if err != nil {
			s.t.Error(err)
		}
		states, records = append(states, state-record), append(records, record)
	}
	listing, err := s.outside.try("nft", "list", "tables")
	if err != nil || strings.TrimSpace(listing) != "" {
		s.violated(nil, "a cut is left: %v %s", err, listing)
	}
	data, err := sizeOf(s.plane.dir)
	if err != nil {
		s.t.Error(err)
	}
	s.say("left on a host, half of them less, and the most: %d and %d elements of sets, %d and %d connections known, %d and %d KB of state, %d and %d KB of the record; the control plane's data: %d KB",
		median(elements), most(elements), median(conntrack), most(conntrack), median(states)>>10, most(states)>>10, median(records)>>10, most(records)>>10, data>>10)
}

// elementsOf counts the elements of a ruleset's sets, and of those of openings.
func elementsOf(listing string) (open, all int) {
	set, within := "", false
	for line := range strings.Lines(listing) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "set "); ok {
			set, _, _ = strings.Cut(name, " ")
		}
		text, begins := strings.CutPrefix(line, "elements = {")
		if !begins && !within {
			continue
		}
		if begins {
			line = text
		}
		within = !strings.HasSuffix(line, "}")
		for element := range strings.SplitSeq(strings.TrimSuffix(line, "}"), ",") {
			if strings.TrimSpace(element) == "" {
				continue
			}
			all++
			if strings.HasPrefix(set, "g4_") || strings.HasPrefix(set, "g6_") {
				open++
			}
		}
	}
	return open, all
}
