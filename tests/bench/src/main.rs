//! Measures a node beside the floor: a bare epoll loop that writes the same frames to as many loopback sockets. One
//! thread generates the load and takes what comes; figures are ratios, and seconds of CPU, of one run.
//!
//! # Layout
//! * this file: which scenarios, and the table
//! * [`floor`]: the bare loop; [`node`]: the node under test; [`nodes`]: several, linked
//! * [`door`]: opens connections; [`fleet`]: holds them; [`wire`], [`order`], [`roster`]: count what comes on each
//! * [`scenarios`]: what is measured
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a measurement that fails ends")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it speaks to a person")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads real time")]
#![allow(clippy::cast_precision_loss, reason = "figures are rounded anyway")]

mod door;
mod fleet;
mod floor;
mod node;
mod nodes;
mod order;
mod roster;
mod scenarios;
mod wire;

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::scenarios::{Measured, Scale};

/// What a process may have open besides the sockets under test.
const SPARE_DESCRIPTORS: u64 = 1_000;

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "floor") {
        raise_descriptors();
        floor::run(&arguments[1]);
        return;
    }
    let short =
        arguments.iter().position(|argument| argument == "short").map(|at| arguments.remove(at)).is_some();
    let descriptors = raise_descriptors();
    let sockets = usize::try_from(descriptors - SPARE_DESCRIPTORS).unwrap_or(usize::MAX).min(19_000);
    println!("{descriptors} descriptors, so at most {sockets} sockets.");
    let scale = if short {
        Scale {
            time: Duration::from_millis(1_500),
            many: sockets.min(4_000),
            pause: Duration::from_secs(2),
            part: 0.1,
        }
    } else {
        Scale { time: Duration::from_secs(6), many: sockets, pause: Duration::from_secs(30), part: 1.0 }
    };
    let wanted = |name: &str| {
        arguments.is_empty() || arguments.iter().any(|argument| name.contains(argument.as_str()))
    };
    let mut rows = Vec::new();
    for (name, run) in scenarios::ALL {
        if wanted(name) {
            eprintln!("{name} …");
            rows.extend(run(&scale));
        }
    }
    print_table(&rows);
}

/// Raises the limit of open files as far as it may go; gives what it is then.
fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if setrlimit(Resource::Nofile, raised).is_err() {
        return limit.current.unwrap_or(1_024);
    }
    limit.maximum.unwrap_or(1_048_576)
}

fn print_table(rows: &[Measured]) {
    println!(
        "\n| scenario | deliveries/s | of the floor, or of local | CPU s/million | p50 ms | p99 ms | generator CPU | other |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    );
    let or_dash = |value: Option<f64>, digits: usize| {
        value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
    };
    for row in rows {
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            row.name,
            or_dash(row.per_second, 0),
            row.of_floor.or(row.of_local).map_or("–".to_owned(), |ratio| format!("{:.0} %", ratio * 100.0)),
            or_dash(row.cpu_per_million, 2),
            or_dash(row.p50_ms, 2),
            or_dash(row.p99_ms, 2),
            row.generator_cpu.map_or("–".to_owned(), |share| format!("{:.0} %", share * 100.0)),
            row.note,
        );
    }
}
