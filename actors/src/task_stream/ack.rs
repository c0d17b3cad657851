//! The answer a producer waits for. Whatever becomes of its chunk, it gets one: an acknowledgement that is dropped
//! unanswered, as when the stream crashes, says so.

use std::sync::Arc;

use bytes::Bytes;
use muster_protocol::cluster::stream::{Answer, StreamMessage, What, WireRefusal};
use muster_protocol::cluster::{Message, NodeKey};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::TaskId;
use muster_protocol::json::Json;
use muster_protocol::phoenix::Ref;
use muster_protocol::phoenix::encode::Status;
use tokio::sync::oneshot;

use crate::cluster::Cluster;
use crate::egress::{Class, Outlet, Sink};

/// Where the answer goes.
enum To {
    /// To a request over REST or MCP.
    Request(oneshot::Sender<Result<u64, Refusal>>),
    /// To a push over a channel.
    Push { outlet: Arc<Outlet>, reference: Ref },
    /// To another node, which has passed on a chunk.
    Peer { peer: Peer, number: u64 },
    /// Answered.
    Nobody,
}

/// A node that follows a stream, and by which attempt.
#[derive(Clone)]
pub(super) struct Peer {
    pub cluster: Arc<dyn Cluster>,
    pub node: NodeKey,
    pub task: TaskId,
    pub follow: u64,
}

impl Peer {
    /// Tells it something.
    pub fn tell(&self, what: What) -> bool {
        let message = StreamMessage { task: self.task, follow: self.follow, what };
        self.cluster.send(&self.node, Message::Stream(message))
    }

    fn is(&self, other: &Self) -> bool {
        self.task == other.task && self.follow == other.follow && self.node == other.node
    }
}

/// The answer a producer waits for.
pub struct Ack {
    to: To,
    /// When its chunk arrived, monotonic.
    pub received_at_ms: u64,
}

impl Ack {
    /// To a request; the receiver gets the seq or a refusal.
    #[must_use]
    pub fn request(received_at_ms: u64) -> (Self, oneshot::Receiver<Result<u64, Refusal>>) {
        let (sender, receiver) = oneshot::channel();
        (Self { to: To::Request(sender), received_at_ms }, receiver)
    }

    /// To a push.
    #[must_use]
    pub fn push(outlet: Arc<Outlet>, reference: Ref, received_at_ms: u64) -> Self {
        Self { to: To::Push { outlet, reference }, received_at_ms }
    }

    /// To a node that has passed on a chunk as a request of this number.
    pub(super) fn peer(peer: Peer, number: u64, received_at_ms: u64) -> Self {
        Self { to: To::Peer { peer, number }, received_at_ms }
    }

    /// Whether another node waits for it.
    pub(super) fn is_of_peer(&self) -> bool {
        matches!(self.to, To::Peer { .. })
    }

    /// This node does not own the stream any more: another node sends its chunk again to whoever does, by itself; everybody
    /// else is refused.
    pub(super) fn not_owner(mut self, refusal: &Refusal) {
        if self.is_of_peer() {
            self.to = To::Nobody;
        }
        self.refuse(refusal);
    }

    /// The chunk has this seq and is safe.
    pub fn ok(self, seq: u64) {
        AckBatch::default().ok(self, seq);
    }

    /// The chunk was refused.
    pub fn refuse(mut self, refusal: &Refusal) {
        self.answer(Err(refusal.clone()));
    }

    fn answer(&mut self, result: Result<u64, Refusal>) {
        match std::mem::replace(&mut self.to, To::Nobody) {
            To::Request(sender) => {
                // A request that was given up has nobody to tell; its retry finds the chunk by its key.
                let _given_up = sender.send(result);
            }
            To::Push { outlet, reference } => {
                let (status, response) = match result {
                    Ok(seq) => (Status::Ok, seq_response(seq)),
                    Err(refusal) => (Status::Error, refusal.response()),
                };
                outlet.reply_soon(&reference, status, &response);
            }
            To::Peer { peer, number } => {
                let answer = match result {
                    Ok(seq) => Answer::Seq(seq),
                    Err(refusal) => Answer::Refused(WireRefusal::from(&refusal)),
                };
                // A node that is gone sends it again, if it lives.
                let _gone = peer.tell(What::Answers(vec![(number, answer)]));
            }
            To::Nobody => {}
        }
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        self.answer(Err(ErrorCode::Internal.into()));
    }
}

fn seq_response(seq: u64) -> Json {
    Json::from_trusted_bytes(format!("{{\"seq\":{seq}}}").into())
}

/// Acknowledgements that become due together: those to one connection are one write, those to one node one message.
#[derive(Default)]
pub struct AckBatch {
    sink: Option<Arc<Sink>>,
    frames: Vec<Bytes>,
    peer: Option<Peer>,
    answers: Vec<(u64, Answer)>,
}

/// Frames written, and answers told, at once.
const FRAMES_MAX: usize = 64;

impl AckBatch {
    /// Adds one.
    pub fn ok(&mut self, mut ack: Ack, seq: u64) {
        if let To::Peer { peer, number } = &ack.to {
            if !self.peer.as_ref().is_some_and(|known| known.is(peer)) || self.answers.len() == FRAMES_MAX {
                self.tell();
                self.peer = Some(peer.clone());
            }
            self.answers.push((*number, Answer::Seq(seq)));
            ack.to = To::Nobody;
            return;
        }
        let To::Push { outlet, reference } = &ack.to else {
            ack.answer(Ok(seq));
            return;
        };
        let same = self.sink.as_ref().is_some_and(|sink| Arc::ptr_eq(sink, outlet.sink()));
        if !same || self.frames.len() == FRAMES_MAX {
            self.write();
            self.sink = Some(outlet.sink().clone());
        }
        self.frames.push(outlet.reply_frame(reference, Status::Ok, &seq_response(seq)));
        ack.to = To::Nobody;
    }

    fn tell(&mut self) {
        if let Some(peer) = self.peer.take() {
            let _gone = peer.tell(What::Answers(std::mem::take(&mut self.answers)));
        }
    }

    fn write(&mut self) {
        if let Some(sink) = self.sink.take() {
            sink.write_soon(Class::Control, &self.frames);
            self.frames.clear();
        }
    }
}

impl Drop for AckBatch {
    fn drop(&mut self) {
        self.write();
        self.tell();
    }
}
