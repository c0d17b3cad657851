-- Messages between agents. What is not settled is `open`. A message that was answered before another was sent has the lower
-- place; of messages that were on their way at several nodes at once none is the first.
CREATE SEQUENCE message_seqs;
CREATE TABLE messages (
    seq bigint PRIMARY KEY DEFAULT nextval('message_seqs'),
    id uuid NOT NULL UNIQUE,
    from_agent uuid NOT NULL,
    to_agent uuid NOT NULL,
    open boolean NOT NULL,
    status text COLLATE "C" NOT NULL,
    guarantee text COLLATE "C" NOT NULL,
    version text COLLATE "C" NOT NULL,
    retries bigint NOT NULL DEFAULT 0,
    inserted_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    delivered_at bigint,
    acknowledged_at bigint,
    kind text COLLATE "C" NOT NULL,
    reason text,
    dedup_key text COLLATE "C",
    signature text,
    -- Under exactly_once: by what a repeat is known, and the hash of what it must repeat.
    once_key text COLLATE "C",
    once_hash bytea,
    -- None once it has expired.
    payload text
) WITH (fillfactor = 80);

CREATE INDEX messages_open ON messages (to_agent, seq) WHERE open;
CREATE INDEX messages_by_sender ON messages (from_agent, seq);
CREATE INDEX messages_by_recipient ON messages (to_agent, seq);
CREATE UNIQUE INDEX messages_once ON messages (from_agent, once_key) WHERE once_key IS NOT NULL;

-- Up to where messages have expired; locked by whoever goes on from there.
CREATE TABLE messages_swept (
    one boolean PRIMARY KEY CHECK (one),
    expired_upto bigint NOT NULL
);
INSERT INTO messages_swept (one, expired_upto) VALUES (true, 0);
