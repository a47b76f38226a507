-- The version of a document, to find what a machine has yet to get without reading
-- the rest. Rows from before have 0, until they are written again: they are read.
ALTER TABLE document ADD COLUMN version BIGINT NOT NULL DEFAULT 0;
