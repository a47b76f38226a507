package api

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"

	"github.com/jitgate/jitgate/control/identity"
)

// getTrust answers with what every agent trusts. It is signed and no secret.
func getTrust(c *call) error { return c.document(c.api.Engine.Realm.Signed) }

// loginOut is how people sign in.
type loginOut struct {
	Issuers []identity.Login `json:"issuers"`
}

// getLogin answers with where people sign in, which they must know before they
// have a token.
func getLogin(c *call) error { return c.ok(loginOut{c.api.Identity.Logins()}) }

// openAPIDocument answers with what this API is.
func openAPIDocument(c *call) error { return c.document(c.api.document) }

// document answers with a document that seldom changes: 304 to whom has it.
func (c *call) document(b []byte) error {
	sum := sha256.Sum256(b)
	tag := `"` + hex.EncodeToString(sum[:16]) + `"`
	c.w.Header().Set("ETag", tag)
	if c.r.Header.Get("If-None-Match") == tag {
		return c.empty(http.StatusNotModified)
	}
	c.writeJSON(http.StatusOK, b)
	return nil
}
