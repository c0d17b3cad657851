//! A crowd on `agents:discovery`: how soon everybody knows everybody, and what that costs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Measured, Scale, mib};
use crate::door::{self, Entry};
use crate::fleet::Fleet;
use crate::node::{Agent, Node, cpu_of};
use crate::roster::Roster;

/// Joins a second.
const JOINS_PER_SECOND: u32 = 200;
/// Members of which all that they are told is read, and compared with the truth.
const CHECKED: usize = 10;
/// How long the last of a crowd may take.
const PATIENCE: Duration = Duration::from_secs(300);
const TOPIC: &str = "agents:discovery";

/// A crowd whose members have connected and join one after another.
struct Crowd {
    node: Node,
    agents: Vec<Agent>,
    fleet: Fleet<Roster>,
    /// Members that watch everybody: the first so many; the others want to know of nobody.
    watchers: usize,
    /// Whether each knows what it should.
    informed: Vec<bool>,
    informed_count: usize,
}

impl Crowd {
    fn new(members: usize, watchers: usize) -> Self {
        let mut node = Node::start(&[]);
        let agents = node.agents(members);
        let streams = door::open(node.address(), 0..members, |number| Entry {
            mount: "/socket",
            key: &agents[number].key,
            ..Entry::default()
        });
        // Spread over all who watch, so that early and late ones are among them.
        let step = watchers.div_ceil(CHECKED);
        let fleet = Fleet::with(streams.into_iter().enumerate().map(|(at, stream)| {
            let is_checked = at < watchers && at % step == 0;
            (stream, if is_checked { Roster::checked() } else { Roster::default() })
        }));
        let informed = vec![false; members];
        Self { node, agents, fleet, watchers, informed, informed_count: 0 }
    }

    fn take(&mut self, wait: Duration, present: usize) {
        let Self { fleet, informed, informed_count, watchers, .. } = self;
        fleet.take_with(wait, |at, roster, _, _| {
            let knows = if at < *watchers { roster.known == present } else { roster.joined == 1 };
            if knows != informed[at] {
                informed[at] = knows;
                *informed_count = if knows { *informed_count + 1 } else { *informed_count - 1 };
            }
        });
    }

    /// Everybody joins; how long that took, and from the last join until each knows all.
    fn gather(&mut self) -> (Duration, Duration) {
        let members = self.agents.len();
        let begun = Instant::now();
        for number in 0..members {
            let due = begun + Duration::from_secs(1) * u32::try_from(number).unwrap() / JOINS_PER_SECOND;
            loop {
                let wait = due.saturating_duration_since(Instant::now());
                self.take(wait, members);
                if Instant::now() >= due {
                    break;
                }
            }
            let payload = if number < self.watchers { "{}" } else { r#"{"presence":"none"}"# };
            let entry = Entry { topic: TOPIC, payload, ..Entry::default() };
            self.fleet.send(number, &entry.join_frame());
        }
        let joined = begun.elapsed();
        (joined, self.inform(members, members))
    }

    /// Takes until so many members know of so many; how long that took.
    fn inform(&mut self, members: usize, present: usize) -> Duration {
        let begun = Instant::now();
        while self.informed_count < members {
            self.take(Duration::from_millis(100), present);
            let late = members - self.informed_count.min(members);
            assert!(begun.elapsed() < PATIENCE, "{late} of {members} do not know all");
        }
        begun.elapsed()
    }

    /// Compares what those who are checked were told with who is there.
    fn check(&self, there: &[Agent]) {
        let there: BTreeSet<&str> = there.iter().map(|agent| agent.id.as_str()).collect();
        let checked = self.fleet.counters().filter(|roster| roster.check(&there)).count();
        assert!(checked >= CHECKED - 1, "only {checked} were checked");
    }

    fn told(&self) -> u64 {
        self.fleet.counters().map(|roster| roster.told).sum()
    }
}

/// Everybody watches everybody; then some leave at once.
pub fn everybody(scale: &Scale, members: usize) -> Vec<Measured> {
    let members = scale.of(members).max(members.min(400));
    let mut crowd = Crowd::new(members, members);
    let (server, own) = (crowd.node.process.cpu(), cpu_of("self"));
    let (joining, informing) = crowd.gather();
    let (server, own) = (crowd.node.process.cpu() - server, cpu_of("self") - own);
    let told = crowd.told();
    let states: u64 = crowd.fleet.counters().map(|roster| roster.states).sum();
    let peak = crowd.node.process.peak();
    crowd.check(&crowd.agents);
    let bytes = crowd.fleet.bytes;

    // The last ones, so that of those who are checked most stay.
    let leaving = (members / 20).max(members.min(50));
    let stay = members - leaving;
    crowd.informed.fill(false);
    crowd.informed_count = 0;
    for at in stay..members {
        crowd.fleet.drop_one(at);
    }
    let left_cpu = crowd.node.process.cpu();
    let leaves = crowd.inform(stay, stay);
    let left_cpu = crowd.node.process.cpu() - left_cpu;
    crowd.check(&crowd.agents[..stay]);

    let square = (members * members) as f64;
    let rate = members as f64 / joining.as_secs_f64();
    let name = format!("presence, {members} members");
    vec![
        Measured {
            name: format!("{name}, everybody watches everybody"),
            per_second: Some(told as f64 / (joining + informing).as_secs_f64()),
            cpu_per_million: Some(server * 1e6 / told as f64),
            generator_cpu: Some(own / (joining + informing).as_secs_f64()),
            note: format!(
                "all know all {:.2} s after the last join ({rate:.0} joins a second); {:.2} × members² entries told, \
                 {:.0} MiB; {server:.1} s of CPU; peak {:.0} MiB; {} states sent again",
                informing.as_secs_f64(),
                told as f64 / square,
                mib(bytes as f64),
                mib(peak as f64),
                states - members as u64,
            ),
            ..Measured::default()
        },
        Measured {
            name: format!("{name}, {leaving} leave at once"),
            note: format!("all others know within {} ms; {left_cpu:.2} s of CPU", leaves.as_millis()),
            ..Measured::default()
        },
    ]
}

/// Many members of whom few watch.
pub fn watchers(scale: &Scale) -> Vec<Measured> {
    let members = scale.of(5_000).max(1_000);
    let mut crowd = Crowd::new(members, CHECKED);
    let (resident, server) = (crowd.node.process.resident(), crowd.node.process.cpu());
    let (joining, informing) = crowd.gather();
    let server = crowd.node.process.cpu() - server;
    let grown = crowd.node.process.resident() as f64 - resident as f64;
    crowd.check(&crowd.agents);
    let rate = members as f64 / joining.as_secs_f64();
    vec![Measured {
        name: format!("presence, {members} members of whom {CHECKED} watch"),
        note: format!(
            "{:.1} MiB grown, from all connected to all joined; {server:.2} s of CPU; all is known {} ms after the last \
             join ({rate:.0} joins a second)",
            mib(grown),
            informing.as_millis(),
        ),
        ..Measured::default()
    }]
}
