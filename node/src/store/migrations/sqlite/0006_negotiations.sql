CREATE TABLE negotiations (
    id BLOB PRIMARY KEY,
    -- Orders lists: the id may be the client's choice and say nothing of time.
    listed_as BLOB NOT NULL UNIQUE,
    -- One more with every change, which names the one it found.
    version INTEGER NOT NULL,
    client BLOB NOT NULL REFERENCES agents (id),
    client_key BLOB,
    provider BLOB NOT NULL REFERENCES agents (id),
    provider_key BLOB,
    opened_by TEXT NOT NULL,
    task BLOB REFERENCES tasks (id),
    base_price INTEGER NOT NULL CHECK (base_price >= 0),
    terms TEXT NOT NULL,
    terms_sha256 BLOB NOT NULL,
    offers TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    ended_by BLOB,
    reason TEXT,
    agreement BLOB,
    CHECK (client <> provider),
    CHECK ((status = 'accepted') = (agreement IS NOT NULL))
) WITHOUT ROWID, STRICT;

CREATE INDEX negotiations_by_client ON negotiations (client, listed_as);
CREATE INDEX negotiations_by_provider ON negotiations (provider, listed_as);
CREATE INDEX negotiations_open ON negotiations (expires_at) WHERE status = 'open';
CREATE INDEX negotiations_open_of_client ON negotiations (client) WHERE status = 'open';
CREATE INDEX negotiations_open_of_provider ON negotiations (provider) WHERE status = 'open';

-- Never changed: the document is what was signed, byte for byte. One of a negotiation at most.
CREATE TABLE agreements (
    id BLOB PRIMARY KEY,
    negotiation BLOB NOT NULL UNIQUE REFERENCES negotiations (id),
    client BLOB NOT NULL REFERENCES agents (id),
    provider BLOB NOT NULL REFERENCES agents (id),
    created_at INTEGER NOT NULL,
    document TEXT NOT NULL
) WITHOUT ROWID, STRICT;

CREATE TRIGGER agreements_stay BEFORE UPDATE ON agreements
BEGIN SELECT RAISE(ABORT, 'agreements do not change'); END;
CREATE TRIGGER agreements_last BEFORE DELETE ON agreements
BEGIN SELECT RAISE(ABORT, 'agreements do not change'); END;
