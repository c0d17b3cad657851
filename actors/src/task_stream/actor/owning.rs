//! What a stream does for the nodes that follow it while this node owns it, and how it lets go.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use muster_protocol::cluster::NodeKey;
use muster_protocol::cluster::stream::{Answer, Request, What, WireChunk, WireRefusal};
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::task::{Ending, Task};
use muster_protocol::task_stream::{Chunk, Read};
use ractor::ActorRef;

use super::following::Following;
use super::{Role, State};
use crate::inbox::Wake;
use crate::store::StoreError;
use crate::task_stream::ack::{Ack, Peer};
use crate::task_stream::command::Command;

/// What an owner knows of the others.
#[derive(Default)]
pub(super) struct Owning {
    /// The nodes that follow: one attempt of each.
    followers: BTreeMap<NodeKey, Follower>,
    /// Whether the stream goes to another node, as soon as the store has what was given to it.
    pub leaving: bool,
    /// Nodes that want it, and wait to be told that it is free, each with its own number.
    awaiting_release: Vec<(NodeKey, u64)>,
}

struct Follower {
    follow: u64,
    chunks: bool,
}

/// Bytes of chunks in one message to a node that catches up, about.
const CATCH_UP_BYTES: usize = 48 * 1024;

impl Owning {
    /// Whether a node follows, by this attempt.
    fn has(&self, node: &NodeKey, follow: u64) -> bool {
        self.followers.get(node).is_some_and(|known| known.follow == follow)
    }

    /// Whether somebody follows.
    pub fn is_followed(&self) -> bool {
        !self.followers.is_empty()
    }

    /// A node is gone, or may have missed something: it follows again if it lives.
    pub fn forget(&mut self, node: &NodeKey) {
        self.followers.remove(node);
        self.awaiting_release.retain(|(waiting, _)| waiting != node);
    }
}

impl State {
    /// A message of a node to the owner.
    pub(super) async fn obey_peer(
        &mut self,
        myself: &ActorRef<Wake>,
        (node, follow): (NodeKey, u64),
        what: What,
    ) {
        let Role::Owner(owning) = &mut self.role else {
            self.hear_owner(myself, (node, follow), what);
            return;
        };
        match what {
            What::Release => {
                owning.awaiting_release.push((node.clone(), follow));
                self.favoured = Some((node, self.active_at_ms));
                self.leave(myself);
            }
            What::Unfollow => {
                if owning.has(&node, follow) {
                    owning.followers.remove(&node);
                }
            }
            What::Follow { epoch, .. } if epoch > self.epoch && self.ending.is_none() => {
                // It has heard of a later owner: what is known here is old.
                self.tell(node, follow, What::NotOwner);
                self.lose(myself);
            }
            What::Follow { .. } | What::Request { .. } if owning.leaving => {
                self.tell(node, follow, What::NotOwner);
            }
            // A reminder.
            What::Follow { chunks, .. }
                if owning
                    .followers
                    .get(&node)
                    .is_some_and(|known| known.follow == follow && known.chunks == chunks) => {}
            What::Follow { after, chunks, .. } => {
                owning.followers.insert(node.clone(), Follower { follow, chunks });
                self.show_where_it_stands((node, follow), after, chunks);
            }
            What::Request { number, again, request } => {
                if owning.has(&node, follow) {
                    let peer = self.peer(node, follow);
                    self.do_request(myself, (peer, number), again, request).await;
                } else {
                    self.tell(node, follow, What::NotOwner);
                }
            }
            // Late words of a former owner.
            What::Following { .. }
            | What::Chunks { .. }
            | What::Changed
            | What::NotOwner
            | What::Answers(_)
            | What::Released => {}
        }
    }

    /// Whether a request of a node may be taken as one of this node's own chunks.
    pub(super) fn is_follower(&self, node: &NodeKey, follow: u64) -> bool {
        match &self.role {
            Role::Owner(owning) => !owning.leaving && owning.has(node, follow),
            Role::Follower(_) => false,
        }
    }

    pub(super) fn peer(&self, node: NodeKey, follow: u64) -> Peer {
        self.registry.peer(node, self.task.id, follow)
    }

    pub(super) fn tell(&self, node: NodeKey, follow: u64, what: What) -> bool {
        self.peer(node, follow).tell(what)
    }

    fn show_where_it_stands(&self, (node, follow): (NodeKey, u64), after: u64, chunks: bool) {
        let peer = self.peer(node, follow);
        let last_seq = self.shown_seq;
        let mut from = after.max(self.log.first_in_memory() - 1).min(last_seq);
        let (epoch, first_seq, updated_at) = (self.epoch, self.stored_from, self.task.updated_at);
        peer.tell(What::Following { epoch, first_seq, from, updated_at });
        if !chunks {
            return;
        }
        while let Read::Chunks(part) = self.log.read(from, last_seq, CATCH_UP_BYTES) {
            let chunks: Vec<WireChunk> = part.into_iter().cloned().map(WireChunk::from).collect();
            from = chunks.last().map_or(last_seq, |chunk| chunk.seq);
            if !peer.tell(What::Chunks { chunks }) {
                break;
            }
        }
    }

    /// Sends new chunks to the nodes that want them.
    pub(super) fn tell_followers(&mut self, fresh: &[Chunk]) {
        let Role::Owner(owning) = &self.role else { return };
        for (node, follower) in owning.followers.iter().filter(|(_, follower)| follower.chunks) {
            let chunks = fresh.iter().cloned().map(WireChunk::from).collect();
            // One that is going down follows again.
            let _gone = self.tell(node.clone(), follower.follow, What::Chunks { chunks });
        }
    }

    /// Lets the nodes that follow know that the task's record has changed.
    pub(super) fn tell_changed(&self) {
        let Role::Owner(owning) = &self.role else { return };
        for (node, follower) in &owning.followers {
            let _gone = self.tell(node.clone(), follower.follow, What::Changed);
        }
    }

    /// Does what another node wants done; chunks are taken with this node's own ([`State::as_chunk`]).
    async fn do_request(
        &mut self,
        myself: &ActorRef<Wake>,
        (peer, number): (Peer, u64),
        again: bool,
        request: Request,
    ) {
        let done: Result<Task, Refusal> = match request {
            Request::Emit { .. } => Err(ErrorCode::Internal.into()),
            Request::Finish { status, document, by, provider } => {
                self.finish(myself, (Ending { status, document }, again), (by, provider)).await
            }
            Request::Reassign { provider, by } => self.reassign(myself, (provider, by, again)).await,
        };
        if matches!(self.role, Role::Follower(_)) {
            // Fenced off while it was done: the other node asks the next owner.
            return;
        }
        let answer = match done {
            Ok(_) => Answer::Done,
            Err(refusal) => Answer::Refused(WireRefusal::from(&refusal)),
        };
        peer.tell(What::Answers(vec![(number, answer)]));
    }

    /// A chunk that another node passes on, as if it had been emitted here.
    pub(super) fn as_chunk(&self, command: Command) -> Command {
        match command {
            Command::Peer {
                node,
                follow,
                what: What::Request { number, request: Request::Emit { by, chunk }, .. },
            } if self.is_follower(&node, follow) => {
                let ack = Ack::peer(self.peer(node, follow), number, self.active_at_ms);
                Command::Emit { by, chunk: chunk.into_chunk(), ack }
            }
            other => other,
        }
    }

    /// Another node shall own the stream: once the store has everything, this one lets go.
    pub(super) fn leave(&mut self, myself: &ActorRef<Wake>) {
        if let Role::Owner(owning) = &mut self.role {
            owning.leaving = true;
        }
        self.let_go_when_stored(myself);
    }

    /// Whether another node is to own the stream.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(&self.role, Role::Owner(owning) if owning.leaving)
    }

    /// Lets go if it is to, and nothing is on its way to the store.
    pub(super) fn let_go_when_stored(&mut self, myself: &ActorRef<Wake>) {
        if self.is_leaving() && self.appends_pending == 0 && self.fresh.is_empty() {
            self.follow_another(myself);
        }
    }

    /// Another node has claimed the stream: what the store did not take is not part of it.
    pub(super) fn lose(&mut self, myself: &ActorRef<Wake>) {
        tracing::info!(task = %self.task.id, epoch = self.epoch, "another node owns the stream now");
        let refusal = Refusal::new(ErrorCode::OwnerUnreachable);
        for (_, ack) in self.acks.drain(..) {
            ack.not_owner(&refusal);
        }
        self.fresh.clear();
        self.log.truncate(self.log.durable_seq());
        self.follow_another(myself);
    }

    fn follow_another(&mut self, myself: &ActorRef<Wake>) {
        self.show();
        let following = Following::new(self.wants_chunks(), self.registry.environment.monotonic_ms());
        let Role::Owner(owning) = std::mem::replace(&mut self.role, Role::Follower(following)) else {
            return;
        };
        self.handle.is_held.store(false, Ordering::Relaxed);
        self.registry.metrics.streams_moved.inc();
        for (node, follower) in owning.followers {
            let _gone = self.tell(node, follower.follow, What::NotOwner);
        }
        for (node, number) in owning.awaiting_release {
            let _gone = self.tell(node, number, What::Released);
        }
        self.run_held_again = true;
        self.settle(myself);
    }

    /// The store has refused something under this stream's epoch.
    pub(super) fn fenced(&mut self, myself: &ActorRef<Wake>, error: &StoreError) {
        if self.registry.cluster.is_alone() || *error != StoreError::Fenced {
            self.give_up(myself, error);
        } else {
            self.lose(myself);
        }
    }
}
