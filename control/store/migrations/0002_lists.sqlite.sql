-- Behind "/subscriptions/", a subscription and "/resourcegroups/" the group
-- goes up to the next slash.
WITH behind AS (SELECT id, tab, 32 + instr(substr(id, 16), '/') - 1 AS at FROM machine)
INSERT INTO machine_count (grp, tab, n)
SELECT substr(id, 1, at + instr(substr(id, at), '/') - 1) AS grp, tab, count(*) FROM behind GROUP BY 1, 2;
