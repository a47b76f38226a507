INSERT INTO machine_count (grp, tab, n)
SELECT array_to_string((string_to_array(id, '/'))[1:5], '/') || '/', tab, count(*) FROM machine GROUP BY 1, 2;

INSERT INTO request_place (scope, request, machine)
SELECT array_to_string((string_to_array(key, '/'))[1:depth], '/'), request, max(machine)
FROM (SELECT vm AS key, request, 1 AS machine FROM request_vm UNION ALL SELECT policy, id, 0 FROM request) AS keys, (VALUES (3), (5)) AS depths (depth)
GROUP BY 1, 2;
CREATE INDEX request_place_request ON request_place (request);
