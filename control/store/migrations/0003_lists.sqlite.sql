-- Behind "/subscriptions/", a subscription and "/resourcegroups/" the group
-- goes up to the next slash.
WITH behind AS (SELECT id, tab, 32 + instr(substr(id, 16), '/') - 1 AS at FROM machine)
INSERT INTO machine_count (grp, tab, n)
SELECT substr(id, 1, at + instr(substr(id, at), '/') - 1) AS grp, tab, count(*) FROM behind GROUP BY 1, 2;

WITH keys AS (SELECT vm AS key, request, 1 AS machine FROM request_vm UNION ALL SELECT policy, id, 0 FROM request),
	behind AS (SELECT key, request, machine, 32 + instr(substr(key, 16), '/') - 1 AS at FROM keys)
INSERT INTO request_place (scope, request, machine)
SELECT scope, request, max(machine) FROM (
	SELECT substr(key, 1, at - 17) AS scope, request, machine FROM behind
	UNION ALL SELECT substr(key, 1, at + instr(substr(key, at), '/') - 2), request, machine FROM behind
) GROUP BY 1, 2;
CREATE INDEX request_place_request ON request_place (request);
