-- Webhooks, what waits for them, and what came of it. The secret is kept as it is: deliveries are signed with it.
CREATE TABLE webhooks (
    id uuid PRIMARY KEY,
    agent uuid REFERENCES agents (id),
    user_id uuid REFERENCES users (id),
    url text NOT NULL,
    secret text NOT NULL,
    events bigint NOT NULL,
    created_at bigint NOT NULL,
    failing_since bigint,
    disabled_at bigint,
    -- Whoever sends to it just now, until when, and when somebody did last.
    lease bigint,
    leased_until bigint NOT NULL DEFAULT 0,
    claimed_at bigint NOT NULL DEFAULT 0,
    CHECK ((agent IS NULL) <> (user_id IS NULL))
);

CREATE INDEX webhooks_by_agent ON webhooks (agent, id) WHERE agent IS NOT NULL;
CREATE INDEX webhooks_by_user ON webhooks (user_id, id) WHERE user_id IS NOT NULL;

CREATE TABLE deliveries (
    id uuid PRIMARY KEY,
    webhook uuid NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    event text NOT NULL,
    data text NOT NULL,
    created_at bigint NOT NULL,
    attempts bigint NOT NULL DEFAULT 0,
    due_at bigint NOT NULL
);

CREATE INDEX deliveries_by_due ON deliveries (webhook, due_at);

CREATE TABLE delivery_attempts (
    webhook uuid NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    number bigint NOT NULL,
    delivery uuid NOT NULL,
    event text NOT NULL,
    attempt bigint NOT NULL,
    at bigint NOT NULL,
    status bigint,
    error text,
    duration_ms bigint NOT NULL,
    outcome text NOT NULL,
    PRIMARY KEY (webhook, number)
);

-- Figures. `span` is the length of the interval in minutes, `at` its beginning; an agent of zeros stands for all of them
-- together. Nothing refers to it, and nobody waits for what is written here.
CREATE TABLE figures (
    agent uuid NOT NULL,
    span bigint NOT NULL,
    at bigint NOT NULL,
    capability text COLLATE "C" NOT NULL,
    tasks_created bigint NOT NULL DEFAULT 0,
    tasks_completed bigint NOT NULL DEFAULT 0,
    tasks_failed bigint NOT NULL DEFAULT 0,
    tasks_cancelled bigint NOT NULL DEFAULT 0,
    duration_ms bigint NOT NULL DEFAULT 0,
    chunks bigint NOT NULL DEFAULT 0,
    messages_sent bigint NOT NULL DEFAULT 0,
    messages_received bigint NOT NULL DEFAULT 0,
    messages_dead bigint NOT NULL DEFAULT 0,
    revenue bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (agent, span, at, capability)
);

CREATE INDEX figures_by_time ON figures (span, at);

-- What each node said last of its load.
CREATE TABLE loads (
    node text PRIMARY KEY,
    load double precision NOT NULL,
    at bigint NOT NULL
);
