//! Teams, as SQL.

use async_trait::async_trait;
use muster_actors::store::{Page, PageRequest, StoreError, StoreResult, TeamStore};
use muster_protocol::ids::{AgentId, EntryId, TeamId};
use muster_protocol::json::Json;
use muster_protocol::team::{Entry, EntryKind, Team};
use muster_protocol::time::Timestamp;
use tokio_postgres::Row;

use super::PostgresStore;
use super::agents;
use super::columns::{Id, broken, id, id_bytes, time};
use super::pool::{Connection, Failure};
use crate::store::sql::{FORGOTTEN_AT_ONCE, before, page, page_rows, whole};

#[async_trait]
impl TeamStore for PostgresStore {
    async fn create_team(&self, team: Team, teams_max: usize) -> StoreResult<()> {
        let team = &team;
        self.pool.write(|c| async move { create(&c, team, teams_max).await }).await
    }

    async fn team(&self, id: TeamId) -> StoreResult<Team> {
        let sql = "SELECT body FROM teams WHERE id = $1";
        self.pool.read(|c| async move { read_team(&c.one(sql, &[&id!(id)]).await?) }).await
    }

    async fn save_team(&self, team: Team, entries: Vec<Entry>, most: (usize, usize)) -> StoreResult<()> {
        let (team, entries) = (&team, &entries);
        self.pool.write(|c| async move { save(&c, team, entries, most).await }).await
    }

    async fn teams_of(&self, agent: AgentId, page: PageRequest) -> StoreResult<Page<Team>> {
        self.pool.read(|c| async move { teams_of(&c, agent, &page).await }).await
    }

    async fn team_entries(
        &self,
        team: TeamId,
        kind: Option<EntryKind>,
        page: PageRequest,
    ) -> StoreResult<Page<Entry>> {
        self.pool.read(|c| async move { entries(&c, team, kind, &page).await }).await
    }

    async fn teams_due(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<TeamId>> {
        let sql = "SELECT id FROM teams WHERE due_at <= $1 ORDER BY due_at LIMIT $2";
        let read = |c: Connection| async move {
            let rows = c.query(sql, &[&now.unix_ms(), &whole::<usize>(limit)]).await?;
            rows.iter().map(|row| id_bytes(row, 0).map(TeamId::from_bytes)).collect()
        };
        self.pool.read(read).await
    }
}

/// Documents are bytes: what agents say may hold U+0000, which text cannot.
fn read_team(row: &Row) -> Result<Team, Failure> {
    serde_json::from_slice(row.try_get(0)?).map_err(|_| broken())
}

fn read_entry(row: &Row) -> Result<Entry, Failure> {
    let body: Vec<u8> = row.try_get(3)?;
    Ok(Entry {
        id: EntryId::from_bytes(id_bytes(row, 0)?),
        kind: EntryKind::parse(row.try_get(1)?).ok_or_else(broken)?,
        author: AgentId::from_bytes(id_bytes(row, 2)?),
        body: Json::from_trusted_bytes(body.into()),
        inserted_at: time(row, 4)?,
    })
}

async fn create(c: &Connection, team: &Team, teams_max: usize) -> Result<(), Failure> {
    // So that two at the same moment count each other.
    agents::lock(c, team.owner).await?;
    let made = c.count("SELECT count(*) FROM teams WHERE owner = $1", &[&id!(team.owner)]).await?;
    if made >= teams_max as u64 {
        return Err(StoreError::LimitReached.into());
    }
    c.execute(
        "INSERT INTO teams (id, owner, version, due_at, body) VALUES ($1, $2, $3, $4, $5)",
        &[
            &id!(team.id),
            &id!(team.owner),
            &whole::<u64>(team.version),
            &team.due_at().map(Timestamp::unix_ms),
            &Json::of(team).as_str().as_bytes(),
        ],
    )
    .await?;
    set_members(c, team).await
}

async fn set_members(c: &Connection, team: &Team) -> Result<(), Failure> {
    c.execute("DELETE FROM team_members WHERE team = $1", &[&id!(team.id)]).await?;
    let members: Vec<Id> = team.members.iter().map(|member| id!(member)).collect();
    c.execute(
        "INSERT INTO team_members (agent, team) SELECT x, $2 FROM unnest($1::uuid[]) x",
        &[&members, &id!(team.id)],
    )
    .await?;
    Ok(())
}

async fn save(c: &Connection, new: &Team, entries: &[Entry], most: (usize, usize)) -> Result<(), Failure> {
    let row = c.one("SELECT body FROM teams WHERE id = $1 FOR UPDATE", &[&id!(new.id)]).await?;
    let old = read_team(&row)?;
    if old.version + 1 != new.version {
        return Err(StoreError::Conflict.into());
    }
    c.execute(
        "UPDATE teams SET version = $1, due_at = $2, body = $3 WHERE id = $4",
        &[
            &whole::<u64>(new.version),
            &new.due_at().map(Timestamp::unix_ms),
            &Json::of(new).as_str().as_bytes(),
            &id!(new.id),
        ],
    )
    .await?;
    if old.members != new.members {
        set_members(c, new).await?;
    }
    for entry in entries {
        c.execute(
            "INSERT INTO team_entries (team, id, kind, author, body, inserted_at) VALUES ($1, $2, $3, $4, $5, $6)",
            &[
                &id!(new.id),
                &id!(entry.id),
                &entry.kind.as_str(),
                &id!(entry.author),
                &entry.body.as_str().as_bytes(),
                &entry.inserted_at.unix_ms(),
            ],
        )
        .await?;
    }
    if entries.is_empty() { Ok(()) } else { forget(c, new.id, entries, most).await }
}

async fn add(c: &Connection, team: TeamId, entries: i64, bytes: i64) -> Result<(i64, i64), Failure> {
    let sql = "UPDATE teams SET entries = entries + $1, entry_bytes = entry_bytes + $2 WHERE id = $3
               RETURNING entries, entry_bytes";
    let row = c.one(sql, &[&entries, &bytes, &id!(team)]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Counts what a team keeps with what has come, and forgets the oldest of it beyond so many and so many bytes. The team is
/// locked.
async fn forget(
    c: &Connection,
    team: TeamId,
    new: &[Entry],
    (rows_max, bytes_max): (usize, usize),
) -> Result<(), Failure> {
    let bytes: usize = new.iter().map(|entry| entry.body.as_bytes().len()).sum();
    let mut kept = add(c, team, whole(new.len()), whole(bytes)).await?;
    let over = |kept: (i64, i64)| kept.0 > whole(rows_max) || kept.1 > whole(bytes_max);
    // The newest always stays. The rest of a large excess, as after a bound was lowered, goes with what is said next.
    for _ in 0..FORGOTTEN_AT_ONCE {
        if !over(kept) || kept.0 <= 1 {
            break;
        }
        let sql = "DELETE FROM team_entries WHERE team = $1
                       AND id = (SELECT id FROM team_entries WHERE team = $1 ORDER BY id LIMIT 1)
                   RETURNING octet_length(body)::bigint";
        let Some(row) = c.optional(sql, &[&id!(team)]).await? else { break };
        kept = add(c, team, -1, -row.try_get::<_, i64>(0)?).await?;
    }
    Ok(())
}

async fn teams_of(c: &Connection, agent: AgentId, request: &PageRequest) -> Result<Page<Team>, Failure> {
    let total = c.count("SELECT count(*) FROM team_members WHERE agent = $1", &[&id!(agent)]).await?;
    let sql = "SELECT body FROM team_members JOIN teams ON id = team WHERE agent = $1 AND team < $2
        ORDER BY team DESC LIMIT $3";
    let rows = c.query(sql, &[&id!(agent), &Id(before(request)), &page_rows(request)]).await?;
    let items = rows.iter().map(read_team).collect::<Result<Vec<_>, _>>()?;
    Ok(page(items, request.limit, total, |team| *team.id.as_bytes()))
}

async fn entries(
    c: &Connection,
    team: TeamId,
    kind: Option<EntryKind>,
    request: &PageRequest,
) -> Result<Page<Entry>, Failure> {
    let (team, kind) = (id!(team), kind.map(EntryKind::as_str));
    let sql = "SELECT count(*) FROM team_entries WHERE team = $1 AND ($2::text IS NULL OR kind = $2)";
    let total = c.count(sql, &[&team, &kind]).await?;
    let sql = "SELECT id, kind, author, body, inserted_at FROM team_entries
        WHERE team = $1 AND ($2::text IS NULL OR kind = $2) AND id < $3 ORDER BY id DESC LIMIT $4";
    let rows = c.query(sql, &[&team, &kind, &Id(before(request)), &page_rows(request)]).await?;
    let items = rows.iter().map(read_entry).collect::<Result<Vec<_>, _>>()?;
    Ok(page(items, request.limit, total, |entry| *entry.id.as_bytes()))
}
