//! The ledger, as SQL: entries are posted in the transaction of what they belong to.

use async_trait::async_trait;
use muster_actors::store::{COUNTED_MAX, LedgerStore, Page, PageRequest, StoreError, StoreResult};
use muster_protocol::ids::{AgentId, LedgerEntryId};
use muster_protocol::ledger::{
    Account, Audit, Balance, Delta, Entry, EntryKind, Posting, Totals, Unpostable,
};
use muster_protocol::money::Amount;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::columns::{amount, count, id_bytes, optional_id, rows, time};
use super::{SqliteStore, sql_error, webhooks};
use crate::store::sql::{before, page, page_rows, unbalanced};

/// Posts an entry, and queues what it is for webhooks. An operation that was posted before is [`StoreError::AlreadyExists`].
pub fn post(c: &Connection, entry: &Entry) -> StoreResult<()> {
    if !entry.is_balanced() {
        return Err(unbalanced(entry));
    }
    c.prepare_cached(
        "INSERT INTO ledger_entries (id, kind, operation, reference, at) VALUES (?1, ?2, ?3, ?4, ?5)",
    )
    .and_then(|mut s| {
        s.execute(params![
            entry.id.as_bytes(),
            entry.kind.as_str(),
            entry.operation,
            entry.reference,
            entry.at.unix_ms()
        ])
    })
    .map_err(sql_error)?;
    for posting in &entry.postings {
        let (kind, account, side) = posting.account.key();
        let balance: Option<i64> = c
            .prepare_cached(
                "SELECT balance FROM ledger_accounts WHERE kind = ?1 AND account = ?2 AND side = ?3",
            )
            .and_then(|mut s| s.query_row(params![kind, account, side], |row| row.get(0)).optional())
            .map_err(sql_error)?;
        let after = posting.after(balance.unwrap_or(0)).map_err(|problem| match problem {
            Unpostable::Short(available) => StoreError::InsufficientBalance(available),
            Unpostable::Overflow => StoreError::LimitReached,
        })?;
        let holder = posting.account.holder();
        c.prepare_cached(
            "INSERT INTO ledger_accounts (kind, account, side, holder, balance, funded)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (kind, account, side)
             DO UPDATE SET balance = excluded.balance, funded = max(funded, excluded.funded)",
        )
        .and_then(|mut s| {
            let funds = entry.kind.funds() && posting.delta.0 > 0;
            s.execute(params![kind, account, side, holder.as_ref().map(AgentId::as_bytes), after, funds])
        })
        .map_err(sql_error)?;
        c.prepare_cached(
            "INSERT INTO ledger_postings (kind, account, side, entry, delta) VALUES (?1, ?2, ?3, ?4, ?5)",
        )
        .and_then(|mut s| s.execute(params![kind, account, side, entry.id.as_bytes(), posting.delta.0]))
        .map_err(sql_error)?;
    }
    webhooks::queue_entry(c, entry)
}

/// Posts an entry, unless there is one of its operation, which is given.
fn post_once(c: &Connection, entry: &Entry) -> StoreResult<Option<Entry>> {
    let sql = format!("{ENTRIES} WHERE e.operation = ?1");
    match rows(c, &sql, &[&entry.operation], read_entry)?.pop() {
        Some(found) => with_postings(c, found).map(Some),
        None => post(c, entry).map(|()| None),
    }
}

const ENTRIES: &str = "SELECT e.id, e.kind, e.operation, e.reference, e.at FROM ledger_entries e";

fn read_entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let kind: String = row.get(1)?;
    Ok(Entry {
        id: LedgerEntryId::from_bytes(id_bytes(row, 0)?),
        kind: EntryKind::parse(&kind).ok_or(rusqlite::Error::InvalidQuery)?,
        operation: row.get(2)?,
        reference: row.get(3)?,
        at: time(row, 4)?,
        postings: Vec::new(),
    })
}

fn read_posting(row: &Row<'_>) -> rusqlite::Result<Posting> {
    let (kind, side): (String, i16) = (row.get(0)?, row.get(2)?);
    let holder = optional_id(row, 3)?.map(AgentId::from_bytes);
    let account = Account::from_key((&kind, id_bytes(row, 1)?, side), holder);
    Ok(Posting { account: account.ok_or(rusqlite::Error::InvalidQuery)?, delta: Delta(row.get(4)?) })
}

fn with_postings(c: &Connection, entry: Entry) -> StoreResult<Entry> {
    let sql = "SELECT p.kind, p.account, p.side, a.holder, p.delta FROM ledger_postings p
        JOIN ledger_accounts a ON a.kind = p.kind AND a.account = p.account AND a.side = p.side
        WHERE p.entry = ?1 ORDER BY p.kind, p.account, p.side";
    let postings = rows(c, sql, &[entry.id.as_bytes()], read_posting)?;
    Ok(Entry { postings, ..entry })
}

fn entries_of(c: &Connection, account: Account, request: &PageRequest) -> StoreResult<Page<Entry>> {
    let (kind, id, side) = account.key();
    let of_account = "kind = ?1 AND account = ?2 AND side = ?3";
    let counted = format!("SELECT 1 FROM ledger_postings WHERE {of_account} LIMIT {COUNTED_MAX}");
    let sql = format!("SELECT count(*) FROM ({counted}) AS counted");
    let total = count(c, &sql, &[&kind, &id, &side])?;
    let sql = format!(
        "{ENTRIES} WHERE e.id IN (SELECT entry FROM ledger_postings WHERE {of_account} AND entry < ?4
            ORDER BY entry DESC LIMIT ?5) ORDER BY e.id DESC"
    );
    let found = rows(c, &sql, &[&kind, &id, &side, &before(request), &page_rows(request)], read_entry)?;
    let items = found.into_iter().map(|entry| with_postings(c, entry)).collect::<StoreResult<Vec<_>>>()?;
    Ok(page(items, request.limit, total, |entry| *entry.id.as_bytes()))
}

fn balance(c: &Connection, account: Account) -> StoreResult<Balance> {
    let (kind, id, side) = account.key();
    let sql = "SELECT balance, funded FROM ledger_accounts WHERE kind = ?1 AND account = ?2 AND side = ?3";
    let found: Option<(i64, bool)> = c
        .prepare_cached(sql)
        .and_then(|mut s| {
            s.query_row(params![kind, id, side], |row| Ok((row.get(0)?, row.get(1)?))).optional()
        })
        .map_err(sql_error)?;
    let (available, is_funded) = found.unwrap_or_default();
    let held: i64 = match account {
        Account::Agent(_) => c
            .prepare_cached(
                "SELECT coalesce(sum(balance), 0) FROM ledger_accounts WHERE holder = ?1 AND balance > 0",
            )
            .and_then(|mut s| s.query_row(params![id], |row| row.get(0)))
            .map_err(sql_error)?,
        _ => 0,
    };
    Ok(Balance {
        is_funded,
        available: Amount::from_micros(available).unwrap_or_default(),
        escrow: Amount::from_micros(held).unwrap_or_default(),
    })
}

fn totals(c: &Connection) -> StoreResult<Totals> {
    let sql = "SELECT coalesce(sum(CASE kind WHEN 'fees' THEN balance END), 0),
        coalesce(sum(CASE kind WHEN 'external' THEN balance END), 0), coalesce(sum(balance), 0) FROM ledger_accounts";
    let read = |row: &Row<'_>| {
        Ok(Totals { fees: amount(row, 0)?, external: Delta(row.get(1)?), sum: Delta(row.get(2)?) })
    };
    c.prepare_cached(sql).and_then(|mut s| s.query_row([], read)).map_err(sql_error)
}

fn audit(c: &Connection) -> StoreResult<Audit> {
    let number = |sql: &str| count(c, sql, &[]);
    let sum_micros = c
        .query_row("SELECT coalesce(sum(balance), 0) FROM ledger_accounts", [], |row| row.get(0))
        .map_err(sql_error)?;
    Ok(Audit {
        accounts: number("SELECT count(*) FROM ledger_accounts")?,
        entries: number("SELECT count(*) FROM ledger_entries")?,
        unbalanced_entries: number(
            "SELECT count(*) FROM ledger_entries e
             WHERE coalesce((SELECT sum(delta) FROM ledger_postings p WHERE p.entry = e.id), 1) <> 0",
        )?,
        mismatched_accounts: number(
            "SELECT count(*) FROM ledger_accounts a WHERE balance <> coalesce((SELECT sum(delta) FROM ledger_postings p
             WHERE p.kind = a.kind AND p.account = a.account AND p.side = a.side), 0)",
        )?,
        sum_micros,
    })
}

#[async_trait]
impl LedgerStore for SqliteStore {
    async fn post_entry(&self, entry: Entry) -> StoreResult<Option<Entry>> {
        self.write(move |c| post_once(c, &entry)).await
    }

    async fn balance(&self, account: Account) -> StoreResult<Balance> {
        self.read(move |c| balance(c, account)).await
    }

    async fn entries_of(&self, account: Account, page: PageRequest) -> StoreResult<Page<Entry>> {
        self.read(move |c| entries_of(c, account, &page)).await
    }

    async fn ledger_totals(&self) -> StoreResult<Totals> {
        self.read(totals).await
    }

    async fn audit(&self) -> StoreResult<Audit> {
        // Several statements see one state in a transaction; the writer has other things to do.
        self.read(|c| {
            let transaction = c.unchecked_transaction().map_err(sql_error)?;
            audit(&transaction)
        })
        .await
    }
}
