package main

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// commandsOf lists every command, but for what cobra brings along.
func commandsOf(c *cobra.Command, all map[string]*cobra.Command) {
	all[c.CommandPath()] = c
	for _, child := range c.Commands() {
		commandsOf(child, all)
	}
}

// Every command says what it does, with an example whose flags it has.
func TestHelp(t *testing.T) {
	all := map[string]*cobra.Command{}
	commandsOf(newRoot(), all)
	for _, name := range []string{"serve", "config", "version", "backup", "restore", "migrate", "keys list", "keys show", "keys install", "keys rotate-help",
		"user list", "user add", "user remove", "token list", "token create", "token revoke", "role list", "role put", "role delete", "join list", "join create", "join revoke"} {
		if all["jitgate-control "+name] == nil {
			t.Errorf("there is no command %s", name)
		}
	}
	flag := regexp.MustCompile(`(?:^|\s)--([a-z][a-z-]*)`)
	for _, path := range slices.Sorted(maps.Keys(all)) {
		c := all[path]
		if c.Short == "" || c.HasSubCommands() && c.Parent() != nil {
			continue
		}
		if c.Example == "" {
			t.Errorf("%s has no example", path)
		}
		for line := range strings.Lines(c.Example) {
			words, _, _ := strings.Cut(strings.TrimSpace(line), "#")
			used, _, err := newRoot().Find(strings.Fields(words)[1:])
			if err != nil || used.Parent() == nil {
				t.Errorf("%s: the example %q calls nothing: %v", path, words, err)
				continue
			}
			for _, m := range flag.FindAllStringSubmatch(words, -1) {
				if used.Flags().Lookup(m[1]) == nil {
					t.Errorf("%s: the example %q uses --%s, which is not there", path, words, m[1])
				}
			}
		}
		if out := does(t, append(strings.Fields(path)[1:], "--help")...); !strings.Contains(out, "Usage:") {
			t.Errorf("%s --help: %s", path, out)
		}
	}
}

// Mistakes in words are exit code 2 and one line.
func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"serv"}, {"user", "ad"}, {"keys", "trust"}, {"serve", "now"}, {"serve", "--prot", "1"}, {"backup"}, {"backup", "a", "b"}, {"token", "create"}, {"join", "create"}, {"version", "x"}, {"keys", "show"},
	} {
		refuses(t, exitUsage, "", args...)
	}
	for _, args := range [][]string{{}, {"user"}, {"completion", "bash"}} {
		if out := does(t, args...); out == "" {
			t.Errorf("%v says nothing", args)
		}
	}
	var v map[string]string
	if err := json.Unmarshal([]byte(does(t, "version", "--json")), &v); err != nil || v["version"] == "" || v["go"] == "" {
		t.Errorf("%v %v", v, err)
	}
}

// What the pages of the documentation call is there.
func TestPages(t *testing.T) {
	all := map[string]*cobra.Command{}
	commandsOf(newRoot(), all)
	called := regexp.MustCompile("(?m)jitgate-control ((?:[a-z][a-z-]* ?)+)([^\n`|]*)")
	flag := regexp.MustCompile(`(?:^|\s)--([a-z][a-z-]*)`)
	n := 0
	for _, page := range []string{"../../docs/control-operation.md", "../../docs/control-signing.md"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range regexp.MustCompile("(?s)```[a-z]*\n(.*?)```|`(jitgate-control [^`\n]*)`").FindAllStringSubmatch(string(text), -1) {
			for _, m := range called.FindAllStringSubmatch(block[1]+block[2], -1) {
				c, rest, err := newRoot().Find(strings.Fields(m[1]))
				if err != nil || c.Parent() == nil || c.HasSubCommands() && len(rest) > 0 {
					t.Errorf("%s: %s", page, m[0])
					continue
				}
				for _, f := range flag.FindAllStringSubmatch(m[2], -1) {
					if c.Flags().Lookup(f[1]) == nil && f[1] != "help" {
						t.Errorf("%s: %s: --%s is not there", page, m[0], f[1])
					}
				}
				n++
			}
		}
		for _, m := range regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
			if _, err := parseSettings([]byte(m[1])); err != nil {
				t.Errorf("%s: %v in\n%s", page, err, m[1])
			}
		}
	}
	if n < 15 {
		t.Errorf("%d calls: this test looks at nothing", n)
	}
}
