-- Requests that are done once. `key` is a hash of whose key it is, for what, and of the key itself; `attempt` tells whose
-- answer is kept when a request was begun again.
CREATE TABLE keyed_requests (
    key bytea PRIMARY KEY,
    fingerprint bytea NOT NULL,
    attempt bytea NOT NULL,
    state text NOT NULL,
    created_at bigint NOT NULL,
    lease_until bigint NOT NULL,
    status integer,
    body bytea
);

CREATE INDEX keyed_requests_by_age ON keyed_requests (created_at);
