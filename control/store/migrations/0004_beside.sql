-- No request is ever removed, and what stands beside one is asked for by its own
-- key: three indexes that nothing read and every request wrote.
DROP INDEX request_vm_request;
DROP INDEX request_status_request;
DROP INDEX request_place_request;
