//! The store of messages between agents, and of what waits for each recipient.
//!
//! Pushes are counted here, each once, whichever nodes want to push; and nothing is counted of a message that is settled.

use async_trait::async_trait;
use muster_protocol::ids::{AgentId, MessageId, UserId};
use muster_protocol::mailbox::{Attempt, Counted};
use muster_protocol::message::{Message, MessageStatus, Verdict};
use muster_protocol::signing::statement::Digest;
use muster_protocol::time::Timestamp;

use super::{Page, PageRequest, StoreResult};

/// A message to accept.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// As it is to be stored, queued.
    pub message: Message,
    /// Under `exactly_once`: the key by which a repeat is known, and what must be the same then.
    pub once: Option<(String, Digest)>,
}

/// What became of a message that was to be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is stored, behind all that were before it.
    New,
    /// There is one of that key, and it is the same.
    Known(Box<Message>),
    /// There is one of that key, and it is another.
    Mismatch,
}

/// Bytes of a message that count for its recipient's queue.
#[must_use]
pub fn queued_bytes(message: &Message) -> usize {
    message.payload.as_ref().map_or(0, |payload| payload.as_bytes().len())
}

/// A message with its place in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// Place: rises with each message of one recipient.
    pub seq: u64,
    /// The message, its push counted.
    pub message: Message,
    /// Whether it waits for an acknowledgement.
    pub is_open: bool,
}

impl Mail {
    /// What its recipient's mailbox is told of it.
    #[must_use]
    pub const fn counted(&self) -> Counted {
        let (id, retries) = (self.message.id, self.message.retries);
        Counted { seq: self.seq, id, retries, is_open: self.is_open }
    }
}

/// What waits for a recipient.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Messages.
    pub messages: usize,
    /// Bytes of their payloads.
    pub bytes: usize,
    /// What senders have in it, of those with much: messages and bytes.
    pub heavy: Vec<(AgentId, (usize, usize))>,
}

impl Waiting {
    /// What each sender has in it together, with those named who have at least so many messages, or so many bytes.
    #[must_use]
    pub fn of(senders: impl Iterator<Item = (AgentId, (usize, usize))>, heavy: (usize, usize)) -> Self {
        let mut waiting = Self::default();
        for (sender, (messages, bytes)) in senders {
            waiting.messages += messages;
            waiting.bytes += bytes;
            if messages >= heavy.0 || bytes >= heavy.1 {
                waiting.heavy.push((sender, (messages, bytes)));
            }
        }
        waiting
    }
}

/// What a recipient says of a message.
#[derive(Clone, Debug)]
pub struct Settle {
    /// Which.
    pub id: MessageId,
    /// Who says it.
    pub to: AgentId,
    /// What.
    pub verdict: Verdict,
    /// When.
    pub now: Timestamp,
}

/// Where a message is, without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Which.
    pub id: MessageId,
    /// Sender.
    pub from: AgentId,
    /// Recipient.
    pub to: AgentId,
    /// Where it is.
    pub status: MessageStatus,
    /// Why it was rejected.
    pub reason: Option<String>,
    /// Retries that were counted.
    pub retries: u32,
    /// Whether it has come there just now.
    pub is_new: bool,
}

impl Outcome {
    /// Of a message as it is.
    #[must_use]
    pub fn of(message: &Message, is_new: bool) -> Self {
        Self {
            id: message.id,
            from: message.from,
            to: message.to,
            status: message.status,
            reason: message.reason.clone(),
            retries: message.retries,
            is_new,
        }
    }
}

/// Whose messages: those an agent, or any agent of a user, has sent or is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// An agent's.
    Agent(AgentId),
    /// A user's agents'.
    User(UserId),
}

/// Which messages.
#[derive(Clone, Debug)]
pub struct MessageFilter {
    /// Whose.
    pub party: Party,
    /// Of this sender.
    pub from: Option<AgentId>,
    /// To this recipient.
    pub to: Option<AgentId>,
    /// Of this type.
    pub kind: Option<String>,
    /// In this state.
    pub status: Option<MessageStatus>,
}

/// Items that are counted for the total of a list at most; of a longer list the total says this.
pub const COUNTED_MAX: u64 = 10_000;

/// Messages.
#[async_trait]
pub trait MessageStore: Send + Sync + 'static {
    /// Stores messages, in this order, all in one transaction; says of each what became of it.
    async fn accept_messages(&self, new: Vec<NewMessage>) -> StoreResult<Vec<Accepted>>;
    /// Notes what recipients say, all in one transaction; says of each where the message is then. Not found: there is no
    /// such message to that agent.
    async fn settle_messages(&self, settle: Vec<Settle>) -> StoreResult<Vec<StoreResult<Outcome>>>;
    /// A message.
    async fn message(&self, id: MessageId) -> StoreResult<Message>;
    /// Messages, newest first. Of long lists the total stops at [`COUNTED_MAX`].
    async fn messages(&self, filter: MessageFilter, page: PageRequest) -> StoreResult<Page<Message>>;
    /// The oldest messages to an agent that are neither settled nor among the known, at most so many, and about so many
    /// bytes but at least one if there is one. Their first push is counted if it was not; what is pushed at most once is
    /// given to one caller alone. Says whether there may be more.
    async fn fetch_mail(
        &self,
        to: AgentId,
        known: Vec<u64>,
        most: (usize, usize),
        now: Timestamp,
    ) -> StoreResult<(Vec<Mail>, bool)>;
    /// Counts one more push of each of these, unless it was counted since; gives those that are not settled, by place.
    async fn retry_mail(&self, to: AgentId, attempts: Vec<Attempt>, now: Timestamp)
    -> StoreResult<Vec<Mail>>;
    /// Those of these places that are not settled, by place, about so many bytes of them but at least one.
    async fn read_mail(&self, to: AgentId, seqs: Vec<u64>, bytes_max: usize) -> StoreResult<Vec<Mail>>;
    /// Gives up those of these that had every push and are not settled; says which.
    async fn fail_mail(&self, to: AgentId, seqs: Vec<u64>, now: Timestamp) -> StoreResult<Vec<Outcome>>;
    /// Queues those of these again whose pushes were counted up to here and no further, as if they had never been pushed: nobody
    /// was there to take them.
    async fn requeue_mail(&self, to: AgentId, pushed: Vec<Attempt>) -> StoreResult<()>;
    /// Queues a dead letter again, as if it had never been pushed. Conflict: it is none, or is not kept any longer.
    async fn redeliver_message(&self, id: MessageId, now: Timestamp) -> StoreResult<Message>;
    /// Whether a sender's key names a message that is kept.
    async fn is_known(&self, from: AgentId, key: String, now: Timestamp) -> StoreResult<bool>;
    /// Messages that wait for an agent, of the oldest `most`; who has at least `heavy` messages or bytes among them is named.
    async fn waiting_mail(&self, to: AgentId, most: usize, heavy: (usize, usize)) -> StoreResult<Waiting>;
    /// Ends what is not kept any longer, at most `rows_max` messages, oldest first, and drops their payloads; gives how many,
    /// and those that have expired by it.
    async fn expire_messages(&self, now: Timestamp, rows_max: usize) -> StoreResult<(usize, Vec<Outcome>)>;
    /// Forgets messages that expired before a time, at most `rows_max`, oldest first; gives how many.
    async fn purge_messages(&self, expired_before: Timestamp, rows_max: usize) -> StoreResult<usize>;
}
