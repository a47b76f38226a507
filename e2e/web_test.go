//go:build linux

package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The page in a real browser, with a real machine behind it: who clicks
// "Request access" logs in by ssh, and who looks sees it happen. With
// JITGATE_SCREENSHOTS set, pictures for the docs go there.
func TestPage(t *testing.T) {
	t.Parallel()
	h := newStranger(t)
	ssh := h.sshd() // while everybody may
	p := planeBeside(h)
	cutOff := h.enroll(p)
	admin := p.read("admin.token")
	person := func(name, role string) string {
		p.command("user", "add", name, "--role", role, "--scope", "/subscriptions/"+subscription)
		return tokenIn(p.command("token", "create", "--for", name), "jgt_")
	}
	p.want(200, admin, "PUT", "/api/v1/vms"+vmID, object{"osType": "Linux", "location": location, "address": vm4})

	// Where the browser is, as the control plane sees it.
	mine := ways("22/tcp", alice4)
	look := func(f func()) func(string) string { return func(string) string { f(); return "" } }
	other := strings.TrimSuffix(vmID, "web1") + "web2"
	shots := os.Getenv("JITGATE_SCREENSHOTS")
	browse(t, h.outside, "page.mjs", []string{"URL=" + p.url(""), "ADMIN=" + admin, "ALICE=" + person("alice", "JITRequester"), "CAROL=" + person("carol", "SecurityAdmin"),
		"VM=" + vmID, "OTHER=" + other, "SHOTS=" + shots}, map[string]func(string) string{
		"guarded": look(func() { h.hasPolicy(1); h.isClosed(mine, ways("22/tcp", bob4)) }),
		"cut off": look(cutOff),
		"back":    look(func() { h.fetch() }),
		"open": look(func() {
			if out := ssh(alice4, "echo in"); !strings.Contains(out, "in") {
				t.Errorf("ssh says %s", out)
			}
			h.isClosed(ways("22/tcp", bob4))
		}),
		"closed":   look(func() { h.closes(patience, mine) }),
		"approved": look(func() { h.opens(patience, mine) }),
		// Another machine joins by the command that the page shows.
		"join": func(command string) string {
			dir := t.TempDir()
			config := filepath.Join(dir, "agent.toml")
			text := fmt.Sprintf("host_id = \"auto\"\nmode = \"observe\"\ninbox_dir = %q\nstate_dir = %q\nsocket = %q\n[control]\nidentity_dir = %q\n",
				filepath.Join(dir, "inbox"), filepath.Join(dir, "state"), filepath.Join(dir, "agent.sock"), filepath.Join(dir, "fetch"))
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Error(err)
			}
			h.vm.run(t, h.program, append(strings.Fields(command)[1:], "--config", config)...)
			return ""
		},
		"over": look(func() { h.closes(patience, mine) }),
	})
	if shots != "" {
		shrink(t, shots)
	}
}
