//! Store backends. Only this folder knows SQL.

mod answer;
#[cfg(test)]
mod conformance;
mod figures;
mod head;
mod lists;
pub mod postgres;
mod queue;
mod sql;
pub mod sqlite;
