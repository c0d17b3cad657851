CREATE TABLE negotiations (
    id uuid PRIMARY KEY,
    -- Orders lists: the id may be the client's choice and say nothing of time.
    listed_as uuid NOT NULL UNIQUE,
    -- One more with every change, which names the one it found.
    version bigint NOT NULL,
    client uuid NOT NULL REFERENCES agents (id),
    client_key bytea,
    provider uuid NOT NULL REFERENCES agents (id),
    provider_key bytea,
    opened_by text NOT NULL,
    task uuid REFERENCES tasks (id),
    base_price bigint NOT NULL CHECK (base_price >= 0),
    terms text NOT NULL,
    terms_sha256 bytea NOT NULL,
    offers text NOT NULL,
    status text NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    ended_by uuid,
    reason text,
    agreement uuid,
    CHECK (client <> provider),
    CHECK ((status = 'accepted') = (agreement IS NOT NULL))
);

CREATE INDEX negotiations_by_client ON negotiations (client, listed_as);
CREATE INDEX negotiations_by_provider ON negotiations (provider, listed_as);
CREATE INDEX negotiations_open ON negotiations (expires_at) WHERE status = 'open';
CREATE INDEX negotiations_open_of_client ON negotiations (client) WHERE status = 'open';
CREATE INDEX negotiations_open_of_provider ON negotiations (provider) WHERE status = 'open';

-- Never changed: the document is what was signed, byte for byte. One of a negotiation at most.
CREATE TABLE agreements (
    id uuid PRIMARY KEY,
    negotiation uuid NOT NULL UNIQUE REFERENCES negotiations (id),
    client uuid NOT NULL REFERENCES agents (id),
    provider uuid NOT NULL REFERENCES agents (id),
    created_at bigint NOT NULL,
    document text NOT NULL
);

CREATE FUNCTION agreements_stay() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'agreements do not change';
END
$$;
CREATE TRIGGER agreements_stay BEFORE UPDATE OR DELETE ON agreements
FOR EACH ROW EXECUTE FUNCTION agreements_stay();
