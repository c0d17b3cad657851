-- What a provider last said about how far it is. UTF-8, but with U+0000, which text cannot have.
ALTER TABLE tasks ADD COLUMN progress_percent double precision;
ALTER TABLE tasks ADD COLUMN progress_message bytea;

-- From where a provider would go on: the newest by its own seq.
CREATE TABLE task_checkpoints (
    task uuid PRIMARY KEY REFERENCES tasks (id),
    seq bigint NOT NULL,
    state text NOT NULL,
    updated_at bigint NOT NULL
);

-- The two streams of a task's channel: 0 is input, from the client, 1 is output, from the provider. Whoever changes them
-- holds the row of the task.
CREATE TABLE task_channel_streams (
    task uuid NOT NULL REFERENCES tasks (id),
    direction smallint NOT NULL CHECK (direction IN (0, 1)),
    -- 0 or 1; not known yet while it is null.
    base bigint CHECK (base IN (0, 1)),
    last_seq bigint,
    chunks bigint NOT NULL CHECK (chunks >= 0),
    bytes bigint NOT NULL CHECK (bytes >= 0),
    -- How it ended.
    checksum bytea,
    total_size bigint,
    closed_at bigint,
    PRIMARY KEY (task, direction)
) WITH (fillfactor = 70);

-- `seq` is the sender's, `nth` counts in the order of arrival.
CREATE TABLE task_channel_chunks (
    task uuid NOT NULL,
    direction smallint NOT NULL,
    seq bigint NOT NULL,
    nth bigint NOT NULL,
    digest bytea NOT NULL,
    is_base64 boolean NOT NULL,
    content bytea NOT NULL,
    PRIMARY KEY (task, direction, seq)
);

CREATE UNIQUE INDEX task_channel_chunks_by_arrival ON task_channel_chunks (task, direction, nth);
