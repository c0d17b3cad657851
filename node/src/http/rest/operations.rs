//! Health, metrics, and the documents.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use muster_protocol::error_code::ErrorCode;
use muster_protocol::json::Json;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Params, State};
use super::views::Envelope;
use crate::documents;
use crate::http::answer::{Answer, Handled, Refused};

/// How the node is.
#[derive(Serialize, ToSchema)]
pub struct Health {
    /// `live`, or `ready`.
    status: &'static str,
}

/// Whether the process lives.
#[utoipa::path(get, path = "/live", security(()), responses((status = 200, description = "It does.", body = Envelope<Health>)))]
pub async fn live() -> Handled {
    Answer::ok(&Health { status: "live" })
}

/// The same, under its other usual name.
#[utoipa::path(get, path = "/healthz", security(()), responses((status = 200, description = "It lives.", body = Envelope<Health>)))]
pub async fn healthz() -> Handled {
    live().await
}

/// How it is asked.
#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReadyParams {
    /// `404`: the status of a node that is there and takes no work. So HAProxy (`disable-on-404`) tells it from one that
    /// does not answer: it gives the one nothing new and leaves what is open, and closes what is open to the other.
    unready: Option<u16>,
}

/// Whether the node takes work: it listens, its store can be written, and it is not going away.
#[utoipa::path(get, path = "/ready", security(()), params(ReadyParams),
    responses((status = 200, description = "It does.", body = Envelope<Health>), (status = 503, description = "It does not.", body = Envelope<Json>),
        (status = 404, description = "It does not, and 404 was asked for.", body = Envelope<Json>)))]
pub async fn ready(app: State, Params(params): Params<ReadyParams>) -> Handled {
    let answer = is_ready(&app).await;
    match (answer, params.unready) {
        (Err(_), Some(404)) => Err(ErrorCode::NotFound.into()),
        (answer, _) => answer,
    }
}

/// How long the store has to answer: whoever asks is to hear something of a node that lives.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

async fn is_ready(app: &State) -> Handled {
    if app.core.is_draining() {
        return Err(ErrorCode::Draining.into());
    }
    if !app.is_ready() {
        return Err(ErrorCode::Overloaded.into());
    }
    let checked = app.core.store.check(app.core.environment.now());
    let checked = tokio::time::timeout(CHECK_TIMEOUT, checked).await;
    checked.map_err(|_| ErrorCode::StoreUnavailable)?.map_err(Refused::from)?;
    Answer::ok(&Health { status: "ready" })
}

/// The same, under its other usual name.
#[utoipa::path(get, path = "/readyz", security(()),
    responses((status = 200, description = "It takes work.", body = Envelope<Health>), (status = 503, description = "It does not.", body = Envelope<Json>)))]
pub async fn readyz(app: State) -> Handled {
    is_ready(&app).await
}

/// Metrics, in the Prometheus text format. Not here when `http.metrics_listen` gives them an address of their own.
#[utoipa::path(get, path = "/metrics", security(()), responses((status = 200, description = "Metrics.", body = String, content_type = "application/openmetrics-text")))]
pub async fn metrics(app: State) -> Response {
    if app.config.http.metrics_listen.is_some() {
        return Refused::from(ErrorCode::RouteNotFound).into_response();
    }
    metrics_text(&app.registry)
}

/// The metrics as an answer.
pub fn metrics_text(registry: &prometheus_client::registry::Registry) -> Response {
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, registry).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, content_type)], text).into_response()
}

fn document(text: String) -> Response {
    ([(CONTENT_TYPE, "application/json; charset=utf-8")], text).into_response()
}

/// This document.
#[utoipa::path(get, path = "/api/v1/openapi.json", security(()), responses((status = 200, description = "OpenAPI.", body = Json)))]
pub async fn openapi() -> Response {
    document(documents::openapi())
}

/// Sockets, topics and events.
#[utoipa::path(get, path = "/api/v1/asyncapi.json", security(()), responses((status = 200, description = "AsyncAPI.", body = Json)))]
pub async fn asyncapi() -> Response {
    document(documents::asyncapi())
}

/// The table of errors.
#[utoipa::path(get, path = "/api/v1/errors.json", security(()), responses((status = 200, description = "Errors.", body = Json)))]
pub async fn errors() -> Response {
    document(documents::errors_json())
}
