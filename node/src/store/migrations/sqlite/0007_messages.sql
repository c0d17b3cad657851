-- Messages between agents, in the order in which they were accepted. What is not settled is `open`. There are no references
-- to agents: those are never deleted, and looking them up twice for each message costs what it saves nobody.
CREATE TABLE messages (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    from_agent BLOB NOT NULL,
    to_agent BLOB NOT NULL,
    open INTEGER NOT NULL,
    status TEXT NOT NULL,
    guarantee TEXT NOT NULL,
    version TEXT NOT NULL,
    retries INTEGER NOT NULL DEFAULT 0,
    inserted_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    delivered_at INTEGER,
    acknowledged_at INTEGER,
    kind TEXT NOT NULL,
    reason TEXT,
    dedup_key TEXT,
    signature TEXT,
    -- Under exactly_once: by what a repeat is known, and the hash of what it must repeat.
    once_key TEXT,
    once_hash BLOB,
    -- None once it has expired.
    payload TEXT
) STRICT;

CREATE INDEX messages_open ON messages (to_agent, seq) WHERE open = 1;
CREATE INDEX messages_by_sender ON messages (from_agent, seq);
CREATE INDEX messages_by_recipient ON messages (to_agent, seq);
CREATE UNIQUE INDEX messages_once ON messages (from_agent, once_key) WHERE once_key IS NOT NULL;

-- Up to where messages have expired. A place is never given again, so it is also the least there is.
CREATE TABLE messages_swept (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    expired_upto INTEGER NOT NULL
) STRICT;
INSERT INTO messages_swept (one, expired_upto) VALUES (1, 0);
