//! Figures over REST: the same as on the topics `analytics:…` (agrenting.md M).

use muster_actors::analytics::{Series, Whose};
use muster_actors::store::StoreError;
use muster_protocol::analytics::{HeatmapView, Interval, Metric, MetricsView, Period, Point, RevenueView};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::AgentId;
use muster_protocol::join_rules::may_see_figures;
use muster_protocol::topic::AnalyticsScope;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Id, Params, State};
use super::views::{Envelope, Refusals};
use crate::app::App;
use crate::auth::Caller;
use crate::http::answer::{Answer, Handled, Refused};

/// Over which time.
#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PeriodParams {
    /// `1h`, `24h` (when absent), `7d`, `30d`, `90d` or `all`.
    period: Option<String>,
}

/// What, over which time, and how finely.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SeriesParams {
    /// Name of the metric.
    metric: String,
    /// As in other requests.
    period: Option<String>,
    /// `minute`, `hour` or `day`; coarser if there would be more than 1000 points.
    interval: Option<Interval>,
}

/// A time series.
#[derive(Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the API")]
pub struct SeriesView {
    pub metric: &'static str,
    pub interval: Interval,
    pub points: Vec<Point>,
}

/// Whose figures, if they are any business of the caller's: an agent of others answers like one that there is not.
async fn visible(app: &App, caller: &Caller, agent: AgentId) -> Result<Whose, Refused> {
    let owner = match app.core.store.agent(agent).await {
        Ok(agent) => agent.owner,
        Err(StoreError::NotFound) => None,
        Err(error) => return Err(error.into()),
    };
    may_see_figures(&caller.principal, AnalyticsScope::Agent(Some(agent)), owner)
        .map_err(|_| Refusal::from(ErrorCode::NotFound))?;
    Ok(Whose::Agent(agent))
}

/// Whose figures are asked for, and of which time.
async fn asked(
    app: &App,
    caller: &Caller,
    agent: AgentId,
    period: Option<&str>,
) -> Result<(Whose, Period), Refused> {
    Ok((visible(app, caller, agent).await?, Period::parse(period)?))
}

/// Sums of an agent's figures, for the agent and its owner.
#[utoipa::path(get, path = "/api/v1/analytics/agents/{id}/metrics", params(("id" = AgentId, Path, description = "The agent."), PeriodParams),
    responses((status = 200, body = Envelope<MetricsView>), Refusals))]
pub async fn metrics(
    app: State,
    caller: Caller,
    Id(agent): Id<AgentId>,
    Params(params): Params<PeriodParams>,
) -> Handled {
    let (whose, period) = asked(&app, &caller, agent, params.period.as_deref()).await?;
    Answer::ok(&app.core.analytics.metrics(whose, period).await?)
}

/// A metric of an agent over time.
#[utoipa::path(get, path = "/api/v1/analytics/agents/{id}/time-series", params(("id" = AgentId, Path, description = "The agent."), SeriesParams),
    responses((status = 200, body = Envelope<SeriesView>), Refusals))]
pub async fn time_series(
    app: State,
    caller: Caller,
    Id(agent): Id<AgentId>,
    Params(params): Params<SeriesParams>,
) -> Handled {
    let whose = visible(&app, &caller, agent).await?;
    let metric = Metric::parse(&params.metric)?;
    let over = (Period::parse(params.period.as_deref())?, params.interval);
    let Series { metric, interval, points } = app.core.analytics.time_series(whose, metric, over).await?;
    Answer::ok(&SeriesView { metric, interval, points })
}

/// What an agent earned.
#[utoipa::path(get, path = "/api/v1/analytics/agents/{id}/revenue", params(("id" = AgentId, Path, description = "The agent."), PeriodParams),
    responses((status = 200, body = Envelope<RevenueView>), Refusals))]
pub async fn revenue(
    app: State,
    caller: Caller,
    Id(agent): Id<AgentId>,
    Params(params): Params<PeriodParams>,
) -> Handled {
    let (whose, period) = asked(&app, &caller, agent, params.period.as_deref()).await?;
    Answer::ok(&app.core.analytics.revenue(whose, period).await?)
}

/// When an agent was given tasks, by the hour of the week.
#[utoipa::path(get, path = "/api/v1/analytics/agents/{id}/heatmap", params(("id" = AgentId, Path, description = "The agent."), PeriodParams),
    responses((status = 200, body = Envelope<HeatmapView>), Refusals))]
pub async fn heatmap(
    app: State,
    caller: Caller,
    Id(agent): Id<AgentId>,
    Params(params): Params<PeriodParams>,
) -> Handled {
    let (whose, period) = asked(&app, &caller, agent, params.period.as_deref()).await?;
    Answer::ok(&app.core.analytics.heatmap(whose, period).await?)
}
