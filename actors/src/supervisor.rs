//! The supervisor of a node's own actors. A child that crashes is started again; one that crashes too often takes the
//! supervisor down, and with it the node, so that whoever runs the node sees it and starts a new one. Below it, a [`Brood`] keeps
//! the crashes of its children to itself.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::RwLock;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, Message, SpawnErr, SupervisionEvent};

use crate::inbox::Wake;
use crate::metric_definitions::Metrics;
use crate::ports::Environment;

pub(crate) type Spawned = Pin<Box<dyn Future<Output = Result<ActorCell, SpawnErr>> + Send>>;

/// How one child is started, at first and after a crash. The state it works on lives outside of it and survives.
pub struct ChildSpec {
    /// For logs and metrics.
    pub name: &'static str,
    /// Starts it, linked to the supervisor given.
    pub start: Box<dyn Fn(ActorCell) -> Spawned + Send + Sync>,
}

/// Crashes of one child within [`CRASH_WINDOW_MS`] after which the supervisor gives up.
const CRASHES_MAX: usize = 10;
/// See [`CRASHES_MAX`].
const CRASH_WINDOW_MS: u64 = 60_000;

/// What the supervisor is told.
pub enum Request {
    /// Start this child, and keep it running. Answers when it runs.
    Start(ChildSpec, tokio::sync::oneshot::Sender<Result<ActorCell, SpawnErr>>),
}

impl Message for Request {}

/// The supervisor.
pub struct Supervisor;

/// Its children.
pub struct State {
    environment: Environment,
    metrics: Arc<Metrics>,
    children: HashMap<ActorId, Child>,
}

struct Child {
    spec: ChildSpec,
    crashed_at_ms: Vec<u64>,
}

impl Actor for Supervisor {
    type Msg = Request;
    type State = State;
    type Arguments = (Environment, Arc<Metrics>);

    async fn pre_start(
        &self,
        _myself: ActorRef<Request>,
        (environment, metrics): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State { environment, metrics, children: HashMap::new() })
    }

    async fn handle(
        &self,
        myself: ActorRef<Request>,
        Request::Start(spec, reply): Request,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let started = (spec.start)(myself.get_cell()).await;
        if let Ok(cell) = &started {
            state.children.insert(cell.get_id(), Child { spec, crashed_at_ms: Vec::new() });
        }
        let _caller_gone = reply.send(started);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Request>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                let Some(child) = state.children.remove(&cell.get_id()) else {
                    return Ok(());
                };
                tracing::error!(actor = child.spec.name, %error, "actor crashed; starting it again");
                state.metrics.crashes.get_or_create(&[("kind", child.spec.name)]).inc();
                restart(myself, child, state).await
            }
            SupervisionEvent::ActorTerminated(cell, _, _) => {
                state.children.remove(&cell.get_id());
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

async fn restart(
    myself: ActorRef<Request>,
    mut child: Child,
    state: &mut State,
) -> Result<(), ActorProcessingErr> {
    let now_ms = state.environment.monotonic_ms();
    child.crashed_at_ms.retain(|at| now_ms.saturating_sub(*at) < CRASH_WINDOW_MS);
    child.crashed_at_ms.push(now_ms);
    if child.crashed_at_ms.len() > CRASHES_MAX {
        return Err(format!("{} crashed {CRASHES_MAX} times within a minute", child.spec.name).into());
    }
    let cell = (child.spec.start)(myself.get_cell()).await?;
    state.children.insert(cell.get_id(), child);
    Ok(())
}

/// Asks the supervisor to start a child.
///
/// # Errors
/// The child did not start, or the supervisor is gone.
pub async fn start(supervisor: &ActorRef<Request>, spec: ChildSpec) -> Result<ActorCell, ActorProcessingErr> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    supervisor.send_message(Request::Start(spec, reply)).map_err(|_| "the supervisor is gone")?;
    Ok(answer.await??)
}

/// Actors of one sort that are not started again when they crash: whoever needs one next starts it anew.
pub struct Brood(Arc<Brooding>);

struct Brooding {
    /// Of the supervisor, in logs.
    name: &'static str,
    /// Of a child, in logs and metrics.
    kind: &'static str,
    cell: RwLock<Option<ActorCell>>,
    metrics: Arc<Metrics>,
}

impl Brood {
    /// Without its supervisor yet. `kind` is what a child is called.
    #[must_use]
    pub fn new(name: &'static str, kind: &'static str, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Brooding { name, kind, cell: RwLock::default(), metrics }))
    }

    /// How its supervisor is started.
    #[must_use]
    pub fn child(&self) -> ChildSpec {
        let brooding = self.0.clone();
        let start = move |parent| -> Spawned {
            let brooding = brooding.clone();
            Box::pin(async move {
                let (actor, _) = Actor::spawn_linked(None, BroodActor, brooding, parent).await?;
                Ok(actor.get_cell())
            })
        };
        ChildSpec { name: self.0.name, start: Box::new(start) }
    }

    /// To whom a child is linked; none before the supervisor has started.
    #[must_use]
    pub fn supervisor(&self) -> Option<ActorCell> {
        self.0.cell.read().clone()
    }
}

struct BroodActor;

impl Actor for BroodActor {
    type Msg = Wake;
    type State = Arc<Brooding>;
    type Arguments = Arc<Brooding>;

    async fn pre_start(
        &self,
        myself: ActorRef<Wake>,
        brooding: Arc<Brooding>,
    ) -> Result<Arc<Brooding>, ActorProcessingErr> {
        *brooding.cell.write() = Some(myself.get_cell());
        Ok(brooding)
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Wake>,
        event: SupervisionEvent,
        brooding: &mut Arc<Brooding>,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, error) = event {
            let kind = brooding.kind;
            tracing::error!(%error, kind, "an actor crashed");
            brooding.metrics.crashes.get_or_create(&[("kind", kind)]).inc();
        }
        Ok(())
    }
}
