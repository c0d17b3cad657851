-- Webhooks, what waits for them, and what came of it. The secret is kept as it is: deliveries are signed with it.
CREATE TABLE webhooks (
    id BLOB PRIMARY KEY,
    agent BLOB REFERENCES agents (id),
    user BLOB REFERENCES users (id),
    url TEXT NOT NULL,
    secret TEXT NOT NULL,
    events INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    failing_since INTEGER,
    disabled_at INTEGER,
    -- Whoever sends to it just now, until when, and when somebody did last.
    lease INTEGER,
    leased_until INTEGER NOT NULL DEFAULT 0,
    claimed_at INTEGER NOT NULL DEFAULT 0,
    CHECK ((agent IS NULL) <> (user IS NULL))
) WITHOUT ROWID, STRICT;

CREATE INDEX webhooks_by_agent ON webhooks (agent, id) WHERE agent IS NOT NULL;
CREATE INDEX webhooks_by_user ON webhooks (user, id) WHERE user IS NOT NULL;

CREATE TABLE deliveries (
    id BLOB PRIMARY KEY,
    webhook BLOB NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    event TEXT NOT NULL,
    data TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at INTEGER NOT NULL
) STRICT;

CREATE INDEX deliveries_by_due ON deliveries (webhook, due_at);

CREATE TABLE delivery_attempts (
    webhook BLOB NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    delivery BLOB NOT NULL,
    event TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    at INTEGER NOT NULL,
    status INTEGER,
    error TEXT,
    duration_ms INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (webhook, number)
) WITHOUT ROWID, STRICT;
