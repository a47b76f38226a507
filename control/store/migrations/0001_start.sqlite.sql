-- The activity log is appended to. OR REPLACE would delete without the
-- trigger: the last one refuses it, and a number that does not rise.
CREATE TRIGGER activity_kept BEFORE UPDATE ON activity
BEGIN SELECT RAISE(ABORT, 'the activity log is append-only'); END;
CREATE TRIGGER activity_stays BEFORE DELETE ON activity
BEGIN SELECT RAISE(ABORT, 'the activity log is append-only'); END;
CREATE TRIGGER activity_rises BEFORE INSERT ON activity WHEN NEW.seq <= (SELECT max(seq) FROM activity)
BEGIN SELECT RAISE(ABORT, 'the activity log is append-only'); END;
