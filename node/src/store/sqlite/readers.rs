//! Readers: a few connections that see the last commit while the writer goes on.

use std::path::Path;
use std::sync::Arc;

use muster_actors::store::{StoreError, StoreResult};
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{configure, sql_error};

/// A pool of read-only connections.
pub struct Readers {
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    /// Opens so many.
    ///
    /// # Errors
    /// The database cannot be opened.
    pub fn open(path: &Path, count: usize) -> StoreResult<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || -> StoreResult<Connection> {
            let connection = Connection::open_with_flags(path, flags).map_err(sql_error)?;
            configure(&connection)?;
            // SQLite opens its files at the first read: here, where a failure is told, and not when many read at once.
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(sql_error)?;
            Ok(connection)
        };
        let idle = (0..count).map(|_| open()).collect::<StoreResult<Vec<_>>>()?;
        Ok(Self { idle: Mutex::new(idle), permits: Arc::new(Semaphore::new(count)) })
    }

    /// Runs a read on a thread that may block.
    ///
    /// # Errors
    /// What the read gives, or the pool is closed.
    pub async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let closed = || StoreError::Unavailable("closed".into());
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| closed())?;
        let connection = self.idle.lock().pop().ok_or_else(closed)?;
        let lease = Lease { pool: self.clone(), connection: Some(connection), _permit: permit };
        let read = tokio::task::spawn_blocking(move || {
            lease.connection.as_ref().map_or_else(|| Err(closed()), read)
        });
        read.await.unwrap_or_else(|_| Err(StoreError::Unavailable("a read crashed".into())))
    }

    /// Ends reading.
    pub fn close(&self) {
        self.permits.close();
        self.idle.lock().clear();
    }
}

/// Gives the connection back however the read ends, and then, with the last field, the place: whoever asked may be gone
/// long before the read is done.
struct Lease {
    pool: Arc<Readers>,
    connection: Option<Connection>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.idle.lock().push(connection);
        }
    }
}
