//go:build !linux

package agent

// Supervised returns the zero Supervisor: only systemd wants to hear of an
// agent this way.
func Supervised() Supervisor { return Supervisor{} }
