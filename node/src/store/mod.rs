//! Store backends. Only this folder knows SQL.

#[cfg(test)]
mod conformance;
pub mod sqlite;
