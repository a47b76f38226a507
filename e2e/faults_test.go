//go:build linux

package e2e_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/uplink"
)

// Two directions of the line between a host and its control plane.
const (
	toHost    = "iifname v0 ip saddr " + control4 + " tcp sport 8443"
	toControl = "iifname p0 ip daddr " + control4 + " tcp dport 8443"
)

// What becomes of the packets of one direction.
const (
	allLost    = "counter drop"
	fourthLost = "numgen inc mod 4 == 3 counter drop"
)

// disturb does that to packets of one direction where they arrive, until mend,
// which requires that some were lost.
func (h *host) disturb(direction, fate string) (mend func()) {
	h.t.Helper()
	at, table := h.vm, "disturbed_down"
	if direction == toControl {
		at, table = h.outside, "disturbed_up"
	}
	at.run(h.t, "nft", fmt.Sprintf("table ip %s { chain arrives { type filter hook prerouting priority raw; %s %s; }; }", table, direction, fate))
	return func() {
		h.t.Helper()
		if listing := at.run(h.t, "nft", "list", "table", "ip", table); strings.Contains(listing, "packets 0 ") {
			h.t.Errorf("no packet was lost:\n%s", listing)
		}
		at.run(h.t, "nft", "delete", "table", "ip", table)
	}
}

// ask asks for port 22 of the host as Azure's API has it, and returns the
// status, once.
func (p *plane) ask(token, source string, end time.Time) (status int, answer object) {
	p.t.Helper()
	return p.call(token, http.MethodPost, policyPath+"/initiate?api-version=2020-01-01", asks(vmID, 22, source, end))
}

// initiate asks for port 22, and is not refused.
func (p *plane) initiate(token, source string, end time.Time) {
	p.t.Helper()
	if status, answer := p.ask(token, source, end); status/100 != 2 {
		p.t.Fatalf("the request for %s is answered %d: %v", source, status, answer)
	}
}

// guard22 puts a policy that guards port 22.
func (p *plane) guard22(token string) {
	p.t.Helper()
	if _, err := p.sdk(token, "").CreateOrUpdate(p.t.Context(), group, location, policyName, policyOf(guards(vmID, rule(22, "*", "PT3H"))), nil); err != nil {
		p.t.Fatal(err)
	}
}

// guarded makes a host with a control plane that guards its port 22, and has
// it open to Bob for an hour. stop kills the fetcher.
func guarded(t *testing.T) (h *host, p *plane, admin string, stop func()) {
	t.Helper()
	h = newStranger(t)
	p = planeBeside(h)
	admin = p.read("admin.token")
	p.guard22(admin)
	stop = h.enroll(p)
	h.hasPolicy(1)
	h.isClosed(ways("22/tcp", alice4, bob4))
	p.initiate(admin, bob4, time.Now().Add(time.Hour))
	h.opens(patience, ways("22/tcp", bob4))
	return h, p, admin, stop
}

// stands waits until the newest request for port 22 stands so.
func (p *plane) stands(token, want string) {
	p.t.Helper()
	c := p.sdk(token, "")
	until(p.t, 6*patience, "the request should be "+want, func() bool { return portState(p.t, c, 22) == want })
}

// Nothing passes between a host and its control plane. What is open ends on
// time, with nobody's help; a request is kept, and a revocation too: both
// reach the host by themselves once something passes again.
func TestNetworkCut(t *testing.T) {
	t.Parallel()
	h, p, admin, _ := guarded(t)
	bobs := p.newest(admin)["id"].(string)
	end := time.Now().Truncate(time.Second).Add(6 * time.Second)
	p.initiate(admin, alice4, end)
	h.opens(patience, ways("22/tcp", alice4))
	down, up := h.disturb(toHost, allLost), h.disturb(toControl, allLost)

	p.want(200, admin, "POST", "/api/v1/requests/"+bobs+"/revoke", object{"reason": "done"})
	p.initiate(admin, alice6, time.Now().Add(time.Hour))
	h.closes(time.Until(end)+patience, ways("22/tcp", alice4))
	if early := time.Until(end); early > 0 {
		t.Errorf("closed %s before its end", early)
	}
	h.isClosed(ways("22/tcp", alice6))
	h.isOpen(ways("22/tcp", bob4)) // a signed grant stands until its end, or until the host hears
	if state := portState(t, p.sdk(admin, ""), 22); state != "Initiating UserRequested" {
		t.Errorf("what never reached the host is %s", state)
	}

	down()
	up()
	h.opens(6*patience, ways("22/tcp", alice6))
	h.closes(patience, ways("22/tcp", bob4))
	p.stands(admin, "Initiated UserRequested")
	h.isClosed(ways("22/tcp", alice4, bob4))
}

// Packets pass one way only. To the host alone: it opens, and the request is
// Initiated only once its word gets through. From the host alone: nothing
// opens, and nothing says that it did.
func TestAsymmetricPartition(t *testing.T) {
	t.Parallel()
	h, p, admin, _ := guarded(t)
	p.stands(admin, "Initiated UserRequested")

	mend := h.disturb(toControl, allLost)
	p.initiate(admin, alice4, time.Now().Add(time.Hour))
	h.opens(patience, ways("22/tcp", alice4))
	if state := portState(t, p.sdk(admin, ""), 22); state != "Initiating UserRequested" {
		t.Errorf("with no word from the host the request is %s", state)
	}
	mend()
	p.stands(admin, "Initiated UserRequested")

	mend = h.disturb(toHost, allLost)
	end := time.Now().Truncate(time.Second).Add(4 * time.Second)
	p.initiate(admin, alice6, end)
	until(t, patience, "the request should have ended", func() bool { return time.Now().After(end) })
	p.initiate(admin, bob6, time.Now().Add(time.Hour))
	h.isClosed(ways("22/tcp", alice6, bob6))
	if state := portState(t, p.sdk(admin, ""), 22); state != "Initiating UserRequested" {
		t.Errorf("what never reached the host is %s", state)
	}
	mend()
	h.opens(6*patience, ways("22/tcp", bob6))
	p.stands(admin, "Initiated UserRequested")
	h.isClosed(ways("22/tcp", alice6))
	for _, e := range h.events("grant.opened") {
		if strings.HasPrefix(e.Source, alice6+"/") || e.Source == alice6 {
			t.Errorf("what was over before it arrived was opened: %+v", e)
		}
	}
	h.isOpen(ways("22/tcp", alice4, bob4))
}

// A line that loses every fourth packet each way is slower and nothing else.
func TestLossyNetwork(t *testing.T) {
	t.Parallel()
	h, p, admin, _ := guarded(t)
	down, up := h.disturb(toHost, fourthLost), h.disturb(toControl, fourthLost)
	for range 3 {
		p.initiate(admin, alice4, time.Now().Add(time.Hour))
		h.opens(6*patience, ways("22/tcp", alice4))
		p.stands(admin, "Initiated UserRequested")
		p.want(200, admin, "POST", "/api/v1/requests/"+p.newest(admin)["id"].(string)+"/revoke", object{"reason": "done"})
		h.closes(6*patience, ways("22/tcp", alice4))
	}
	down()
	up()
	h.isOpen(ways("22/tcp", bob4))
}

// The fetcher is killed. What is open ends on time, what is asked for is kept,
// and opens when a fetcher is there again.
func TestFetcherKilled(t *testing.T) {
	t.Parallel()
	h, p, admin, stop := guarded(t)
	end := time.Now().Truncate(time.Second).Add(5 * time.Second)
	p.initiate(admin, alice4, end)
	h.opens(patience, ways("22/tcp", alice4))
	stop()
	p.initiate(admin, alice6, time.Now().Add(time.Hour))
	h.closes(time.Until(end)+patience, ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", alice6))
	h.isOpen(ways("22/tcp", bob4))
	if state := portState(t, p.sdk(admin, ""), 22); state != "Initiating UserRequested" {
		t.Errorf("with no fetcher the request is %s", state)
	}
	h.fetch()
	h.opens(3*patience, ways("22/tcp", alice6))
	p.stands(admin, "Initiated UserRequested")
}

// The control plane's disk is full. What it cannot keep it refuses, with 503;
// it goes on reading, hosts stay as they are; killed and started on the full
// disk it has what it acknowledged; and once there is room it goes on by itself.
func TestServersDiskFull(t *testing.T) {
	t.Parallel()
	h := newStranger(t)
	h.outside.run(t, "ip", "addr", "add", control4+"/24", "dev", "p0")
	p := newPlane(t, h.outside, control4+":8443")
	mount(t, "tmpfs", p.dir, "tmpfs", 0, "size=24m,mode=700")
	p.start()
	admin := p.read("admin.token")
	p.guard22(admin)
	h.enroll(p)
	h.hasPolicy(1)
	p.initiate(admin, bob4, time.Now().Add(time.Hour))
	h.opens(patience, ways("22/tcp", bob4))

	acknowledged := []string{bob4}
	for i := range 5 {
		source := fmt.Sprintf("192.0.2.%d", i+1)
		p.initiate(admin, source, time.Now().Add(time.Hour))
		acknowledged = append(acknowledged, source)
	}
	fill(t, p.path("filler"))
	asked := 0
	until(t, 6*patience, "a request should be refused", func() bool {
		asked++
		source := fmt.Sprintf("198.51.%d.%d", 100+asked/250, asked%250+1)
		status, answer := p.ask(admin, source, time.Now().Add(time.Hour))
		switch {
		case status/100 == 2: // the database had room left inside
			acknowledged = append(acknowledged, source)
			return false
		case status != http.StatusServiceUnavailable:
			t.Fatalf("on a full disk a request is answered %d: %v", status, answer)
		}
		return true
	})
	p.want(200, admin, "GET", policyPath+"?api-version=2020-01-01", nil)
	h.isOpen(ways("22/tcp", bob4))
	h.isClosed(ways("22/tcp", alice4))
	p.kill()
	p.start()
	p.keeps(admin, acknowledged)
	h.isOpen(ways("22/tcp", bob4))

	if err := os.Remove(p.path("filler")); err != nil {
		t.Fatal(err)
	}
	until(t, 3*patience, "requests should be taken again", func() bool {
		status, answer := p.ask(admin, alice4, time.Now().Add(time.Hour))
		if status/100 != 2 && status != http.StatusServiceUnavailable {
			t.Fatalf("with room again a request is answered %d: %v", status, answer)
		}
		return status/100 == 2
	})
	acknowledged = append(acknowledged, alice4)
	h.opens(6*patience, ways("22/tcp", alice4))
	p.keeps(admin, acknowledged)
	h.isOpen(ways("22/tcp", alice4, bob4))
}

// The control plane has few descriptors, and more agents come than those are
// enough for, and then anybody, without end. People get in beside agents; what is
// asked for meanwhile reaches the host that is on the line; commands work; and once
// nobody crowds in any more, whoever comes gets in.
func TestServersDescriptorsRunOut(t *testing.T) {
	t.Parallel()
	const descriptors = 300 // room for 44 connections, 39 of them agents'
	h := newStranger(t)
	h.outside.run(t, "ip", "addr", "add", control4+"/24", "dev", "p0")
	p := newPlane(t, h.outside, control4+":8443")
	program := p.program
	p.program = filepath.Join(t.TempDir(), "few")
	if err := os.WriteFile(p.program, fmt.Appendf(nil, "#!/bin/sh\nulimit -n %d\nexec '%s' \"$@\"\n", descriptors, program), 0o700); err != nil {
		t.Fatal(err)
	}
	p.start()
	p.program = program
	admin := p.read("admin.token")
	p.guard22(admin)
	h.enroll(p)
	h.hasPolicy(1)

	crowd := func(protos ...string) (in, out int) {
		for range 60 {
			var c net.Conn
			var err error
			p.place.do(func() { c, err = net.DialTimeout("tcp", p.listen, patience) })
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			if len(protos) == 0 {
				in++ // it says nothing, and is not answered
				continue
			}
			if tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: protos}).Handshake() == nil {
				in++
			} else {
				out++
			}
		}
		return in, out
	}
	if in, out := crowd(uplink.Proto, "http/1.1"); in > 39 || in < 30 || in+out != 60 {
		t.Errorf("of 60 agents %d came in", in)
	}
	p.initiate(admin, bob4, time.Now().Add(time.Hour))
	h.opens(patience, ways("22/tcp", bob4))

	crowd()
	if users := p.command("user", "list"); !strings.Contains(users, "Owner") {
		t.Errorf("a command, while nobody else gets in: %s", users)
	}
	until(t, 3*patience, "people should get in again", func() bool {
		answer, err := p.client("").Get(p.url("/readyz"))
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
	p.initiate(admin, alice4, time.Now().Add(time.Hour))
	h.opens(patience, ways("22/tcp", alice4))
	h.isOpen(ways("22/tcp", bob4))
	log, err := os.ReadFile(p.dir + ".log")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(log, []byte("there is no room for more connections")) || bytes.Contains(log, []byte("too many open files")) {
		t.Errorf("the log does not say that there was no room, or descriptors did run out:\n%s", lastLines(p.dir+".log"))
	}
}

// keeps requires that the policy shows a request for each source.
func (p *plane) keeps(token string, sources []string) {
	p.t.Helper()
	answer, err := p.sdk(token, "").Get(p.t.Context(), group, location, policyName, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	var kept []string
	for _, r := range answer.Properties.Requests {
		kept = append(kept, *r.VirtualMachines[0].Ports[0].AllowedSourceAddressPrefix)
	}
	for _, source := range sources {
		if !slices.Contains(kept, source) {
			p.t.Errorf("the request for %s was acknowledged and is lost", source)
		}
	}
}

// dated gives a certificate another end, as if that much time had passed: made
// by the same authority, whose directory it is, for the same key.
func dated(t *testing.T, path, authority string, end time.Time) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	block := func(text []byte, kind string) []byte {
		t.Helper()
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == kind {
				return block.Bytes
			}
		}
		t.Fatalf("there is no %s in %s or %s", kind, path, authority)
		return nil
	}
	read := func(path string) []byte {
		t.Helper()
		text, err := os.ReadFile(path)
		must(err)
		return text
	}
	text := read(path)
	old := block(text, "CERTIFICATE")
	leaf, err := x509.ParseCertificate(old)
	must(err)
	ca, err := x509.ParseCertificate(block(read(filepath.Join(authority, "ca.pem")), "CERTIFICATE"))
	must(err)
	key, err := x509.ParsePKCS8PrivateKey(block(read(filepath.Join(authority, "ca.key")), "PRIVATE KEY"))
	must(err)
	leaf.NotBefore, leaf.NotAfter = end.Add(leaf.NotBefore.Sub(leaf.NotAfter)), end
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, leaf.PublicKey, key)
	must(err)
	encode := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }
	if !bytes.Contains(text, encode(old)) {
		t.Fatalf("%s has its certificate in another form", path)
	}
	must(os.WriteFile(path, bytes.Replace(text, encode(old), encode(der), 1), 0o600))
}

// A host whose certificate ended while it was away: up to 90 days later it
// renews by itself, and has what was asked for meanwhile. After that it stays
// away, keeps its key and says why; what is open stays open; and enrolling
// again helps.
func TestCertificateEndedWhileAway(t *testing.T) {
	t.Parallel()
	h, p, admin, stop := guarded(t)
	stop()
	p.initiate(admin, alice4, time.Now().Add(time.Hour))
	dated(t, h.path("fetch", "identity.pem"), p.path("agents"), time.Now().Add(-60*24*time.Hour))
	stop = h.fetch()
	h.opens(6*patience, ways("22/tcp", alice4))
	p.stands(admin, "Initiated UserRequested")

	stop()
	dated(t, h.path("fetch", "identity.pem"), p.path("agents"), time.Now().Add(-91*24*time.Hour))
	before, err := os.ReadFile(h.path("fetch", "identity.pem"))
	if err != nil {
		t.Fatal(err)
	}
	p.initiate(admin, alice6, time.Now().Add(time.Hour))
	stop = h.fetch()
	until(t, 3*patience, "the fetcher should say why", func() bool {
		log, err := os.ReadFile(h.path("fetch.log"))
		return err == nil && strings.Contains(string(log), "enrol again with jitgate enroll")
	})
	h.isClosed(ways("22/tcp", alice6))
	h.isOpen(ways("22/tcp", alice4, bob4))
	if after, err := os.ReadFile(h.path("fetch", "identity.pem")); err != nil || string(after) != string(before) {
		t.Errorf("the key did not stay: %v", err)
	}
	stop()
	h.enrollAgain(p)
	h.fetch()
	h.opens(6*patience, ways("22/tcp", alice6))
}

// A control plane that was off until after the end of its certificate makes
// another one as it starts, and its host comes back.
func TestServersCertificateEnded(t *testing.T) {
	t.Parallel()
	h, p, admin, _ := guarded(t)
	p.kill()
	dated(t, p.path("tls", "server.pem"), p.path("tls"), time.Now().Add(-time.Hour))
	p.start()
	p.initiate(admin, alice4, time.Now().Add(time.Hour))
	h.opens(6*patience, ways("22/tcp", alice4))
	h.isOpen(ways("22/tcp", bob4))
}

// The control plane is lost and comes back from a backup that is older than
// what the host has. Versions do not go backwards: what was granted since
// closes, and what is asked for now opens.
func TestOlderBackupRestored(t *testing.T) {
	t.Parallel()
	h, p, admin, _ := guarded(t)
	p.stands(admin, "Initiated UserRequested")
	backup := h.path("backup.tar.gz")
	p.command("backup", backup)
	p.initiate(admin, alice4, time.Now().Add(time.Hour))
	h.opens(patience, ways("22/tcp", alice4))
	p.stands(admin, "Initiated UserRequested")
	had := h.status().document("grants").Version

	p.kill()
	h.isOpen(ways("22/tcp", alice4, bob4))
	p.dir = h.path("restored")
	p.command("restore", backup)
	p.start()
	h.closes(6*patience, ways("22/tcp", alice4))
	h.isOpen(ways("22/tcp", bob4)) // asked for before the backup
	if now := h.status().document("grants").Version; now <= had {
		t.Errorf("the host had version %d of its list, and has %d", had, now)
	}
	if lines := p.want(200, admin, "GET", "/api/v1/activity?event=host.ahead", nil)["value"].([]any); len(lines) == 0 {
		t.Error("the activity log does not tell that the host was ahead")
	}
	p.initiate(admin, alice6, time.Now().Add(time.Hour))
	h.opens(patience, ways("22/tcp", alice6))
}
