//! Every order of everything, to a depth: two parties that sign whatever they may at any time, and a network that loses,
//! repeats and reorders what they sent. What a party could have signed in any state it has seen may arrive at any time
//! later, any number of times, or never; a crash between deciding and storing is a message that was lost, one between
//! storing and answering a message that is sent again; and five minutes may pass at any point after the first. It begins
//! with a channel that was offered, and may be accepted or cancelled.
//!
//! Signatures are real ones. What is compared: the channel with the ledger of its entries, and both with what happened.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::*;
use crate::ledger::AccountKey;

/// Messages and pauses in a row.
const DEPTH: usize = 11;
const MICROS: [i64; 3] = [1, 2, 3];

/// What a party may send. Amounts are in micro-units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Sent {
    Accept { by: Side },
    Cancel { by: Side },
    Propose { from: Side, micros: i64, nonce: u64, balance_a: i64 },
    Acknowledge { by: Side, micros: i64, nonce: u64, balance_a: i64 },
    Reject { by: Side, nonce: u64 },
    Dispute { by: Side },
    Close { by: Side, nonce: u64, final_a: i64 },
    Resolve,
    FiveMinutes,
}

/// What the world has come to.
#[derive(Clone)]
struct World {
    channel: Channel,
    now: Timestamp,
    /// What may still arrive.
    network: BTreeSet<Sent>,
    ledger: BTreeMap<AccountKey, i64>,
    operations: BTreeSet<String>,
    executed: BTreeMap<u64, (Side, i64)>,
    burnt: BTreeSet<u64>,
}

/// All that the future depends on.
type Key =
    (ChannelStatus, i64, i64, u64, Option<(u64, i64, AgentId)>, Option<u64>, BTreeSet<Sent>, BTreeSet<u64>);

fn micros(value: i64) -> Amount {
    Amount::from_micros(value).unwrap()
}

/// Signs, once for each statement.
#[derive(Default)]
struct Signers(HashMap<(Side, String), String>);

impl Signers {
    fn sign(&mut self, side: Side, statement: String) -> String {
        self.0.entry((side, statement)).or_insert_with_key(|(side, statement)| sign(*side, statement)).clone()
    }

    /// What arrives, as the server reads it. `total` is what both have together.
    fn command(&mut self, sent: Sent, world: &World) -> Command {
        let total = world.channel.total();
        let mut transfer = |signer: Side, from: Side, of: (i64, u64, i64), ack: bool| {
            let (amount_micros, nonce, balance_a) = of;
            let (payer, payee) = (agent(from), agent(from.other()));
            let paid = if from == Side::A { amount_micros } else { -amount_micros };
            let after = (balance_a - paid, total - balance_a + paid);
            // Who wants to pay more than it has signs something all the same.
            let balances = (micros(after.0.max(0)), micros(after.1.max(0)));
            let channel = &world.channel.id;
            let amount = micros(amount_micros);
            let text = Transfer { channel, nonce, from: &payer, to: &payee, amount, balances };
            let statement = if ack { text.acknowledge() } else { text.propose() };
            SignedTransfer { amount, nonce, signature: self.sign(signer, statement) }
        };
        match sent {
            Sent::Accept { by } => Command::Party(agent(by), Action::Accept(Some(key(by)))),
            Sent::Cancel { by } => Command::Party(agent(by), Action::Cancel),
            Sent::Propose { from, micros, nonce, balance_a } => {
                let signed = transfer(from, from, (micros, nonce, balance_a), false);
                Command::Party(agent(from), Action::Propose(signed))
            }
            Sent::Acknowledge { by, micros, nonce, balance_a } => {
                let signed = transfer(by, by.other(), (micros, nonce, balance_a), true);
                Command::Party(agent(by), Action::Acknowledge(signed))
            }
            Sent::Reject { by, nonce } => {
                let rejection = Rejection { reason: None, nonce: Some(nonce) };
                Command::Party(agent(by), Action::Reject(rejection))
            }
            Sent::Dispute { by } => Command::Party(agent(by), dispute()),
            Sent::Close { by, nonce, final_a } => {
                let finals = (micros(final_a), micros(total - final_a));
                let text = statement::close(&world.channel.id, nonce, finals);
                let request = CloseRequest {
                    final_balance_a: finals.0,
                    final_balance_b: finals.1,
                    signature_a: self.sign(Side::A, text.clone()),
                    signature_b: self.sign(Side::B, text),
                };
                Command::Party(agent(by), Action::Close(request))
            }
            Sent::Resolve => Command::Resolve(Resolution::default()),
            Sent::FiveMinutes => Command::Due,
        }
    }
}

impl World {
    fn new() -> Self {
        let channel = pending_channel("0.000002", "0.000001");
        // The agents owe what they put in, for that is not the question here.
        let ledger = BTreeMap::from([
            (Account::Agent(agent(Side::A)).key(), -2),
            (channel.accounts().side(Side::A).key(), 2),
            (channel.accounts().side(Side::B).key(), 0),
        ]);
        let mut world = Self {
            channel,
            now: at(1),
            network: BTreeSet::new(),
            ledger,
            operations: BTreeSet::new(),
            executed: BTreeMap::new(),
            burnt: BTreeSet::new(),
        };
        world.sign_all();
        world
    }

    fn key(&self) -> Key {
        let pending = self.channel.pending.as_ref();
        (
            self.channel.status,
            self.channel.balance_a.micros(),
            self.channel.balance_b.micros(),
            self.channel.nonce,
            pending.map(|pending| (pending.nonce, pending.amount.micros(), pending.from)),
            self.channel.last.as_ref().map(|last| last.nonce),
            self.network.clone(),
            self.burnt.clone(),
        )
    }

    /// All that the parties could sign, seeing what the channel is now.
    fn sign_all(&mut self) {
        if self.channel.status == ChannelStatus::Pending {
            for by in [Side::A, Side::B] {
                self.network.extend([Sent::Accept { by }, Sent::Cancel { by }]);
            }
            return;
        }
        let (nonce, balance_a) = (self.channel.nonce, self.channel.balance_a.micros());
        for side in [Side::A, Side::B] {
            for micros in MICROS {
                self.network.insert(Sent::Propose { from: side, micros, nonce: nonce + 1, balance_a });
            }
            if let Some(pending) = &self.channel.pending {
                let (micros, nonce) = (pending.amount.micros(), pending.nonce);
                // The payer tries it too.
                self.network.insert(Sent::Acknowledge { by: side, micros, nonce, balance_a });
                self.network.insert(Sent::Reject { by: side, nonce });
            } else if self.channel.status == ChannelStatus::Open {
                self.network.insert(Sent::Close { by: side, nonce, final_a: balance_a });
            }
        }
        self.network.insert(Sent::Dispute { by: Side::A });
        self.network.insert(Sent::Resolve);
        self.network.insert(Sent::FiveMinutes);
    }

    /// What comes of a message; none when nothing does.
    fn after(&self, sent: Sent, signers: &mut Signers) -> Option<Self> {
        let now = if sent == Sent::FiveMinutes { self.now.plus_ms(PERIODS.proposal_ms) } else { self.now };
        let command = signers.command(sent, self);
        let (step, answer) = self.channel.decide(&command, now, PERIODS);
        self.nothing_signed_is_refused(sent, &answer);
        let step = step?;
        let mut world = Self { now, ..self.clone() };
        let before = std::mem::replace(&mut world.channel, step.after);
        let after = world.channel.clone();
        // Whoever has decided on an older record is noticed by the store.
        assert_eq!(after.version, before.version + 1);
        assert!(after.nonce >= before.nonce, "{sent:?}");
        let is_accepted = before.status == ChannelStatus::Pending && after.status == ChannelStatus::Open;
        let put_in = if is_accepted { before.deposit_b.micros() } else { 0 };
        assert_eq!(after.total(), before.total() + put_in, "R98: {sent:?}");
        let is_final = matches!(
            before.status,
            ChannelStatus::Closed | ChannelStatus::Expired | ChannelStatus::Cancelled
        );
        assert!(!is_final, "{sent:?} changes what is final");
        if before.status == ChannelStatus::Pending {
            assert!(matches!(sent, Sent::Accept { by: Side::B } | Sent::Cancel { .. }), "{sent:?}");
        }
        if before.status == ChannelStatus::Disputed {
            assert_eq!(sent, Sent::Resolve, "R99");
        }
        let executed = after.last != before.last;
        if executed {
            let last = after.last.as_ref().unwrap();
            let from = after.side_of(last.from).unwrap();
            assert_eq!(world.executed.insert(last.nonce, (from, last.amount.micros())), None, "twice");
            assert!(!world.burnt.contains(&last.nonce), "R97: {sent:?} executes what was burnt");
            assert_eq!(
                (last.nonce, Some(last.nonce)),
                (after.nonce, before.pending.map(|pending| pending.nonce))
            );
            assert_eq!(key(from).verify(&last.propose_statement, &last.propose_signature), Ok(()));
            assert_eq!(key(from.other()).verify(&last.ack_statement, &last.ack_signature), Ok(()));
        } else if after.nonce > before.nonce {
            assert_eq!(Some(after.nonce), before.pending.map(|pending| pending.nonce));
            world.burnt.insert(after.nonce);
        }
        world.post(step.entry.as_ref(), executed);
        world.sign_all();
        Some(world)
    }

    /// What both have signed, and neither has taken back, is not refused: an acknowledgement of what is pending, and the
    /// closing of the state as it is.
    fn nothing_signed_is_refused(&self, sent: Sent, answer: &Result<Json, Refusal>) {
        let is_due = self.channel.due_at().is_some_and(|due_at| self.now >= due_at);
        if self.channel.status != ChannelStatus::Open || is_due {
            return;
        }
        match (sent, &self.channel.pending) {
            (Sent::Acknowledge { by, micros, nonce, balance_a }, Some(pending))
                if pending.from != agent(by)
                    && (pending.amount.micros(), pending.nonce) == (micros, nonce)
                    && balance_a == self.channel.balance_a.micros() =>
            {
                assert!(answer.is_ok(), "{sent:?}: {answer:?}");
            }
            (Sent::Close { nonce, .. }, None) if nonce == self.channel.nonce => {
                assert!(answer.is_ok(), "{sent:?}: {answer:?}");
            }
            _ => {}
        }
    }

    fn post(&mut self, entry: Option<&Entry>, executed: bool) {
        assert!(entry.is_some() || !executed, "a transfer is in the ledger");
        if let Some(entry) = entry {
            assert!(entry.is_balanced());
            assert!(self.operations.insert(entry.operation.clone()), "{} happens twice", entry.operation);
            for posting in &entry.postings {
                let balance = self.ledger.entry(posting.account.key()).or_default();
                *balance += posting.delta.0;
                let is_side = matches!(posting.account, Account::Channel { .. });
                assert!(*balance >= 0 || !is_side, "a side below zero");
            }
        }
        assert_eq!(self.ledger.values().sum::<i64>(), 0);
        let side = |side| self.ledger[&self.channel.accounts().side(side).key()];
        let held = (side(Side::A), side(Side::B));
        let expected = match self.channel.status {
            ChannelStatus::Pending | ChannelStatus::Open | ChannelStatus::Disputed => {
                (self.channel.balance_a.micros(), self.channel.balance_b.micros())
            }
            _ => (0, 0),
        };
        assert_eq!(held, expected, "the ledger holds what the channel says");
    }
}

/// R92 R94 R95 R96 R97 R98 R99 R100: whatever is lost, repeated and reordered, each nonce is executed once at most, what was
/// burnt never is, the total stays, and the ledger holds what the channel says.
#[test]
fn no_order_of_messages_breaks_a_channel() {
    let mut signers = Signers::default();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut states = VecDeque::from([(World::new(), 0)]);
    let (mut decided, mut closed, mut deepest_nonce) = (0_u64, 0_u64, 0);
    while let Some((world, depth)) = states.pop_front() {
        deepest_nonce = deepest_nonce.max(world.channel.nonce);
        closed += u64::from(world.channel.status == ChannelStatus::Closed);
        if depth == DEPTH {
            continue;
        }
        for sent in world.network.clone() {
            decided += 1;
            let Some(next) = world.after(sent, &mut signers) else { continue };
            // Breadth first: what was seen before was seen at no greater depth.
            let key = format!("{:?}", next.key());
            if seen.insert(key, depth + 1).is_none() {
                states.push_back((next, depth + 1));
            }
        }
    }
    println!("{} states, {decided} decisions, nonces to {deepest_nonce}, {closed} closed", seen.len());
    assert!(seen.len() > 1_000 && closed > 10 && deepest_nonce >= 3, "it has not looked at much");
}
