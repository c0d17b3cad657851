//! Store backends. Only this folder knows SQL.

mod answer;
#[cfg(test)]
mod conformance;
pub mod postgres;
pub mod sqlite;

use muster_actors::store::Page;

/// Turns `limit + 1` rows into a page.
fn page<T>(mut items: Vec<T>, limit: usize, total: u64, id: impl Fn(&T) -> [u8; 16]) -> Page<T> {
    let more = items.len() > limit;
    items.truncate(limit);
    let next = if more { items.last().map(id) } else { None };
    Page { items, total, next }
}
