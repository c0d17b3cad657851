//! Payment channels: the rules of `muster_protocol::payment_channel` over the store, one session for each channel that is
//! being used here.

use std::sync::Arc;

use async_trait::async_trait;
use muster_protocol::agent::Agent;
use muster_protocol::analytics::Event;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::escrow::RequestHash;
use muster_protocol::idempotency::KEPT_MS;
use muster_protocol::ids::{AgentId, PaymentChannelId};
use muster_protocol::json::Json;
use muster_protocol::ledger::{Entry, Side};
use muster_protocol::limits::Limits;
use muster_protocol::payment_channel::Channel;
use muster_protocol::payment_channel::machine::{Action, Audience, Command, Periods, Step};
use muster_protocol::payment_channel::request::{OpenRequest, Resolution};
use muster_protocol::task::check_document;
use muster_protocol::time::Timestamp;
use muster_protocol::topic::{part, payment_topic};

use crate::analytics::Analytics;
use crate::counterpart::counterpart;
use crate::metric_definitions::Metrics;
use crate::ports::Environment;
use crate::pubsub::PubSub;
use crate::session::{Decision, Rules, Sessions};
use crate::store::{Store, StoreError, StoreResult};
use crate::supervisor::ChildSpec;
use crate::task_stream::refusal_of;

/// Payment channels.
pub struct Payments {
    sessions: Sessions<PaymentRules>,
    environment: Environment,
    limits: Arc<Limits>,
}

/// How a channel is read, changed and told.
pub struct PaymentRules {
    store: Arc<dyn Store>,
    pubsub: Arc<PubSub>,
    analytics: Arc<Analytics>,
    periods: Periods,
}

/// Under which capability figures have what was earned by payment channels: those move money for whatever the two agree on.
const CAPABILITY: &str = "payment";

#[async_trait]
impl Rules for PaymentRules {
    type Id = PaymentChannelId;
    type Record = Channel;
    type Command = Command;
    type Change = Step;
    type Answer = Json;

    const NAME: &'static str = "payment";

    async fn load(&self, id: PaymentChannelId) -> StoreResult<Channel> {
        self.store.payment_channel(id).await
    }

    fn decide(&self, record: &Channel, command: &Command, now: Timestamp) -> Decision<Self> {
        let (change, answer) = record.decide(command, now, self.periods);
        Decision { change, answer }
    }

    async fn save(&self, before: &Channel, step: &Step) -> StoreResult<Channel> {
        let after = step.after.clone();
        self.store.save_payment_channel(before.version, after.clone(), step.entry.clone()).await?;
        Ok(after)
    }

    fn tell(&self, after: &Channel, step: &Step) {
        if let Some(paid) = step.entry.as_ref().and_then(Entry::paid) {
            let (agent, amount) = (paid.to, paid.earned());
            self.analytics.record(Event::Earned { agent, capability: CAPABILITY, amount });
        }
        let topic = payment_topic(after.id);
        for told in &step.told {
            // Each side listens under its own name, so that what is for one reaches one, and in order.
            for side in [Side::A, Side::B] {
                if told.to == Audience::Both || told.to == Audience::Only(side) {
                    let of_side = part(&topic, &after.agent(side).to_string());
                    self.pubsub.publish(&of_side, told.event, told.payload.clone());
                }
            }
        }
    }

    async fn due(&self, now: Timestamp, limit: usize) -> StoreResult<Vec<PaymentChannelId>> {
        self.store.payment_channels_due(now, limit).await
    }

    fn when_due(&self) -> Command {
        Command::Due
    }
}

fn period(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

impl Payments {
    /// None in use yet.
    #[must_use]
    pub fn new(
        (store, pubsub): (Arc<dyn Store>, Arc<PubSub>),
        environment: Environment,
        limits: Arc<Limits>,
        metrics: Arc<Metrics>,
        analytics: Arc<Analytics>,
    ) -> Self {
        let periods = Periods { proposal_ms: period(limits.payment_proposal_ms) };
        let rules = PaymentRules { store, pubsub, analytics, periods };
        let sessions = Sessions::new(rules, limits.payment_channels_live_max, environment.clone(), metrics);
        Self { sessions, environment, limits }
    }

    /// How the supervisor of its actors is started.
    #[must_use]
    pub fn child(&self) -> ChildSpec {
        self.sessions.child()
    }

    fn store(&self) -> &Arc<dyn Store> {
        &self.sessions.rules().store
    }

    /// Opens a channel to another agent, and holds what the opener puts in (R92).
    ///
    /// # Errors
    /// What [`OpenRequest::open`] refuses; the other agent is unknown, not active, or blocks or is blocked by the opener;
    /// `insufficient_balance`; `already_exists` when there is a channel of the chosen id; `limit_reached` when it has opened
    /// as many as it may, and they are not over.
    pub async fn open(
        &self,
        opener: &Agent,
        request: &OpenRequest,
        key: Option<RequestHash>,
    ) -> Result<Channel, Refusal> {
        let now = self.environment.now();
        // Under a key the id follows from it, so that the same request opens no second channel.
        let id = match key {
            Some(key) => PaymentChannelId::of_request(key),
            None => PaymentChannelId::new(now, self.environment.id_entropy()),
        };
        let accept_until = now.plus_ms(period(self.limits.payment_channel_accept_ms));
        let (channel, entry) = request.open((id, opener.id, opener.public_key), now, accept_until)?;
        let other = (channel.agent_b, "counterparty_agent_id");
        counterpart(self.store().as_ref(), now, opener.id, other).await?;
        let live_max = self.limits.payment_channels_per_agent_max;
        match self.store().create_payment_channel(channel.clone(), entry, live_max).await {
            // Its first answer was lost.
            Err(StoreError::AlreadyExists) if key.is_some() && request.channel_id.is_none() => {
                let made = self.of_party(id, opener.id).await?;
                // A key is free again after its time; then this is another request.
                let is_over = now.ms_since(made.created_at) >= KEPT_MS;
                if is_over { Box::pin(self.open(opener, request, None)).await } else { Ok(made) }
            }
            made => made.map(|()| channel).map_err(refusal_of),
        }
    }

    /// A channel, if the agent is one of its parties.
    ///
    /// # Errors
    /// `not_found`, for others' channels too.
    pub async fn of_party(&self, id: PaymentChannelId, agent: AgentId) -> Result<Channel, Refusal> {
        let channel = self.sessions.read(id).await?;
        if channel.side_of(agent).is_some() { Ok(channel) } else { Err(ErrorCode::NotFound.into()) }
    }

    /// The two agents of a channel, if there is one.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn sides(&self, id: PaymentChannelId) -> Result<Option<[AgentId; 2]>, Refusal> {
        match self.store().payment_channel(id).await {
            Ok(channel) => Ok(Some([channel.agent_a, channel.agent_b])),
            Err(StoreError::NotFound) => Ok(None),
            Err(error) => Err(refusal_of(error)),
        }
    }

    /// A party does something.
    ///
    /// # Errors
    /// What the rules refuse; a reason or evidence that is too large.
    pub async fn act(&self, id: PaymentChannelId, agent: AgentId, action: Action) -> Result<Json, Refusal> {
        match &action {
            Action::Reject(rejection) => {
                rejection.reason.as_deref().map_or(Ok(()), |reason| self.check_reason(reason))?;
            }
            Action::Dispute(objection) => {
                self.check_reason(&objection.reason)?;
                let bytes_max = self.limits.dispute_evidence_bytes_max;
                check_document(&objection.evidence, "evidence", bytes_max)?;
            }
            _ => {}
        }
        self.sessions.ask(id, Command::Party(agent, action)).await
    }

    fn check_reason(&self, reason: &str) -> Result<(), Refusal> {
        let chars_max = self.limits.note_chars_max;
        if !reason.trim().is_empty() && reason.chars().count() <= chars_max {
            return Ok(());
        }
        Err(Refusal::field(ErrorCode::InvalidPayload, "reason", format!("1 to {chars_max} characters")))
    }

    /// The operator resolves a dispute.
    ///
    /// # Errors
    /// It is not disputed, or the balances do not add up to what is held.
    pub async fn resolve(&self, id: PaymentChannelId, resolution: Resolution) -> Result<Json, Refusal> {
        self.sessions.ask(id, Command::Resolve(resolution)).await
    }

    /// Has proposals lapse and unaccepted channels expire.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn sweep(&self) -> Result<(), Refusal> {
        self.sessions.sweep().await
    }
}
