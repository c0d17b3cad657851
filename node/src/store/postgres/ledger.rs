//! The ledger, as SQL: entries are posted in the transaction of what they belong to. Accounts are locked last of all and
//! in one order, so whoever has one waits for nobody who waits for it; only webhooks come after them, and whoever has one of
//! those locked wants no account.

use async_trait::async_trait;
use muster_actors::store::{COUNTED_MAX, LedgerStore, Page, PageRequest, StoreError, StoreResult};
use muster_protocol::ids::{AgentId, LedgerEntryId};
use muster_protocol::ledger::{
    Account, Audit, Balance, Delta, Entry, EntryKind, Posting, Totals, Unpostable,
};
use muster_protocol::money::Amount;
use tokio_postgres::Row;

use super::columns::{Id, amount, broken, id, id_bytes, number, optional_id, time};
use super::pool::{Connection, Failure};
use super::{PostgresStore, webhooks};
use crate::store::sql::{before, page, page_rows, unbalanced};

/// Posts an entry, and queues what it is for webhooks. An operation that was posted before is [`StoreError::AlreadyExists`].
pub async fn post(c: &Connection, entry: &Entry) -> Result<(), Failure> {
    if !entry.is_balanced() {
        return Err(unbalanced(entry).into());
    }
    c.execute(
        "INSERT INTO ledger_entries (id, kind, operation, reference, at) VALUES ($1, $2, $3, $4, $5)",
        &[&id!(entry.id), &entry.kind.as_str(), &entry.operation, &entry.reference, &entry.at.unix_ms()],
    )
    .await?;
    // In the order of their keys, as everywhere.
    for posting in &entry.postings {
        let (kind, account, side) = posting.account.key();
        let (account, holder) = (Id(account), posting.account.holder().map(|holder| id!(holder)));
        // Makes it if need be, and locks it.
        let row = c
            .one(
                "INSERT INTO ledger_accounts (kind, account, side, holder, balance) VALUES ($1, $2, $3, $4, 0)
                 ON CONFLICT (kind, account, side) DO UPDATE SET balance = ledger_accounts.balance
                 RETURNING balance",
                &[&kind, &account, &side, &holder],
            )
            .await?;
        let after = posting.after(row.try_get(0)?).map_err(|problem| match problem {
            Unpostable::Short(available) => StoreError::InsufficientBalance(available),
            Unpostable::Overflow => StoreError::LimitReached,
        })?;
        c.execute(
            "UPDATE ledger_accounts SET balance = $4, funded = funded OR $5
             WHERE kind = $1 AND account = $2 AND side = $3",
            &[&kind, &account, &side, &after, &(entry.kind.funds() && posting.delta.0 > 0)],
        )
        .await?;
        c.execute(
            "INSERT INTO ledger_postings (kind, account, side, entry, delta) VALUES ($1, $2, $3, $4, $5)",
            &[&kind, &account, &side, &id!(entry.id), &posting.delta.0],
        )
        .await?;
    }
    webhooks::queue_entry(c, entry).await
}

/// The entry of an operation.
async fn entry(c: &Connection, operation: &str) -> Result<Entry, Failure> {
    let sql = format!("{ENTRIES} WHERE e.operation = $1");
    let found = read_entry(&c.one(&sql, &[&operation]).await?)?;
    with_postings(c, found).await
}

const ENTRIES: &str = "SELECT e.id, e.kind, e.operation, e.reference, e.at FROM ledger_entries e";

fn read_entry(row: &Row) -> Result<Entry, Failure> {
    Ok(Entry {
        id: LedgerEntryId::from_bytes(id_bytes(row, 0)?),
        kind: EntryKind::parse(row.try_get(1)?).ok_or_else(broken)?,
        operation: row.try_get(2)?,
        reference: row.try_get(3)?,
        at: time(row, 4)?,
        postings: Vec::new(),
    })
}

async fn with_postings(c: &Connection, entry: Entry) -> Result<Entry, Failure> {
    let sql = "SELECT p.kind, p.account, p.side, a.holder, p.delta FROM ledger_postings p
        JOIN ledger_accounts a ON a.kind = p.kind AND a.account = p.account AND a.side = p.side
        WHERE p.entry = $1 ORDER BY p.kind, p.account, p.side";
    let mut postings = Vec::new();
    for row in c.query(sql, &[&id!(entry.id)]).await? {
        let holder = optional_id(&row, 3)?.map(AgentId::from_bytes);
        let key = (row.try_get(0)?, id_bytes(&row, 1)?, row.try_get(2)?);
        let account = Account::from_key(key, holder).ok_or_else(broken)?;
        postings.push(Posting { account, delta: Delta(row.try_get(4)?) });
    }
    Ok(Entry { postings, ..entry })
}

async fn entries_of(c: &Connection, account: Account, request: &PageRequest) -> Result<Page<Entry>, Failure> {
    let (kind, account, side) = account.key();
    let account = Id(account);
    let of_account = "kind = $1 AND account = $2 AND side = $3";
    let counted = format!("SELECT 1 FROM ledger_postings WHERE {of_account} LIMIT {COUNTED_MAX}");
    let sql = format!("SELECT count(*) FROM ({counted}) AS counted");
    let total = c.count(&sql, &[&kind, &account, &side]).await?;
    let sql = format!(
        "{ENTRIES} WHERE e.id IN (SELECT entry FROM ledger_postings WHERE {of_account} AND entry < $4
            ORDER BY entry DESC LIMIT $5) ORDER BY e.id DESC"
    );
    let (before, limit) = (Id(before(request)), page_rows(request));
    let mut items = Vec::new();
    for row in c.query(&sql, &[&kind, &account, &side, &before, &limit]).await? {
        items.push(with_postings(c, read_entry(&row)?).await?);
    }
    Ok(page(items, request.limit, total, |entry| *entry.id.as_bytes()))
}

async fn balance(c: &Connection, account: Account) -> Result<Balance, Failure> {
    let (kind, of, side) = account.key();
    let sql = "SELECT balance, funded FROM ledger_accounts WHERE kind = $1 AND account = $2 AND side = $3";
    let (available, is_funded): (i64, bool) = match c.optional(sql, &[&kind, &Id(of), &side]).await? {
        Some(row) => (row.try_get(0)?, row.try_get(1)?),
        None => (0, false),
    };
    let held: i64 = match account {
        Account::Agent(_) => {
            let sql = "SELECT coalesce(sum(balance), 0)::bigint FROM ledger_accounts
                WHERE holder = $1 AND balance > 0";
            c.one(sql, &[&Id(of)]).await?.try_get(0)?
        }
        _ => 0,
    };
    Ok(Balance {
        is_funded,
        available: Amount::from_micros(available).unwrap_or_default(),
        escrow: Amount::from_micros(held).unwrap_or_default(),
    })
}

async fn totals(c: &Connection) -> Result<Totals, Failure> {
    let sql = "SELECT coalesce(sum(balance) FILTER (WHERE kind = 'fees'), 0)::bigint,
        coalesce(sum(balance) FILTER (WHERE kind = 'external'), 0)::bigint, coalesce(sum(balance), 0)::bigint
        FROM ledger_accounts";
    let row = c.one(sql, &[]).await?;
    Ok(Totals { fees: amount(&row, 0)?, external: Delta(row.try_get(1)?), sum: Delta(row.try_get(2)?) })
}

async fn audit(c: &Connection) -> Result<Audit, Failure> {
    // One statement sees one state.
    let row = c
        .one(
            "SELECT (SELECT count(*) FROM ledger_accounts), (SELECT count(*) FROM ledger_entries),
                (SELECT count(*) FROM ledger_entries e
                    WHERE coalesce((SELECT sum(delta) FROM ledger_postings p WHERE p.entry = e.id), 1) <> 0),
                (SELECT count(*) FROM ledger_accounts a WHERE balance <> coalesce((SELECT sum(delta)
                    FROM ledger_postings p WHERE p.kind = a.kind AND p.account = a.account AND p.side = a.side), 0)),
                (SELECT coalesce(sum(balance), 0)::bigint FROM ledger_accounts)",
            &[],
        )
        .await?;
    Ok(Audit {
        accounts: number(&row, 0)?,
        entries: number(&row, 1)?,
        unbalanced_entries: number(&row, 2)?,
        mismatched_accounts: number(&row, 3)?,
        sum_micros: row.try_get(4)?,
    })
}

#[async_trait]
impl LedgerStore for PostgresStore {
    async fn post_entry(&self, new: Entry) -> StoreResult<Option<Entry>> {
        let new = &new;
        match self.pool.write(|c| async move { post(&c, new).await }).await {
            Ok(()) => Ok(None),
            Err(StoreError::AlreadyExists) => {
                self.pool.read(|c| async move { entry(&c, &new.operation).await }).await.map(Some)
            }
            Err(error) => Err(error),
        }
    }

    async fn balance(&self, account: Account) -> StoreResult<Balance> {
        self.pool.read(|c| async move { balance(&c, account).await }).await
    }

    async fn entries_of(&self, account: Account, page: PageRequest) -> StoreResult<Page<Entry>> {
        self.pool.read(|c| async move { entries_of(&c, account, &page).await }).await
    }

    async fn ledger_totals(&self) -> StoreResult<Totals> {
        self.pool.read(|c| async move { totals(&c).await }).await
    }

    async fn audit(&self) -> StoreResult<Audit> {
        self.pool.read(|c| async move { audit(&c).await }).await
    }
}
