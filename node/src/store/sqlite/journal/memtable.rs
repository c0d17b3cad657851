//! The chunks that are in the journal but not in the table yet, by task, as the last commit left them.
//!
//! The writer alone changes it, and only after a commit; readers look into it first and take their snapshot of the table
//! afterwards. So what they miss here because it was moved is in their snapshot, and what is in both has the same seq.

use std::collections::{BTreeMap, HashMap, VecDeque};

use muster_protocol::ids::TaskId;
use muster_protocol::task_stream::Chunk;
use smol_str::SmolStr;

use crate::store::head::Head;

/// The end of a task's log, of which the beginning is in the table.
#[derive(Debug)]
pub struct Tail {
    head: Head,
    /// Without a gap, up to the head.
    chunks: VecDeque<Chunk>,
    keys: HashMap<SmolStr, u64>,
    bytes: usize,
}

impl Tail {
    /// Behind a head.
    #[must_use]
    pub fn behind(head: Head) -> Self {
        Self { head, chunks: VecDeque::new(), keys: HashMap::new(), bytes: 0 }
    }

    /// Where it ends.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// Its chunks, oldest first.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter()
    }

    /// Its chunks, oldest first, for good.
    pub fn into_chunks(self) -> impl Iterator<Item = Chunk> {
        self.chunks.into_iter()
    }

    /// Seq of the chunk of that key.
    #[must_use]
    pub fn seq_of_key(&self, key: &str) -> Option<u64> {
        self.keys.get(key).copied()
    }

    /// Adds chunks that the head admits.
    pub fn extend(&mut self, epoch: u64, chunks: impl IntoIterator<Item = Chunk>) {
        self.head.epoch = epoch;
        for chunk in chunks {
            debug_assert_eq!(chunk.seq, self.head.last_seq + 1);
            self.head.last_seq = chunk.seq;
            self.bytes += chunk.weight();
            if let Some(key) = &chunk.idempotency_key {
                self.keys.insert(key.clone(), chunk.seq);
            }
            self.chunks.push_back(chunk);
        }
    }

    /// Takes the chunks up to a seq out.
    fn take_upto(&mut self, seq: u64, taken: &mut Vec<Chunk>) {
        while let Some(chunk) = self.chunks.pop_front_if(|chunk| chunk.seq <= seq) {
            self.bytes -= chunk.weight();
            if let Some(key) = &chunk.idempotency_key {
                self.keys.remove(key);
            }
            taken.push(chunk);
        }
    }
}

/// All tails.
#[derive(Debug, Default)]
pub struct Memtable {
    tails: HashMap<TaskId, Tail>,
    bytes: usize,
}

impl Memtable {
    /// Bytes of all chunks, as [`Chunk::weight`] counts them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether every chunk is in the table.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tails.is_empty()
    }

    /// The tail of a task, if it has one.
    #[must_use]
    pub fn tail(&self, task: TaskId) -> Option<&Tail> {
        self.tails.get(&task)
    }

    /// The tasks that have a tail, in no order.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskId> {
        self.tails.keys().copied().collect()
    }

    /// Adds to the tail of a task, or begins it.
    pub fn append(&mut self, task: TaskId, tail: Tail) {
        self.bytes += tail.bytes;
        match self.tails.entry(task) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(tail);
            }
            std::collections::hash_map::Entry::Occupied(mut occupied) => {
                occupied.get_mut().extend(tail.head.epoch, tail.chunks);
            }
        }
    }

    /// Takes the chunks of a task up to a seq out, which the table has; a tail without chunks is forgotten. The caller
    /// drops them where nobody waits.
    pub fn take_upto(&mut self, task: TaskId, seq: u64, taken: &mut Vec<Chunk>) {
        let Some(tail) = self.tails.get_mut(&task) else { return };
        let before = tail.bytes;
        tail.take_upto(seq, taken);
        self.bytes -= before - tail.bytes;
        if tail.chunks.is_empty() {
            self.tails.remove(&task);
        }
    }

    /// Seq of the last chunk of a task, and at most `chunks_max` of the newest that are here, oldest first.
    #[must_use]
    pub fn newest(&self, task: TaskId, chunks_max: usize) -> Option<(u64, Vec<Chunk>)> {
        let tail = self.tails.get(&task)?;
        let skipped = tail.chunks.len().saturating_sub(chunks_max);
        Some((tail.head.last_seq, tail.chunks.range(skipped..).cloned().collect()))
    }

    /// Chunks with `after < seq <= upto`, at most about `bytes_max` of them but at least one if there is one.
    #[must_use]
    pub fn read(&self, task: TaskId, (after, upto): (u64, u64), bytes_max: usize) -> Vec<Chunk> {
        let Some(chunks) = self.tails.get(&task).map(|tail| &tail.chunks) else { return Vec::new() };
        let begin = chunks.partition_point(|chunk| chunk.seq <= after);
        let mut found = Vec::new();
        extend_within(&mut found, chunks.range(begin..).take_while(|chunk| chunk.seq <= upto), bytes_max);
        found
    }
}

/// What a reader gets: what the table has before the `fresh` chunks, then these, at most about `bytes_max` of all but at
/// least one if there is one.
#[must_use]
pub fn joined(mut stored: Vec<Chunk>, fresh: &[Chunk], bytes_max: usize) -> Vec<Chunk> {
    let (last, next) = (stored.last().map(|chunk| chunk.seq), fresh.first().map(|chunk| chunk.seq));
    // Else the bytes were enough before the fresh ones.
    if last.is_none_or(|last| next == Some(last + 1)) {
        extend_within(&mut stored, fresh.iter(), bytes_max);
    }
    stored
}

/// The newest of what the table has and the `fresh` chunks, as many as fit, oldest first. What was moved meanwhile is in
/// both, and the table may be further by now.
#[must_use]
pub fn newest(stored: Vec<Chunk>, fresh: Vec<Chunk>, chunks_max: usize, bytes_max: usize) -> Vec<Chunk> {
    let all: BTreeMap<u64, Chunk> = stored.into_iter().chain(fresh).map(|chunk| (chunk.seq, chunk)).collect();
    let mut found: Vec<Chunk> = Vec::new();
    let mut bytes = 0;
    for chunk in all.into_values().rev().take(chunks_max) {
        bytes += chunk.weight();
        if bytes > bytes_max || found.last().is_some_and(|next| chunk.seq + 1 != next.seq) {
            break;
        }
        found.push(chunk);
    }
    found.reverse();
    found
}

fn extend_within<'a>(found: &mut Vec<Chunk>, more: impl Iterator<Item = &'a Chunk>, bytes_max: usize) {
    let mut bytes: usize = found.iter().map(Chunk::weight).sum();
    for chunk in more {
        bytes += chunk.weight();
        if bytes > bytes_max && !found.is_empty() {
            break;
        }
        found.push(chunk.clone());
    }
}
