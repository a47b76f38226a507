package store

import "sync"

// decoded are values that were read lately, by the text of their document. A
// policy may name a thousand machines, and is read for each request under it; an
// open request is read with each other one for its machines, and with what those
// report. What is found by its whole text is never an old one.
type decoded[T interface{ Clone() T }] struct {
	mu         sync.Mutex
	young, old map[string]T
	size       int // of the texts of the young
}

// decodedAtMost bounds the texts of the young, in bytes; then these are the old,
// and what was old and nobody read meanwhile is forgotten. What is decoded is
// about as large again.
const decodedAtMost = 4 << 20

// decode is decode for a T. What it returns belongs to the caller.
func (d *decoded[T]) decode(doc string) (v T, err error) {
	if v, ok := d.find(doc); ok {
		return v.Clone(), nil
	}
	if err := decode(doc, &v); err != nil {
		return v, err
	}
	d.mu.Lock()
	d.keep(doc, v)
	d.mu.Unlock()
	return v.Clone(), nil
}

func (d *decoded[T]) find(doc string) (v T, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v, ok = d.young[doc]; ok {
		return v, true
	}
	if v, ok = d.old[doc]; ok {
		d.keep(doc, v)
	}
	return v, ok
}

// keep makes a text one of the young.
func (d *decoded[T]) keep(doc string, v T) {
	if _, twice := d.young[doc]; twice {
		return
	}
	if d.size += len(doc); d.young == nil || d.size > decodedAtMost {
		d.young, d.old, d.size = map[string]T{}, d.young, len(doc)
	}
	d.young[doc] = v
}
