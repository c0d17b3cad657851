//! Messages between agents: who may send what to whom, and who is told of what becomes of it (agrenting.md N, O).
//!
//! # Layout
//! * this file: sending, settling, reading, and what is not kept any longer
//! * [`addresses`]: what is known of senders and recipients
//! * `accepting`: what is sent is stored, with what comes with it
//! * `gather`: many requests in one transaction
//!
//! How a message gets to its recipient: [`crate::mailbox`].

mod accepting;
pub mod addresses;
mod gather;

use std::sync::Arc;

use async_trait::async_trait;
use muster_protocol::account::{Principal, Scope};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{AgentId, MessageId};
use muster_protocol::json::Json;
use muster_protocol::limits::Limits;
use muster_protocol::message::{
    Guarantee, Message, MessageRequest, MessageStatus, Receipt, Verdict, check_key, kinds,
};
use muster_protocol::protocol_version::{Table, Version, negotiate};
use muster_protocol::signing::statement::{self, Digest};
use muster_protocol::time::Timestamp;
use muster_protocol::topic::{event, messages_topic};
use serde::Serialize;

use self::accepting::Accepting;
use self::addresses::{Address, Addresses};
pub use self::gather::Waiter;
use self::gather::{Gather, Work};
use crate::agent_changes::AgentChanges;
use crate::handoffs::Handoffs;
use crate::mailbox::Mailboxes;
use crate::metric_definitions::Metrics;
use crate::ports::Environment;
use crate::pubsub::PubSub;
use crate::rate_limits::Buckets;
use crate::store::{
    MessageFilter, NewMessage, Outcome, Page, PageRequest, Settle, Store, StoreError, queued_bytes,
};
use crate::task_stream::refusal_of;

/// Messages of a node.
pub struct Messages {
    store: Arc<dyn Store>,
    /// What is known of senders and recipients.
    addresses: Arc<Addresses>,
    telling: Telling,
    environment: Environment,
    limits: Arc<Limits>,
    versions: Table,
    buckets: Buckets<AgentId>,
    accepting: Gather<Accepting>,
    settling: Gather<Settling>,
    handoffs: Arc<Handoffs>,
    changes: Arc<AgentChanges>,
}

/// Tells senders and recipients.
#[derive(Clone)]
pub(crate) struct Telling {
    pub mailboxes: Mailboxes,
    pub pubsub: Arc<PubSub>,
    pub metrics: Arc<Metrics>,
}

impl Telling {
    /// Tells the sender where its message is.
    pub fn sender(&self, outcome: &Outcome) {
        let topic = messages_topic(outcome.from);
        // Whoever is told has joined, here or at a node that has said so.
        if self.mailboxes.is_joined(outcome.from) || !self.pubsub.wanted_by(&topic).is_empty() {
            self.pubsub.publish(&topic, event::MESSAGE_STATUS, status_of(outcome));
        }
    }

    /// These are settled: nobody pushes them any more, and their senders hear of it if it is new.
    fn settled<'a>(&self, outcomes: impl Iterator<Item = &'a Outcome> + Clone) {
        self.mailboxes.settled(outcomes.clone().map(|outcome| (outcome.to, outcome.id)));
        outcomes.filter(|outcome| outcome.is_new).for_each(|outcome| self.sender(outcome));
    }
}

/// Where a message is, as it is told.
#[must_use]
pub fn status_of(outcome: &Outcome) -> Json {
    #[derive(Serialize)]
    struct Status<'a> {
        id: MessageId,
        status: MessageStatus,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
        retry_count: u32,
    }
    Json::of(&Status {
        id: outcome.id,
        status: outcome.status,
        reason: outcome.reason.as_deref(),
        retry_count: outcome.retries,
    })
}

struct Settling {
    store: Arc<dyn Store>,
    telling: Telling,
}

#[async_trait]
impl Work for Settling {
    type Item = Settle;
    type Answer = Outcome;

    fn weight(_settle: &Settle) -> usize {
        256
    }

    async fn work(&self, all: Vec<Settle>) -> Vec<Result<Outcome, Refusal>> {
        let wanted: Vec<MessageStatus> = all.iter().map(|settle| settle.verdict.status()).collect();
        let settled = match self.store.settle_messages(all).await {
            Ok(settled) => settled,
            Err(error) => {
                let refusal = refusal_of(error);
                return wanted.iter().map(|_| Err(refusal.clone())).collect();
            }
        };
        // Before anybody is answered: what is answered is never pushed again.
        self.telling.settled(settled.iter().flatten());
        let answer = |(wanted, settled): (MessageStatus, Result<Outcome, StoreError>)| {
            let outcome = settled.map_err(refusal_of)?;
            // To say the same again changes nothing.
            if outcome.status == wanted { Ok(outcome) } else { Err(not_active(outcome.status)) }
        };
        wanted.into_iter().zip(settled).map(answer).collect()
    }
}

fn not_active(status: MessageStatus) -> Refusal {
    Refusal::wrong_status(ErrorCode::MessageNotActive, status.as_str())
}

/// Messages that are ended, or forgotten, in one transaction.
const SWEPT_AT_ONCE: usize = 1_000;

impl Messages {
    /// With the store and the ports of the mailboxes. Its tasks run until it is dropped.
    #[must_use]
    pub fn new(
        addresses: Arc<Addresses>,
        mailboxes: &Mailboxes,
        versions: &Table,
        (handoffs, changes): (Arc<Handoffs>, Arc<AgentChanges>),
    ) -> Self {
        let needs = mailboxes.needs();
        let telling = Telling {
            mailboxes: mailboxes.clone(),
            pubsub: needs.pubsub.clone(),
            metrics: needs.metrics.clone(),
        };
        let (store, limits) = (needs.store.clone(), needs.limits.clone());
        let (places, together) = (limits.message_queue_max, limits.store_batch_rows_max);
        let accepting = Accepting {
            store: store.clone(),
            telling: telling.clone(),
            analytics: needs.analytics.clone(),
            environment: needs.environment.clone(),
            versions: versions.clone(),
            handoffs: handoffs.clone(),
        };
        let settling = Settling { store: store.clone(), telling: telling.clone() };
        Self {
            accepting: Gather::start(accepting, places, together),
            settling: Gather::start(settling, places, together),
            buckets: Buckets::new(limits.messages_per_agent),
            environment: needs.environment.clone(),
            store,
            addresses,
            telling,
            limits,
            versions: versions.clone(),
            handoffs,
            changes,
        }
    }

    /// Sends a message; whoever waits is answered when it is durable. `key` is that of the request, by which it is known if
    /// it has none itself.
    pub async fn send(
        &self,
        principal: &Principal,
        request: MessageRequest,
        key: Option<&str>,
        waiter: Waiter<Receipt>,
    ) {
        let new = match self.prepare(principal, request, key).await {
            Ok(new) => new,
            Err(refusal) => return waiter.answer(Err(refusal)),
        };
        match new.message.kind.as_str() {
            kinds::TASK_HANDOFF => match self.handoffs.prepare(&new.message).await {
                Ok(with) => self.accepting.ask((new, Some(Box::new(with))), waiter).await,
                Err(refusal) => waiter.answer(Err(refusal)),
            },
            kinds::STATUS_UPDATE => waiter.answer(self.send_status(new).await),
            _ => self.accepting.ask((new, None), waiter).await,
        }
    }

    /// Sends what an agent says of itself; it is known to all when that is answered (R128).
    async fn send_status(&self, new: NewMessage) -> Result<Receipt, Refusal> {
        let (from, payload) = (new.message.from, new.message.payload.clone().unwrap_or_else(Json::null));
        self.changes.check_status(from, &payload).await?;
        let (waiter, answer) = Waiter::request();
        self.accepting.ask((new, None), waiter).await;
        let receipt = answer.await.unwrap_or_else(|_| Err(ErrorCode::Internal.into()))?;
        // As of when the message was sent first: a repeat does not bring back what is old.
        self.changes.set_status(from, &payload, receipt.inserted_at).await?;
        Ok(receipt)
    }

    /// Checks who sends what to whom (R115, R118, R121, R126, R131, R132). Reads nothing but what is not known yet.
    async fn prepare(
        &self,
        principal: &Principal,
        request: MessageRequest,
        key: Option<&str>,
    ) -> Result<NewMessage, Refusal> {
        principal.require(Scope::Write)?;
        request.check(&self.limits)?;
        let from = match request.from_agent_id {
            Some(from) => from,
            None => principal.acting_agent()?,
        };
        let foreign = || Refusal::field(ErrorCode::Forbidden, "from_agent_id", "not your agent");
        let sender = match self.addresses.of(from).await {
            Ok(sender) if speaks_for(principal, from, &sender) => sender,
            // Somebody else's agent and one that does not exist give the same answer.
            Ok(_) => return Err(foreign()),
            Err(refusal) if refusal.code == ErrorCode::NotFound => return Err(foreign()),
            Err(refusal) => return Err(refusal),
        };
        let now_ms = self.environment.monotonic_ms();
        self.buckets.take(from, now_ms).map_err(Refusal::rate_limited)?;
        let to = request.to_agent_id;
        let recipient = self.addresses.of(to).await.map_err(|refusal| match refusal.code {
            ErrorCode::NotFound => {
                Refusal::field(ErrorCode::NotFound, "to_agent_id", "there is no such agent")
            }
            _ => refusal,
        })?;
        let now = self.environment.now();
        may_send((&sender, from), &recipient, now)?;
        let (yours, theirs, asked) = (&sender.versions, &recipient.versions, request.version()?);
        let version = negotiate(yours, theirs, asked, now, &self.versions)?.version;
        let guarantee = request.guarantee_under(version)?;
        check_signature(&request, from, version, &sender)?;
        let once = self.once(&request, from, guarantee, key)?;
        let bytes = request.payload.as_bytes().len();
        if let Err(refusal) = self.addresses.take_place((from, to), &recipient, bytes).await {
            // A repeat takes no place: its sender is told of the first (R121).
            let Some((key, _)) = &once else { return Err(refusal) };
            if !self.store.is_known(from, key.clone(), now).await.map_err(refusal_of)? {
                return Err(refusal);
            }
        }
        let kept_ms = i64::try_from(self.limits.message_retention_ms).unwrap_or(i64::MAX);
        let message = Message {
            id: MessageId::new(now, self.environment.id_entropy()),
            from,
            to,
            kind: request.kind,
            payload: Some(request.payload),
            version: version.to_string(),
            guarantee,
            dedup_key: request.dedup_key,
            signature: request.signature,
            status: MessageStatus::Queued,
            reason: None,
            retries: 0,
            delivered_at: None,
            acknowledged_at: None,
            inserted_at: now,
            expires_at: now.plus_ms(kept_ms),
        };
        Ok(NewMessage { message, once })
    }

    /// By what a repeat is known: the message's own key, else that of the request.
    fn once(
        &self,
        request: &MessageRequest,
        from: AgentId,
        guarantee: Guarantee,
        key: Option<&str>,
    ) -> Result<Option<(String, Digest)>, Refusal> {
        let Some(key) = request.dedup_key.as_deref().or(key).filter(|_| guarantee == Guarantee::ExactlyOnce)
        else {
            return Ok(None);
        };
        check_key(key, &self.limits)?;
        Ok(Some((key.to_owned(), request.fingerprint(from))))
    }

    /// Notes what a recipient says of a message; whoever waits is answered when it is durable.
    pub async fn settle(&self, to: AgentId, id: MessageId, verdict: Verdict, waiter: Waiter<Outcome>) {
        let now = self.environment.now();
        self.settling.ask(Settle { id, to, verdict, now }, waiter).await;
    }

    /// A message, if it is any business of the caller's, and whether they are its sender and its recipient.
    ///
    /// # Errors
    /// `not_found`: there is no such message for this caller.
    pub async fn visible(
        &self,
        principal: &Principal,
        id: MessageId,
    ) -> Result<(Message, (bool, bool)), Refusal> {
        let message = self.store.message(id).await.map_err(refusal_of)?;
        let sent = self.is_own(principal, message.from).await?;
        let received = self.is_own(principal, message.to).await?;
        if sent || received {
            Ok((message.as_of(self.environment.now()), (sent, received)))
        } else {
            Err(ErrorCode::NotFound.into())
        }
    }

    /// Whether a caller speaks for an agent.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn is_own(&self, principal: &Principal, agent: AgentId) -> Result<bool, Refusal> {
        if principal.agent == Some(agent) || principal.user.is_none() {
            return Ok(principal.agent == Some(agent));
        }
        match self.addresses.of(agent).await {
            Ok(address) => Ok(speaks_for(principal, agent, &address)),
            Err(refusal) if refusal.code == ErrorCode::NotFound => Ok(false),
            Err(refusal) => Err(refusal),
        }
    }

    /// Messages, newest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn list(&self, filter: MessageFilter, page: PageRequest) -> Result<Page<Message>, Refusal> {
        let now = self.environment.now();
        let page = self.store.messages(filter, page).await.map_err(refusal_of)?;
        let items = page.items.into_iter().map(|message| message.as_of(now)).collect();
        Ok(Page { items, ..page })
    }

    /// Queues a dead letter again, for either of its parties, if it could be sent now. Of several at once one does, and all are
    /// answered how it is then.
    ///
    /// # Errors
    /// It is none of the caller's; it is no dead letter, or not kept any longer; its sender may not send to its recipient any
    /// more, or as much waits for that as may.
    pub async fn redeliver(&self, principal: &Principal, id: MessageId) -> Result<Message, Refusal> {
        principal.require(Scope::Write)?;
        let (message, _) = self.visible(principal, id).await?;
        if message.status != MessageStatus::Failed {
            return Err(not_active(message.status));
        }
        let (from, to) = (message.from, message.to);
        let (sender, recipient) = (self.addresses.of(from).await?, self.addresses.of(to).await?);
        let now = self.environment.now();
        may_send((&sender, from), &recipient, now)?;
        self.addresses.take_place((from, to), &recipient, queued_bytes(&message)).await?;
        match self.store.redeliver_message(id, now).await {
            Ok(queued) => {
                self.telling.mailboxes.news(std::iter::once(queued.to));
                Ok(queued)
            }
            Err(StoreError::Conflict) => {
                // It was a dead letter just now: somebody else has done it, or it has ended.
                let after = self.store.message(id).await.map_err(refusal_of)?.as_of(now);
                let is_again = matches!(after.status, MessageStatus::Queued | MessageStatus::Delivered);
                if is_again { Ok(after) } else { Err(not_active(after.status)) }
            }
            Err(error) => Err(refusal_of(error)),
        }
    }

    /// Ends and forgets what is not kept any longer; gives how many messages that were.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn sweep(&self) -> Result<(usize, usize), Refusal> {
        let now = self.environment.now();
        let kept_ms = i64::try_from(self.limits.message_ids_kept_ms).unwrap_or(i64::MAX);
        let (mut ended, mut forgotten) = (0, 0);
        loop {
            let (looked, expired) =
                self.store.expire_messages(now, SWEPT_AT_ONCE).await.map_err(refusal_of)?;
            self.telling.settled(expired.iter());
            ended += looked;
            if looked < SWEPT_AT_ONCE {
                break;
            }
        }
        loop {
            let before = now.plus_ms(-kept_ms);
            let gone = self.store.purge_messages(before, SWEPT_AT_ONCE).await.map_err(refusal_of)?;
            forgotten += gone;
            if gone < SWEPT_AT_ONCE {
                return Ok((ended, forgotten));
            }
        }
    }
}

/// Whether two agents are on terms on which one sends to the other (R115).
fn may_send((sender, from): (&Address, AgentId), recipient: &Address, now: Timestamp) -> Result<(), Refusal> {
    if recipient.is_blocked(from, now) {
        return Err(Refusal::field(ErrorCode::Forbidden, "to_agent_id", "one of you blocks the other"));
    }
    if !(sender.may_connect && recipient.may_connect) {
        return Err(ErrorCode::AgentUnavailable.into());
    }
    Ok(())
}

fn speaks_for(principal: &Principal, agent: AgentId, address: &Address) -> bool {
    principal.agent == Some(agent) || principal.user.is_some() && principal.user == address.owner
}

/// Under 2.0.0 a message is signed (R132); one that is signed under another version must be signed as well as there.
fn check_signature(
    request: &MessageRequest,
    from: AgentId,
    version: Version,
    sender: &Address,
) -> Result<(), Refusal> {
    let Some(signature) = &request.signature else {
        if version >= Version::SIGNED {
            let message = format!("protocol version {version} needs one");
            return Err(Refusal::field(ErrorCode::InvalidSignature, "signature", message));
        }
        return Ok(());
    };
    let key = sender.public_key.ok_or(ErrorCode::NoPublicKey)?;
    let statement = statement::Message {
        from: &from,
        to: &request.to_agent_id,
        kind: &request.kind,
        version: &version.to_string(),
        dedup_key: request.dedup_key.as_deref(),
        payload: Digest::of_json(&request.payload)?,
    };
    key.verify(&statement.statement()?, signature)
}
