package winfw

import (
	"errors"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
)

// Where there is no filtering platform, as under Wine, that is what is said.
// Where there is one, opening it changes nothing.
func TestOpen(t *testing.T) {
	start := time.Now()
	b, err := Open(func() firewall.BootTime { return firewall.BootTime(time.Since(start)) }, func(err error) { t.Error(err) })
	if err != nil {
		t.Log(err)
		if !errors.Is(err, ErrUnavailable) {
			t.Error("a platform that is there refuses, and nobody says what to do")
		}
		return
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// Windows Firewall is read, or says why not.
func TestReadPolicy(t *testing.T) {
	p, err := ReadPolicy()
	t.Logf("%d profiles, %d rules, %v", len(p.Profiles), len(p.Rules), err)
	if err == nil && len(p.Profiles) != 3 {
		t.Error("not three profiles")
	}
	if _, err := (policyRules{}).Read(); err != nil {
		t.Log(err)
	}
}
