//! What is shown of figures: sums, series, revenue, heatmap.

use serde::Serialize;

use super::{DAY_MS, Figures, HOUR_MS, Interval, Metric, Period, amount, average, success_rate, sum};
use crate::money::Amount;
use crate::time::Timestamp;

/// What `request_metrics` answers (R102).
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the API")]
pub struct MetricsView {
    #[schema(value_type = String)]
    pub period: Period,
    pub from: Timestamp,
    pub to: Timestamp,
    pub tasks_total: u64,
    pub tasks_completed: u64,
    pub tasks_failed: u64,
    pub tasks_cancelled: u64,
    pub success_rate: Option<f64>,
    pub avg_duration_ms: Option<u64>,
    pub chunks: u64,
    pub messages_sent: u64,
    pub messages_received: u64,
    pub revenue: Amount,
}

/// A time of figures, by the beginning of each interval, oldest first.
pub type Rows = [(Timestamp, Figures)];

/// Where figures of all times begin: with the first, or now.
fn first(period: Period, from: Timestamp, to: Timestamp, rows: &Rows) -> Timestamp {
    match period {
        Period::All => rows.first().map_or(to, |(at, _)| *at),
        _ => from,
    }
}

/// Sums up a period.
#[must_use]
pub fn metrics(period: Period, (from, to): (Timestamp, Timestamp), rows: &Rows) -> MetricsView {
    let total = sum(rows.iter().map(|(_, figures)| figures));
    MetricsView {
        period,
        from: first(period, from, to, rows),
        to,
        tasks_total: total.tasks_created,
        tasks_completed: total.tasks_completed,
        tasks_failed: total.tasks_failed,
        tasks_cancelled: total.tasks_cancelled,
        success_rate: success_rate(&total),
        avg_duration_ms: average(&total),
        chunks: total.chunks,
        messages_sent: total.messages_sent,
        messages_received: total.messages_received,
        revenue: amount(total.revenue),
    }
}

/// Points of one answer at most (R103).
pub const POINTS_MAX: usize = 1_000;

/// The interval at which a period is shown: what was asked for, or the next coarser one of which no more than
/// [`POINTS_MAX`] points make up the period, and which is kept for so long.
#[must_use]
pub fn shown_interval(period: Period, asked: Option<Interval>, now: Timestamp) -> Interval {
    let mut interval = asked.unwrap_or(match period {
        Period::Hour => Interval::Minute,
        Period::Day | Period::Week => Interval::Hour,
        Period::Month | Period::Quarter | Period::All => Interval::Day,
    });
    while interval < Interval::Day {
        let length = now.ms_since(period.from(interval, now));
        let points = usize::try_from(length / interval.ms()).unwrap_or(usize::MAX).saturating_add(1);
        if points <= POINTS_MAX && interval.kept_ms().is_none_or(|kept| length <= kept) {
            break;
        }
        interval = interval.coarser();
    }
    interval
}

/// A point of a time series.
#[derive(Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Point {
    /// Beginning of its interval.
    pub t: Timestamp,
    /// Value.
    #[schema(schema_with = crate::schema::value_of_a_point)]
    pub v: serde_json::Value,
}

/// A point for every interval from `from` to `to`, of which the newest [`POINTS_MAX`].
#[must_use]
pub fn time_series(
    metric: Metric,
    (period, interval): (Period, Interval),
    (from, to): (Timestamp, Timestamp),
    rows: &Rows,
) -> Vec<Point> {
    let reach = interval.ms().saturating_mul(i64::try_from(POINTS_MAX).unwrap_or(i64::MAX) - 1);
    let last = interval.floor(to);
    let begin = interval.floor(first(period, from, to, rows)).max(last.plus_ms(-reach));
    let mut rows = rows.iter().skip_while(|(at, _)| *at < begin).peekable();
    let mut points = Vec::new();
    let mut at = begin;
    while at <= last && points.len() < POINTS_MAX {
        let mut figures = Figures::default();
        while let Some((_, row)) = rows.next_if(|(row, _)| *row < at.plus_ms(interval.ms())) {
            figures.add(row);
        }
        points.push(Point { t: at, v: metric.value(&figures) });
        at = at.plus_ms(interval.ms());
    }
    points
}

/// The currency amounts are in: a node has one.
pub const CURRENCY: &str = "USD";

/// What `request_revenue` answers (R104).
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[allow(missing_docs, reason = "the names are the documentation: they are those of the API")]
pub struct RevenueView {
    #[schema(value_type = String)]
    pub period: Period,
    pub total: Amount,
    pub currency: &'static str,
    pub by_day: Vec<DayRevenue>,
    pub by_capability: Vec<CapabilityRevenue>,
}

/// What was earned on a day.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DayRevenue {
    /// `2026-11-21`, UTC.
    pub day: String,
    /// How much.
    pub amount: Amount,
}

/// What was earned by a capability.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct CapabilityRevenue {
    /// Which.
    pub capability: String,
    /// How much.
    pub amount: Amount,
}

/// Sums up what was earned: days on which nothing was are left out.
#[must_use]
pub fn revenue(period: Period, rows: &Rows, by_capability: Vec<(String, Figures)>) -> RevenueView {
    let mut days: Vec<(Timestamp, u64)> = Vec::new();
    for (at, figures) in rows.iter().filter(|(_, figures)| figures.revenue > 0) {
        let day = Interval::Day.floor(*at);
        match days.last_mut() {
            Some((last, sum)) if *last == day => *sum = sum.saturating_add(figures.revenue),
            _ => days.push((day, figures.revenue)),
        }
    }
    let mut by_capability: Vec<_> =
        by_capability.into_iter().filter(|(_, figures)| figures.revenue > 0).collect();
    by_capability.sort_by(|(a, x), (b, y)| y.revenue.cmp(&x.revenue).then_with(|| a.cmp(b)));
    RevenueView {
        period,
        total: amount(sum(rows.iter().map(|(_, figures)| figures)).revenue),
        currency: CURRENCY,
        by_day: days
            .into_iter()
            .map(|(day, sum)| DayRevenue {
                day: day.to_string().split('T').next().unwrap_or_default().to_owned(),
                amount: amount(sum),
            })
            .collect(),
        by_capability: by_capability
            .into_iter()
            .map(|(capability, figures)| CapabilityRevenue { capability, amount: amount(figures.revenue) })
            .collect(),
    }
}

/// What `request_heatmap` answers (R105).
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct HeatmapView {
    /// Period.
    #[schema(value_type = String)]
    pub period: Period,
    /// Where it begins: hours are kept for 92 days, which is what `all` comes to.
    pub from: Timestamp,
    /// Where it ends.
    pub to: Timestamp,
    /// Names of the rows.
    pub days: [&'static str; 7],
    /// Tasks created, by day of the week (Monday first) and hour of the day, UTC.
    pub counts: Vec<Vec<u64>>,
}

/// Counts tasks by the hour of the week in which they were created.
#[must_use]
pub fn heatmap(period: Period, (from, to): (Timestamp, Timestamp), rows: &Rows) -> HeatmapView {
    let mut counts = vec![vec![0_u64; 24]; 7];
    for (at, figures) in rows {
        // 1970-01-01 was a Thursday.
        let day = usize::try_from((at.unix_ms() / DAY_MS + 3) % 7).unwrap_or(0);
        let hour = usize::try_from(at.unix_ms() % DAY_MS / HOUR_MS).unwrap_or(0);
        if let Some(count) = counts.get_mut(day).and_then(|row| row.get_mut(hour)) {
            *count = count.saturating_add(figures.tasks_created);
        }
    }
    let days = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
    HeatmapView { period, from: first(period, from, to, rows), to, days, counts }
}
