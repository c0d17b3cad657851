//! The window and the delays by themselves, properties over any order of events, and nodes that push over one store while
//! connections, answers and whole nodes are lost.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::time::Timestamp;

const TERMS: Terms = Terms { window: 4, first_delay_ms: 1_000 };

fn id(n: u64) -> MessageId {
    let mut entropy = [0; 10];
    entropy[2..].copy_from_slice(&n.to_be_bytes());
    MessageId::new(Timestamp::from_unix_ms(1), entropy)
}

fn counted(seq: u64, retries: u32) -> Counted {
    Counted { seq, id: id(seq), retries, is_open: true }
}

/// A mailbox that has fetched these.
fn with(seqs: std::ops::RangeInclusive<u64>) -> Mailbox {
    let mut mailbox = Mailbox::new(TERMS);
    assert_eq!(mailbox.step(0, true), Step::Fetch { known: vec![], room: 4 });
    let found: Vec<_> = seqs.map(|seq| counted(seq, 0)).collect();
    let all: Vec<_> = (0..found.len()).collect();
    assert_eq!(mailbox.fetched(&found, false, 0, || 0), all);
    mailbox
}

/// R119: 1, 2, 4, 8 and 16 s, 20 % more or less.
#[test]
fn delays_double() {
    let delays: Vec<u64> = (0..=RETRIES_MAX).map(|retries| TERMS.delay_ms(retries, 0)).collect();
    assert_eq!(delays, [1_000, 2_000, 4_000, 8_000, 16_000, 16_000]);
    assert_eq!((TERMS.delay_ms(4, -200), TERMS.delay_ms(4, 200)), (12_800, 19_200));
    assert_eq!((TERMS.delay_ms(0, -9_999), TERMS.delay_ms(0, 9_999)), (800, 1_200));
}

/// R119: five retries, and then it is given up.
#[test]
fn a_message_is_pushed_six_times_and_then_given_up() {
    let mut mailbox = with(1..=1);
    let mut now_ms = 0;
    for retries in 0..RETRIES_MAX {
        let due = now_ms + TERMS.delay_ms(retries, 0);
        assert_eq!(mailbox.step(now_ms, true), Step::Wait(Some(due)));
        assert_eq!(mailbox.step(due - 1, true), Step::Wait(Some(due)));
        now_ms = due;
        let asked = vec![Attempt { seq: 1, retries }];
        assert_eq!(mailbox.step(now_ms, true), Step::Retry(asked.clone()));
        assert_eq!(mailbox.retried(&asked, &[counted(1, retries + 1)], now_ms, || 0), [0]);
    }
    let pushed_ms = now_ms;
    now_ms += 16_000;
    mailbox.heard(pushed_ms + 1);
    assert_eq!(mailbox.step(now_ms - 1, true), Step::Wait(Some(now_ms)));
    assert_eq!(mailbox.step(now_ms, true), Step::Fail(vec![1]));
    mailbox.failed(&[1]);
    assert_eq!(mailbox.step(now_ms, true), Step::Fetch { known: vec![], room: 4 });
}

/// R119 R120: who says nothing at all may be gone. Its messages are pushed as often as ever and not given up; when its
/// connection has ended they are as if they had not been pushed.
#[test]
fn silence_is_no_want_of_an_acknowledgement() {
    let mut mailbox = with(1..=2);
    mailbox.heard(500);
    let mut now_ms = 0;
    for retries in 0..RETRIES_MAX {
        now_ms += TERMS.delay_ms(retries, 0);
        let asked: Vec<_> = (1..=2).map(|seq| Attempt { seq, retries }).collect();
        assert_eq!(mailbox.step(now_ms, true), Step::Retry(asked.clone()));
        mailbox.retried(&asked, &[counted(1, retries + 1), counted(2, retries + 1)], now_ms, || 0);
    }
    // What came with the push says nothing of it.
    mailbox.heard(now_ms);
    now_ms += 16_000;
    mailbox.fetched(&[counted(3, 0)], false, now_ms, || 0);
    assert_eq!(mailbox.step(now_ms, true), Step::Wait(Some(now_ms + 1_000)), "looked at again, not given up");
    let last = |seq| Attempt { seq, retries: RETRIES_MAX };
    let mut gone = with(1..=2);
    gone.heard(1);
    assert_eq!(
        gone.unheard(),
        [],
        "it was heard of after the push: what is not acknowledged stays where it is"
    );
    assert_eq!(gone.behind(0, 10), [1, 2]);
    assert_eq!(mailbox.unheard(), [last(1), last(2), Attempt { seq: 3, retries: 0 }]);
    assert!(mailbox.behind(0, 10).is_empty());
    assert_eq!(mailbox.step(now_ms, true), Step::Fetch { known: vec![], room: 4 }, "they are found again");
}

/// R119: whoever shows life and acknowledges nothing is given up on.
#[test]
fn a_sign_of_life_after_the_last_push_is_enough() {
    let mut mailbox = Mailbox::new(TERMS);
    mailbox.step(0, true);
    mailbox.fetched(&[counted(1, RETRIES_MAX)], false, 100, || 0);
    assert_eq!(mailbox.step(50_000, true), Step::Wait(Some(51_000)));
    mailbox.heard(101);
    assert_eq!(mailbox.step(50_000, true), Step::Fail(vec![1]));
}

/// R120: what whoever comes back is pushed again is not given up because they have come.
#[test]
fn who_comes_back_has_time_to_acknowledge() {
    let mut mailbox = Mailbox::new(TERMS);
    mailbox.step(0, true);
    mailbox.fetched(&[counted(1, RETRIES_MAX)], false, 100, || 0);
    mailbox.heard(60_000);
    mailbox.pushed_again([1, 7].into_iter(), 60_001);
    assert_eq!(mailbox.step(60_001, true), Step::Wait(Some(76_001)), "as long as after the last push");
    mailbox.heard(60_002);
    assert_eq!(mailbox.step(76_001, true), Step::Fail(vec![1]));
}

/// R113: no more are under way than the window holds; an acknowledgement makes room.
#[test]
fn the_window_is_kept() {
    let mut mailbox = with(1..=4);
    mailbox.news();
    assert_eq!(mailbox.step(0, true), Step::Wait(Some(1_000)), "no room");
    assert!(mailbox.settle(id(2)), "there is more, and room for it now");
    assert_eq!(mailbox.step(0, true), Step::Fetch { known: vec![1, 3, 4], room: 1 });
    assert_eq!(mailbox.fetched(&[counted(5, 0)], true, 0, || 0), [0]);
    assert_eq!(mailbox.behind(0, 10), [1, 3, 4, 5]);
    assert_eq!(mailbox.behind(1, 2), [3, 4]);
}

/// R120: without a connection nothing is asked for and nothing is counted.
#[test]
fn nobody_there_consumes_no_retry() {
    let mut mailbox = with(1..=1);
    assert_eq!(mailbox.step(1_000_000, false), Step::Wait(None));
    assert_eq!(mailbox.step(1_000_000, true), Step::Retry(vec![Attempt { seq: 1, retries: 0 }]));
}

/// R121: what is settled while the store is asked is not pushed, however the answer reads.
#[test]
fn an_acknowledgement_under_way_wins() {
    let mut mailbox = Mailbox::new(TERMS);
    mailbox.step(0, true);
    mailbox.settle(id(1));
    assert_eq!(mailbox.fetched(&[counted(1, 0), counted(2, 0)], false, 0, || 0), [1]);
    assert!(!mailbox.is_under_way(1) && mailbox.is_under_way(2));
    let asked = vec![Attempt { seq: 2, retries: 0 }];
    assert_eq!(mailbox.step(1_000, true), Step::Retry(asked.clone()));
    mailbox.settle(id(2));
    assert_eq!(mailbox.retried(&asked, &[counted(2, 1)], 1_000, || 0), Vec::<usize>::new());
    assert_eq!(mailbox.step(1_000, true), Step::Wait(None));
}

#[test]
fn what_is_pushed_at_most_once_takes_no_place() {
    let mut mailbox = Mailbox::new(TERMS);
    mailbox.step(0, true);
    let once = Counted { is_open: false, ..counted(1, 0) };
    assert_eq!(mailbox.fetched(&[once, counted(2, 0)], false, 0, || 0), [0, 1]);
    assert_eq!(mailbox.behind(0, 10), [2]);
}

#[test]
fn a_store_that_is_away_is_asked_again_later() {
    let mut mailbox = Mailbox::new(TERMS);
    mailbox.step(0, true);
    mailbox.failed_to_ask(0, 500);
    assert_eq!(mailbox.step(499, true), Step::Wait(Some(500)));
    assert_eq!(mailbox.step(500, true), Step::Fetch { known: vec![], room: 4 });
}

proptest! {
    /// Whatever happens in whatever order: the window is kept, what is settled is never pushed or asked about again, and
    /// retries of one message are asked for no earlier than its delay allows.
    #[test]
    fn whatever_happens(events in prop::collection::vec((0_u8..6, 1_u64..12, 0_u64..20_000), 1..200)) {
        let mut mailbox = Mailbox::new(TERMS);
        let (mut now_ms, mut settled) = (0_u64, BTreeSet::new());
        let mut pushed_at: BTreeMap<u64, u64> = BTreeMap::new();
        for (event, seq, elapse) in events {
            match event {
                0 => mailbox.news(),
                1 => { mailbox.settle(id(seq)); settled.insert(seq); }
                2 => now_ms += elapse,
                _ => {
                    if seq % 2 == 0 {
                        mailbox.heard(now_ms);
                    }
                    let step = mailbox.step(now_ms, event != 5);
                    // Something may be settled before the store answers.
                    if elapse % 3 == 0 && step != Step::Wait(None) {
                        mailbox.settle(id(seq));
                        settled.insert(seq);
                    }
                    let (found, places) = match &step {
                        Step::Fetch { known, room } => {
                            prop_assert!(known.len() + room <= TERMS.window);
                            let found: Vec<_> = (1..12).filter(|seq| !known.contains(seq)).take(*room).map(|seq| counted(seq, 0)).collect();
                            let places = mailbox.fetched(&found, true, now_ms, || 0);
                            (found, places)
                        }
                        Step::Retry(asked) => {
                            for attempt in asked {
                                let before = pushed_at.get(&attempt.seq).copied().unwrap_or(0);
                                prop_assert!(now_ms >= before + TERMS.delay_ms(attempt.retries, 0));
                                prop_assert!(attempt.retries < RETRIES_MAX);
                            }
                            let found: Vec<_> = asked.iter().map(|attempt| counted(attempt.seq, attempt.retries + 1)).collect();
                            let places = mailbox.retried(asked, &found, now_ms, || 0);
                            (found, places)
                        }
                        Step::Fail(seqs) => {
                            mailbox.failed(seqs);
                            settled.extend(seqs);
                            (Vec::new(), Vec::new())
                        }
                        Step::Wait(at) => {
                            prop_assert!(at.is_none_or(|at| at > now_ms));
                            (Vec::new(), Vec::new())
                        }
                    };
                    for place in places {
                        let seq = found[place].seq;
                        // This store knows of nothing that was settled before it was asked.
                        pushed_at.insert(seq, now_ms);
                        settled.remove(&seq);
                    }
                    prop_assert!(mailbox.behind(0, 100).iter().all(|seq| !settled.contains(seq)));
                }
            }
            prop_assert!(mailbox.behind(0, 100).len() <= TERMS.window);
        }
    }
}

/// A store as the simulation has it: what real ones do in a transaction, in a step.
#[derive(Default)]
struct Store {
    messages: BTreeMap<u64, Stored>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Queued,
    Delivered,
    Acknowledged,
    Failed,
}

struct Stored {
    sender: u8,
    retries: u32,
    state: State,
    is_once: bool,
}

impl Stored {
    fn is_open(&self) -> bool {
        self.state == State::Queued || self.state == State::Delivered && !self.is_once
    }
}

impl Store {
    fn fetch(&mut self, known: &[u64], room: usize) -> (Vec<Counted>, bool) {
        let open = self.messages.iter_mut().filter(|(seq, one)| one.is_open() && !known.contains(seq));
        let found: Vec<_> = open
            .take(room)
            .map(|(seq, one)| {
                one.state = State::Delivered;
                Counted { seq: *seq, id: id(*seq), retries: one.retries, is_open: !one.is_once }
            })
            .collect();
        let full = found.len() >= room;
        (found, full)
    }

    fn retry(&mut self, asked: &[Attempt]) -> Vec<Counted> {
        let mut found = Vec::new();
        for attempt in asked {
            let one = self.messages.get_mut(&attempt.seq).unwrap();
            if one.state == State::Delivered {
                if one.retries == attempt.retries && one.retries < RETRIES_MAX {
                    one.retries += 1;
                }
                found.push(counted(attempt.seq, one.retries));
            }
        }
        found
    }

    fn fail(&mut self, seqs: &[u64]) {
        for seq in seqs {
            let one = self.messages.get_mut(seq).unwrap();
            if one.state == State::Delivered && one.retries >= RETRIES_MAX {
                one.state = State::Failed;
            }
        }
    }
}

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A node: its mailbox, and whether the recipient is connected to it.
struct Node {
    mailbox: Option<Mailbox>,
    /// Newest place that its connection was pushed: what comes for the first time is newer.
    upto: u64,
}

/// What the store has done for a node, whose answer has not come yet.
struct UnderWay {
    node: usize,
    step: Step,
    found: Vec<Counted>,
    full: bool,
}

/// Two nodes over one store, and a recipient that is connected to none, one or both.
struct World {
    seed: u64,
    dice: Dice,
    store: Store,
    nodes: [Node; 2],
    under_way: Vec<UnderWay>,
    acknowledged: BTreeSet<u64>,
    received: BTreeSet<u64>,
    now_ms: u64,
    next: u64,
    /// Nothing is sent, lost or cut any more.
    is_calm: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let node = || Node { mailbox: None, upto: 0 };
        Self {
            seed,
            dice: Dice(seed),
            store: Store::default(),
            nodes: [node(), node()],
            under_way: Vec::new(),
            acknowledged: BTreeSet::new(),
            received: BTreeSet::new(),
            now_ms: 0,
            next: 1,
            is_calm: false,
        }
    }

    fn send(&mut self) {
        let (sender, is_once) = (u8::try_from(self.dice.below(3)).unwrap(), self.dice.one_in(8));
        self.store.messages.insert(self.next, Stored { sender, retries: 0, state: State::Queued, is_once });
        self.next += 1;
        // Hints get lost.
        for node in &mut self.nodes {
            if let Some(mailbox) = node.mailbox.as_mut().filter(|_| !self.dice.one_in(5)) {
                mailbox.news();
            }
        }
    }

    /// A connection, or the whole node, goes or comes.
    fn come_or_go(&mut self, at: usize) {
        let is_gone = self.nodes[at].mailbox.is_some() && !self.is_calm;
        self.nodes[at] = Node { mailbox: (!is_gone).then(|| Mailbox::new(TERMS)), upto: 0 };
        self.under_way.retain(|one| one.node != at);
    }

    /// The store does what a node's mailbox wants; its answer comes later.
    fn ask(&mut self, at: usize) {
        let Some(mailbox) = &mut self.nodes[at].mailbox else { return };
        mailbox.heard(self.now_ms);
        let step = mailbox.step(self.now_ms, true);
        let (found, full) = match &step {
            Step::Fetch { known, room } => self.store.fetch(known, *room),
            Step::Retry(asked) => (self.store.retry(asked), false),
            Step::Fail(seqs) => {
                self.store.fail(seqs);
                (Vec::new(), false)
            }
            Step::Wait(_) => return,
        };
        self.under_way.push(UnderWay { node: at, step, found, full });
    }

    /// An answer of the store comes, after whatever has happened meanwhile.
    fn answer(&mut self, UnderWay { node: at, step, found, full }: UnderWay) {
        let mailbox = self.nodes[at].mailbox.as_mut().unwrap();
        let places = match &step {
            Step::Fetch { .. } => mailbox.fetched(&found, full, self.now_ms, || 0),
            Step::Retry(asked) => mailbox.retried(asked, &found, self.now_ms, || 0),
            Step::Fail(seqs) => {
                mailbox.failed(seqs);
                Vec::new()
            }
            Step::Wait(_) => Vec::new(),
        };
        for place in places {
            let (seq, seed) = (found[place].seq, self.seed);
            assert!(
                !self.acknowledged.contains(&seq),
                "seed {seed}: {seq} was pushed after its acknowledgement"
            );
            if matches!(step, Step::Fetch { .. }) {
                let upto = self.nodes[at].upto;
                assert!(seq > upto, "seed {seed}: {seq} was pushed first after {upto}");
                self.nodes[at].upto = seq;
            }
            let is_lost = !self.is_calm && self.dice.one_in(4);
            if !is_lost {
                self.received.insert(seq);
                self.acknowledge(seq);
            }
        }
    }

    /// The acknowledgement is stored, then told to both nodes, then answered; unless it is lost.
    fn acknowledge(&mut self, seq: u64) {
        let is_lost = !self.is_calm && self.dice.one_in(4);
        let stored = self.store.messages.get_mut(&seq).unwrap();
        if is_lost || stored.is_once {
            return;
        }
        stored.state = State::Acknowledged;
        self.nodes.iter_mut().filter_map(|node| node.mailbox.as_mut()).for_each(|mailbox| {
            mailbox.settle(id(seq));
        });
        self.acknowledged.insert(seq);
    }

    fn round(&mut self) {
        self.now_ms += self.dice.below(400);
        if !self.is_calm && self.dice.one_in(4) {
            self.send();
        }
        let at = usize::try_from(self.dice.below(2)).unwrap();
        let nobody_is_there = self.nodes.iter().all(|node| node.mailbox.is_none());
        if self.dice.one_in(40) || self.is_calm && nobody_is_there {
            self.come_or_go(at);
        }
        // Nodes look for themselves now and then.
        if let Some(mailbox) = self.nodes[at].mailbox.as_mut().filter(|_| self.dice.one_in(20)) {
            mailbox.news();
        }
        match self.under_way.iter().position(|one| one.node == at) {
            Some(place) if self.dice.one_in(2) => {
                let answer = self.under_way.remove(place);
                self.answer(answer);
            }
            Some(_) => {}
            None => self.ask(at),
        }
    }

    fn check(&self) {
        let seed = self.seed;
        for (seq, one) in &self.store.messages {
            let is_settled = matches!(one.state, State::Acknowledged | State::Failed)
                || one.is_once && one.state == State::Delivered;
            assert!(is_settled, "seed {seed}: {seq} of sender {} is {:?}", one.sender, one.state);
            assert!(one.state != State::Acknowledged || self.received.contains(seq), "seed {seed}: {seq}");
            assert!(one.retries <= RETRIES_MAX, "seed {seed}");
        }
        assert!(self.acknowledged.len() > 50, "seed {seed}: {} acknowledged", self.acknowledged.len());
    }
}

/// R119 R121 R124: two nodes, senders, lost pushes, hints and acknowledgements, connections and nodes that come and go. What is
/// acknowledged is never pushed again, nothing is lost, and first pushes to a connection are in the order of the queue.
#[test]
fn two_nodes_over_one_store() {
    for seed in 0..300 {
        let mut world = World::new(seed);
        let rounds = 3_000;
        for round in 0..rounds {
            world.is_calm = round > rounds * 3 / 4;
            world.round();
        }
        world.check();
    }
}
