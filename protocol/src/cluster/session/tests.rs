//! Two sessions over carriers that lose, repeat, reorder and change, with sides that begin anew and sides that forget.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::cluster::NodeKey;
use crate::cluster::frame::PROTOCOL_VERSION;

const BOUNDS: Bounds = Bounds { outbox_bytes_max: 4_096, window_bytes_max: 600, message_bytes_max: 1_024 };
const RELIABLE: Carrier = Carrier { id: 1, reliable: true };

fn wire(out: &Outgoing) -> Frame {
    let key = NodeKey { name: "n".into(), incarnation: 1 };
    let header = Header {
        version: PROTOCOL_VERSION,
        cluster: "c".into(),
        from: key.clone(),
        to: Some(key),
        epoch: 0,
        peer_epoch: 0,
        number: 0,
        ack: 0,
        draining: false,
        goodbye: false,
        sent_us: 0,
        echo_us: 0,
        held_us: 0,
        address: None,
        others: Vec::new(),
        sightings: None,
        hears: 0,
    };
    Frame::decode(&Frame::encode(&out.header(header), &out.items).unwrap()).unwrap()
}

fn introduce(a: &mut Session, b: &mut Session) {
    for _ in 0..2 {
        let (from_a, from_b) = (wire(&a.bare()), wire(&b.bare()));
        assert!(!a.receive(from_b).reset && !b.receive(from_a).reset);
    }
}

fn pair() -> (Session, Session) {
    let (mut a, mut b) = (Session::new(1, BOUNDS), Session::new(1, BOUNDS));
    introduce(&mut a, &mut b);
    (a, b)
}

fn texts(items: Items) -> Vec<String> {
    items.map(|item| String::from_utf8(item.to_vec()).unwrap()).collect()
}

#[test]
fn many_messages_leave_in_one_frame_within_the_window() {
    let (mut a, mut b) = pair();
    for n in 0..100 {
        a.push(format!("message {n:03}").into(), 2).unwrap();
    }
    let mut frames = Vec::new();
    while let Some(out) = a.poll(0, RELIABLE) {
        frames.push(out);
    }
    let bytes: usize = frames.iter().map(|out| out.items.len()).sum();
    assert!(bytes <= BOUNDS.window_bytes_max && frames.len() < 5, "{bytes} bytes, {} frames", frames.len());
    let mut got = Vec::new();
    for out in frames {
        got.extend(texts(b.receive(wire(&out)).items));
    }
    while got.len() < 100 {
        assert!(b.may_answer());
        a.receive(wire(&b.bare()));
        let out = a.poll(0, RELIABLE).expect("an acknowledgement opens the window");
        got.extend(texts(b.receive(wire(&out)).items));
    }
    let wanted: Vec<String> = (0..100).map(|n| format!("message {n:03}")).collect();
    assert_eq!(got, wanted);
}

#[test]
fn another_carrier_repeats_what_is_not_acknowledged_and_nothing_arrives_twice() {
    let (mut a, mut b) = pair();
    a.push("one".into(), 2).unwrap();
    let out = a.poll(0, RELIABLE).unwrap();
    assert_eq!(texts(b.receive(wire(&out)).items), ["one"]);
    assert_eq!(a.poll(10_000, RELIABLE), None, "a reliable carrier is trusted");
    let again = a.poll(0, Carrier { id: 2, reliable: false }).unwrap();
    assert_eq!((again.number, again.items.clone()), (out.number, out.items));
    assert_eq!(b.receive(wire(&again)).items, Items::default());
    assert!(b.must_answer());
    assert_eq!(a.poll(RETRY_AFTER_MS - 1, Carrier { id: 2, reliable: false }), None);
    assert!(a.poll(RETRY_AFTER_MS, Carrier { id: 2, reliable: false }).is_some());
    a.receive(wire(&b.bare()));
    assert_eq!((a.frames_in_flight(), a.waiting_bytes()), (0, 0));
    assert_eq!(a.poll(99_999, Carrier { id: 2, reliable: false }), None);
}

#[test]
fn too_much_waiting_resets_both_sides_once_and_they_go_on() {
    let (mut a, mut b) = pair();
    a.push("lost".into(), 2).unwrap();
    let late = wire(&a.poll(0, RELIABLE).unwrap());
    let mut refused = None;
    for _ in 0..10 {
        refused = a.push(vec![b'x'; 1_000].into(), 2).err();
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused, Some(Refused::Reset));
    assert_eq!((a.waiting_bytes(), a.counts().resets), (0, 1));
    assert_eq!(a.counts().messages_dropped, 6);
    a.push("after".into(), 3).unwrap();
    let received = b.receive(wire(&a.poll(0, RELIABLE).unwrap()));
    assert!(received.reset);
    assert_eq!(texts(received.items), ["after"]);
    assert_eq!(b.receive(late), Received::default(), "nothing of the old generation gets in");
    b.push("and back".into(), 2).unwrap();
    let received = a.receive(wire(&b.poll(0, RELIABLE).unwrap()));
    assert!(!received.reset);
    assert_eq!(texts(received.items), ["and back"]);
}

#[test]
fn a_side_that_forgot_makes_the_other_begin_anew() {
    let (mut a, mut b) = pair();
    a.push("one".into(), 2).unwrap();
    b.receive(wire(&a.poll(0, RELIABLE).unwrap()));
    let mut b = Session::new(2, BOUNDS);
    assert!(!b.receive(wire(&a.bare())).reset, "a new side has nothing to lose");
    assert!(a.receive(wire(&b.bare())).reset);
    a.push("two".into(), 2).unwrap();
    let received = b.receive(wire(&a.poll(0, RELIABLE).unwrap()));
    assert_eq!((received.reset, texts(received.items)), (false, vec!["two".to_owned()]));
}

#[test]
fn what_is_too_large_is_refused_alone() {
    let (mut a, _) = pair();
    a.push("kept".into(), 2).unwrap();
    assert_eq!(a.push(vec![0; 1_025].into(), 2), Err(Refused::TooLarge));
    assert_eq!((a.counts().resets, a.counts().messages_dropped), (0, 1));
    assert!(a.poll(0, RELIABLE).is_some());
}

#[test]
fn a_peer_cannot_acknowledge_what_was_not_sent() {
    let (mut a, mut b) = pair();
    a.push("one".into(), 2).unwrap();
    let forged = Outgoing { ack: 1_000, ..b.bare() };
    a.receive(wire(&forged));
    let out = a.poll(0, RELIABLE).expect("the message is still there");
    assert_eq!(texts(b.receive(wire(&out)).items), ["one"]);
}

/// One side of the simulation: a session and what its user has seen.
struct Side {
    session: Session,
    next_epoch: u64,
    /// What was pushed, by generation.
    sent: Vec<Vec<u32>>,
    /// What came, by generation.
    got: Vec<Vec<u32>>,
}

impl Side {
    fn new() -> Self {
        Self { session: Session::new(1, BOUNDS), next_epoch: 2, sent: vec![vec![]], got: vec![vec![]] }
    }

    fn turn_over(&mut self) {
        self.sent.push(vec![]);
        self.got.push(vec![]);
    }

    fn push(&mut self, n: u32, bytes: usize) {
        let mut message = n.to_be_bytes().to_vec();
        message.resize(4 + bytes, 0);
        match self.session.push(message.into(), self.next_epoch) {
            Ok(()) => self.sent.last_mut().unwrap().push(n),
            Err(Refused::TooLarge) => panic!("within bounds"),
            Err(Refused::Reset) => self.turn_over(),
        }
        self.next_epoch += 1;
    }

    fn receive(&mut self, frame: Frame) {
        let received = self.session.receive(frame);
        if received.reset {
            self.turn_over();
        }
        let items = received.items.map(|item| u32::from_be_bytes(item[..4].try_into().unwrap()));
        self.got.last_mut().unwrap().extend(items);
    }

    fn forget(&mut self) {
        self.session = Session::new(self.next_epoch, BOUNDS);
        self.next_epoch += 1;
        self.turn_over();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push { side: usize, count: u32, bytes: usize },
    Pump { side: usize },
    Deliver { to: usize, at: usize },
    Lose { to: usize, at: usize },
    Repeat { to: usize, at: usize },
    Switch { side: usize },
    Forget { side: usize },
    Wait { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let side = 0..2_usize;
    prop_oneof![
        6 => (side.clone(), 1..20_u32, 0..200_usize)
            .prop_map(|(side, count, bytes)| Step::Push { side, count, bytes }),
        12 => side.clone().prop_map(|side| Step::Pump { side }),
        12 => (side.clone(), 0..6_usize).prop_map(|(to, at)| Step::Deliver { to, at }),
        3 => (side.clone(), 0..6_usize).prop_map(|(to, at)| Step::Lose { to, at }),
        3 => (side.clone(), 0..6_usize).prop_map(|(to, at)| Step::Repeat { to, at }),
        2 => side.clone().prop_map(|side| Step::Switch { side }),
        1 => side.prop_map(|side| Step::Forget { side }),
        2 => (0..3_000_u64).prop_map(|ms| Step::Wait { ms }),
    ]
}

struct World {
    sides: [Side; 2],
    /// Frames under way to each side, over the carrier that may lose, repeat and reorder.
    lossy: [Vec<Frame>; 2],
    /// And over the one that does not, by connection.
    reliable: [VecDeque<Frame>; 2],
    carriers: [Carrier; 2],
    next_carrier: u64,
    now_ms: u64,
    next: u32,
}

impl World {
    fn new() -> Self {
        Self {
            sides: [Side::new(), Side::new()],
            lossy: [vec![], vec![]],
            reliable: [VecDeque::new(), VecDeque::new()],
            carriers: [RELIABLE; 2],
            next_carrier: 2,
            now_ms: 0,
            next: 0,
        }
    }

    fn put(&mut self, side: usize, frame: Frame) {
        if self.carriers[side].reliable {
            self.reliable[1 - side].push_back(frame);
        } else {
            self.lossy[1 - side].push(frame);
        }
    }

    fn pump(&mut self, side: usize) {
        while let Some(out) = self.sides[side].session.poll(self.now_ms, self.carriers[side]) {
            self.put(side, wire(&out));
        }
        if self.sides[side].session.may_answer() {
            let out = self.sides[side].session.bare();
            self.put(side, wire(&out));
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Push { side, count, bytes } => {
                for _ in 0..count {
                    self.sides[side].push(self.next, bytes);
                    self.next += 1;
                }
            }
            Step::Pump { side } => self.pump(side),
            Step::Deliver { to, at } => {
                // The two carriers overtake each other; the reliable one keeps its own order.
                if at == 0 || self.lossy[to].is_empty() {
                    if let Some(frame) = self.reliable[to].pop_front() {
                        self.sides[to].receive(frame);
                    }
                } else {
                    let at = at % self.lossy[to].len();
                    let frame = self.lossy[to].swap_remove(at);
                    self.sides[to].receive(frame);
                }
            }
            Step::Lose { to, at } => {
                if !self.lossy[to].is_empty() {
                    let at = at % self.lossy[to].len();
                    self.lossy[to].swap_remove(at);
                }
            }
            Step::Repeat { to, at } => {
                if !self.lossy[to].is_empty() {
                    let frame = self.lossy[to][at % self.lossy[to].len()].clone();
                    self.lossy[to].push(frame);
                }
            }
            Step::Switch { side } => {
                // A connection that ends takes what was on it along, some of which may have arrived: both happen.
                if self.carriers[side].reliable && self.next_carrier.is_multiple_of(2) {
                    self.reliable[1 - side].clear();
                }
                let reliable = !self.carriers[side].reliable;
                self.carriers[side] = Carrier { id: self.next_carrier, reliable };
                self.next_carrier += 1;
            }
            Step::Forget { side } => self.sides[side].forget(),
            Step::Wait { ms } => self.now_ms += ms,
        }
    }

    /// From here on nothing is lost: all that was not given up has to arrive.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.now_ms += RETRY_AFTER_MS_MAX;
            for side in 0..2 {
                let bare = wire(&self.sides[side].session.bare());
                self.put(side, bare);
                self.pump(side);
            }
            for to in 0..2 {
                for frame in std::mem::take(&mut self.lossy[to]) {
                    self.sides[to].receive(frame);
                }
                while let Some(frame) = self.reliable[to].pop_front() {
                    self.sides[to].receive(frame);
                }
            }
        }
    }
}

/// Every generation that was received is the beginning of one that was sent, none is received twice, and order is kept.
fn check(from: &Side, to: &Side) {
    let mut searched = 0;
    for got in to.got.iter().filter(|got| !got.is_empty()) {
        let found = from.sent.iter().enumerate().skip(searched).find(|(_, sent)| sent.starts_with(got));
        let (at, _) =
            found.unwrap_or_else(|| panic!("{got:?} is not the beginning of any of {:?}", from.sent));
        searched = at + 1;
    }
    assert_eq!(to.got.last(), from.sent.last(), "what nobody gave up arrives");
    assert!(to.session.counts().resets < 1_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn once_and_in_order_or_both_sides_learn_of_it(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
            let waiting = world.sides.iter().map(|side| side.session.waiting_bytes()).max();
            prop_assert!(waiting <= Some(BOUNDS.outbox_bytes_max));
        }
        world.settle();
        let [a, b] = &world.sides;
        check(a, b);
        check(b, a);
    }
}

/// Few acknowledgements travel alone, but never so few that the other side waits for one.
#[test]
fn an_acknowledgement_leaves_alone_before_half_of_what_may_be_under_way() {
    let half = FRAMES_IN_FLIGHT_MAX / 2;
    let (mut a, mut b) = pair();
    for n in 1..=half {
        a.push("x".into(), 2).unwrap();
        b.receive(wire(&a.poll(0, RELIABLE).unwrap()));
        assert_eq!(b.must_answer(), n == half, "after {n} frames");
    }
    a.receive(wire(&b.bare()));
    assert!(!b.must_answer() && a.frames_in_flight() == 0);
    // And one message that fills the window does not wait for others.
    a.push(vec![0; BOUNDS.window_bytes_max].into(), 2).unwrap();
    b.receive(wire(&a.poll(0, RELIABLE).unwrap()));
    assert!(b.must_answer());
    b.bare();
    assert!(!b.must_answer());
}

#[test]
fn an_acknowledgement_that_no_carrier_took_is_owed_still() {
    let (mut a, mut b) = pair();
    a.push("one".into(), 2).unwrap();
    b.receive(wire(&a.poll(0, RELIABLE).unwrap()));
    b.bare();
    assert!(!b.may_answer());
    b.give_back_bare();
    assert!(b.must_answer());
    a.receive(wire(&b.bare()));
    assert_eq!((a.frames_in_flight(), b.may_answer()), (0, false));
}
