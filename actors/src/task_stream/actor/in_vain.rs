//! Chunks that readers have seen though they were lost before they were durable, because their owner was: another owner
//! gives their seqs anew, mostly to the same chunks, which their producers send again.

use std::hash::{DefaultHasher, Hash, Hasher};

use muster_protocol::task_stream::Chunk;
use smol_str::SmolStr;

use super::State;

/// What was seen of such a chunk.
pub(super) struct Seen {
    key: Option<SmolStr>,
    body: u64,
}

impl Seen {
    fn of(chunk: &Chunk) -> Self {
        let mut hasher = DefaultHasher::new();
        chunk.body.as_bytes().hash(&mut hasher);
        Self { key: chunk.idempotency_key.clone(), body: hasher.finish() }
    }

    /// Whether a reader that saw this needs not be told of the chunk. Sent again it has another time, but the same key.
    fn is(&self, chunk: &Chunk) -> bool {
        let now = Self::of(chunk);
        self.body == now.body || self.key.is_some() && self.key == now.key
    }
}

impl State {
    /// The owner sends what comes after a seq, under an epoch: what this node has beyond it may be another's.
    pub(super) fn go_on_from(&mut self, from: u64, epoch: u64, durable_seq: u64) {
        let dropped = self.log.truncate(from);
        self.told_in_vain(dropped);
        self.log.skip_to(from);
        self.tail_epoch = epoch;
        self.log.confirm(durable_seq);
        self.pass_over_vain();
        self.count_bytes();
    }

    /// This node owns the stream now, and the store has these chunks, the newest ones. What it does not know to have been
    /// durable may have been another owner's, that came and went meanwhile.
    pub(super) fn take_over(&mut self, last_seq: u64, newest: Vec<Chunk>) {
        let dropped = self.log.truncate(last_seq.min(self.log.durable_seq()));
        self.told_in_vain(dropped);
        let first = newest.first().map_or(last_seq + 1, |chunk| chunk.seq);
        self.log.skip_to((first - 1).max(self.log.last_seq()));
        self.pass_over_vain();
        for chunk in newest {
            if chunk.seq > self.log.last_seq() {
                self.check_vain(&chunk);
                self.log.append_given(chunk);
            }
        }
        self.tail_epoch = self.epoch;
        self.log.confirm(last_seq);
    }

    /// Remembers chunks that readers have seen and this node lets go of, so that they are not told twice. No more than
    /// memory had.
    pub(super) fn told_in_vain(&mut self, dropped: Vec<Chunk>) {
        for chunk in dropped {
            self.vain.insert(chunk.seq, Seen::of(&chunk));
        }
    }

    /// A chunk has come to stand where readers have seen one that was lost: if it is another, they are sent it too.
    pub(super) fn check_vain(&mut self, chunk: &Chunk) {
        let Some(seen) = self.vain.remove(&chunk.seq) else { return };
        if !seen.is(chunk) {
            self.replace(chunk.seq);
        }
    }

    /// What stands where chunks were lost is only in the store, so it is not known whether it is the same: readers are
    /// sent all of it.
    fn pass_over_vain(&mut self) {
        let later = self.vain.split_off(&(self.log.last_seq() + 1));
        let passed = std::mem::replace(&mut self.vain, later);
        if let Some((first, _)) = passed.first_key_value() {
            self.replace(*first);
            self.advance_all();
            self.tell_tail();
        }
    }

    fn replace(&mut self, seq: u64) {
        self.registry.metrics.chunks_replaced.inc();
        let is_told = self.handle.tail.borrow().replaced.times == self.replaced.times;
        self.replaced.note(seq, is_told);
        if self.handle.tail.receiver_count() == 0 {
            // Who comes later has seen nothing of it.
            self.handle.tail.send_modify(|tail| tail.replaced = self.replaced);
        }
        for reader in self.readers.iter_mut() {
            reader.cursor = reader.cursor.min(seq - 1);
        }
    }
}
