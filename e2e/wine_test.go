//go:build linux && wine

package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Wine has no filtering platform: nothing here says anything about what
// Windows lets through. It has a service manager, an installer, pipes, a
// registry and files with access lists, if not Windows's own. These tests run
// with the build tag wine: make e2e-wine.

// patienceWithWine bounds one command: an installation starts many processes.
const patienceWithWine = 3 * time.Minute

// wineRoot is the root directory of every machine with Wine.
var wineRoot = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("sh", "wine.sh")
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("wine.sh: %w: %s", err, &complaints)
	}
	return strings.TrimSpace(string(out)), nil
})

// wine is a machine with Wine, and a shell on it.
type wine struct {
	t     *testing.T
	files string // of the machine's /src
	in    io.Writer
	lines chan string
	pid   int  // of its first process
	stood bool // it stands still: nothing that is asked of it has an end
}

// newWine is one with a network of its own, of which it has no more than
// loopback, or in a namespace.
func newWine(t *testing.T, place *namespace) *wine {
	t.Helper()
	root, err := wineRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	w := &wine{t: t, files: filepath.Join(dir, "files"), lines: make(chan string, 100)}
	err = errors.Join(os.Mkdir(w.files, 0o755), os.Mkdir(filepath.Join(dir, "at"), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	shell := exec.Command("sh", "testdata/wine/start.sh", root, w.files, filepath.Join(dir, "at"))
	shell.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	start := shell.Start
	if place != nil {
		start = func() error { return place.start(shell) }
	} else {
		shell.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	out, in := io.Pipe()
	shell.Stdout, shell.Stderr = in, in
	if w.in, err = shell.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	w.pid = shell.Process.Pid
	t.Cleanup(func() {
		shell.Process.Kill() // and with the first process all others
		shell.Wait()
		in.Close()
	})
	go func() {
		defer close(w.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			w.lines <- strings.TrimRight(s.Text(), "\r")
		}
	}()
	return w
}

const endOfCommand = "-- end "

// killed is the exit code of timeout -s KILL that had to.
const killed = 137

// stoodStill is what the end of patience is told with: a panic, for onWine.
type stoodStill string

// try runs a command of the shell to its end.
func (w *wine) try(command string) (out string, code int) {
	w.t.Helper()
	if w.stood {
		return "", killed
	}
	fmt.Fprintf(w.in, "{ %s\n} </dev/null 2>&1; code=$?; echo; echo '%s'$code\n", command, endOfCommand)
	var text []string
	late := time.After(patienceWithWine)
	for {
		select {
		case line, ok := <-w.lines:
			if status, end := strings.CutPrefix(line, endOfCommand); end {
				fmt.Sscan(status, &code)
				return strings.TrimSpace(strings.Join(text, "\n")), code
			}
			if !ok {
				w.t.Fatalf("%s: the machine is gone:\n%s", command, strings.Join(text, "\n"))
			}
			text = append(text, line)
		case <-late:
			w.stood = true
			panic(stoodStill(fmt.Sprintf("%s: no end within %s:\n%s\nits threads:\n%s", command, patienceWithWine, strings.Join(text, "\n"), w.threads())))
		}
	}
}

// threads lists what runs on the machine, and what each thread waits for.
func (w *wine) threads() string {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", w.pid))
	out, psErr := exec.Command("ps", "-eLo", "pidns,pid,tid,etimes,stat,wchan:24,args").Output()
	if err := errors.Join(err, psErr); err != nil {
		return err.Error()
	}
	lines := strings.Split(string(out), "\n")
	here := slices.DeleteFunc(lines[1:], func(line string) bool {
		in, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		return own != "pid:["+in+"]"
	})
	return lines[0] + "\n" + strings.Join(here, "\n")
}

// onWine calls f, which makes a machine and uses it, and once more where the
// machine stood still. That has been seen under Wine once in hundreds of runs of
// programs made with Go, never twice in one; a second time is no accident.
func onWine(t *testing.T, f func()) {
	t.Helper()
	for range 2 {
		stood := standing(f)
		if stood == "" {
			return
		}
		t.Log(stood)
	}
	t.Fatal("the machine stood still twice")
}

// standing calls f, and returns what stood still in it.
func standing(f func()) (stood stoodStill) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case stoodStill:
			stood = r
		default:
			panic(r)
		}
	}()
	f()
	return ""
}

// run runs a command that has to succeed.
func (w *wine) run(command string) string {
	w.t.Helper()
	out, code := w.try(command)
	if code != 0 {
		w.t.Fatalf("%s: exit code %d:\n%s", command, code, out)
	}
	return out
}

// fails runs a command that has to fail, and say why.
func (w *wine) fails(command, why string) {
	w.t.Helper()
	out, code := w.try(command)
	if code == 0 || !strings.Contains(out, why) {
		w.t.Errorf("%s: exit code %d, want a failure that says %q:\n%s", command, code, why, out)
	}
}

const jitgateExe = `$W 'C:\Program Files\jitgate\jitgate.exe' `

// agent calls the service until it answers. The first to open a pipe under Wine
// gets an instance that nobody serves: Windows does not give that one out
// (go-winio makes it to own the name), so somebody else is sent ahead.
func (w *wine) agent() status {
	w.t.Helper()
	var s status
	until(w.t, patienceWithWine, "the agent should answer", func() bool {
		w.try(`timeout 10 $W cmd /c 'echo x>\\.\pipe\ProtectedPrefix\Administrators\jitgate'`)
		out, code := w.try("timeout 10 " + jitgateExe + "status --json")
		return code == 0 && json.Unmarshal([]byte(out), &s) == nil
	})
	return s
}

// becomes waits for a status.
func (w *wine) becomes(what string, done func(status) bool) status {
	w.t.Helper()
	var s status
	until(w.t, patienceWithWine, what, func() bool { s = w.agent(); return done(s) })
	return s
}

// build makes the program \src\jitgate.exe.
func (w *wine) build() {
	w.t.Helper()
	build := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(w.files, "jitgate.exe"), "github.com/jitgate/jitgate")
	build.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		w.t.Fatalf("%v\n%s", err, out)
	}
}

// put writes a file on drive C: as a carrier does, by temp-and-rename.
func (w *wine) put(path string, content []byte) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.files, "put"), content, 0o644); err != nil {
		w.t.Fatal(err)
	}
	w.run(`cp /src/put "` + path + `.new" && mv "` + path + `.new" "` + path + `"`)
}

// service requires that a service is in a state.
func (w *wine) service(name, state string) {
	w.t.Helper()
	until(w.t, patienceWithWine, name+" should be "+state, func() bool {
		out, _ := w.try("$W sc query " + name)
		return strings.Contains(out, state)
	})
}

// processes are the numbers of those that run jitgate with some arguments.
func (w *wine) processes(arguments string) []string {
	w.t.Helper()
	return strings.Fields(w.run(`for p in /proc/[0-9]*; do case $(tr '\0' ' ' 2>/dev/null <$p/cmdline) in *'jitgate.exe ` + arguments + `'*) echo ${p#/proc/};; esac; done`))
}

// traces lists what a machine has that names jitgate: files, and keys and
// values of the registry.
func (w *wine) traces() string {
	w.t.Helper()
	return w.run(`find $C -iname '*jitgate*' -not -path '*/temp/*' | sort; $W regedit /E 'C:\all.reg' && iconv -f utf-16 -t utf-8 $C/all.reg | grep -i jitgate | grep -v 'all.reg'; rm -f $C/all.reg`)
}

// installers makes the installer of two versions, signed, and checks that the
// same comes out again.
func installers(t *testing.T, into string) {
	t.Helper()
	dir := t.TempDir()
	sh := func(command string, env ...string) {
		t.Helper()
		cmd := exec.Command("sh", "-euc", command)
		cmd.Dir, cmd.Env = "..", append(os.Environ(), append(env, "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "DIST="+dir)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	sh(`openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=test -addext extendedKeyUsage=codeSigning -days 30 -keyout "$KEY" -out "$CERT" 2>&1`, "CERT="+cert, "KEY="+key)
	for _, version := range []string{"1.2.3", "1.2.4"} {
		sh(`packaging/windows/build.sh go build -trimpath -ldflags "-s -w -X github.com/jitgate/jitgate/cli.version=$VERSION" -o "$DIST/jitgate-windows-amd64.exe" .`, "VERSION=v"+version)
		sh(`packaging/windows/msi.sh "$DIST" `+version, "CERT="+cert, "KEY="+key)
		msi := filepath.Join(dir, "jitgate-"+version+"-amd64.msi")
		first, err := os.ReadFile(msi)
		if err != nil {
			t.Fatal(err)
		}
		if version == "1.2.3" {
			sh(`packaging/windows/msi.sh "$DIST" `+version, "CERT="+cert, "KEY="+key)
			if again, err := os.ReadFile(msi); err != nil || !bytes.Equal(first, again) {
				t.Errorf("the installer of the same program has other bytes the second time, %v", err)
			}
			sh(`osslsigncode verify -CAfile "$CERT" -in "$MSI" && cd "$DIST" && msiextract "$MSI" >/dev/null && osslsigncode verify -CAfile "$CERT" -in jitgate/jitgate.exe`, "CERT="+cert, "MSI="+msi)
			tampered := bytes.Replace(first, []byte("management ports"), []byte("management Ports"), 1)
			if bytes.Equal(tampered, first) {
				t.Fatal("nothing to tamper with")
			}
			if err := os.WriteFile(msi+".bad", tampered, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := exec.Command("osslsigncode", "verify", "-CAfile", cert, "-in", msi+".bad").Run(); err == nil {
				t.Error("the signature holds over other bytes")
			}
		}
		if err := os.WriteFile(filepath.Join(into, version+".msi"), first, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// The whole life of an installation.
func TestWineInstaller(t *testing.T) {
	privileged(t, "wixl", "msibuild", "osslsigncode", "faketime", "mmdebstrap")
	t.Parallel()
	made := t.TempDir()
	installers(t, made)
	onWine(t, func() { installation(t, made) })
}

func installation(t *testing.T, made string) {
	w := newWine(t, nil)
	if err := os.CopyFS(w.files, os.DirFS(made)); err != nil {
		t.Fatal(err)
	}
	before := w.traces()
	msi := func(words string) string { return `$W msiexec ` + words + ` /qn` }
	data := "$C/ProgramData/jitgate"

	w.run(msi(`/i 'Z:\src\1.2.3.msi' HOSTID=` + webName + ` REALM=acme CONTROLURL=https://control.example.net`))
	w.service("jitgate", "RUNNING")
	if out := w.run("$W sc query jitgate-fetch"); !strings.Contains(out, "jitgate-fetch") {
		t.Errorf("the fetcher's service:\n%s", out)
	}
	registry := w.run(`$W reg query 'HKLM\SYSTEM\CurrentControlSet\Services\jitgate' && $W reg query 'HKLM\SYSTEM\CurrentControlSet\Services\jitgate-fetch' && $W reg query 'HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application\jitgate' && $W reg query 'HKLM\SYSTEM\CurrentControlSet\Control\Session Manager\Environment' /v PATH`)
	for _, want := range []string{`jitgate\.exe"? agent run --service`, `jitgate\.exe"? fetch --service`, `DependOnService .*BFE`, `ObjectName .*LocalSystem`, `ObjectName .*LocalService`,
		`Start\s+REG_DWORD\s+0x2`, `EventMessageFile .*jitgate\.exe`, `PATH .*;C:\\Program Files\\jitgate`} {
		if !regexp.MustCompile(want).MatchString(registry) {
			t.Errorf("no %s in\n%s", want, registry)
		}
	}

	// It says what it cannot do, and goes on with the rest.
	s := w.agent()
	if s.Mode != "observe" || s.Firewall != "none" || !strings.Contains(s.Problem, "nothing is guarded by this agent: the firewall cannot be opened") || s.Host != webName || s.Install == "" {
		t.Errorf("status: %+v", s)
	}
	w.fails(jitgateExe+"arm", "not armed: nothing is guarded by this agent")
	w.fails(jitgateExe+"arm confirm", "not confirmed: nothing is guarded by this agent")
	w.run("sed -i 's/\"observe\"/\"enforce\"/' " + data + "/agent.toml")
	w.run(jitgateExe + "agent reload || true") // says that nothing is guarded
	if s := w.agent(); s.Mode != "observe" {
		t.Errorf("an agent with no firewall says that it is in mode %s", s.Mode)
	}

	// Standing still a service is ended, and the service manager learns of it (Wine's
	// restarts nothing). Wine has a process run until the kernel lets it end, and may
	// kill it for good by itself. With the last program Wine ends as well, and the next
	// one boots it with all services: so one more is there meanwhile.
	w.run("sleep 600 | $W cmd >/dev/null 2>&1 & held=$!")
	services := slices.Concat(w.processes("agent run"), w.processes("fetch"))
	if dogs := w.processes("watchdog"); len(services) != 2 || len(dogs) != 2 {
		t.Fatalf("%d services and %d watchdogs", len(services), len(dogs))
	}
	w.run("kill -STOP " + strings.Join(services, " "))
	w.service("jitgate", "STOPPED")
	w.service("jitgate-fetch", "STOPPED")
	w.try("kill -KILL " + strings.Join(services, " "))
	until(t, patienceWithWine, "the services and their watchdogs should be gone", func() bool {
		return len(slices.Concat(w.processes("agent run"), w.processes("fetch"), w.processes("watchdog"))) == 0
	})
	w.run("$W net start jitgate")
	w.run("$W net start jitgate-fetch")
	w.run("kill $held")
	if now := w.agent(); now.Install != s.Install {
		t.Errorf("after it stood still: %+v", now)
	}

	// Documents are verified and refused as anywhere.
	r := newRealm(t, "acme")
	trust, rules, pin := provisions(r)
	w.put("$C/trust.json", trust)
	w.fails(jitgateExe+`trust install --pin sha256:`+strings.Repeat("0", 64)+` 'C:\trust.json'`, "pin")
	w.run(jitgateExe + `trust install --pin ` + pin + ` 'C:\trust.json'`)
	w.run("$W net stop jitgate")
	w.run("$W net start jitgate")
	w.becomes("the trust document should be in force", func(s status) bool { return s.document("trust").Version == 1 })
	w.put(data+"/inbox/policy.json", rules)
	w.becomes("the policy should be in force", func(s status) bool { return s.document("policy").Version == 1 })
	stranger := newRealm(t, "acme")
	w.put(data+"/inbox/grants.json", stranger.sign("grants", with(r.list(1, grant("a", 22, time.Hour, alice4+"/32")), object{"host": object{"id": webName}})))
	w.becomes("a stranger's grants should be refused", func(s status) bool {
		return strings.Contains(s.document("grants").Refusal, "signature") || strings.Contains(s.document("grants").Refusal, "unsigned")
	})
	if record := w.run(jitgateExe + "audit list --format json && " + jitgateExe + "audit verify"); !strings.Contains(record, "document.admitted") || !strings.Contains(record, "document.refused") {
		t.Errorf("the record:\n%s", record)
	}

	// Files that others can change are not read.
	w.run("chmod 666 " + data + "/inbox/policy.json && touch " + data + "/inbox/policy.json")
	w.becomes("a policy that everybody may change should be refused", func(s status) bool {
		return strings.Contains(s.document("policy").Refusal, "may be changed by S-1-1-0")
	})
	w.run("chmod 644 " + data + "/inbox/policy.json")
	w.run("cp -p " + data + "/agent.toml $C/kept && chmod 666 " + data + "/agent.toml")
	w.fails(jitgateExe+"status", "may be changed by S-1-1-0")
	w.run("rm " + data + "/agent.toml && mv $C/kept " + data + "/agent.toml")

	// Repair brings back what is missing, and only that.
	w.run("rm \"$C/Program Files/jitgate/LICENSE.txt\"; echo '# mine' >>" + data + "/agent.toml")
	w.run(msi(`/i 'Z:\src\1.2.3.msi' REINSTALL=ALL REINSTALLMODE=amus`)) // Wine's /fa takes no file
	w.run("test -s \"$C/Program Files/jitgate/LICENSE.txt\" && grep -q '^# mine' " + data + "/agent.toml")

	// An upgrade in one step keeps settings, documents, identity, record, and what
	// was given; the services run the new program.
	w.run("echo key >" + data + "/fetch/mine")
	settings := w.run("cat " + data + "/agent.toml")
	install := w.agent().Install
	upgraded := func() {
		t.Helper()
		if out := w.run(jitgateExe + "version"); !strings.Contains(out, "1.2.4") {
			t.Errorf("after the upgrade: %s", out)
		}
		if now := w.run("cat " + data + "/agent.toml"); now != settings {
			t.Errorf("the upgrade made of\n%s\nthis:\n%s", settings, now)
		}
		w.service("jitgate", "RUNNING")
		s := w.becomes("the documents should be in force after the upgrade", func(s status) bool { return s.document("policy").Version == 1 })
		if s.Host != webName || s.Install != install {
			t.Errorf("after the upgrade: %+v", s)
		}
		if out := w.run(`$W reg query 'HKLM\SOFTWARE\jitgate'`); !strings.Contains(out, webName) || !strings.Contains(out, "acme") {
			t.Errorf("what was given is forgotten:\n%s", out)
		}
		if record := w.run("test -s " + data + "/fetch/mine && " + jitgateExe + "audit verify && " + jitgateExe + "audit list --format json"); !strings.Contains(record, "document.refused") {
			t.Errorf("the record after the upgrade:\n%s", record)
		}
	}
	w.run(msi(`/i 'Z:\src\1.2.4.msi'`))
	upgraded()
	// Windows asks for the removal of what is replaced in other words.
	w.run(msi(`/x 'Z:\src\1.2.4.msi' 'UPGRADINGPRODUCTCODE={0D1F7A52-4B7C-4F0E-9A55-3C6F6C0F2E72}'`))
	w.run(msi(`/i 'Z:\src\1.2.4.msi'`))
	upgraded()
	if out, _ := w.try(msi(`/i 'Z:\src\1.2.3.msi'`) + `; ` + jitgateExe + `version`); !strings.Contains(out, "1.2.4") {
		t.Errorf("an older version was installed over a newer one:\n%s", out)
	}

	// Given another time, it is set.
	w.run(msi(`/i 'Z:\src\1.2.4.msi' HOSTID=other REINSTALL=ALL REINSTALLMODE=omus`))
	w.run("grep -q 'host_id = \"other\"' " + data + "/agent.toml && grep -q '^# mine' " + data + "/agent.toml")

	// Removed, nothing is left; with KEEPDATA=1 what the agent knows is.
	w.run(msi(`/x 'Z:\src\1.2.4.msi' KEEPDATA=1`))
	w.run("test -s " + data + "/agent.toml && test -s " + data + "/state/mark.json && test ! -e \"$C/Program Files/jitgate\"")
	w.run(msi(`/i 'Z:\src\1.2.4.msi'`))
	if s := w.agent(); s.Host != "other" || s.Install != install {
		t.Errorf("installed over what was kept: %+v", s)
	}
	w.run(msi(`/x 'Z:\src\1.2.4.msi'`))
	for _, name := range []string{"jitgate", "jitgate-fetch"} {
		if out, code := w.try("$W sc query " + name); code == 0 && strings.Contains(out, "STATE") {
			t.Errorf("the service %s is still there:\n%s", name, out)
		}
	}
	if after := w.traces(); after != before {
		t.Errorf("before the installation there was\n%s\nand after the removal\n%s", before, after)
	}
}

// Commands that need no agent do on Windows what they do elsewhere.
func TestWineCommands(t *testing.T) {
	privileged(t, "mmdebstrap")
	t.Parallel()
	onWine(t, func() { commands(t) })
}

func commands(t *testing.T) {
	w := newWine(t, nil)
	w.build()
	w.run("mkdir $C/t && cd $C/t")
	const j = `$W 'Z:\src\jitgate.exe' `
	w.run(j + `trust init --realm acme --out keys`)
	w.put("$C/t/policy", encode(newRealm(t, "acme").rules(1, port(3389, "TCP"))))
	w.run(j + `sign --type policy --key 'keys\policy.key' --trust 'keys\trust.json' policy -o 'keys\policy.json'`)
	w.run(j + `grant --dir keys --host ` + hostID + ` --port 3389 --source 203.0.113.7 --for 30m --reason INC-1 -o grants.json`)
	w.run(j + `verify --trust 'keys\trust.json' --host ` + hostID + ` 'keys\policy.json' grants.json`)
	if out := w.run(j + `inspect grants.json`); !strings.Contains(out, "203.0.113.7") || !strings.Contains(out, "INC-1") {
		t.Errorf("inspect:\n%s", out)
	}
	w.fails(j+`verify --trust 'keys\trust.json' --host other grants.json`, "wrong-host")
	w.run("sed -i 's/\"sig\":\"./\"sig\":\"_/' grants.json; sed -i 's/\"sig\": \"./\"sig\": \"_/' grants.json")
	if out, code := w.try(j + `verify --trust 'keys\trust.json' --host ` + hostID + ` grants.json`); code != 1 {
		t.Errorf("a changed signature: exit code %d:\n%s", code, out)
	}
	for command, why := range map[string]string{
		`status --config 'C:\none.toml'`:       "make it",
		`audit list --config 'C:\none.toml'`:   "make it",
		`agent run --config 'C:\none.toml'`:    "make it",
		`fetch --config 'C:\none.toml'`:        "make it",
		`agent run --service`:                  "the service manager did not start this",
		`request web1 --port 3389 --for 1h`:    "jitgate login",
		`ssh web1`:                             "OpenSSH.Client",
		`rdp web1`:                             "mstsc.exe",
		`rdp web1 --file 'C:\t\desktop.rdp'`:   "jitgate login",
		`doctor --config 'C:\none.toml'`:       "",
		`enroll --control https://c --token x`: "token",
	} {
		w.fails(j+command, why)
	}

	// From an archive there are no services.
	w.run(j + `agent setup --host-id ` + webName)
	w.run("grep -q 'host_id = \"" + webName + "\"' $C/ProgramData/jitgate/agent.toml && test -d $C/ProgramData/jitgate/inbox")
	w.run(j + `agent remove`)
	w.run("test ! -e $C/ProgramData/jitgate")
}

// From Windows into a guarded machine; and Windows as the machine, whose agent and
// fetcher follow the control plane. At the other end of the network are the real
// control plane, and a Linux host with a real sshd.
func TestWineControlPlane(t *testing.T) {
	privileged(t, "mmdebstrap")
	t.Parallel()
	onWine(t, func() { besideControlPlane(t) })
}

func besideControlPlane(t *testing.T) {
	o := newOperator(t)
	w := newWine(t, o.h.outside)
	w.build()
	for name, path := range map[string][]string{"ca.pem": {"tls", "ca.pem"}, "token": {"admin.token"}} {
		if err := os.WriteFile(filepath.Join(w.files, name), []byte(o.p.read(path...)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.run(`mkdir -p "$C/Program Files/jitgate" $C/t && cp /src/jitgate.exe "$C/Program Files/jitgate/"`)

	// Asked for, it opens for where the person is; given back, it is closed.
	const greeting = `timeout 5 bash -c 'read -r line </dev/tcp/` + vm4 + `/22; echo "$line"'`
	closed := func(when string) {
		t.Helper()
		if out, code := w.try(greeting); code == 0 {
			t.Errorf("%s the port is open: %s", when, out)
		}
	}
	w.run(jitgateExe + `login ` + o.p.url("") + ` --ca 'Z:\src\ca.pem' --token-file 'Z:\src\token' --name lab`)
	closed("before anybody asked")
	if out := w.run(jitgateExe + `request web1 --port 22 --for 10m --reason INC-1`); !strings.Contains(out, "22") {
		t.Errorf("request says:\n%s", out)
	}
	if out := w.run(greeting); !strings.HasPrefix(out, "SSH-2.0") {
		t.Errorf("at the open port there is %q", out)
	}
	var mine []struct{ ID string }
	if out := w.run(jitgateExe + `requests list --mine --open --json`); json.Unmarshal([]byte(out), &mine) != nil || len(mine) != 1 {
		t.Fatalf("the list of requests:\n%s", out)
	}
	w.run(jitgateExe + `requests revoke ` + mine[0].ID)
	until(t, patienceWithWine, "the port should be closed", func() bool { _, code := w.try(greeting); return code != 0 })

	// A desktop's file has where the port was found open, for as long as it is.
	w.run(jitgateExe + `rdp 'LAB\alice@web1' --port 22 --file 'C:\t\web1.rdp' >/tmp/rdp.log 2>&1 & echo $! >/tmp/rdp.pid`)
	until(t, patienceWithWine, "the desktop's file should be there", func() bool { _, code := w.try("test -s $C/t/web1.rdp"); return code == 0 })
	if file := w.run("cat $C/t/web1.rdp"); !strings.Contains(file, "full address:s:"+vm4+":22") || !strings.Contains(file, `username:s:LAB\alice`) {
		t.Errorf("the desktop's file:\n%s", file)
	}
	w.run("kill $(cat /tmp/rdp.pid)")

	// A host with Windows enrols, gets its documents, verifies them, and reports.
	const win = "/subscriptions/" + subscription + "/resourceGroups/" + group + "/providers/Microsoft.Compute/virtualMachines/win1"
	o.must("vm", "add", win, "--location", location, "--os", "Windows", "--address", "10.77.0.99")
	o.must("vm", "enable", "win1", "--port", "3389/tcp:PT1H")
	token := joinToken(o.p, "--vm", win)
	w.run(jitgateExe + `agent setup --host-id ` + win)
	w.run(jitgateExe + `enroll --control ` + o.p.url("") + ` --token ` + token)
	w.run(jitgateExe + `agent run >/tmp/agent.log 2>&1 &`)
	w.agent()
	w.run(jitgateExe + `fetch >/tmp/fetch.log 2>&1 &`)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := w.try("tail -n 30 /tmp/agent.log /tmp/fetch.log /tmp/rdp.log")
			t.Log(out)
		}
	})
	w.becomes("the policy should be in force", func(s status) bool { return s.document("policy").Version == 1 })
	before := w.agent().document("grants").Version
	o.must("request", "win1", "--port", "3389", "--source", "203.0.113.7", "--for", "10m", "--reason", "INC-2", "--no-wait")
	w.becomes("the list of grants should be in force", func(s status) bool { return s.document("grants").Version > before })
	until(t, patienceWithWine, "the control plane should know what the host has", func() bool {
		shown := o.must("vm", "show", "win1", "--json")
		return strings.Contains(shown, `"observe"`) && strings.Contains(shown, "nothing is guarded by this agent")
	})
}

// wineTests are the packages whose own tests run under Wine too. Those left out
// are about Unix, or leave a file open at their end, or fill a disk for minutes.
var wineTests = []struct{ path, run, skip string }{
	{"acl", "", ""}, {"policy", "", ""}, {"armor", "", ""}, {"firewall", "", ""}, {"firewall/fwtest", "", ""}, {"firewall/winfw", "", ""}, {"doctor", "", "TestDocsListEveryFinding"}, {"uplink", "", ""},
	{"audit", "", "TestThreatEditsTheRecord|TestUnwritable|TestConcurrent|TestJournal.*|TestTamperedRecord|TestOCSF|TestCatalog"},
	{"agent", "Installation|Firewall|TCPTable|AuditSettings|Defaults", ""},
}

// The tests of what is the same on every system, compiled for Windows.
func TestWinePackages(t *testing.T) {
	privileged(t, "mmdebstrap")
	t.Parallel()
	w := newWine(t, nil)
	if err := os.CopyFS(filepath.Join(w.files, "docs"), os.DirFS("../docs")); err != nil { // some are about a page
		t.Fatal(err)
	}
	for _, p := range wineTests {
		dir := filepath.Join(w.files, p.path)
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		build := exec.Command("go", "test", "-c", "-buildvcs=false", "-o", dir+".exe", "github.com/jitgate/jitgate/"+p.path)
		build.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", p.path, err, out)
		}
		if data := filepath.Join("..", p.path, "testdata"); exists(data) {
			if err := os.CopyFS(filepath.Join(dir, "testdata"), os.DirFS(data)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, p := range wineTests {
		t.Run(p.path, func(t *testing.T) {
			w := *w
			w.t = t
			command := "mkdir -p /src/" + p.path + " && cd /src/" + p.path + " && timeout -s KILL 100 $W '/src/" + p.path + ".exe' -test.v -test.timeout 90s -test.run '" + p.run + "' -test.skip '" + p.skip + "'"
			out, code := w.try(command)
			if code == killed {
				// Go's own limit did not come: the process stood still, not a test of it. A
				// second time would be no accident.
				t.Logf("killed after 100 s; its last lines:\n%s", out[max(0, len(out)-2000):])
				out, code = w.try(command)
			}
			if passed := strings.Count(out, "--- PASS"); code != 0 || passed == 0 {
				failed := slices.DeleteFunc(strings.Split(out, "\n"), func(l string) bool { return strings.Contains(l, "--- PASS") || strings.HasPrefix(l, "=== ") })
				t.Errorf("%s: exit code %d, %d passed:\n%s", p.path, code, passed, strings.Join(failed[max(0, len(failed)-40):], "\n"))
			}
		})
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
