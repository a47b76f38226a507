//go:build linux

package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// browse has a script of testdata/web drive a real browser in a namespace. For
// each word that the script says, what looks has for it is done, once, with what
// was said behind the word, and its answer sent back. Each word has to come, and
// the last one is "done".
func browse(t *testing.T, place *namespace, script string, env []string, looks map[string]func(string) string) {
	t.Helper()
	// found is the first of these programs that is there.
	found := func(names ...string) string {
		for _, name := range names {
			if path, err := exec.LookPath(name); err == nil {
				return path
			}
		}
		t.Fatalf("%s is not there: run make setup", names[0])
		return ""
	}
	node, npm, chromium := found("node"), found("npm"), found("chromium", "google-chrome")
	dir := t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "browser.mjs", script} {
		text, err := os.ReadFile(filepath.Join("testdata", "web", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	install := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("npm: %v\n%s", err, out)
	}
	drive := exec.CommandContext(ctx, node, script)
	drive.Dir = dir
	drive.Env = append(append(os.Environ(), "CHROMIUM="+chromium, "HOME="+dir), env...)
	var complaints strings.Builder
	drive.Stderr = &complaints
	words, err := drive.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, err := drive.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := place.start(drive); err != nil {
		t.Fatal(err)
	}
	ended := false
	t.Cleanup(func() {
		if !ended {
			drive.Process.Kill()
			drive.Wait()
		}
	})
	said := ""
	for lines := bufio.NewScanner(words); lines.Scan(); {
		word, more, _ := strings.Cut(lines.Text(), ": ")
		if said = word; looks[said] == nil {
			break
		}
		fmt.Fprintln(answers, looks[said](more))
		delete(looks, said)
	}
	err = drive.Wait()
	ended = true
	if err != nil || said != "done" || len(looks) > 0 {
		t.Fatalf("the browser ended with %v after %q:\n%s", err, said, &complaints)
	}
}
