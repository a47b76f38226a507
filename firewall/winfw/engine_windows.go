package winfw

import (
	"errors"
	"fmt"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/jitgate/jitgate/firewall"
)

// The structures of wfp.go are those of 64-bit Windows.
const _ = uint(unsafe.Sizeof(uintptr(0)) - 8)

// Constants of fwpmtypes.h and winerror.h that only calls need.
const (
	sessionDynamic = 0x1

	enumOverlapping     = 1
	enumIncludeBootTime = 0x8
	enumIncludeDisabled = 0x10
	anyAction           = 0xffffffff

	// weightFirst has the sublayer asked before any other.
	weightFirst = 0xffff

	codeFilterNotFound = 0x80320003
	codeAlreadyExists  = 0x80320009
	codeInvalidHandle  = 6
)

var dll = windows.NewLazySystemDLL("fwpuclnt.dll")

// lockPatience is how long a transaction waits for another program's.
const lockPatience = 5 * time.Second

// call calls a function of the platform. What its arguments point to stays
// where it is until it returns.
//
//go:uintptrescapes
func call(name string, args ...uintptr) error {
	p := dll.NewProc(name)
	if err := p.Find(); err != nil {
		return fmt.Errorf("%w (%w)", ErrUnavailable, err)
	}
	if code, _, _ := p.Call(args...); code != 0 {
		return &Error{name, uint32(code)}
	}
	return nil
}

// platform is the Engine of this host: one session for what outlives the
// process, one for what does not.
type platform struct {
	sessions [2]windows.Handle // by whether dynamic; 0: not open
	settled  bool              // provider and sublayer are there
}

// Open opens the filtering platform of this host, and Windows Firewall above
// it. warn is told what failed although the guard stands.
func Open(now func() firewall.BootTime, warn func(error)) (*Backend, error) {
	e := &platform{}
	// Each answers, or it is not there: Wine's opens and then can do nothing.
	if _, err := e.Filters(); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	b := New(e, policyRules{}, now)
	b.Warn, b.sockets = warn, Sockets
	b.Start()
	return b, nil
}

// Probe reports why the filtering platform of this host does not answer. It
// changes nothing.
func Probe() error {
	e := &platform{}
	_, err := e.Filters()
	return errors.Join(err, e.Close())
}

func which(dynamic bool) int {
	if dynamic {
		return 1
	}
	return 0
}

// session returns the handle of a session, which it opens if need be: after
// the platform's service was restarted the one before is worth nothing.
func (e *platform) session(dynamic bool) (windows.Handle, error) {
	h := &e.sessions[which(dynamic)]
	if *h != 0 {
		return *h, nil
	}
	var m memory
	defer m.Unpin()
	s := session0{display: displayData{name: m.text("jitgate")}, wait: uint32(lockPatience.Milliseconds())}
	if dynamic {
		s.flags = sessionDynamic
	}
	const authnWinNT = 10 // RPC_C_AUTHN_WINNT
	err := call("FwpmEngineOpen0", 0, authnWinNT, 0, uintptr(unsafe.Pointer(at(&m, s))), uintptr(unsafe.Pointer(h)))
	return *h, err
}

// close ends a session. An ended one is no error.
func (e *platform) close(dynamic bool) error {
	h := &e.sessions[which(dynamic)]
	if *h == 0 {
		return nil
	}
	err := call("FwpmEngineClose0", uintptr(*h))
	if err == nil || lost(err) {
		*h = 0
		return nil
	}
	return err
}

// with calls f on a session. One that turns out to be of no more use is closed,
// so that the next call opens another.
func (e *platform) with(dynamic bool, f func(h uintptr) error) error {
	h, err := e.session(dynamic)
	if err != nil {
		return err
	}
	if err = f(uintptr(h)); lost(err) {
		e.settled = false
		_ = e.close(dynamic) // it is lost
		e.sessions[which(dynamic)] = 0
	}
	return err
}

// transact calls f in a transaction: all of it happens, or nothing.
func (e *platform) transact(dynamic bool, f func(h uintptr) error) error {
	return e.with(dynamic, func(h uintptr) error {
		if err := call("FwpmTransactionBegin0", h, 0); err != nil {
			return err
		}
		if err := f(h); err != nil {
			return errors.Join(err, call("FwpmTransactionAbort0", h))
		}
		return call("FwpmTransactionCommit0", h)
	})
}

// is reports whether err is one of the codes.
func is(err error, codes ...uint32) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && slices.Contains(codes, e.Code)
}

// lost reports whether the session that gave err is of no more use.
func lost(err error) bool { return errors.Is(err, ErrUnavailable) || is(err, codeInvalidHandle) }

// unless makes an answer that is no error here none.
func unless(err error, codes ...uint32) error {
	if is(err, codes...) {
		return nil
	}
	return err
}

// settle makes the provider and the sublayer that filters stand in.
func (e *platform) settle() error {
	if e.settled {
		return nil
	}
	err := e.transact(false, func(h uintptr) error {
		var m memory
		defer m.Unpin()
		p := provider0{key: ProviderKey, display: displayData{m.text("jitgate"), m.text("Just-in-time access to management ports")}, flags: flagPersistent}
		s := sublayer0{key: SublayerKey, display: displayData{m.text("jitgate"), m.text("Guarded ports and their openings")}, flags: flagPersistent,
			provider: at(&m, ProviderKey), weight: weightFirst}
		return errors.Join(
			unless(call("FwpmProviderAdd0", h, uintptr(unsafe.Pointer(at(&m, p))), 0), codeAlreadyExists),
			unless(call("FwpmSubLayerAdd0", h, uintptr(unsafe.Pointer(at(&m, s))), 0), codeAlreadyExists))
	})
	e.settled = err == nil
	return err
}

// Filters implements Engine.
func (e *platform) Filters() (out []Filter, err error) {
	err = e.with(false, func(h uintptr) error {
		for _, layer := range layers {
			if err := enumerate(h, layer, func(f *filter0) { out = append(out, decode(f)) }); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// enumerate calls found with each filter of ours at a layer.
func enumerate(h uintptr, layer Layer, found func(*filter0)) error {
	var m memory
	defer m.Unpin()
	template := enumTemplate{layer: layerKeys[layer], enumType: enumOverlapping, flags: enumIncludeBootTime | enumIncludeDisabled, actionMask: anyAction}
	var enum windows.Handle
	if err := call("FwpmFilterCreateEnumHandle0", h, uintptr(unsafe.Pointer(at(&m, template))), uintptr(unsafe.Pointer(&enum))); err != nil {
		return err
	}
	defer call("FwpmFilterDestroyEnumHandle0", h, uintptr(enum)) // nothing hangs on it
	for {
		const page = 256
		var entries **filter0
		var n uint32
		if err := call("FwpmFilterEnum0", h, uintptr(enum), page, uintptr(unsafe.Pointer(&entries)), uintptr(unsafe.Pointer(&n))); err != nil {
			return err
		}
		for _, f := range unsafe.Slice(entries, n) {
			if f.ours() {
				found(f)
			}
		}
		if entries != nil {
			dll.NewProc("FwpmFreeMemory0").Call(uintptr(unsafe.Pointer(&entries)))
		}
		if n < page {
			return nil
		}
	}
}

// Commit implements Engine.
func (e *platform) Commit(dynamic bool, del []GUID, add []Filter) error {
	if err := e.settle(); err != nil {
		return err
	}
	err := e.transact(dynamic, func(h uintptr) error {
		for _, k := range del {
			if err := deleteFilter(h, k); err != nil {
				return err
			}
		}
		for _, f := range add {
			var m memory
			err := call("FwpmFilterAdd0", h, uintptr(unsafe.Pointer(m.encode(f))), 0, 0)
			m.Unpin()
			if err = unless(err, codeAlreadyExists); err != nil {
				return fmt.Errorf("%s: %w", f.Name, err)
			}
		}
		return nil
	})
	if is(err, codeSublayerNotFound, codeProviderNotFound) {
		e.settled = false
	}
	return err
}

func deleteFilter(h uintptr, k GUID) error {
	return unless(call("FwpmFilterDeleteByKey0", h, uintptr(unsafe.Pointer(&k))), codeFilterNotFound)
}

// Forget implements Engine.
func (e *platform) Forget() error { return e.close(true) }

// Clear implements Engine.
func (e *platform) Clear(gone []GUID) error {
	if err := e.close(true); err != nil {
		return err
	}
	e.settled = false
	list, err := e.Filters()
	if err != nil {
		return err
	}
	for _, f := range list {
		gone = append(gone, f.Key)
	}
	return e.transact(false, func(h uintptr) error {
		for _, k := range gone {
			if err := deleteFilter(h, k); err != nil {
				return err
			}
		}
		sublayer, provider := SublayerKey, ProviderKey
		return errors.Join(
			unless(call("FwpmSubLayerDeleteByKey0", h, uintptr(unsafe.Pointer(&sublayer))), codeSublayerNotFound),
			unless(call("FwpmProviderDeleteByKey0", h, uintptr(unsafe.Pointer(&provider))), codeProviderNotFound))
	})
}

// Close implements Engine.
func (e *platform) Close() error { return errors.Join(e.close(true), e.close(false)) }
