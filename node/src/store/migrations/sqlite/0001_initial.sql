-- Ids are 16 bytes, times are milliseconds since 1970 (UTC), documents are JSON text, money is in millionths.

CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID, STRICT;

CREATE TABLE users (
    id BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL
) WITHOUT ROWID, STRICT;

CREATE TABLE agents (
    id BLOB PRIMARY KEY,
    owner BLOB REFERENCES users (id),
    name TEXT NOT NULL,
    did TEXT NOT NULL UNIQUE,
    capabilities TEXT NOT NULL,
    pricing_model TEXT NOT NULL,
    base_price INTEGER NOT NULL CHECK (base_price >= 0),
    public_key BLOB,
    protocol_versions TEXT NOT NULL,
    metadata TEXT NOT NULL,
    status TEXT NOT NULL,
    tasks_completed INTEGER NOT NULL DEFAULT 0 CHECK (tasks_completed >= 0),
    tasks_failed INTEGER NOT NULL DEFAULT 0 CHECK (tasks_failed >= 0),
    -- Follows from the two counts (muster-protocol, agent::reputation); kept for the index.
    reputation REAL NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    last_seen_at INTEGER
) WITHOUT ROWID, STRICT;

CREATE INDEX agents_by_owner ON agents (owner, id);
CREATE INDEX agents_by_rank ON agents (status, reputation DESC, base_price, id);

CREATE TABLE agent_capabilities (
    capability TEXT NOT NULL,
    agent BLOB NOT NULL REFERENCES agents (id),
    PRIMARY KEY (capability, agent)
) WITHOUT ROWID, STRICT;

CREATE INDEX capabilities_by_agent ON agent_capabilities (agent);

-- Keys that were replaced: records signed with them stay verifiable.
CREATE TABLE former_public_keys (
    agent BLOB NOT NULL REFERENCES agents (id),
    replaced_at INTEGER NOT NULL,
    public_key BLOB NOT NULL,
    PRIMARY KEY (agent, replaced_at)
) WITHOUT ROWID, STRICT;

CREATE TABLE credentials (
    id BLOB PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    agent BLOB REFERENCES agents (id),
    user BLOB REFERENCES users (id),
    label TEXT,
    scopes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    -- The key a session was had by.
    parent BLOB,
    CHECK ((agent IS NULL) <> (user IS NULL))
) WITHOUT ROWID, STRICT;

CREATE INDEX credentials_by_agent ON credentials (agent);
CREATE INDEX credentials_by_user ON credentials (user);
CREATE INDEX credentials_by_revocation ON credentials (revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX credentials_by_expiry ON credentials (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX credentials_by_parent ON credentials (parent) WHERE parent IS NOT NULL;

CREATE TABLE blocks (
    agent BLOB NOT NULL REFERENCES agents (id),
    other BLOB NOT NULL REFERENCES agents (id),
    until INTEGER,
    PRIMARY KEY (agent, other)
) WITHOUT ROWID, STRICT;

CREATE INDEX blocks_by_other ON blocks (other);

CREATE TABLE tasks (
    id BLOB PRIMARY KEY,
    status TEXT NOT NULL,
    client BLOB NOT NULL REFERENCES agents (id),
    client_owner BLOB REFERENCES users (id),
    provider BLOB NOT NULL REFERENCES agents (id),
    capability TEXT NOT NULL,
    input TEXT NOT NULL,
    output TEXT,
    error TEXT,
    max_price INTEGER CHECK (max_price >= 0),
    external_client TEXT,
    hiring BLOB,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    ended_at INTEGER,
    -- Whether chunks of the ended task are still to be dropped.
    has_chunks INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID, STRICT;

CREATE INDEX tasks_by_client ON tasks (client, id);
CREATE INDEX tasks_by_provider ON tasks (provider, id);
CREATE INDEX tasks_by_client_owner ON tasks (client_owner, id);
CREATE INDEX tasks_by_hiring ON tasks (hiring) WHERE hiring IS NOT NULL;
CREATE INDEX tasks_to_purge ON tasks (ended_at) WHERE has_chunks = 1 AND ended_at IS NOT NULL;

CREATE TABLE hirings (
    id BLOB PRIMARY KEY,
    user BLOB REFERENCES users (id),
    client BLOB NOT NULL REFERENCES agents (id),
    agent BLOB NOT NULL REFERENCES agents (id),
    agent_did TEXT NOT NULL,
    task BLOB NOT NULL REFERENCES tasks (id),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) WITHOUT ROWID, STRICT;

CREATE INDEX hirings_by_user ON hirings (user, id);
CREATE INDEX hirings_by_client ON hirings (client, id);
CREATE INDEX hirings_by_agent ON hirings (agent, id);

CREATE TABLE timeline (
    task BLOB NOT NULL REFERENCES tasks (id),
    entry INTEGER NOT NULL,
    at INTEGER NOT NULL,
    event TEXT NOT NULL,
    agent BLOB,
    PRIMARY KEY (task, entry)
) WITHOUT ROWID, STRICT;

CREATE TABLE notes (
    task BLOB NOT NULL REFERENCES tasks (id),
    id BLOB NOT NULL,
    from_agent BLOB,
    from_user BLOB,
    content TEXT NOT NULL,
    inserted_at INTEGER NOT NULL,
    PRIMARY KEY (task, id)
) WITHOUT ROWID, STRICT;

-- The head of a task's log. `epoch` fences off writers of an earlier life, `closed` those after the task's end.
CREATE TABLE streams (
    task BLOB PRIMARY KEY REFERENCES tasks (id),
    epoch INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    closed INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID, STRICT;

CREATE TABLE chunks (
    task BLOB NOT NULL,
    seq INTEGER NOT NULL,
    key TEXT,
    body BLOB NOT NULL,
    PRIMARY KEY (task, seq)
) WITHOUT ROWID, STRICT;

CREATE UNIQUE INDEX chunks_by_key ON chunks (task, key) WHERE key IS NOT NULL;
