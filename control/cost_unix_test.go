//go:build unix

package control_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store/storetest"
	"github.com/jitgate/jitgate/uplink"
)

// busy is an engine with machines in policies of fifty, whose agents have
// enrolled.
type busy struct {
	*control.Engine
	vms  []control.VMID
	who  control.Caller
	line map[string]uplink.Head
	open map[string][]string
	n    int
}

const ofOnePolicy = 50

func newBusy(b *testing.B, machines int) *busy {
	b.Helper()
	store := storetest.SQLite(b)
	ca, key := authorityFor(b)
	w := &busy{Engine: control.New(control.Config{Store: store, Realm: storetest.Realm(b, time.Now().UTC().Truncate(time.Second)), Log: hclog.NewNullLogger(), CA: ca, CAKey: key}),
		who:  control.Caller{ID: "local:root", Name: "root", Address: netip.MustParseAddr("192.0.2.1"), Rights: []control.Right{{Role: control.BuiltinRoles()[0], Scope: control.Everywhere}}},
		line: map[string]uplink.Head{}, open: map[string][]string{}}
	token, _, err := w.CreateJoin(b.Context(), w.who, control.Everywhere, machines, time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	agent, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, agent)
	if err != nil {
		b.Fatal(err)
	}
	var some []control.PolicyVM
	for n := range machines {
		vm := vmID(fmt.Sprintf("vm%05d", n))
		w.vms = append(w.vms, vm)
		if _, err := w.Enrol(b.Context(), control.EnrolInput{Token: token, HostID: vm.String(), CSR: csr}); err != nil {
			b.Fatal(err)
		}
		some = append(some, control.PolicyVM{ID: vm, Ports: []control.PortRule{{Number: 22, Protocol: "TCP", Prefixes: control.Prefixes{One: "*"}, MaxDuration: "PT3H"}}})
		if len(some) == ofOnePolicy || n == machines-1 {
			if _, err := w.PutPolicy(b.Context(), w.who, w.policy(n), control.PolicyInput{VMs: some}); err != nil {
				b.Fatal(err)
			}
			some = nil
		}
	}
	return w
}

func (w *busy) policy(n int) control.PolicyID { return policyID(fmt.Sprintf("p%d", n/ofOnePolicy)) }

// initiate asks for access to so many machines of a policy.
func (w *busy) initiate(b *testing.B, machines int) control.Request {
	n := (w.n * 7919) % len(w.vms)
	first := n / ofOnePolicy * ofOnePolicy
	w.n++
	source := netip.AddrFrom4([4]byte{10, byte(w.n >> 16), byte(w.n >> 8), byte(w.n)}).String()
	var in control.InitiateInput
	for i := range machines {
		vm := w.vms[first+(n+7*i)%ofOnePolicy]
		in.VMs = append(in.VMs, control.InitiateVM{ID: vm.String(), Ports: []control.InitiatePort{{Number: 22, Prefixes: control.Prefixes{One: source}, Duration: "PT1H"}}})
	}
	r, err := w.Initiate(b.Context(), w.who, w.policy(n), in)
	if err != nil {
		b.Fatal(err)
	}
	return r
}

// report is what each agent says once it has opened its port.
func (w *busy) report(b *testing.B, r control.Request) {
	for _, vm := range r.VMs {
		w.reportOne(b, vm.ID, vm.Ports[0].GrantID)
	}
}

func (w *busy) reportOne(b *testing.B, vm control.VMID, grant string) {
	head := w.line[vm.Key()]
	if head == (uplink.Head{}) {
		head.Hash = uplink.Genesis
	}
	var lines [][]byte
	for _, event := range []string{"document.admitted", "grant.opening", "grant.opened"} {
		text := fmt.Appendf(nil, `{"seq":%d,"prev":%q,"time":%q,"event":%q,"grant":%q,"document":"grants","version":%d}`, head.Seq+1, head.Hash, time.Now().UTC().Format(time.RFC3339Nano), event, grant, 2+len(w.open[vm.Key()]))
		sum := sha256.Sum256(text)
		head = uplink.Head{Seq: head.Seq + 1, Hash: hex.EncodeToString(sum[:])}
		lines = append(lines, text)
	}
	w.line[vm.Key()], w.open[vm.Key()] = head, append(w.open[vm.Key()], grant)
	up := uplink.Up{Have: uplink.Versions{Trust: 1, Policy: 1, Grants: uint64(1 + len(w.open[vm.Key()]))}, Status: &uplink.Status{Mode: "enforce", Open: w.open[vm.Key()]}, Lines: lines, Head: head}
	if out, err := w.Report(b.Context(), vm, up); err != nil || out.Refused != "" {
		b.Fatal(out, err)
	}
}

// measured runs the benchmark and says how much processor it took: time says
// nothing on a machine with other work.
func measured(b *testing.B, f func()) {
	spent := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	begin := spent()
	n := 0
	for b.Loop() {
		f()
		n++
	}
	b.ReportMetric(float64((spent()-begin).Microseconds())/float64(n), "cpu-µs/op")
}

// BenchmarkInitiate is a request for access to one of a thousand machines.
func BenchmarkInitiate(b *testing.B) {
	w := newBusy(b, 1000)
	measured(b, func() { w.initiate(b, 1) })
}

// BenchmarkGrant is the same, with the report that the port is open.
func BenchmarkGrant(b *testing.B) {
	w := newBusy(b, 1000)
	measured(b, func() { w.report(b, w.initiate(b, 1)) })
}

// BenchmarkGrants is a request for access to ten machines, with their reports.
func BenchmarkGrants(b *testing.B) {
	w := newBusy(b, 1000)
	measured(b, func() { w.report(b, w.initiate(b, 10)) })
}

// BenchmarkInitiateTen is the same without the reports.
func BenchmarkInitiateTen(b *testing.B) {
	w := newBusy(b, 1000)
	measured(b, func() { w.initiate(b, 10) })
}

// authorityFor makes the authority of the agents.
func authorityFor(b *testing.B) (*x509.Certificate, *ecdsa.PrivateKey) {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		b.Fatal(err)
	}
	return ca, key
}
