-- Tasks that were handed over with a message. A row outlives its message: who has paid for what is known for good.
CREATE TABLE handoffs (
    message uuid PRIMARY KEY,
    task uuid NOT NULL UNIQUE REFERENCES tasks (id),
    parent_task uuid REFERENCES tasks (id),
    from_agent uuid NOT NULL REFERENCES agents (id),
    to_agent uuid NOT NULL REFERENCES agents (id),
    context text,
    required_capabilities text NOT NULL,
    price bigint CHECK (price >= 0),
    created_at bigint NOT NULL,
    accepted_at bigint,
    declined_at bigint,
    reason text,
    -- Whether the task of a declined one is still to be cancelled.
    to_cancel boolean NOT NULL DEFAULT false,
    CHECK (accepted_at IS NULL OR declined_at IS NULL)
);

CREATE INDEX handoffs_to_cancel ON handoffs (message) WHERE to_cancel;
