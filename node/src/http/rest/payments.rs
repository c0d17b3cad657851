//! Payment channels over REST: opening, accepting, looking, and resolving a dispute. Transfers are made on the channel
//! `payment:<id>` of the main socket.

use muster_protocol::ids::PaymentChannelId;
use muster_protocol::json::Json;
use muster_protocol::payment_channel::machine::Action;
use muster_protocol::payment_channel::request::{OpenRequest, Resolution};
use muster_protocol::payment_channel::{ChannelStatus, ChannelView};
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Body, Id, Key, Operator, PageParams, Params, State};
use super::views::{Envelope, Refusals};
use crate::auth::Caller;
use crate::http::answer::{Answer, Handled};

/// Opens a payment channel to another agent, and holds what the caller's agent puts in.
#[utoipa::path(post, path = "/api/v1/payment-channels", request_body = OpenRequest,
    responses((status = 201, body = Envelope<ChannelView<'static>>), Refusals))]
pub async fn open(app: State, caller: Caller, Key(key): Key, Body(request): Body<OpenRequest>) -> Handled {
    let channel = app.core.payments.open(caller.acting()?, &request, key).await?;
    Answer::created(&channel.view())
}

/// Lists the payment channels of the caller's agent, newest first.
#[utoipa::path(get, path = "/api/v1/payment-channels", params(PageParams),
    responses((status = 200, body = Envelope<Vec<ChannelView<'static>>>), Refusals))]
pub async fn list(app: State, caller: Caller, Params(page): Params<PageParams>) -> Handled {
    let agent = caller.acting()?.id;
    let page = app.core.store.payment_channels(agent, page.request(&app)?).await?;
    // Written out here, because a view borrows its channel.
    Answer::page(&page, |channel| Json::of(&channel.view()))
}

/// Shows a payment channel to its two agents.
#[utoipa::path(get, path = "/api/v1/payment-channels/{id}",
    params(("id" = PaymentChannelId, Path, description = "The payment channel.")),
    responses((status = 200, body = Envelope<ChannelView<'static>>), Refusals))]
pub async fn show(app: State, caller: Caller, Id(id): Id<PaymentChannelId>) -> Handled {
    let channel = app.core.payments.of_party(id, caller.acting()?.id).await?;
    Answer::ok(&channel.view())
}

/// Accepts a payment channel, as the agent it was opened to, and holds what that one puts in.
#[utoipa::path(post, path = "/api/v1/payment-channels/{id}/accept",
    params(("id" = PaymentChannelId, Path, description = "The payment channel.")),
    responses((status = 200, body = Envelope<ChannelView<'static>>), Refusals))]
pub async fn accept(app: State, caller: Caller, Id(id): Id<PaymentChannelId>) -> Handled {
    let agent = caller.acting()?;
    app.core.payments.of_party(id, agent.id).await?;
    app.core.payments.act(id, agent.id, Action::Accept(agent.public_key)).await?;
    let channel = app.core.payments.of_party(id, agent.id).await?;
    Answer::ok(&channel.view())
}

/// Takes a payment channel back that nobody has accepted, as the agent that opened it, or declines it, as the other: what was
/// put in is given back at once.
#[utoipa::path(post, path = "/api/v1/payment-channels/{id}/cancel",
    params(("id" = PaymentChannelId, Path, description = "The payment channel.")),
    responses((status = 200, body = Envelope<ChannelView<'static>>), Refusals))]
pub async fn cancel(app: State, caller: Caller, Id(id): Id<PaymentChannelId>) -> Handled {
    let agent = caller.acting()?.id;
    app.core.payments.of_party(id, agent).await?;
    app.core.payments.act(id, agent, Action::Cancel).await?;
    let channel = app.core.payments.of_party(id, agent).await?;
    Answer::ok(&channel.view())
}

/// Which payment channels.
#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Those in this state; disputed ones when absent.
    status: Option<ChannelStatus>,
    /// Items at most.
    limit: Option<usize>,
    /// Where to go on.
    cursor: Option<String>,
}

/// Lists payment channels in a state, newest first, as the operator: those that wait for a resolution, if not said.
#[utoipa::path(get, path = "/api/v1/admin/payment-channels", params(ListParams),
    responses((status = 200, body = Envelope<Vec<ChannelView<'static>>>), Refusals))]
pub async fn list_all(app: State, _: Operator, Params(params): Params<ListParams>) -> Handled {
    let page = PageParams { limit: params.limit, cursor: params.cursor }.request(&app)?;
    let status = params.status.unwrap_or(ChannelStatus::Disputed);
    let page = app.core.store.payment_channels_in(status, page).await?;
    Answer::page(&page, |channel| Json::of(&channel.view()))
}

/// Resolves a disputed payment channel, as the operator: it is paid out and closed. Without balances, as both signed last.
#[utoipa::path(post, path = "/api/v1/admin/payment-channels/{id}/resolve", request_body = Resolution,
    params(("id" = PaymentChannelId, Path, description = "The payment channel.")),
    responses((status = 200, body = Envelope<ChannelView<'static>>), Refusals))]
pub async fn resolve(
    app: State,
    _: Operator,
    Id(id): Id<PaymentChannelId>,
    Body(resolution): Body<Resolution>,
) -> Handled {
    app.core.payments.resolve(id, resolution).await?;
    let channel = app.core.store.payment_channel(id).await?;
    Answer::ok(&channel.view())
}
