package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"time"

	"github.com/jitgate/jitgate/control"
)

const (
	maxKey = 128
	// claimTime is how long a call with an idempotency key may take before it
	// counts as lost, so that the key can be used again: longer than any call.
	claimTime = 2 * CallTimeout
	// claimLook is how often a second call with the key looks whether the
	// first has been answered, and claimWait is for how long.
	claimLook = 50 * time.Millisecond
	claimWait = 10 * time.Second
)

// once runs a call that has an Idempotency-Key at most once at a time. The
// first call claims the key, in one step over all replicas; a second one waits
// for the answer of the first and gets the same. A refusal changed nothing, so
// it frees the key. Where the server is lost between the claim and the answer,
// the key is free again after claimTime: every call of the API does no harm
// when it is repeated, it is the answer that would differ.
func (c *call) once() error {
	keys := c.r.Header.Values("Idempotency-Key")
	if len(keys) == 0 {
		return c.route.run(c)
	}
	if c.route.secret {
		return invalid("IdempotencyKeyNotSupported", "This answer holds a secret that is shown once and not kept: call without an Idempotency-Key.")
	}
	if len(keys) > 1 || keys[0] == "" || len(keys[0]) > maxKey || quotable(keys[0]) != keys[0] {
		return invalid("InvalidHeader", "Idempotency-Key takes one key of at most %d printable characters.", maxKey)
	}
	digest := func(parts ...[]byte) string {
		h := sha256.New()
		for _, p := range parts {
			sum := sha256.Sum256(p) // so that no two lists of parts read the same
			h.Write(sum[:])
		}
		return hex.EncodeToString(h.Sum(nil))
	}
	claim := control.Answer{
		Key:    digest([]byte(c.caller.ID), []byte(c.route.method), []byte(c.r.URL.EscapedPath()), []byte(keys[0])),
		Digest: digest(c.body, []byte(c.r.URL.RawQuery), []byte(c.r.Header.Get("If-Match"))),
		Time:   c.api.Now(),
	}
	for waited := time.Duration(0); ; waited += claimLook {
		before, ours, err := c.claim(claim)
		switch {
		case err != nil:
			return err
		case ours:
			return c.answerOnce(claim)
		case before.Digest != claim.Digest:
			return refuse(http.StatusUnprocessableEntity, "IdempotencyKeyReused", "This Idempotency-Key stood in another call: take a new one.")
		case before.Status != claimed:
			c.w.Header().Set("Idempotent-Replayed", "true")
			c.writeJSON(before.Status, before.Body)
			return nil
		case waited >= claimWait:
			return &refusal{status: http.StatusConflict, code: "IdempotencyKeyInUse", message: "The first call with this Idempotency-Key is not answered yet.", retryAfter: time.Second}
		}
		select {
		case <-c.ctx.Done():
			return c.ctx.Err()
		case <-time.After(claimLook):
		}
	}
}

// The statuses of an Answer that is no answer.
const (
	claimed = 0  // the call is being carried out
	free    = -1 // it was refused
)

// claim takes the key, or returns what stands there. Most who wait only look:
// one update runs at a time, over all replicas.
func (c *call) claim(claim control.Answer) (before control.Answer, ours bool, err error) {
	look := func(tx control.Tx) (err error) {
		before, err = tx.Answer(claim.Key)
		lost := before.Status == claimed && c.api.Now().Sub(before.Time) > claimTime
		ours = errors.Is(err, control.ErrNotFound) || err == nil && (before.Status == free || lost)
		if ours {
			return nil
		}
		return err
	}
	if err := c.api.Store.View(c.ctx, look); err != nil || !ours {
		return before, false, err
	}
	err = c.api.Store.Update(c.ctx, func(tx control.Tx) error {
		if err := look(tx); err != nil || !ours {
			return err
		}
		return tx.PutAnswer(claim)
	})
	return before, ours, err
}

// answerOnce runs the call and keeps its answer.
func (c *call) answerOnce(claim control.Answer) error {
	kept := &keeper{ResponseWriter: c.w}
	c.w = kept
	// A panic frees the key as well: nobody will answer this call.
	claim.Status = free
	defer func() {
		// The client may be gone, and the answer is wanted all the more.
		err := c.api.Store.Update(context.WithoutCancel(c.ctx), func(tx control.Tx) error { return tx.PutAnswer(claim) })
		if err != nil {
			c.api.Log.Error("the answer to an idempotency key was not kept", "call", c.id, "error", err)
		}
	}()
	err := c.route.run(c)
	if err == nil {
		claim.Status, claim.Body = kept.status, kept.body.Bytes()
	}
	return err
}

// keeper sends an answer and keeps it.
type keeper struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (k *keeper) WriteHeader(status int) {
	k.status = status
	k.ResponseWriter.WriteHeader(status)
}

func (k *keeper) Write(b []byte) (int, error) {
	k.body.Write(b)
	return k.ResponseWriter.Write(b)
}
