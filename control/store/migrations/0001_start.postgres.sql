-- The activity log is appended to.
CREATE FUNCTION activity_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the activity log is append-only'; END $$;
CREATE TRIGGER activity_kept BEFORE UPDATE OR DELETE ON activity
FOR EACH ROW EXECUTE FUNCTION activity_append_only();
CREATE TRIGGER activity_stays BEFORE TRUNCATE ON activity
FOR EACH STATEMENT EXECUTE FUNCTION activity_append_only();
