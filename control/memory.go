package control

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// What an edit has read of machines it keeps: nobody else writes meanwhile, and
// a request or a policy asks of the same ones again and again.

// readVMs reads machines that are about to be asked for.
func (ed *edit) readVMs(vms ...VMID) error {
	vms = slices.DeleteFunc(slices.Clone(vms), func(vm VMID) bool { _, ok := ed.machines[vm.Key()]; return ok })
	if len(vms) == 0 {
		return nil
	}
	list, err := ed.tx.VMsOf(vms...)
	if err != nil {
		return err
	}
	for _, vm := range vms {
		ed.machines[vm.Key()] = nil
	}
	for _, v := range list {
		ed.machines[v.ID.Key()] = &v
	}
	return nil
}

// vm is a machine, if it is there.
func (ed *edit) vm(id VMID) (VM, bool, error) {
	v, ok := ed.machines[id.Key()]
	if !ok {
		if err := ed.readVMs(id); err != nil {
			return VM{}, false, err
		}
		v = ed.machines[id.Key()]
	}
	if v == nil {
		return VM{}, false, nil
	}
	own := *v
	if own.Agent != nil {
		agent := *own.Agent
		own.Agent = &agent
	}
	return own, true, nil
}

// putVM writes a machine.
func (ed *edit) putVM(v VM) error {
	delete(ed.machines, v.ID.Key())
	return ed.tx.PutVM(v)
}

// naming are the policies that name machines, by Key of the machine.
func (ed *edit) naming(vms ...VMID) (map[string][]Policy, error) {
	by := make(map[string][]Policy, len(vms))
	if len(vms) == 0 {
		return by, nil
	}
	policies, err := ed.tx.PoliciesOf(vms...)
	for _, p := range policies {
		for _, v := range p.VMs {
			by[v.ID.Key()] = append(by[v.ID.Key()], p)
		}
	}
	return by, err
}

// readOpen reads the open requests of machines that are about to be asked for.
func (ed *edit) readOpen(vms ...VMID) error {
	vms = slices.DeleteFunc(slices.Clone(vms), func(vm VMID) bool { _, ok := ed.requests[vm.Key()]; return ok })
	if len(vms) == 0 {
		return nil
	}
	var list []Request
	var err error
	if len(vms) == 1 {
		list, err = ed.tx.Requests(RequestFilter{VM: &vms[0], Open: true})
	} else {
		list, err = ed.tx.RequestsOf(never, vms...)
	}
	if err != nil {
		return err
	}
	for _, vm := range vms {
		ed.requests[vm.Key()] = nil
	}
	for _, r := range list {
		ed.noteRequest(r)
	}
	return nil
}

// never is later than any request.
var never = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// open are the open requests of a machine, in the order of their ids. Whoever
// changes one changes a clone of it.
func (ed *edit) open(vm VMID) ([]Request, error) {
	if err := ed.readOpen(vm); err != nil {
		return nil, err
	}
	return slices.Clone(ed.requests[vm.Key()]), nil
}

// putRequest writes a request.
func (ed *edit) putRequest(r Request) error {
	if err := ed.tx.PutRequest(r); err != nil {
		return err
	}
	ed.noteRequest(r.Clone())
	return nil
}

// noteRequest keeps a request with those of its machines that were read.
func (ed *edit) noteRequest(r Request) {
	byID := func(o Request, id string) int { return cmp.Compare(strings.ToLower(o.ID), id) }
	for _, v := range r.VMs {
		key := v.ID.Key()
		list, ok := ed.requests[key]
		if !ok {
			continue
		}
		at, there := slices.BinarySearchFunc(list, strings.ToLower(r.ID), byID)
		switch {
		case there && r.Open():
			list[at] = r
		case there:
			list = slices.Delete(list, at, at+1)
		case r.Open():
			list = slices.Insert(list, at, r)
		}
		ed.requests[key] = list
	}
}
