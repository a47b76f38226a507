package storetest

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/jitgate/jitgate/control"
)

// filled makes a T in which no field has its zero value, so that a field that
// is added later and is not kept fails a test. Two seeds make two values that
// differ in every field that can.
func filled[T any](seed int) T {
	var v T
	f := filler{seed: seed}
	f.fill(reflect.ValueOf(&v).Elem(), "")
	return v
}

type filler struct {
	seed, n int
}

// number is another one each time.
func (f *filler) number() int {
	f.n++
	return f.seed*1000 + f.n
}

func (f *filler) fill(v reflect.Value, name string) {
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 600+f.number(), time.UTC)))
		return
	case control.VMID:
		v.Set(reflect.ValueOf(Machine("Sub-1", "Group-1", fmt.Sprintf("Vm-%d", f.number()))))
		return
	case control.PolicyID:
		v.Set(reflect.ValueOf(control.PolicyID{Subscription: "Sub-1", Group: "Group-1", Location: "West", Name: fmt.Sprintf("Policy-%d", f.number())}))
		return
	case control.Scope:
		v.SetString(fmt.Sprintf("/subscriptions/sub-%d", f.number()))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("%s %d ü \" ' \\ %% _", strings.ToLower(name), f.number()))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(f.number()))
	case reflect.Uint, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(f.number()))
	case reflect.Uint8:
		v.SetUint(uint64(200 + f.number()%50))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem(), name)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			f.fill(v.Index(i), name)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f.fill(v.Field(i), v.Type().Field(i).Name)
		}
	default:
		panic(fmt.Sprintf("storetest: a %s (%s) is not filled yet", v.Type(), name))
	}
}

// Machine is the id of a virtual machine.
func Machine(subscription, group, name string) control.VMID {
	return control.VMID{Subscription: subscription, Group: group, Kind: "Microsoft.Compute/virtualMachines", Name: name}
}
