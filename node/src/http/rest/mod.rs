//! The REST routes. Each handler carries its own documentation, from which `openapi.json` is generated; the router is
//! built from the same list, so no route is undocumented.
//!
//! # Layout
//! * [`admin`], [`agents`], [`auth`], [`blocks`]: accounts
//! * [`tasks`], [`streams`], [`hirings`], [`teams`]: work
//! * [`ledger`], [`payments`]: money
//! * [`idempotency`]: requests that are done once
//! * [`messages`], [`handoffs`]: what agents tell each other, and hand over by it
//! * [`negotiations`]: what agents agree on
//! * [`analytics`], [`webhooks`]: what is counted and told of it
//! * [`operations`]: health, metrics, documents
//! * [`description`]: what the document says of all of them
//! * [`extract`]: what handlers take; [`views`]: what they give

pub mod admin;
pub mod agents;
pub mod analytics;
pub mod auth;
pub mod blocks;
pub mod description;
pub mod extract;
pub mod handoffs;
pub mod hirings;
pub mod idempotency;
pub mod ledger;
pub mod messages;
pub mod negotiations;
pub mod operations;
pub mod payments;
pub mod streams;
pub mod tasks;
pub mod teams;
pub mod views;
pub mod webhooks;

use std::sync::Arc;

use axum::Router;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::description::area;
use crate::app::App;

fn routes() -> OpenApiRouter<Arc<App>> {
    accounts().merge(work()).merge(dealings()).merge(node())
}

/// Who there is.
fn accounts() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .merge(area(
            "admin",
            OpenApiRouter::new()
                .routes(routes!(admin::create_user, admin::list_users))
                .routes(routes!(admin::create_token, admin::list_tokens))
                .routes(routes!(admin::revoke_token))
                .routes(routes!(admin::set_agent_status))
                .routes(routes!(admin::crash_stream))
                .routes(routes!(admin::move_clock))
                .routes(routes!(admin::show_cluster)),
        ))
        .merge(area(
            "agents",
            OpenApiRouter::new()
                .routes(routes!(agents::register))
                .routes(routes!(agents::create, agents::list))
                .routes(routes!(agents::assign))
                .routes(routes!(agents::discover))
                .routes(routes!(agents::capabilities))
                .routes(routes!(agents::show, agents::update))
                .routes(routes!(agents::set_public_key))
                .routes(routes!(agents::create_key, agents::list_keys))
                .routes(routes!(agents::revoke_key)),
        ))
        .merge(area(
            "auth",
            OpenApiRouter::new()
                .routes(routes!(auth::authenticate))
                .routes(routes!(auth::logout))
                .routes(routes!(auth::rotate_key)),
        ))
        .merge(area(
            "blocks",
            OpenApiRouter::new()
                .routes(routes!(blocks::list, blocks::create))
                .routes(routes!(blocks::remove)),
        ))
}

/// What is done.
fn work() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .merge(area(
            "tasks",
            OpenApiRouter::new()
                .routes(routes!(tasks::create, tasks::list))
                .routes(routes!(tasks::show))
                .routes(routes!(tasks::complete))
                .routes(routes!(tasks::fail))
                .routes(routes!(tasks::cancel))
                .routes(routes!(tasks::reassign))
                .routes(routes!(tasks::timeline))
                .routes(routes!(tasks::list_messages, tasks::add_message)),
        ))
        .merge(area(
            "streams",
            OpenApiRouter::new().routes(routes!(streams::emit_chunk)).routes(routes!(streams::read)),
        ))
        .merge(area(
            "hirings",
            OpenApiRouter::new()
                .routes(routes!(hirings::hire))
                .routes(routes!(hirings::list))
                .routes(routes!(hirings::show))
                .routes(routes!(hirings::result))
                .routes(routes!(hirings::failure))
                .routes(routes!(hirings::cancel))
                .routes(routes!(hirings::retry))
                .routes(routes!(hirings::list_messages, hirings::add_message)),
        ))
        .merge(area(
            "teams",
            OpenApiRouter::new()
                .routes(routes!(teams::create, teams::list))
                .routes(routes!(teams::show))
                .routes(routes!(teams::add_member))
                .routes(routes!(teams::remove_member))
                .routes(routes!(teams::entries)),
        ))
}

/// What agents tell each other, agree on and pay.
fn dealings() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .merge(area(
            "messages",
            OpenApiRouter::new()
                .routes(routes!(messages::send, messages::list))
                .routes(routes!(messages::send_batch))
                .routes(routes!(messages::dead_letters))
                .routes(routes!(messages::show))
                .routes(routes!(messages::status))
                .routes(routes!(messages::acknowledge))
                .routes(routes!(messages::reject))
                .routes(routes!(messages::redeliver)),
        ))
        .merge(area(
            "handoffs",
            OpenApiRouter::new()
                .routes(routes!(handoffs::show))
                .routes(routes!(handoffs::accept))
                .routes(routes!(handoffs::decline))
                .routes(routes!(handoffs::complete))
                .routes(routes!(handoffs::fail)),
        ))
        .merge(area(
            "negotiations",
            OpenApiRouter::new()
                .routes(routes!(negotiations::create, negotiations::list))
                .routes(routes!(negotiations::show))
                .routes(routes!(negotiations::counter))
                .routes(routes!(negotiations::accept))
                .routes(routes!(negotiations::reject))
                .routes(routes!(negotiations::agreement))
                .routes(routes!(negotiations::server_key)),
        ))
        .merge(area(
            "ledger",
            OpenApiRouter::new()
                .routes(routes!(ledger::credit))
                .routes(routes!(ledger::debit))
                .routes(routes!(ledger::audit))
                .routes(routes!(ledger::totals))
                .routes(routes!(ledger::withdraw_fees))
                .routes(routes!(ledger::transfer))
                .routes(routes!(ledger::balance))
                .routes(routes!(ledger::transactions))
                .routes(routes!(ledger::of_task)),
        ))
        .merge(area(
            "payments",
            OpenApiRouter::new()
                .routes(routes!(payments::open, payments::list))
                .routes(routes!(payments::show))
                .routes(routes!(payments::accept))
                .routes(routes!(payments::cancel))
                .routes(routes!(payments::list_all))
                .routes(routes!(payments::resolve)),
        ))
}

/// What is counted and told, and the node itself.
fn node() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .merge(area(
            "analytics",
            OpenApiRouter::new()
                .routes(routes!(analytics::metrics))
                .routes(routes!(analytics::time_series))
                .routes(routes!(analytics::revenue))
                .routes(routes!(analytics::heatmap)),
        ))
        .merge(area(
            "webhooks",
            OpenApiRouter::new()
                .routes(routes!(webhooks::create, webhooks::list))
                .routes(routes!(webhooks::show, webhooks::remove))
                .routes(routes!(webhooks::deliveries))
                .routes(routes!(webhooks::test)),
        ))
        .merge(area(
            "operations",
            OpenApiRouter::new()
                .routes(routes!(operations::openapi))
                .routes(routes!(operations::asyncapi))
                .routes(routes!(operations::errors))
                .routes(routes!(operations::live))
                .routes(routes!(operations::ready))
                .routes(routes!(operations::healthz))
                .routes(routes!(operations::readyz))
                .routes(routes!(operations::metrics)),
        ))
}

/// The routes, served.
pub fn router(app: Arc<App>) -> Router {
    let (router, _document) = routes().split_for_parts();
    router.with_state(app)
}

/// The routes, described.
#[must_use]
pub fn document() -> serde_json::Value {
    let (_router, document) = routes().split_for_parts();
    description::complete(document)
}
