//! What clients of this node want of a stream that another node owns: passed on in their order, and sent again to the next
//! owner until there is an answer.

use muster_protocol::cluster::stream::{Answer, Request, What, WireNewChunk};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::AgentId;
use muster_protocol::task::{Ending, Task};
use muster_protocol::task_stream::NewChunk;
use tokio::sync::oneshot;

use super::following::Phase;
use super::{Role, State};
use crate::task_stream::INBOX_COMMANDS_MAX;
use crate::task_stream::ack::{Ack, AckBatch, Peer};
use crate::task_stream::command::Command;

/// A request that has no answer yet.
pub(super) struct Waiting {
    number: u64,
    request: Request,
    /// Whether it was sent.
    sent: bool,
    to: To,
}

pub(super) enum To {
    Ack(Ack),
    Caller(oneshot::Sender<Result<Task, Refusal>>),
}

impl State {
    /// Passes a chunk on to the owner.
    pub(super) fn forward_chunk(&mut self, by: AgentId, chunk: NewChunk, ack: Ack) {
        let registry = self.registry.clone();
        // Under a key of its own where it has none, so that sending it again does not double it. No client's key has a
        // control character.
        let key = || {
            let me = registry.cluster.me();
            format!("\u{1}{}/{:x}/{:x}", me.name, me.incarnation, registry.next_number()).into()
        };
        let request = Request::Emit { by, chunk: WireNewChunk::new(chunk, key) };
        self.forward(request, To::Ack(ack));
    }

    /// Passes the end of the task on.
    pub(super) fn forward_finish(
        &mut self,
        ending: &Ending,
        (by, provider): (Option<AgentId>, Option<AgentId>),
        reply: oneshot::Sender<Result<Task, Refusal>>,
    ) {
        self.forward(Request::finish(ending, by, provider), To::Caller(reply));
    }

    /// Passes on that the task goes to another provider.
    pub(super) fn forward_reassign(
        &mut self,
        (provider, by): (AgentId, AgentId),
        reply: oneshot::Sender<Result<Task, Refusal>>,
    ) {
        self.forward(Request::Reassign { provider, by }, To::Caller(reply));
    }

    fn forward(&mut self, request: Request, to: To) {
        let Role::Follower(following) = &mut self.role else { return };
        if following.requests.len() >= INBOX_COMMANDS_MAX {
            to.refuse(&ErrorCode::Overloaded.into());
            return;
        }
        let number = following.next_number;
        following.next_number += 1;
        following.requests.push_back(Waiting { number, request, sent: false, to });
        self.send_requests(false);
    }

    /// Sends the requests that were not sent yet, or all, in order.
    pub(super) fn send_requests(&mut self, all: bool) {
        let task = self.task.id;
        let cluster = self.registry.cluster.clone();
        let Role::Follower(following) = &mut self.role else { return };
        let Phase::Settled(owner) = &following.phase else { return };
        let peer = Peer { cluster, node: owner.clone(), task, follow: following.follow };
        let first = if all {
            0
        } else {
            following.requests.iter().rposition(|waiting| waiting.sent).map_or(0, |last| last + 1)
        };
        for waiting in following.requests.range_mut(first..) {
            let again = std::mem::replace(&mut waiting.sent, true);
            let (number, request) = (waiting.number, waiting.request.clone());
            if !peer.tell(What::Request { number, again, request }) {
                // The session is gone: they are sent again when it is back.
                break;
            }
        }
    }

    pub(super) fn take_answers(&mut self, answers: Vec<(u64, Answer)>) {
        let Role::Follower(following) = &mut self.role else { return };
        let mut batch = AckBatch::default();
        for (number, answer) in answers {
            let Ok(place) = following.requests.binary_search_by_key(&number, |waiting| waiting.number) else {
                continue;
            };
            let Some(waiting) = following.requests.remove(place) else { continue };
            match (answer, waiting.to) {
                (Answer::Seq(seq), To::Ack(ack)) => batch.ok(ack, seq),
                (Answer::Done, To::Caller(reply)) => {
                    self.registry.clone().answer_with_task(self.task.id, reply);
                }
                (Answer::Refused(refusal), to) => to.refuse(&refusal.into()),
                (_, to) => to.refuse(&ErrorCode::Internal.into()),
            }
        }
    }
}

impl To {
    pub fn refuse(self, refusal: &Refusal) {
        match self {
            Self::Ack(ack) => ack.refuse(refusal),
            Self::Caller(reply) => {
                let _caller_gone = reply.send(Err(refusal.clone()));
            }
        }
    }
}

impl Waiting {
    /// Answers whoever waits.
    pub fn refuse(self, refusal: &Refusal) {
        self.to.refuse(refusal);
    }

    /// What the request is where it can be done on the spot.
    pub fn into_command(self) -> Option<Command> {
        let again = self.sent;
        match (self.request, self.to) {
            (Request::Emit { by, chunk }, To::Ack(ack)) => {
                Some(Command::Emit { by, chunk: chunk.into_chunk(), ack })
            }
            (Request::Finish { status, document, by, provider }, To::Caller(reply)) => {
                Some(Command::Finish { ending: Ending { status, document }, by, provider, again, reply })
            }
            (Request::Reassign { provider, by }, To::Caller(reply)) => {
                Some(Command::Reassign { provider, by, again, reply })
            }
            // Whoever waits for a chunk waits by an acknowledgement, whoever for a task is a caller.
            (_, to) => {
                to.refuse(&ErrorCode::Internal.into());
                None
            }
        }
    }
}
