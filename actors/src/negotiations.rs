//! Negotiations: how the rules of `muster_protocol::negotiation` are stored, and who is told.

use std::sync::Arc;

use async_trait::async_trait;
use muster_protocol::agent::Agent;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, AgreementId, NegotiationId, TaskId};
use muster_protocol::json::Json;
use muster_protocol::limits::Limits;
use muster_protocol::negotiation::request::OpenRequest;
use muster_protocol::negotiation::{
    Change, Command, Happened, Negotiation, Opening, Party, Settings, Side, View,
};
use muster_protocol::signing::{PublicKey, ServerKey};
use muster_protocol::time::Timestamp;
use muster_protocol::topic::{DISCOVERY, agent_topic, event, negotiation_topic, part};
use serde::Serialize;
use serde_json::json;

use crate::counterpart::counterpart;
use crate::metric_definitions::Metrics;
use crate::ports::Environment;
use crate::pubsub::PubSub;
use crate::session::{Decision, Rules, Sessions};
use crate::store::{Store, StoreError, StoreResult};
use crate::supervisor::ChildSpec;
use crate::task_stream::refusal_of;

/// The topic within `negotiation:<id>` on which one side is told what the other need not hear.
#[must_use]
pub fn side_topic(id: NegotiationId, side: Side) -> String {
    part(&negotiation_topic(id), side.as_str())
}

/// The topic within `agents:discovery` on which one agent is told what nobody else need hear.
#[must_use]
pub fn discovery_topic(agent: AgentId) -> String {
    part(DISCOVERY, &agent.to_string())
}

/// What comes of a command.
pub struct Outcome {
    /// What the negotiation is now.
    pub negotiation: Negotiation,
    /// What it has just ended in, as it is stored.
    pub agreement: Option<Json>,
}

/// The rules, with what they need.
pub struct NegotiationRules {
    store: Arc<dyn Store>,
    pubsub: Arc<PubSub>,
    settings: Settings,
    server: ServerKey,
}

#[async_trait]
impl Rules for NegotiationRules {
    type Id = NegotiationId;
    type Record = Negotiation;
    type Command = Command;
    type Change = Change;
    type Answer = Outcome;

    const NAME: &'static str = "negotiation";

    async fn load(&self, id: NegotiationId) -> StoreResult<Negotiation> {
        self.store.negotiation(id).await
    }

    fn decide(&self, record: &Negotiation, command: &Command, now: Timestamp) -> Decision<Self> {
        let step = record.decide(command, &self.settings, &self.server, now);
        let agreement = match step.change.as_ref().map(|change| &change.happened) {
            Some(Happened::Accepted(agreement)) => Some(agreement.document.clone()),
            _ => None,
        };
        let negotiation = step.change.as_ref().map_or(record, |change| &change.after).clone();
        Decision { answer: step.answer.map(|()| Outcome { negotiation, agreement }), change: step.change }
    }

    async fn save(&self, before: &Negotiation, change: &Change) -> StoreResult<Negotiation> {
        let agreement = match &change.happened {
            Happened::Accepted(agreement) => Some((**agreement).clone()),
            _ => None,
        };
        self.store.change_negotiation(before.version, change.after.clone(), agreement).await?;
        Ok(change.after.clone())
    }

    fn tell(&self, after: &Negotiation, change: &Change) {
        let (name, payload) = match &change.happened {
            Happened::Offered => {
                let Some(offer) = after.offers.last() else { return };
                // Not echoed: whoever made it has the answer.
                if let Some(author) = after.side_of(offer.agent_id) {
                    let topic = side_topic(after.id, author.other());
                    self.pubsub.publish(&topic, event::OFFER, Json::of(offer));
                }
                return;
            }
            Happened::Accepted(agreement) => {
                (event::NEGOTIATION_COMPLETE, completed(after, &agreement.document))
            }
            Happened::Rejected => {
                let payload =
                    json!({ "session_id": after.id, "reason": after.reason, "agent_id": after.ended_by });
                (event::NEGOTIATION_REJECTED, Json::of(&payload))
            }
            Happened::Expired => {
                let payload = json!({ "session_id": after.id, "round": after.offers.len() });
                (event::NEGOTIATION_EXPIRED, Json::of(&payload))
            }
        };
        for side in [Side::Client, Side::Provider] {
            self.pubsub.publish(&side_topic(after.id, side), name, payload.clone());
        }
    }

    async fn due(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<NegotiationId>> {
        self.store.negotiations_due(now, limit).await
    }

    fn when_due(&self) -> Command {
        Command::Expire
    }
}

/// That an agreement was made: what is broadcast, and what its accepter is answered (R89).
#[must_use]
pub fn completed(negotiation: &Negotiation, agreement: &Json) -> Json {
    #[derive(Serialize)]
    struct Completed<'a> {
        session_id: NegotiationId,
        agreement_id: Option<AgreementId>,
        amount: Option<Json>,
        agreement: &'a Json,
    }
    #[derive(serde::Deserialize)]
    struct Agreed {
        amount: Json,
    }
    // The agreement is passed on as it was signed, never read and written anew.
    let amount = agreement.parse::<Agreed>().ok().map(|agreed| agreed.amount);
    let (session_id, agreement_id) = (negotiation.id, negotiation.agreement);
    Json::of(&Completed { session_id, agreement_id, amount, agreement })
}

/// A negotiation as `{"session": …}`.
#[must_use]
pub fn session(negotiation: &Negotiation, now: Timestamp) -> Json {
    #[derive(Serialize)]
    struct Session<'a> {
        session: View<'a>,
    }
    Json::of(&Session { session: negotiation.view(now) })
}

/// What negotiations are started with.
pub struct Needs {
    /// Store.
    pub store: Arc<dyn Store>,
    /// Topics.
    pub pubsub: Arc<PubSub>,
    /// Time and randomness.
    pub environment: Environment,
    /// Bounds.
    pub limits: Arc<Limits>,
    /// Rules that are open to choice.
    pub settings: Settings,
    /// With which the server signs agreements.
    pub server: ServerKey,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// Negotiations.
pub struct Negotiations {
    sessions: Sessions<NegotiationRules>,
    store: Arc<dyn Store>,
    pubsub: Arc<PubSub>,
    environment: Environment,
    limits: Arc<Limits>,
}

impl Negotiations {
    /// None live yet.
    #[must_use]
    pub fn new(needs: Needs) -> Self {
        let Needs { store, pubsub, environment, limits, settings, server, metrics } = needs;
        let rules = NegotiationRules { store: store.clone(), pubsub: pubsub.clone(), settings, server };
        let sessions = Sessions::new(rules, limits.sessions_live_max, environment.clone(), metrics);
        Self { sessions, store, pubsub, environment, limits }
    }

    /// How the supervisor of their actors is started.
    #[must_use]
    pub fn child(&self) -> ChildSpec {
        self.sessions.child()
    }

    /// The key by which the server's signatures are verified.
    #[must_use]
    pub fn server_key(&self) -> PublicKey {
        self.sessions.rules().server.public()
    }

    /// A negotiation.
    ///
    /// # Errors
    /// `not_found`, or the store cannot be read.
    pub async fn read(&self, id: NegotiationId) -> Result<Negotiation, Refusal> {
        self.sessions.read(id).await
    }

    /// Does something in a negotiation.
    ///
    /// # Errors
    /// What the rules refuse; `not_found`; the node or its store cannot take it.
    pub async fn ask(&self, id: NegotiationId, command: Command) -> Result<Outcome, Refusal> {
        self.sessions.ask(id, command).await
    }

    /// What the next agreement may be called.
    #[must_use]
    pub fn agreement_id(&self) -> AgreementId {
        AgreementId::new(self.environment.now(), self.environment.id_entropy())
    }

    /// Ends what is over (R86).
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn sweep(&self) -> Result<(), Refusal> {
        self.sessions.sweep().await
    }

    /// Begins a negotiation with another agent, which is told (R134).
    ///
    /// # Errors
    /// The other is unknown, not active, or one blocks the other; the task is none of theirs; the id is used; the agent
    /// has as many open as it may; or what [`Opening::open`] refuses.
    pub async fn open(&self, caller: &Agent, request: OpenRequest) -> Result<Negotiation, Refusal> {
        let chosen = request.chosen_id()?;
        let now = self.environment.now();
        let (by, other) = match request.task_id {
            Some(task) => self.sides_of(task, caller, request.other()?).await?,
            None => {
                let missing = || Refusal::field(ErrorCode::InvalidPayload, "to_agent_id", "is missing");
                (Side::Client, request.other()?.ok_or_else(missing)?)
            }
        };
        let other = counterpart(self.store.as_ref(), now, caller.id, (other, "to_agent_id")).await?;
        let (client, provider) = match by {
            Side::Client => (caller, &other),
            Side::Provider => (&other, caller),
        };
        let party = |agent: &Agent| Party { agent: agent.id, key: agent.public_key };
        let listed_as = NegotiationId::new(now, self.environment.id_entropy());
        let opening = Opening {
            id: chosen.unwrap_or(listed_as),
            listed_as,
            client: party(client),
            provider: party(provider),
            by,
            task: request.task_id,
            base_price: provider.base_price,
            terms: request.terms,
            amount: request.amount,
            signature: request.signature,
        };
        let negotiation = opening.open(&self.sessions.rules().settings, &self.limits, now)?;
        let open_max = self.limits.negotiations_open_per_agent_max;
        self.store.create_negotiation(negotiation.clone(), open_max).await.map_err(|error| match error {
            StoreError::AlreadyExists => {
                Refusal::field(ErrorCode::AlreadyExists, "session_id", "there is one of this id already")
            }
            other => refusal_of(other),
        })?;
        let told = session(&negotiation, now);
        for topic in [agent_topic(other.id), discovery_topic(other.id)] {
            self.pubsub.publish(&topic, event::NEGOTIATION_STARTED, told.clone());
        }
        Ok(negotiation)
    }

    /// On which side of a task the caller is, and who is on the other.
    async fn sides_of(
        &self,
        task: TaskId,
        caller: &Agent,
        named: Option<AgentId>,
    ) -> Result<(Side, AgentId), Refusal> {
        // Somebody else's task does not exist.
        let unknown = || Refusal::field(ErrorCode::NotFound, "task_id", "there is no such task");
        let task = self.store.task(task).await.map_err(|error| match error {
            StoreError::NotFound => unknown(),
            other => refusal_of(other),
        })?;
        let (side, other) = match caller.id {
            id if id == task.client => (Side::Client, task.provider),
            id if id == task.provider => (Side::Provider, task.client),
            _ => return Err(unknown()),
        };
        if named.is_some_and(|named| named != other) {
            let message = "is not the other party of the task";
            return Err(Refusal::field(ErrorCode::InvalidPayload, "to_agent_id", message));
        }
        Ok((side, other))
    }
}
