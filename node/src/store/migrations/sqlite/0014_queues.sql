-- What waits is bounded by bytes and by sender too, and is counted in an index alone. What was not received is found by how it
-- ended: `lost` is the status of what has failed, was rejected or has expired.
ALTER TABLE messages ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE messages ADD COLUMN lost TEXT;
UPDATE messages SET bytes = length(CAST(payload AS BLOB)) WHERE open = 1 AND payload IS NOT NULL;
UPDATE messages SET lost = status WHERE status IN ('failed', 'rejected', 'expired');
DROP INDEX messages_open;
CREATE INDEX messages_open ON messages (to_agent, seq, from_agent, bytes) WHERE open = 1;
CREATE INDEX messages_lost_by_sender ON messages (from_agent, lost, seq) WHERE lost IS NOT NULL;
CREATE INDEX messages_lost_by_recipient ON messages (to_agent, lost, seq) WHERE lost IS NOT NULL;

-- A place for a delivery is looked for in one part of those that wait.
CREATE INDEX deliveries_by_part ON deliveries (webhook, id);

-- What a team keeps, so that nobody counts it.
ALTER TABLE teams ADD COLUMN entries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE teams ADD COLUMN entry_bytes INTEGER NOT NULL DEFAULT 0;
UPDATE teams SET
    entries = (SELECT count(*) FROM team_entries WHERE team = teams.id),
    entry_bytes = (SELECT coalesce(sum(length(CAST(body AS BLOB))), 0) FROM team_entries WHERE team = teams.id);
