//! Ids, documents and numbers as PostgreSQL has them.

use muster_actors::store::{Page, PageRequest, StoreError};
use muster_protocol::json::Json;
use muster_protocol::money::Amount;
use muster_protocol::time::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use super::pool::{Connection, Failure, Parameter};
use crate::store::lists::{List, Value};
use crate::store::sql::{before, page, page_rows};

/// 16 bytes of an id: a `uuid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; 16]);

type BoxedError = Box<dyn std::error::Error + Sync + Send>;

impl ToSql for Id {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, BoxedError> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::UUID
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Id {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, BoxedError> {
        Ok(Self(raw.try_into()?))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::UUID
    }
}

impl ToSql for Value {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, BoxedError> {
        match self {
            Self::Id(id) => Id(*id).to_sql(kind, out),
            Self::Text(text) => text.to_sql(kind, out),
        }
    }

    fn accepts(kind: &Type) -> bool {
        <Id as ToSql>::accepts(kind) || <&str as ToSql>::accepts(kind)
    }

    to_sql_checked!();
}

/// Reads a page of a list, without the `skip` newest; `id` gives a row's place in it.
pub async fn listed<T>(
    c: &Connection,
    list: &List,
    (request, skip): (&PageRequest, u32),
    read: fn(&Row) -> Result<T, Failure>,
    id: impl Fn(&T) -> [u8; 16],
) -> Result<Page<T>, Failure> {
    let mut parameters: Vec<Parameter<'_>> = list.values.iter().map(|value| value as Parameter<'_>).collect();
    let total = c.count(&list.counting, &parameters).await?;
    let (after, limit, skip) = (Id(before(request)), page_rows(request), i64::from(skip));
    parameters.extend([&after as Parameter<'_>, &limit, &skip]);
    let rows = c.query(&list.listing, &parameters).await?;
    let items = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(page(items, request.limit, total, id))
}

/// An id of a record, as a parameter.
macro_rules! id {
    ($id:expr) => {
        $crate::store::postgres::columns::Id(*$id.as_bytes())
    };
}
pub(super) use id;

/// A row that this program did not write.
pub fn broken() -> Failure {
    StoreError::Unavailable("a row of the database is damaged, or of a newer version".into()).into()
}

/// A column of micro-units.
pub fn amount(row: &Row, index: usize) -> Result<Amount, Failure> {
    Amount::from_micros(row.try_get(index)?).ok_or_else(broken)
}

/// A column of micro-units that may be null.
pub fn optional_amount(row: &Row, index: usize) -> Result<Option<Amount>, Failure> {
    let micros: Option<i64> = row.try_get(index)?;
    micros.map(|micros| Amount::from_micros(micros).ok_or_else(broken)).transpose()
}

/// 16 bytes of an id column.
pub fn id_bytes(row: &Row, index: usize) -> Result<[u8; 16], Failure> {
    Ok(row.try_get::<_, Id>(index)?.0)
}

/// 16 bytes of an id column that may be null.
pub fn optional_id(row: &Row, index: usize) -> Result<Option<[u8; 16]>, Failure> {
    Ok(row.try_get::<_, Option<Id>>(index)?.map(|id| id.0))
}

/// A JSON column.
pub fn json(row: &Row, index: usize) -> Result<Json, Failure> {
    Ok(Json::from_trusted_bytes(row.try_get::<_, String>(index)?.into()))
}

/// A JSON column that may be null.
pub fn optional_json(row: &Row, index: usize) -> Result<Option<Json>, Failure> {
    Ok(row.try_get::<_, Option<String>>(index)?.map(|text| Json::from_trusted_bytes(text.into())))
}

/// A column of Unix milliseconds.
pub fn time(row: &Row, index: usize) -> Result<Timestamp, Failure> {
    Ok(Timestamp::from_unix_ms(row.try_get(index)?))
}

/// A column of Unix milliseconds that may be null.
pub fn optional_time(row: &Row, index: usize) -> Result<Option<Timestamp>, Failure> {
    Ok(row.try_get::<_, Option<i64>>(index)?.map(Timestamp::from_unix_ms))
}

/// A number that is not negative.
pub fn number(row: &Row, index: usize) -> Result<u64, Failure> {
    u64::try_from(row.try_get::<_, i64>(index)?).map_err(|_| broken())
}
