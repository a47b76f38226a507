package agents

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"slices"
)

// Resume has c go on with sessions of TLS only where the certificate that began
// them was signed by the agents' authority, or there was none: a fleet that comes
// back is spared that look at ten thousand signatures. It is called once, before
// c is used. From then on the line takes it from a session that goes on; it looks
// at a certificate's times and at its key itself, always.
//
// What is trusted with that are the ticket keys, and no more than before: who has
// them makes a session of any machine whose certificate he has seen.
func (l *Line) Resume(c *tls.Config) {
	mark := l.mark()
	c.WrapSession = func(state tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
		// Of one that goes on this is known: else it would have begun anew.
		if state.DidResume || len(state.PeerCertificates) == 0 || l.Engine.Signed(state.PeerCertificates[0]) {
			s.Extra = append(s.Extra, mark)
		}
		return c.EncryptTicket(state, s)
	}
	c.UnwrapSession = func(ticket []byte, state tls.ConnectionState) (*tls.SessionState, error) {
		s, err := c.DecryptTicket(ticket, state)
		// nil begins anew. A replica from before there was a mark makes tickets
		// without one.
		if s != nil && !slices.ContainsFunc(s.Extra, func(e []byte) bool { return bytes.Equal(e, mark) }) {
			return nil, err
		}
		return s, err
	}
	l.resumes = true
}

// mark is what stands in tickets of such sessions, as long as the authority is the
// same.
func (l *Line) mark() []byte {
	h := sha256.New()
	if ca := l.Engine.CA; ca != nil {
		h.Write(ca.Raw)
	}
	return h.Sum([]byte("jitgate agents' authority 1 "))
}
