//! `analytics:…`: figures of an agent, of a user's agents together, or of all (agrenting.md M).

use std::sync::Arc;

use muster_protocol::analytics::{Interval, Metric, Period};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::UserId;
use muster_protocol::join_rules;
use muster_protocol::json::{Json, read_object};
use muster_protocol::phoenix::Ref;
use muster_protocol::topic::{AnalyticsScope, event};
use serde::Deserialize;

use super::Answer;
use crate::analytics::Whose;
use crate::egress::{Class, Outlet};
use crate::global_stats::WatchingStats;
use crate::pubsub::Subscription;
use crate::socket::{OwnedPayload, Socket};
use crate::store::StoreError;
use crate::task_stream::refusal_of;

/// What the join holds on to.
pub struct AnalyticsChannel {
    whose: Whose,
    _stats: Option<WatchingStats>,
    /// Once it has asked for alerts.
    alerts: Option<Subscription>,
}

/// The owner of the agent that decides whether a join is allowed: of the topic's, or of the one that joins.
async fn owner(socket: &Socket, scope: AnalyticsScope) -> Result<Option<UserId>, Refusal> {
    let agent = match scope {
        AnalyticsScope::Agent(agent) => agent,
        AnalyticsScope::User(_) => socket.principal.agent,
        AnalyticsScope::Global => None,
    };
    let Some(agent) = agent else { return Ok(None) };
    match socket.core.store.agent(agent).await {
        Ok(agent) => Ok(agent.owner),
        Err(StoreError::NotFound) => Ok(None),
        Err(error) => Err(refusal_of(error)),
    }
}

impl AnalyticsChannel {
    pub(super) async fn join(
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        scope: AnalyticsScope,
        reference: &Ref,
    ) -> Result<Self, Refusal> {
        let owner = owner(socket, scope).await?;
        join_rules::may_see_figures(&socket.principal, scope, owner)?;
        let core = &socket.core;
        let (whose, stats) = match scope {
            AnalyticsScope::Agent(Some(agent)) => (Whose::Agent(agent), None),
            AnalyticsScope::User(Some(user)) => (Whose::User(user), None),
            AnalyticsScope::Global => {
                (Whose::Everybody, Some((core.stats.now(core).await?, core.stats.watch(outlet))))
            }
            AnalyticsScope::Agent(None) | AnalyticsScope::User(None) => {
                return Err(ErrorCode::Unauthorized.into());
            }
        };
        outlet.open(reference, &Json::empty_object());
        let stats = stats.map(|(now, watching)| {
            let _full = outlet.push(Class::Broadcast, event::GLOBAL_STATS, &now);
            watching
        });
        Ok(Self { whose, _stats: stats, alerts: None })
    }

    pub(super) async fn push(
        &mut self,
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        name: &str,
        payload: &OwnedPayload,
    ) -> Result<Answer, Refusal> {
        let figures = &socket.core.analytics;
        if name != event::SUBSCRIBE_ALERTS {
            // A question is one, whichever way it is asked: over REST it takes from the same rate.
            let now_ms = socket.core.environment.monotonic_ms();
            let requests = &socket.core.usage.requests;
            requests.take(socket.principal.credential, now_ms).map_err(Refusal::rate_limited)?;
        }
        let response = match name {
            event::REQUEST_METRICS => Json::of(&figures.metrics(self.whose, period(payload)?).await?),
            event::REQUEST_REVENUE => Json::of(&figures.revenue(self.whose, period(payload)?).await?),
            event::REQUEST_HEATMAP => Json::of(&figures.heatmap(self.whose, period(payload)?).await?),
            event::REQUEST_TIME_SERIES => {
                let Series { metric, opts } = read_object(payload.json()?.as_str())?;
                let metric = Metric::parse(&metric)?;
                let opts = opts.unwrap_or_default();
                let over = (Period::parse(opts.period.as_deref())?, opts.interval);
                Json::of(&figures.time_series(self.whose, metric, over).await?)
            }
            event::SUBSCRIBE_ALERTS => {
                if self.alerts.is_none() {
                    self.alerts = Some(socket.core.pubsub.subscribe(outlet.topic(), outlet).await);
                }
                Json::empty_object()
            }
            _ => return Err(ErrorCode::UnknownEvent.into()),
        };
        Ok(Answer::Now(response))
    }
}

#[derive(Deserialize)]
struct Over {
    #[serde(default)]
    period: Option<String>,
}

fn period(payload: &OwnedPayload) -> Result<Period, Refusal> {
    let Over { period } = read_object(payload.json()?.as_str())?;
    Period::parse(period.as_deref())
}

#[derive(Deserialize)]
struct Series {
    metric: String,
    #[serde(default)]
    opts: Option<SeriesOptions>,
}

#[derive(Default, Deserialize)]
struct SeriesOptions {
    #[serde(default)]
    period: Option<String>,
    #[serde(default)]
    interval: Option<Interval>,
}
