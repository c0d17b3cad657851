//! The same events to many outlets, as one write each.

use bytes::Bytes;
use muster_protocol::json::Json;
use muster_protocol::phoenix::{Ref, Version, encode};
use muster_protocol::websocket::Opcode;
use muster_protocol::websocket::encoder::{FrameBuilder, push_header};

use super::outlet::Outlet;

/// Events of one topic that go out together, encoded when first needed in each form.
pub struct Burst<'a> {
    topic: &'a str,
    events: Vec<(&'a str, Json)>,
    forms: Vec<(Form, Bytes)>,
}

/// What decides the bytes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Form {
    version: Version,
    join_ref: Ref,
}

/// Forms remembered per burst. Clients of one library number their joins alike, so there are few; one that has its
/// own is encoded by itself.
const FORMS_MAX: usize = 16;

impl<'a> Burst<'a> {
    /// Of events on a topic, in order.
    #[must_use]
    pub fn new(topic: &'a str, events: Vec<(&'a str, Json)>) -> Self {
        Self { topic, events, forms: Vec::new() }
    }

    /// As a broadcast: the same for every join of a version.
    pub fn broadcast(&mut self, outlet: &Outlet) -> Bytes {
        self.encoded(Form { version: outlet.version(), join_ref: Ref::NULL })
    }

    /// As pushes that carry the join's own reference, so that a client that has joined anew takes none of an earlier join.
    pub fn pushes(&mut self, outlet: &Outlet) -> Bytes {
        let version = outlet.version();
        let join_ref = match version {
            Version::V1 => Ref::NULL,
            Version::V2 => outlet.push_ref().clone(),
        };
        self.encoded(Form { version, join_ref })
    }

    fn encoded(&mut self, form: Form) -> Bytes {
        if let Some((_, bytes)) = self.forms.iter().find(|(known, _)| *known == form) {
            return bytes.clone();
        }
        let bytes = self.encode(&form);
        if self.forms.len() < FORMS_MAX {
            self.forms.push((form, bytes.clone()));
        }
        bytes
    }

    fn encode(&self, form: &Form) -> Bytes {
        if let [(event, payload)] = self.events.as_slice() {
            let mut frame = FrameBuilder::with_capacity(payload.as_bytes().len() + 128);
            encode::push(
                frame.payload(),
                form.version,
                &form.join_ref,
                self.topic,
                event,
                payload.as_bytes(),
            );
            return frame.finish(Opcode::Text);
        }
        let payload_bytes: usize =
            self.events.iter().map(|(_, payload)| payload.as_bytes().len() + 128).sum();
        let mut out = Vec::with_capacity(payload_bytes);
        let mut text = Vec::new();
        for (event, payload) in &self.events {
            text.clear();
            encode::push(&mut text, form.version, &form.join_ref, self.topic, event, payload.as_bytes());
            push_header(&mut out, Opcode::Text, text.len());
            out.extend_from_slice(&text);
        }
        out.into()
    }
}

/// One push whose large payload is shared with others: what differs is written around it.
#[must_use]
pub fn around_shared_payload(outlet: &Outlet, event: &str, payload: &Json) -> [Bytes; 3] {
    // The same encoder as for every other push, around a stand-in that is then cut out.
    let mut text = Vec::with_capacity(128);
    encode::push(&mut text, outlet.version(), outlet.push_ref(), outlet.topic(), event, b"{}");
    let tail_bytes = match outlet.version() {
        Version::V1 => b",\"ref\":null}".len(),
        Version::V2 => b"]".len(),
    };
    let tail = text.split_off(text.len() - tail_bytes);
    text.truncate(text.len() - b"{}".len());
    let mut head = Vec::with_capacity(text.len() + 10);
    push_header(&mut head, Opcode::Text, text.len() + payload.as_bytes().len() + tail.len());
    head.extend_from_slice(&text);
    [head.into(), payload.bytes(), tail.into()]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::outlet::tests::{messages, outlet};
    use super::super::sink::Class;
    use super::super::sink::tests::{Pipe, sink};
    use super::*;

    #[test]
    fn readers_of_one_form_share_the_bytes() {
        let pipe = Pipe::default();
        pipe.allow(100_000);
        let sink = Arc::new(sink(&pipe, 100_000));
        let readers = [outlet(&sink, 1, "1", None), outlet(&sink, 2, "1", None), outlet(&sink, 3, "7", None)];
        for reader in &readers {
            reader.open(&Ref::from_text("1"), &Json::empty_object());
        }
        messages(&pipe);
        let mut burst = Burst::new("t", vec![("a", Json::empty_object()), ("b", Json::null())]);
        let bytes: Vec<Bytes> = readers.iter().map(|reader| burst.pushes(reader)).collect();
        assert_eq!(bytes[0].as_ptr(), bytes[1].as_ptr());
        assert_ne!(bytes[0], bytes[2]);
        readers[2].write(Class::Stream, &bytes[2..]);
        assert_eq!(messages(&pipe), [r#"["7",null,"t","a",{}]"#, r#"["7",null,"t","b",null]"#]);
        let shared_payload: Json = serde_json::from_str(r#"{"a":{"metas":[]}}"#).unwrap();
        readers[0]
            .write(Class::Broadcast, &around_shared_payload(&readers[0], "presence_state", &shared_payload));
        assert_eq!(messages(&pipe), [r#"["1",null,"t","presence_state",{"a":{"metas":[]}}]"#]);
        let shared = burst.broadcast(&readers[0]);
        assert_eq!(shared.as_ptr(), burst.broadcast(&readers[2]).as_ptr());
    }
}
