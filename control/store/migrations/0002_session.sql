-- Sessions of browsers. They were kept as answers before; whoever is signed in
-- signs in once more.
CREATE TABLE session (
	id   TEXT PRIMARY KEY NOT NULL,
	ends BIGINT NOT NULL,
	doc  TEXT NOT NULL
);
CREATE INDEX session_ends ON session (ends);

DELETE FROM answer WHERE id >= 'web-session ' AND id < 'web-session!';
