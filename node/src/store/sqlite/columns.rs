//! Reads columns, rows and counts.

use muster_actors::store::{Page, PageRequest, StoreResult};
use muster_protocol::json::Json;
use muster_protocol::money::Amount;
use muster_protocol::time::Timestamp;
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, OptionalExtension, Row, ToSql};

use super::sql_error;
use crate::store::lists::{List, Value};
use crate::store::sql::{before, page, page_rows};

/// Runs a query and reads its rows.
pub fn rows<T>(
    c: &Connection,
    sql: &str,
    parameters: &[&dyn ToSql],
    read: fn(&Row<'_>) -> rusqlite::Result<T>,
) -> StoreResult<Vec<T>> {
    let mut statement = c.prepare_cached(sql).map_err(sql_error)?;
    let found = statement.query_map(parameters, read).map_err(sql_error)?;
    found.collect::<rusqlite::Result<Vec<T>>>().map_err(sql_error)
}

/// Runs a query that gives one number.
pub fn count(c: &Connection, sql: &str, parameters: &[&dyn ToSql]) -> StoreResult<u64> {
    let number: i64 = c
        .prepare_cached(sql)
        .and_then(|mut s| s.query_row(parameters, |row| row.get(0)))
        .map_err(sql_error)?;
    Ok(u64::try_from(number).unwrap_or(0))
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Self::Id(id) => id.to_sql(),
            Self::Text(text) => text.to_sql(),
        }
    }
}

/// Reads a page of a list, without the `skip` newest; `id` gives a row's place in it.
pub fn listed<T>(
    c: &Connection,
    list: &List,
    (request, skip): (&PageRequest, u32),
    read: fn(&Row<'_>) -> rusqlite::Result<T>,
    id: impl Fn(&T) -> [u8; 16],
) -> StoreResult<Page<T>> {
    let mut parameters: Vec<&dyn ToSql> = list.values.iter().map(|value| value as &dyn ToSql).collect();
    let total = count(c, &list.counting, &parameters)?;
    let (after, limit) = (before(request), page_rows(request));
    parameters.extend([&after as &dyn ToSql, &limit, &skip]);
    let items = rows(c, &list.listing, &parameters, read)?;
    Ok(page(items, request.limit, total, id))
}

/// Whether a row exists.
pub fn exists(c: &Connection, sql: &str, parameters: &[&dyn ToSql]) -> StoreResult<bool> {
    let found: Option<i64> = c
        .prepare_cached(sql)
        .and_then(|mut s| s.query_row(parameters, |row| row.get(0)).optional())
        .map_err(sql_error)?;
    Ok(found.is_some())
}

/// A JSON column.
pub fn json(row: &Row<'_>, index: usize) -> rusqlite::Result<Json> {
    Ok(Json::from_trusted_bytes(row.get::<_, String>(index)?.into()))
}

/// A JSON column that may be null.
pub fn optional_json(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Json>> {
    Ok(row.get::<_, Option<String>>(index)?.map(|text| Json::from_trusted_bytes(text.into())))
}

/// A column of micro-units.
pub fn amount(row: &Row<'_>, index: usize) -> rusqlite::Result<Amount> {
    Amount::from_micros(row.get(index)?).ok_or(rusqlite::Error::InvalidQuery)
}

/// A column of micro-units that may be null.
pub fn optional_amount(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Amount>> {
    let micros: Option<i64> = row.get(index)?;
    micros.map(|micros| Amount::from_micros(micros).ok_or(rusqlite::Error::InvalidQuery)).transpose()
}

/// 16 bytes of an id column.
pub fn id_bytes(row: &Row<'_>, index: usize) -> rusqlite::Result<[u8; 16]> {
    row.get(index)
}

/// 16 bytes of an id column that may be null.
pub fn optional_id(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<[u8; 16]>> {
    row.get(index)
}

/// A column of Unix milliseconds.
pub fn time(row: &Row<'_>, index: usize) -> rusqlite::Result<Timestamp> {
    row.get(index).map(Timestamp::from_unix_ms)
}

/// A column of Unix milliseconds that may be null.
pub fn optional_time(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(index)?.map(Timestamp::from_unix_ms))
}
