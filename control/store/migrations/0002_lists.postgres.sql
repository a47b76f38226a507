INSERT INTO machine_count (grp, tab, n)
SELECT array_to_string((string_to_array(id, '/'))[1:5], '/') || '/', tab, count(*) FROM machine GROUP BY 1, 2;
