//! What a node does by the clock for its figures, alerts and webhooks, each in a task of its own, so that none waits for
//! another.

use std::sync::Arc;
use std::time::Duration;

use muster_actors::global_stats;
use muster_actors::store::StoreError;
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// How often what was counted is given to its store.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// How often figures that are not kept any longer are dropped.
const PURGE_EVERY: Duration = Duration::from_secs(600);

/// Begins all of it.
pub fn start(app: &Arc<App>, stop: &CancellationToken) {
    tokio::spawn(flush(app.clone(), stop.clone()));
    tokio::spawn(purge(app.clone(), stop.clone()));
    tokio::spawn(alerts(app.clone(), stop.clone()));
    tokio::spawn(stats(app.clone(), stop.clone()));
    tokio::spawn(webhooks(app.clone(), stop.clone()));
}

/// Says once that a store is away, and once that it is back.
fn note<T>(what: &str, was_away: &mut bool, done: &Result<T, StoreError>) {
    match done {
        Ok(_) if *was_away => tracing::info!(what, "works again"),
        Err(error) if !*was_away => tracing::warn!(what, %error, "does not work now"),
        _ => {}
    }
    *was_away = done.is_err();
}

async fn flush(app: Arc<App>, stop: CancellationToken) {
    let mut timer = tokio::time::interval(FLUSH_EVERY);
    let mut was_away = false;
    while stop.run_until_cancelled(timer.tick()).await.is_some() {
        note("writing figures", &mut was_away, &app.core.analytics.flush().await);
    }
}

async fn purge(app: Arc<App>, stop: CancellationToken) {
    let mut timer = tokio::time::interval(PURGE_EVERY);
    let mut was_away = false;
    while stop.run_until_cancelled(timer.tick()).await.is_some() {
        loop {
            let dropped = app.core.analytics.purge().await;
            note("dropping old figures", &mut was_away, &dropped);
            if stop.is_cancelled() || !matches!(dropped, Ok(1..)) {
                break;
            }
        }
    }
}

async fn alerts(app: Arc<App>, stop: CancellationToken) {
    let every = Duration::from_millis(app.core.alerts.every_ms());
    let mut was_away = false;
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        note("looking for what to alert of", &mut was_away, &app.core.alerts.look(&app.core).await);
    }
}

async fn stats(app: Arc<App>, stop: CancellationToken) {
    let mut timer = tokio::time::interval(Duration::from_millis(global_stats::REFRESH_MS));
    while stop.run_until_cancelled(timer.tick()).await.is_some() {
        if let Err(refusal) = app.core.stats.refresh(&app.core).await {
            tracing::debug!(%refusal, "cannot read what there is in all");
        }
    }
}

async fn webhooks(app: Arc<App>, stop: CancellationToken) {
    let mut was_away = false;
    while stop.run_until_cancelled(app.core.webhooks.wait()).await.is_some() {
        note("sending to webhooks", &mut was_away, &app.core.webhooks.send_due().await);
    }
}

/// The load of the last minute for each processor: 1 when all are busy, more when work waits for them. 0 where the system
/// does not tell.
#[must_use]
pub fn system_load() -> f64 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let said = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = said.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    #[allow(clippy::cast_precision_loss, reason = "processors are few")]
    let per_processor = load / processors as f64;
    per_processor
}
