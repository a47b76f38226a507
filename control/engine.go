package control

import (
	"crypto"
	"crypto/x509"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Config is what an Engine needs. Store, Realm and Log are required.
type Config struct {
	Store Store
	Realm Realm
	Now   func() time.Time // nil: time.Now
	Log   hclog.Logger
	// CA signs the certificates of agents; nil: none can enrol.
	CA    *x509.Certificate
	CAKey crypto.Signer
	// ServerCA is the SHA-256 of the certificate that agents find the server's
	// by, where it is not in the system's store; it goes into join tokens.
	ServerCA []byte
	Outer    Outer // nil: there is no layer outside the machines
}

// Engine is the control plane's decisions. It is safe for concurrent use, and
// several may work on one store.
type Engine struct {
	Config
	ids    ids
	proven sync.Map // proven: true, for keys in this process
}

// New makes an Engine. It starts nothing: see Run.
func New(c Config) *Engine {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Engine{Config: c}
}
