//! Tasks and hirings: what their parties may do, and who is told.

use std::sync::Arc;

use muster_protocol::agent::Agent;
use muster_protocol::analytics::Event;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::escrow::{Payment, RequestHash};
use muster_protocol::hiring::{self, FailureReason, HireRequest, Hiring, HiringStatus, HiringView};
use muster_protocol::ids::{AgentId, HiringId, MessageId, TaskId, UserId};
use muster_protocol::json::Json;
use muster_protocol::ledger::Account;
use muster_protocol::limits::Limits;
use muster_protocol::money::Amount;
use muster_protocol::task::{Ending, Note, Task, TaskRequest, TaskStatus, TaskView, check_note};
use muster_protocol::topic::{agent_topic, event, hirer_topic};
use serde::Serialize;
use serde_json::json;

use crate::analytics::Analytics;
use crate::counterpart::counterpart;
use crate::handoffs;
use crate::notices::Notices;
use crate::online::Online;
use crate::ports::Environment;
use crate::pubsub::PubSub;
use crate::settings::LedgerSettings;
use crate::store::{Store, StoreError};
use crate::task_channel;
use crate::task_stream::{Streams, refusal_of};

/// Tasks and hirings.
pub struct Tasks {
    /// Store.
    pub store: Arc<dyn Store>,
    /// Streams.
    pub streams: Streams,
    /// Topics.
    pub pubsub: Arc<PubSub>,
    /// Who is online.
    pub online: Arc<Online>,
    /// Who is told of changes.
    pub notices: Arc<Notices>,
    /// Figures.
    pub analytics: Arc<Analytics>,
    /// Time and randomness.
    pub environment: Environment,
    /// Bounds.
    pub limits: Arc<Limits>,
    /// Who pays here, and the platform's part.
    pub ledger: LedgerSettings,
}

impl Tasks {
    /// Creates a task for a client agent.
    ///
    /// # Errors
    /// A field that does not fit; the provider is unknown, not active, or blocks or is blocked by the client; the price is
    /// above what the client would pay at most, or than it has.
    pub async fn create(
        &self,
        client: &Agent,
        request: TaskRequest,
        key: Option<RequestHash>,
    ) -> Result<Task, Refusal> {
        request.check(&self.limits)?;
        let provider = self.provider(client, request.provider_agent_id).await?;
        let payment = self.payment(client, request.price, request.max_price).await?;
        let payment = Payment { request: key, ..payment };
        let task = Task { payment, ..self.new_task(client, provider.id, request) };
        if let Some(made) = self.make(&task, None).await? {
            return Ok(made);
        }
        self.tell_created(&task);
        Ok(task)
    }

    /// Hires an agent: a task, and the order it belongs to. An agent that is offline fails the hiring at once, unless
    /// the request says to wait (agrenting.md R143).
    ///
    /// # Errors
    /// As for [`Self::create`]; the price is the agent's, unless the request names one.
    pub async fn hire(
        &self,
        user: Option<UserId>,
        client: &Agent,
        agent: &Agent,
        request: HireRequest,
        key: Option<RequestHash>,
    ) -> Result<(Hiring, Task), Refusal> {
        let queue = request.queue;
        let capability = agent.capabilities.first().map_or("task", String::as_str);
        let price = request.price.or(Some(agent.base_price));
        let request = TaskRequest { price, ..request.task(agent.id, capability) };
        request.check(&self.limits)?;
        let agent = self.provider(client, agent.id).await?;
        let now = self.environment.now();
        let id = HiringId::new(now, self.environment.id_entropy());
        let payment = self.payment(client, request.price, request.max_price).await?;
        let payment = Payment { request: key, ..payment };
        let mut task = Task { hiring: Some(id), payment, ..self.new_task(client, agent.id, request) };
        self.fail_if_absent(&mut task, queue)?;
        let hiring = Hiring {
            id,
            user: user.or(client.owner),
            client: client.id,
            agent: agent.id,
            agent_did: agent.did,
            task: task.id,
            status: HiringStatus::from(task.status),
            created_at: now,
            updated_at: now,
        };
        if let Some(made) = self.make(&task, Some(&hiring)).await? {
            let hiring = made.hiring.ok_or(ErrorCode::Internal)?;
            return Ok((self.store.hiring(hiring).await.map_err(refusal_of)?, made));
        }
        self.tell_hired(&hiring, &task);
        Ok((hiring, task))
    }

    /// Stores a new task, unless the same request has made one before, which is given: its first answer was lost.
    async fn make(&self, task: &Task, hiring: Option<&Hiring>) -> Result<Option<Task>, Refusal> {
        match (self.store.create_task(task.clone(), hiring.cloned()).await, task.payment.request) {
            (Err(StoreError::AlreadyExists), Some(request)) => {
                self.store.task_of_request(request).await.map(Some).map_err(refusal_of)
            }
            (made, _) => made.map(|()| None).map_err(refusal_of),
        }
    }

    /// Tries a failed or cancelled hiring again, with a new task of the same content.
    ///
    /// # Errors
    /// It is neither failed nor cancelled, or the agent cannot be hired any more.
    pub async fn retry(
        &self,
        client: &Agent,
        hiring: &Hiring,
        queue: bool,
    ) -> Result<(Hiring, Task), Refusal> {
        hiring.status.check_retry()?;
        let old = self.store.task(hiring.task).await.map_err(refusal_of)?;
        self.provider(client, hiring.agent).await?;
        let payment = self.payment(client, old.payment.price, old.max_price).await?;
        let now = self.environment.now();
        let mut task = Task {
            id: TaskId::new(now, self.environment.id_entropy()),
            status: TaskStatus::Pending,
            output: None,
            error: None,
            payment,
            created_at: now,
            updated_at: now,
            ended_at: None,
            progress: None,
            ..old
        };
        self.fail_if_absent(&mut task, queue)?;
        let hiring = self.store.retry_hiring(hiring.id, task.clone()).await.map_err(|error| match error {
            StoreError::Conflict => ErrorCode::HiringNotActive.into(),
            other => refusal_of(other),
        })?;
        self.tell_hired(&hiring, &task);
        Ok((hiring, task))
    }

    /// Ends a task; `by` is the agent that does, and the provider in whose name it is done, if it is.
    ///
    /// # Errors
    /// It has ended already, has another provider by now, or a document is too large.
    pub async fn finish(
        &self,
        task: TaskId,
        ending: Ending,
        by: (Option<AgentId>, Option<AgentId>),
    ) -> Result<Task, Refusal> {
        let (field, bytes_max) = match ending.status {
            TaskStatus::Completed => ("output", self.limits.task_document_bytes_max),
            _ => ("error", self.limits.task_error_bytes_max),
        };
        muster_protocol::task::check_document(&ending.document, field, bytes_max)?;
        let task = self.streams.finish(task, ending, by).await?;
        self.tell_ended(&task).await;
        Ok(task)
    }

    /// Gives a pending task to another provider.
    ///
    /// # Errors
    /// It is not pending, or the new provider cannot take it.
    pub async fn reassign(&self, client: &Agent, task: TaskId, provider: AgentId) -> Result<Task, Refusal> {
        let before = self.store.task(task).await.map_err(refusal_of)?;
        let provider = self.provider(client, provider).await?;
        let task = self.streams.reassign(task, provider.id, client.id).await?;
        // Always: what was read before may have changed meanwhile, and who is out must not go on listening.
        task_channel::reassigned(&self.pubsub, &task);
        // Who had it last was told where it was given away.
        self.publish_task(&agent_topic(task.provider), event::TASK_CREATED, &task);
        if before.provider != task.provider {
            self.tell_handoff(&task).await;
            self.analytics.record(Event::TaskReassigned(&task));
        }
        Ok(task)
    }

    /// Adds a note to a task; the other parties get it as a message.
    ///
    /// # Errors
    /// Its text does not fit, or the task has as many as it may.
    pub async fn add_note(
        &self,
        task: &Task,
        (agent, user): (Option<AgentId>, Option<UserId>),
        content: String,
    ) -> Result<Note, Refusal> {
        check_note(&content, &self.limits)?;
        let now = self.environment.now();
        let note = Note {
            id: MessageId::new(now, self.environment.id_entropy()),
            from_agent_id: agent,
            from_user_id: user,
            content,
            inserted_at: now,
        };
        let notes_max = self.limits.notes_per_task_max;
        self.store.add_note(task.id, note.clone(), notes_max).await.map_err(refusal_of)?;
        let message = Json::of(&json!({
            "id": note.id,
            "type": if task.hiring.is_some() { "hiring_message" } else { "task_message" },
            "payload": { "task_id": task.id, "hiring_id": task.hiring, "content": &note.content, "from_user_id": user },
            "from_agent_id": agent,
            "protocol_version": NOTE_PROTOCOL_VERSION,
            "inserted_at": note.inserted_at,
        }));
        if let Some(agent) = agent {
            self.analytics.record(Event::MessageSent(agent));
        }
        for party in [task.client, task.provider] {
            if Some(party) != agent {
                self.analytics.record(Event::MessageReceived(party));
                self.pubsub.publish(&agent_topic(party), event::NEW_MESSAGE, message.clone());
            }
        }
        if let Some(owner) = task.client_owner.filter(|owner| Some(*owner) != user) {
            self.pubsub.publish(&hirer_topic(owner), event::NEW_MESSAGE, message);
        }
        Ok(note)
    }

    /// The provider of a new task, if it can be one for this client.
    async fn provider(&self, client: &Agent, provider: AgentId) -> Result<Agent, Refusal> {
        let field = (provider, "provider_agent_id");
        counterpart(self.store.as_ref(), self.environment.now(), client.id, field).await
    }

    /// What a task of a client costs, and whether that is held here: of a client whose account was ever funded, or if all
    /// must pay here.
    async fn payment(
        &self,
        client: &Agent,
        price: Option<Amount>,
        price_max: Option<Amount>,
    ) -> Result<Payment, Refusal> {
        let is_held = match price {
            None => false,
            Some(_) if self.ledger.required => true,
            Some(_) => {
                let account = Account::Agent(client.id);
                self.store.balance(account).await.map_err(refusal_of)?.is_funded
            }
        };
        Payment::new(price, price_max, self.ledger.platform_fee_bps, is_held)
    }

    /// A new task whose price is held in any case, as it is to be stored.
    ///
    /// # Errors
    /// The price is above what the client would pay at most.
    pub(crate) fn paid_ahead(&self, client: &Agent, request: TaskRequest) -> Result<Task, Refusal> {
        let payment = Payment::new(request.price, request.max_price, self.ledger.platform_fee_bps, true)?;
        Ok(Task { payment, ..self.new_task(client, request.provider_agent_id, request) })
    }

    fn new_task(&self, client: &Agent, provider: AgentId, request: TaskRequest) -> Task {
        let now = self.environment.now();
        Task {
            id: TaskId::new(now, self.environment.id_entropy()),
            status: TaskStatus::Pending,
            client: client.id,
            client_owner: client.owner,
            provider,
            capability: request.capability,
            input: request.input.unwrap_or_else(Json::null),
            output: None,
            error: None,
            max_price: request.max_price,
            external_client: request.external_client,
            hiring: None,
            payment: Payment::default(),
            created_at: now,
            updated_at: now,
            ended_at: None,
            progress: None,
        }
    }

    fn fail_if_absent(&self, task: &mut Task, queue: bool) -> Result<(), Refusal> {
        if !queue && !self.online.contains(task.provider) {
            task.status = TaskStatus::Failed;
            task.error = Some(hiring::failure(FailureReason::AgentUnresponsive, None, &self.limits)?);
            task.ended_at = Some(task.created_at);
            task.payment = task.payment.given_back();
        }
        Ok(())
    }

    fn publish_task(&self, topic: &str, event: &'static str, task: &Task) {
        #[derive(Serialize)]
        struct Payload<'a> {
            task: TaskView<'a>,
        }
        // Not through a JSON tree: what is in a task need not fit one (a number beyond all floats).
        self.pubsub.publish(topic, event, Json::of(&Payload { task: task.view() }));
    }

    fn publish_hiring(&self, topic: &str, event: &'static str, hiring: &Hiring) {
        #[derive(Serialize)]
        struct Payload<'a> {
            hiring: HiringView<'a>,
        }
        self.pubsub.publish(topic, event, Json::of(&Payload { hiring: hiring.view() }));
    }

    /// Tells of a task that was created.
    pub(crate) fn tell_created(&self, task: &Task) {
        self.analytics.record(Event::TaskCreated(task));
        if task.status.is_final() {
            self.analytics.record(Event::TaskEnded(task));
        }
        if let Some(owner) = task.client_owner {
            self.publish_task(&hirer_topic(owner), event::TASK_SUBMITTED, task);
        }
        if !task.status.is_final() {
            self.publish_task(&agent_topic(task.provider), event::TASK_CREATED, task);
        }
    }

    fn tell_hired(&self, hiring: &Hiring, task: &Task) {
        let hirer = hiring.user.map(hirer_topic);
        if let Some(hirer) = &hirer {
            self.publish_hiring(hirer, event::HIRING_CREATED, hiring);
        }
        if hiring.status == HiringStatus::Failed {
            if let Some(hirer) = &hirer {
                self.publish_hiring(hirer, event::HIRING_FAILED, hiring);
            }
        } else {
            self.publish_hiring(&agent_topic(hiring.agent), event::HIRING_CREATED, hiring);
        }
        self.tell_created(task);
    }

    /// Tells of the handoff with which the task was created, if it was with one.
    async fn tell_handoff(&self, task: &Task) {
        match self.store.handoff_of_task(task.id).await {
            Ok(Some(handoff)) => handoffs::tell(&self.pubsub, &handoff, task),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "cannot read the handoff of a task"),
        }
    }

    async fn tell_ended(&self, task: &Task) {
        let earned = task.payment.earned().map(|amount| {
            let (agent, capability) = (task.provider, task.capability.as_str());
            Event::Earned { agent, capability, amount }
        });
        self.analytics.record_all(std::iter::once(Event::TaskEnded(task)).chain(earned));
        let (task_event, hiring_event) = match task.status {
            TaskStatus::Completed => (event::TASK_COMPLETED, event::HIRING_COMPLETED),
            TaskStatus::Cancelled => (event::TASK_CANCELLED, event::HIRING_CANCELLED),
            _ => (event::TASK_FAILED, event::HIRING_FAILED),
        };
        // Whoever did not do it is told: the provider of a withdrawal, the client of anything else.
        let other = if task.status == TaskStatus::Cancelled { task.provider } else { task.client };
        self.publish_task(&agent_topic(other), task_event, task);
        task_channel::ended(&self.pubsub, task);
        self.tell_handoff(task).await;
        if let Some(hiring) = task.hiring {
            match self.store.hiring(hiring).await {
                Ok(hiring) => {
                    if let Some(user) = hiring.user {
                        self.publish_hiring(&hirer_topic(user), hiring_event, &hiring);
                    }
                    if task.status == TaskStatus::Cancelled {
                        self.publish_hiring(&agent_topic(hiring.agent), hiring_event, &hiring);
                    }
                }
                Err(error) => tracing::error!(%error, "cannot read a hiring that has ended"),
            }
        }
        // Its reputation has changed: those who watch it see that.
        if self.online.contains(task.provider) {
            match self.store.agent(task.provider).await {
                Ok(agent) => self.notices.agent_changed(&Arc::new(agent)),
                Err(error) => tracing::error!(%error, "cannot read a provider"),
            }
        }
    }
}

/// Notes have the shape of messages of this version.
const NOTE_PROTOCOL_VERSION: &str = "1.1.0";
