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

// The page in a real browser, with a real machine behind it: who clicks
// "Request access" logs in by ssh, and who looks sees it happen. With
// JITGATE_SCREENSHOTS set, pictures for the docs go there.
func TestPage(t *testing.T) {
	t.Parallel()
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
	for _, name := range []string{"package.json", "package-lock.json", "drive.mjs"} {
		text, err := os.ReadFile(filepath.Join("testdata", "web", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	install := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("npm: %v\n%s", err, out)
	}

	h := newStranger(t)
	ssh := h.sshd() // while everybody may
	p := planeBeside(h)
	h.enroll(p)
	admin := p.read("admin.token")
	person := func(name, role string) string {
		p.command("user", "add", name, "--role", role, "--scope", "/subscriptions/"+subscription)
		return p.command("token", "create", "--for", name)
	}
	token := func(out string) string {
		out = out[strings.Index(out, "jgt_"):]
		out, _, _ = strings.Cut(out, "\n")
		return out
	}
	p.want(200, admin, "PUT", "/api/v1/vms"+vmID, object{"osType": "Linux", "location": location, "address": vm4})

	drive := exec.CommandContext(ctx, node, "drive.mjs")
	drive.Dir = dir
	drive.Env = append(os.Environ(), "URL="+p.url(""), "ADMIN="+admin, "ALICE="+token(person("alice", "JITRequester")), "CAROL="+token(person("carol", "SecurityAdmin")),
		"VM="+vmID, "CHROMIUM="+chromium, "SHOTS="+os.Getenv("JITGATE_SCREENSHOTS"), "HOME="+dir)
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
	if err := h.outside.start(drive); err != nil {
		t.Fatal(err)
	}
	ended := false
	t.Cleanup(func() {
		if !ended {
			drive.Process.Kill()
			drive.Wait()
		}
	})

	// Where the browser is, as the control plane sees it.
	mine := ways("22/tcp", alice4)
	looks := map[string]func(){
		"guarded": func() { h.hasPolicy(1); h.isClosed(mine, ways("22/tcp", bob4)) },
		"open": func() {
			if out := ssh(alice4, "echo in"); !strings.Contains(out, "in") {
				t.Errorf("ssh says %s", out)
			}
			h.isClosed(ways("22/tcp", bob4))
		},
		"closed": func() { h.closes(patience, mine) },
		"approval": func() {
			p.want(200, admin, "PUT", "/api/v1/policies"+policyPath+"/approval", object{"approvers": 1, "role": "SecurityAdmin", "justification": true})
		},
		"approved": func() { h.opens(patience, mine) },
		"over":     func() { h.closes(patience, mine) },
	}
	said := ""
	for lines := bufio.NewScanner(words); lines.Scan(); {
		if said = lines.Text(); looks[said] == nil {
			break
		}
		looks[said]()
		delete(looks, said)
		fmt.Fprintln(answers)
	}
	err = drive.Wait()
	ended = true
	if err != nil || said != "done" || len(looks) > 0 {
		t.Fatalf("the browser ended with %v after %q:\n%s", err, said, &complaints)
	}
	if shots := os.Getenv("JITGATE_SCREENSHOTS"); shots != "" {
		shrink(t, shots)
	}
}
