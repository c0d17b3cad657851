//! Server messages, written as text into a buffer. Which connection they go to decides only the version; what is the
//! same for many is written once (broadcasts) or shares its tail (pushes, which differ by `join_ref` alone).

use super::message::Ref;
use super::{Version, event};
use crate::json::write_string;

/// Status of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It worked.
    Ok,
    /// It was refused.
    Error,
}

impl Status {
    /// As on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
        }
    }
}

/// The answer to a push, join or leave. `response` is JSON.
pub fn reply(
    out: &mut Vec<u8>,
    version: Version,
    refs: (&Ref, &Ref),
    topic: Option<&str>,
    status: Status,
    response: &[u8],
) {
    let (join_ref, reference) = refs;
    let payload = |out: &mut Vec<u8>| {
        out.extend_from_slice(b"{\"status\":\"");
        out.extend_from_slice(status.as_str().as_bytes());
        out.extend_from_slice(b"\",\"response\":");
        out.extend_from_slice(response);
        out.push(b'}');
    };
    message(out, version, (join_ref, reference), topic, event::REPLY, payload);
}

/// A message to one join. In V2 it carries the join's `join_ref`.
pub fn push(out: &mut Vec<u8>, version: Version, join_ref: &Ref, topic: &str, event: &str, payload: &[u8]) {
    message(out, version, (join_ref, &Ref::NULL), Some(topic), event, |out| out.extend_from_slice(payload));
}

/// A message to everybody on a topic: the same bytes for all of one version.
pub fn broadcast(out: &mut Vec<u8>, version: Version, topic: &str, event: &str, payload: &[u8]) {
    push(out, version, &Ref::NULL, topic, event, payload);
}

/// `phx_error` or `phx_close` of one join: `ref` repeats `join_ref`, so that a client with a newer join ignores it.
pub fn end(out: &mut Vec<u8>, version: Version, join_ref: &Ref, topic: &str, event: &str, payload: &[u8]) {
    message(out, version, (join_ref, join_ref), Some(topic), event, |out| out.extend_from_slice(payload));
}

fn message(
    out: &mut Vec<u8>,
    version: Version,
    (join_ref, reference): (&Ref, &Ref),
    topic: Option<&str>,
    event: &str,
    payload: impl FnOnce(&mut Vec<u8>),
) {
    let write_topic = |out: &mut Vec<u8>| match topic {
        Some(topic) => write_string(out, topic),
        None => out.extend_from_slice(b"null"),
    };
    match version {
        Version::V2 => {
            out.push(b'[');
            out.extend_from_slice(join_ref.as_json().as_bytes());
            out.push(b',');
            out.extend_from_slice(reference.as_json().as_bytes());
            out.push(b',');
            write_topic(out);
            out.push(b',');
            write_string(out, event);
            out.push(b',');
            payload(out);
            out.push(b']');
        }
        Version::V1 => {
            out.extend_from_slice(b"{\"topic\":");
            write_topic(out);
            out.extend_from_slice(b",\"event\":");
            write_string(out, event);
            out.extend_from_slice(b",\"payload\":");
            payload(out);
            out.extend_from_slice(b",\"ref\":");
            out.extend_from_slice(reference.as_json().as_bytes());
            out.push(b'}');
        }
    }
}

/// The part of a V2 push that is the same for every join of a topic: all but `[join_ref`.
pub fn v2_push_tail(out: &mut Vec<u8>, topic: &str, event: &str, payload: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b",null,");
    write_string(out, topic);
    out.push(b',');
    write_string(out, event);
    out.push(b',');
    payload(out);
    out.push(b']');
}

/// V2 binary messages of a server. Their layouts differ from the client's: a push has no `ref`.
pub mod binary {
    use super::{Ref, Status};

    /// A name over 255 bytes has no binary form.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
    #[error("a name over 255 bytes has no binary form")]
    pub struct NameTooLong;

    fn names(out: &mut Vec<u8>, kind: u8, names: &[&str], data: &[u8]) -> Result<(), NameTooLong> {
        let mut lengths = Vec::with_capacity(names.len());
        for name in names {
            lengths.push(u8::try_from(name.len()).map_err(|_| NameTooLong)?);
        }
        out.push(kind);
        out.extend_from_slice(&lengths);
        for name in names {
            out.extend_from_slice(name.as_bytes());
        }
        out.extend_from_slice(data);
        Ok(())
    }

    /// `00 | lengths of join_ref, topic, event | the three | data`.
    ///
    /// # Errors
    /// [`NameTooLong`]
    pub fn push(
        out: &mut Vec<u8>,
        join_ref: &Ref,
        topic: &str,
        event: &str,
        data: &[u8],
    ) -> Result<(), NameTooLong> {
        names(out, 0, &[&join_ref.to_binary_text(), topic, event], data)
    }

    /// `01 | lengths of join_ref, ref, topic, status | the four | data`.
    ///
    /// # Errors
    /// [`NameTooLong`]
    pub fn reply(
        out: &mut Vec<u8>,
        refs: (&Ref, &Ref),
        topic: &str,
        status: Status,
        data: &[u8],
    ) -> Result<(), NameTooLong> {
        let (join_ref, reference) = (refs.0.to_binary_text(), refs.1.to_binary_text());
        names(out, 1, &[&join_ref, &reference, topic, status.as_str()], data)
    }

    /// `02 | lengths of topic, event | the two | data`.
    ///
    /// # Errors
    /// [`NameTooLong`]
    pub fn broadcast(out: &mut Vec<u8>, topic: &str, event: &str, data: &[u8]) -> Result<(), NameTooLong> {
        names(out, 2, &[topic, event], data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn v2_messages_are_as_recorded() {
        let (six, nine) = (Ref::from_text("6"), Ref::from_text("9"));
        let v2 = Version::V2;
        assert_eq!(
            written(|out| reply(out, v2, (&six, &nine), Some("room:a"), Status::Ok, b"{}")),
            r#"["6","9","room:a","phx_reply",{"status":"ok","response":{}}]"#
        );
        assert_eq!(
            written(|out| push(out, v2, &six, "room:a", "joined", br#"{"a":1}"#)),
            r#"["6",null,"room:a","joined",{"a":1}]"#
        );
        assert_eq!(
            written(|out| broadcast(out, v2, "room:a", "shout", br#"{"m":1}"#)),
            r#"[null,null,"room:a","shout",{"m":1}]"#
        );
        assert_eq!(
            written(|out| end(out, v2, &six, "room:a", event::CLOSE, b"{}")),
            r#"["6","6","room:a","phx_close",{}]"#
        );
        assert_eq!(
            written(|out| reply(out, v2, (&Ref::NULL, &nine), None, Status::Error, b"{}")),
            r#"[null,"9",null,"phx_reply",{"status":"error","response":{}}]"#
        );
    }

    #[test]
    fn v1_messages_carry_no_join_ref() {
        let six = Ref::from_text("6");
        assert_eq!(
            written(|out| push(out, Version::V1, &six, "room:a", "shout", br#"{"a":1}"#)),
            r#"{"topic":"room:a","event":"shout","payload":{"a":1},"ref":null}"#
        );
        assert_eq!(
            written(|out| end(out, Version::V1, &Ref::NULL, "r\"", event::ERROR, b"{}")),
            r#"{"topic":"r\"","event":"phx_error","payload":{},"ref":null}"#
        );
    }

    #[test]
    fn a_push_is_its_join_ref_and_the_shared_tail() {
        let six = Ref::from_text("6");
        let whole = written(|out| push(out, Version::V2, &six, "t", "e", b"{}"));
        let tail = written(|out| v2_push_tail(out, "t", "e", |out| out.extend_from_slice(b"{}")));
        assert_eq!(whole, format!("[{}{tail}", six.as_json()));
    }

    #[test]
    fn binary_messages_are_as_recorded() {
        let (join_ref, reference) = (Ref::from_text("12"), Ref::from_text("123"));
        let mut out = Vec::new();
        binary::push(&mut out, &join_ref, "room:b", "binpush", &[0, 1]).unwrap();
        assert_eq!(out, [&[0, 2, 6, 7][..], b"12room:bbinpush", &[0, 1]].concat());
        out.clear();
        binary::broadcast(&mut out, "room:b", "binshout", b"efg").unwrap();
        assert_eq!(out, [&[2, 6, 8][..], b"room:bbinshoutefg"].concat());
        out.clear();
        binary::reply(&mut out, (&join_ref, &reference), "room:b", Status::Ok, b"efg\xff").unwrap();
        assert_eq!(out, [&[1, 2, 3, 6, 2][..], b"12123room:bokefg\xff"].concat());
        assert_eq!(binary::push(&mut out, &join_ref, &"t".repeat(256), "e", b""), Err(binary::NameTooLong));
    }
}
