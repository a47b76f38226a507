package agent

import (
	"context"
	"time"

	"github.com/jitgate/jitgate/audit"
)

// headEvery is how often the end of the record is told where the record is
// not: what is cut or written anew behind a head that was told shows.
const headEvery = 5 * time.Minute

// tellHead tells where the record ends, and then removes what of it is over
// its limits: nothing that no head was told for.
func (a *Agent) tellHead(ctx context.Context) {
	file, ok := a.Audit.(record)
	if !ok {
		return
	}
	seq, hash, err := file.End()
	if err != nil {
		a.Log.Error("the end of the record cannot be told", "error", err)
		return
	}
	if a.Heads != nil {
		a.Heads(seq, hash)
	}
	told := seq
	if c := a.Settings.Control; c != nil && c.URL != "" {
		// The control plane keeps a copy: it takes lines in their order, and
		// none behind a hole.
		told = min(told, a.collected.Load())
	}
	if p, ok := a.Audit.(interface {
		Prune(ctx context.Context, keep audit.Keep, told uint64) error
	}); ok && a.Heads != nil {
		if err := p.Prune(ctx, a.Settings.Audit.Keep, told); err != nil {
			a.Log.Error("old files of the record are not removed", "error", err)
		}
	}
}

// collect notes that whoever reads the record has its lines up to this one.
func (a *Agent) collect(seq uint64) {
	for {
		was := a.collected.Load()
		if seq <= was || a.collected.CompareAndSwap(was, seq) {
			return
		}
	}
}
