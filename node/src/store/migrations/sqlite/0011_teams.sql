-- The record is one document (muster-protocol, team::Team); what is beside it is what is looked for.
CREATE TABLE teams (
    id BLOB PRIMARY KEY,
    owner BLOB NOT NULL REFERENCES agents (id),
    version INTEGER NOT NULL,
    due_at INTEGER,
    body TEXT NOT NULL
) WITHOUT ROWID, STRICT;

CREATE INDEX teams_by_owner ON teams (owner);
CREATE INDEX teams_by_due ON teams (due_at) WHERE due_at IS NOT NULL;

CREATE TABLE team_members (
    agent BLOB NOT NULL REFERENCES agents (id),
    team BLOB NOT NULL REFERENCES teams (id),
    PRIMARY KEY (agent, team)
) WITHOUT ROWID, STRICT;

CREATE INDEX team_members_by_team ON team_members (team);

CREATE TABLE team_entries (
    team BLOB NOT NULL REFERENCES teams (id),
    id BLOB NOT NULL,
    kind TEXT NOT NULL,
    author BLOB NOT NULL,
    body TEXT NOT NULL,
    inserted_at INTEGER NOT NULL,
    PRIMARY KEY (team, id)
) WITHOUT ROWID, STRICT;

CREATE INDEX team_entries_by_kind ON team_entries (team, kind, id);
