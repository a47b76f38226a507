package winfw

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/go-ole/go-ole"
	"github.com/go-ole/go-ole/oleutil"

	"github.com/jitgate/jitgate/firewall"
)

// Constants of netfw.h (icftypes.h).
const (
	directionIn = 1
	actionAllow = 1
	allProfiles = 0x7fffffff
)

// failed is what COM answered about something.
func failed(what string, err error) error {
	if e, ok := errors.AsType[*ole.OleError](err); ok {
		return fmt.Errorf("%s: error 0x%x", what, uint32(e.Code()))
	}
	return fmt.Errorf("%s: %w", what, err)
}

// object is a COM object, asked by name.
type object struct{ *ole.IDispatch }

func (o object) put(name string, value any) error {
	v, err := oleutil.PutProperty(o.IDispatch, name, value)
	if err != nil {
		return failed(name, err)
	}
	return v.Clear()
}

// text, number and flag read a property, and keep the first error.
type reader struct{ err error }

func (r *reader) get(o object, name string, args ...any) any {
	v, err := oleutil.GetProperty(o.IDispatch, name, args...)
	if err != nil {
		if r.err == nil {
			r.err = failed(name, err)
		}
		return nil
	}
	defer v.Clear() // a copy is returned
	return v.Value()
}

func (r *reader) text(o object, name string, args ...any) string {
	s, _ := r.get(o, name, args...).(string) // nil where nothing is set
	return s
}

func (r *reader) number(o object, name string, args ...any) int {
	switch n := r.get(o, name, args...).(type) {
	case int32:
		return int(n)
	case int64:
		return int(n)
	}
	return 0
}

func (r *reader) flag(o object, name string, args ...any) bool {
	yes, _ := r.get(o, name, args...).(bool)
	return yes
}

// withPolicy calls f with the INetFwPolicy2 of this host, on a thread that COM
// is initialized for.
func withPolicy(f func(policy, rules object) error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := ole.CoInitializeEx(0, ole.COINIT_MULTITHREADED); err != nil {
		const already = 1 // S_FALSE
		if e, ok := errors.AsType[*ole.OleError](err); !ok || e.Code() != already {
			return failed("COM", err)
		}
	}
	defer ole.CoUninitialize()
	policy, err := create("HNetCfg.FwPolicy2")
	if err != nil {
		return err
	}
	defer policy.Release()
	v, err := oleutil.GetProperty(policy.IDispatch, "Rules")
	if err != nil {
		return failed("Rules", err)
	}
	defer v.Clear()
	return f(policy, object{v.ToIDispatch()})
}

func create(name string) (object, error) {
	unknown, err := oleutil.CreateObject(name)
	if err != nil {
		return object{}, failed(name, err)
	}
	defer unknown.Release()
	d, err := unknown.QueryInterface(ole.IID_IDispatch)
	if err != nil {
		return object{}, failed(name, err)
	}
	return object{d}, nil
}

// ReadPolicy reads what Windows Firewall says of itself. It changes nothing.
func ReadPolicy() (Policy, error) {
	var p Policy
	err := withPolicy(func(policy, rules object) error {
		var r reader
		active := r.number(policy, "CurrentProfileTypes")
		for _, x := range []Profile{{Name: "domain", Bit: ProfileDomain}, {Name: "private", Bit: ProfilePrivate}, {Name: "public", Bit: ProfilePublic}} {
			x.Active = active&x.Bit != 0
			x.On = r.flag(policy, "FirewallEnabled", x.Bit)
			x.BlocksAll = r.flag(policy, "BlockAllInboundTraffic", x.Bit)
			x.BlocksByDefault = r.number(policy, "DefaultInboundAction", x.Bit) != actionAllow
			p.Profiles = append(p.Profiles, x)
		}
		p.Modify = ModifyState(r.number(policy, "LocalPolicyModifyState"))
		if r.err != nil {
			return r.err
		}
		return oleutil.ForEach(rules.IDispatch, func(v *ole.VARIANT) error {
			rule := object{v.ToIDispatch()}
			defer rule.Release()
			if r.number(rule, "Direction") != directionIn {
				return r.err
			}
			p.Rules = append(p.Rules, PolicyRule{
				Name: r.text(rule, "Name"), Group: r.text(rule, "Grouping"), Enabled: r.flag(rule, "Enabled"), Block: r.number(rule, "Action") != actionAllow,
				Protocol: r.number(rule, "Protocol"), Ports: r.text(rule, "LocalPorts"), Sources: r.text(rule, "RemoteAddresses"), Profiles: r.number(rule, "Profiles"),
				Program: r.text(rule, "ApplicationName"), Service: r.text(rule, "ServiceName"),
			})
			return r.err
		})
	})
	return p, err
}

// policyRules is the rule group in the Windows Firewall of this host.
type policyRules struct{}

func (policyRules) Read() (out []Rule, err error) {
	p, err := ReadPolicy()
	for _, r := range p.Rules {
		if r.Group == Group {
			out = append(out, Rule{Name: r.Name, Protocol: firewall.Protocol(r.Protocol), Ports: r.Ports, Sources: canonicalSources(r.Sources), Enabled: r.Enabled})
		}
	}
	return out, err
}

func (policyRules) Write(w Rule) error {
	return withPolicy(func(_, rules object) error {
		if v, err := oleutil.CallMethod(rules.IDispatch, "Item", w.Name); err == nil {
			defer v.Clear()
			return fill(object{v.ToIDispatch()}, w)
		}
		rule, err := create("HNetCfg.FWRule")
		if err != nil {
			return err
		}
		defer rule.Release()
		if err := fill(rule, w); err != nil {
			return err
		}
		v, err := oleutil.CallMethod(rules.IDispatch, "Add", rule.IDispatch)
		if err != nil {
			return failed("Add", err)
		}
		return v.Clear()
	})
}

// fill makes a rule as it is wanted. Sources come before it is enabled: without
// them it would let everybody through.
func fill(rule object, w Rule) error {
	for _, p := range []struct {
		name  string
		value any
	}{
		{"Name", w.Name}, {"Grouping", Group}, {"Description", "Sources that jitgate has opened this port for. It is written by jitgate; the guard itself is in the filtering platform."},
		{"Direction", directionIn}, {"Action", actionAllow}, {"Protocol", int(w.Protocol)}, {"LocalPorts", w.Ports}, {"RemoteAddresses", w.Sources},
		{"Profiles", allProfiles}, {"EdgeTraversal", false}, {"Enabled", w.Enabled},
	} {
		if err := rule.put(p.name, p.value); err != nil {
			return err
		}
	}
	return nil
}

func (policyRules) Delete(name string) error {
	return withPolicy(func(_, rules object) error {
		v, err := oleutil.CallMethod(rules.IDispatch, "Remove", name)
		if err != nil {
			return failed("Remove", err)
		}
		return v.Clear()
	})
}
