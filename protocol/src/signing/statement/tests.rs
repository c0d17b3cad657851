//! The vectors, and what no signer can write.

use std::collections::HashMap;

use super::*;
use crate::signing::PublicKey;

/// What each entry of the vectors says: its text and signature, by its first line.
fn vectors() -> HashMap<&'static str, (String, &'static str)> {
    let mut entries = HashMap::new();
    for entry in include_str!("../vectors.txt").split("\n\n") {
        let mut lines = entry.lines();
        let name = lines.next().unwrap();
        let text = lines.clone().find(|line| line.starts_with('"'));
        let signature = lines.find_map(|line| line.strip_prefix("sig="));
        if let (Some(text), Some(signature)) = (text, signature) {
            entries.insert(name, (serde_json::from_str(text).unwrap(), signature));
        }
    }
    entries
}

fn key(name: &str) -> PublicKey {
    let begin = format!("{name} pub b64 ");
    let text = include_str!("../vectors.txt").lines().find_map(|line| line.strip_prefix(&begin)).unwrap();
    PublicKey::parse(text).unwrap()
}

fn amount(text: &str) -> Amount {
    Amount::parse(text).unwrap()
}

#[test]
fn every_vector_is_written_and_verified() {
    let no_terms = Digest::of_json(&Json::empty_object()).unwrap();
    let transfer = Transfer {
        channel: &"chan-1",
        nonce: 1,
        from: &"agent-a",
        to: &"agent-b",
        amount: amount("2.5"),
        balances: (amount("7.5"), amount("12.5")),
    };
    let payload: Json = serde_json::from_str(r#"{ "b": "x", "a": 1.0 }"#).unwrap();
    let message = Message {
        from: &"agent-a",
        to: &"agent-b",
        kind: "negotiation",
        version: "2.0.0",
        dedup_key: Some("key-1"),
        payload: Digest::of_json(&payload).unwrap(),
    };
    let closing = close(&"chan-1", 1, (amount("7.5"), amount("12.5")));
    let written = [
        (
            "offer by client agent-a, own offer no.1, 80.00",
            "A",
            offer(&"sess-1", &"agent-a", 1, amount("80.00"), no_terms),
        ),
        (
            "offer by provider agent-b, own offer no.1, 100.00",
            "B",
            offer(&"sess-1", &"agent-b", 1, amount("100"), no_terms),
        ),
        (
            "accept by client agent-a of 90.00",
            "A",
            accept(&"sess-1", &"agent-a", amount("90"), (amount("80"), amount("100")), no_terms),
        ),
        ("propose_transfer A->B 2.5, nonce 1, after: a=7.5 b=12.5", "A", transfer.propose()),
        ("acknowledge_transfer by B", "B", transfer.acknowledge()),
        ("close signature_a", "A", closing.clone()),
        ("close signature_b", "B", closing),
        ("message 2.0.0 by agent-a, payload JCS={\"a\":1,\"b\":\"x\"}", "A", message.statement().unwrap()),
    ];
    let vectors = vectors();
    assert_eq!(vectors.len(), written.len(), "each is tried");
    for (name, signer, text) in &written {
        let (expected, signature) = &vectors[name];
        assert_eq!(text, expected, "{name}");
        assert_eq!(key(signer).verify(text, signature), Ok(()), "{name}");
        let other = if *signer == "A" { "B" } else { "A" };
        assert!(key(other).verify(text, signature).is_err(), "{name} by the other");
        // A signature is good for its own statement and no other.
        for (elsewhere, _, statement) in written.iter().filter(|(_, _, statement)| statement != text) {
            assert!(key(signer).verify(statement, signature).is_err(), "{name} for {elsewhere}");
        }
        // Nor is an altered one good: every bit counts.
        let bytes = crate::signing::decode::<64>(signature).unwrap();
        for bit in 0..512 {
            let mut altered = bytes;
            altered[bit / 8] ^= 1 << (bit % 8);
            let hex: String = altered.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(key(signer).verify(text, &hex).is_err(), "{name}, bit {bit}");
        }
    }
}

#[test]
fn a_signature_has_one_spelling_of_its_number() {
    let (text, signature) = &vectors()["close signature_a"];
    let mut bytes = crate::signing::decode::<64>(signature).unwrap();
    // The order of the group, added to the second half: the same number, spelt again.
    let order: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut carry = 0;
    for (byte, add) in bytes[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        *byte = u8::try_from(sum & 0xFF).unwrap();
        carry = sum >> 8;
    }
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(key("A").verify(text, &hex).is_err());
}

#[test]
fn documents_of_the_same_content_have_one_digest() {
    let digest = |text: &str| Digest::of_json(&serde_json::from_str(text).unwrap());
    let one = digest(r#"{"a": [1, 2.50, "é"], "b": {"y": null, "x": 1e2}}"#).unwrap();
    assert_eq!(digest("{\"b\":{\"x\":100.0,\"y\":null},\"a\":[1.0,2.5,\"\\u00e9\"]}").unwrap(), one);
    assert_ne!(digest(r#"{"a": [2.50, 1, "é"], "b": {"y": null, "x": 1e2}}"#).unwrap(), one);
    assert_eq!(
        digest("{}").unwrap().to_string(),
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    );
    assert!(digest("[1e400]").is_err(), "beyond all floats");
    assert_eq!(
        Digest::of(b"hello world").to_string(),
        "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"
    );
    let text = one.to_string();
    assert_eq!(Digest::parse(&text), Some(one));
    assert_eq!(Digest::parse(&format!("sha256:{text}")), Some(one));
    assert_eq!(Digest::parse(&text.to_uppercase()), None);
    assert_eq!(Digest::parse(&text[1..]), None);
}

#[test]
fn no_field_of_a_message_can_look_like_two() {
    let payload = Digest::of_json(&Json::empty_object()).unwrap();
    let message = |kind, dedup_key| {
        Message { from: &"a", to: &"b", kind, version: "2.0.0", dedup_key, payload }.statement()
    };
    assert!(message("x", None).is_ok());
    for (kind, key) in [("x\n2.0.0", None), ("x", Some("k\nk")), ("x", Some("-"))] {
        assert_eq!(message(kind, key).unwrap_err().code, ErrorCode::InvalidPayload, "{kind:?} {key:?}");
    }
}

/// R137: one document, one hash, whoever writes it; and what would be read in two ways has none.
#[test]
fn documents_that_are_read_alike_have_one_hash() {
    let digest = |text: &str| Digest::of_json(&serde_json::from_str::<Json>(text).unwrap());
    for (one, other) in [
        (r#"{"b":1,"a":[true,null]}"#, r#"{ "a": [ true, null ], "b": 1.0 }"#),
        ("1234567890123.50", "1234567890123.5"),
        ("12345678901234000000000", "1.2345678901234e22"),
        (r#""\u00e9\/""#, "\"é/\""),
        ("-0", "0"),
        ("1e2", "100"),
    ] {
        assert_eq!(digest(one).unwrap(), digest(other).unwrap(), "{one}");
    }
    for none in [r#"{"a":1,"a":2}"#, r#"[{"x":{"a":1,"a":1}}]"#, "1e999"] {
        assert_eq!(digest(none).unwrap_err().code, ErrorCode::InvalidPayload, "{none}");
    }
}

#[test]
fn a_number_that_would_lose_digits_has_no_digest() {
    let digest = |text: &str| {
        Digest::of_json(
            &text
                .parse::<serde_json::Value>()
                .map(|_| Json::from_trusted_bytes(text.to_owned().into()))
                .unwrap(),
        )
    };
    for exact in [
        "9007199254740991",
        "-9007199254740991",
        "0.1",
        "1e300",
        "123456789012345",
        "1500000000000000000000",
        "0.000000000000001",
    ] {
        assert!(digest(&format!("{{\"n\":{exact}}}")).is_ok(), "{exact}");
    }
    for inexact in [
        "9007199254740993",
        "-9007199254740993",
        "0.1000000000000000055",
        "1234567890.1234567",
        "12345678901234567890e1",
    ] {
        assert!(digest(&format!("[{inexact}]")).is_err(), "{inexact}");
    }
    // What stands in a text is no number.
    assert!(digest(r#"{"a\"9007199254740993":"9007199254740993\\","b":1}"#).is_ok());
}

/// The examples of the document, by what they are for: who signs, the text, the signature.
fn examples() -> HashMap<&'static str, (&'static str, &'static str, &'static str)> {
    let document = include_str!("../../../../docs/signing.md");
    let sections = document.split("\n## `").skip(1).map(|section| {
        let (purpose, section) = section.split_once('`').unwrap();
        let (_, section) = section.split_once("Example, signed by ").unwrap();
        let (who, section) = section.split_once(":\n\n```text\n").unwrap();
        let (text, section) = section.split_once("\n```\n\nSignature: `").unwrap();
        (purpose, (who, text, section.split('`').next().unwrap()))
    });
    sections.collect()
}

/// R137: what the document for users says is what the code writes and verifies.
#[test]
fn the_examples_of_the_document_are_written_and_verified() {
    use crate::ids::AgentId;
    use crate::signing::{ServerKey, public_key_statement, signature_bytes};

    let document = include_str!("../../../../docs/signing.md");
    let [a, b, server] = [1, 2, 3].map(|byte| ServerKey::from_seed([byte; 32]));
    for key in [&a, &b, &server] {
        assert!(document.contains(&key.public().to_base64()));
    }
    let agents: Vec<AgentId> =
        ["a", "b"].map(|last| format!("01a00000-0000-7000-8000-00000000000{last}").parse().unwrap()).into();
    let (agent_a, agent_b) = (agents[0], agents[1]);
    let session = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
    let channel = "01a00000-0000-7000-8000-0000000000cc";
    let of = |text: &str| Digest::of_json(&serde_json::from_str(text).unwrap()).unwrap();
    let terms = of(r#"{"days": 3}"#);
    let client_offer = offer(&session, &agent_a, 1, amount("80"), terms);
    let provider_offer = offer(&session, &agent_b, 1, amount("100.5"), terms);
    let offers = (amount("80"), amount("100.5"));
    let mean = offers.0.mean(offers.1);
    let acceptance = accept(&session, &agent_a, mean, offers, terms);
    let digest = |key: &ServerKey, text: &str| Digest::of(&signature_bytes(&key.sign(text)).unwrap());
    let (key_a, key_b) = (a.public(), b.public());
    let attested = Attested {
        agreement: &"01a00000-0000-7000-8000-0000000000dd",
        session: &session,
        task: None,
        client: (&agent_a, &key_a),
        provider: (&agent_b, &key_b),
        base_price: amount("60"),
        amount: mean,
        terms,
        signatures: [digest(&a, &client_offer), digest(&b, &provider_offer), digest(&a, &acceptance)],
        created_at: Timestamp::from_unix_ms(1_767_323_045_678),
    };
    let transfer = Transfer {
        channel: &channel,
        nonce: 1,
        from: &agent_a,
        to: &agent_b,
        amount: amount("2.5"),
        balances: (amount("7.5"), amount("12.5")),
    };
    let message = Message {
        from: &agent_a,
        to: &agent_b,
        kind: "note",
        version: "2.0.0",
        dedup_key: Some("key-1"),
        payload: of(r#"{"b": "x", "a": 1.0}"#),
    };
    let written = [
        ("negotiation.offer", "A", client_offer),
        ("negotiation.accept", "A", acceptance),
        ("negotiation.agreement", "the server", attested.statement()),
        ("payment.propose", "A", transfer.propose()),
        ("payment.ack", "B", transfer.acknowledge()),
        ("payment.close", "A", close(&channel, 1, transfer.balances)),
        ("message", "A", message.statement().unwrap()),
        ("agent.public_key", "A", public_key_statement(agent_a, &server.public())),
    ];
    let examples = examples();
    assert_eq!(examples.len(), written.len());
    for (purpose, who, text) in written {
        let signer = match who {
            "A" => &a,
            "B" => &b,
            _ => &server,
        };
        assert_eq!(examples[purpose], (who, text.as_str(), signer.sign(&text).as_str()), "{purpose}");
        assert_eq!(text.lines().nth(1), Some(purpose));
    }
}
