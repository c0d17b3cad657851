-- What was revoked since a time is read in this order.
DROP INDEX credentials_by_revocation;
CREATE INDEX credentials_by_revocation ON credentials (revoked_at, id) WHERE revoked_at IS NOT NULL;
