package agent

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"strings"
)

// Machine is what says which machine this is, each value as a hash: the values
// themselves are nobody else's concern (machine-id(5)). Empty is unknown. The
// zero Machine knows nothing, and contradicts nothing.
type Machine struct {
	MachineID   string `json:"machineID,omitempty"`
	ProductUUID string `json:"productUUID,omitempty"`
}

// ThisMachine reads what can be read of it. Without root the product UUID is
// unknown, in most containers too.
func ThisMachine() Machine {
	id, err := MachineID()
	if err != nil || id == "uninitialized" { // systemd says so on a first boot
		id = ""
	}
	return Machine{MachineID: fact("machine-id", id), ProductUUID: fact("product-uuid", productUUID())}
}

// fact hashes a value under what it is, so that it can be compared here and
// with nothing else.
func fact(name, value string) string {
	value = strings.ToLower(strings.TrimSpace(value))
	if value == "" {
		return ""
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte("jitgate machine 1\x00"+name+"\x00"+value)))
}

// with returns m and what is known of now beside it.
func (m Machine) with(now Machine) Machine {
	return Machine{cmp.Or(m.MachineID, now.MachineID), cmp.Or(m.ProductUUID, now.ProductUUID)}
}

// contradicts reports whether a fact known of both differs: then these are two
// machines, or one with a new board. What is unknown proves nothing either
// way.
func (m Machine) contradicts(other Machine) bool {
	differ := func(a, b string) bool { return a != "" && b != "" && a != b }
	return differ(m.MachineID, other.MachineID) || differ(m.ProductUUID, other.ProductUUID)
}
