//! The rules one by one, what no signer can write, and every way in which two parties can come to an end.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};

use ed25519_dalek::{Signer, SigningKey};

use super::agreement::{Document, read};
use super::*;

fn agent(n: u8) -> AgentId {
    AgentId::new(Timestamp::from_unix_ms(1), [n; 10])
}

fn session(n: u8) -> NegotiationId {
    NegotiationId::new(Timestamp::from_unix_ms(1), [n; 10])
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(1_700_000_000_000 + ms)
}

fn amount(text: &str) -> Amount {
    Amount::parse(text).unwrap()
}

/// The key of an agent: of the client (1) and the provider (2) those of the vectors.
fn signer(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn public(n: u8) -> PublicKey {
    PublicKey::from_bytes(signer(n).verifying_key().to_bytes()).unwrap()
}

thread_local! {
    /// What was signed before, by whom and what: the model signs the same again and again.
    static SIGNED: RefCell<BTreeMap<(u8, String), String>> = const { RefCell::new(BTreeMap::new()) };
}

/// As hex, which is one of the spellings a client may use.
fn sign(n: u8, text: &str) -> Option<String> {
    let made =
        || signer(n).sign(text.as_bytes()).to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let signature =
        SIGNED.with_borrow_mut(|signed| signed.entry((n, text.to_owned())).or_insert_with(made).clone());
    Some(signature)
}

fn server() -> ServerKey {
    ServerKey::from_seed([7; 32])
}

const ID: AgreementId = AgreementId::from_bytes([3; 16]);

fn party(n: u8) -> Party {
    Party { agent: agent(n), key: Some(public(n)) }
}

/// The client (agent 1) opens with 80, signed; the provider (agent 2) asks 60.
fn opening() -> Opening {
    let id = session(1);
    let text = statement::offer(&id, &agent(1), 1, amount("80"), Digest::of(b"{}"));
    Opening {
        id,
        listed_as: id,
        client: party(1),
        provider: party(2),
        by: Side::Client,
        task: None,
        base_price: amount("60"),
        terms: None,
        amount: amount("80"),
        signature: sign(1, &text),
    }
}

fn open_with(opening: Opening) -> Result<Negotiation, Refusal> {
    opening.open(&Settings::default(), &Limits::default(), at(0))
}

fn open() -> Negotiation {
    open_with(opening()).unwrap()
}

fn decide(negotiation: &Negotiation, command: &Command, now: Timestamp) -> Step {
    negotiation.decide(command, &Settings::default(), &server(), now)
}

/// What is left when a command was taken.
fn taken(negotiation: &Negotiation, command: &Command) -> Negotiation {
    let step = decide(negotiation, command, at(1));
    assert_eq!(step.answer, Ok(()), "{command:?}");
    step.change.unwrap().after
}

fn refused(negotiation: &Negotiation, command: &Command) -> Refusal {
    let step = decide(negotiation, command, at(1));
    assert!(step.change.is_none(), "a refusal changes nothing: {command:?}");
    step.answer.unwrap_err()
}

fn code(negotiation: &Negotiation, command: &Command) -> ErrorCode {
    refused(negotiation, command).code
}

/// A signed offer of an agent, as its next.
fn offer(negotiation: &Negotiation, n: u8, value: &str) -> Command {
    let side = negotiation.side_of(agent(n)).unwrap();
    let signature = sign(n, &negotiation.next_statement(side, amount(value)));
    Command::Offer { by: agent(n), amount: amount(value), signature, key: None }
}

fn accept_text(negotiation: &Negotiation, n: u8, value: &str) -> String {
    let last = |side| negotiation.latest(side).map_or(Amount::ZERO, |offer| offer.amount);
    let offers = (last(Side::Client), last(Side::Provider));
    statement::accept(&negotiation.id, &agent(n), amount(value), offers, negotiation.terms_sha256)
}

fn accept(negotiation: &Negotiation, n: u8, value: &str) -> Command {
    let signature = sign(n, &accept_text(negotiation, n, value));
    Command::Accept { by: agent(n), amount: Some(amount(value)), signature, key: None, agreement: ID }
}

fn agreement_of(step: &Step) -> Agreement {
    match &step.change.as_ref().unwrap().happened {
        Happened::Accepted(agreement) => (**agreement).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_offers_and_an_acceptance_make_an_agreement_once() {
    let first = open();
    assert_eq!((first.offers.len(), first.version, first.expires_at), (1, 1, at(1_800_000)));
    let countered = taken(&first, &offer(&first, 2, "100"));
    assert_eq!(countered.offers[1].round, 2);
    assert_eq!(countered.offers[1].offer_no, 1, "each side counts its own");
    let step = decide(&countered, &accept(&countered, 1, "90"), at(5));
    let (agreement, after) = (agreement_of(&step), step.change.unwrap().after);
    assert_eq!((after.status, after.ended_by, after.agreement), (Status::Accepted, Some(agent(1)), Some(ID)));
    let document: Document = agreement.document.parse().unwrap();
    assert_eq!((document.amount, document.accept.agent_id), (amount("90"), agent(1)));
    assert_eq!(document.verify(Some(&server().public())).unwrap().len(), 7);
    // R139: the very strings.
    assert_eq!(document.client_offer.statement, first.offers[0].statement);
    assert_eq!(Some(&document.client_offer.signature), first.offers[0].signature.as_ref());
    let late = refused(&after, &accept(&countered, 1, "90"));
    assert_eq!((late.code, late.status), (ErrorCode::SessionNotOpen, Some("accepted")));
    assert_eq!(code(&after, &offer(&after, 2, "100")), ErrorCode::SessionNotOpen);
    let reject = Command::Reject { by: agent(2), reason: None };
    assert_eq!(code(&after, &reject), ErrorCode::SessionNotOpen);
    assert_eq!(
        code(&after, &Command::Offer { by: agent(9), amount: Amount::ZERO, signature: None, key: None }),
        ErrorCode::Forbidden
    );
}

/// R81 R82: the bound, and what is refused with it.
#[test]
fn an_offer_is_at_most_twice_the_base_price() {
    let first = open();
    assert!(decide(&first, &offer(&first, 2, "120"), at(1)).answer.is_ok());
    assert!(decide(&first, &offer(&first, 2, "0"), at(1)).answer.is_ok());
    let refusal = refused(&first, &offer(&first, 2, "120.000001"));
    assert_eq!(refusal.response().as_str(), r#"{"reason":"amount_exceeds_maximum","max":"120"}"#);
    let too_much = Opening { amount: amount("121"), signature: None, ..opening() };
    assert_eq!(open_with(too_much).unwrap_err().code, ErrorCode::AmountExceedsMaximum);
}

/// R83 R137: whatever else is signed, or by whom.
#[test]
fn only_the_right_signature_counts() {
    let first = open();
    let right = first.next_statement(Side::Provider, amount("100"));
    let with = |signature: Option<String>| Command::Offer {
        by: agent(2),
        amount: amount("100"),
        signature,
        key: None,
    };
    assert!(decide(&first, &with(sign(2, &right)), at(1)).answer.is_ok());
    let other_session = open_with(Opening { id: session(2), signature: None, ..opening() }).unwrap();
    let malleable = {
        // s + L: the same point, written in a way that strict verification does not take.
        const ORDER: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut bytes = signer(2).sign(right.as_bytes()).to_bytes();
        let mut carry = 0;
        for (byte, add) in bytes[32..].iter_mut().zip(ORDER) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            (*byte, carry) = (u8::try_from(sum & 0xFF).unwrap(), sum >> 8);
        }
        Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let cases = [
        ("none", None),
        ("nothing", Some(String::new())),
        ("no signature", Some("AAAA".into())),
        ("of another agent", sign(1, &right)),
        ("altered", sign(2, &right.replace("100000000", "100000001"))),
        ("of another session", sign(2, &other_session.next_statement(Side::Provider, amount("100")))),
        ("of an acceptance", sign(2, &accept_text(&first, 2, "100"))),
        ("of another number", sign(2, &right.replace("\n1\n", "\n2\n"))),
        ("with a line break behind", sign(2, &format!("{right}\n"))),
        ("not canonical", malleable),
        ("all zeros", Some("00".repeat(64))),
    ];
    for (what, signature) in cases {
        assert_eq!(code(&first, &with(signature)), ErrorCode::InvalidSignature, "{what}");
    }
    // Sent again: the number has moved on.
    let again = with(sign(2, &right));
    let second = taken(&first, &again);
    assert_eq!(code(&second, &again), ErrorCode::InvalidSignature);
    // An offer's signature does not accept.
    let accept = Command::Accept {
        by: agent(1),
        amount: None,
        signature: sign(1, &first.offers[0].statement),
        key: None,
        agreement: ID,
    };
    assert_eq!(code(&second, &accept), ErrorCode::InvalidSignature);
    let altered = Opening { amount: amount("81"), ..opening() };
    assert_eq!(open_with(altered).unwrap_err().code, ErrorCode::InvalidSignature);
}

/// R83: with a key of small order a signature verifies for almost any text; none is ever taken for a key.
#[test]
fn keys_of_small_order_are_no_keys() {
    let mut identity = [0; 32];
    identity[0] = 1;
    for bytes in [[0; 32], identity] {
        assert!(PublicKey::from_bytes(bytes).is_none());
    }
}

/// R22: no key, no move.
#[test]
fn who_has_no_key_cannot_sign_and_the_first_one_used_stays() {
    let keyless = Opening { provider: Party { agent: agent(2), key: None }, ..opening() };
    let first = open_with(keyless).unwrap();
    assert_eq!(code(&first, &offer(&first, 2, "100")), ErrorCode::NoPublicKey);
    let no_key = Command::Accept { by: agent(2), amount: None, signature: None, key: None, agreement: ID };
    assert_eq!(code(&first, &no_key), ErrorCode::NoPublicKey);
    let Command::Offer { signature, .. } = offer(&first, 2, "100") else { panic!() };
    let with_key = Command::Offer { by: agent(2), amount: amount("100"), signature, key: Some(public(2)) };
    let second = taken(&first, &with_key);
    assert_eq!(second.provider.key, Some(public(2)));
    // A key it gets later does not count here.
    let text = second.next_statement(Side::Provider, amount("99"));
    let new_key = Command::Offer {
        by: agent(2),
        amount: amount("99"),
        signature: sign(3, &text),
        key: Some(public(3)),
    };
    assert_eq!(code(&second, &new_key), ErrorCode::InvalidSignature);
    assert!(decide(&second, &offer(&second, 2, "99"), at(1)).answer.is_ok());
    let keyless = Opening { client: Party { agent: agent(1), key: None }, ..opening() };
    assert_eq!(open_with(keyless).unwrap_err().code, ErrorCode::NoPublicKey);
}

/// R85: ten rounds.
#[test]
fn the_eleventh_offer_ends_it() {
    let mut negotiation = open();
    for round in 2..=10 {
        negotiation = taken(&negotiation, &offer(&negotiation, 1 + round % 2, "50"));
    }
    assert_eq!(negotiation.offers.len(), 10);
    let unsigned = Command::Offer { by: agent(2), amount: amount("50"), signature: None, key: None };
    assert_eq!(
        code(&negotiation, &unsigned),
        ErrorCode::InvalidSignature,
        "what does not count ends nothing"
    );
    let step = decide(&negotiation, &offer(&negotiation, 2, "50"), at(1));
    assert_eq!(step.answer.unwrap_err().code, ErrorCode::RoundLimitReached);
    let change = step.change.unwrap();
    assert!(matches!(change.happened, Happened::Expired));
    assert_eq!((change.after.status, change.after.offers.len()), (Status::Expired, 10));
    assert_eq!(code(&change.after, &offer(&negotiation, 2, "50")), ErrorCode::SessionExpired);
    // Until then the tenth can still be accepted.
    assert_eq!(negotiation.offers[9].agent_id, agent(1));
    assert!(decide(&negotiation, &accept(&negotiation, 2, "50"), at(1)).answer.is_ok());
}

/// R86: absolute, whatever comes.
#[test]
fn after_thirty_minutes_everything_is_refused_and_it_is_over() {
    let first = open();
    let end = at(1_800_000);
    let countered = taken(&first, &offer(&first, 2, "100"));
    assert_eq!(countered.expires_at, end, "absolute: no offer prolongs it");
    let commands = [
        offer(&countered, 1, "90"),
        accept(&countered, 1, "90"),
        Command::Reject { by: agent(1), reason: None },
    ];
    for command in &commands {
        assert!(decide(&countered, command, end.plus_ms(-1)).answer.is_ok());
        let step = decide(&countered, command, end);
        assert_eq!(step.answer.unwrap_err().code, ErrorCode::SessionExpired);
        assert_eq!(step.change.unwrap().after.status, Status::Expired);
    }
    assert!(decide(&countered, &Command::Expire, end.plus_ms(-1)).change.is_none());
    let over = decide(&countered, &Command::Expire, end).change.unwrap().after;
    for command in &commands {
        assert_eq!(code(&over, command), ErrorCode::SessionExpired);
    }
    assert!(decide(&over, &Command::Expire, end).change.is_none());
    assert_eq!((countered.status_at(end), countered.view(end).status), (Status::Expired, Status::Expired));
}

/// R87 R88 R91: which amount, by whom, and of which pair.
#[test]
fn an_acceptance_names_the_mean_and_is_the_other_sides() {
    let first = open();
    assert_eq!(code(&first, &accept(&first, 2, "80")), ErrorCode::OffersIncomplete);
    let odd = taken(&first, &offer(&first, 2, "80.000001"));
    assert!(decide(&odd, &accept(&odd, 1, "80"), at(1)).answer.is_ok(), "odd sums are rounded down");
    let refusal = refused(&odd, &accept(&odd, 1, "80.000001"));
    assert_eq!(refusal.response().as_str(), r#"{"reason":"amount_mismatch","expected":"80"}"#);
    assert_eq!(code(&odd, &accept(&odd, 2, "80")), ErrorCode::CannotAcceptOwnMove);
    let allowed = Settings { allow_self_accept: true, ..Settings::default() };
    assert!(odd.decide(&accept(&odd, 2, "80"), &allowed, &server(), at(1)).answer.is_ok());
    // A new offer while the acceptance was on its way: the pair it names is not the latest any more.
    let on_its_way = accept(&odd, 1, "80");
    let moved = taken(&odd, &offer(&odd, 2, "90"));
    assert_eq!(code(&moved, &on_its_way), ErrorCode::AmountMismatch);
    // The same mean of another pair: the statement names the pair.
    let first = taken(&odd, &offer(&odd, 1, "70.000001"));
    let same_mean = taken(&first, &offer(&first, 2, "90"));
    let Command::Accept { signature, .. } = on_its_way else { panic!() };
    let replayed =
        Command::Accept { by: agent(1), amount: Some(amount("80")), signature, key: None, agreement: ID };
    assert_eq!(code(&same_mean, &replayed), ErrorCode::InvalidSignature);
    // Without an amount the one that is expected counts (R135).
    let Command::Accept { signature, .. } = accept(&odd, 1, "80") else { panic!() };
    let unnamed = Command::Accept { by: agent(1), amount: None, signature, key: None, agreement: ID };
    assert!(decide(&odd, &unnamed, at(1)).answer.is_ok());
}

/// R134: the first proposal may be unsigned.
#[test]
fn an_unsigned_proposal_counts_but_cannot_be_accepted() {
    let first = open_with(Opening { signature: None, ..opening() }).unwrap();
    let countered = taken(&first, &offer(&first, 2, "100"));
    assert_eq!(code(&countered, &accept(&countered, 1, "90")), ErrorCode::OffersIncomplete);
    let signed = taken(&countered, &offer(&countered, 1, "80"));
    assert_eq!(
        (signed.offers[2].round, signed.offers[2].offer_no),
        (3, 2),
        "the unsigned one has a number too"
    );
    assert!(decide(&signed, &accept(&signed, 2, "90"), at(1)).answer.is_ok());
}

#[test]
fn what_does_not_fit_does_not_begin() {
    let limits = Limits::default();
    let json = |text: &str| Some(serde_json::from_str::<Json>(text).unwrap());
    for terms in [
        "[]",
        "7",
        "null",
        r#"{"n":1e400}"#,
        r#"{"n":1,"n":2}"#,
        &format!("{{\"a\":\"{}\"}}", "x".repeat(limits.negotiation_terms_bytes_max)),
    ] {
        let refusal = open_with(Opening { terms: json(terms), signature: None, ..opening() }).unwrap_err();
        assert_eq!(
            (refusal.code, refusal.field.as_deref()),
            (ErrorCode::InvalidPayload, Some("terms")),
            "{}",
            &terms[..2]
        );
    }
    let same = Opening { provider: party(1), ..opening() };
    assert_eq!(open_with(same).unwrap_err().field.as_deref(), Some("to_agent_id"));
    assert!(check_reason(Some(&"x".repeat(500)), &limits).is_ok());
    assert!(check_reason(Some(&"x".repeat(501)), &limits).is_err());
    assert!(check_reason(Some("a\0"), &limits).is_err());
    let with_terms =
        open_with(Opening { terms: json(r#"{ "b": 1.0, "a": "x" }"#), signature: None, ..opening() })
            .unwrap();
    assert_eq!(with_terms.terms_sha256, Digest::of(br#"{"a":"x","b":1}"#));
}

/// R138: the vectors' statements are those of a negotiation.
#[test]
fn the_vectors_are_signed_by_these_keys() {
    let text = "muster-sig-v1\nnegotiation.offer\nsess-1\nagent-a\n1\n80000000\n44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    let vectors = include_str!("../signing/vectors.txt");
    let signature =
        "w20mdaYzi7h3cTzh8SKeWk5MXrA7wSQY6HZb2O+x0fw6oMEEhQCCHpTLYloScWit2nq3yrU2/9W1DNVMROO+CA==";
    assert!(vectors.contains(signature));
    assert_eq!(public(1).verify(text, signature), Ok(()));
    assert_eq!(statement::offer(&"sess-1", &"agent-a", 1, amount("80"), open().terms_sha256), text);
}

fn agreed() -> Document {
    let first = open();
    let countered = taken(&first, &offer(&first, 2, "100"));
    agreement_of(&decide(&countered, &accept(&countered, 1, "90"), at(5))).document.parse().unwrap()
}

/// R137 R139: whatever is changed, somebody's signature does not fit any more.
#[test]
fn no_field_of_an_agreement_can_be_changed() {
    let good = serde_json::to_string(&agreed()).unwrap();
    assert!(read(&good).unwrap().verify(None).is_ok());
    assert_eq!(read(&format!(r#"{{"data":{good},"meta":{{}},"errors":[]}}"#)).unwrap(), agreed());
    let value: serde_json::Value = serde_json::from_str(&good).unwrap();
    let other = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) if text.parse::<AgentId>().is_ok() => serde_json::json!(agent(9)),
        serde_json::Value::String(text) if Amount::parse(text).is_ok() => serde_json::json!("1.5"),
        serde_json::Value::String(text) if Timestamp::parse(text).is_ok() => serde_json::json!(at(99)),
        serde_json::Value::String(text) => {
            serde_json::json!(format!("{}{text}", if text.starts_with('a') { "b" } else { "a" }))
        }
        serde_json::Value::Number(_) => serde_json::json!(77),
        serde_json::Value::Null => serde_json::json!(agent(9)),
        _ => serde_json::json!({ "changed": true }),
    };
    let mut changed = 0;
    let mut check = |pointer: &str| {
        let mut forged = value.clone();
        let place = forged.pointer_mut(pointer).unwrap();
        *place = other(place);
        let forged = forged.to_string();
        assert!(read(&forged).and_then(|document| document.verify(None)).is_err(), "{pointer}: {forged}");
        changed += 1;
    };
    for (name, inner) in value.as_object().unwrap() {
        check(&format!("/{name}"));
        for inner in inner.as_object().into_iter().flat_map(|inner| inner.keys()) {
            check(&format!("/{name}/{inner}"));
        }
    }
    assert!(changed > 25, "{changed}");
    let mut more = value.clone();
    more["note"] = serde_json::json!("not attested");
    assert!(read(&more.to_string()).is_err());
    let pinned = ServerKey::from_seed([8; 32]).public();
    assert!(agreed().verify(Some(&pinned)).unwrap_err().0.contains("another server"));
    // Another server's signature over a changed record, by somebody who has no key of the parties.
    let mut forged = Document { base_price: amount("1000"), server_key: pinned.to_base64(), ..agreed() };
    forged.server_statement = forged.server_statement.replace("60000000", "1000000000");
    forged.server_signature = ServerKey::from_seed([8; 32]).sign(&forged.server_statement);
    assert!(forged.verify(None).is_ok(), "the bound rests on the server's word");
    assert!(forged.verify(Some(&server().public())).is_err(), "which is why its key is compared");
}

/// A signed message under way: whoever has seen it can bring it again, at any time.
#[derive(Clone, Debug)]
struct Letter {
    name: String,
    command: Command,
}

/// What is stored, what each party last saw of it, what is under way, how many agreements were stored, whether time is over.
#[derive(Clone)]
struct World {
    stored: Negotiation,
    seen: [Negotiation; 2],
    letters: Vec<Letter>,
    agreements: usize,
    is_late: bool,
}

const MODEL: Settings = Settings { allow_self_accept: false, rounds_max: 3, timeout_ms: 1_000 };
/// Letters that can be under way in one run.
const LETTERS_MAX: usize = 4;
/// Moves of a run: writing a letter, bringing one, looking, and time running out.
const DEPTH: usize = 7;

/// All that a negotiation's future depends on: of signatures and times nothing else does.
fn short(negotiation: &Negotiation) -> String {
    let offers: Vec<_> =
        negotiation.offers.iter().map(|offer| (offer.agent_id == agent(1), offer.amount)).collect();
    format!("{:?}{offers:?}", negotiation.status)
}

impl World {
    fn now(&self) -> Timestamp {
        at(if self.is_late { 1_000 } else { 1 })
    }

    /// Two worlds of one key go on alike.
    fn key(&self) -> String {
        let mut letters: Vec<_> = self.letters.iter().map(|letter| letter.name.as_str()).collect();
        letters.sort_unstable();
        let seen = self.seen.each_ref().map(short);
        format!("{}|{seen:?}|{letters:?}|{}|{}", short(&self.stored), self.agreements, self.is_late)
    }

    /// What a party may write, by what it has seen.
    fn writes(&self, n: u8) -> Vec<Letter> {
        let seen = &self.seen[usize::from(n) - 1];
        if seen.status != Status::Open {
            return Vec::new();
        }
        let name = |what: &str| {
            format!("{n} {what} after {:?}", seen.offers.iter().map(|offer| offer.amount).collect::<Vec<_>>())
        };
        let mut letters: Vec<Letter> = ["40", "61"]
            .iter()
            .map(|value| Letter { name: name(value), command: offer(seen, n, value) })
            .collect();
        if let (Some(client), Some(provider)) = (seen.latest(Side::Client), seen.latest(Side::Provider)) {
            let mean = client.amount.mean(provider.amount).to_string();
            letters.push(Letter { name: name("accept"), command: accept(seen, n, &mean) });
        }
        letters
            .push(Letter { name: name("reject"), command: Command::Reject { by: agent(n), reason: None } });
        letters.retain(|letter| !self.letters.iter().any(|known| known.name == letter.name));
        letters
    }

    /// Brings a letter; `None` when it changes nothing. What is stored when the server crashes before is nothing, which is
    /// as if it had not been brought; when it crashes behind, its author does not learn of it.
    fn bring(&self, command: &Command, author: Option<usize>) -> Option<Self> {
        let step = self.stored.decide(command, &MODEL, &server(), self.now());
        let change = step.change?;
        let before = &self.stored;
        assert_eq!(before.status, Status::Open, "what is over stays as it is: {command:?}");
        assert_eq!(change.after.version, before.version + 1);
        let mut after = self.clone();
        if let Happened::Accepted(agreement) = &change.happened {
            after.agreements += 1;
            let document = read(agreement.document.as_str()).unwrap();
            document.verify(Some(&server().public())).unwrap();
            let last = |side| before.latest(side).unwrap().amount;
            assert_eq!(document.amount, last(Side::Client).mean(last(Side::Provider)));
        }
        assert!(after.agreements <= 1, "two agreements");
        assert_eq!(after.agreements == 1, change.after.status == Status::Accepted);
        after.stored = change.after;
        if let Some(author) = author {
            after.seen[author] = after.stored.clone();
        }
        Some(after)
    }

    /// No statement that was taken is refused later: as long as it is open and both have signed, the side whose turn it is
    /// can accept, and each side can offer as long as there are rounds.
    fn check(&self) {
        let stored = &self.stored;
        for taken in &stored.offers {
            let side = stored.side_of(taken.agent_id).unwrap();
            let key = stored.party(side).key.unwrap();
            assert_eq!(key.verify(&taken.statement, taken.signature.as_ref().unwrap()), Ok(()));
        }
        if stored.status_at(self.now()) != Status::Open {
            return;
        }
        let turn = if stored.offers.last().unwrap().agent_id == agent(1) { 2 } else { 1 };
        if let (Some(client), Some(provider)) = (stored.latest(Side::Client), stored.latest(Side::Provider)) {
            let mean = client.amount.mean(provider.amount).to_string();
            let step = stored.decide(&accept(stored, turn, &mean), &MODEL, &server(), self.now());
            let document: Document = agreement_of(&step).document.parse().unwrap();
            assert!(document.verify(Some(&server().public())).is_ok());
        }
        if stored.offers.len() < MODEL.rounds_max {
            assert!(stored.decide(&offer(stored, turn, "61"), &MODEL, &server(), self.now()).answer.is_ok());
        }
    }

    fn next(&self) -> Vec<Self> {
        let mut worlds = Vec::new();
        for n in [1, 2] {
            if self.letters.len() < LETTERS_MAX {
                for letter in self.writes(n) {
                    let mut world = self.clone();
                    world.letters.push(letter);
                    worlds.push(world);
                }
            }
            // A broadcast or an answer arrives, or the party asks.
            let mut world = self.clone();
            world.seen[usize::from(n) - 1] = self.stored.clone();
            worlds.push(world);
        }
        // Letters stay: each can come again, late, in any order, or never.
        for letter in &self.letters {
            let author = match letter.command {
                Command::Offer { by, .. } | Command::Accept { by, .. } | Command::Reject { by, .. } => {
                    usize::from(by == agent(2))
                }
                Command::Expire => continue,
            };
            worlds.extend(self.bring(&letter.command, Some(author)));
            worlds.extend(self.bring(&letter.command, None));
        }
        worlds.extend(self.bring(&Command::Expire, None));
        if !self.is_late {
            worlds.push(Self { is_late: true, ..self.clone() });
        }
        worlds
    }
}

/// R89 R91: every run of up to [`DEPTH`] moves, under loss, duplication, reordering, crashes and time-out: see [`World`].
#[test]
fn every_short_run_ends_in_one_agreement_at_most() {
    let first = opening().open(&MODEL, &Limits::default(), at(0)).unwrap();
    let seen = [first.clone(), first.clone()];
    let mut layer = vec![World { stored: first, seen, letters: Vec::new(), agreements: 0, is_late: false }];
    let mut known: HashSet<String> = layer.iter().map(World::key).collect();
    let mut checked = HashSet::new();
    let (mut agreed, mut expired, mut rejected, mut full) = (0, 0, 0, 0);
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for world in layer.iter().flat_map(World::next) {
            if known.insert(world.key()) {
                if checked.insert((short(&world.stored), world.is_late)) {
                    world.check();
                }
                match world.stored.status {
                    Status::Accepted => agreed += 1,
                    Status::Expired if !world.is_late => full += 1,
                    Status::Expired => expired += 1,
                    Status::Rejected => rejected += 1,
                    Status::Open => {}
                }
                next.push(world);
            }
        }
        layer = next;
    }
    println!(
        "{} worlds; {agreed} agreed, {rejected} rejected, {expired} expired, {full} out of rounds",
        known.len()
    );
    assert!(
        [agreed, expired, rejected, full].iter().all(|count| *count > 100),
        "the model reaches every end"
    );
}
