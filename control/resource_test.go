package control

import (
	"strings"
	"testing"
)

// A Key is what strings.ToLower makes of an id, of whatever it is of.
func TestKey(t *testing.T) {
	for _, name := range []string{"", "web1", "WEB1", "Web_1.[]{}@`", "ÄÖÜ", "\xff\xfeA", "İ", strings.Repeat("Long", 200)} {
		vm := VMID{"Sub", "Group", "Microsoft.Compute/virtualMachines", name}
		if got, want := vm.Key(), strings.ToLower(vm.String()); got != want {
			t.Errorf("%q, not %q", got, want)
		}
		policy := PolicyID{"Sub", "Group", "West", name}
		if got, want := policy.Key(), strings.ToLower(policy.String()); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}
