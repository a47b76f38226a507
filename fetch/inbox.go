package fetch

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// item is a document as far as a carrier reads it: unverified. The agent
// judges it.
type item struct {
	typ            policy.Type
	realm          string
	epoch, version uint64
	digest         policy.Digest
}

// parseItem reads what came from a control plane or from a plain file. What an
// agent could not read is not carried.
func parseItem(raw []byte) (item, error) {
	e, err := policy.ParseEnvelope(raw)
	if err != nil {
		return item{}, err
	}
	document, err := policy.ParseDocument(e.Type, e.Payload)
	if err != nil {
		return item{}, err
	}
	i := item{typ: e.Type, digest: e.Digest()}
	switch d := document.(type) {
	case policy.Trust:
		i.realm, i.version = d.Realm, d.Version
	case policy.Policy:
		i.realm, i.epoch, i.version = d.Realm, d.Epoch, d.Version
	case policy.Grants:
		i.realm, i.epoch, i.version = d.Realm, d.Epoch, d.Version
	}
	return i, nil
}

// newer reports whether i may take the place of was. Frames overtake each
// other, and a plain file may be an old one.
func (i item) newer(was item) bool {
	if i.realm != was.realm {
		return true // another realm counts anew
	}
	return i.epoch > was.epoch || i.epoch == was.epoch && i.version > was.version
}

// inbox is where the agent looks for documents.
type inbox struct {
	dir Files

	mu    sync.Mutex
	lies  map[policy.Type]item        // what lies there
	known map[policy.Type]fingerprint // the files it was read from
}

// fingerprint is a file that was read, and what it holds.
type fingerprint struct {
	sum  [sha256.Size]byte
	item item
	err  error
}

// look reads what lies in the inbox. Others may deliver there as well.
func (b *inbox) look() map[policy.Type]item {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.read()
	out := map[policy.Type]item{}
	for t, i := range b.lies {
		out[t] = i
	}
	return out
}

func (b *inbox) read() {
	b.lies = map[policy.Type]item{}
	for _, t := range uplink.Documents {
		raw, err := b.dir.Read(uplink.File(t), policy.MaxEnvelope+1)
		if err != nil {
			continue
		}
		if i, err := b.parse(t, raw); err == nil && i.typ == t {
			b.lies[t] = i
		}
	}
}

// parse is parseItem, which is spared what was there at the last look, or was
// delivered since.
func (b *inbox) parse(t policy.Type, raw []byte) (item, error) {
	sum := sha256.Sum256(raw)
	if k, ok := b.known[t]; ok && k.sum == sum {
		return k.item, k.err
	}
	i, err := parseItem(raw)
	b.know(t, fingerprint{sum, i, err})
	return i, err
}

func (b *inbox) know(t policy.Type, k fingerprint) {
	if b.known == nil {
		b.known = map[policy.Type]fingerprint{}
	}
	b.known[t] = k
}

// errOld is returned for what is not newer than what lies there.
var errOld = errors.New("not newer than what was delivered")

// writeError is returned where a document could not be written.
type writeError struct{ err error }

func (e writeError) Error() string { return "the inbox cannot be written: " + e.err.Error() }
func (e writeError) Unwrap() error { return e.err }

// deliver puts a document into the inbox if it is newer than what lies there.
func (b *inbox) deliver(want policy.Type, raw []byte) (item, error) {
	i, err := parseItem(raw)
	if err != nil {
		return i, err
	}
	if i.typ != want {
		return i, fmt.Errorf("it is a document of type %q", i.typ)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.read()
	if was, ok := b.lies[want]; ok && !i.newer(was) {
		return i, errOld
	}
	if err := b.dir.Replace(uplink.File(want), raw, 0o644); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: the agent makes its inbox when it starts", err)
		}
		return i, writeError{err}
	}
	b.lies[want] = i
	b.know(want, fingerprint{sha256.Sum256(raw), i, nil})
	return i, nil
}
