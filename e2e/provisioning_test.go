//go:build linux

package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// foreign is the other architecture that packages are made for.
var foreign = map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]

// packed are the packages under test, by their program: two versions of the
// same program, the first of them packed twice, and once more under the name of
// the other architecture.
var packed = map[string]func() (map[string][]byte, error){
	"jitgate": sync.OnceValues(func() (map[string][]byte, error) {
		program, err := build("jitgate-stripped", "-s -w")
		if err != nil {
			return nil, err
		}
		return pack("jitgate", program)
	}),
	"jitgate-control": sync.OnceValues(func() (map[string][]byte, error) {
		program, err := buildPackage("jitgate-control-stripped", "/cmd/jitgate-control", "-ldflags", "-s -w")
		if err != nil {
			return nil, err
		}
		return pack("jitgate-control", program)
	}),
}

// pack makes the packages of a program.
func pack(name, program string) (map[string][]byte, error) {
	packages := map[string][]byte{}
	for _, turn := range []struct{ dir, version, arch string }{
		{"first", "0.0.1", runtime.GOARCH}, {"again", "v0.0.1", runtime.GOARCH}, {"first", "0.0.2", runtime.GOARCH}, {"foreign", "0.0.1", foreign},
	} {
		dist := filepath.Join(programs, "dist", name, turn.dir)
		if err := os.MkdirAll(dist, 0o755); err != nil {
			return nil, err
		}
		// The one of this machine is asked for its pages. Nobody runs the foreign
		// one: that it is none does not matter.
		for _, arch := range []string{runtime.GOARCH, turn.arch} {
			if err := os.Link(program, filepath.Join(dist, name+"-linux-"+arch)); err != nil && !errors.Is(err, os.ErrExist) {
				return nil, err
			}
		}
		cmd := exec.Command("packaging/package.sh", dist, turn.version, turn.arch)
		cmd.Dir = ".."
		out, err := cmd.Output()
		if failed := new(exec.ExitError); errors.As(err, &failed) {
			err = fmt.Errorf("%w: %s", err, failed.Stderr)
		}
		if err != nil {
			return nil, fmt.Errorf("package.sh: %w", err)
		}
		for path := range strings.FieldsSeq(string(out)) {
			content, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			packages[turn.dir+"/"+filepath.Base(path)] = content
		}
	}
	return packages, nil
}

// deb is the Debian package of a version.
func deb(t *testing.T, version string) (name string, content []byte) {
	t.Helper()
	return debOf(t, "jitgate", version)
}

func debOf(t *testing.T, program, version string) (name string, content []byte) {
	t.Helper()
	packages, err := packed[program]()
	if err != nil {
		t.Fatal(err)
	}
	name = fmt.Sprintf("%s_%s_%s.deb", program, version, runtime.GOARCH)
	return name, packages["first/"+name]
}

func TestPackagesAreTheSameBytes(t *testing.T) {
	t.Parallel()
	privileged(t)
	for program, made := range packed {
		packages, err := made()
		if err != nil {
			t.Fatal(err)
		}
		compared := 0
		for name, content := range packages {
			if other, twice := packages[strings.Replace(name, "first/", "again/", 1)]; twice && strings.HasPrefix(name, "first/") {
				compared++
				if !bytes.Equal(content, other) {
					t.Errorf("%s differs from when it was packed before", name)
				}
			}
		}
		if compared != 2 {
			t.Errorf("%d packages of %s were packed twice: %v", compared, program, slices.Sorted(maps.Keys(packages)))
		}
	}
}

// repository is a signed repository of some versions, with its key and with
// what tells apt and dnf of it, as files of a machine.
func repository(t *testing.T, versions ...string) map[string]string {
	t.Helper()
	privileged(t, "apt-ftparchive", "createrepo_c", "gpg")
	for _, made := range packed {
		if _, err := made(); err != nil {
			t.Fatal(err)
		}
	}
	dist, keyring := t.TempDir(), t.TempDir()
	gpg := func(words ...string) *exec.Cmd {
		c := exec.Command(words[0], words[1:]...)
		c.Env = append(os.Environ(), "GNUPGHOME="+keyring)
		c.Dir = ".."
		return c
	}
	t.Cleanup(func() { gpg("gpgconf", "--kill", "gpg-agent").Run() })
	for _, v := range versions {
		pieces := fmt.Sprintf("cp %s/dist/*/first/*%s*.deb %[1]s/dist/*/first/*%[2]s*.rpm %[3]s", programs, v, dist)
		if out, err := gpg("sh", "-c", pieces).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", pieces, err, out)
		}
	}
	for _, c := range []*exec.Cmd{
		gpg("gpg", "--batch", "--passphrase", "", "--quick-generate-key", "test@example.com", "ed25519", "sign", "never"),
		gpg("packaging/repo.sh", dist, "test@example.com"),
	} {
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c.Args, err, out)
		}
	}
	files := map[string]string{
		"/etc/apt/sources.list":         sample(t, "jitgate.list", samplesFrom, "copy:/root/repo"),
		"/etc/yum.repos.d/jitgate.repo": sample(t, "jitgate.repo", samplesFrom, "file:///root/repo"),
	}
	err := fs.WalkDir(os.DirFS(dist), "repo", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(filepath.Join(dist, path))
		files["/root/"+path] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/etc/apt/keyrings/jitgate.asc", "/etc/pki/rpm-gpg/jitgate.asc"} {
		files[path] = files["/root/repo/jitgate.asc"]
	}
	return files
}

// dnf runs dnf, as far as Debian is a system of its kind.
func (b *booted) dnf(words ...string) string {
	b.t.Helper()
	return b.run(append(dnf, words...)...)
}

var dnf = []string{"dnf", "-y", "-q", "--releasever=1", "--refresh"}

// A repository that its key signed is taken by apt and dnf, and one that
// somebody has changed is not.
func TestRepository(t *testing.T) {
	t.Parallel()
	b := newBooted(t)
	b.powerOn(repository(t, "0.0.2"))
	b.run("chmod", "755", "/root") // apt reads as a user of its own
	b.run("apt-get", "update", "-q")
	b.run("apt-get", "install", "-q", "-y", "jitgate", "jitgate-control")
	b.unprovisioned()
	if out := b.dnf("list", "--available", "jitgate", "jitgate-control"); strings.Count(out, "0.0.2-1") != 2 {
		t.Errorf("dnf lists\n%s", out)
	}

	b.run("sh", "-c", "set -e; rm -r /var/lib/apt/lists/*; cd /root/repo/apt/dists/stable/main; echo 'Package: evil' | tee -a binary-*/Packages; rm binary-*/Packages.gz")
	b.fails("", "apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any")
	b.run("sed", "-i", "s/Origin: jitgate/Origin: somebody/", "/root/repo/apt/dists/stable/InRelease")
	b.fails("", "apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any")
	b.run("sed", "-i", "s/<revision>/<revision>1/", "/root/repo/dnf/repodata/repomd.xml")
	b.fails("Bad GPG signature", append(dnf, "--setopt=skip_if_unavailable=False", "makecache")...)
}

// sample is a file of docs/examples/provisioning with some pieces replaced by
// others, each of which must be there.
func sample(t *testing.T, name string, replace ...string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("../docs/examples/provisioning", name))
	if err != nil {
		t.Fatal(err)
	}
	text := string(content)
	for pair := range slices.Chunk(replace, 2) {
		if !strings.Contains(text, pair[0]) {
			t.Fatalf("%s has no %q", name, pair[0])
		}
		text = strings.ReplaceAll(text, pair[0], pair[1])
	}
	return text
}

// What the samples have in the place of what is to be filled in.
var (
	noDigest = strings.Repeat("0", 64)
	noPin    = "sha256:" + noDigest
)

const (
	samplesFrom = "https://files.example.com/jitgate"
	sampleDeb   = "jitgate_1.0.0_amd64.deb"
	webName     = "web1"
)

// provisions are what a host is given: the realm's first trust document, its
// pin, and a policy for SSH.
func provisions(r realm) (trust, policy []byte, pin string) {
	document := encode(r.trust(1))
	rules := with(r.rules(1, port(22, "TCP")), object{"host": object{"id": webName}})
	return seal("trust", document, r.root), r.sign("policy", rules), fmt.Sprintf("sha256:%x", sha256.Sum256(document))
}

// provisioned requires that the host follows the realm, and observes.
func (b *booted) provisioned(policy uint64) {
	b.t.Helper()
	b.becomes("the host should be provisioned and observe", func(s status) bool {
		return s.Host == webName && s.Mode == "observe" && s.Intact && s.Problem == "" && s.document("trust").Version == 1 && s.document("policy").Version == policy
	})
	b.service()
	b.isOpen(ways("22/tcp", alice4, bob6))
}

// unprovisioned requires that the agent observes and follows nobody.
func (b *booted) unprovisioned() {
	b.t.Helper()
	b.becomes("the host should observe, and follow nobody", func(s status) bool {
		return s.Mode == "observe" && s.Intact && s.document("trust").Version == 0
	})
	b.service()
	if settings := b.read("/etc/jitgate/agent.toml"); strings.Contains(settings, "trust_pin") {
		b.t.Errorf("there is a pin in the settings:\n%s", settings)
	}
	b.isOpen(ways("22/tcp", alice4, bob6))
}

// service requires that the agent runs and will after the next boot.
func (b *booted) service() {
	b.t.Helper()
	for _, question := range []string{"is-active", "is-enabled"} {
		b.run("systemctl", question, "jitgate")
	}
}

// arms shows that the next step works: the guard closes what nobody granted.
func (b *booted) arms() {
	b.t.Helper()
	b.run("jitgate", "arm", "--confirm-within", "5m")
	b.isClosed(ways("22/tcp", alice4, bob6))
	b.run("jitgate", "disarm", "--observe")
	b.isOpen(ways("22/tcp", alice4, bob6))
}

// traces are the paths of the machine's disk, and what dpkg, debconf, systemd
// and the kernel know.
func (b *booted) traces() string {
	b.t.Helper()
	return b.run("sh", "-c", `
		find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/log -o -path /var/tmp -o -path '/var/cache/*' -o -path '/var/lib/dpkg/*' \
			-o -path '/var/lib/apt/*' -o -path '/var/lib/systemd/*' -o -path /root -o -name __pycache__ \) -prune -o -printf '%p %y %m %l\n' | sort
		find /run /var/lib/systemd -name '*jitgate*'
		dpkg -l 'jitgate*' 2>/dev/null | grep jitgate
		getent passwd; getent group; cut -d: -f1 /etc/shadow /etc/gshadow
		grep jitgate /var/cache/debconf/*.dat
		systemctl list-units --all --no-legend '*jitgate*'
		nft list ruleset`)
}

func TestProvisionByDebconf(t *testing.T) {
	t.Parallel()
	first, one := deb(t, "0.0.1")
	second, two := deb(t, "0.0.2")
	b := newBooted(t)
	b.powerOn(map[string]string{"/root/" + first: string(one), "/root/" + second: string(two)})
	trust, policy, pin := provisions(b.realm)
	b.write("/root/trust.json", string(trust))
	install := func(name string) []string {
		return []string{"apt-get", "install", "-q", "-y", "-o", "Dpkg::Use-Pty=0", "/root/" + name}
	}
	preseed := func(pin string) {
		b.write("/root/jitgate.preseed", sample(t, "jitgate.preseed", noPin, pin, "string auto", "string "+webName))
		b.run("debconf-set-selections", "/root/jitgate.preseed")
	}
	before := b.traces()
	nothingLeft := func() {
		t.Helper()
		b.leaves("jitgate", before)
		b.isOpen(ways("22/tcp", alice4, bob6))
	}

	// Without answers: no question, no realm, nothing closed.
	b.run(install(first)...)
	b.unprovisioned()
	nothingLeft()

	// A wrong pin, and half of an answer: nothing is installed by halves, and
	// the right answers mend it.
	for why, wrong := range map[string]string{
		"the pin is sha256:11":     "sha256:" + strings.Repeat("1", 64),
		"jitgate/trust_pin is not": "",
	} {
		preseed(wrong)
		out := b.fails(why, install(first)...)
		if n := strings.Count(out, "jitgate: "); n != 1 {
			t.Errorf("%d lines say what is wrong:\n%s", n, out)
		}
		if left := b.run("sh", "-c", "ls -A /etc/jitgate; ls -d /var/lib/jitgate 2>&1 | grep -v 'No such file' || true"); left != "" {
			t.Errorf("there is %s", left)
		}
		b.fails("", "systemctl", "is-active", "jitgate")
		b.isOpen(ways("22/tcp", alice4, bob6))
	}
	preseed(pin)
	b.run("dpkg", "--configure", "jitgate")
	b.provisioned(0)
	b.arms()

	// An upgrade of a guard that drops: not a packet gets in, and what people
	// wrote into the settings stays, byte for byte.
	b.write("/var/lib/jitgate/inbox/policy.json", string(policy))
	b.becomes("the policy should be in force", func(s status) bool { return s.document("policy").Version == 1 })
	edited := strings.Replace(b.read("/etc/jitgate/agent.toml"), "guard   = [22]  ", "guard   = [22, 2222]", 1) + "\n[control]\nurl = \"https://control.example.net\"\n"
	b.write("/etc/jitgate/agent.toml", edited)
	b.run("rm", "/root/trust.json") // it is not asked for again
	b.run("jitgate", "arm")
	b.run("jitgate", "arm", "confirm")
	b.isClosed(ways("22/tcp", alice4, bob6))
	unchanged := func() {
		t.Helper()
		if now := b.read("/etc/jitgate/agent.toml"); now != edited {
			t.Errorf("the settings were\n%s\nand are\n%s", edited, now)
		}
		b.becomes("what was in force should be", func(s status) bool {
			return s.Host == webName && s.Mode == "enforce" && s.Intact && s.document("trust").Version == 1 && s.document("policy").Version == 1
		})
		b.isClosed(ways("22/tcp", alice4, bob6))
	}
	stop := b.keepsOut(way{"22/tcp", bob4})
	b.run(install(second)...)
	unchanged()
	b.run("dpkg-reconfigure", "-fnoninteractive", "jitgate")
	unchanged()
	// What the administrator answers differently is changed, and nothing else.
	b.run("script", "-qec", "DEBIAN_FRONTEND=editor EDITOR='sed -i s/web1/web2/' dpkg-reconfigure jitgate", "/dev/null")
	if now, want := b.read("/etc/jitgate/agent.toml"), strings.Replace(edited, `"web1"`, `"web2"`, 1); now != want {
		t.Errorf("the settings are\n%s\nwant\n%s", now, want)
	}
	b.becomes("the host should have its new name", func(s status) bool { return s.Host == "web2" })
	b.write("/etc/jitgate/agent.toml", edited)

	stop()

	// Removed, the guard is off, and what it knew stays.
	out := b.run("apt-get", "remove", "-q", "-y", "jitgate")
	if !strings.Contains(out, "the guard is off") {
		t.Errorf("remove does not say that the guard is off:\n%s", out)
	}
	b.fails("", "systemctl", "is-active", "jitgate")
	b.isOpen(ways("22/tcp", alice4, bob6))
	b.run(install(second)...)
	unchanged()
	nothingLeft()
}

// keepsOut knocks on a way without a pause until stop, which requires that it
// was never found open.
func (h *host) keepsOut(w way) (stop func()) {
	h.t.Helper()
	ending, ended := make(chan struct{}), make(chan struct{})
	knocks, opened := 0, 0
	var failed error
	go func() {
		defer close(ended)
		for failed == nil {
			select {
			case <-ending:
				return
			default:
			}
			var open bool
			if open, failed = h.outside.knock(w, 20*time.Millisecond); open {
				opened++
			}
			knocks++
		}
	}()
	end := sync.OnceFunc(func() { close(ending); <-ended })
	h.t.Cleanup(end) // a test that fails does not come to stop
	return func() {
		h.t.Helper()
		end()
		if failed != nil || opened > 0 || knocks < 10 {
			h.t.Fatalf("%s: %d of %d knocks found it open, %v", w, opened, knocks, failed)
		}
	}
}

func TestProvisionByCloudInit(t *testing.T) {
	t.Parallel()
	name, content := deb(t, "0.0.1")
	start := func(t *testing.T, pin func(right string) string) *booted {
		b := newBooted(t)
		trust, policy, right := provisions(b.realm)
		from := b.offer(map[string][]byte{name: content, "trust.json": trust, "policy.json": policy})
		b.powerOn(map[string]string{
			"/etc/cloud/cloud.cfg.d/99-test.cfg":    "datasource_list: [NoCloud]\nnetwork: {config: disabled}\nlocale: C.UTF-8\nssh_genkeytypes: [ed25519]\n",
			"/var/lib/cloud/seed/nocloud/meta-data": "instance-id: i-1\n",
			// In the place of ifupdown's: what is before the network is before
			// cloud-init, which is before most.
			"/etc/systemd/system/networking.service":            "[Unit]\nDefaultDependencies=no\nAfter=network-pre.target\nBefore=network.target\n[Service]\nType=oneshot\nExecStart=/bin/true\n",
			"/etc/systemd/system/sysinit.target.d/network.conf": "[Unit]\nWants=networking.service\n",
			"/var/lib/cloud/seed/nocloud/user-data": sample(t, "user-data.yaml", samplesFrom, from, sampleDeb, name, noPin, pin(right),
				noDigest, fmt.Sprintf("%x", sha256.Sum256(content)), `"auto" `, fmt.Sprintf("%q ", webName)),
		})
		return b
	}
	t.Run("right pin", func(t *testing.T) {
		t.Parallel()
		b := start(t, func(right string) string { return right })
		b.run("cloud-init", "status", "--wait")
		b.provisioned(1)
		before := b.provisions()
		b.reboot()
		b.run("cloud-init", "status", "--wait")
		b.provisioned(1)
		if after := b.provisions(); after != before {
			t.Errorf("provisioned, the host had\n%s\nand after a restart it has\n%s", before, after)
		}
		b.noCycles()
		b.arms()
	})
	t.Run("wrong pin", func(t *testing.T) {
		t.Parallel()
		b := start(t, func(string) string { return "sha256:" + strings.Repeat("1", 64) })
		b.fails("error", "cloud-init", "status", "--wait")
		if out := b.read("/var/log/cloud-init-output.log"); strings.Count(out, "jitgate: trust.json: bad-signature: the payload is sha256:") != 1 {
			t.Errorf("cloud-init says\n%s", out)
		}
		b.unprovisioned()
	})
}

// provisions are what provisioning leaves on a host, with the times.
func (b *booted) provisions() string {
	b.t.Helper()
	return b.run("sh", "-c", `cd / && find etc/jitgate var/lib/jitgate/inbox usr/bin/jitgate -printf '%p %m %u %s %T+\n' | sort; cat etc/jitgate/agent.toml; sha256sum var/lib/jitgate/inbox/*`)
}

// recap is what a play says at its end.
var recap = regexp.MustCompile(`ok=\d+ +changed=(\d+) +unreachable=0 +failed=(\d+)`)

func TestProvisionByAnsible(t *testing.T) {
	t.Parallel()
	name, content := deb(t, "0.0.1")
	b := newBooted(t)
	trust, policy, pin := provisions(b.realm)
	from := b.offer(map[string][]byte{name: content})
	play := func(pin string) string {
		return sample(t, "jitgate.yml", samplesFrom, from, sampleDeb, name, noPin, pin, `"`+noDigest, fmt.Sprintf(`"%x`, sha256.Sum256(content)),
			"host_id: auto", "host_id: "+webName, `policy: ""`, "policy: policy.json")
	}
	b.powerOn(map[string]string{
		"/root/hosts": "localhost ansible_connection=local\n", "/root/trust.json": string(trust), "/root/policy.json": string(policy),
		"/root/jitgate.yml": play(pin), "/root/wrong.yml": play("sha256:" + strings.Repeat("1", 64)),
	})
	ansible := func(want string, words ...string) string {
		t.Helper()
		out, _ := b.try(append([]string{"ansible-playbook", "-i", "/root/hosts"}, words...)...)
		if found := recap.FindStringSubmatch(out); found == nil || !regexp.MustCompile(want).MatchString(found[0]) {
			t.Fatalf("ansible-playbook %s: want %s:\n%s", strings.Join(words, " "), want, out)
		}
		return out
	}
	const right, wrong = "/root/jitgate.yml", "/root/wrong.yml"
	before := b.traces()
	ansible("changed=1 .*failed=0", right, "--check")
	if after := b.traces(); after != before {
		t.Errorf("--check changed the host from\n%s\nto\n%s", before, after)
	}
	if out := ansible("failed=1", wrong); !strings.Contains(out, "jitgate: -: bad-signature: the payload is "+pin) {
		t.Errorf("a wrong pin says\n%s", out)
	}
	b.unprovisioned()
	ansible("changed=[1-9].*failed=0", right)
	b.provisioned(1)
	made := b.provisions()
	ansible("changed=0 .*failed=0", right)
	if again := b.provisions(); again != made {
		t.Errorf("the first run left\n%s\nand the second\n%s", made, again)
	}
	b.arms()
}
