package cli

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The script for a real machine with Windows cannot run here. What it has
// jitgate do are commands and flags that there are.
func TestAcceptanceScript(t *testing.T) {
	script, err := os.ReadFile("../packaging/windows/acceptance.ps1")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)(?:^ *|\()(?:Jitgate|Ask) ([a-z][^|)\r\n]*)`).FindAllStringSubmatch(string(script), -1)
	if len(lines) < 20 {
		t.Errorf("only %d commands are found", len(lines))
	}
	for _, m := range lines {
		c, words, err := newRoot().Find(strings.Fields(strings.NewReplacer(`'`, "", `"`, "").Replace(m[1])))
		if err == nil {
			err = c.ParseFlags(words)
		}
		if err == nil {
			err = c.ValidateArgs(c.Flags().Args())
		}
		if err != nil || c.RunE == nil || !c.HasParent() {
			t.Errorf("jitgate %s: %v", m[1], err)
		}
	}
}
