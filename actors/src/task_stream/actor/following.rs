//! What a stream does while another node owns it: it follows the owner, serves this node's readers from what comes, and
//! passes on what this node's clients want done, in their order. Whatever the owner does not answer is sent again to the
//! next one.

use std::collections::VecDeque;
use std::time::Duration;

use muster_protocol::cluster::NodeKey;
use muster_protocol::cluster::owner::owner_of;
use muster_protocol::cluster::stream::{What, WireChunk};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::task::{Ending, Task, TaskAction};
use muster_protocol::task_stream::Chunk;
use ractor::ActorRef;

use super::forwarding::Waiting;
use super::{Role, State};
use crate::inbox::Wake;
use crate::store::{StoreError, StreamHead};
use crate::task_stream::INBOX_COMMANDS_MAX;
use crate::task_stream::command::Command;

/// How long a node that was asked has to answer, in milliseconds; then who owns the stream is asked anew.
const ANSWER_MS: u64 = 1_500;
/// Pause before it is looked again who owns the stream, in milliseconds.
const LOOK_AGAIN_MS: u64 = 100;
/// How long clients wait for a stream without an owner, in milliseconds; longer than it takes to notice that a node is
/// gone.
const OWNER_WAIT_MS: u64 = 9_000;
/// After how long nobody is taken to be on the way who needs a stream, in milliseconds.
const UNUSED_MS: u64 = 1_000;
/// How long a node that took a stream over is believed against one's own view, in milliseconds.
const FAVOUR_MS: u64 = 3_000;

/// What a follower knows of the owner, and what it waits for.
pub(super) struct Following {
    /// Numbers the attempts; what belongs to an earlier one is passed over.
    pub follow: u64,
    pub phase: Phase,
    /// Since when this phase lasts, monotonic milliseconds.
    phase_since_ms: u64,
    /// Since when there is no owner that answers.
    unsettled_since_ms: u64,
    wants_chunks: bool,
    pub requests: VecDeque<Waiting>,
    pub next_number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody to follow is known.
    Looking,
    /// This node is to own the stream, and is claiming it.
    Claiming,
    /// This node was asked.
    Asked(NodeKey),
    /// This node owns it.
    Settled(NodeKey),
}

impl Following {
    pub fn new(wants_chunks: bool, now_ms: u64) -> Self {
        Self {
            follow: 0,
            phase: Phase::Looking,
            phase_since_ms: now_ms,
            unsettled_since_ms: now_ms,
            wants_chunks,
            requests: VecDeque::new(),
            next_number: 1,
        }
    }

    /// Whether clients of this node wait for something.
    pub fn is_waited_for(&self) -> bool {
        !self.requests.is_empty()
    }

    fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Settled(_))
    }

    fn owner(&self) -> Option<&NodeKey> {
        match &self.phase {
            Phase::Asked(owner) | Phase::Settled(owner) => Some(owner),
            Phase::Looking | Phase::Claiming => None,
        }
    }

    fn enter(&mut self, phase: Phase, now_ms: u64) {
        self.phase = phase;
        self.phase_since_ms = now_ms;
    }
}

impl State {
    /// Whether somebody reads here.
    pub(super) fn wants_chunks(&self) -> bool {
        !self.readers.is_empty() || self.handle.tail.receiver_count() > 0 || !self.held.is_empty()
    }

    /// Finds out who owns the stream, and follows them or claims it.
    pub(super) fn settle(&mut self, myself: &ActorRef<Wake>) {
        let now_ms = self.registry.environment.monotonic_ms();
        let wanted = self.owner_wanted(now_ms);
        let epoch = self.epoch;
        let me = self.registry.cluster.me().clone();
        let Role::Follower(following) = &mut self.role else { return };
        if following.phase == Phase::Claiming {
            // Its result is waited for: of two claims the earlier one might come later, and fence this very node off.
            return;
        }
        if following.is_settled() {
            following.unsettled_since_ms = now_ms;
        }
        following.follow = self.registry.next_number();
        let (follow, chunks) = (following.follow, following.wants_chunks);
        match wanted {
            Some(owner) if owner == me => {
                following.enter(Phase::Claiming, now_ms);
                self.registry.clone().claim(self.handle.clone(), follow, epoch);
            }
            Some(owner) => {
                following.enter(Phase::Asked(owner.clone()), now_ms);
                if !self.ask_to_follow(owner, follow, chunks) {
                    self.look_again(myself, now_ms);
                }
            }
            None => following.enter(Phase::Looking, now_ms),
        }
        self.wake_in(myself, LOOK_AGAIN_MS);
    }

    /// The same, unless nobody has needed the stream here for a while: to claim it then would take it from whoever does, at
    /// a node that is only cut off. Whether this actor has ended.
    fn settle_if_used(&mut self, myself: &ActorRef<Wake>) -> bool {
        let idle_ms = self.registry.environment.monotonic_ms().saturating_sub(self.active_at_ms);
        let has_ended = idle_ms >= UNUSED_MS && self.end_if_unused(myself);
        if !has_ended {
            self.settle(myself);
        }
        has_ended
    }

    /// Lets the owner know that this node follows, and what it has.
    fn ask_to_follow(&self, owner: NodeKey, follow: u64, chunks: bool) -> bool {
        self.tell(owner, follow, What::Follow { after: self.log.last_seq(), epoch: self.epoch, chunks })
    }

    pub(super) fn look_again(&mut self, myself: &ActorRef<Wake>, now_ms: u64) {
        if let Role::Follower(following) = &mut self.role {
            if following.is_settled() {
                following.unsettled_since_ms = now_ms;
            }
            following.enter(Phase::Looking, now_ms);
        }
        self.wake_in(myself, LOOK_AGAIN_MS);
    }

    /// Who is to own the stream, as far as this node knows.
    fn owner_wanted(&self, now_ms: u64) -> Option<NodeKey> {
        let members = self.registry.members.borrow().clone();
        let is_up = |node: &NodeKey| members.nodes.iter().any(|member| member.key == *node);
        if let Some((favoured, since_ms)) = &self.favoured
            && now_ms.saturating_sub(*since_ms) < FAVOUR_MS
            && is_up(favoured)
        {
            return Some(favoured.clone());
        }
        if members.isolated {
            return None;
        }
        owner_of(self.task.id, &members.nodes).cloned()
    }

    /// The nodes that are up have changed.
    pub(super) fn examine(&mut self, myself: &ActorRef<Wake>) {
        if self.ending.is_some() && matches!(self.role, Role::Owner(_)) {
            // Nothing happens to it any more: every node can serve it.
            return;
        }
        let wanted = self.owner_wanted(self.registry.environment.monotonic_ms());
        match &self.role {
            Role::Owner(_) => {
                if wanted.is_some_and(|wanted| wanted != *self.registry.cluster.me()) {
                    self.leave(myself);
                }
            }
            Role::Follower(following) => {
                if wanted.is_none() || following.owner() != wanted.as_ref() {
                    let _ended = self.settle_if_used(myself);
                }
            }
        }
    }

    /// A node is gone, or what was said to it and by it may be lost.
    pub(super) fn gone(&mut self, myself: &ActorRef<Wake>, node: &NodeKey) {
        match &mut self.role {
            Role::Owner(owning) => {
                owning.forget(node);
                self.verify();
            }
            Role::Follower(following) => {
                if following.owner() == Some(node) {
                    let _ended = self.settle_if_used(myself);
                }
            }
        }
    }

    /// Makes sure that nobody has claimed the stream unnoticed.
    pub(super) fn verify(&self) {
        if self.ending.is_none() {
            self.registry.clone().read_epoch(self.handle.clone());
        }
    }

    pub(super) fn verified(&mut self, myself: &ActorRef<Wake>, epoch: u64) {
        if matches!(self.role, Role::Owner(_)) && epoch > self.epoch {
            self.lose(myself);
        }
    }

    /// Looks after a stream that has no owner, or whose owner does not answer.
    pub(super) fn mind_owner(&mut self, myself: &ActorRef<Wake>) {
        let now_ms = self.registry.environment.monotonic_ms();
        let Role::Follower(following) = &self.role else { return };
        if following.is_settled() {
            return;
        }
        let waited_ms = now_ms.saturating_sub(following.unsettled_since_ms);
        let phase_ms = now_ms.saturating_sub(following.phase_since_ms);
        let is_due = match following.phase {
            Phase::Looking => phase_ms >= LOOK_AGAIN_MS,
            Phase::Asked(_) => phase_ms >= ANSWER_MS,
            // The store answers, or fails, in bounded time.
            Phase::Claiming | Phase::Settled(_) => false,
        };
        if waited_ms >= OWNER_WAIT_MS {
            self.refuse_waiting(&ErrorCode::OwnerUnreachable.into());
        }
        if is_due && self.settle_if_used(myself) {
            return;
        }
        self.wake_in(myself, LOOK_AGAIN_MS);
    }

    /// Answers everybody who waits.
    pub(super) fn refuse_waiting(&mut self, refusal: &Refusal) {
        if let Role::Follower(following) = &mut self.role {
            for waiting in std::mem::take(&mut following.requests) {
                waiting.refuse(refusal);
            }
        }
        for command in std::mem::take(&mut self.held) {
            command.refuse(refusal);
        }
    }

    pub(super) fn wake_in(&mut self, myself: &ActorRef<Wake>, ms: u64) {
        let due_ms = self.registry.environment.monotonic_ms() + ms;
        if self.wake_due_ms.is_none() {
            self.wake_due_ms = Some(due_ms);
            myself.send_after(Duration::from_millis(ms), || Wake::Work);
        }
    }

    /// Whether a command has to wait until this stream knows where it stands; if so it is held.
    pub(super) fn hold(&mut self, myself: &ActorRef<Wake>, command: Command) -> Option<Command> {
        match &mut self.role {
            Role::Owner(owning) if !owning.leaving => Some(command),
            Role::Owner(_) => match command {
                Command::Emit { .. } | Command::Finish { .. } | Command::Reassign { .. } => {
                    self.held_or_refused(command);
                    None
                }
                other => Some(other),
            },
            Role::Follower(following) => match command {
                Command::Attach { .. } | Command::Read { .. } => {
                    if following.is_settled() && following.wants_chunks {
                        return Some(command);
                    }
                    self.held.push(command);
                    if !std::mem::replace(&mut following.wants_chunks, true) {
                        self.settle(myself);
                    }
                    None
                }
                // It may become mine to answer.
                Command::Peer { what: What::Follow { .. } | What::Request { .. }, .. }
                    if following.phase == Phase::Claiming =>
                {
                    self.held_or_refused(command);
                    None
                }
                other => Some(other),
            },
        }
    }

    fn held_or_refused(&mut self, command: Command) {
        if self.held.len() < INBOX_COMMANDS_MAX {
            self.held.push(command);
        } else {
            command.refuse(&ErrorCode::Overloaded.into());
        }
    }

    /// A message of the owner, or of a node that takes this one for the owner.
    pub(super) fn hear_owner(&mut self, myself: &ActorRef<Wake>, (node, follow): (NodeKey, u64), what: What) {
        let now_ms = self.registry.environment.monotonic_ms();
        let Role::Follower(following) = &mut self.role else { return };
        match what {
            What::Release => {
                let _gone = self.tell(node, follow, What::Released);
                return;
            }
            What::Follow { .. } | What::Request { .. } => {
                let _gone = self.tell(node, follow, What::NotOwner);
                return;
            }
            What::Unfollow | What::Released => return,
            What::Following { .. }
            | What::Chunks { .. }
            | What::Changed
            | What::NotOwner
            | What::Answers(_) => {
                if following.follow != follow || following.owner() != Some(&node) {
                    return;
                }
            }
        }
        match what {
            What::Following { epoch, first_seq, from, updated_at } => {
                if epoch < self.epoch && epoch != 0 {
                    // It does not know yet that it was fenced off; it has been told.
                    self.look_again(myself, now_ms);
                    return;
                }
                following.enter(Phase::Settled(node), now_ms);
                let wants_chunks = following.wants_chunks;
                self.epoch = self.epoch.max(epoch);
                self.stored_from = first_seq;
                if wants_chunks {
                    // What lies between is in the store.
                    self.log.skip_to(from);
                    self.shown_seq = self.log.last_seq();
                    self.advance_all();
                }
                if updated_at != self.task.updated_at {
                    self.registry.clone().read_task(self.handle.clone());
                }
                self.run_held_again = true;
                self.send_requests(true);
            }
            What::Chunks { chunks } => self.take_chunks(myself, chunks),
            What::Changed => self.registry.clone().read_task(self.handle.clone()),
            What::NotOwner => self.look_again(myself, now_ms),
            What::Answers(answers) => self.take_answers(answers),
            _ => {}
        }
    }

    fn take_chunks(&mut self, myself: &ActorRef<Wake>, chunks: Vec<WireChunk>) {
        let mut fresh = Vec::with_capacity(chunks.len());
        for chunk in chunks.into_iter().map(Chunk::from) {
            if chunk.seq <= self.log.last_seq() {
                continue;
            }
            if !self.log.append_given(chunk.clone()) {
                tracing::error!(task = %self.task.id, seq = chunk.seq, "a gap in what the owner of a stream sent");
                self.settle(myself);
                break;
            }
            fresh.push(chunk);
        }
        if !fresh.is_empty() {
            if let Ok(status) = self.task.status.after(TaskAction::Emit) {
                self.task.status = status;
            }
            self.show_chunks(&fresh);
        }
        self.count_bytes();
    }

    /// The store has the task's record, final, and its last chunks: all that the owner could still say.
    pub(super) fn end_read(&mut self, head: StreamHead) {
        self.stored_from = head.first_seq;
        self.go_on_from_store(head.last_seq, head.newest);
        self.task_read(Ok(head.task));
        self.count_bytes();
    }

    /// The store has the task's record as it is now.
    pub(super) fn task_read(&mut self, read: Result<Task, StoreError>) {
        match read {
            Ok(task) if task.updated_at >= self.task.updated_at => {
                let changed = task.parties() != self.task.parties();
                self.task = task;
                self.ending = Ending::of(&self.task);
                if changed {
                    self.parties_changed();
                }
                self.advance_all();
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, task = %self.task.id, "cannot read what became of a task");
                self.registry.clone().read_task(self.handle.clone());
            }
        }
    }

    /// Lets the owner know that nobody follows here any more.
    pub(super) fn unfollow(&self) {
        if let Role::Follower(following) = &self.role
            && let Some(owner) = following.owner()
        {
            let _gone = self.tell(owner.clone(), following.follow, What::Unfollow);
        }
    }

    /// Makes sure that the owner still knows of this node, in case it has forgotten it and this node did not hear why.
    pub(super) fn remind_owner(&mut self, myself: &ActorRef<Wake>) {
        let Role::Follower(following) = &self.role else { return };
        match &following.phase {
            Phase::Settled(owner) => {
                let _gone = self.ask_to_follow(owner.clone(), following.follow, following.wants_chunks);
            }
            _ => self.wake_in(myself, LOOK_AGAIN_MS),
        }
    }

    /// Wants no more chunks when nobody reads here.
    pub(super) fn mind_readers(&mut self, myself: &ActorRef<Wake>) {
        let wants = self.wants_chunks();
        if let Role::Follower(following) = &mut self.role
            && following.wants_chunks
            && !wants
        {
            following.wants_chunks = false;
            self.settle(myself);
        }
    }
}
