-- Values are JSON documents in doc; the columns beside it are what queries
-- ask for. Ids are keys in lower case. Times are nanoseconds since 1970 in UTC.

CREATE TABLE counter (
	name  TEXT PRIMARY KEY NOT NULL,
	value BIGINT NOT NULL
);
INSERT INTO counter (name, value) VALUES ('activity', 0), ('document', 0);

CREATE TABLE policy (
	id       TEXT PRIMARY KEY NOT NULL,
	sub      TEXT NOT NULL,
	grp      TEXT NOT NULL,
	location TEXT NOT NULL,
	doc      TEXT NOT NULL
);
CREATE INDEX policy_place ON policy (sub, grp, location, id);

CREATE TABLE policy_vm (
	vm     TEXT NOT NULL,
	policy TEXT NOT NULL REFERENCES policy (id) ON DELETE CASCADE,
	PRIMARY KEY (vm, policy)
);
CREATE INDEX policy_vm_policy ON policy_vm (policy);

-- A request is open while any of its ports may be open or become so. It
-- outlives its policy: requests are history.
CREATE TABLE request (
	id        TEXT PRIMARY KEY NOT NULL,
	policy    TEXT NOT NULL,
	principal TEXT NOT NULL,
	created   BIGINT NOT NULL,
	open      SMALLINT NOT NULL,
	doc       TEXT NOT NULL
);
CREATE INDEX request_policy ON request (policy, id);
CREATE INDEX request_principal ON request (principal, id);
CREATE INDEX request_created ON request (created, id);
CREATE INDEX request_open ON request (id) WHERE open = 1;

CREATE TABLE request_vm (
	vm      TEXT NOT NULL,
	request TEXT NOT NULL REFERENCES request (id) ON DELETE CASCADE,
	created BIGINT NOT NULL,
	open    SMALLINT NOT NULL,
	PRIMARY KEY (vm, request)
);
CREATE INDEX request_vm_request ON request_vm (request);
CREATE INDEX request_vm_created ON request_vm (vm, created);
CREATE INDEX request_vm_open ON request_vm (vm, request) WHERE open = 1;

CREATE TABLE request_status (
	status  TEXT NOT NULL,
	request TEXT NOT NULL REFERENCES request (id) ON DELETE CASCADE,
	PRIMARY KEY (status, request)
);
CREATE INDEX request_status_request ON request_status (request);

CREATE TABLE document (
	vm     TEXT NOT NULL,
	type   TEXT NOT NULL,
	seq    BIGINT NOT NULL,
	issued BIGINT NOT NULL,
	doc    TEXT NOT NULL,
	PRIMARY KEY (vm, type)
);
CREATE UNIQUE INDEX document_seq ON document (seq);
CREATE INDEX document_issued ON document (type, issued, vm);

CREATE TABLE pending_policy (
	vm  TEXT PRIMARY KEY NOT NULL,
	doc TEXT NOT NULL
);

-- seen is when the agent was last heard of; the document does not have it, so
-- that a heartbeat writes one number.
CREATE TABLE vm (
	id          TEXT PRIMARY KEY NOT NULL,
	seen        BIGINT NOT NULL,
	unsupported SMALLINT NOT NULL,
	doc         TEXT NOT NULL
);
CREATE INDEX vm_tab ON vm (id, unsupported);

CREATE TABLE join_token (
	hash    TEXT PRIMARY KEY NOT NULL,
	created BIGINT NOT NULL,
	doc     TEXT NOT NULL
);

-- The record of a machine outlives the machine.
CREATE TABLE agent_event (
	vm    TEXT NOT NULL,
	epoch BIGINT NOT NULL,
	seq   BIGINT NOT NULL,
	hash  TEXT NOT NULL,
	doc   TEXT NOT NULL,
	PRIMARY KEY (vm, epoch, seq)
);

CREATE TABLE activity (
	seq   BIGINT PRIMARY KEY NOT NULL,
	ts    BIGINT NOT NULL,
	sub   TEXT NOT NULL,
	grp   TEXT NOT NULL,
	scope TEXT NOT NULL,
	event TEXT NOT NULL,
	actor TEXT NOT NULL,
	doc   TEXT NOT NULL
);
CREATE INDEX activity_ts ON activity (ts);
CREATE INDEX activity_sub ON activity (sub, seq);
CREATE INDEX activity_grp ON activity (grp, seq);
CREATE INDEX activity_scope ON activity (scope, seq);
CREATE INDEX activity_actor ON activity (actor, seq);

CREATE TABLE scope_setting (
	scope TEXT PRIMARY KEY NOT NULL,
	doc   TEXT NOT NULL
);

CREATE TABLE token (
	hash    TEXT PRIMARY KEY NOT NULL,
	created BIGINT NOT NULL,
	doc     TEXT NOT NULL
);

CREATE TABLE role (
	name TEXT PRIMARY KEY NOT NULL,
	doc  TEXT NOT NULL
);

CREATE TABLE assignment (
	principal TEXT NOT NULL,
	role      TEXT NOT NULL,
	scope     TEXT NOT NULL,
	doc       TEXT NOT NULL,
	PRIMARY KEY (principal, role, scope)
);

CREATE TABLE answer (
	id  TEXT PRIMARY KEY NOT NULL,
	ts  BIGINT NOT NULL,
	doc TEXT NOT NULL
);
CREATE INDEX answer_ts ON answer (ts);

CREATE TABLE meta (
	name TEXT PRIMARY KEY NOT NULL,
	doc  TEXT NOT NULL
);
