//! The rules one by one, signatures that are none, and every order of everything to a stated depth.

mod model;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signer, SigningKey};

use super::machine::*;
use super::request::*;
use super::*;
use crate::signing::statement;
use crate::topic::event;

const PERIODS: Periods = Periods { proposal_ms: 300_000 };
const HOUR_MS: i64 = 3_600_000;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(1_700_000_000_000 + ms)
}

fn agent(side: Side) -> AgentId {
    AgentId::new(at(0), [if side == Side::A { 1 } else { 2 }; 10])
}

fn stranger() -> AgentId {
    AgentId::new(at(0), [3; 10])
}

/// The keys of the vectors.
fn signer(side: Side) -> SigningKey {
    SigningKey::from_bytes(&[if side == Side::A { 1 } else { 2 }; 32])
}

fn key(side: Side) -> PublicKey {
    PublicKey::from_bytes(signer(side).verifying_key().to_bytes()).unwrap()
}

fn sign(side: Side, statement: &str) -> String {
    BASE64.encode(signer(side).sign(statement.as_bytes()).to_bytes())
}

fn amount(text: &str) -> Amount {
    Amount::parse(text).unwrap()
}

fn id() -> PaymentChannelId {
    PaymentChannelId::new(at(0), [7; 10])
}

fn request(deposit: &str, counter: &str) -> OpenRequest {
    OpenRequest {
        counterparty_agent_id: agent(Side::B),
        deposit: amount(deposit),
        counterparty_deposit: Some(amount(counter)),
        channel_id: None,
    }
}

fn pending_channel(deposit: &str, counter: &str) -> Channel {
    let opener = (id(), agent(Side::A), Some(key(Side::A)));
    request(deposit, counter).open(opener, at(0), at(HOUR_MS)).unwrap().0
}

/// A channel that changes as a store would change it.
struct Subject {
    channel: Channel,
    entries: Vec<Entry>,
    told: Vec<(Audience, &'static str)>,
    now: Timestamp,
}

impl Subject {
    fn pending() -> Self {
        Self { channel: pending_channel("10", "10"), entries: Vec::new(), told: Vec::new(), now: at(1) }
    }

    fn open() -> Self {
        let mut subject = Self::pending();
        subject.party(Side::B, Action::Accept(Some(key(Side::B)))).unwrap();
        subject.told.clear();
        subject
    }

    fn ask(&mut self, command: &Command) -> Result<Json, Refusal> {
        let (step, answer) = self.channel.decide(command, self.now, PERIODS);
        if let Some(step) = step {
            assert_eq!(step.after.version, self.channel.version + 1, "a store notices the change");
            self.channel = step.after;
            self.entries.extend(step.entry);
            self.told.extend(step.told.iter().map(|told| (told.to, told.event)));
        }
        answer
    }

    fn party(&mut self, side: Side, action: Action) -> Result<Json, Refusal> {
        self.ask(&Command::Party(agent(side), action))
    }

    fn transfer(&self, from: Side, text: &str, nonce: u64) -> (SignedTransfer, SignedTransfer) {
        let (propose, ack) = self.channel.statements(from, amount(text), nonce).unwrap();
        let signed = |side, statement: &str| SignedTransfer {
            amount: amount(text),
            nonce,
            signature: sign(side, statement),
        };
        (signed(from, &propose), signed(from.other(), &ack))
    }

    fn pay(&mut self, from: Side, text: &str) {
        let (propose, ack) = self.transfer(from, text, self.channel.nonce + 1);
        self.party(from, Action::Propose(propose)).unwrap();
        self.party(from.other(), Action::Acknowledge(ack)).unwrap();
    }

    fn code(&mut self, side: Side, action: Action) -> ErrorCode {
        let before = self.channel.clone();
        let refusal = self.party(side, action).unwrap_err();
        assert_eq!(self.channel, before, "what is refused changes nothing");
        refusal.code
    }

    fn balances(&self) -> (String, String) {
        (self.channel.balance_a.to_string(), self.channel.balance_b.to_string())
    }

    fn close_request(&self, a: &str, b: &str) -> CloseRequest {
        let text = statement::close(&id(), self.channel.nonce, (amount(a), amount(b)));
        CloseRequest {
            final_balance_a: amount(a),
            final_balance_b: amount(b),
            signature_a: sign(Side::A, &text),
            signature_b: sign(Side::B, &text),
        }
    }
}

fn reject() -> Action {
    Action::Reject(Rejection { reason: Some("no".into()), nonce: None })
}

fn dispute() -> Action {
    Action::Dispute(Objection { reason: "why".into(), evidence: Json::null() })
}

/// R92: opened by one, accepted by the other within an hour; both need a key.
#[test]
fn opening_and_accepting() {
    let mut subject = Subject::pending();
    assert_eq!(subject.code(Side::A, Action::Accept(Some(key(Side::A)))), ErrorCode::Forbidden);
    assert_eq!(subject.code(Side::B, Action::Accept(None)), ErrorCode::NoPublicKey);
    let (propose, _) = subject.transfer(Side::A, "1", 1);
    assert_eq!(subject.code(Side::A, Action::Propose(propose)), ErrorCode::ChannelNotOpen);
    assert_eq!(subject.code(Side::A, dispute()), ErrorCode::ChannelNotOpen);
    subject.party(Side::B, Action::Accept(Some(key(Side::B)))).unwrap();
    assert_eq!(subject.told, [(Audience::Both, event::CHANNEL_OPENED)]);
    assert_eq!(subject.balances(), ("10".into(), "10".into()));
    assert_eq!(subject.code(Side::B, Action::Accept(Some(key(Side::B)))), ErrorCode::ChannelNotOpen);
    let outsider = Command::Party(stranger(), reject());
    assert_eq!(subject.ask(&outsider).unwrap_err().code, ErrorCode::Unauthorized);

    let opener = |key| (id(), agent(Side::A), key);
    let refused = |request: &OpenRequest, key| request.open(opener(key), at(0), at(1)).unwrap_err().code;
    assert_eq!(refused(&request("1", "0"), None), ErrorCode::NoPublicKey);
    assert_eq!(refused(&request("0", "0"), Some(key(Side::A))), ErrorCode::InvalidAmount);
    let most = "9223372036854.775807";
    assert_eq!(refused(&request(most, "0.000001"), Some(key(Side::A))), ErrorCode::InvalidAmount);
    let oneself = OpenRequest { counterparty_agent_id: agent(Side::A), ..request("1", "0") };
    assert_eq!(refused(&oneself, Some(key(Side::A))), ErrorCode::InvalidPayload);
}

/// R92: what nobody accepts within an hour is given back.
#[test]
fn what_is_not_accepted_expires() {
    let mut subject = Subject::pending();
    subject.now = at(HOUR_MS - 1);
    subject.ask(&Command::Due).unwrap();
    assert_eq!(subject.channel.status, ChannelStatus::Pending);
    subject.now = at(HOUR_MS);
    let late = subject.party(Side::B, Action::Accept(Some(key(Side::B)))).unwrap_err();
    assert_eq!((late.code, late.status), (ErrorCode::ChannelNotOpen, Some("expired")));
    assert_eq!(subject.channel.status, ChannelStatus::Expired);
    let [refund] = subject.entries.as_slice() else { panic!("{:?}", subject.entries) };
    assert_eq!(refund.delta_of(&Account::Agent(agent(Side::A))).to_string(), "10");
    subject.ask(&Command::Due).unwrap();
    assert_eq!(subject.entries.len(), 1, "once");
}

/// R92: until it is accepted, its opener can take it back and the other side can decline it; afterwards nobody can.
#[test]
fn what_is_not_accepted_can_be_cancelled() {
    for side in [Side::A, Side::B] {
        let mut subject = Subject::pending();
        subject.party(side, Action::Cancel).unwrap();
        assert_eq!(subject.channel.status, ChannelStatus::Cancelled);
        assert_eq!(subject.told, [(Audience::Both, event::CHANNEL_CLOSED)]);
        let [refund] = subject.entries.as_slice() else { panic!("{:?}", subject.entries) };
        assert_eq!(refund.delta_of(&Account::Agent(agent(Side::A))).to_string(), "10");
        // Its answer was lost, or both did it at once.
        subject.party(side.other(), Action::Cancel).unwrap();
        let late = subject.party(Side::B, Action::Accept(Some(key(Side::B)))).unwrap_err();
        assert_eq!((late.code, late.status), (ErrorCode::ChannelNotOpen, Some("cancelled")));
        subject.now = at(HOUR_MS);
        subject.ask(&Command::Due).unwrap();
        assert_eq!(subject.entries.len(), 1, "once");
    }
    let mut subject = Subject::pending();
    let outsider = Command::Party(stranger(), Action::Cancel);
    assert_eq!(subject.ask(&outsider).unwrap_err().code, ErrorCode::Unauthorized);
    subject.now = at(HOUR_MS);
    let late = subject.party(Side::A, Action::Cancel).unwrap_err();
    assert_eq!((late.code, late.status), (ErrorCode::ChannelNotOpen, Some("expired")));
    let mut subject = Subject::open();
    assert_eq!(subject.code(Side::A, Action::Cancel), ErrorCode::ChannelNotOpen);
    subject.party(Side::B, dispute()).unwrap();
    assert_eq!(subject.code(Side::B, Action::Cancel), ErrorCode::ChannelNotOpen);
}

use crate::ledger::Account;

/// R94: more than nothing, not more than one has, and the next nonce, whatever the content.
#[test]
fn proposals_are_bounded_and_numbered() {
    let mut subject = Subject::open();
    let (good, ack) = subject.transfer(Side::A, "2.5", 1);
    for (text, nonce) in [("2.5", 0), ("2.5", 2), ("2.5", u64::MAX)] {
        let (wrong, _) = subject.transfer(Side::A, text, nonce);
        let refusal = subject.party(Side::A, Action::Propose(wrong)).unwrap_err();
        assert_eq!(refusal.response().as_str(), r#"{"reason":"invalid_nonce","expected":1}"#);
    }
    let zero = SignedTransfer { amount: Amount::ZERO, ..good.clone() };
    assert_eq!(subject.code(Side::A, Action::Propose(zero)), ErrorCode::InvalidAmount);
    let much = SignedTransfer { amount: amount("10.000001"), ..good.clone() };
    let refusal = subject.party(Side::A, Action::Propose(much)).unwrap_err();
    assert_eq!(refusal.response().as_str(), r#"{"reason":"insufficient_balance","available":"10"}"#);
    subject.party(Side::A, Action::Propose(good.clone())).unwrap();
    assert_eq!(subject.told, [(Audience::Only(Side::B), event::TRANSFER_PROPOSED)]);
    // R95: one at a time, from either side.
    assert_eq!(subject.code(Side::A, Action::Propose(good.clone())), ErrorCode::TransferPending);
    let (other, _) = subject.transfer(Side::B, "1", 2);
    assert_eq!(subject.code(Side::B, Action::Propose(other)), ErrorCode::TransferPending);
    subject.party(Side::B, Action::Acknowledge(ack)).unwrap();
    assert_eq!(subject.balances(), ("7.5".into(), "12.5".into()));
    // Not even the same again.
    let again = subject.party(Side::A, Action::Propose(good)).unwrap_err();
    assert_eq!(again.response().as_str(), r#"{"reason":"invalid_nonce","expected":2}"#);
}

/// R96: only the counterparty, the same amount and nonce, once.
#[test]
fn acknowledgements_are_the_counterpartys() {
    let mut subject = Subject::open();
    let (propose, ack) = subject.transfer(Side::A, "2.5", 1);
    let none = subject.party(Side::B, Action::Acknowledge(ack.clone())).unwrap_err();
    assert_eq!(none.code, ErrorCode::NoTransferPending);
    subject.party(Side::A, Action::Propose(propose.clone())).unwrap();
    assert_eq!(subject.code(Side::A, Action::Acknowledge(ack.clone())), ErrorCode::Unauthorized);
    let wrong = SignedTransfer { nonce: 2, ..ack.clone() };
    assert_eq!(subject.code(Side::B, Action::Acknowledge(wrong)), ErrorCode::InvalidNonce);
    let wrong = SignedTransfer { amount: amount("2.6"), ..ack.clone() };
    let refusal = subject.party(Side::B, Action::Acknowledge(wrong)).unwrap_err();
    assert_eq!(refusal.response().as_str(), r#"{"reason":"amount_mismatch","expected":"2.5"}"#);
    // The payer's own signature, in the payee's place: another domain.
    let wrong = SignedTransfer { signature: propose.signature.clone(), ..ack.clone() };
    assert_eq!(subject.code(Side::B, Action::Acknowledge(wrong)), ErrorCode::InvalidSignature);
    subject.told.clear();
    subject.party(Side::B, Action::Acknowledge(ack.clone())).unwrap();
    assert_eq!(subject.told, [(Audience::Both, event::TRANSFER_COMPLETE)]);
    let last = subject.channel.last.clone().unwrap();
    assert_eq!(key(Side::A).verify(&last.propose_statement, &last.propose_signature), Ok(()));
    assert_eq!(key(Side::B).verify(&last.ack_statement, &last.ack_signature), Ok(()));
    assert!(last.ack_statement.ends_with("\n2500000\n7500000\n12500000"), "the resulting balances");

    let before = subject.channel.clone();
    let repeated = subject.party(Side::B, Action::Acknowledge(ack.clone())).unwrap();
    assert!(repeated.as_str().contains(r#""duplicate":true"#), "{repeated:?}");
    let other = SignedTransfer { amount: amount("2.6"), ..ack.clone() };
    assert_eq!(subject.code(Side::B, Action::Acknowledge(other)), ErrorCode::InvalidNonce);
    let forged = SignedTransfer { signature: propose.signature, ..ack };
    assert_eq!(subject.code(Side::B, Action::Acknowledge(forged)), ErrorCode::InvalidSignature);
    assert_eq!(subject.channel, before);
    assert_eq!(subject.entries.len(), 2, "B's deposit and one transfer");
}

/// R97 R95: what is rejected, withdrawn or has lapsed is burnt.
#[test]
fn what_is_not_taken_is_burnt() {
    for how in ["rejected", "withdrawn", "lapsed", "lapsed while acknowledged"] {
        let mut subject = Subject::open();
        let (propose, ack) = subject.transfer(Side::A, "2.5", 1);
        subject.party(Side::A, Action::Propose(propose.clone())).unwrap();
        subject.told.clear();
        match how {
            "rejected" => drop(subject.party(Side::B, reject()).unwrap()),
            "withdrawn" => drop(subject.party(Side::A, reject()).unwrap()),
            "lapsed" => {
                subject.now = at(1 + PERIODS.proposal_ms - 1);
                subject.ask(&Command::Due).unwrap();
                assert!(subject.channel.pending.is_some(), "not yet");
                subject.now = at(1 + PERIODS.proposal_ms);
                subject.ask(&Command::Due).unwrap();
            }
            _ => subject.now = at(1 + PERIODS.proposal_ms),
        }
        let refusal = subject.party(Side::B, Action::Acknowledge(ack.clone())).unwrap_err();
        assert_eq!(refusal.response().as_str(), r#"{"reason":"invalid_nonce","expected":2}"#, "{how}");
        assert_eq!(subject.told, [(Audience::Both, event::TRANSFER_REJECTED)], "{how}");
        assert_eq!((subject.channel.nonce, subject.balances()), (1, ("10".into(), "10".into())), "{how}");
        assert_eq!(subject.code(Side::A, Action::Propose(propose)), ErrorCode::InvalidNonce, "{how}");
        subject.pay(Side::A, "2.5");
        assert_eq!((subject.channel.nonce, subject.balances()), (2, ("7.5".into(), "12.5".into())));
        assert_eq!(subject.code(Side::B, Action::Acknowledge(ack)), ErrorCode::InvalidNonce, "{how}");
    }
    let mut subject = Subject::open();
    assert_eq!(subject.code(Side::A, reject()), ErrorCode::NoTransferPending);
    let (propose, _) = subject.transfer(Side::A, "1", 1);
    subject.party(Side::A, Action::Propose(propose)).unwrap();
    let another = Action::Reject(Rejection { reason: None, nonce: Some(2) });
    assert_eq!(subject.code(Side::B, another), ErrorCode::InvalidNonce);
}

/// R99: a dispute cancels what is pending and stops everything until the operator decides.
#[test]
fn disputes_stop_everything_until_they_are_resolved() {
    let mut subject = Subject::open();
    subject.pay(Side::A, "2.5");
    let (propose, ack) = subject.transfer(Side::A, "1", 2);
    subject.party(Side::A, Action::Propose(propose.clone())).unwrap();
    subject.told.clear();
    subject.party(Side::B, dispute()).unwrap();
    let told = [(Audience::Both, event::TRANSFER_REJECTED), (Audience::Both, event::DISPUTE_OPENED)];
    assert_eq!(subject.told, told);
    assert_eq!(subject.channel.nonce, 2, "the pending one is burnt");
    let close = subject.close_request("7.5", "12.5");
    let actions =
        [Action::Propose(propose), Action::Acknowledge(ack), reject(), dispute(), Action::Close(close)];
    for action in actions {
        for side in [Side::A, Side::B] {
            assert_eq!(subject.code(side, action.clone()), ErrorCode::ChannelDisputed, "{action:?}");
        }
    }
    let wrong = Resolution { balance_a: Some(amount("1")), balance_b: Some(amount("1")) };
    let refusal = subject.ask(&Command::Resolve(wrong)).unwrap_err();
    assert_eq!(refusal.response().as_str(), r#"{"reason":"amount_mismatch","expected":"20"}"#);
    let over = Resolution { balance_a: Some(amount("20.000001")), balance_b: None };
    assert_eq!(subject.ask(&Command::Resolve(over)).unwrap_err().code, ErrorCode::AmountMismatch);
    for (given, expected) in [
        (Resolution::default(), ("7.5", "12.5")),
        (Resolution { balance_a: Some(amount("20")), balance_b: None }, ("20", "0")),
        (Resolution { balance_a: None, balance_b: Some(amount("5")) }, ("15", "5")),
    ] {
        let (step, answer) = subject.channel.decide(&Command::Resolve(given), subject.now, PERIODS);
        let step = step.unwrap();
        assert!(answer.is_ok());
        assert_eq!(step.after.status, ChannelStatus::Closed);
        let paid = (step.after.balance_a.to_string(), step.after.balance_b.to_string());
        assert_eq!(paid, (expected.0.into(), expected.1.into()));
        assert!(step.entry.unwrap().is_balanced());
    }
    let mut open = Subject::open();
    let early = open.ask(&Command::Resolve(Resolution::default())).unwrap_err();
    assert_eq!((early.code, early.status), (ErrorCode::ChannelNotOpen, Some("open")));
}

/// R100: both signatures over the same bytes, the whole total, nothing pending, open.
#[test]
fn closing_takes_both() {
    let mut subject = Subject::open();
    subject.pay(Side::A, "2.5");
    let good = subject.close_request("7.5", "12.5");
    let both = |a: Side, b: Side| {
        let text = statement::close(&id(), 1, (amount("7.5"), amount("12.5")));
        CloseRequest { signature_a: sign(a, &text), signature_b: sign(b, &text), ..good.clone() }
    };
    for (a, b) in [(Side::A, Side::A), (Side::B, Side::B), (Side::B, Side::A)] {
        assert_eq!(subject.code(Side::A, Action::Close(both(a, b))), ErrorCode::InvalidSignature);
    }
    let old = {
        let text = statement::close(&id(), 0, (amount("10"), amount("10")));
        CloseRequest {
            final_balance_a: amount("10"),
            final_balance_b: amount("10"),
            signature_a: sign(Side::A, &text),
            signature_b: sign(Side::B, &text),
        }
    };
    assert_eq!(subject.code(Side::A, Action::Close(old)), ErrorCode::InvalidSignature, "of before");
    let sum = subject.close_request("7.5", "12.500001");
    assert_eq!(subject.code(Side::A, Action::Close(sum)), ErrorCode::AmountMismatch);
    let (propose, _) = subject.transfer(Side::B, "1", 2);
    let mut busy = Subject { channel: subject.channel.clone(), ..Subject::open() };
    busy.party(Side::B, Action::Propose(propose)).unwrap();
    assert_eq!(busy.code(Side::A, Action::Close(good.clone())), ErrorCode::TransferPending);
    // Either may show it, and the two may agree on other balances than the last.
    for side in [Side::A, Side::B] {
        let mut one = Subject { channel: subject.channel.clone(), ..Subject::open() };
        let request = one.close_request("20", "0");
        one.told.clear();
        one.party(side, Action::Close(request.clone())).unwrap();
        assert_eq!(one.told, [(Audience::Both, event::CHANNEL_CLOSED)]);
        let payout = one.entries.last().unwrap();
        assert_eq!(payout.delta_of(&Account::Agent(agent(Side::A))).to_string(), "20");
        let again = one.party(side, Action::Close(request)).unwrap_err();
        assert_eq!((again.code, again.status), (ErrorCode::ChannelNotOpen, Some("closed")));
    }
    subject.party(Side::B, Action::Close(good)).unwrap();
    assert_eq!(subject.channel.status, ChannelStatus::Closed);
}

/// R83 R96 R137: what is altered, of another channel, of another purpose, by another key, or spelled in another way than
/// the one is no signature.
#[test]
fn signatures_that_are_none() {
    let mut subject = Subject::open();
    let (good, _) = subject.transfer(Side::A, "2.5", 1);
    let text = subject.channel.statements(Side::A, amount("2.5"), 1).unwrap();
    let elsewhere = Channel { id: PaymentChannelId::new(at(0), [8; 10]), ..subject.channel.clone() };
    let of_elsewhere = elsewhere.statements(Side::A, amount("2.5"), 1).unwrap().0;
    let mut raw = BASE64.decode(&good.signature).unwrap();
    raw[10] ^= 1;
    let altered = BASE64.encode(&raw);
    raw[10] ^= 1;
    // S plus the order of the group: the same point, another spelling.
    let order: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut carry = 0_u16;
    for (byte, of_order) in raw[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(of_order) + carry;
        *byte = u8::try_from(sum & 0xFF).unwrap();
        carry = sum >> 8;
    }
    let malleable = BASE64.encode(&raw);
    for (what, signature) in [
        ("altered", altered),
        ("not canonical", malleable),
        ("the other side's", sign(Side::B, &text.0)),
        ("of another purpose", sign(Side::A, &text.1)),
        ("of another channel", sign(Side::A, &of_elsewhere)),
        ("of a closing", sign(Side::A, &statement::close(&id(), 0, (amount("10"), amount("10"))))),
        ("none", String::new()),
        ("zeros", BASE64.encode([0; 64])),
    ] {
        let wrong = SignedTransfer { signature, ..good.clone() };
        assert_eq!(subject.code(Side::A, Action::Propose(wrong)), ErrorCode::InvalidSignature, "{what}");
    }
    // A key of small order would verify almost anything: it is none.
    assert!(PublicKey::parse(&BASE64.encode([0; 32])).is_err());
    let mut one = [0; 32];
    one[0] = 1;
    assert!(PublicKey::from_bytes(one).is_none());
    subject.party(Side::A, Action::Propose(good)).unwrap();
}

#[test]
fn a_record_comes_back_as_it_was_written() {
    let mut subject = Subject::open();
    subject.pay(Side::A, "2.5");
    let (propose, _) = subject.transfer(Side::B, "1", 2);
    subject.party(Side::B, Action::Propose(propose)).unwrap();
    let open = subject.channel.clone();
    subject.party(Side::B, dispute()).unwrap();
    let disputed = subject.channel.clone();
    subject.ask(&Command::Resolve(Resolution::default())).unwrap();
    for channel in [pending_channel("1", "0"), open, disputed, subject.channel] {
        let text = serde_json::to_string(&channel).unwrap();
        assert_eq!(serde_json::from_str::<Channel>(&text).unwrap(), channel);
    }
}
