-- Which agents were stopped since a time is read in this order.
CREATE INDEX agents_by_stop ON agents (updated_at, id) WHERE status IN ('suspended', 'banned');
