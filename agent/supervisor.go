package agent

import "time"

// Supervisor is who started a service of a host and wants to hear of it, in the
// words of sd_notify(3). The zero Supervisor hears nothing.
type Supervisor struct {
	Tell func(state string)
	// Within is how often it wants to hear that the service is alive. Zero: not
	// at all.
	Within time.Duration
}

const (
	supervisorReady    = "READY=1"
	supervisorAlive    = "WATCHDOG=1"
	supervisorStopping = "STOPPING=1"
)

func (s Supervisor) tell(state string) {
	if s.Tell != nil {
		s.Tell(state)
	}
}

// Alive says so, where that is to be heard. Of an agent it is called by the loop
// that makes the passes and by nobody else, so that it is true.
func (s Supervisor) Alive() {
	if s.Within > 0 {
		s.tell(supervisorAlive)
	}
}

// Pace is how often to call Alive at least: a word may be late. Zero: never.
func (s Supervisor) Pace() time.Duration { return s.Within / 3 }
