package control

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// editTries is how often an edit is begun, where documents it has to publish
// are changed by others while they are being signed.
const editTries = 8

// signAtOnce bounds the signatures that are asked for at the same time: a
// policy of a thousand machines may take two thousand documents.
const signAtOnce = 8

// errUnsigned ends a rehearsal: nothing of it is written.
var errUnsigned = errors.New("documents have yet to be signed")

// edit is one change in the making: what is read, judged and written in one
// transaction, with the documents and the lines of the log that go with it.
//
// Keys in this process sign within the transaction. A signer that may be slow
// (a command, a key vault) must not hold the store's one writer: the edit is
// rehearsed, rolled back, its documents are signed, and it is done again. It
// stands if it comes to the same documents; if somebody else changed them
// meanwhile, they are signed anew (docs/adr/0020-one-writer.md). So what an
// edit does depends on the transaction, its time and its ids, and on nothing
// else.
type edit struct {
	e      *Engine
	tx     Tx
	caller Caller
	now    time.Time

	ids  []string // made so far; the same at every try
	used int

	scopes   *[]ScopeSetting      // read at most once
	machines map[string]*VM       // read so far, by Key; nil: not there
	requests map[string][]Request // those open of machines, by Key: see open

	due      map[string]due             // by Key of the machine
	signed   map[string]policy.Envelope // by type and payload
	unsigned []policy.Envelope

	lines []Activity
	about Activity // what the log says where the edit is refused; zero: nothing
}

// edit runs f in one Update. f may run several times.
func (e *Engine) edit(ctx context.Context, c Caller, f func(*edit) error) error {
	ed := &edit{e: e, caller: c, now: e.Now().UTC(), signed: map[string]policy.Envelope{}}
	for range editTries {
		err := e.Store.Update(ctx, func(tx Tx) error {
			ed.tx, ed.used, ed.scopes, ed.due = tx, 0, nil, map[string]due{}
			ed.unsigned, ed.lines, ed.about = nil, nil, Activity{}
			ed.machines, ed.requests = map[string]*VM{}, map[string][]Request{}
			if err := f(ed); err != nil {
				return err
			}
			if err := ed.publish(); err != nil {
				return err
			}
			switch {
			case len(ed.unsigned) > 0:
				return errUnsigned
			case len(ed.lines) > 0:
				return tx.AppendActivity(ed.lines...)
			}
			return nil
		})
		if !errors.Is(err, errUnsigned) {
			ed.tellRefusal(ctx, err)
			return err
		}
		if err := ed.sign(ctx); err != nil {
			return err
		}
	}
	return Refuse(Unavailable, "ServerBusy", "The same machines are being changed by others all the time: nothing was changed, try again.")
}

// tellRefusal records who tried what they may not. What is not there, or was
// changed by somebody else meanwhile, is no news.
func (ed *edit) tellRefusal(ctx context.Context, err error) {
	refusal := AsError(err)
	if refusal == nil || ed.about.Event == "" {
		return
	}
	if refusal.Kind != Forbidden && refusal.Kind != Invalid && refusal.Kind != Conflict {
		return
	}
	line := ed.about
	line.Status, line.Code, line.Reason = statusFailed, refusal.Code, refusal.Message
	err = ed.e.Store.Update(ctx, func(tx Tx) error { return tx.AppendActivity(line) })
	if err != nil {
		ed.e.Log.Error("cannot record a refusal", "event", line.Event, "call", line.Call, "error", err)
	}
}

// id returns a new id.
func (ed *edit) id() string {
	if ed.used == len(ed.ids) {
		ed.ids = append(ed.ids, ed.e.ids.next(ed.now))
	}
	ed.used++
	return ed.ids[ed.used-1]
}

// line begins a line of the log about what the caller does. The caller of what
// nobody asked for is the zero Caller.
func (ed *edit) line(event string, a Action, s Scope) Activity {
	l := ed.caller.line(event, a, s, "")
	l.Time, l.Actor = ed.now, cmp.Or(ed.caller.Name, ed.caller.ID)
	return l
}

// tell adds lines to the log.
func (ed *edit) tell(lines ...Activity) { ed.lines = append(ed.lines, lines...) }

// signedBy returns the envelope of a payload, signed, as agents take it. In a
// rehearsal it is empty.
func (ed *edit) signedBy(signer crypto.Signer, typ policy.Type, payload []byte) (policy.Envelope, error) {
	envelope := policy.Envelope{Type: typ, Payload: payload}
	if inProcess(signer) {
		return envelope, envelope.Sign(signer) // which reads it first
	}
	if envelope, ok := ed.signed[string(typ)+"\x00"+string(payload)]; ok {
		return envelope, nil
	}
	if _, err := policy.ParseDocument(typ, payload); err != nil {
		return policy.Envelope{}, err
	}
	ed.unsigned = append(ed.unsigned, envelope)
	return envelope, nil
}

// inProcess reports whether the signer is a key in memory: it signs in
// microseconds and cannot hang.
func inProcess(signer crypto.Signer) bool {
	switch signer.(type) {
	case ed25519.PrivateKey, *ecdsa.PrivateKey:
		return true
	}
	return false
}

// sign signs what a rehearsal left unsigned, outside any transaction. A signer
// that never answers keeps goroutines, and not the caller.
func (ed *edit) sign(ctx context.Context) error {
	type outcome struct {
		envelope policy.Envelope
		err      error
	}
	done := make(chan outcome, len(ed.unsigned))
	turns := make(chan struct{}, signAtOnce)
	for _, envelope := range ed.unsigned {
		signer := ed.e.Realm.Grant
		if envelope.Type == policy.TypePolicy {
			signer = ed.e.Realm.Policy
		}
		go func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			err := ctx.Err()
			if err == nil {
				err = envelope.Sign(signer)
			}
			done <- outcome{envelope, err}
		}()
	}
	for range ed.unsigned {
		var o outcome
		select {
		case o = <-done:
		case <-ctx.Done():
			o.err = ctx.Err()
		}
		if o.err != nil {
			ed.e.Log.Error("cannot sign", "documents", len(ed.unsigned), "error", o.err)
			return Refuse(Unavailable, "SigningFailed", "The control plane's key could not sign: nothing was changed, try again.")
		}
		ed.signed[string(o.envelope.Type)+"\x00"+string(o.envelope.Payload)] = o.envelope
	}
	return nil
}

// published checks that agents will take what is about to be stored, unless
// this is a rehearsal and it has yet to be signed.
func (ed *edit) published(envelope policy.Envelope) ([]byte, error) {
	raw := envelope.Encode()
	if len(envelope.Signatures) == 0 {
		return raw, nil
	}
	// Whatever is here was read by the agents' parser. A key in this process
	// that made a signature once which held makes no other ones.
	signer := ed.e.Realm.Grant
	if envelope.Type == policy.TypePolicy {
		signer = ed.e.Realm.Policy
	}
	by := proven{envelope.Type, envelope.Signatures[0].KeyID, ed.e.Realm.Trust.Version}
	alone := inProcess(signer) && len(envelope.Signatures) == 1
	if _, ok := ed.e.proven.Load(by); ok && alone {
		return raw, nil
	}
	var err error
	if envelope.Type == policy.TypePolicy {
		_, err = policy.OpenPolicy(raw, ed.e.Realm.Trust)
	} else {
		_, err = policy.OpenGrants(raw, ed.e.Realm.Trust)
	}
	if err != nil {
		return nil, fmt.Errorf("agents would refuse what was signed: %w", err)
	}
	if alone {
		ed.e.proven.Store(by, true)
	}
	return raw, nil
}

// proven is a key of which agents took a document, by the version of the trust
// document.
type proven struct {
	typ   policy.Type
	key   policy.KeyID
	trust uint64
}
