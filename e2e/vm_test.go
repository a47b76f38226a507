//go:build linux && vm

package e2e_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// virtual is a machine on a kernel of its own, under QEMU. It is spoken to
// through the guest agent, so that no guard cuts a test off.
type virtual struct {
	*host
	image string // directory of kernel, initrd and disk
	qemu  *exec.Cmd

	asking sync.Mutex // the agent has one line
}

// itsMAC is the address of the machine's network card.
const itsMAC = "52:54:00:77:00:01"

// newVirtual prepares a machine with a cable to the outside.
func newVirtual(t *testing.T) *booted {
	t.Helper()
	privileged(t, "qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs")
	made := exec.Command("sh", "vm.sh")
	var complaints strings.Builder
	made.Stderr = &complaints
	image, err := made.Output()
	if err != nil {
		t.Fatalf("vm.sh: %v: %s", err, &complaints)
	}
	h := &host{t: t, outside: newNamespace(t), realm: newRealm(t, "acme"), dir: t.TempDir()}
	v := &virtual{host: h, image: strings.TrimSpace(string(image))}
	out := h.outside
	out.run(t, "ip", "tuntap", "add", "p0", "mode", "tap")
	for _, a := range []string{alice4 + "/24", alice6 + "/64", bob4 + "/24", bob6 + "/64", carol4 + "/32"} {
		out.run(t, "ip", "addr", "add", a, "dev", "p0", "nodad")
	}
	out.run(t, "ip", "link", "set", "lo", "up")
	out.run(t, "ip", "link", "set", "p0", "up")
	// Nobody has to ask where the machine is: a packet is there with its first
	// moment on the network.
	for _, a := range []string{vm4, vm6} {
		out.run(t, "ip", "neigh", "replace", a, "lladdr", itsMAC, "dev", "p0", "nud", "permanent")
	}
	// A disk keeps what was flushed to it when the power goes.
	out.run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", filepath.Join(v.image, "disk"), h.path("disk"))
	t.Cleanup(func() {
		if v.qemu != nil {
			v.keepLogs(v)
			v.cut()
		}
	})
	return &booted{h, v}
}

func (v *virtual) powerOn(files map[string]string) {
	v.t.Helper()
	// The second disk is an archive.
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	var err error
	for path, text := range files {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(path, "/"), Mode: 0o644, Size: int64(len(text))}))
		_, written := w.Write([]byte(text))
		err = errors.Join(err, written)
	}
	if err = errors.Join(err, w.Close(), os.WriteFile(v.path("files"), archive.Bytes(), 0o600)); err != nil {
		v.t.Fatal(err)
	}
	v.plugIn()
	if out, err := v.try("tar", "-C", "/", "-xf", "/dev/vdb"); err != nil {
		v.t.Fatalf("tar: %v\n%s", err, out)
	}
}

// plugIn boots the machine from its disk.
func (v *virtual) plugIn() {
	v.t.Helper()
	// What cmpxchg16b does in an emulated processor is wrong in QEMU 7.2.
	processor := []string{"-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,-cx16"}
	for _, module := range []string{"kvm_intel", "kvm_amd"} {
		if _, err := os.Stat("/sys/module/" + module); err == nil {
			processor = []string{"-accel", "kvm", "-cpu", "host"}
		}
	}
	v.qemu = exec.Command("qemu-system-x86_64", append(processor,
		"-M", "q35,smm=off", "-smp", "2", "-m", "768", "-display", "none", "-nodefaults", "-no-user-config", "-rtc", "base=utc,clock=host",
		"-kernel", filepath.Join(v.image, "vmlinuz"), "-initrd", filepath.Join(v.image, "initrd"),
		"-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet systemd.show_status=1",
		"-drive", "if=none,id=disk,format=qcow2,file="+v.path("disk"), "-device", "virtio-blk-pci,drive=disk",
		"-drive", "if=none,id=files,format=raw,readonly=on,file="+v.path("files"), "-device", "virtio-blk-pci,drive=files",
		"-netdev", "tap,id=cable,ifname=p0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=cable,romfile=,mac="+itsMAC,
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,server=on,wait=off,path="+v.path("agent"), "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
		"-chardev", "file,id=console,append=on,path="+v.path("console"), "-serial", "chardev:console")...)
	log, err := os.OpenFile(v.path("console"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		v.t.Fatal(err)
	}
	defer log.Close()
	v.qemu.Stdout, v.qemu.Stderr = log, log
	if err := v.outside.start(v.qemu); err != nil {
		v.t.Fatal(err)
	}
	boots(v.t, v)
}

// cut takes the power away.
func (v *virtual) cut() {
	v.qemu.Process.Kill()
	v.qemu.Wait()
}

func (v *virtual) bootAgain() {
	v.t.Helper()
	const which = "/proc/sys/kernel/random/boot_id"
	before := v.read(which)
	v.try("systemctl", "reboot", "--no-block") // which may end the one who asks
	until(v.t, patienceToBoot, "the machine should restart", func() bool {
		now, err := v.try("cat", which)
		return err == nil && now != before
	})
	boots(v.t, v)
}

func (v *virtual) try(words ...string) (string, error) { return v.feed("", words...) }

func (v *virtual) read(path string) string {
	v.t.Helper()
	text, err := v.try("cat", path)
	if err != nil {
		v.t.Fatalf("%v: %s", err, text)
	}
	return text
}

func (v *virtual) write(path, text string) {
	v.t.Helper()
	if out, err := v.feed(text, "dd", "status=none", "of="+path); err != nil {
		v.t.Fatalf("%v: %s", err, out)
	}
}

// feed runs a command with an input.
func (v *virtual) feed(input string, words ...string) (string, error) {
	v.asking.Lock()
	defer v.asking.Unlock()
	line, answers, err := v.dial()
	if err != nil {
		return "", err
	}
	defer line.Close()
	line.SetDeadline(time.Now().Add(2 * patienceToBoot))
	ask := func(command string, arguments object, answer any) error {
		a := struct {
			Return any
			Error  struct{ Desc string }
		}{Return: answer}
		if err := errors.Join(say(line, command, arguments), answers.Decode(&a)); err != nil {
			return err
		}
		if a.Error.Desc != "" {
			return errors.New(a.Error.Desc)
		}
		return nil
	}
	arguments := object{"path": "/bin/sh", "arg": append([]string{"-c", `exec "$@" 2>&1`, "sh"}, words...), "env": environment, "capture-output": true}
	if input != "" {
		arguments["input-data"] = []byte(input)
	}
	var process struct{ PID int }
	if err := ask("guest-exec", arguments, &process); err != nil {
		return "", err
	}
	for ; ; time.Sleep(20 * time.Millisecond) {
		var end struct {
			Exited   bool
			ExitCode int
			Signal   int
			Out      []byte `json:"out-data"`
		}
		if err := ask("guest-exec-status", object{"pid": process.PID}, &end); err != nil {
			return "", err
		}
		switch {
		case !end.Exited:
		case end.ExitCode != 0 || end.Signal != 0:
			return string(end.Out), fmt.Errorf("exit code %d, signal %d", end.ExitCode, end.Signal)
		default:
			return string(end.Out), nil
		}
	}
}

// dial opens a line to the guest agent that is in step: what somebody asked
// before, while nobody listened, may be answered first.
func (v *virtual) dial() (line net.Conn, answers *json.Decoder, err error) {
	for id := range 5 {
		if line, err = net.Dial("unix", v.path("agent")); err != nil {
			return nil, nil, err // no power
		}
		line.SetDeadline(time.Now().Add(patience))
		answers = json.NewDecoder(line)
		id += int(time.Now().UnixMilli() % 1e9)
		err = say(line, "guest-sync", object{"id": id})
		for err == nil {
			var a struct{ Return any }
			if err = answers.Decode(&a); err == nil && a.Return == float64(id) {
				return line, answers, nil
			}
		}
		line.Close()
	}
	return nil, nil, err
}

// say sends a request to the guest agent.
func say(line net.Conn, command string, arguments object) error {
	return json.NewEncoder(line).Encode(object{"execute": command, "arguments": arguments})
}

// rootsAgent is the last commit whose agent ran as root.
const rootsAgent = "c1681bf5b57f11996a792ebb58e632b779ba0650"

// previous is the package of that commit, as that commit packs it.
var previous = sync.OnceValues(func() ([]byte, error) {
	const pack = `
		mkdir "$1"
		git -C .. archive "$2" | tar -x -C "$1"
		cd "$1"
		go build -trimpath -ldflags '-s -w' -o dist/jitgate-linux-amd64 .
		packaging/package.sh dist 0.0.0 amd64`
	dir := filepath.Join(programs, "previous")
	if out, err := exec.Command("sh", "-e", "-c", pack, "sh", dir, rootsAgent).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("the package of %s (a shallow clone has it not): %w\n%s", rootsAgent, err, out)
	}
	return fs.ReadFile(os.DirFS(dir), "dist/jitgate_0.0.0_amd64.deb")
})

const previousDeb = "jitgate_0.0.0_amd64.deb"

// withPrevious boots a machine with that package too.
func (b *booted) withPrevious(files map[string]string, packages ...string) *installed {
	b.t.Helper()
	content, err := previous()
	if err != nil {
		b.t.Fatal(err)
	}
	files["/root/"+previousDeb] = string(content)
	return b.withPackages(files, packages...)
}

// succeedsPrevious installs the previous version, arms and opens, and goes on
// with today's under a flood: who is in stays in, and nobody else comes in.
func (m *installed) succeedsPrevious(name string, g1 object) (session *shell) {
	m.t.Helper()
	m.provisionAndArm(previousDeb)
	if user := m.run("ps", "-o", "user=", "-p", m.agent()); strings.TrimSpace(user) != "root" {
		m.t.Fatalf("the previous agent is %s", user)
	}
	m.allow(g1)
	m.getsIn(alice4)
	session = m.logsIn(alice4)
	end := m.end("g1")
	m.isClosed(ways("22/tcp", bob4, bob6, alice6))
	stop := m.flood(way{"22/tcp", bob4})
	m.install(name)
	m.becomes("the new agent should guard as the previous one", func(s status) bool {
		return s.Mode == "enforce" && s.Intact && s.Problem == "" && s.isOpen("g1") && s.document("policy").Version == 1
	})
	stop()
	session.lives("upgraded from the previous version")
	m.getsIn(alice4)
	m.isClosed(ways("22/tcp", bob4, bob6, alice6))
	if now := m.end("g1"); !now.Equal(end) {
		m.t.Errorf("the opening ended at %s, and ends at %s", end, now)
	}
	if user := m.run("ps", "-o", "user=", "-p", m.agent()); strings.TrimSpace(user) != "jitgate" {
		m.t.Errorf("the new agent is %s", user)
	}
	m.run("jitgate", "audit", "verify")
	return session
}

// end is when an opening ends.
func (m *installed) end(grant string) time.Time {
	m.t.Helper()
	var s struct {
		Openings []struct {
			Grant string
			End   time.Time
		}
	}
	if err := json.Unmarshal([]byte(m.run("jitgate", "status", "--json")), &s); err != nil {
		m.t.Fatal(err)
	}
	for _, o := range s.Openings {
		if o.Grant == grant {
			return o.End
		}
	}
	m.t.Fatalf("%s is not open: %+v", grant, s)
	return time.Time{}
}

// recordOf is what the record has of one name, the chain verified.
func (m *installed) recordOf(name string) []event {
	m.t.Helper()
	m.run("jitgate", "audit", "verify")
	var events []event
	for line := range strings.Lines(m.run("jitgate", "audit", "export")) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			m.t.Fatalf("%v: %s", err, line)
		}
		if e.Name == name {
			events = append(events, e)
		}
	}
	return events
}

// On a kernel that knows owner and persist.
func TestVMPrevious(t *testing.T) {
	t.Parallel()
	first, _ := deb(t, "0.0.1")
	m := newBooted(t).withPrevious(map[string]string{}, "0.0.1")
	// A container has a name of its own for each boot, but not a boot clock. The
	// previous agent saw it, today's unit does not.
	m.run("umount", "/proc/sys/kernel/random/boot_id")
	m.run("systemctl", "enable", "-q", "--now", "nftables")
	before := m.traces()
	m.succeedsPrevious(first, grant("g1", 22, 50*time.Minute, alice4+"/32"))
	m.reboot()
	m.becomes("the agent should guard as before", func(s status) bool { return s.Mode == "enforce" && s.Intact && s.isOpen("g1") })
	m.isClosed(ways("22/tcp", bob4, bob6))
	m.leaves("jitgate", before)
	m.isOpen(ways("22/tcp", alice4, bob6))
}

// Debian's own kernel (6.1: a table can have no owner that outlives it), real
// boots, and the power cut.
func TestVM(t *testing.T) {
	t.Parallel()
	first, _ := deb(t, "0.0.1")
	second, _ := deb(t, "0.0.2")
	b := newVirtual(t)
	v := b.platform.(*virtual)
	began := time.Now()
	did := func(what string) { t.Logf("%6.1f s  %s", time.Since(began).Seconds(), what) }
	m := b.withPrevious(map[string]string{}, "0.0.1", "0.0.2")
	bob := way{"22/tcp", bob4}
	did("booted: Linux " + strings.TrimSpace(m.run("uname", "-r")))
	m.run("systemctl", "enable", "-q", "--now", "nftables")
	m.isOpen(ways("22/tcp", alice4, bob6))
	before := m.traces()

	g1 := grant("g1", 22, 50*time.Minute, alice4+"/32")
	session := m.succeedsPrevious(first, g1)
	did("the previous version installed and armed, closed, granted, in; upgraded to this one")
	same := func(what string) {
		t.Helper()
		session.lives(what)
		m.getsIn(alice4)
		m.isClosed(ways("22/tcp", bob4, bob6, alice6))
		did(what)
	}
	m.becomes("without an owner that stays the agent should say so", status.others)

	// Whoever flushes takes the guard along, and the agent puts it back.
	m.run("systemctl", "restart", "nftables")
	m.closes(patience, ways("22/tcp", bob4, bob6, alice6))
	m.becomes("the guard should be whole again", func(s status) bool { return s.Intact && s.Problem == "" })
	same("nftables restarted")
	repairs := m.recordOf("guard.repaired")
	if len(repairs) == 0 {
		t.Error("a guard that was flushed is not recorded as repaired")
	} else {
		t.Logf("exposed for %d ms", repairs[len(repairs)-1].ExposedMS)
	}

	stop := m.flood(bob)
	pid := m.agent()
	m.run("kill", "-9", pid)
	same("killed")
	m.runsAgain(pid)
	same("killed, and back")

	m.reboot()
	m.becomes("the agent should guard as before, and be knocked at", func(s status) bool {
		return s.Mode == "enforce" && s.Intact && s.isOpen("g1") && s.Denied > 0
	})
	session = m.logsIn(alice4)
	same("rebooted")
	stop()
	at := func(unit, when string) int {
		t.Helper()
		µs, err := strconv.Atoi(strings.TrimSpace(m.run("systemctl", "show", "--value", "--property="+when+"Monotonic", unit)))
		if err != nil || µs == 0 {
			t.Fatalf("%s of %s: %d, %v", when, unit, µs, err)
		}
		return µs
	}
	closed, network := at("jitgate-baseline", "ActiveEnterTimestamp"), at("systemd-networkd", "InactiveExitTimestamp")
	if closed > network {
		t.Errorf("the ports close %d µs after the boot, and the network begins %d µs after it", closed, network)
	}
	t.Logf("after the kernel's start: closed %.2f s, agent started %.2f s, guards %.2f s, network begins %.2f s", float64(closed)/1e6,
		float64(at("jitgate", "ExecMainStartTimestamp"))/1e6, float64(at("jitgate", "ActiveEnterTimestamp"))/1e6, float64(network)/1e6)
	if tables := m.run("nft", "list", "tables"); strings.Contains(tables, "jitgate_boot") {
		t.Errorf("beside the guard stands what closes at boot:\n%s", tables)
	}
	if out := m.run("sh", "-c", "journalctl -b --no-pager | grep -i '[o]rdering cycle' || true"); out != "" {
		t.Error(out)
	}

	// The power goes a moment after something opened.
	stop = m.flood(bob)
	m.allow(g1, grant("g2", 22, 50*time.Minute, alice6+"/128"))
	m.isOpen(ways("22/tcp", alice6))
	ends := []time.Time{m.end("g1"), m.end("g2")}
	v.cut()
	v.plugIn()
	m.reachable()
	m.runs("ssh")
	m.becomes("the agent should guard as before", func(s status) bool { return s.Mode == "enforce" && s.Intact && s.isOpen("g1") && s.isOpen("g2") })
	m.getsIn(alice6)
	m.isClosed(ways("22/tcp", bob4, bob6))
	stop()
	for i, id := range []string{"g1", "g2"} {
		if end := m.end(id); !end.Equal(ends[i]) {
			t.Errorf("%s ended at %s, and after the power cut ends at %s", id, ends[i], end)
		}
		if !slices.ContainsFunc(m.recordOf("grant.opened"), func(e event) bool { return e.Grant == id }) {
			t.Errorf("what opened %s is not in the record", id)
		}
	}
	session = m.logsIn(alice4)
	did("the power cut, booted: closed, the ends as before, the record whole")
	if out := m.run("journalctl", "-b", "-x", "--no-pager", "-u", "jitgate"); !strings.Contains(out, "Subject: The agent started") {
		t.Errorf("journalctl -x says\n%s", out)
	}

	// A grant ends: for who is in, and for who wants in.
	m.allow(g1, grant("g3", 22, time.Minute, bob4+"/32"))
	guest := m.logsIn(bob4)
	m.closes(2*time.Minute, ways("22/tcp", bob4))
	guest.ends("expired")
	same("the other one expired, and is out")

	stop = m.flood(bob)
	m.install(second)
	same("upgraded")
	stop()
	m.allow()
	session.ends("taken back")
	m.isClosed(ways("22/tcp", alice4))
	m.leaves("jitgate", before)
	m.isOpen(ways("22/tcp", alice4, bob6))
	did("purged: the rules are as before")
}
