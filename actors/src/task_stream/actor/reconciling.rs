//! When a stream comes to have another owner: what the log of this node has and the new owner's has not, and the other way
//! round.

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
    /// The owner has something else than this node after a seq: what lies between is in the store, or was never durable.
    pub(super) fn go_on_from(&mut self, from: u64, durable_seq: u64) {
        let dropped = self.log.truncate(from);
        self.told_in_vain(dropped);
        self.log.skip_to(from);
        self.log.confirm(durable_seq);
        self.count_bytes();
    }

    /// Remembers chunks that readers have seen though they were lost before they were durable: their producers send them
    /// again, and readers are not told twice.
    pub(super) fn told_in_vain(&mut self, dropped: Vec<Chunk>) {
        for chunk in dropped {
            self.vain.insert(chunk.seq, chunk.idempotency_key);
        }
    }

    /// A chunk has come to stand where readers have seen one that was lost: if it is another, they are sent it too.
    pub(super) fn check_vain(&mut self, chunk: &Chunk) {
        let Some(seen) = self.vain.remove(&chunk.seq) else { return };
        if seen.is_some() && seen == chunk.idempotency_key {
            return;
        }
        self.registry.metrics.chunks_replaced.inc();
        for reader in self.readers.iter_mut() {
            reader.cursor = reader.cursor.min(chunk.seq - 1);
        }
    }

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
        let dropped = self.log.truncate(head.last_seq);
        self.told_in_vain(dropped);
        let first = head.newest.first().map_or(head.last_seq + 1, |chunk| chunk.seq);
        self.log.skip_to((first - 1).max(self.log.last_seq()));
        for chunk in head.newest {
            if chunk.seq > self.log.last_seq() {
                self.check_vain(&chunk);
                self.log.append_given(chunk);
            }
        }
        self.log.confirm(head.last_seq);
        self.parties_changed();
        self.advance_all();
        self.tell_tail();
        self.count_bytes();
        let waiting = requests.into_iter().filter_map(Waiting::into_command);
        self.held.splice(0..0, waiting);
        self.run_held_again = true;
        // The nodes that are up may have changed meanwhile.
        self.examine(myself);
    }
}
