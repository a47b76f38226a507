-- The tab of each machine where no setting switches JIT off, and how many there
-- are of each in a resource group. A heartbeat writes neither. grp ends with a
-- slash, so that it sorts as the keys of its machines do.

DROP INDEX vm_tab;

CREATE TABLE machine (
	id  TEXT PRIMARY KEY NOT NULL REFERENCES vm (id) ON DELETE CASCADE,
	tab TEXT NOT NULL
);
INSERT INTO machine (id, tab) SELECT id, CASE
	WHEN EXISTS (SELECT 1 FROM policy_vm WHERE policy_vm.vm = vm.id) THEN 'Configured'
	WHEN unsupported = 1 OR id LIKE '%/microsoft.classiccompute/virtualmachines/%' THEN 'Unsupported'
	ELSE 'NotConfigured' END FROM vm;
CREATE INDEX machine_tab ON machine (tab, id);
INSERT INTO counter (name, value) VALUES ('machine', 0);

CREATE TABLE machine_count (
	grp TEXT NOT NULL,
	tab TEXT NOT NULL,
	n   BIGINT NOT NULL,
	PRIMARY KEY (grp, tab)
);

-- The subscriptions and resource groups that a request's machines are in, and
-- that its policy is in, where no machine may be.
CREATE TABLE request_place (
	scope   TEXT NOT NULL,
	request TEXT NOT NULL REFERENCES request (id) ON DELETE CASCADE,
	machine SMALLINT NOT NULL,
	PRIMARY KEY (scope, request)
);

-- Where in the log the lines of an hour are, which is counted from 1970, and
-- how many there are: agents tell of what was long ago, so the order of seq is
-- only nearly that of time.
CREATE TABLE activity_hour (
	hour  BIGINT PRIMARY KEY NOT NULL,
	first BIGINT NOT NULL,
	last  BIGINT NOT NULL,
	n     BIGINT NOT NULL
);
INSERT INTO activity_hour (hour, first, last, n) SELECT ts / 3600000000000, min(seq), max(seq), count(*) FROM activity GROUP BY 1;
DROP INDEX activity_ts;
CREATE INDEX activity_ts ON activity (ts, seq);
CREATE INDEX activity_event ON activity (event, seq);

-- A policy's machines in a scope.
DROP INDEX policy_vm_policy;
CREATE INDEX policy_vm_policy ON policy_vm (policy, vm);
