//! Client messages in their three forms. What does not decode closes its connection with 1011 (agrenting.md R7).

use std::borrow::Cow;
use std::fmt;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::Version;
use super::message::{Inbound, Payload, Ref};
use crate::limits::Limits;

/// The message is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecodable(pub &'static str);

const REF_TOO_LONG: Undecodable = Undecodable("ref too long");

/// Decodes a text message.
///
/// # Errors
/// Not a message of that version, nested too deep, or with a reference over its bound.
pub fn text<'a>(version: Version, text: &'a str, limits: &Limits) -> Result<Inbound<'a>, Undecodable> {
    if crate::json::deeper_than(text.as_bytes(), limits.json_depth_max) {
        return Err(Undecodable("message nests too deep"));
    }
    let inbound = match version {
        Version::V1 => v1(text),
        Version::V2 => v2(text),
    }?;
    if inbound.reference.as_json().len() > limits.ref_bytes_max
        || inbound.join_ref.as_json().len() > limits.ref_bytes_max
    {
        return Err(REF_TOO_LONG);
    }
    Ok(inbound)
}

#[derive(Deserialize)]
struct V1Message<'a> {
    #[serde(borrow)]
    topic: Name<'a>,
    #[serde(borrow)]
    event: Name<'a>,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow, rename = "ref")]
    reference: &'a RawValue,
    #[serde(borrow)]
    join_ref: Option<&'a RawValue>,
}

fn v1(text: &str) -> Result<Inbound<'_>, Undecodable> {
    let refuse = || Undecodable("not a V1 message: topic, event, payload, ref");
    // Derived readers would take an array field by field.
    if !text.trim_start().starts_with('{') {
        return Err(refuse());
    }
    let message: V1Message<'_> = serde_json::from_str(text).map_err(|_| refuse())?;
    Ok(Inbound {
        join_ref: message.join_ref.map_or(Ref::NULL, Ref::from_raw),
        reference: Ref::from_raw(message.reference),
        topic: message.topic.0,
        event: message.event.0,
        payload: Payload::Json(message.payload),
    })
}

fn v2(text: &str) -> Result<Inbound<'_>, Undecodable> {
    serde_json::from_str::<V2Message<'_>>(text)
        .map(|message| message.0)
        .map_err(|_| Undecodable("not a V2 message: [join_ref, ref, topic, event, payload]"))
}

struct V2Message<'a>(Inbound<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for V2Message<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = V2Message<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[join_ref, ref, topic, event, payload]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
                let missing = |index| serde::de::Error::invalid_length(index, &"five elements");
                let join_ref: &RawValue = fields.next_element()?.ok_or_else(|| missing(0))?;
                let reference: &RawValue = fields.next_element()?.ok_or_else(|| missing(1))?;
                let topic: Name<'de> = fields.next_element()?.ok_or_else(|| missing(2))?;
                let event: Name<'de> = fields.next_element()?.ok_or_else(|| missing(3))?;
                let payload: &RawValue = fields.next_element()?.ok_or_else(|| missing(4))?;
                // Phoenix ignores what follows.
                while fields.next_element::<IgnoredAny>()?.is_some() {}
                Ok(V2Message(Inbound {
                    join_ref: Ref::from_raw(join_ref),
                    reference: Ref::from_raw(reference),
                    topic: topic.0,
                    event: event.0,
                    payload: Payload::Json(payload),
                }))
            }
        }
        deserializer.deserialize_seq(Fields)
    }
}

/// A string borrowed where it has no escapes, or `null`.
struct Name<'a>(Option<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or null")
            }

            fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Some(Cow::Borrowed(text))))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Name(Some(Cow::Owned(text.to_owned()))))
            }

            fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
                Ok(Name(None))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// Kind byte of a client's binary message: the only one there is.
const KIND_PUSH: u8 = 0;

/// Decodes a binary message: `00 | lengths of join_ref, ref, topic, event | the four | data`.
///
/// # Errors
/// V1 has no binary form; another kind; lengths that exceed the message; names that are not UTF-8; a reference over its
/// bound.
pub fn binary<'a>(version: Version, message: &'a [u8], limits: &Limits) -> Result<Inbound<'a>, Undecodable> {
    if version == Version::V1 {
        return Err(Undecodable("V1 has no binary messages"));
    }
    let [KIND_PUSH, join_ref_len, ref_len, topic_len, event_len, rest @ ..] = message else {
        return Err(Undecodable("not a binary push"));
    };
    let mut rest = rest;
    let mut name = |len: u8| {
        let (head, tail) =
            rest.split_at_checked(len.into()).ok_or(Undecodable("binary push is cut short"))?;
        rest = tail;
        simdutf8::basic::from_utf8(head).map_err(|_| Undecodable("binary push has a name that is not UTF-8"))
    };
    let (join_ref, reference, topic, event) =
        (name(*join_ref_len)?, name(*ref_len)?, name(*topic_len)?, name(*event_len)?);
    if join_ref.len() > limits.ref_bytes_max || reference.len() > limits.ref_bytes_max {
        return Err(REF_TOO_LONG);
    }
    Ok(Inbound {
        // An empty field is the empty string, not null (phoenix.md §2.3).
        join_ref: Ref::from_text(join_ref),
        reference: Ref::from_text(reference),
        topic: Some(Cow::Borrowed(topic)),
        event: Some(Cow::Borrowed(event)),
        payload: Payload::Binary(rest),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(version: Version, message: &str) -> Result<Inbound<'_>, Undecodable> {
        text(version, message, &Limits::default())
    }

    #[test]
    fn v2_text_keeps_refs_and_payload_verbatim() {
        let inbound = decode(Version::V2, r#"["6", 9, "room:é", "ev", {"a": 1.0}, "extra"]"#).unwrap();
        assert_eq!((inbound.join_ref.as_json(), inbound.reference.as_json()), ("\"6\"", "9"));
        assert_eq!(inbound.topic.as_deref(), Some("room:é"));
        let Payload::Json(payload) = inbound.payload else { panic!("binary") };
        assert_eq!(payload.get(), r#"{"a": 1.0}"#);
    }

    #[test]
    fn refs_compare_by_type_and_value_not_by_spelling() {
        let of = |json: &str| decode(Version::V2, &format!(r#"[{json},"1","t","e",{{}}]"#)).unwrap().join_ref;
        assert_eq!(of(r#""\u0031""#), of(r#""1""#));
        assert_ne!(of("1"), of(r#""1""#));
        assert!(of("null").is_null());
        assert_eq!(of(r#""\ud800""#).as_json(), r#""\ud800""#);
    }

    #[test]
    fn v1_wants_its_four_fields() {
        let inbound = decode(
            Version::V1,
            r#"{"topic":"a","event":"b","payload":null,"ref":"1","join_ref":"2","more":1}"#,
        )
        .unwrap();
        assert_eq!((inbound.reference.as_json(), inbound.join_ref.as_json()), ("\"1\"", "\"2\""));
        for missing in ["topic", "event", "payload", "ref"] {
            let whole = r#"{"topic":"a","event":"b","payload":{},"ref":"1"}"#;
            let cut = whole.replace(&format!("\"{missing}\""), "\"other\"");
            assert!(decode(Version::V1, &cut).is_err(), "{missing}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bad in [
            "",
            "nope",
            "{}",
            "[]",
            r#"["1","2","t","e"]"#,
            r#"[1,2,3,4,5]"#,
            r#"["1","2","t","e",}"#,
            "\"x\"",
        ] {
            assert!(decode(Version::V2, bad).is_err(), "{bad}");
        }
        for bad in ["", "[]", "1", r#"{"topic":1,"event":"b","payload":{},"ref":"1"}"#] {
            assert!(decode(Version::V1, bad).is_err(), "{bad}");
        }
        let deep = format!(r#"["1","2","t","e",{}{}]"#, "[".repeat(64), "]".repeat(64));
        assert_eq!(decode(Version::V2, &deep).unwrap_err(), Undecodable("message nests too deep"));
        let long = format!(r#"["1","{}","t","e",{{}}]"#, "r".repeat(300));
        assert_eq!(decode(Version::V2, &long).unwrap_err(), Undecodable("ref too long"));
    }

    #[test]
    fn null_topic_or_event_decodes() {
        let inbound = decode(Version::V2, r#"[null,"1",null,null,{}]"#).unwrap();
        assert_eq!((inbound.topic, inbound.event), (None, None));
    }

    #[test]
    fn the_recorded_binary_push_decodes() {
        let limits = Limits::default();
        let bytes =
            [&[0x00, 0x02, 0x03, 0x06, 0x03][..], b"12", b"123", b"room:b", b"bin", &[0x65, 0x66, 0x67]]
                .concat();
        let inbound = binary(Version::V2, &bytes, &limits).unwrap();
        assert_eq!((inbound.join_ref.as_json(), inbound.reference.as_json()), ("\"12\"", "\"123\""));
        assert_eq!((inbound.topic.as_deref(), inbound.event.as_deref()), (Some("room:b"), Some("bin")));
        assert!(matches!(inbound.payload, Payload::Binary(b"efg")));
        for end in 0..bytes.len() - 3 {
            assert!(binary(Version::V2, &bytes[..end], &limits).is_err(), "{end}");
        }
        assert!(binary(Version::V1, &bytes, &limits).is_err());
        for kind in 1..=255 {
            let mut other = bytes.clone();
            other[0] = kind;
            assert!(binary(Version::V2, &other, &limits).is_err());
        }
    }

    #[test]
    fn an_empty_binary_join_ref_is_the_empty_string() {
        let inbound = binary(Version::V2, &[0, 0, 0, 1, 1, b't', b'e'], &Limits::default()).unwrap();
        assert_eq!(inbound.join_ref.as_json(), "\"\"");
        assert!(!inbound.join_ref.is_null());
    }

    #[test]
    fn the_bound_of_a_ref_holds_for_binary_messages() {
        let push = |ref_bytes_max, reference: &[u8]| {
            let length = u8::try_from(reference.len()).unwrap();
            let message = [&[0, 0, length, 1, 1], reference, b"te"].concat();
            binary(Version::V2, &message, &Limits { ref_bytes_max, ..Limits::default() }).map(drop)
        };
        // By default it is what the form has room for.
        assert_eq!(push(Limits::default().ref_bytes_max, &[b'r'; 255]), Ok(()));
        assert_eq!(push(16, &[b'r'; 16]), Ok(()));
        assert_eq!(push(16, &[b'r'; 17]), Err(Undecodable("ref too long")));
    }
}
