-- Requests that are done once. `key` is a hash of whose key it is, for what, and of the key itself; `attempt` tells whose
-- answer is kept when a request was begun again.
CREATE TABLE keyed_requests (
    key BLOB PRIMARY KEY,
    fingerprint BLOB NOT NULL,
    attempt BLOB NOT NULL,
    state TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    lease_until INTEGER NOT NULL,
    status INTEGER,
    body BLOB
) STRICT;

CREATE INDEX keyed_requests_by_age ON keyed_requests (created_at);
