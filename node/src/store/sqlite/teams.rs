//! Teams, as SQL.

use async_trait::async_trait;
use muster_actors::store::{Page, PageRequest, StoreError, StoreResult, TeamStore};
use muster_protocol::ids::{AgentId, EntryId, TeamId};
use muster_protocol::json::Json;
use muster_protocol::team::{Entry, EntryKind, Team};
use muster_protocol::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::columns::{count, id_bytes, json, rows, time};
use super::{SqliteStore, sql_error};
use crate::store::sql::{FORGOTTEN_AT_ONCE, before, page, page_rows, whole};

#[async_trait]
impl TeamStore for SqliteStore {
    async fn create_team(&self, team: Team, teams_max: usize) -> StoreResult<()> {
        self.write(move |c| create(c, &team, teams_max)).await
    }

    async fn team(&self, id: TeamId) -> StoreResult<Team> {
        self.read(move |c| team(c, id)).await
    }

    async fn save_team(&self, team: Team, entries: Vec<Entry>, most: (usize, usize)) -> StoreResult<()> {
        self.write(move |c| save(c, &team, &entries, most)).await
    }

    async fn teams_of(&self, agent: AgentId, page: PageRequest) -> StoreResult<Page<Team>> {
        self.read(move |c| teams_of(c, agent, &page)).await
    }

    async fn team_entries(
        &self,
        team: TeamId,
        kind: Option<EntryKind>,
        page: PageRequest,
    ) -> StoreResult<Page<Entry>> {
        self.read(move |c| entries(c, team, kind, &page)).await
    }

    async fn teams_due(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<TeamId>> {
        let sql = "SELECT id FROM teams WHERE due_at <= ?1 ORDER BY due_at LIMIT ?2";
        let read = |row: &Row<'_>| id_bytes(row, 0).map(TeamId::from_bytes);
        self.read(move |c| rows(c, sql, &[&now.unix_ms(), &whole::<usize>(limit)], read)).await
    }
}

fn read_team(row: &Row<'_>) -> rusqlite::Result<Team> {
    let body: String = row.get(0)?;
    serde_json::from_str(&body).map_err(|_| rusqlite::Error::InvalidQuery)
}

fn read_entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let kind: String = row.get(1)?;
    Ok(Entry {
        id: EntryId::from_bytes(id_bytes(row, 0)?),
        kind: EntryKind::parse(&kind).ok_or(rusqlite::Error::InvalidQuery)?,
        author: AgentId::from_bytes(id_bytes(row, 2)?),
        body: json(row, 3)?,
        inserted_at: time(row, 4)?,
    })
}

fn create(c: &Connection, team: &Team, teams_max: usize) -> StoreResult<()> {
    let made = count(c, "SELECT count(*) FROM teams WHERE owner = ?1", &[team.owner.as_bytes()])?;
    if made >= teams_max as u64 {
        return Err(StoreError::LimitReached);
    }
    c.prepare_cached("INSERT INTO teams (id, owner, version, due_at, body) VALUES (?1, ?2, ?3, ?4, ?5)")
        .and_then(|mut s| {
            s.execute(params![
                team.id.as_bytes(),
                team.owner.as_bytes(),
                whole::<u64>(team.version),
                team.due_at().map(Timestamp::unix_ms),
                Json::of(team).as_str()
            ])
        })
        .map_err(sql_error)?;
    set_members(c, team)
}

fn set_members(c: &Connection, team: &Team) -> StoreResult<()> {
    c.prepare_cached("DELETE FROM team_members WHERE team = ?1")
        .and_then(|mut s| s.execute([team.id.as_bytes()]))
        .map_err(sql_error)?;
    let mut insert =
        c.prepare_cached("INSERT INTO team_members (agent, team) VALUES (?1, ?2)").map_err(sql_error)?;
    for member in &team.members {
        insert.execute(params![member.as_bytes(), team.id.as_bytes()]).map_err(sql_error)?;
    }
    Ok(())
}

fn team(c: &Connection, id: TeamId) -> StoreResult<Team> {
    c.prepare_cached("SELECT body FROM teams WHERE id = ?1")
        .and_then(|mut s| s.query_row([id.as_bytes()], read_team))
        .map_err(sql_error)
}

fn save(c: &Connection, new: &Team, entries: &[Entry], most: (usize, usize)) -> StoreResult<()> {
    let old = team(c, new.id)?;
    if old.version + 1 != new.version {
        return Err(StoreError::Conflict);
    }
    c.prepare_cached("UPDATE teams SET version = ?1, due_at = ?2, body = ?3 WHERE id = ?4")
        .and_then(|mut s| {
            s.execute(params![
                whole::<u64>(new.version),
                new.due_at().map(Timestamp::unix_ms),
                Json::of(new).as_str(),
                new.id.as_bytes()
            ])
        })
        .map_err(sql_error)?;
    if old.members != new.members {
        set_members(c, new)?;
    }
    for entry in entries {
        c.prepare_cached(
            "INSERT INTO team_entries (team, id, kind, author, body, inserted_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )
        .and_then(|mut s| {
            s.execute(params![
                new.id.as_bytes(),
                entry.id.as_bytes(),
                entry.kind.as_str(),
                entry.author.as_bytes(),
                entry.body.as_str(),
                entry.inserted_at.unix_ms()
            ])
        })
        .map_err(sql_error)?;
    }
    if entries.is_empty() { Ok(()) } else { forget(c, new.id, entries, most) }
}

/// Counts what a team keeps with what has come, and forgets the oldest of it beyond so many and so many bytes.
fn forget(
    c: &Connection,
    team: TeamId,
    new: &[Entry],
    (rows_max, bytes_max): (usize, usize),
) -> StoreResult<()> {
    let add = |entries: i64, bytes: i64| {
        c.prepare_cached(
            "UPDATE teams SET entries = entries + ?1, entry_bytes = entry_bytes + ?2 WHERE id = ?3
             RETURNING entries, entry_bytes",
        )
        .and_then(|mut s| {
            s.query_row(params![entries, bytes, team.as_bytes()], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })
        })
        .map_err(sql_error)
    };
    let bytes: usize = new.iter().map(|entry| entry.body.as_bytes().len()).sum();
    let mut kept = add(whole(new.len()), whole(bytes))?;
    let over = |kept: (i64, i64)| kept.0 > whole(rows_max) || kept.1 > whole(bytes_max);
    // The newest always stays. The rest of a large excess, as after a bound was lowered, goes with what is said next.
    for _ in 0..FORGOTTEN_AT_ONCE {
        if !over(kept) || kept.0 <= 1 {
            break;
        }
        let forgotten: Option<i64> = c
            .prepare_cached(
                "DELETE FROM team_entries WHERE team = ?1 AND id = (SELECT min(id) FROM team_entries WHERE team = ?1)
                 RETURNING length(CAST(body AS BLOB))",
            )
            .and_then(|mut s| s.query_row([team.as_bytes()], |row| row.get(0)).optional())
            .map_err(sql_error)?;
        let Some(bytes) = forgotten else { break };
        kept = add(-1, -bytes)?;
    }
    Ok(())
}

fn teams_of(c: &Connection, agent: AgentId, request: &PageRequest) -> StoreResult<Page<Team>> {
    let total = count(c, "SELECT count(*) FROM team_members WHERE agent = ?1", &[agent.as_bytes()])?;
    let sql = "SELECT body FROM team_members JOIN teams ON id = team WHERE agent = ?1 AND team < ?2
        ORDER BY team DESC LIMIT ?3";
    let items = rows(c, sql, &[agent.as_bytes(), &before(request), &page_rows(request)], read_team)?;
    Ok(page(items, request.limit, total, |team| *team.id.as_bytes()))
}

fn entries(
    c: &Connection,
    team: TeamId,
    kind: Option<EntryKind>,
    request: &PageRequest,
) -> StoreResult<Page<Entry>> {
    let kind = kind.map(EntryKind::as_str);
    let sql = "SELECT count(*) FROM team_entries WHERE team = ?1 AND (?2 IS NULL OR kind = ?2)";
    let total = count(c, sql, &[team.as_bytes(), &kind])?;
    let sql = "SELECT id, kind, author, body, inserted_at FROM team_entries
        WHERE team = ?1 AND (?2 IS NULL OR kind = ?2) AND id < ?3 ORDER BY id DESC LIMIT ?4";
    let items = rows(c, sql, &[team.as_bytes(), &kind, &before(request), &page_rows(request)], read_entry)?;
    Ok(page(items, request.limit, total, |entry| *entry.id.as_bytes()))
}
