//! The rules of each topic: what a join does, and what its events do. One file a topic.
//!
//! Who may join is decided in `muster_protocol::join_rules`, and asked in [`Channel::join`] or, where the record has to be
//! read first, in the join of the channel.

mod agent;
mod analytics;
mod discovery;
mod hirer;
mod messages;
mod negotiation;
mod payment;
mod task;
mod task_stream;
mod team;

pub use self::discovery::find;

use std::sync::Arc;

use muster_protocol::account::Scope;
use muster_protocol::agent::Agent;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::join_rules;
use muster_protocol::json::Json;
use muster_protocol::phoenix::Ref;
use muster_protocol::topic::Topic;

use crate::core::Core;
use crate::egress::Outlet;
use crate::online::Appearance;
use crate::socket::{OwnedPayload, Socket};

/// A joined topic: what it holds on to, so that leaving is dropping it.
pub enum Channel {
    /// `agent:<id>`
    Agent(agent::AgentChannel),
    /// `hirer:<id>`
    Hirer(hirer::HirerChannel),
    /// `task_stream:<id>`
    TaskStream(task_stream::TaskStreamChannel),
    /// `payment:<id>`
    Payment(payment::PaymentChannel),
    /// `task:<id>`
    Task(task::TaskChannel),
    /// `messages:<id>`
    Messages(messages::MessagesChannel),
    /// `negotiation:<id>`
    Negotiation(negotiation::NegotiationChannel),
    /// `agents:discovery`
    Discovery(discovery::DiscoveryChannel),
    /// `analytics:…`
    Analytics(analytics::AnalyticsChannel),
    /// `team:<id>`
    Team(team::TeamChannel),
}

/// When a push is answered.
pub enum Answer {
    /// With this.
    Now(Json),
    /// By somebody else.
    Later,
}

/// Event that crashes the channel, where drills are allowed: how a client sees a fault of the server.
const DRILL_EVENT: &str = "muster.drill.crash";

impl Channel {
    /// Joins a topic: asks whether it is allowed, subscribes, and answers.
    ///
    /// # Errors
    /// The join is refused; nothing was answered and nothing is held.
    pub async fn join(
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        topic: Topic,
        payload: &OwnedPayload,
        reference: &Ref,
    ) -> Result<Self, Refusal> {
        let task = match topic {
            Topic::TaskStream(Some(task)) | Topic::Task(Some(task)) => {
                socket.core.streams.parties(task).await?
            }
            _ => None,
        };
        if let Topic::Analytics(scope) = topic {
            // Who may is asked there: it turns on who owns an agent.
            let channel = analytics::AnalyticsChannel::join(socket, outlet, scope, reference).await?;
            return Ok(Self::Analytics(channel));
        }
        join_rules::may_join(&socket.principal, topic, task.as_ref())?;
        match topic {
            Topic::Agent(_) => agent::AgentChannel::join(socket, outlet, reference).await.map(Self::Agent),
            Topic::Hirer(_) => Ok(Self::Hirer(hirer::HirerChannel::join(socket, outlet, reference).await)),
            Topic::TaskStream(task) => {
                let task = task.ok_or(ErrorCode::Unauthorized)?;
                let channel =
                    task_stream::TaskStreamChannel::join(socket, outlet, task, payload, reference).await?;
                Ok(Self::TaskStream(channel))
            }
            Topic::Task(task) => {
                let task = task.ok_or(ErrorCode::Unauthorized)?;
                task::TaskChannel::join(socket, outlet, task, payload, reference).await.map(Self::Task)
            }
            Topic::Messages(agent) => {
                let agent = agent.ok_or(ErrorCode::Unauthorized)?;
                messages::MessagesChannel::join(socket, outlet, agent, reference).await.map(Self::Messages)
            }
            Topic::Negotiation(id) => {
                let id = id.ok_or(ErrorCode::Unauthorized)?;
                negotiation::NegotiationChannel::join(socket, outlet, id, reference)
                    .await
                    .map(Self::Negotiation)
            }
            Topic::Payment(id) => {
                let id = id.ok_or(ErrorCode::Unauthorized)?;
                payment::PaymentChannel::join(socket, outlet, id, reference).await.map(Self::Payment)
            }
            Topic::Team(team) => {
                let team = team.ok_or(ErrorCode::Unauthorized)?;
                team::TeamChannel::join(socket, outlet, team, reference).await.map(Self::Team)
            }
            Topic::Discovery => discovery::DiscoveryChannel::join(socket, outlet, payload, reference)
                .await
                .map(Self::Discovery),
            Topic::Analytics(_) => Err(ErrorCode::Unauthorized.into()),
        }
    }

    /// Handles an event from the client.
    ///
    /// # Errors
    /// The event is refused; nothing was changed.
    pub async fn push(
        &mut self,
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        event: &str,
        payload: OwnedPayload,
        reference: &Ref,
    ) -> Result<Answer, Refusal> {
        if socket.core.drills && event == DRILL_EVENT {
            #[allow(clippy::panic, reason = "a crash drill crashes")]
            {
                panic!("crash drill");
            }
        }
        match self {
            Self::Agent(_) => agent::push(socket, outlet, event, &payload, reference).await,
            Self::Task(channel) => channel.push(socket, outlet, event, &payload, reference).await,
            Self::Discovery(channel) => channel.push(socket, event, &payload).await,
            Self::Messages(channel) => channel.push(socket, outlet, event, &payload, reference).await,
            Self::Analytics(channel) => channel.push(socket, outlet, event, &payload).await,
            Self::Payment(channel) => channel.push(socket, event, &payload).await,
            Self::Negotiation(channel) => channel.push(socket, event, &payload).await,
            Self::Team(channel) => channel.push(socket, event, &payload).await,
            Self::Hirer(_) | Self::TaskStream(_) => Err(ErrorCode::UnknownEvent.into()),
        }
    }
}

/// The agent's record as it stands now: what it was at connect may have changed since.
async fn current_agent(socket: &Socket) -> Result<Arc<Agent>, Refusal> {
    let id = socket.principal.acting_agent()?;
    let agent = socket.core.store.agent(id).await.map_err(crate::task_stream::refusal_of)?;
    if agent.status.may_connect() { Ok(Arc::new(agent)) } else { Err(ErrorCode::Unauthorized.into()) }
}

/// Shows an agent as online by one more connection. `changes` is what [`crate::online::Online::changes`] gave before its
/// record was read: if there were more since, the record is read again.
async fn appear(
    core: &Core,
    agent: Arc<Agent>,
    changes: u64,
    own_topic: bool,
) -> Result<Appearance, Refusal> {
    let id = agent.id;
    let appearance = core.online.appear(agent, own_topic);
    if core.online.changes() != changes {
        let agent = core.store.agent(id).await.map_err(crate::task_stream::refusal_of)?;
        core.online.note(&Arc::new(agent));
    }
    Ok(appearance)
}

/// Changes that an agent makes to itself need the write scope.
fn require_write(socket: &Socket) -> Result<(), Refusal> {
    socket.principal.require(Scope::Write)
}
