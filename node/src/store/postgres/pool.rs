//! Connections, and how a call of the store is carried out over them: once, whatever becomes of a connection.
//!
//! A write is a transaction that is tried again when the connection dies, or when PostgreSQL asks for it (serialisation
//! failures, deadlocks). If the answer to its COMMIT is lost, nobody knows whether it happened: so each begins by noting
//! its ticket in the table `writes`. The next try notes the same ticket: that waits for whatever is left of the one before,
//! and then fails if it was committed, in which case its result stands.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, PoolError, RecyclingMethod, Runtime, TimeoutType,
    Timeouts,
};
use muster_actors::store::{StoreError, StoreResult};
use muster_protocol::limits::Limits;
use parking_lot::Mutex;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use super::connect::Target;
use crate::store::sql::whole;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before the first try again; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(5);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// Tries of one call at most; its time is a bound too.
const TRIES_MAX: u32 = 100;

/// Why a try failed.
#[derive(Debug)]
pub enum Failure {
    /// For good.
    Refused(StoreError),
    /// In PostgreSQL, or on the way to it.
    Sql(tokio_postgres::Error),
    /// No connection could be had just now.
    NoConnection(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) => error,
            Failure::Sql(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => Self::AlreadyExists,
            Failure::Sql(error) => Self::Unavailable(text_of(&error)),
            Failure::NoConnection(problem) => Self::Unavailable(problem),
        }
    }
}

/// What an error says; the parameters of the statement are not in it.
fn text_of(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} ({})", error.message(), error.code().code()),
        None => std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": "),
    }
}

impl Failure {
    /// Whether the same may succeed in a moment.
    fn is_passing(&self) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::NoConnection(_) => true,
            Self::Sql(error) => match error.code() {
                Some(code) => {
                    [
                        SqlState::T_R_SERIALIZATION_FAILURE,
                        SqlState::T_R_DEADLOCK_DETECTED,
                        SqlState::ADMIN_SHUTDOWN,
                        SqlState::CRASH_SHUTDOWN,
                        SqlState::CANNOT_CONNECT_NOW,
                        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                        SqlState::TOO_MANY_CONNECTIONS,
                        // A statement that was prepared before another node migrated the database.
                        SqlState::FEATURE_NOT_SUPPORTED,
                    ]
                    .contains(code)
                        || code.code().starts_with("08")
                }
                None => is_of_connection(error),
            },
        }
    }

    fn is_taken(&self) -> bool {
        matches!(self, Self::Sql(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION))
    }
}

fn is_of_connection(error: &tokio_postgres::Error) -> bool {
    error.is_closed()
        || std::iter::successors(std::error::Error::source(error), |error| error.source())
            .any(|source| source.is::<std::io::Error>())
}

/// A connection that is lent out.
pub type Connection = Arc<Lease>;

/// A parameter.
pub type Parameter<'a> = &'a (dyn ToSql + Sync);

/// A connection as long as it is lent out. One on which something may still be under way is not given back.
pub struct Lease {
    object: Option<Object>,
    is_at_rest: AtomicBool,
}

impl Lease {
    fn object(&self) -> Result<&Object, Failure> {
        self.object.as_ref().ok_or_else(|| Failure::NoConnection("closed".into()))
    }

    /// Runs a query.
    ///
    /// # Errors
    /// It failed.
    pub async fn query(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, Failure> {
        let object = self.object()?;
        let statement = object.prepare_cached(sql).await?;
        Ok(object.query(&statement, parameters).await?)
    }

    /// The first row of a query, if there is one.
    ///
    /// # Errors
    /// It failed.
    pub async fn optional(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Option<Row>, Failure> {
        Ok(self.query(sql, parameters).await?.into_iter().next())
    }

    /// The first row of a query.
    ///
    /// # Errors
    /// There is none, or it failed.
    pub async fn one(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Row, Failure> {
        self.optional(sql, parameters).await?.ok_or(Failure::Refused(StoreError::NotFound))
    }

    /// A query that gives one number.
    ///
    /// # Errors
    /// It failed.
    pub async fn count(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<u64, Failure> {
        let number: i64 = self.one(sql, parameters).await?.try_get(0)?;
        Ok(u64::try_from(number).unwrap_or(0))
    }

    /// Runs a statement; gives how many rows it changed.
    ///
    /// # Errors
    /// It failed.
    pub async fn execute(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<u64, Failure> {
        let object = self.object()?;
        let statement = object.prepare_cached(sql).await?;
        Ok(object.execute(&statement, parameters).await?)
    }

    /// Runs statements without parameters, in one round trip.
    ///
    /// # Errors
    /// One failed.
    pub async fn batch(&self, sql: &str) -> Result<(), Failure> {
        Ok(self.object()?.batch_execute(sql).await?)
    }

    fn rests(&self, is_at_rest: bool) {
        self.is_at_rest.store(is_at_rest, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let is_at_rest = *self.is_at_rest.get_mut();
        match self.object.take() {
            Some(object) if !is_at_rest => drop(Object::take(object)),
            _ => {}
        }
    }
}

/// The connections of one purpose.
pub struct Pool {
    connections: deadpool_postgres::Pool,
    tickets: Arc<Tickets>,
    call_timeout: Duration,
}

/// The numbers of this life's writes.
#[derive(Debug)]
pub struct Tickets {
    /// This life, as the database counts them; 0 before that is known.
    writer: AtomicI64,
    numbers: Mutex<Numbers>,
}

#[derive(Debug)]
struct Numbers {
    next: i64,
    /// Those whose outcome may still be asked for.
    open: BTreeSet<i64>,
}

impl Tickets {
    /// None given out.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let numbers = Mutex::new(Numbers { next: 1, open: BTreeSet::new() });
        Arc::new(Self { writer: AtomicI64::new(0), numbers })
    }

    /// Notes which life this is.
    pub fn begin_life(&self, writer: u64) {
        self.writer.store(whole(writer), Ordering::Relaxed);
    }

    /// Which life this is, and the number below which nobody will ask any more.
    #[must_use]
    pub fn settled(&self) -> (i64, i64) {
        let numbers = self.numbers.lock();
        (self.writer.load(Ordering::Relaxed), numbers.open.first().copied().unwrap_or(numbers.next))
    }

    fn take(self: &Arc<Self>) -> Ticket {
        let mut numbers = self.numbers.lock();
        let number = numbers.next;
        numbers.next += 1;
        numbers.open.insert(number);
        Ticket { tickets: self.clone(), number }
    }
}

struct Ticket {
    tickets: Arc<Tickets>,
    number: i64,
}

impl Ticket {
    fn begin(&self) -> String {
        let writer = self.tickets.writer.load(Ordering::Relaxed);
        format!("BEGIN; INSERT INTO writes (writer, number) VALUES ({writer}, {})", self.number)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.tickets.numbers.lock().open.remove(&self.number);
    }
}

impl Pool {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// The pool cannot be built.
    pub fn new(
        target: &Target,
        connections_max: usize,
        tickets: Arc<Tickets>,
        limits: &Limits,
    ) -> StoreResult<Self> {
        let call_timeout = Duration::from_millis(limits.store_call_timeout_ms);
        let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(target.config.clone(), target.tls.clone(), config);
        let session = session_settings(limits);
        let prepared = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
            let session = session.clone();
            Box::pin(async move { client.batch_execute(&session).await.map_err(HookError::Backend) })
        });
        let timeouts = Timeouts {
            wait: Some(call_timeout),
            create: Some(CONNECT_TIMEOUT),
            recycle: Some(CONNECT_TIMEOUT),
        };
        let connections = deadpool_postgres::Pool::builder(manager)
            .max_size(connections_max)
            .runtime(Runtime::Tokio1)
            .timeouts(timeouts)
            .post_create(prepared)
            .build()
            .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(Self { connections, tickets, call_timeout })
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        match self.connections.get().await {
            Ok(object) => Ok(Arc::new(Lease { object: Some(object), is_at_rest: AtomicBool::new(true) })),
            Err(PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error))) => {
                Err(error.into())
            }
            Err(PoolError::Timeout(TimeoutType::Wait)) => {
                Err(StoreError::Unavailable("every connection to the database is in use".into()).into())
            }
            Err(PoolError::Closed) => Err(StoreError::Unavailable("closed".into()).into()),
            Err(error) => Err(Failure::NoConnection(error.to_string())),
        }
    }

    /// Runs what only reads.
    ///
    /// # Errors
    /// What `run` gives, or the database is away for too long.
    pub async fn read<T, Fut>(&self, run: impl Fn(Connection) -> Fut) -> StoreResult<T>
    where
        Fut: Future<Output = Result<T, Failure>>,
    {
        let mut patience = Patience::new();
        let trying = async {
            loop {
                match self.try_read(&run).await {
                    Ok(result) => return Ok(result),
                    Err(failure) => patience.after(failure).await?,
                }
            }
        };
        let ended = tokio::time::timeout(self.call_timeout, trying).await;
        ended.unwrap_or_else(|_| Err(patience.over()))
    }

    async fn try_read<T, Fut>(&self, run: &impl Fn(Connection) -> Fut) -> Result<T, Failure>
    where
        Fut: Future<Output = Result<T, Failure>>,
    {
        let connection = self.connect().await?;
        connection.rests(false);
        let result = run(connection.clone()).await;
        connection.rests(!matches!(&result, Err(Failure::Sql(_))));
        result
    }

    /// Runs a transaction, once.
    ///
    /// # Errors
    /// What `run` gives, and nothing was changed; or the database is away for too long, and what was under way may have
    /// happened or not.
    pub async fn write<T, Fut>(&self, run: impl Fn(Connection) -> Fut) -> StoreResult<T>
    where
        Fut: Future<Output = Result<T, Failure>>,
    {
        let ticket = self.tickets.take();
        let mut in_doubt = None;
        let mut patience = Patience::new();
        let trying = async {
            loop {
                match self.try_write(&ticket, &mut in_doubt, &run).await {
                    Ok(result) => return Ok(result),
                    Err(failure) => patience.after(failure).await?,
                }
            }
        };
        let ended = tokio::time::timeout(self.call_timeout, trying).await;
        ended.unwrap_or_else(|_| Err(patience.over()))
    }

    /// `in_doubt` is what is to be said if a COMMIT that was not answered turns out to have happened.
    async fn try_write<T, Fut>(
        &self,
        ticket: &Ticket,
        in_doubt: &mut Option<T>,
        run: &impl Fn(Connection) -> Fut,
    ) -> Result<T, Failure>
    where
        Fut: Future<Output = Result<T, Failure>>,
    {
        let connection = self.connect().await?;
        connection.rests(false);
        if let Err(failure) = connection.batch(&ticket.begin()).await {
            self.undo(&connection, &failure).await;
            if failure.is_taken()
                && let Some(result) = in_doubt.take()
            {
                return Ok(result);
            }
            return Err(failure);
        }
        match run(connection.clone()).await {
            Ok(result) => *in_doubt = Some(result),
            Err(failure) => {
                self.undo(&connection, &failure).await;
                return Err(failure);
            }
        }
        connection.batch("COMMIT").await?;
        connection.rests(true);
        in_doubt.take().ok_or_else(|| StoreError::Unavailable("a result was lost".into()).into())
    }

    /// Ends a transaction that failed, if the connection is still there.
    async fn undo(&self, connection: &Connection, failure: &Failure) {
        let is_broken = matches!(failure, Failure::Sql(error) if error.code().is_none());
        if !is_broken && connection.batch("ROLLBACK").await.is_ok() {
            // What was prepared for a database of before is not used again.
            let is_outdated = matches!(failure, Failure::Sql(error)
                if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED));
            connection.rests(!is_outdated);
        }
    }

    /// Runs something on a connection, without trying again.
    ///
    /// # Errors
    /// What `run` gives, or no connection can be had.
    pub async fn once<T, Fut>(&self, run: impl FnOnce(Connection) -> Fut) -> StoreResult<T>
    where
        Fut: Future<Output = Result<T, Failure>>,
    {
        let connection = self.connect().await?;
        connection.rests(false);
        let result = run(connection.clone()).await;
        connection.rests(result.is_ok());
        Ok(result?)
    }

    /// Ends all connections that are not lent out, and lends out none any more.
    pub fn close(&self) {
        self.connections.close();
    }
}

/// How one call bears that PostgreSQL fails it.
struct Patience {
    pause: Duration,
    tries: u32,
    /// What the last try failed of.
    last: Option<StoreError>,
}

impl Patience {
    fn new() -> Self {
        Self { pause: PAUSE, tries: 0, last: None }
    }

    /// Waits a little after a failure that passes.
    async fn after(&mut self, failure: Failure) -> StoreResult<()> {
        self.tries += 1;
        if !failure.is_passing() || self.tries >= TRIES_MAX {
            return Err(failure.into());
        }
        tracing::debug!(?failure, tries = self.tries, "the store tries again");
        self.last = Some(failure.into());
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }

    /// What is said when its time is over.
    fn over(self) -> StoreError {
        self.last.unwrap_or_else(|| StoreError::Unavailable("no answer in time".into()))
    }
}

/// What every connection is told when it begins. Acknowledged means on disk, whatever the server's default is; what it says
/// about standbys stays.
fn session_settings(limits: &Limits) -> String {
    let statement_ms = limits.store_statement_timeout_ms;
    format!(
        "SET statement_timeout = {statement_ms}; SET lock_timeout = {statement_ms}; \
         SET idle_in_transaction_session_timeout = {statement_ms}; \
         SET default_transaction_isolation = 'read committed'; \
         SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
}
