package control

import (
	"context"
	"time"
)

// LayerRounds returns what one replica does for the layer outside, a round at
// a time, for tests that move the clock.
func (e *Engine) LayerRounds() func(context.Context) (worked bool, next time.Time, err error) {
	w := &layerWatch{e: e, unsettled: map[string]bool{}}
	return w.round
}
