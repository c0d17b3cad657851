//! Webhooks: adding, listing, removing and trying them (agrenting.md R144). They are the caller's agent's, or the user's when
//! the caller acts as no agent.

use muster_actors::store::AttemptEntry;
use muster_actors::webhooks::NewWebhook;
use muster_protocol::account::Owner;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::{DeliveryId, WebhookId};
use muster_protocol::time::Timestamp;
use muster_protocol::webhook::Webhook;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Body, Id, State};
use super::views::{Envelope, Refusals, Removed};
use crate::auth::Caller;
use crate::http::answer::{Answer, Handled};

/// A webhook to add. The names `callback_url` and `event_types` do as well (C5).
#[derive(Deserialize, ToSchema)]
pub struct WebhookRequest {
    /// Where to: `https` or `http`, with a public address.
    #[serde(default)]
    url: Option<String>,
    /// The same.
    #[serde(default)]
    callback_url: Option<String>,
    /// What of: names of events; everything when absent or empty.
    #[serde(default)]
    events: Option<Vec<String>>,
    /// The same.
    #[serde(default)]
    event_types: Option<Vec<String>>,
    /// What deliveries are signed with, from 8 to 256 characters; one is made when absent.
    #[serde(default)]
    secret: Option<String>,
}

impl WebhookRequest {
    fn read(self) -> Result<NewWebhook, Refusal> {
        let twice = |field| {
            Refusal::field(ErrorCode::InvalidPayload, field, "one of the two names, or the same under both")
        };
        let url = match (self.url, self.callback_url) {
            (Some(url), Some(other)) if url != other => return Err(twice("callback_url")),
            (Some(url), _) | (None, Some(url)) => url,
            (None, None) => return Err(Refusal::field(ErrorCode::InvalidPayload, "url", "must be given")),
        };
        let events = match (self.events, self.event_types) {
            (Some(events), Some(other)) if events != other => return Err(twice("event_types")),
            (Some(events), _) | (None, Some(events)) => events,
            (None, None) => Vec::new(),
        };
        Ok(NewWebhook { url, events, secret: self.secret })
    }
}

/// A webhook as its owner sees it.
#[derive(Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the public API")]
pub struct WebhookView {
    pub id: WebhookId,
    pub url: String,
    pub callback_url: String,
    pub events: Vec<&'static str>,
    pub event_types: Vec<&'static str>,
    /// `active`, or `disabled` once nothing has arrived for days.
    pub status: &'static str,
    pub created_at: Timestamp,
    /// Since when nothing has arrived.
    pub failing_since: Option<Timestamp>,
    pub disabled_at: Option<Timestamp>,
    /// Shown once, when it is created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

impl From<&Webhook> for WebhookView {
    fn from(webhook: &Webhook) -> Self {
        Self {
            id: webhook.id,
            url: webhook.url.clone(),
            callback_url: webhook.url.clone(),
            events: webhook.events.names(),
            event_types: webhook.events.names(),
            status: if webhook.disabled_at.is_some() { "disabled" } else { "active" },
            created_at: webhook.created_at,
            failing_since: webhook.failing_since,
            disabled_at: webhook.disabled_at,
            secret: None,
        }
    }
}

fn owner(caller: &Caller) -> Result<Owner, Refusal> {
    match (caller.principal.agent, caller.principal.user) {
        (Some(agent), _) => Ok(Owner::Agent(agent)),
        (None, Some(user)) => Ok(Owner::User(user)),
        (None, None) => Err(ErrorCode::Forbidden.into()),
    }
}

/// Adds a webhook. Its secret is shown this once.
#[utoipa::path(post, path = "/api/v1/webhooks", request_body = WebhookRequest,
    responses((status = 201, body = Envelope<WebhookView>), Refusals))]
pub async fn create(app: State, caller: Caller, Body(request): Body<WebhookRequest>) -> Handled {
    let webhook = app.core.webhooks.create(owner(&caller)?, request.read()?).await?;
    Answer::created(&WebhookView { secret: Some(webhook.secret.clone()), ..WebhookView::from(&webhook) })
}

/// Lists the caller's webhooks, oldest first, without their secrets.
#[utoipa::path(get, path = "/api/v1/webhooks", responses((status = 200, body = Envelope<Vec<WebhookView>>), Refusals))]
pub async fn list(app: State, caller: Caller) -> Handled {
    let webhooks = app.core.store.webhooks_of(owner(&caller)?).await?;
    Answer::ok(&webhooks.iter().map(WebhookView::from).collect::<Vec<_>>())
}

/// Shows a webhook, without its secret.
#[utoipa::path(get, path = "/api/v1/webhooks/{id}", params(("id" = WebhookId, Path, description = "The webhook.")),
    responses((status = 200, body = Envelope<WebhookView>), Refusals))]
pub async fn show(app: State, caller: Caller, Id(id): Id<WebhookId>) -> Handled {
    let webhook = app.core.webhooks.of(owner(&caller)?, id).await?;
    Answer::ok(&WebhookView::from(&webhook))
}

/// Removes a webhook, with all that waits for it.
#[utoipa::path(delete, path = "/api/v1/webhooks/{id}", params(("id" = WebhookId, Path, description = "The webhook.")),
    responses((status = 200, body = Envelope<Removed>), Refusals))]
pub async fn remove(app: State, caller: Caller, Id(id): Id<WebhookId>) -> Handled {
    app.core.store.delete_webhook(owner(&caller)?, id).await?;
    Answer::ok(&Removed { removed: true })
}

/// An attempt to deliver.
#[derive(Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the API")]
pub struct AttemptView {
    /// `X-Webhook-Id`: the same for every attempt of a delivery.
    pub id: DeliveryId,
    pub event: String,
    pub attempt: u32,
    pub at: Timestamp,
    pub status: Option<u16>,
    pub error: Option<String>,
    pub duration_ms: u64,
    /// `delivered`, `retry` or `dead`.
    pub outcome: String,
}

impl From<AttemptEntry> for AttemptView {
    fn from(entry: AttemptEntry) -> Self {
        Self {
            id: entry.delivery,
            event: entry.event,
            attempt: entry.attempt,
            at: entry.attempted.at,
            status: entry.attempted.status,
            error: entry.attempted.error,
            duration_ms: entry.attempted.duration_ms,
            outcome: entry.outcome,
        }
    }
}

/// The last 100 attempts to deliver to a webhook, newest first.
#[utoipa::path(get, path = "/api/v1/webhooks/{id}/deliveries",
    params(("id" = WebhookId, Path, description = "The webhook.")),
    responses((status = 200, body = Envelope<Vec<AttemptView>>), Refusals))]
pub async fn deliveries(app: State, caller: Caller, Id(id): Id<WebhookId>) -> Handled {
    let attempts = app.core.webhooks.attempts(owner(&caller)?, id).await?;
    Answer::ok(&attempts.into_iter().map(AttemptView::from).collect::<Vec<_>>())
}

/// What was sent to try a webhook.
#[derive(Serialize, ToSchema)]
pub struct Trial {
    /// `X-Webhook-Id` of the delivery.
    delivery_id: DeliveryId,
}

/// Sends a webhook the event `webhook.test`, whatever it is subscribed to.
#[utoipa::path(post, path = "/api/v1/webhooks/{id}/test", params(("id" = WebhookId, Path, description = "The webhook.")),
    responses((status = 202, body = Envelope<Trial>), Refusals))]
pub async fn test(app: State, caller: Caller, Id(id): Id<WebhookId>) -> Handled {
    let delivery_id = app.core.webhooks.test(owner(&caller)?, id).await?;
    Answer::accepted(&Trial { delivery_id })
}
