-- Figures, in a database of their own. `span` is the length of the interval in minutes, `at` its beginning; an agent of
-- zeros stands for all of them together.
CREATE TABLE figures (
    agent BLOB NOT NULL,
    span INTEGER NOT NULL,
    at INTEGER NOT NULL,
    capability TEXT NOT NULL,
    tasks_created INTEGER NOT NULL DEFAULT 0,
    tasks_completed INTEGER NOT NULL DEFAULT 0,
    tasks_failed INTEGER NOT NULL DEFAULT 0,
    tasks_cancelled INTEGER NOT NULL DEFAULT 0,
    duration_ms INTEGER NOT NULL DEFAULT 0,
    chunks INTEGER NOT NULL DEFAULT 0,
    messages_sent INTEGER NOT NULL DEFAULT 0,
    messages_received INTEGER NOT NULL DEFAULT 0,
    messages_dead INTEGER NOT NULL DEFAULT 0,
    revenue INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (agent, span, at, capability)
) WITHOUT ROWID, STRICT;

CREATE INDEX figures_by_time ON figures (span, at);

-- What each node said last of its load.
CREATE TABLE loads (
    node TEXT PRIMARY KEY,
    load REAL NOT NULL,
    at INTEGER NOT NULL
) WITHOUT ROWID, STRICT;
