//! Negotiations and agreements.

use async_trait::async_trait;
use muster_actors::store::{NegotiationFilter, NegotiationStore, Page, PageRequest, StoreError, StoreResult};
use muster_protocol::ids::{AgentId, AgreementId, NegotiationId, TaskId};
use muster_protocol::json::Json;
use muster_protocol::negotiation::agreement::Agreement;
use muster_protocol::negotiation::{Negotiation, Party, Side, Status};
use muster_protocol::signing::PublicKey;
use muster_protocol::signing::statement::Digest;
use muster_protocol::time::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};

use super::columns::{amount, count, id_bytes, json, listed, optional_id, rows, time};
use super::{SqliteStore, sql_error};
use crate::store::lists::{self, Dialect};
use crate::store::sql::{AGREEMENT_COLUMNS, NEGOTIATION_COLUMNS, whole};

#[async_trait]
impl NegotiationStore for SqliteStore {
    async fn server_seed(&self, first: [u8; 32]) -> StoreResult<[u8; 32]> {
        self.write(move |c| server_seed(c, first)).await
    }

    async fn create_negotiation(&self, negotiation: Negotiation, open_max: usize) -> StoreResult<()> {
        self.write(move |c| create(c, &negotiation, open_max)).await
    }

    async fn negotiation(&self, id: NegotiationId) -> StoreResult<Negotiation> {
        self.read(move |c| negotiation(c, id)).await
    }

    async fn negotiations(
        &self,
        filter: NegotiationFilter,
        page: PageRequest,
    ) -> StoreResult<Page<Negotiation>> {
        self.read(move |c| list(c, &filter, &page)).await
    }

    async fn change_negotiation(
        &self,
        version: u64,
        after: Negotiation,
        agreement: Option<Agreement>,
    ) -> StoreResult<()> {
        self.write(move |c| change(c, version, &after, agreement.as_ref())).await
    }

    async fn negotiations_due(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<NegotiationId>> {
        self.read(move |c| due(c, now, limit)).await
    }

    async fn agreement(&self, id: AgreementId) -> StoreResult<Agreement> {
        self.read(move |c| agreement(c, id)).await
    }
}

fn server_seed(c: &Connection, first: [u8; 32]) -> StoreResult<[u8; 32]> {
    c.prepare_cached("INSERT OR IGNORE INTO meta (key, value) VALUES ('server_seed', ?1)")
        .and_then(|mut s| s.execute(params![first]))
        .map_err(sql_error)?;
    c.prepare_cached("SELECT value FROM meta WHERE key = 'server_seed'")
        .and_then(|mut s| s.query_row([], |row| row.get(0)))
        .map_err(sql_error)
}

/// A value that this program did not write.
fn broken(index: usize) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnType(index, "damaged, or of a newer version".into(), Type::Blob)
}

fn key(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<PublicKey>> {
    row.get::<_, Option<[u8; 32]>>(index)?
        .map(|bytes| PublicKey::from_bytes(bytes).ok_or_else(|| broken(index)))
        .transpose()
}

fn read_negotiation(row: &Row<'_>) -> rusqlite::Result<Negotiation> {
    let party = |agent: usize| {
        Ok::<_, rusqlite::Error>(Party {
            agent: AgentId::from_bytes(id_bytes(row, agent)?),
            key: key(row, agent + 1)?,
        })
    };
    let text = |index: usize| row.get::<_, String>(index);
    Ok(Negotiation {
        id: NegotiationId::from_bytes(id_bytes(row, 0)?),
        listed_as: NegotiationId::from_bytes(id_bytes(row, 1)?),
        version: row.get(2)?,
        client: party(3)?,
        provider: party(5)?,
        opened_by: Side::parse(&text(7)?).ok_or_else(|| broken(7))?,
        task: optional_id(row, 8)?.map(TaskId::from_bytes),
        base_price: amount(row, 9)?,
        terms: json(row, 10)?,
        terms_sha256: Digest::from_bytes(row.get(11)?),
        offers: serde_json::from_str(&text(12)?).map_err(|_| broken(12))?,
        status: Status::parse(&text(13)?).ok_or_else(|| broken(13))?,
        created_at: time(row, 14)?,
        expires_at: time(row, 15)?,
        updated_at: time(row, 16)?,
        ended_by: optional_id(row, 17)?.map(AgentId::from_bytes),
        reason: row.get(18)?,
        agreement: optional_id(row, 19)?.map(AgreementId::from_bytes),
    })
}

fn create(c: &Connection, negotiation: &Negotiation, open_max: usize) -> StoreResult<()> {
    let opener = negotiation.party(negotiation.opened_by).agent;
    let open = count(
        c,
        // Each by its own index of what is open, whatever the agent's history.
        "SELECT (SELECT count(*) FROM negotiations INDEXED BY negotiations_open_of_client
                 WHERE status = 'open' AND client = ?1 AND expires_at > ?2 AND opened_by = 'client')
              + (SELECT count(*) FROM negotiations INDEXED BY negotiations_open_of_provider
                 WHERE status = 'open' AND provider = ?1 AND expires_at > ?2 AND opened_by = 'provider')",
        &[opener.as_bytes(), &negotiation.created_at.unix_ms()],
    )?;
    if open >= open_max as u64 {
        return Err(StoreError::LimitReached);
    }
    let sql = format!(
        "INSERT INTO negotiations ({NEGOTIATION_COLUMNS})
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)"
    );
    c.prepare_cached(&sql)
        .and_then(|mut s| {
            s.execute(params![
                negotiation.id.as_bytes(),
                negotiation.listed_as.as_bytes(),
                negotiation.version,
                negotiation.client.agent.as_bytes(),
                negotiation.client.key.as_ref().map(PublicKey::as_bytes),
                negotiation.provider.agent.as_bytes(),
                negotiation.provider.key.as_ref().map(PublicKey::as_bytes),
                negotiation.opened_by.as_str(),
                negotiation.task.as_ref().map(TaskId::as_bytes),
                negotiation.base_price.micros(),
                negotiation.terms.as_str(),
                negotiation.terms_sha256.as_bytes(),
                Json::of(&negotiation.offers).as_str(),
                negotiation.status.as_str(),
                negotiation.created_at.unix_ms(),
                negotiation.expires_at.unix_ms(),
                negotiation.updated_at.unix_ms(),
                negotiation.ended_by.as_ref().map(AgentId::as_bytes),
                negotiation.reason,
                negotiation.agreement.as_ref().map(AgreementId::as_bytes),
            ])
        })
        .map_err(sql_error)?;
    Ok(())
}

fn negotiation(c: &Connection, id: NegotiationId) -> StoreResult<Negotiation> {
    let sql = format!("SELECT {NEGOTIATION_COLUMNS} FROM negotiations WHERE id = ?1");
    c.prepare_cached(&sql).and_then(|mut s| s.query_row([id.as_bytes()], read_negotiation)).map_err(sql_error)
}

fn list(c: &Connection, filter: &NegotiationFilter, request: &PageRequest) -> StoreResult<Page<Negotiation>> {
    let list = lists::negotiations(Dialect::Sqlite, filter);
    listed(c, &list, (request, 0), read_negotiation, |negotiation| *negotiation.listed_as.as_bytes())
}

fn change(
    c: &Connection,
    version: u64,
    after: &Negotiation,
    agreement: Option<&Agreement>,
) -> StoreResult<()> {
    let changed = c
        .prepare_cached(
            "UPDATE negotiations SET version = ?3, client_key = ?4, provider_key = ?5, offers = ?6, status = ?7,
                updated_at = ?8, ended_by = ?9, reason = ?10, agreement = ?11
             WHERE id = ?1 AND version = ?2",
        )
        .and_then(|mut s| {
            s.execute(params![
                after.id.as_bytes(),
                version,
                after.version,
                after.client.key.as_ref().map(PublicKey::as_bytes),
                after.provider.key.as_ref().map(PublicKey::as_bytes),
                Json::of(&after.offers).as_str(),
                after.status.as_str(),
                after.updated_at.unix_ms(),
                after.ended_by.as_ref().map(AgentId::as_bytes),
                after.reason,
                after.agreement.as_ref().map(AgreementId::as_bytes),
            ])
        })
        .map_err(sql_error)?;
    if changed == 0 {
        negotiation(c, after.id)?;
        return Err(StoreError::Conflict);
    }
    let Some(agreement) = agreement else { return Ok(()) };
    let sql = format!("INSERT INTO agreements ({AGREEMENT_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6)");
    c.prepare_cached(&sql)
        .and_then(|mut s| {
            s.execute(params![
                agreement.id.as_bytes(),
                agreement.session.as_bytes(),
                agreement.client.as_bytes(),
                agreement.provider.as_bytes(),
                agreement.created_at.unix_ms(),
                agreement.document.as_str(),
            ])
        })
        .map_err(sql_error)?;
    Ok(())
}

fn due(c: &Connection, now: Timestamp, limit: usize) -> StoreResult<Vec<NegotiationId>> {
    rows(
        c,
        "SELECT id FROM negotiations WHERE status = 'open' AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2",
        &[&now.unix_ms(), &whole(limit)],
        |row| id_bytes(row, 0).map(NegotiationId::from_bytes),
    )
}

fn agreement(c: &Connection, id: AgreementId) -> StoreResult<Agreement> {
    let sql = format!("SELECT {AGREEMENT_COLUMNS} FROM agreements WHERE id = ?1");
    let read = |row: &Row<'_>| {
        Ok(Agreement {
            id: AgreementId::from_bytes(id_bytes(row, 0)?),
            session: NegotiationId::from_bytes(id_bytes(row, 1)?),
            client: AgentId::from_bytes(id_bytes(row, 2)?),
            provider: AgentId::from_bytes(id_bytes(row, 3)?),
            created_at: time(row, 4)?,
            document: json(row, 5)?,
        })
    };
    c.prepare_cached(&sql).and_then(|mut s| s.query_row([id.as_bytes()], read)).map_err(sql_error)
}
