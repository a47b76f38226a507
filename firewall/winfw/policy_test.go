package winfw

import (
	"testing"

	"github.com/jitgate/jitgate/firewall"
)

// Sources as Windows Firewall gives them back are those that were written: a
// rule that is right is not written again.
func TestCanonicalSources(t *testing.T) {
	for given, want := range map[string]string{
		"*":                           "*",
		"203.0.113.7/255.255.255.255": "203.0.113.7/32",
		"203.0.113.7":                 "203.0.113.7/32",
		"203.0.113.0/255.255.255.0,10.0.0.0/255.0.0.0": "10.0.0.0/8,203.0.113.0/24",
		"2001:db8::/32, 2001:db8:1::7/128":             "2001:db8:1::7/128,2001:db8::/32",
		"127.0.0.1/255.255.255.255":                    nobody,
		"LocalSubnet,10.0.0.1-10.0.0.9":                "10.0.0.1-10.0.0.9,LocalSubnet",
		"10.1.2.3/255.0.0.0":                           "10.0.0.0/8",
		"10.1.2.3/33":                                  "10.1.2.3/33", // nothing jitgate writes
		"":                                             "",
	} {
		if got := canonicalSources(given); got != want {
			t.Errorf("%q: %q, want %q", given, got, want)
		}
	}
}

func TestPolicyRuleAbout(t *testing.T) {
	ssh := firewall.Port{Protocol: firewall.TCP, First: 22, Last: 22}
	winrm := firewall.Port{Protocol: firewall.TCP, First: 5985, Last: 5986}
	for _, c := range []struct {
		rule PolicyRule
		port firewall.Port
		want bool
	}{
		{PolicyRule{Protocol: 6, Ports: "22"}, ssh, true},
		{PolicyRule{Protocol: 6, Ports: "80, 22-25"}, ssh, true},
		{PolicyRule{Protocol: 6, Ports: "23-25"}, ssh, false},
		{PolicyRule{Protocol: 17, Ports: "22"}, ssh, false},
		{PolicyRule{Protocol: 6, Ports: "*"}, ssh, true},
		{PolicyRule{Protocol: 6}, ssh, true},
		{PolicyRule{Protocol: AnyProtocol}, ssh, true},
		{PolicyRule{Protocol: 6, Ports: "RPC,RPC-EPMap"}, ssh, false},
		{PolicyRule{Protocol: 6, Ports: "5986"}, winrm, true},
		{PolicyRule{Protocol: 6, Ports: "5987-5990"}, winrm, false},
		{PolicyRule{Protocol: 6, Ports: "1-65535"}, winrm, true},
	} {
		if got := c.rule.About(c.port); got != c.want {
			t.Errorf("%+v about %s: %t", c.rule, c.port, got)
		}
	}
}
