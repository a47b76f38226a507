package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// made fails the test unless all went well.
func made(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func chmod(path string, mode os.FileMode) func(*testing.T, string) {
	return func(t *testing.T, top string) { made(t, os.Chmod(filepath.Join(top, path), mode)) }
}

func chown(path string, uid int) func(*testing.T, string) {
	return func(t *testing.T, top string) { made(t, os.Lchown(filepath.Join(top, path), uid, -1)) }
}

// relink moves a directory or file aside and leaves a symbolic link.
func relink(path, target string) func(*testing.T, string) {
	return func(t *testing.T, top string) {
		made(t, os.Rename(filepath.Join(top, path), filepath.Join(top, "moved")),
			os.Symlink(strings.ReplaceAll(target, "TOP", top), filepath.Join(top, path)))
	}
}

// instead puts something else in the place of the file.
func instead(make func(path string) error) func(*testing.T, string) {
	return func(t *testing.T, top string) {
		path := filepath.Join(top, "a/b/file")
		made(t, os.Remove(path), make(path))
	}
}

func both(first, second func(*testing.T, string)) func(*testing.T, string) {
	return func(t *testing.T, top string) { first(t, top); second(t, top) }
}

// A file is read only if nobody else can have put it there or written it. Each
// case is TOP/a/b/file, which is as it should be, and one thing done to it.
// The error names what is wrong and what to do.
func TestReadFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const stranger = 4242
	var all = map[string]terms{"settings": settingsTerms, "state": stateTerms, "inbox": inboxTerms}
	for _, c := range []struct {
		name string
		do   func(t *testing.T, top string)
		want string            // for all, or
		by   map[string]string // where it differs; "" means read
	}{
		{name: "as it should be", do: func(*testing.T, string) {}},

		// Directories on the way.
		{name: "directory above writable by all", do: chmod("a", 0o777), want: "TOP/a is writable by group or others: chmod go-w TOP/a"},
		{name: "directory above writable by the group", do: chmod("a", 0o775), want: "TOP/a is writable by group or others: chmod go-w TOP/a"},
		{name: "its directory writable", do: chmod("a/b", 0o757), want: "TOP/a/b is writable by group or others: chmod go-w TOP/a/b"},
		{name: "the top writable", do: chmod(".", 0o777), want: "TOP is writable by group or others: chmod go-w TOP"},
		{name: "sticky directory of root above", do: chmod("a", 0o777|os.ModeSticky)},
		{name: "sticky directory of root", do: chmod("a/b", 0o777|os.ModeSticky), by: map[string]string{"inbox": "TOP/a/b is writable by group or others"}},
		{name: "sticky directory of another", do: both(chmod("a", 0o777|os.ModeSticky), chown("a", stranger)), want: "TOP/a belongs to uid 4242, who could change what is read: chown root TOP/a"},
		{name: "directory of another above", do: chown("a", stranger), want: "TOP/a belongs to uid 4242"},
		{name: "its directory of another", do: chown("a/b", stranger), want: "TOP/a/b belongs to uid 4242", by: map[string]string{"inbox": ""}},
		{name: "file and directory of whoever delivers", do: both(chown("a/b", stranger), chown("a/b/file", stranger)), want: "TOP/a/b belongs to uid 4242", by: map[string]string{"inbox": ""}},
		{name: "root squashed", do: both(chown("a/b", 65534), chown("a/b/file", 65534)), want: "TOP/a/b belongs to uid 65534", by: map[string]string{"inbox": ""}},
		{name: "a file where a directory should be", do: func(t *testing.T, top string) {
			made(t, os.RemoveAll(filepath.Join(top, "a")), os.WriteFile(filepath.Join(top, "a"), nil, 0o600))
		}, want: "TOP/a is not a directory"},

		// Symbolic links among the directories.
		{name: "relocated", do: relink("a", "TOP/moved")},
		{name: "relocated, relative", do: relink("a", "./moved")},
		{name: "relocated, out and in again", do: relink("a", "moved/b/../../moved")},
		{name: "relocated, its directory", do: relink("a/b", "../moved")},
		{name: "relocated by another", do: both(relink("a", "TOP/moved"), chown("a", stranger)), want: "TOP/a is a symbolic link of uid 4242: chown -h root TOP/a"},
		{name: "relocated where another can write", do: both(relink("a", "TOP/moved"), chmod("moved", 0o777)), want: "TOP/moved is writable by group or others"},
		{name: "relocated, link in a writable directory", do: both(relink("a/b", "TOP/moved"), chmod("a", 0o777)), want: "TOP/a is writable by group or others"},
		{name: "relocated through a writable directory", do: func(t *testing.T, top string) {
			relink("a", "TOP/open/../moved")(t, top)
			made(t, os.Mkdir(filepath.Join(top, "open"), 0o755), os.Chmod(filepath.Join(top, "open"), 0o777))
		}, want: "TOP/open is writable by group or others"},
		{name: "relocated to a directory of another", do: both(relink("a/b", "TOP/moved"), chown("moved", stranger)), want: "TOP/moved belongs to uid 4242", by: map[string]string{"inbox": ""}},
		{name: "relocated 40 times", do: chain(40)},
		{name: "relocated 41 times", do: chain(41), want: "leads through more than 40 symbolic links"},
		{name: "in a circle", do: func(t *testing.T, top string) {
			made(t, os.RemoveAll(filepath.Join(top, "a")), os.Symlink("a", filepath.Join(top, "a")))
		}, want: "leads through more than 40 symbolic links"},
		{name: "to nowhere", do: relink("a", "/nowhere"), want: "open /nowhere: no such file"},

		// The file.
		{name: "symbolic link", do: relink("a/b/file", "TOP/moved"), want: "TOP/a/b/file is a symbolic link: only a plain file is read, copy it to its place", by: map[string]string{"settings": ""}},
		{name: "symbolic link of another", do: both(relink("a/b/file", "TOP/moved"), chown("a/b/file", stranger)), want: "TOP/a/b/file is a symbolic link"},
		{name: "symbolic link to a file of another", do: both(relink("a/b/file", "TOP/moved"), chown("moved", stranger)), want: "TOP/a/b/file is a symbolic link", by: map[string]string{"settings": "TOP/moved belongs to uid 4242"}},
		{name: "symbolic link to a directory", do: instead(func(path string) error { return os.Symlink("..", path) }), want: "is a symbolic link", by: map[string]string{"settings": "is not a plain file"}},
		{name: "symbolic link to the root", do: instead(func(path string) error { return os.Symlink("/", path) }), want: "is a symbolic link", by: map[string]string{"settings": "is not a plain file"}},
		{name: "hard link", do: func(t *testing.T, top string) {
			made(t, os.Link(filepath.Join(top, "a/b/file"), filepath.Join(top, "other")))
		}, want: "TOP/a/b/file has 2 hard links: only a file with one name is read", by: map[string]string{"settings": ""}},
		{name: "of another", do: chown("a/b/file", stranger), want: "TOP/a/b/file belongs to uid 4242"},
		{name: "writable by all", do: chmod("a/b/file", 0o602), want: "TOP/a/b/file is writable by group or others: chmod go-w TOP/a/b/file"},
		{name: "writable by the group", do: chmod("a/b/file", 0o620), want: "TOP/a/b/file is writable by group or others: chmod go-w TOP/a/b/file"},
		{name: "missing", do: instead(func(string) error { return nil }), want: "open TOP/a/b/file: no such file"},
		{name: "FIFO", do: instead(func(path string) error { return unix.Mkfifo(path, 0o600) }), want: "TOP/a/b/file is not a plain file"},
		{name: "socket", do: instead(func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o600, 0) }), want: "TOP/a/b/file is not a plain file"},
		{name: "device", do: instead(func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) }), want: "TOP/a/b/file is not a plain file"},
		{name: "directory", do: instead(func(path string) error { return os.Mkdir(path, 0o700) }), want: "TOP/a/b/file is not a plain file"},
		{name: "1 TiB of nothing", do: func(t *testing.T, top string) { made(t, os.Truncate(filepath.Join(top, "a/b/file"), 1<<40)) }, want: "TOP/a/b/file has 1099511627776 bytes, the limit is "},
		{name: "a read fails in the middle", do: func(t *testing.T, top string) {
			// A plain file of root, and nothing is mapped at its beginning.
			path := filepath.Join(top, "a/b/file")
			made(t, unix.Mount(fmt.Sprintf("/proc/%d/mem", os.Getpid()), path, "", unix.MS_BIND, ""))
			t.Cleanup(func() { made(t, unix.Unmount(path, unix.MNT_DETACH)) })
		}, want: "TOP/a/b/file: input/output error"},
	} {
		for name, terms := range all {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				top := t.TempDir()
				made(t, os.MkdirAll(filepath.Join(top, "a/b"), 0o755), os.WriteFile(filepath.Join(top, "a/b/file"), []byte("text"), 0o600))
				c.do(t, top)
				want, ok := c.by[name]
				if !ok {
					want = c.want
				}
				text, err := readFile(filepath.Join(top, "a/b/file"), terms)
				switch {
				case want == "" && (err != nil || string(text) != "text"):
					t.Errorf("got %q, %v", text, err)
				case want != "" && (err == nil || !strings.Contains(err.Error(), strings.ReplaceAll(want, "TOP", top))):
					t.Errorf("got %q, %v, want %s", text, err, strings.ReplaceAll(want, "TOP", top))
				case want != "" && strings.Contains(err.Error(), "\n"):
					t.Errorf("more than one line: %v", err)
				}
			})
		}
	}
}

// chain moves a and leaves so many links in a row that lead to it.
func chain(n int) func(*testing.T, string) {
	return func(t *testing.T, top string) {
		target := "moved"
		made(t, os.Rename(filepath.Join(top, "a"), filepath.Join(top, target)))
		for i := n; i > 0; i-- {
			name := fmt.Sprintf("link%d", i)
			if i == 1 {
				name = "a"
			}
			made(t, os.Symlink(target, filepath.Join(top, name)))
			target = name
		}
	}
}

// A limit is met at its last byte, and holds for a file that grows while it is
// read, or that says it is empty.
func TestReadFileLimits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, terms := range []terms{settingsTerms, stateTerms, inboxTerms} {
		for _, more := range []int64{0, 1} {
			made(t, os.WriteFile(path, make([]byte, terms.limit+more), 0o600))
			b, err := readFile(path, terms)
			var large tooLarge
			if refused := errors.As(err, &large); refused != (more == 1) || more == 0 && int64(len(b)) != terms.limit {
				t.Errorf("%d bytes, limit %d: got %d, %v", terms.limit+more, terms.limit, len(b), err)
			}
		}
	}
	// /proc says that its files have no bytes.
	want, err := os.ReadFile("/proc/self/mountinfo")
	made(t, err)
	got, err := readFile(fmt.Sprintf("/proc/%d/mountinfo", os.Getpid()), stateTerms)
	if !bytes.Equal(got, want) || err != nil {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
	}
	var large tooLarge
	if _, err := readFile(fmt.Sprintf("/proc/%d/mountinfo", os.Getpid()), terms{limit: int64(len(want)) - 1}); !errors.As(err, &large) {
		t.Errorf("a file that lies about its size: %v", err)
	}
}

// One that was replaced after it was opened is what had been delivered.
func TestReplacedWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	made(t, os.WriteFile(path, []byte("text"), 0o600))
	f, err := openFile(path, inboxTerms)
	made(t, err)
	defer f.Close()
	made(t, os.Remove(path))
	w := &walk{}
	if err := w.plain(int(f.Fd()), path, inboxTerms); err != nil {
		t.Error(err)
	}
}

// No descriptor is left open, whatever became of the file.
func TestReadFileLeavesNothingOpen(t *testing.T) {
	dir := t.TempDir()
	made(t, os.Mkdir(filepath.Join(dir, "real"), 0o700), os.Symlink(filepath.Join(dir, "real"), filepath.Join(dir, "link")),
		os.WriteFile(filepath.Join(dir, "real/file"), nil, 0o600), unix.Mkfifo(filepath.Join(dir, "real/fifo"), 0o600))
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		made(t, err)
		return len(list)
	}
	_, _ = readFile(filepath.Join(dir, "link/file"), stateTerms)
	before := open()
	for range 100 {
		for _, name := range []string{"link/file", "link/fifo", "link/missing", "missing/file", "real/file/file"} {
			_, _ = readFile(filepath.Join(dir, name), stateTerms)
		}
	}
	if after := open(); after > before+20 { // others of this process may come and go
		t.Errorf("%d descriptors were open, and then %d", before, after)
	}
}

// What is written is a file of its own, whatever lies under the temporary name.
func TestWriteFileFollowsNoLink(t *testing.T) {
	for _, flush := range []bool{true, false} {
		dir := t.TempDir()
		real := filepath.Join(dir, "real")
		made(t, os.WriteFile(real, []byte("precious"), 0o644), os.Symlink(real, filepath.Join(dir, ".mark.json.new")),
			os.Symlink(real, filepath.Join(dir, "mark.json")))
		made(t, writeFile(dir, "mark.json", []byte("new"), flush))
		for path, want := range map[string]string{real: "precious", filepath.Join(dir, "mark.json"): "new"} {
			if text, err := os.ReadFile(path); string(text) != want {
				t.Errorf("%s holds %q, %v; want %q", path, text, err, want)
			}
		}
		if info, err := os.Lstat(filepath.Join(dir, "mark.json")); err != nil || info.Mode() != 0o600 {
			t.Errorf("it is %v, %v", info, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, ".mark.json.new")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the temporary file: %v", err)
		}
	}
}

// The root directory is judged as well: in a container it is anybody's choice.
func TestReadFileJudgesTheRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, c := range []struct {
		mode os.FileMode
		want string
	}{{0o755, ""}, {0o777, "/ is writable by group or others: chmod go-w /"}} {
		top := t.TempDir()
		made(t, os.WriteFile(filepath.Join(top, "file"), nil, 0o600), os.Chmod(top, c.mode))
		answer := make(chan error)
		go func() {
			runtime.LockOSThread() // for good: the thread ends with the goroutine
			err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chroot(top))
			if err == nil {
				_, err = readFile("/file", stateTerms)
			}
			answer <- err
		}()
		if err := <-answer; (err == nil) != (c.want == "") || err != nil && err.Error() != c.want {
			t.Errorf("with mode %v: got %v, want %s", c.mode, err, c.want)
		}
	}
}

// A file that has one name, but not the one it was opened by, is somebody
// else's; one with no name was replaced, and is what had been delivered.
func TestNameTakenAway(t *testing.T) {
	dir := t.TempDir()
	name, other := filepath.Join(dir, "name"), filepath.Join(dir, "other")
	if err := errors.Join(os.WriteFile(other, nil, 0o600), os.Link(other, name)); err != nil {
		t.Fatal(err)
	}
	at, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := &walk{fd: int(at.Fd()), path: dir}
	still := func() error { return w.still(int(f.Fd()), "name") }
	if err := still(); err != nil {
		t.Error(err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := still(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := still(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("replaced: %v", err)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	if err := still(); err != nil {
		t.Errorf("no name: %v", err)
	}
}
