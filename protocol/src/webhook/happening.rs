//! What webhooks are told of: changes of tasks and agents, movements of money, disputes, and messages that were given up.

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{EventKind, OUTPUT_BYTES_MAX};
use crate::agent::Agent;
use crate::ids::{AgentId, DeliveryId, LedgerEntryId, UserId, WebhookId};
use crate::json::Json;
use crate::ledger::{Account, Entry, EntryKind};
use crate::message::{Message, MessageStatus};
use crate::money::Amount;
use crate::payment_channel::{Channel, ChannelStatus};
use crate::task::{Task, TaskStatus, TaskView};
use crate::time::Timestamp;

/// Something that webhooks are told of.
#[derive(Clone, Debug)]
pub struct Happening {
    /// What.
    pub event: EventKind,
    /// The id of what it happened to: with the event and the time it makes the delivery's id.
    pub subject: [u8; 16],
    /// The agents it concerns, and through them their owners.
    pub agents: Vec<AgentId>,
    /// Users it concerns.
    pub users: Vec<UserId>,
    /// What is told.
    pub data: Json,
    /// When.
    pub at: Timestamp,
}

impl Happening {
    /// What a change of a task is: one event, or two when it begins or is created failed.
    #[must_use]
    pub fn of_task(task: &Task, is_new: bool) -> Vec<Self> {
        let kinds = match (is_new, task.status) {
            (true, TaskStatus::Pending) => vec![EventKind::TaskCreated],
            (true, status) => vec![EventKind::TaskCreated, EventKind::of_status(status)],
            (false, TaskStatus::InProgress) => vec![EventKind::TaskClaimed, EventKind::TaskInProgress],
            (false, status) => vec![EventKind::of_status(status)],
        };
        let data = task_data(task);
        let happening = |event| Self {
            event,
            subject: *task.id.as_bytes(),
            agents: vec![task.client, task.provider],
            users: task.client_owner.into_iter().collect(),
            data: data.clone(),
            at: task.updated_at,
        };
        kinds.into_iter().map(happening).collect()
    }

    /// A task was given to another provider: cancelled for the one before, created for the other, as on their sockets.
    #[must_use]
    pub fn of_reassignment(task: &Task, before: AgentId) -> Vec<Self> {
        if before == task.provider {
            return Vec::new();
        }
        let data = task_data(task);
        let happening = |event, agent| Self {
            event,
            subject: *task.id.as_bytes(),
            agents: vec![agent],
            users: Vec::new(),
            data: data.clone(),
            at: task.updated_at,
        };
        vec![happening(EventKind::TaskCancelled, before), happening(EventKind::TaskCreated, task.provider)]
    }

    /// An agent's status was changed.
    #[must_use]
    pub fn of_agent(agent: &Agent) -> Self {
        let data = serde_json::json!({
            "agent": { "id": agent.id, "did": agent.did, "name": agent.name, "status": agent.status.as_str() },
        });
        Self {
            event: EventKind::AgentStatusChanged,
            subject: *agent.id.as_bytes(),
            agents: vec![agent.id],
            users: Vec::new(),
            data: Json::of(&data),
            at: agent.updated_at,
        }
    }

    /// Whether an entry of this kind may be told: whoever posts it need not look any further otherwise.
    #[must_use]
    pub const fn tells_of(kind: EntryKind) -> bool {
        kind.may_pay() || matches!(kind, EntryKind::Credit | EntryKind::Debit)
    }

    /// What a movement of money is: told to payer and payee, or to whose account the operator changed.
    #[must_use]
    pub fn of_entry(entry: &Entry) -> Option<Self> {
        let (event, agents, users, payment) = match entry.kind {
            EntryKind::Credit | EntryKind::Debit => {
                let (agent, user, delta) =
                    entry.postings.iter().find_map(|posting| match posting.account {
                        Account::Agent(agent) => Some((Some(agent), None, posting.delta)),
                        Account::User(user) => Some((None, Some(user), posting.delta)),
                        _ => None,
                    })?;
                let event = match entry.kind {
                    EntryKind::Credit => EventKind::PaymentDeposited,
                    _ => EventKind::WithdrawalProcessed,
                };
                let amount = Amount::from_micros(delta.0.saturating_abs())?;
                let payment =
                    PaymentData { agent_id: agent, user_id: user, ..PaymentData::new(entry, amount) };
                (event, agent.into_iter().collect(), user.into_iter().collect(), payment)
            }
            _ => {
                let paid = entry.paid()?;
                let payment = PaymentData {
                    fee: Some(paid.fee),
                    from_agent_id: Some(paid.from),
                    to_agent_id: Some(paid.to),
                    ..PaymentData::new(entry, paid.amount)
                };
                (EventKind::PaymentConfirmed, vec![paid.from, paid.to], Vec::new(), payment)
            }
        };
        let data = Json::of(&serde_json::json!({ "payment": payment }));
        Some(Self { event, subject: *entry.id.as_bytes(), agents, users, data, at: entry.at })
    }

    /// What a change of a payment channel is: nothing unless it is disputed now, which no change leaves so.
    #[must_use]
    pub fn of_channel(channel: &Channel) -> Vec<Self> {
        let Some(dispute) = channel.dispute.as_ref().filter(|_| channel.status == ChannelStatus::Disputed)
        else {
            return Vec::new();
        };
        // Its parties read the evidence, which may be large, in the channel.
        let data = Json::of(&serde_json::json!({
            "channel": {
                "id": channel.id, "status": channel.status, "nonce": channel.nonce, "agent_a": channel.agent_a,
                "agent_b": channel.agent_b, "balance_a": channel.balance_a, "balance_b": channel.balance_b,
            },
            "dispute": { "agent_id": dispute.agent_id, "reason": dispute.reason, "at": dispute.at },
        }));
        let happening = |event| Self {
            event,
            subject: *channel.id.as_bytes(),
            agents: vec![channel.agent_a, channel.agent_b],
            users: Vec::new(),
            data: data.clone(),
            at: dispute.at,
        };
        [EventKind::PaymentDisputed, EventKind::TaskDisputed].map(happening).into()
    }

    /// A message was given up: told to its sender and its recipient, who may read what was in it by its id.
    #[must_use]
    pub fn of_dead_letter(message: &Message, at: Timestamp) -> Self {
        let data = serde_json::json!({
            "message": {
                "id": message.id, "type": message.kind, "from_agent_id": message.from, "to_agent_id": message.to,
                "status": MessageStatus::Failed, "retry_count": message.retries, "protocol_version": message.version,
                "delivery_guarantee": message.guarantee, "inserted_at": message.inserted_at,
            },
        });
        Self {
            event: EventKind::MessageDeadLetter,
            subject: *message.id.as_bytes(),
            agents: vec![message.from, message.to],
            users: Vec::new(),
            data: Json::of(&data),
            at,
        }
    }

    /// The id of its delivery to a webhook: the same whenever it is worked out, so that nothing is queued twice.
    #[must_use]
    pub fn delivery(&self, webhook: WebhookId) -> DeliveryId {
        let mut hash = Sha256::new();
        hash.update(webhook.as_bytes());
        hash.update(self.event.as_str().as_bytes());
        hash.update(self.subject);
        hash.update(self.at.unix_ms().to_be_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(hash.finalize().get(..16).unwrap_or(&[0; 16]));
        DeliveryId::from_bytes(id)
    }
}

/// A movement of money as it is told; what does not belong to its kind is left out.
#[derive(Serialize)]
struct PaymentData<'a> {
    id: LedgerEntryId,
    kind: EntryKind,
    /// What was given, with the fee.
    amount: Amount,
    #[serde(skip_serializing_if = "Option::is_none")]
    fee: Option<Amount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_agent_id: Option<AgentId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to_agent_id: Option<AgentId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_id: Option<AgentId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<UserId>,
    /// The id of the task or the payment channel, or what the operator called it.
    reference: Option<&'a str>,
    at: Timestamp,
}

impl<'a> PaymentData<'a> {
    fn new(entry: &'a Entry, amount: Amount) -> Self {
        Self {
            id: entry.id,
            kind: entry.kind,
            amount,
            fee: None,
            from_agent_id: None,
            to_agent_id: None,
            agent_id: None,
            user_id: None,
            reference: entry.reference.as_deref(),
            at: entry.at,
        }
    }
}

/// A task without its input, which whoever gave it knows, and with its output if that is short.
fn task_data(task: &Task) -> Json {
    #[derive(Serialize)]
    struct Data<'a> {
        task: TaskView<'a>,
        output_omitted: bool,
    }
    let is_long = task.output.as_ref().is_some_and(|output| output.as_bytes().len() > OUTPUT_BYTES_MAX);
    let null = Json::null();
    let view = task.view();
    let output = view.output.filter(|_| !is_long);
    Json::of(&Data { task: TaskView { input: &null, output, ..view }, output_omitted: is_long })
}
