-- Double entry: what an entry posts adds up to 0, and each operation has one entry. `kind`, `account` and `side` name an
-- account: an agent's or user's id, a task's (escrow), a payment channel's with its side (1 who opened it, 2 the other), or
-- zeros (external, fees). `holder` is the agent whose money is held there.
CREATE TABLE ledger_accounts (
    kind TEXT NOT NULL,
    account BLOB NOT NULL,
    side INTEGER NOT NULL,
    holder BLOB,
    balance INTEGER NOT NULL,
    -- Whether its owner or the operator ever put money in: nobody else decides who pays here.
    funded INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (kind, account, side),
    CHECK (balance >= 0 OR kind = 'external')
) WITHOUT ROWID, STRICT;

-- Of what is held now: what was held once is nothing, and stays.
CREATE INDEX ledger_accounts_by_holder ON ledger_accounts (holder, balance) WHERE balance > 0;

CREATE TABLE ledger_entries (
    id BLOB PRIMARY KEY,
    kind TEXT NOT NULL,
    operation TEXT NOT NULL UNIQUE,
    reference TEXT,
    at INTEGER NOT NULL
) WITHOUT ROWID, STRICT;

CREATE TABLE ledger_postings (
    kind TEXT NOT NULL,
    account BLOB NOT NULL,
    side INTEGER NOT NULL,
    entry BLOB NOT NULL REFERENCES ledger_entries (id),
    delta INTEGER NOT NULL CHECK (delta <> 0),
    PRIMARY KEY (kind, account, side, entry),
    FOREIGN KEY (kind, account, side) REFERENCES ledger_accounts (kind, account, side)
) WITHOUT ROWID, STRICT;

CREATE INDEX ledger_postings_by_entry ON ledger_postings (entry);

-- What a task costs, what of it the platform takes on release, and where it is.
-- The request under a key that made a task: it makes no second one.
ALTER TABLE tasks ADD COLUMN request BLOB;
CREATE UNIQUE INDEX tasks_by_request ON tasks (request) WHERE request IS NOT NULL;
ALTER TABLE tasks ADD COLUMN price INTEGER CHECK (price >= 0);
ALTER TABLE tasks ADD COLUMN fee INTEGER NOT NULL DEFAULT 0 CHECK (fee >= 0);
ALTER TABLE tasks ADD COLUMN escrow TEXT NOT NULL DEFAULT 'none'
    CHECK (escrow IN ('none', 'held', 'released', 'refunded'));

-- `document` is the whole record; the columns are what is searched for or must hold whatever the program does.
CREATE TABLE payment_channels (
    id BLOB PRIMARY KEY,
    version INTEGER NOT NULL,
    status TEXT NOT NULL,
    agent_a BLOB NOT NULL REFERENCES agents (id),
    agent_b BLOB NOT NULL REFERENCES agents (id),
    balance_a INTEGER NOT NULL CHECK (balance_a >= 0),
    balance_b INTEGER NOT NULL CHECK (balance_b >= 0),
    nonce INTEGER NOT NULL CHECK (nonce >= 0),
    -- When something is due, if nobody does anything before.
    due_at INTEGER,
    document TEXT NOT NULL,
    CHECK (agent_a <> agent_b)
) WITHOUT ROWID, STRICT;

CREATE INDEX payment_channels_by_a ON payment_channels (agent_a, id);
CREATE INDEX payment_channels_by_b ON payment_channels (agent_b, id);
CREATE INDEX payment_channels_by_status ON payment_channels (status, id);
CREATE INDEX payment_channels_by_due ON payment_channels (due_at) WHERE due_at IS NOT NULL;
