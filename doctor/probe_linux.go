package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// probe tries out what the kernel can do, in a network namespace of its own.
func probe() ([]Feature, error) {
	var out []Feature
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with the goroutine, and the
		// namespace with the thread.
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		for _, f := range []struct {
			id  ID
			try func() error
		}{
			{FeatureOwnerPersist, tryOwner}, {FeatureTimeoutUpdate, tryTimeout}, {FeatureFib, tryFib},
			{FeatureConntrack, tryConntrack}, {FeatureSocketDestroy, tryDestroy},
		} {
			feature := Feature{ID: f.id, Found: true}
			if err := f.try(); err != nil {
				feature.Found, feature.Why = false, err.Error()
			}
			out = append(out, feature)
		}
	}()
	<-done
	return out, err
}

// tryOwner makes a table that its owner alone can change and that outlives
// the owner. The library cannot say so.
func tryOwner() error {
	const owner = 2
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	table, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte("owned\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, owner|flagPersist)},
	})
	if err != nil {
		return err
	}
	batch := []byte{unix.AF_UNSPEC, 0, 0, unix.NFNL_SUBSYS_NFTABLES}
	message := func(kind uint16, flags netlink.HeaderFlags, data []byte) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags}, Data: data}
	}
	if _, err := conn.SendMessages([]netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, batch),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Acknowledge, append([]byte{unix.NFPROTO_INET, 0, 0, 0}, table...)),
		message(unix.NFNL_MSG_BATCH_END, 0, batch),
	}); err != nil {
		return err
	}
	_, err = conn.Receive()
	return err
}

// tryTimeout adds an element twice, the second time with a later end.
func tryTimeout() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: "timeouts", Family: nftables.TableFamilyINet})
	set := &nftables.Set{Table: table, Name: "s", KeyType: nftables.TypeInetService, HasTimeout: true}
	if err := conn.AddSet(set, nil); err != nil {
		return err
	}
	for _, end := range []time.Duration{time.Hour, 3 * time.Hour} {
		if err := errors.Join(conn.SetAddElements(set, []nftables.SetElement{{Key: []byte{0, 22}, Timeout: end}}), conn.Flush()); err != nil {
			return err
		}
	}
	elements, err := conn.GetSetElements(set)
	if err != nil {
		return err
	}
	if len(elements) != 1 || elements[0].Expires < 2*time.Hour {
		return fmt.Errorf("the end stays where it was")
	}
	return nil
}

func tryFib() error {
	return tryRule(&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true})
}

func tryConntrack() error { return tryRule(&expr.Ct{Register: 1, Key: expr.CtKeySTATE}) }

// tryRule makes a rule of one expression.
func tryRule(e expr.Any) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: "rules", Family: nftables.TableFamilyINet})
	chain := conn.AddChain(&nftables.Chain{Table: table, Name: "pre", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{e}})
	return conn.Flush()
}

// tryDestroy asks to end a connection that does not exist: a kernel that can
// end them does not find it.
func tryDestroy() error {
	const destroy = 21 // SOCK_DESTROY
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	// struct inet_diag_req_v2: family, protocol, two bytes of no concern,
	// states, then ports, addresses, interface and cookie (none).
	request := binary.NativeEndian.AppendUint32([]byte{unix.AF_INET, unix.IPPROTO_TCP, 0, 0}, 1<<32-1)
	request = append(request, 0, 1, 0, 1)
	request = append(request, make([]byte, 36)...)
	for range 8 {
		request = append(request, 0xff)
	}
	_, err = conn.Execute(netlink.Message{Header: netlink.Header{Type: destroy, Flags: netlink.Request | netlink.Acknowledge}, Data: request})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
