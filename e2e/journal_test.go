//go:build linux

package e2e_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// entries are what the machine's journal has of the agent, by journalctl's own
// reading. A field that stands twice, or is no text, makes it fail.
func (b *booted) entries(matches ...string) []map[string]string {
	b.t.Helper()
	var list []map[string]string
	for line := range strings.Lines(b.run(append([]string{"journalctl", "--all", "--no-pager", "-o", "json", "SYSLOG_IDENTIFIER=jitgate"}, matches...)...)) {
		var raw map[string]any
		if err := json.Unmarshal([]byte(line), &raw); err != nil {
			b.t.Fatalf("%v: %s", err, line)
		}
		entry := map[string]string{}
		for name, value := range raw {
			switch value := value.(type) {
			case string:
				entry[name] = value
			case []any: // bytes that journalctl does not take for text
				var text []byte
				for _, n := range value {
					n, ok := n.(float64)
					if !ok {
						b.t.Fatalf("%s stands twice: %.500v", name, value)
					}
					text = append(text, byte(n))
				}
				entry[name] = string(text)
			}
		}
		list = append(list, entry)
	}
	return list
}

// Every event is in the journal with its fields, none of which a requester can
// forge, and with an explanation; a journal that stands still holds up nobody.
func TestJournal(t *testing.T) {
	t.Parallel()
	name, content := deb(t, "0.0.1")
	program := filepath.Join(t.TempDir(), "machine.test")
	if out, err := exec.Command("go", "test", "-c", "-tags", "journald", "-o", program, "../audit").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	values, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	b := newBooted(t)
	b.powerOn(map[string]string{"/root/machine.test": string(values), "/root/" + name: string(content)})
	trust, policy, pin := provisions(b.realm)
	b.write("/root/trust.json", string(trust))
	b.write("/root/jitgate.preseed", sample(t, "jitgate.preseed", noPin, pin, "string auto", "string "+webName))
	b.run("chmod", "+x", "/root/machine.test")
	b.run("debconf-set-selections", "/root/jitgate.preseed")
	b.run("apt-get", "install", "-q", "-y", "-o", "Dpkg::Use-Pty=0", "/root/"+name)
	b.provisioned(0)
	b.write("/var/lib/jitgate/inbox/policy.json", string(policy))
	b.becomes("the policy should be in force", func(s status) bool { return s.document("policy").Version == 1 })
	b.run("jitgate", "arm")
	b.run("jitgate", "arm", "confirm")

	forged := "x\nJITGATE_CODE=forged\nMESSAGE_ID=00000000000000000000000000000000\n_UID=4711\n" + strings.Repeat("A=B\n", 400)
	listed := func(version int, grants ...object) {
		list := with(b.realm.list(version, grants...), object{"host": object{"id": webName}})
		b.write("/var/lib/jitgate/inbox/grants.json.new", string(b.realm.sign("grants", list)))
		b.run("mv", "/var/lib/jitgate/inbox/grants.json.new", "/var/lib/jitgate/inbox/grants.json")
	}
	listed(1, with(grant("g1", 22, 30*time.Minute, alice4+"/32"), object{"requestor": "alice\nJITGATE_CODE=forged", "justification": forged}))
	b.becomes("the grant should be open", func(s status) bool { return s.isOpen("g1") })

	var opened []map[string]string
	until(t, patience, "the opening should be in the journal", func() bool {
		opened = b.entries("JITGATE_EVENT=grant.opened")
		return len(opened) > 0
	})
	e := opened[0]
	for field, want := range map[string]string{
		"JITGATE_GRANT_ID": "g1", "JITGATE_PORT": "22", "JITGATE_PROTOCOL": "TCP", "JITGATE_SOURCE": alice4 + "/32",
		"JITGATE_REQUESTOR": "alice\nJITGATE_CODE=forged", "JITGATE_CODE": "", "MESSAGE_ID": "5a28bb93b11cb8f6a7298cb1f4fa2b3a", "PRIORITY": "5", "_SYSTEMD_UNIT": "jitgate.service",
	} {
		if e[field] != want {
			t.Errorf("%s is %.200q, want %q", field, e[field], want)
		}
	}
	if e["JITGATE_REASON"] != forged {
		t.Errorf("the reason is %q", e["JITGATE_REASON"])
	}
	if agent := strings.TrimSpace(b.run("sh", "-c", "stat -c %u /proc/$(systemctl show --value -p MainPID jitgate)")); e["_UID"] != agent {
		t.Errorf("_UID is %s, and the agent's %s", e["_UID"], agent)
	}
	if forged := b.entries("JITGATE_CODE=forged"); len(forged) > 0 {
		t.Errorf("forged: %.500v", forged)
	}
	if out := b.run("journalctl", "-x", "--no-pager", "JITGATE_EVENT=guard.confirmed"); !strings.Contains(out, "Subject: The guard drops for good") || !strings.Contains(out, "uid 0") {
		t.Errorf("journalctl -x says\n%s", out)
	}

	// Longer ones, and such as no document may have.
	b.run("/root/machine.test", "-test.run", "TestJournalOfThisMachine")

	// The journal stands still: openings and closings do not.
	b.run("systemctl", "kill", "--signal=STOP", "systemd-journald")
	began := time.Now()
	listed(2, grant("g2", 22, 30*time.Minute, bob4+"/32"))
	until(t, 10*time.Second, "a port should open while the journal hangs", func() bool {
		open, err := b.outside.knock(way{"22/tcp", bob4}, 200*time.Millisecond)
		return err == nil && open
	})
	listed(3)
	until(t, 10*time.Second, "a port should close while the journal hangs", func() bool {
		open, err := b.outside.knock(way{"22/tcp", bob4}, 200*time.Millisecond)
		return err == nil && !open
	})
	t.Logf("opened and closed in %s", time.Since(began))
	b.run("systemctl", "kill", "--signal=CONT", "systemd-journald")
	until(t, patience, "what happened meanwhile should come", func() bool { return len(b.entries("JITGATE_EVENT=grant.revoked", "JITGATE_GRANT_ID=g2")) > 0 })

	// Line by line it is the record, and its head is told at the stop.
	b.run("systemctl", "stop", "jitgate")
	var seqs, record []string
	head := ""
	for _, e := range b.entries() {
		switch {
		case e["JITGATE_EVENT"] == "audit.head":
			head = e["JITGATE_HEAD"]
		case e["JITGATE_SEQ"] != "" && e["_SYSTEMD_UNIT"] == "jitgate.service":
			seqs = append(seqs, e["JITGATE_SEQ"]+" "+e["JITGATE_EVENT"]+" "+e["JITGATE_PREV"])
		}
	}
	for line := range strings.Lines(b.read("/var/lib/jitgate/state/audit/000001.jsonl")) {
		var e struct {
			Seq   json.Number
			Event string
			Prev  string
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		record = append(record, e.Seq.String()+" "+e.Event+" "+e.Prev)
	}
	if !slices.Equal(seqs, record) {
		t.Errorf("the journal has\n%s\nand the record\n%s", strings.Join(seqs, "\n"), strings.Join(record, "\n"))
	}
	if said := strings.TrimSpace(b.run("sh", "-c", "journalctl -o cat --output-fields=JITGATE_HEAD JITGATE_EVENT=audit.head | tail -1")); said != head {
		t.Errorf("the head is %q, the documented command says %q", head, said)
	}
	b.run("jitgate", "audit", "verify", "--head", head)
	b.run("sed", "-i", "$ d", "/var/lib/jitgate/state/audit/000001.jsonl")
	b.fails("it was cut", "jitgate", "audit", "verify", "--head", head)
}
