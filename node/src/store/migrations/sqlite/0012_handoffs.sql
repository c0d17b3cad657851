-- Tasks that were handed over with a message. A row outlives its message: who has paid for what is known for good.
CREATE TABLE handoffs (
    message BLOB PRIMARY KEY,
    task BLOB NOT NULL UNIQUE REFERENCES tasks (id),
    parent_task BLOB REFERENCES tasks (id),
    from_agent BLOB NOT NULL REFERENCES agents (id),
    to_agent BLOB NOT NULL REFERENCES agents (id),
    context TEXT,
    required_capabilities TEXT NOT NULL,
    price INTEGER CHECK (price >= 0),
    created_at INTEGER NOT NULL,
    accepted_at INTEGER,
    declined_at INTEGER,
    reason TEXT,
    -- Whether the task of a declined one is still to be cancelled.
    to_cancel INTEGER NOT NULL DEFAULT 0,
    CHECK (accepted_at IS NULL OR declined_at IS NULL)
) WITHOUT ROWID, STRICT;

CREATE INDEX handoffs_to_cancel ON handoffs (message) WHERE to_cancel = 1;
