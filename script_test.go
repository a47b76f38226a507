package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/jitgate/jitgate/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"jitgate": main})
}

// TestScripts runs testdata/script/*.txtar: the command line as people and
// scripts use it.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		RequireUniqueNames: true,
		Setup:              setUp,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"expand":  expand,
			"capture": capture,
			"mode":    mode,
			"payload": payload,
		},
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("no condition %q", name)
		},
	})
}

// setUp gives scripts the times their documents need: $NOW, $YESTERDAY, …; and
// in $PAGES the directory of the documentation.
func setUp(e *testscript.Env) error {
	pages, err := filepath.Abs("docs")
	if err != nil {
		return err
	}
	e.Setenv("PAGES", pages)
	now := time.Now().UTC().Truncate(time.Second)
	for name, offset := range map[string]time.Duration{
		"YESTERDAY": -24 * time.Hour, "NOW": 0, "INANHOUR": time.Hour, "TOMORROW": 24 * time.Hour, "NEXTWEEK": 7 * 24 * time.Hour,
	} {
		e.Setenv(name, now.Add(offset).Format("2006-01-02T15:04:05Z"))
	}
	return nil
}

// exits CODE COMMAND…: like exec, but the exit code must be CODE, and a
// failure of jitgate must say why in one line.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARGUMENT…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		failed, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = failed.ExitCode()
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
	complaint := ts.ReadFile("stderr")
	if code != 0 && (!strings.HasPrefix(complaint, "jitgate: ") || strings.Count(complaint, "\n") != 1 || !strings.HasSuffix(complaint, "\n")) {
		ts.Fatalf("standard error is not one line of jitgate's: %q", complaint)
	}
}

// expand FILE…: puts the values of variables in place of $NAME in files.
func expand(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		text := os.Expand(ts.ReadFile(name), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o644))
	}
}

// capture NAME FILE REGEXP: sets a variable to the first group, or to the
// whole match, of what REGEXP finds in FILE.
func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: capture NAME FILE REGEXP")
	}
	found := regexp.MustCompile(`(?m)` + args[2]).FindStringSubmatch(ts.ReadFile(args[1]))
	if found == nil {
		ts.Fatalf("%s: nothing matches %s", args[1], args[2])
	}
	ts.Setenv(args[0], found[len(found)-1])
}

// mode BITS FILE…: the files have exactly these permissions.
func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mode BITS FILE…")
	}
	for _, name := range args[1:] {
		info, err := os.Stat(ts.MkAbs(name))
		ts.Check(err)
		if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s, want %s", name, got, args[0])
		}
	}
}

// payload FILE: prints what a signed document says to standard output, for
// stdout to match.
func payload(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: payload FILE")
	}
	ts.Check(ts.Exec("jitgate", "inspect", args[0]))
}

// commandLine matches a line of cobra's list of commands.
var commandLine = regexp.MustCompile(`^  ([a-z][a-z-]*) +\S`)

// commands walks the tree of commands by what --help prints.
func commands(t *testing.T, path []string, found map[string]string) {
	var out, complaints strings.Builder
	args := append(slices.Clone(path), "--help")
	if code := cli.Main(args, strings.NewReader(""), &out, &complaints); code != 0 || complaints.Len() > 0 {
		t.Fatalf("jitgate %s: exit code %d, %s", strings.Join(args, " "), code, &complaints)
	}
	found[strings.Join(path, " ")] = out.String()
	_, list, _ := strings.Cut(out.String(), "Available Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.Lines(list) {
		name := commandLine.FindStringSubmatch(line)
		// What cobra brings along has no example; nobody types it by hand.
		if name == nil || len(path) == 0 && (name[1] == "completion" || name[1] == "help") {
			continue
		}
		commands(t, append(slices.Clone(path), name[1]), found)
	}
}

// Every command answers --help with an example, and every flag that an
// example shows is one the command has.
func TestHelp(t *testing.T) {
	found := map[string]string{}
	commands(t, nil, found)
	for _, name := range []string{"", "agent run", "agent step", "doctor", "grant", "host-id", "inbox put", "inspect", "lockdown", "sign", "status", "trust init", "trust install", "trust next", "verify", "version"} {
		if found[name] == "" {
			t.Errorf("jitgate %s is not in any list of commands", name)
		}
	}
	flag := regexp.MustCompile(`(?:^|\s)(--?[a-z][a-z-]*)`)
	for _, name := range slices.Sorted(maps.Keys(found)) {
		help := found[name]
		_, examples, ok := strings.Cut(help, "Examples:\n")
		examples, _, _ = strings.Cut(examples, "\n\n")
		if !ok {
			if !strings.Contains(help, "Available Commands:") {
				t.Errorf("jitgate %s --help has no example", name)
			}
			continue
		}
		for line := range strings.Lines(examples) {
			line, _, _ = strings.Cut(line, "#")
			words, ok := strings.CutPrefix(strings.TrimSpace(line), "jitgate ")
			if !ok {
				t.Errorf("jitgate %s --help: the example %q does not begin with jitgate", name, line)
			}
			// The longest command the line begins with says which flags there are.
			command := ""
			for other := range found {
				if strings.HasPrefix(words+" ", other+" ") && len(other) > len(command) {
					command = other
				}
			}
			_, usage, _ := strings.Cut(found[command], "Flags:\n")
			for _, f := range flag.FindAllStringSubmatch(words, -1) {
				if !regexp.MustCompile(`(?m)(^|\s)` + f[1] + `\b`).MatchString(usage) {
					t.Errorf("jitgate %s --help: the example %q uses %s, which jitgate %s does not have", name, line, f[1], command)
				}
			}
		}
	}
}
