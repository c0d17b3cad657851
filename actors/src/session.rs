//! Records that two parties change by turns, such as negotiations and payment channels: one actor for each that is being
//! used on this node.
//!
//! The rules are a pure function ([`Rules::decide`]); the actor gives it one command after another, and keeps what it
//! decides before anybody hears of it. Several nodes may have an actor for the same record: the store takes a change only
//! of the record as it is ([`StoreError::Conflict`] else), and whoever was late reads it again and decides anew. So it
//! does not matter which node a party is connected to, and nothing moves when a node goes.

mod actor;

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use async_trait::async_trait;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::time::Timestamp;
use parking_lot::Mutex;
use ractor::Actor;
use tokio::sync::oneshot;

use self::actor::SessionActor;
use crate::inbox::{Inbox, Refused};
use crate::metric_definitions::Metrics;
use crate::ports::Environment;
use crate::store::StoreResult;
use crate::supervisor::{Brood, ChildSpec};
use crate::task_stream::refusal_of;

/// What one sort of record is, and how it changes.
#[async_trait]
pub trait Rules: Send + Sync + 'static {
    /// Names a record.
    type Id: Copy + Eq + Hash + Debug + Send + Sync + 'static;
    /// All there is to know of it, with the version by which the store tells whether it has changed.
    type Record: Clone + Send + Sync + 'static;
    /// What somebody wants to do.
    type Command: Send + Sync + 'static;
    /// What is to be stored, and told.
    type Change: Send + Sync + 'static;
    /// What whoever asked is told.
    type Answer: Send + 'static;

    /// For logs and metrics.
    const NAME: &'static str;

    /// Reads a record.
    async fn load(&self, id: Self::Id) -> StoreResult<Self::Record>;

    /// What a command does to a record. Pure: it has no effect but what it gives.
    fn decide(&self, record: &Self::Record, command: &Self::Command, now: Timestamp) -> Decision<Self>;

    /// Stores a change, if the record is still as it was; gives what it is now.
    ///
    /// # Errors
    /// [`crate::store::StoreError::Conflict`]: it has changed since it was read.
    async fn save(&self, before: &Self::Record, change: &Self::Change) -> StoreResult<Self::Record>;

    /// Tells the parties what has happened.
    fn tell(&self, after: &Self::Record, change: &Self::Change);

    /// Records of which something is due, by the time, oldest first.
    async fn due(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<Self::Id>>;

    /// What is done to a record of which something is due.
    fn when_due(&self) -> Self::Command;
}

/// What comes of a command.
pub struct Decision<R: Rules + ?Sized> {
    /// What changes, if anything does: also where the command is refused.
    pub change: Option<R::Change>,
    /// What whoever asked is told, once the change is stored.
    pub answer: Result<R::Answer, Refusal>,
}

impl<R: Rules + ?Sized> Decision<R> {
    /// Nothing changes.
    #[must_use]
    pub const fn unchanged(answer: R::Answer) -> Self {
        Self { change: None, answer: Ok(answer) }
    }

    /// Nothing changes, and it is refused.
    pub fn refused(refusal: impl Into<Refusal>) -> Self {
        Self { change: None, answer: Err(refusal.into()) }
    }

    /// Something changes.
    #[must_use]
    pub const fn changed(change: R::Change, answer: R::Answer) -> Self {
        Self { change: Some(change), answer: Ok(answer) }
    }
}

/// Commands that wait for one record.
const INBOX_COMMANDS_MAX: usize = 256;
/// Records of which something is due that are looked at in one sweep.
const DUE_AT_ONCE: usize = 1_000;

/// Of those, how many at a time.
const SWEPT_AT_ONCE: usize = 64;

/// A command, and who waits for its answer.
struct Asked<R: Rules> {
    command: R::Command,
    reply: oneshot::Sender<Result<R::Answer, Refusal>>,
}

/// Commands that wait for one record.
type Waiting<R> = Arc<Inbox<Asked<R>>>;

/// The records of one sort that are being used here.
struct Registry<R: Rules> {
    rules: R,
    live: Mutex<HashMap<R::Id, Waiting<R>>>,
    live_max: usize,
    brood: Brood,
    environment: Environment,
}

/// The records of one sort.
pub struct Sessions<R: Rules>(Arc<Registry<R>>);

impl<R: Rules> Sessions<R> {
    /// For so many at once on this node.
    pub fn new(rules: R, live_max: usize, environment: Environment, metrics: Arc<Metrics>) -> Self {
        let brood = Brood::new(R::NAME, R::NAME, metrics);
        Self(Arc::new(Registry { rules, live: Mutex::default(), live_max, brood, environment }))
    }

    /// How the supervisor of these actors is started.
    #[must_use]
    pub fn child(&self) -> ChildSpec {
        self.0.brood.child()
    }

    /// The rules.
    #[must_use]
    pub fn rules(&self) -> &R {
        &self.0.rules
    }

    /// A record as it is stored.
    ///
    /// # Errors
    /// `not_found`, or the store cannot be read.
    pub async fn read(&self, id: R::Id) -> Result<R::Record, Refusal> {
        self.0.rules.load(id).await.map_err(refusal_of)
    }

    /// Does something to a record.
    ///
    /// # Errors
    /// What the rules refuse; `not_found`; `overloaded` when too much waits for it, or too many are in use; the store
    /// cannot be reached.
    pub async fn ask(&self, id: R::Id, command: R::Command) -> Result<R::Answer, Refusal> {
        let (reply, answer) = oneshot::channel();
        let mut asked = Asked { command, reply };
        loop {
            let (inbox, is_new) = self.inbox(id)?;
            let pushed = inbox.push(asked);
            if is_new {
                self.start(id, &inbox).await?;
            }
            match pushed {
                Ok(()) => break,
                Err(Refused::Full(_)) => return Err(ErrorCode::Overloaded.into()),
                // It has just ended; it is not among the live ones any more.
                Err(Refused::Closed(back)) => asked = back,
            }
        }
        answer.await.unwrap_or_else(|_crashed| Err(ErrorCode::Internal.into()))
    }

    /// Does what is due.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn sweep(&self) -> Result<(), Refusal> {
        let now = self.0.environment.now();
        let due = self.0.rules.due(now, DUE_AT_ONCE).await.map_err(refusal_of)?;
        // Some at a time, so that they share transactions.
        let mut asking = tokio::task::JoinSet::new();
        for id in due {
            if asking.len() >= SWEPT_AT_ONCE {
                let _one_is_done = asking.join_next().await;
            }
            let sessions = Self(self.0.clone());
            asking.spawn(async move {
                if let Err(refusal) = sessions.ask(id, sessions.0.rules.when_due()).await {
                    tracing::debug!(?id, %refusal, sort = R::NAME, "what is due could not be done");
                }
            });
        }
        while asking.join_next().await.is_some() {}
        Ok(())
    }

    fn inbox(&self, id: R::Id) -> Result<(Waiting<R>, bool), Refusal> {
        let mut live = self.0.live.lock();
        if let Some(inbox) = live.get(&id) {
            return Ok((inbox.clone(), false));
        }
        if live.len() >= self.0.live_max {
            return Err(ErrorCode::Overloaded.into());
        }
        let inbox = Arc::new(Inbox::new(INBOX_COMMANDS_MAX));
        live.insert(id, inbox.clone());
        Ok((inbox, true))
    }

    async fn start(&self, id: R::Id, inbox: &Waiting<R>) -> Result<(), Refusal> {
        // From here on the place among the live ones is given up whatever happens, a caller that is gone included.
        let life = Life { registry: self.0.clone(), id, inbox: inbox.clone() };
        let supervisor = self.0.brood.supervisor().ok_or(ErrorCode::Draining)?;
        Actor::spawn_linked(None, SessionActor::new(), life, supervisor)
            .await
            .map_err(|_| Refusal::new(ErrorCode::Internal))?;
        Ok(())
    }
}

/// A place among the live ones. Dropped when its actor ends or crashes: whoever waits is told by what is dropped with it.
struct Life<R: Rules> {
    registry: Arc<Registry<R>>,
    id: R::Id,
    inbox: Waiting<R>,
}

impl<R: Rules> Drop for Life<R> {
    fn drop(&mut self) {
        let mut live = self.registry.live.lock();
        if live.get(&self.id).is_some_and(|known| Arc::ptr_eq(known, &self.inbox)) {
            live.remove(&self.id);
        }
        drop(live);
        drop(self.inbox.close());
    }
}

#[cfg(test)]
mod tests;
