package store

import "github.com/jitgate/jitgate/control"

func (t *tx) Session(key string) (control.Session, error) {
	return one[control.Session](t, "SELECT doc FROM session WHERE id = ?", key)
}

func (t *tx) PutSession(s control.Session) error {
	if _, err := t.exec("DELETE FROM session WHERE ends <= ?", nanos(s.Began)); err != nil {
		return err
	}
	return t.put("INSERT INTO session (id, ends, doc) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET ends = excluded.ends, doc = excluded.doc", s, s.Key, nanos(s.Ends))
}

func (t *tx) DeleteSession(key string) error {
	return t.drop("DELETE FROM session WHERE id = ?", key)
}
