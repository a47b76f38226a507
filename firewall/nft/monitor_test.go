//go:build linux

package nft

import (
	"encoding/binary"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
)

// event is a message as the kernel multicasts it.
func event(t testing.TB, typ uint16, sender uint32, attributes ...netlink.Attribute) []byte {
	t.Helper()
	data, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		t.Fatal(err)
	}
	body := append(generic(unix.NFPROTO_INET, 0), data...)
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = binary.NativeEndian.AppendUint16(b, uint16(messageType(typ)))
	b = append(b, 0, 0, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, sender)
	return append(b, body...)
}

func named(table string) netlink.Attribute {
	return netlink.Attribute{Type: unix.NFTA_TABLE_NAME, Data: []byte(table + "\x00")}
}

func generation(t testing.TB, sender uint32, pid uint32, name string) []byte {
	return event(t, unix.NFT_MSG_NEWGEN, sender,
		netlink.Attribute{Type: unix.NFTA_GEN_ID, Data: []byte{0, 0, 0, 9}},
		netlink.Attribute{Type: unix.NFTA_GEN_PROC_PID, Data: binary.BigEndian.AppendUint32(nil, pid)},
		netlink.Attribute{Type: unix.NFTA_GEN_PROC_NAME, Data: []byte(name + "\x00")})
}

func TestTransactions(t *testing.T) {
	const own, other = 100, 200
	us, them := named(TableName), named("filter")
	nft := firewall.Alteration{Process: "nft", PID: 42}
	for name, c := range map[string]struct {
		messages [][]byte
		want     []firewall.Alteration
	}{
		"another's change of our table":     {[][]byte{event(t, unix.NFT_MSG_DELTABLE, other, us), generation(t, other, 42, "nft")}, []firewall.Alteration{nft}},
		"ours":                              {[][]byte{event(t, unix.NFT_MSG_NEWSETELEM, own, us), generation(t, own, 7, "jitgate")}, nil},
		"another table":                     {[][]byte{event(t, unix.NFT_MSG_DELTABLE, other, them), generation(t, other, 42, "nft")}, nil},
		"both, in one transaction":          {[][]byte{event(t, unix.NFT_MSG_DELTABLE, other, them), event(t, unix.NFT_MSG_DELRULE, other, us), generation(t, other, 42, "nft")}, []firewall.Alteration{nft}},
		"one transaction after another":     {[][]byte{event(t, unix.NFT_MSG_DELRULE, other, us), generation(t, other, 42, "nft"), generation(t, other, 43, "ufw")}, []firewall.Alteration{nft}},
		"a name that only begins like ours": {[][]byte{event(t, unix.NFT_MSG_DELTABLE, other, named(TableName+"_boot")), generation(t, other, 42, "nft")}, nil},
	} {
		// Whole, and one datagram a message: the kernel sends it either way.
		var whole transaction
		if got := whole.read(slices.Concat(c.messages...), own); !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		var split transaction
		var got []firewall.Alteration
		for _, m := range c.messages {
			got = append(got, split.read(m, own)...)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s, message by message: %+v, want %+v", name, got, c.want)
		}
	}
}

// What the kernel sends is read without a panic, and what cannot be
// understood counts as a change.
func FuzzTransaction(f *testing.F) {
	f.Add(slices.Concat(event(f, unix.NFT_MSG_DELTABLE, 1, named(TableName)), generation(f, 1, 42, "nft")))
	f.Add([]byte{20, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var tr transaction
		got := tr.read(b, 100)
		if len(b) >= unix.NLMSG_HDRLEN && int(binary.NativeEndian.Uint32(b)) > len(b) && len(got) == 0 {
			t.Error("a message cut short is no change")
		}
	})
}

// A queue that runs over is told as a change, and what comes after it is
// heard.
func TestMonitorOverflow(t *testing.T) {
	fwtest.Isolate(t)
	m, err := listen(0, func() firewall.BootTime { return 1 }, 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	run := func(script string) {
		t.Helper()
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	// Nobody reads yet. What a stranger does to our table is lost.
	flood := "add table inet other\nadd chain inet other c\n"
	for range 5000 {
		flood += "add rule inet other c accept\n"
	}
	run(flood)
	run("add table inet jitgate")
	go m.run()
	heard := func() firewall.Alteration {
		t.Helper()
		select {
		case by := <-m.changes:
			return by
		case <-time.After(10 * time.Second):
			t.Fatal("the monitor does not tell")
			return firewall.Alteration{}
		}
	}
	if by := heard(); by.PID != 0 || by.At != 1 {
		t.Errorf("of what was lost: %+v", by)
	}
	for {
		select {
		case <-m.changes:
			continue
		case <-time.After(200 * time.Millisecond):
		}
		break
	}
	run("delete table inet jitgate")
	if by := heard(); by.Process != "nft" || by.PID == 0 {
		t.Errorf("after it: %+v", by)
	}
}
