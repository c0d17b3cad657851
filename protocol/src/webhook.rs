//! Webhooks (agrenting.md R144): what may be subscribed to, what is sent, when it is tried again, and which addresses may
//! be called. Pure: whoever carries it out gives time and chance.

pub mod address;
mod happening;

pub use self::happening::Happening;

use serde::{Deserialize, Serialize};

use crate::account::Owner;
use crate::error_code::{ErrorCode, Refusal};
use crate::ids::{DeliveryId, WebhookId};
use crate::json::Json;
use crate::task::TaskStatus;
use crate::time::Timestamp;

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What a webhook can be told of.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum EventKind {
            $($(#[$doc])* $name,)*
        }

        impl EventKind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

events! {
    /// A task was created.
    TaskCreated = "task.created",
    /// Its provider took it on, which is when it begins.
    TaskClaimed = "task.claimed",
    /// It has begun: told with `task.claimed`.
    TaskInProgress = "task.in_progress",
    /// It was completed.
    TaskCompleted = "task.completed",
    /// It has failed.
    TaskFailed = "task.failed",
    /// Its client withdrew it.
    TaskCancelled = "task.cancelled",
    /// A payment channel is disputed: told with `payment.disputed`, for receivers that know the public API's names alone.
    TaskDisputed = "task.disputed",
    /// One agent has paid another: an escrow was released, a transfer executed, or a payment channel paid out otherwise than
    /// it stood.
    PaymentConfirmed = "payment.confirmed",
    /// The operator put money into an account.
    PaymentDeposited = "payment.deposited",
    /// The operator took money out of an account.
    WithdrawalProcessed = "withdrawal.processed",
    /// The operator changed an agent's status.
    AgentStatusChanged = "agent.status_changed",
    /// A message was given up.
    MessageDeadLetter = "message.dead_letter",
    /// Its owner tries it out; sent whatever it is subscribed to.
    Test = "webhook.test",
    /// A payment channel is disputed. Behind the others, whose bits are stored.
    PaymentDisputed = "payment.disputed",
}

impl EventKind {
    /// Reads a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == name)
    }

    /// Its bit in a set of them.
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }

    const fn of_status(status: TaskStatus) -> Self {
        match status {
            TaskStatus::Pending => Self::TaskCreated,
            TaskStatus::InProgress => Self::TaskInProgress,
            TaskStatus::Completed => Self::TaskCompleted,
            TaskStatus::Failed => Self::TaskFailed,
            TaskStatus::Cancelled => Self::TaskCancelled,
        }
    }
}

/// A set of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events(u32);

impl Events {
    /// Reads names; without any, all there are.
    ///
    /// # Errors
    /// One is unknown.
    pub fn of(names: &[String]) -> Result<Self, Refusal> {
        if names.is_empty() {
            return Ok(Self(u32::MAX));
        }
        let mut bits = 0;
        for name in names {
            let known = EventKind::parse(name).filter(|kind| *kind != EventKind::Test).ok_or_else(|| {
                let names: Vec<_> = Self(u32::MAX).names();
                Refusal::field(ErrorCode::InvalidPayload, "events", "an event that there is")
                    .with("events", &names)
            })?;
            bits |= known.bit();
        }
        Ok(Self(bits))
    }

    /// As a store column.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Reads what [`Self::bits`] gave.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Their names.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let named =
            EventKind::ALL.iter().filter(|kind| **kind != EventKind::Test && self.0 & kind.bit() != 0);
        named.map(|kind| kind.as_str()).collect()
    }
}

/// A webhook.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Id.
    pub id: WebhookId,
    /// Whose it is: it is told what concerns them.
    pub owner: Owner,
    /// Where to.
    pub url: String,
    /// What its deliveries are signed with. Kept as it is, because signing needs it.
    pub secret: String,
    /// What of.
    pub events: Events,
    /// Creation.
    pub created_at: Timestamp,
    /// Since when nothing has arrived.
    pub failing_since: Option<Timestamp>,
    /// When it was given up.
    pub disabled_at: Option<Timestamp>,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither the secret, nor the URL, which may hold one.
        f.debug_struct("Webhook").field("id", &self.id).field("owner", &self.owner).finish_non_exhaustive()
    }
}

/// Parts into which the deliveries of a webhook are divided, by the first byte of their ids, which are evenly spread: so a
/// place is looked for in one part alone, and nobody who has something to tell counts all that waits.
const PARTS: usize = 256;
/// Deliveries of one part that wait; of what comes while there are as many, the webhook is told nothing.
pub const PART_MAX: usize = 64;
/// Deliveries that wait for one webhook at most. Nearly all find a place while there are fewer than 10,000.
pub const WAITING_MAX: usize = PARTS * PART_MAX;
/// Attempts that are remembered of one webhook.
pub const ATTEMPTS_KEPT: usize = 100;
/// Bytes of a task's output that is sent along.
pub const OUTPUT_BYTES_MAX: usize = 16 * 1024;
/// Characters of a secret that its owner chose, at most and at least.
pub const SECRET_CHARS: std::ops::RangeInclusive<usize> = 8..=256;
/// Bytes of a URL.
pub const URL_BYTES_MAX: usize = 2_048;

/// The first and the last id of the part that a delivery belongs to.
#[must_use]
pub fn part_of(delivery: DeliveryId) -> ([u8; 16], [u8; 16]) {
    let [part, ..] = *delivery.as_bytes();
    let (mut first, mut last) = ([0; 16], [u8::MAX; 16]);
    first[0] = part;
    last[0] = part;
    (first, last)
}

/// An event on its way to a webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The same for every try.
    pub id: DeliveryId,
    /// Name of the event.
    pub event: String,
    /// What is told.
    pub data: Json,
    /// When it happened.
    pub created_at: Timestamp,
    /// How often it was tried.
    pub attempts: u32,
}

impl Delivery {
    /// The body, which is what is signed.
    #[must_use]
    pub fn body(&self) -> Json {
        #[derive(Serialize)]
        struct Body<'a> {
            id: DeliveryId,
            event: &'a str,
            created_at: Timestamp,
            data: &'a Json,
        }
        Json::of(&Body { id: self.id, event: &self.event, created_at: self.created_at, data: &self.data })
    }
}

/// Settings of webhooks, under `[webhooks]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebhookSettings {
    /// Networks (CIDR) that are not public and may be called all the same.
    pub allow_private: Vec<String>,
    /// How long one attempt may take, in milliseconds.
    pub timeout_ms: u64,
    /// Pause after the first attempt that failed, in milliseconds; each further one is twice as long, give or take a quarter.
    pub retry_base_ms: u64,
    /// The longest pause, in milliseconds.
    pub retry_max_ms: u64,
    /// Attempts of one delivery at most. More than go into `keep_trying_ms` with the pauses above, which ends them then: with
    /// fewer a delivery is given up earlier.
    pub attempts_max: u32,
    /// How long one delivery is tried, in milliseconds; the last attempt is made at its end.
    pub keep_trying_ms: i64,
    /// A webhook at which nothing has arrived for this long is disabled, in milliseconds.
    pub disable_after_ms: i64,
    /// How often it is looked for what is due, in milliseconds.
    pub poll_ms: u64,
    /// Deliveries this node sends at once; to each webhook one at a time, whichever node sends it.
    pub in_flight_max: usize,
}

impl Default for WebhookSettings {
    fn default() -> Self {
        Self {
            allow_private: Vec::new(),
            timeout_ms: 10_000,
            retry_base_ms: 1_000,
            retry_max_ms: 3_600_000,
            attempts_max: 60,
            keep_trying_ms: 86_400_000,
            disable_after_ms: 3 * 86_400_000,
            poll_ms: 500,
            in_flight_max: 64,
        }
    }
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempted {
    /// When it began.
    pub at: Timestamp,
    /// The status that was answered, if one was.
    pub status: Option<u16>,
    /// Why there was none.
    pub error: Option<String>,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

impl Attempted {
    /// Whether it has arrived: any 2xx. A redirect is none, and is not followed.
    #[must_use]
    pub fn arrived(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

/// What becomes of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It has arrived.
    Delivered,
    /// It is tried again then.
    Retry(Timestamp),
    /// It is given up.
    Dead,
}

impl Next {
    /// As it is shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry(_) => "retry",
            Self::Dead => "dead",
        }
    }
}

/// What becomes of a delivery after an attempt, and since when its webhook has been failing, and whether it is disabled for
/// that. `chance` spreads the pauses.
#[must_use]
pub fn after_attempt(
    settings: &WebhookSettings,
    (webhook, delivery): (&Webhook, &Delivery),
    attempted: &Attempted,
    (now, chance): (Timestamp, u8),
) -> (Next, Option<Timestamp>, bool) {
    if attempted.arrived() {
        return (Next::Delivered, None, false);
    }
    let since = webhook.failing_since.unwrap_or(attempted.at);
    let disabled = now.ms_since(since) >= settings.disable_after_ms;
    let attempts = delivery.attempts.saturating_add(1);
    let pause = settings.retry_base_ms.saturating_mul(1 << (attempts - 1).min(40)).min(settings.retry_max_ms);
    // From three quarters to five.
    let pause = (pause / 4).saturating_mul(3) + (pause / 2).saturating_mul(u64::from(chance)) / 255;
    let end = delivery.created_at.plus_ms(settings.keep_trying_ms);
    let due = now.plus_ms(i64::try_from(pause.max(1)).unwrap_or(i64::MAX)).min(end);
    let over = attempts >= settings.attempts_max || now >= end;
    let next = if over || disabled { Next::Dead } else { Next::Retry(due) };
    (next, Some(since), disabled)
}

#[cfg(test)]
mod tests;
