package storetest

import (
	"testing"

	"github.com/jitgate/jitgate/control"
)

// Run holds a store against what control.Store says. open opens an empty one.
func Run(t *testing.T, open func(*testing.T) control.Store) {
	t.Run("keeps every field", func(t *testing.T) { keepsEveryField(t, open(t)) })
}
