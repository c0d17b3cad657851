//! Periods, intervals, and what is shown of figures.

use super::*;
use crate::ids::TaskId;
use crate::json::Json;

fn at(ms: i64) -> Timestamp {
    // 2023-11-14T22:13:20Z, a Tuesday.
    Timestamp::from_unix_ms(1_700_000_000_000 + ms)
}

fn task(status: TaskStatus) -> Task {
    Task {
        id: TaskId::new(at(0), [0; 10]),
        status,
        client: AgentId::from_bytes([1; 16]),
        client_owner: None,
        provider: AgentId::from_bytes([2; 16]),
        capability: "code".into(),
        input: Json::null(),
        output: None,
        error: None,
        max_price: None,
        external_client: None,
        hiring: None,
        payment: crate::escrow::Payment::default(),
        created_at: at(0),
        updated_at: at(0),
        ended_at: Some(at(1_500)),
    }
}

/// R102
#[test]
fn tasks_count_for_their_provider() {
    for (status, expected) in [
        (TaskStatus::Completed, Figures { tasks_completed: 1, duration_ms: 1_500, ..Figures::default() }),
        (TaskStatus::Failed, Figures { tasks_failed: 1, ..Figures::default() }),
        (TaskStatus::Cancelled, Figures { tasks_cancelled: 1, ..Figures::default() }),
    ] {
        let task = task(status);
        assert_eq!(Event::TaskEnded(&task).counts(), (task.provider, "code".into(), expected, true));
    }
    let task = task(TaskStatus::Pending);
    assert_eq!(Event::TaskCreated(&task).counts().2.tasks_created, 1);
    assert!(!Event::TaskReassigned(&task).counts().3, "it is one task among all");
    let amount = Amount::parse("2.5").unwrap();
    let earned = Event::Earned { agent: task.client, capability: "x", amount };
    assert_eq!(
        earned.counts(),
        (task.client, "x".into(), Figures { revenue: 2_500_000, ..Figures::default() }, true)
    );
}

#[test]
fn values_come_back_in_their_order() {
    let figures = Figures::from_values(1..=Figures::NAMES.len() as u64);
    assert_eq!(Figures::from_values(figures.values()), figures);
    assert_eq!(figures.tasks_created, 1);
    assert_eq!(figures.revenue, Figures::NAMES.len() as u64);
}

/// R108
#[test]
fn periods_begin_at_whole_intervals_and_others_are_refused() {
    assert_eq!(Period::parse(None), Ok(Period::Day));
    for name in Period::NAMES {
        let period = Period::parse(Some(name)).unwrap();
        assert_eq!(serde_json::to_value(period).unwrap(), *name);
        let from = period.from(period.interval(), at(0));
        assert_eq!(from, period.interval().floor(from), "{name}");
        let kept = period.interval().kept_ms();
        assert!(period == Period::All || kept.is_none_or(|kept| at(0).ms_since(from) <= kept), "{name}");
    }
    for bad in ["", "2h", "1H", "year", "ALL"] {
        let refusal = Period::parse(Some(bad)).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::InvalidPeriod, "{bad}");
    }
}

/// R103
#[test]
fn no_series_has_more_points_than_it_may() {
    for name in Period::NAMES {
        let period = Period::parse(Some(name)).unwrap();
        for asked in [None, Some(Interval::Minute), Some(Interval::Hour), Some(Interval::Day)] {
            let interval = shown_interval(period, asked, at(0));
            let rows = [(at(-4_000 * DAY_MS), Figures { chunks: 1, ..Figures::default() })];
            let range = (period.from(interval, at(0)), at(0));
            let points = time_series(Metric::parse("chunks").unwrap(), (period, interval), range, &rows);
            assert!((1..=POINTS_MAX).contains(&points.len()), "{name} {asked:?}: {}", points.len());
            assert_eq!(points.last().unwrap().t, interval.floor(at(0)));
        }
    }
    assert_eq!(shown_interval(Period::Hour, Some(Interval::Minute), at(0)), Interval::Minute);
    assert_eq!(
        shown_interval(Period::Day, Some(Interval::Minute), at(0)),
        Interval::Hour,
        "1440 are too many"
    );
    assert_eq!(shown_interval(Period::Month, Some(Interval::Hour), at(0)), Interval::Hour);
    assert_eq!(shown_interval(Period::Quarter, Some(Interval::Minute), at(0)), Interval::Day);
}

/// R103
#[test]
fn a_series_has_a_point_for_every_interval_and_knows_its_metrics() {
    let rows = [
        (
            Interval::Hour.floor(at(-2 * HOUR_MS)),
            Figures { tasks_completed: 3, tasks_failed: 1, ..Figures::default() },
        ),
        (Interval::Hour.floor(at(0)), Figures { tasks_completed: 1, duration_ms: 7, ..Figures::default() }),
    ];
    let range = (Interval::Hour.floor(at(-2 * HOUR_MS)), at(0));
    let values = |metric: &str| {
        let metric = Metric::parse(metric).unwrap();
        let points = time_series(metric, (Period::Day, Interval::Hour), range, &rows);
        points.into_iter().map(|point| point.v).collect::<Vec<_>>()
    };
    assert_eq!(values("tasks_completed"), [3, 0, 1]);
    assert_eq!(values("success_rate"), [0.75.into(), serde_json::Value::Null, 1.0.into()]);
    assert_eq!(values("avg_duration_ms"), [0.into(), serde_json::Value::Null, 7.into()]);
    assert_eq!(values("revenue"), ["0", "0", "0"]);
    let refusal = Metric::parse("password").unwrap_err();
    assert_eq!(refusal.code, ErrorCode::UnknownMetric);
    assert!(refusal.response().as_str().contains("\"metrics\":[\"tasks_total\""));
    for name in Metric::names() {
        assert_eq!(Metric::parse(name).unwrap().name(), name);
    }
}

/// R104
#[test]
fn revenue_is_summed_by_day_and_by_capability() {
    let earned = |revenue| Figures { revenue, ..Figures::default() };
    let rows =
        [(at(0), earned(1)), (at(60_000), earned(2)), (at(DAY_MS), earned(4)), (at(2 * DAY_MS), earned(0))];
    let by_capability =
        vec![("a".to_owned(), earned(3)), ("b".to_owned(), earned(4)), ("c".to_owned(), earned(0))];
    let view = serde_json::to_value(revenue(Period::Week, &rows, by_capability)).unwrap();
    assert_eq!(
        view,
        serde_json::json!({
            "period": "7d", "total": "0.000007", "currency": "USD",
            "by_day": [{ "day": "2023-11-14", "amount": "0.000003" }, { "day": "2023-11-15", "amount": "0.000004" }],
            "by_capability": [{ "capability": "b", "amount": "0.000004" }, { "capability": "a", "amount": "0.000003" }],
        })
    );
}

/// R105
#[test]
fn a_heatmap_counts_by_the_hour_of_the_week() {
    let created = |tasks_created| Figures { tasks_created, ..Figures::default() };
    let rows = [(at(0), created(2)), (at(7 * DAY_MS), created(1)), (at(6 * DAY_MS), created(5))];
    let map = heatmap(Period::Month, (at(-30 * DAY_MS), at(0)), &rows);
    assert_eq!((map.counts.len(), map.counts.iter().all(|row| row.len() == 24)), (7, true));
    assert_eq!((map.counts[1][22], map.counts[0][22]), (3, 5), "Tuesday and Monday, 22 h");
    assert_eq!(map.counts.iter().flatten().sum::<u64>(), 8);
}
