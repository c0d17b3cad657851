//! Webhooks: what waits for them is claimed from the store, sent, and noted, one delivery of a webhook at a time. A delivery
//! that was claimed by a node that is gone is claimed again once its lease ends: it arrives at least once.

use std::sync::Arc;

use async_trait::async_trait;
use muster_protocol::account::Owner;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{DeliveryId, WebhookId};
use muster_protocol::json::Json;
use muster_protocol::time::Timestamp;
use muster_protocol::topic::{agent_topic, event, hirer_topic};
use muster_protocol::webhook::{
    ATTEMPTS_KEPT, Attempted, Delivery, EventKind, Events, Next, SECRET_CHARS, URL_BYTES_MAX, Webhook,
    WebhookSettings, after_attempt,
};
use serde_json::json;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::metric_definitions::Metrics;
use crate::ports::Environment;
use crate::pubsub::PubSub;
use crate::store::{AttemptEntry, Claim, Settled, Store, StoreError, StoreResult};
use crate::task_stream::refusal_of;

/// Calls receivers.
#[async_trait]
pub trait Caller: Send + Sync + 'static {
    /// Whether a URL may be called, as far as can be seen now.
    ///
    /// # Errors
    /// It cannot be used, or leads to where nothing may be called; in a sentence.
    async fn check(&self, url: &str) -> Result<(), String>;

    /// Sends a delivery; gives the status that was answered.
    ///
    /// # Errors
    /// Why there is none, in a few words and without the URL.
    async fn call(&self, webhook: &Webhook, delivery: &Delivery, at: Timestamp) -> Result<u16, String>;
}

/// A webhook to create.
#[derive(Clone, Debug)]
pub struct NewWebhook {
    /// Where to.
    pub url: String,
    /// What of; everything when empty.
    pub events: Vec<String>,
    /// What to sign with; one is made when there is none.
    pub secret: Option<String>,
}

/// The webhooks of a node.
pub struct Webhooks {
    store: Arc<dyn Store>,
    caller: Arc<dyn Caller>,
    pubsub: Arc<PubSub>,
    settings: WebhookSettings,
    webhooks_max: usize,
    environment: Environment,
    metrics: Arc<Metrics>,
    places: Arc<Semaphore>,
    /// Something may be due before the next look.
    again: Notify,
}

/// How much longer than one attempt its claim lasts, in milliseconds.
const LEASE_MARGIN_MS: u64 = 20_000;

impl Webhooks {
    /// For these parts of a node.
    #[must_use]
    pub fn new(
        (store, caller, pubsub): (Arc<dyn Store>, Arc<dyn Caller>, Arc<PubSub>),
        (settings, webhooks_max): (WebhookSettings, usize),
        environment: Environment,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(settings.in_flight_max.max(1)));
        let again = Notify::new();
        Arc::new(Self { store, caller, pubsub, settings, webhooks_max, environment, metrics, places, again })
    }

    /// Adds a webhook.
    ///
    /// # Errors
    /// A field that does not fit, a URL that may not be called, or the owner has as many as it may.
    pub async fn create(&self, owner: Owner, new: NewWebhook) -> Result<Webhook, Refusal> {
        let misfit = |field, message: String| Refusal::field(ErrorCode::InvalidPayload, field, message);
        let events = Events::of(&new.events)?;
        if new.url.len() > URL_BYTES_MAX {
            return Err(misfit("url", format!("at most {URL_BYTES_MAX} bytes")));
        }
        let secret = match new.secret {
            None => format!("whsec_{}", hex(&self.environment.random::<32>())),
            Some(secret) if SECRET_CHARS.contains(&secret.chars().count()) => secret,
            Some(_) => {
                let (least, most) = (SECRET_CHARS.start(), SECRET_CHARS.end());
                return Err(misfit("secret", format!("from {least} to {most} characters")));
            }
        };
        self.caller.check(&new.url).await.map_err(|problem| misfit("url", problem))?;
        let now = self.environment.now();
        let webhook = Webhook {
            id: WebhookId::new(now, self.environment.id_entropy()),
            owner,
            url: new.url,
            secret,
            events,
            created_at: now,
            failing_since: None,
            disabled_at: None,
        };
        self.store.create_webhook(webhook.clone(), self.webhooks_max).await.map_err(refusal_of)?;
        Ok(webhook)
    }

    /// An owner's webhook.
    ///
    /// # Errors
    /// There is none of that id, or it is another's.
    pub async fn of(&self, owner: Owner, id: WebhookId) -> Result<Webhook, Refusal> {
        let webhooks = self.store.webhooks_of(owner).await.map_err(refusal_of)?;
        webhooks.into_iter().find(|webhook| webhook.id == id).ok_or_else(|| ErrorCode::NotFound.into())
    }

    /// Sends an owner's webhook something to try it out.
    ///
    /// # Errors
    /// As [`Self::of`]; it is disabled, or as many wait for it as may.
    pub async fn test(&self, owner: Owner, id: WebhookId) -> Result<DeliveryId, Refusal> {
        let webhook = self.of(owner, id).await?;
        if let Some(disabled_at) = webhook.disabled_at {
            return Err(Refusal::new(ErrorCode::WebhookDisabled).with("disabled_at", &disabled_at));
        }
        let now = self.environment.now();
        let delivery = Delivery {
            // Spread as evenly as those of what happens: by its first byte a place is looked for.
            id: DeliveryId::from_bytes(self.environment.random()),
            event: EventKind::Test.as_str().to_owned(),
            data: Json::of(&json!({ "webhook_id": webhook.id })),
            created_at: now,
            attempts: 0,
        };
        let delivery_id = delivery.id;
        self.store.queue_delivery(webhook.id, delivery).await.map_err(refusal_of)?;
        self.again.notify_one();
        Ok(delivery_id)
    }

    /// What came of an owner's webhook of late, newest first.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub async fn attempts(&self, owner: Owner, id: WebhookId) -> Result<Vec<AttemptEntry>, Refusal> {
        let webhook = self.of(owner, id).await?;
        self.store.attempts_of(webhook.id, ATTEMPTS_KEPT).await.map_err(refusal_of)
    }

    /// Waits until it is time to look for what is due.
    pub async fn wait(&self) {
        let pause = std::time::Duration::from_millis(self.settings.poll_ms.max(10));
        // Whichever comes first.
        let _due = tokio::time::timeout(pause, self.again.notified()).await;
    }

    /// Claims what is due and sends it, each in a task of its own; gives how many.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub async fn send_due(self: &Arc<Self>) -> StoreResult<usize> {
        let free = self.places.available_permits();
        if free == 0 {
            return Ok(0);
        }
        let now = self.environment.now();
        let lease = u64::from_be_bytes(self.environment.random()) >> 1;
        let until_ms = self.settings.timeout_ms.saturating_add(LEASE_MARGIN_MS);
        let until = now.plus_ms(i64::try_from(until_ms).unwrap_or(i64::MAX));
        let claims = self.store.claim_deliveries(now, (lease, until), free).await?;
        let count = claims.len();
        for claim in claims {
            // Nobody else takes places, so there are as many as there were.
            let Ok(place) = self.places.clone().try_acquire_owned() else { break };
            let webhooks = self.clone();
            tokio::spawn(async move { webhooks.send(claim, place).await });
        }
        Ok(count)
    }

    async fn send(&self, claim: Claim, place: OwnedSemaphorePermit) {
        let Claim { webhook, delivery, lease } = claim;
        let (at, begin_ms) = (self.environment.now(), self.environment.monotonic_ms());
        let called = self.caller.call(&webhook, &delivery, at).await;
        let duration_ms = self.environment.monotonic_ms().saturating_sub(begin_ms);
        let (status, error) = match called {
            Ok(status) => (Some(status), None),
            Err(problem) => (None, Some(problem)),
        };
        let attempted = Attempted { at, status, error, duration_ms };
        let now = self.environment.now();
        let [chance] = self.environment.random();
        let (next, failing_since, disabled) =
            after_attempt(&self.settings, (&webhook, &delivery), &attempted, (now, chance));
        self.metrics.webhook_attempts.get_or_create(&[("outcome", next.as_str())]).inc();
        let settled = Settled {
            delivery: delivery.id,
            event: delivery.event,
            attempt: delivery.attempts.saturating_add(1),
            attempted,
            next,
            failing_since,
            disabled_at: disabled.then_some(now),
        };
        match self.store.settle_delivery(webhook.id, lease, settled).await {
            Ok(()) if disabled => self.tell_disabled(&webhook, now),
            // Removed, or claimed by another after this took too long: they note what comes of theirs.
            Ok(()) | Err(StoreError::Conflict | StoreError::NotFound) => {}
            Err(error) => tracing::warn!(%error, "cannot note what came of a webhook's delivery"),
        }
        drop(place);
        if next == Next::Delivered {
            // There may be more for it.
            self.again.notify_one();
        }
    }

    fn tell_disabled(&self, webhook: &Webhook, at: Timestamp) {
        let topic = match webhook.owner {
            Owner::Agent(agent) => agent_topic(agent),
            Owner::User(user) => hirer_topic(user),
        };
        let payload = json!({ "webhook_id": webhook.id, "url": webhook.url, "disabled_at": at });
        self.pubsub.publish(&topic, event::WEBHOOK_DISABLED, Json::of(&payload));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
