package winfw

import (
	"errors"
	"testing"
)

// A system without a filtering platform has no guard to remove; one whose
// service does not run may have one.
func TestNoPlatform(t *testing.T) {
	for code, none := range map[uint32]bool{codeCannotSupport: true, codeNotSupported: true, codeNotImplemented: true,
		codeServiceNotActive: false, codeServerUnavailable: false, codeNoEndpoints: false, codeCallFailed: false} {
		err := error(&Error{"FwpmEngineOpen0", code})
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, errors.ErrUnsupported) != none {
			t.Errorf("%d: unavailable %v, unsupported %v, want %v", code, errors.Is(err, ErrUnavailable), errors.Is(err, errors.ErrUnsupported), none)
		}
	}
	if err := error(&Error{"FwpmFilterAdd0", codeAccessDenied}); errors.Is(err, errors.ErrUnsupported) || errors.Is(err, ErrUnavailable) {
		t.Error("access denied is taken for a platform that is not there")
	}
}
