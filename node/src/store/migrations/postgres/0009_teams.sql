-- The record is one document (muster-protocol, team::Team); what is beside it is what is looked for.
CREATE TABLE teams (
    id uuid PRIMARY KEY,
    owner uuid NOT NULL REFERENCES agents (id),
    version bigint NOT NULL,
    due_at bigint,
    body bytea NOT NULL
);

CREATE INDEX teams_by_owner ON teams (owner);
CREATE INDEX teams_by_due ON teams (due_at) WHERE due_at IS NOT NULL;

CREATE TABLE team_members (
    agent uuid NOT NULL REFERENCES agents (id),
    team uuid NOT NULL REFERENCES teams (id),
    PRIMARY KEY (agent, team)
);

CREATE INDEX team_members_by_team ON team_members (team);

CREATE TABLE team_entries (
    team uuid NOT NULL REFERENCES teams (id),
    id uuid NOT NULL,
    kind text NOT NULL,
    author uuid NOT NULL,
    body bytea NOT NULL,
    inserted_at bigint NOT NULL,
    PRIMARY KEY (team, id)
);

CREATE INDEX team_entries_by_kind ON team_entries (team, kind, id);
