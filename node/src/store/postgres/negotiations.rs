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
use tokio_postgres::Row;

use super::columns::{amount, broken, id, id_bytes, json, listed, number, optional_id, time};
use super::pool::{Connection, Failure};
use super::{PostgresStore, agents};
use crate::store::lists::{self, Dialect};
use crate::store::sql::{AGREEMENT_COLUMNS, NEGOTIATION_COLUMNS, whole};

#[async_trait]
impl NegotiationStore for PostgresStore {
    async fn server_seed(&self, first: [u8; 32]) -> StoreResult<[u8; 32]> {
        self.pool.write(|c| async move { server_seed(&c, first).await }).await
    }

    async fn create_negotiation(&self, negotiation: Negotiation, open_max: usize) -> StoreResult<()> {
        let negotiation = &negotiation;
        self.pool.write(|c| async move { create(&c, negotiation, open_max).await }).await
    }

    async fn negotiation(&self, id: NegotiationId) -> StoreResult<Negotiation> {
        self.pool.read(|c| async move { negotiation(&c, id).await }).await
    }

    async fn negotiations(
        &self,
        filter: NegotiationFilter,
        page: PageRequest,
    ) -> StoreResult<Page<Negotiation>> {
        self.pool.read(|c| async move { list(&c, &filter, &page).await }).await
    }

    async fn change_negotiation(
        &self,
        version: u64,
        after: Negotiation,
        agreement: Option<Agreement>,
    ) -> StoreResult<()> {
        let (after, agreement) = (&after, agreement.as_ref());
        self.pool.write(|c| async move { change(&c, version, after, agreement).await }).await
    }

    async fn negotiations_due(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<NegotiationId>> {
        self.pool.read(|c| async move { due(&c, now, limit).await }).await
    }

    async fn agreement(&self, id: AgreementId) -> StoreResult<Agreement> {
        self.pool.read(|c| async move { agreement(&c, id).await }).await
    }
}

async fn server_seed(c: &Connection, first: [u8; 32]) -> Result<[u8; 32], Failure> {
    c.execute(
        "INSERT INTO meta (key, value) VALUES ('server_seed', $1) ON CONFLICT (key) DO NOTHING",
        &[&first.as_slice()],
    )
    .await?;
    let row = c.one("SELECT value FROM meta WHERE key = 'server_seed'", &[]).await?;
    bytes(&row, 0)
}

fn bytes<const N: usize>(row: &Row, index: usize) -> Result<[u8; N], Failure> {
    row.try_get::<_, &[u8]>(index)?.try_into().map_err(|_| broken())
}

fn read_negotiation(row: &Row) -> Result<Negotiation, Failure> {
    let party = |agent: usize| {
        let key = match row.try_get::<_, Option<&[u8]>>(agent + 1)? {
            Some(bytes) => {
                let bytes = bytes.try_into().map_err(|_| broken())?;
                Some(PublicKey::from_bytes(bytes).ok_or_else(broken)?)
            }
            None => None,
        };
        Ok::<_, Failure>(Party { agent: AgentId::from_bytes(id_bytes(row, agent)?), key })
    };
    Ok(Negotiation {
        id: NegotiationId::from_bytes(id_bytes(row, 0)?),
        listed_as: NegotiationId::from_bytes(id_bytes(row, 1)?),
        version: number(row, 2)?,
        client: party(3)?,
        provider: party(5)?,
        opened_by: Side::parse(row.try_get(7)?).ok_or_else(broken)?,
        task: optional_id(row, 8)?.map(TaskId::from_bytes),
        base_price: amount(row, 9)?,
        terms: json(row, 10)?,
        terms_sha256: Digest::from_bytes(bytes(row, 11)?),
        offers: serde_json::from_str(row.try_get(12)?).map_err(|_| broken())?,
        status: Status::parse(row.try_get(13)?).ok_or_else(broken)?,
        created_at: time(row, 14)?,
        expires_at: time(row, 15)?,
        updated_at: time(row, 16)?,
        ended_by: optional_id(row, 17)?.map(AgentId::from_bytes),
        reason: row.try_get(18)?,
        agreement: optional_id(row, 19)?.map(AgreementId::from_bytes),
    })
}

fn key_bytes(party: &Party) -> Option<&[u8]> {
    party.key.as_ref().map(|key| key.as_bytes().as_slice())
}

async fn create(c: &Connection, negotiation: &Negotiation, open_max: usize) -> Result<(), Failure> {
    let opener = negotiation.party(negotiation.opened_by).agent;
    agents::lock(c, opener).await?;
    let open = c
        .count(
            "SELECT count(*) FROM negotiations WHERE status = 'open' AND expires_at > $2
             AND (client = $1 AND opened_by = 'client' OR provider = $1 AND opened_by = 'provider')",
            &[&id!(opener), &negotiation.created_at.unix_ms()],
        )
        .await?;
    if open >= open_max as u64 {
        return Err(StoreError::LimitReached.into());
    }
    let sql = format!(
        "INSERT INTO negotiations ({NEGOTIATION_COLUMNS})
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)"
    );
    c.execute(
        &sql,
        &[
            &id!(negotiation.id),
            &id!(negotiation.listed_as),
            &whole(negotiation.version),
            &id!(negotiation.client.agent),
            &key_bytes(&negotiation.client),
            &id!(negotiation.provider.agent),
            &key_bytes(&negotiation.provider),
            &negotiation.opened_by.as_str(),
            &negotiation.task.map(|task| id!(task)),
            &negotiation.base_price.micros(),
            &negotiation.terms.as_str(),
            &negotiation.terms_sha256.as_bytes().as_slice(),
            &Json::of(&negotiation.offers).as_str(),
            &negotiation.status.as_str(),
            &negotiation.created_at.unix_ms(),
            &negotiation.expires_at.unix_ms(),
            &negotiation.updated_at.unix_ms(),
            &negotiation.ended_by.map(|agent| id!(agent)),
            &negotiation.reason,
            &negotiation.agreement.map(|agreement| id!(agreement)),
        ],
    )
    .await?;
    Ok(())
}

async fn negotiation(c: &Connection, id: NegotiationId) -> Result<Negotiation, Failure> {
    let sql = format!("SELECT {NEGOTIATION_COLUMNS} FROM negotiations WHERE id = $1");
    read_negotiation(&c.one(&sql, &[&id!(id)]).await?)
}

async fn list(
    c: &Connection,
    filter: &NegotiationFilter,
    request: &PageRequest,
) -> Result<Page<Negotiation>, Failure> {
    let list = lists::negotiations(Dialect::Postgres, filter);
    listed(c, &list, (request, 0), read_negotiation, |negotiation| *negotiation.listed_as.as_bytes()).await
}

async fn change(
    c: &Connection,
    version: u64,
    after: &Negotiation,
    agreement: Option<&Agreement>,
) -> Result<(), Failure> {
    let changed = c
        .execute(
            "UPDATE negotiations SET version = $3, client_key = $4, provider_key = $5, offers = $6, status = $7,
                updated_at = $8, ended_by = $9, reason = $10, agreement = $11
             WHERE id = $1 AND version = $2",
            &[
                &id!(after.id),
                &whole(version),
                &whole(after.version),
                &key_bytes(&after.client),
                &key_bytes(&after.provider),
                &Json::of(&after.offers).as_str(),
                &after.status.as_str(),
                &after.updated_at.unix_ms(),
                &after.ended_by.map(|agent| id!(agent)),
                &after.reason,
                &after.agreement.map(|agreement| id!(agreement)),
            ],
        )
        .await?;
    if changed == 0 {
        negotiation(c, after.id).await?;
        return Err(StoreError::Conflict.into());
    }
    let Some(agreement) = agreement else { return Ok(()) };
    let sql = format!("INSERT INTO agreements ({AGREEMENT_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6)");
    c.execute(
        &sql,
        &[
            &id!(agreement.id),
            &id!(agreement.session),
            &id!(agreement.client),
            &id!(agreement.provider),
            &agreement.created_at.unix_ms(),
            &agreement.document.as_str(),
        ],
    )
    .await?;
    Ok(())
}

async fn due(c: &Connection, now: Timestamp, limit: usize) -> Result<Vec<NegotiationId>, Failure> {
    let rows = c
        .query(
            "SELECT id FROM negotiations WHERE status = 'open' AND expires_at <= $1 ORDER BY expires_at LIMIT $2",
            &[&now.unix_ms(), &whole(limit)],
        )
        .await?;
    rows.iter().map(|row| id_bytes(row, 0).map(NegotiationId::from_bytes)).collect()
}

async fn agreement(c: &Connection, id: AgreementId) -> Result<Agreement, Failure> {
    let sql = format!("SELECT {AGREEMENT_COLUMNS} FROM agreements WHERE id = $1");
    let row = c.one(&sql, &[&id!(id)]).await?;
    Ok(Agreement {
        id: AgreementId::from_bytes(id_bytes(&row, 0)?),
        session: NegotiationId::from_bytes(id_bytes(&row, 1)?),
        client: AgentId::from_bytes(id_bytes(&row, 2)?),
        provider: AgentId::from_bytes(id_bytes(&row, 3)?),
        created_at: time(&row, 4)?,
        document: json(&row, 5)?,
    })
}
