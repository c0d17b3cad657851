//! When this node comes to own a stream: it goes on from what the store has, with what its clients wait for.

use std::sync::atomic::Ordering;

use muster_protocol::task::Ending;
use muster_protocol::task_stream::Chunk;
use ractor::ActorRef;

use super::forwarding::Waiting;
use super::owning::Owning;
use super::{Role, State};
use crate::inbox::Wake;
use crate::store::{StoreError, StreamHead};

impl State {
    /// This node owns the stream now, or could not claim it.
    pub(super) fn claimed(
        &mut self,
        myself: &ActorRef<Wake>,
        follow: u64,
        result: Result<StreamHead, StoreError>,
    ) {
        let now_ms = self.registry.environment.monotonic_ms();
        let Role::Follower(following) = &mut self.role else { return };
        if following.follow != follow {
            return;
        }
        let head = match result {
            Ok(head) => head,
            Err(error) => {
                tracing::warn!(%error, task = %self.task.id, "cannot claim a stream");
                self.look_again(myself, now_ms);
                return;
            }
        };
        let requests = std::mem::take(&mut following.requests);
        self.role = Role::Owner(Owning::default());
        self.epoch = head.epoch;
        self.handle.is_held.store(head.epoch != 0, Ordering::Relaxed);
        self.task = head.task;
        self.ending = Ending::of(&self.task);
        self.stored_from = head.first_seq;
        self.go_on_from_store(head.last_seq, head.newest);
        self.parties_changed();
        self.advance_all();
        self.count_bytes();
        let waiting = requests.into_iter().filter_map(Waiting::into_command);
        self.held.splice(0..0, waiting);
        self.run_held_again = true;
        // The nodes that are up may have changed meanwhile.
        self.examine(myself);
    }

    /// The store has chunks up to this seq, and these are the newest. What memory has of them is the same.
    pub(super) fn go_on_from_store(&mut self, last_seq: u64, newest: Vec<Chunk>) {
        let first = newest.first().map_or(last_seq + 1, |chunk| chunk.seq);
        self.log.skip_to(first - 1);
        for chunk in newest {
            // But for those that it has.
            self.log.append_given(chunk);
        }
        self.shown_seq = self.log.last_seq();
    }
}
