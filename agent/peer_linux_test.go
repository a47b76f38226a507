package agent

import "testing"

func TestLogin(t *testing.T) {
	for uid, want := range map[string]string{"1000": ", login uid 1000", "0": ", login uid 0", "4294967295": "", "": ""} {
		if got := loginText(uid); got != want {
			t.Errorf("%q: %q", uid, got)
		}
	}
	if name, login := (caller{}).process(); name != "" || login != "" {
		t.Errorf("of an unknown caller: %q %q", name, login)
	}
}
