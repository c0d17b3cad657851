-- Chunks that are durable but not in `chunks` yet, one row for all of a transaction, oldest first. What a row holds up to
-- its task's `streams.last_seq` has been moved since. The form of `data`: journal/codec.rs.
CREATE TABLE chunk_journal (
    id INTEGER PRIMARY KEY,
    data BLOB NOT NULL
) STRICT;
