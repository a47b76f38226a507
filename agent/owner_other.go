//go:build !linux

package agent

// handBack does nothing: here the agent and who administers it are one user.
func handBack(string) error { return nil }
