//! One join's way out.
//!
//! An outlet is shut until the join is answered: what arrives before is held, and follows the reply. Once it is closed
//! nothing of the join gets out any more, whoever still has a frame for it. So the client sees, for each join: the
//! reply first, then its events, then its end, whatever the timing behind.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use muster_protocol::json::Json;
use muster_protocol::phoenix::encode::{self, Status};
use muster_protocol::phoenix::{Ref, Version, event};
use muster_protocol::websocket::Opcode;
use muster_protocol::websocket::encoder::FrameBuilder;
use parking_lot::Mutex;
use smol_str::SmolStr;
use tokio::sync::oneshot;

use super::sink::{Class, Outcome, Sink};

/// Names an outlet within the process.
pub type OutletId = u64;

const PENDING: u8 = 0;
const OPEN: u8 = 1;
const CLOSED: u8 = 2;

/// Frames held for a join that is not answered yet; they are shared, so this bounds slots rather than text.
const HELD_FRAMES_MAX: usize = 4_096;

/// Whoever keeps the books of a connection's joins.
pub trait JoinOwner: Send + Sync + 'static {
    /// A join has ended by a fault, and its client has been told.
    fn join_failed(&self, outlet: OutletId);
}

/// One join's way out.
pub struct Outlet {
    id: OutletId,
    owner: Weak<dyn JoinOwner>,
    sink: Arc<Sink>,
    version: Version,
    topic: SmolStr,
    /// Of the join, as the client gave it.
    join_ref: Ref,
    /// Carried by what is pushed: the join's own, or its `ref` when it had none (phoenix.md §4.2).
    push_ref: Ref,
    /// The join this one replaced: its `phx_close` follows this one's reply.
    replaces: Option<Ref>,
    state: AtomicU8,
    held: Mutex<Held>,
}

/// What waits for the answer to the join.
#[derive(Default)]
struct Held {
    frames: Vec<Bytes>,
    /// The join that replaces this one.
    answered: Option<oneshot::Sender<()>>,
}

impl Held {
    /// The join is answered: gives the frames that follow, and lets the next join begin.
    fn release(&mut self) -> Vec<Bytes> {
        if let Some(answered) = self.answered.take() {
            let _nobody_waits = answered.send(());
        }
        std::mem::take(&mut self.frames)
    }
}

impl Outlet {
    /// For a join that is not answered yet.
    #[must_use]
    pub fn new(
        id: OutletId,
        owner: Weak<dyn JoinOwner>,
        (sink, version): (Arc<Sink>, Version),
        topic: SmolStr,
        (join_ref, reference): (&Ref, &Ref),
        replaces: Option<Ref>,
    ) -> Self {
        let push_ref = if join_ref.is_null() { reference } else { join_ref };
        Self {
            id,
            owner,
            sink,
            version,
            topic,
            join_ref: join_ref.clone(),
            push_ref: push_ref.clone(),
            replaces,
            state: AtomicU8::new(PENDING),
            held: Mutex::default(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> OutletId {
        self.id
    }

    /// The connection it belongs to.
    #[must_use]
    pub fn sink(&self) -> &Arc<Sink> {
        &self.sink
    }

    /// Which messages the connection speaks.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The topic of the join.
    #[must_use]
    pub fn topic(&self) -> &SmolStr {
        &self.topic
    }

    /// What a push to this join carries as `join_ref`.
    #[must_use]
    pub fn push_ref(&self) -> &Ref {
        &self.push_ref
    }

    /// Whether the join has ended, or its connection has.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) == CLOSED
    }

    /// Whether the join has not been answered yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.state.load(Ordering::Acquire) == PENDING
    }

    /// Resolves once the join is answered; `None` if it is.
    pub(crate) fn when_answered(&self) -> Option<oneshot::Receiver<()>> {
        let mut held = self.held.lock();
        if !self.is_pending() {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        held.answered = Some(sender);
        Some(receiver)
    }

    /// Answers the join with ok and opens; what was held follows.
    pub fn open(&self, reference: &Ref, response: &Json) -> Outcome {
        self.sink.write_with(Class::Control, || {
            if self.state.compare_exchange(PENDING, OPEN, Ordering::AcqRel, Ordering::Acquire).is_err() {
                return Vec::new();
            }
            let mut parts = self.join_answer(reference, Status::Ok, response);
            parts.append(&mut self.held.lock().release());
            parts
        })
    }

    /// Answers the join with an error; the outlet is closed.
    pub fn refuse(&self, reference: &Ref, response: &Json) -> Outcome {
        self.sink.write_with(Class::Control, || {
            if self.state.swap(CLOSED, Ordering::AcqRel) != PENDING {
                return Vec::new();
            }
            drop(self.held.lock().release());
            self.join_answer(reference, Status::Error, response)
        })
    }

    fn join_answer(&self, reference: &Ref, status: Status, response: &Json) -> Vec<Bytes> {
        let refs = (&self.join_ref, reference);
        let mut parts = vec![reply_frame(self.version, refs, Some(&self.topic), status, response)];
        // V1 messages carry no join_ref, so this would close the new join at the client: it is left out.
        if let (Version::V2, Some(replaced)) = (self.version, &self.replaces) {
            parts.push(end_frame(self.version, replaced, &self.topic, event::CLOSE, &Json::empty_object()));
        }
        parts
    }

    /// Answers a push. Replies get out after the end of the join too: they name the message they answer.
    pub fn reply(&self, reference: &Ref, status: Status, response: &Json) -> Outcome {
        self.sink.write(Class::Control, &[self.reply_frame(reference, status, response)])
    }

    /// The same, together with what else the connection is to be told soon.
    pub fn reply_soon(&self, reference: &Ref, status: Status, response: &Json) -> Outcome {
        self.sink.write_soon(Class::Control, &[self.reply_frame(reference, status, response)])
    }

    /// The reply to a push as a frame.
    #[must_use]
    pub fn reply_frame(&self, reference: &Ref, status: Status, response: &Json) -> Bytes {
        reply_frame(self.version, (&self.push_ref, reference), Some(&self.topic), status, response)
    }

    /// Pushes an event to this join alone.
    pub fn push(&self, class: Class, event: &str, payload: &Json) -> Outcome {
        let mut frame = FrameBuilder::with_capacity(payload.as_bytes().len() + 128);
        encode::push(frame.payload(), self.version, &self.push_ref, &self.topic, event, payload.as_bytes());
        self.write(class, &[frame.finish(Opcode::Text)])
    }

    /// Writes ready frames of this join.
    pub fn write(&self, class: Class, frames: &[Bytes]) -> Outcome {
        let mut held = None;
        let outcome = self.sink.write_if(class, frames, || {
            let state = self.state.load(Ordering::Acquire);
            if state == PENDING {
                // Under the sink's lock, so the reply cannot pass between the question and this.
                held = Some(self.hold(frames));
            }
            state == OPEN
        });
        held.unwrap_or(outcome)
    }

    fn hold(&self, frames: &[Bytes]) -> Outcome {
        let mut held = self.held.lock();
        if held.frames.len() + frames.len() > HELD_FRAMES_MAX {
            return Outcome::Full;
        }
        held.frames.extend_from_slice(frames);
        Outcome::Taken
    }

    /// Ends the join at the client's wish: reply, then `phx_close`. Whether it did: not if it had ended.
    pub fn leave(&self, reference: &Ref) -> bool {
        self.end(|| {
            vec![
                self.reply_frame(reference, Status::Ok, &Json::empty_object()),
                end_frame(self.version, self.end_ref(), &self.topic, event::CLOSE, &Json::empty_object()),
            ]
        })
    }

    /// Ends the join by a fault: the client joins again.
    pub fn fail(&self, reason: &str) {
        let payload = Json::of(&serde_json::json!({ "reason": reason }));
        self.end(|| vec![end_frame(self.version, self.end_ref(), &self.topic, event::ERROR, &payload)]);
        if let Some(owner) = self.owner.upgrade() {
            owner.join_failed(self.id);
        }
    }

    /// Ends the join in order, by the server's wish: the client does not join again.
    pub fn close(&self) {
        let payload = Json::empty_object();
        self.end(|| vec![end_frame(self.version, self.end_ref(), &self.topic, event::CLOSE, &payload)]);
        if let Some(owner) = self.owner.upgrade() {
            owner.join_failed(self.id);
        }
    }

    /// Ends a join that was never answered, by a fault: the answer says so, and the client joins again.
    pub fn fail_join(&self, reference: &Ref, reason: &str) {
        self.refuse(reference, &Json::of(&serde_json::json!({ "reason": reason })));
        if let Some(owner) = self.owner.upgrade() {
            owner.join_failed(self.id);
        }
    }

    /// Ends the join without a word: its connection ended, or another join replaced it.
    pub fn silence(&self) {
        self.end(Vec::new);
    }

    /// What the end of the join carries: on V1 the join's own `join_ref`, if it gave one.
    fn end_ref(&self) -> &Ref {
        if self.version == Version::V1 { &self.join_ref } else { &self.push_ref }
    }

    fn end(&self, frames: impl FnOnce() -> Vec<Bytes>) -> bool {
        let mut ended = false;
        self.sink.write_with(Class::Control, || {
            if self.state.swap(CLOSED, Ordering::AcqRel) == CLOSED {
                return Vec::new();
            }
            ended = true;
            drop(self.held.lock().release());
            frames()
        });
        ended
    }
}

/// A reply as a frame.
#[must_use]
pub fn reply_frame(
    version: Version,
    refs: (&Ref, &Ref),
    topic: Option<&str>,
    status: Status,
    response: &Json,
) -> Bytes {
    let mut frame = FrameBuilder::with_capacity(response.as_bytes().len() + 128);
    encode::reply(frame.payload(), version, refs, topic, status, response.as_bytes());
    frame.finish(Opcode::Text)
}

fn end_frame(version: Version, join_ref: &Ref, topic: &str, event: &str, payload: &Json) -> Bytes {
    let mut frame = FrameBuilder::with_capacity(payload.as_bytes().len() + 128);
    encode::end(frame.payload(), version, join_ref, topic, event, payload.as_bytes());
    frame.finish(Opcode::Text)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::sink::tests::{Pipe, sink};
    use super::*;

    struct Nobody;

    impl JoinOwner for Nobody {
        fn join_failed(&self, _outlet: OutletId) {}
    }

    fn nobody() -> Weak<dyn JoinOwner> {
        Weak::<Nobody>::new()
    }

    pub(crate) fn outlet(
        sink: &Arc<Sink>,
        id: OutletId,
        join_ref: &str,
        replaces: Option<&str>,
    ) -> Arc<Outlet> {
        let join_ref = Ref::from_text(join_ref);
        Arc::new(Outlet::new(
            id,
            nobody(),
            (sink.clone(), Version::V2),
            "t".into(),
            (&join_ref, &join_ref),
            replaces.map(Ref::from_text),
        ))
    }

    /// The text messages in what a pipe took.
    pub(crate) fn messages(pipe: &Pipe) -> Vec<String> {
        let bytes = pipe.taken();
        let mut rest = bytes.as_slice();
        let mut out = Vec::new();
        while let [0x81, len, tail @ ..] = rest {
            let (len, tail) = match len {
                126 => (usize::from(u16::from_be_bytes([tail[0], tail[1]])), &tail[2..]),
                short => (usize::from(*short), tail),
            };
            out.push(String::from_utf8(tail[..len].to_vec()).unwrap());
            rest = &tail[len..];
        }
        assert!(rest.is_empty(), "{rest:?}");
        out
    }

    fn open_pipe() -> (Pipe, Arc<Sink>) {
        let pipe = Pipe::default();
        pipe.allow(100_000);
        let sink = Arc::new(sink(&pipe, 100_000));
        (pipe, sink)
    }

    #[test]
    fn the_reply_comes_first_and_nothing_after_the_end() {
        let (pipe, sink) = open_pipe();
        let outlet = outlet(&sink, 1, "1", None);
        let payload = Json::empty_object();
        assert_eq!(outlet.push(Class::Broadcast, "early", &payload), Outcome::Taken);
        assert_eq!(messages(&pipe), Vec::<String>::new());
        outlet.open(&Ref::from_text("1"), &payload);
        outlet.push(Class::Broadcast, "later", &payload);
        outlet.leave(&Ref::from_text("2"));
        assert_eq!(outlet.push(Class::Broadcast, "never", &payload), Outcome::Gone);
        outlet.fail("never");
        outlet.reply(&Ref::from_text("3"), Status::Ok, &payload);
        assert_eq!(
            messages(&pipe),
            [
                r#"["1","1","t","phx_reply",{"status":"ok","response":{}}]"#,
                r#"["1",null,"t","early",{}]"#,
                r#"["1",null,"t","later",{}]"#,
                r#"["1","2","t","phx_reply",{"status":"ok","response":{}}]"#,
                r#"["1","1","t","phx_close",{}]"#,
                r#"["1","3","t","phx_reply",{"status":"ok","response":{}}]"#,
            ]
        );
    }

    #[test]
    fn the_close_of_a_replaced_join_follows_the_new_reply() {
        let (pipe, sink) = open_pipe();
        let old = outlet(&sink, 1, "5", None);
        old.open(&Ref::from_text("5"), &Json::empty_object());
        old.silence();
        let new = outlet(&sink, 2, "6", Some("5"));
        new.refuse(&Ref::from_text("6"), &Json::empty_object());
        assert_eq!(
            messages(&pipe)[1..],
            [
                r#"["6","6","t","phx_reply",{"status":"error","response":{}}]"#,
                r#"["5","5","t","phx_close",{}]"#,
            ]
        );
        assert!(new.is_closed());
    }

    #[test]
    fn a_join_without_a_join_ref_pushes_with_its_ref() {
        let (pipe, sink) = open_pipe();
        let outlet = Outlet::new(
            1,
            nobody(),
            (sink, Version::V2),
            "t".into(),
            (&Ref::NULL, &Ref::from_text("9")),
            None,
        );
        outlet.open(&Ref::from_text("9"), &Json::empty_object());
        outlet.push(Class::Broadcast, "e", &Json::empty_object());
        assert_eq!(
            messages(&pipe),
            [r#"[null,"9","t","phx_reply",{"status":"ok","response":{}}]"#, r#"["9",null,"t","e",{}]"#]
        );
    }
}
