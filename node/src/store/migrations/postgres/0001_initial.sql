-- Times are milliseconds since 1970 (UTC), documents are JSON as text, byte for byte, money is in millionths. Text that is
-- sorted by is sorted by its bytes, as everywhere else.

CREATE TABLE meta (
    key text PRIMARY KEY,
    value bytea NOT NULL
);

-- Transactions of late: whoever lost the answer to a COMMIT finds out here what became of it. `writer` is one life of a
-- node, `number` rises.
CREATE SEQUENCE writers;
CREATE TABLE writes (
    writer bigint NOT NULL,
    number bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (writer, number)
);

CREATE TABLE users (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    created_at bigint NOT NULL
);

CREATE TABLE agents (
    id uuid PRIMARY KEY,
    owner uuid REFERENCES users (id),
    name text COLLATE "C" NOT NULL,
    did text COLLATE "C" NOT NULL UNIQUE,
    capabilities text NOT NULL,
    pricing_model text NOT NULL,
    base_price bigint NOT NULL CHECK (base_price >= 0),
    public_key bytea,
    protocol_versions text NOT NULL,
    metadata text NOT NULL,
    status text NOT NULL,
    tasks_completed bigint NOT NULL DEFAULT 0 CHECK (tasks_completed >= 0),
    tasks_failed bigint NOT NULL DEFAULT 0 CHECK (tasks_failed >= 0),
    -- Follows from the two counts (muster-protocol, agent::reputation); kept for the index.
    reputation double precision NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    last_seen_at bigint
);

CREATE INDEX agents_by_owner ON agents (owner, id);
CREATE INDEX agents_by_rank ON agents (status, reputation DESC, base_price, id);

CREATE TABLE agent_capabilities (
    capability text COLLATE "C" NOT NULL,
    agent uuid NOT NULL REFERENCES agents (id),
    PRIMARY KEY (capability, agent)
);

CREATE INDEX capabilities_by_agent ON agent_capabilities (agent);

-- Keys that were replaced: records signed with them stay verifiable.
CREATE TABLE former_public_keys (
    agent uuid NOT NULL REFERENCES agents (id),
    replaced_at bigint NOT NULL,
    public_key bytea NOT NULL,
    PRIMARY KEY (agent, replaced_at)
);

CREATE TABLE credentials (
    id uuid PRIMARY KEY,
    hash bytea NOT NULL UNIQUE,
    kind text NOT NULL,
    agent uuid REFERENCES agents (id),
    user_id uuid REFERENCES users (id),
    label text,
    scopes smallint NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint,
    revoked_at bigint,
    -- The key a session was had by.
    parent uuid,
    CHECK ((agent IS NULL) <> (user_id IS NULL))
);

CREATE INDEX credentials_by_agent ON credentials (agent);
CREATE INDEX credentials_by_user ON credentials (user_id);
CREATE INDEX credentials_by_revocation ON credentials (revoked_at, id) WHERE revoked_at IS NOT NULL;
CREATE INDEX credentials_by_expiry ON credentials (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX credentials_by_parent ON credentials (parent) WHERE parent IS NOT NULL;

CREATE TABLE blocks (
    agent uuid NOT NULL REFERENCES agents (id),
    other uuid NOT NULL REFERENCES agents (id),
    until bigint,
    PRIMARY KEY (agent, other)
);

CREATE INDEX blocks_by_other ON blocks (other);

CREATE TABLE tasks (
    id uuid PRIMARY KEY,
    status text NOT NULL,
    client uuid NOT NULL REFERENCES agents (id),
    client_owner uuid REFERENCES users (id),
    provider uuid NOT NULL REFERENCES agents (id),
    capability text NOT NULL,
    input text NOT NULL,
    output text,
    error text,
    max_price bigint CHECK (max_price >= 0),
    external_client text,
    hiring uuid,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    ended_at bigint,
    -- Whether chunks of the ended task are still to be dropped.
    has_chunks boolean NOT NULL DEFAULT false
);

CREATE INDEX tasks_by_client ON tasks (client, id);
CREATE INDEX tasks_by_provider ON tasks (provider, id);
CREATE INDEX tasks_by_client_owner ON tasks (client_owner, id);
CREATE INDEX tasks_by_hiring ON tasks (hiring) WHERE hiring IS NOT NULL;
CREATE INDEX tasks_to_purge ON tasks (ended_at) WHERE has_chunks AND ended_at IS NOT NULL;

CREATE TABLE hirings (
    id uuid PRIMARY KEY,
    user_id uuid REFERENCES users (id),
    client uuid NOT NULL REFERENCES agents (id),
    agent uuid NOT NULL REFERENCES agents (id),
    agent_did text NOT NULL,
    task uuid NOT NULL REFERENCES tasks (id),
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL
);

CREATE INDEX hirings_by_user ON hirings (user_id, id);
CREATE INDEX hirings_by_client ON hirings (client, id);
CREATE INDEX hirings_by_agent ON hirings (agent, id);

CREATE TABLE timeline (
    task uuid NOT NULL REFERENCES tasks (id),
    entry bigint NOT NULL,
    at bigint NOT NULL,
    event text NOT NULL,
    agent uuid,
    PRIMARY KEY (task, entry)
);

CREATE TABLE notes (
    task uuid NOT NULL REFERENCES tasks (id),
    id uuid NOT NULL,
    from_agent uuid,
    from_user uuid,
    -- UTF-8, but with U+0000, which text cannot have.
    content bytea NOT NULL,
    inserted_at bigint NOT NULL,
    PRIMARY KEY (task, id)
);

-- The head of a task's log. `epoch` is that of the last claim, `closed` fences off whoever comes after the task's end. Its
-- row is locked before the task's, by whatever changes either.
CREATE SEQUENCE stream_epochs;
CREATE TABLE streams (
    task uuid PRIMARY KEY REFERENCES tasks (id),
    epoch bigint NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    closed boolean NOT NULL DEFAULT false
) WITH (fillfactor = 70);

CREATE TABLE chunks (
    task uuid NOT NULL,
    seq bigint NOT NULL,
    key text COLLATE "C",
    body bytea NOT NULL,
    PRIMARY KEY (task, seq)
);

CREATE UNIQUE INDEX chunks_by_key ON chunks (task, key) WHERE key IS NOT NULL;
