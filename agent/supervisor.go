package agent

import "time"

// Supervisor is who started the agent and wants to hear of it, in the words of
// sd_notify(3). The zero Supervisor hears nothing.
type Supervisor struct {
	Tell func(state string)
	// Within is how often it wants to hear that the agent is alive. Zero: not
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

// alive says so. It is called by the loop that makes the passes and by nobody
// else, so that it is true.
func (s Supervisor) alive() {
	if s.Within > 0 {
		s.tell(supervisorAlive)
	}
}
