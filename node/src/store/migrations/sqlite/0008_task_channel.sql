-- What a provider last said about how far it is.
ALTER TABLE tasks ADD COLUMN progress_percent REAL;
ALTER TABLE tasks ADD COLUMN progress_message TEXT;

-- From where a provider would go on: the newest by its own seq.
CREATE TABLE task_checkpoints (
    task BLOB PRIMARY KEY REFERENCES tasks (id),
    seq INTEGER NOT NULL,
    state TEXT NOT NULL,
    updated_at INTEGER NOT NULL
) WITHOUT ROWID, STRICT;

-- The two streams of a task's channel: 0 is input, from the client, 1 is output, from the provider.
CREATE TABLE task_channel_streams (
    task BLOB NOT NULL REFERENCES tasks (id),
    direction INTEGER NOT NULL CHECK (direction IN (0, 1)),
    -- 0 or 1; not known yet while it is null.
    base INTEGER CHECK (base IN (0, 1)),
    last_seq INTEGER,
    chunks INTEGER NOT NULL CHECK (chunks >= 0),
    bytes INTEGER NOT NULL CHECK (bytes >= 0),
    -- How it ended.
    checksum BLOB,
    total_size INTEGER,
    closed_at INTEGER,
    PRIMARY KEY (task, direction)
) WITHOUT ROWID, STRICT;

-- `seq` is the sender's, `nth` counts in the order of arrival. A table with rowids: rows are up to 256 KiB.
CREATE TABLE task_channel_chunks (
    task BLOB NOT NULL,
    direction INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    nth INTEGER NOT NULL,
    digest BLOB NOT NULL,
    is_base64 INTEGER NOT NULL,
    content BLOB NOT NULL,
    PRIMARY KEY (task, direction, seq)
) STRICT;

CREATE UNIQUE INDEX task_channel_chunks_by_arrival ON task_channel_chunks (task, direction, nth);
