package main

import (
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"time"

	"github.com/jitgate/jitgate/control"
)

// Session tickets let ten thousand agents come back after a restart without
// ten thousand full handshakes, whichever replica they come to. The keys that
// seal tickets are in the store, sealed themselves under the agents' CA: who
// has a ticket key could pretend to be an agent, and a copy of the database
// alone must not be enough for that.
const (
	metaTickets  = "tls.tickets"
	ticketKeys   = 3
	ticketPeriod = 24 * time.Hour // a ticket is good for two of them at least
	ticketCheck  = 10 * time.Minute
)

// ticketKey is one key, and when it was made.
type ticketKey struct {
	Key  []byte    `json:"key"`
	Made time.Time `json:"made"`
}

// tickets keeps the ticket keys of a TLS configuration those of the store.
type tickets struct {
	store control.Store
	seal  cipher.AEAD
	now   func() time.Time
}

func newTickets(store control.Store, key crypto.Signer, now func() time.Time) (*tickets, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	secret, err := hkdf.Key(sha256.New, der, nil, "jitgate-control tls tickets", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	seal, err := cipher.NewGCM(block)
	return &tickets{store: store, seal: seal, now: now}, err
}

// apply gives the configuration the store's keys, the newest first, and makes
// a new one when that is due.
func (t *tickets) apply(ctx context.Context, c *tls.Config) error {
	keys, err := t.current(ctx)
	if err != nil {
		return err
	}
	var all [][32]byte
	for _, k := range keys {
		all = append(all, [32]byte(k.Key))
	}
	c.SetSessionTicketKeys(all)
	return nil
}

// current are the keys in force. One that is due is made by whoever sees it
// first; the others find it.
func (t *tickets) current(ctx context.Context) (keys []ticketKey, err error) {
	sealed, err := meta(ctx, t.store, metaTickets)
	if err != nil {
		return nil, err
	}
	if keys = t.open(sealed); !t.due(keys) {
		return keys, nil
	}
	err = t.store.Update(ctx, func(tx control.Tx) error {
		sealed, err := tx.Meta(metaTickets)
		if err != nil && !errors.Is(err, control.ErrNotFound) {
			return err
		}
		if keys = t.open(sealed); !t.due(keys) {
			return nil
		}
		fresh := ticketKey{Key: make([]byte, 32), Made: t.now()}
		rand.Read(fresh.Key)
		keys = append([]ticketKey{fresh}, keys[:min(len(keys), ticketKeys-1)]...)
		text, err := json.Marshal(keys)
		if err != nil {
			return err
		}
		nonce := make([]byte, t.seal.NonceSize())
		rand.Read(nonce)
		return tx.PutMeta(metaTickets, t.seal.Seal(nonce, nonce, text, []byte(metaTickets)))
	})
	return keys, err
}

func (t *tickets) due(keys []ticketKey) bool {
	return len(keys) == 0 || t.now().Sub(keys[0].Made) >= ticketPeriod
}

// open reads what current sealed. What cannot be read, sealed under a former
// CA, is no key: sessions then begin with a full handshake.
func (t *tickets) open(sealed []byte) (keys []ticketKey) {
	if len(sealed) < t.seal.NonceSize() {
		return nil
	}
	n := t.seal.NonceSize()
	text, err := t.seal.Open(nil, sealed[:n], sealed[n:], []byte(metaTickets))
	if err != nil || json.Unmarshal(text, &keys) != nil {
		return nil
	}
	for _, k := range keys {
		if len(k.Key) != 32 {
			return nil
		}
	}
	return keys
}
