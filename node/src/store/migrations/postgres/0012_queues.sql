-- What waits is bounded by bytes and by sender too, and is counted in an index alone. What was not received is found by how it
-- ended: `lost` is the status of what has failed, was rejected or has expired. An index of the status itself would be written
-- with each push.
ALTER TABLE messages ADD COLUMN bytes bigint NOT NULL DEFAULT 0;
ALTER TABLE messages ADD COLUMN lost text COLLATE "C";
UPDATE messages SET bytes = octet_length(payload) WHERE open AND payload IS NOT NULL;
UPDATE messages SET lost = status WHERE status IN ('failed', 'rejected', 'expired');
DROP INDEX messages_open;
CREATE INDEX messages_open ON messages (to_agent, seq) INCLUDE (from_agent, bytes) WHERE open;
-- Nodes of an older version do not say it.
CREATE FUNCTION messages_say_what_is_lost() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.lost := NEW.status;
    RETURN NEW;
END
$$;
CREATE TRIGGER messages_say_what_is_lost BEFORE UPDATE OF status ON messages
FOR EACH ROW WHEN (NEW.status IN ('failed', 'rejected', 'expired') AND NEW.lost IS DISTINCT FROM NEW.status)
EXECUTE FUNCTION messages_say_what_is_lost();
CREATE INDEX messages_lost_by_sender ON messages (from_agent, lost, seq) WHERE lost IS NOT NULL;
CREATE INDEX messages_lost_by_recipient ON messages (to_agent, lost, seq) WHERE lost IS NOT NULL;

-- A place for a delivery is looked for in one part of those that wait.
CREATE INDEX deliveries_by_part ON deliveries (webhook, id);

-- What a team keeps, so that nobody counts it.
ALTER TABLE teams ADD COLUMN entries bigint NOT NULL DEFAULT 0;
ALTER TABLE teams ADD COLUMN entry_bytes bigint NOT NULL DEFAULT 0;
UPDATE teams SET
    entries = (SELECT count(*) FROM team_entries WHERE team = teams.id),
    entry_bytes = (SELECT coalesce(sum(octet_length(body)), 0) FROM team_entries WHERE team = teams.id);
