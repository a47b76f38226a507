package identity

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limiter gives each key an allowance that refills, in bounded memory.
type limiter[K comparable] struct {
	rate  rate.Limit
	burst int
	max   int // keys remembered

	mu    sync.Mutex
	keys  map[K]*rate.Limiter
	swept time.Time
	rest  *rate.Limiter // shared by whom there is no room for
}

func newLimiter[K comparable](r rate.Limit, burst, most int) *limiter[K] {
	return &limiter[K]{rate: r, burst: burst, max: most, keys: make(map[K]*rate.Limiter), rest: rate.NewLimiter(r, burst)}
}

// take takes one from key's allowance and returns 0, or takes nothing and
// returns how long until there is one.
func (l *limiter[K]) take(key K, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.of(key, now).ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

// of finds key's allowance. Where there are too many keys, the full ones are
// forgotten, which changes nothing; if none is full, new keys share one
// allowance, so that a flood of addresses frees no one who is limited.
func (l *limiter[K]) of(key K, now time.Time) *rate.Limiter {
	if one := l.keys[key]; one != nil {
		return one
	}
	if len(l.keys) >= l.max && now.Sub(l.swept) >= time.Second {
		l.swept = now
		for k, one := range l.keys {
			if one.TokensAt(now) >= float64(l.burst) {
				delete(l.keys, k)
			}
		}
	}
	if len(l.keys) >= l.max {
		return l.rest
	}
	one := rate.NewLimiter(l.rate, l.burst)
	l.keys[key] = one
	return one
}
