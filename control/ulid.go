package control

import (
	"crypto/rand"
	"encoding/binary"
	"sync"
	"time"
)

// ids makes ids of requests and grants: 26 characters of Crockford's base32,
// 48 bits of milliseconds before 80 random ones, as ULIDs are. Those of one
// source rise strictly, even where the clock stands still or steps back, so
// that their order is the order they were made in.
type ids struct {
	mu     sync.Mutex
	hi, lo uint64 // of the last one
}

const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

func (s *ids) next(now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ms := uint64(max(now.UnixMilli(), 0)); ms > s.hi>>16 {
		var random [10]byte
		rand.Read(random[:]) // never fails: see crypto/rand
		s.hi = ms<<16 | uint64(binary.BigEndian.Uint16(random[:]))
		s.lo = binary.BigEndian.Uint64(random[2:])
	} else if s.lo++; s.lo == 0 {
		s.hi++
	}
	var out [26]byte
	hi, lo := s.hi, s.lo
	for i := len(out) - 1; i >= 0; i-- {
		out[i] = crockford[lo&31]
		hi, lo = hi>>5, lo>>5|hi<<59
	}
	return string(out[:])
}
