//! Store backends. Only this folder knows SQL.

mod answer;
#[cfg(test)]
mod conformance;
pub mod postgres;
mod sql;
pub mod sqlite;
