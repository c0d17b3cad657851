//! What a node tells of its own entries.

use std::collections::VecDeque;
use std::sync::Arc;

use super::state::{Change, EntryId, State};
use super::wire::{Writer, bytes_max_of};
use super::{Bounds, Message, Rest};
use crate::presence::Meta;

/// Seconds for which a state is kept for peers that ask for it piece by piece, after the last did.
const FROZEN_SECONDS: u32 = 5;

/// The own entries, and what was told of them.
#[derive(Debug)]
pub(super) struct Own {
    state: State,
    recording: bool,
    /// The newest changes, oldest first; the last led to the state's version.
    history: VecDeque<Logged>,
    /// Bytes of all changes ever logged.
    logged_bytes: u64,
    /// The version that was told to all.
    told: u64,
    frozen: Option<Frozen>,
}

#[derive(Debug)]
struct Logged {
    change: Change,
    /// Bytes of all changes before this one.
    bytes_before: u64,
}

/// A state that peers get piece by piece, while the own one goes on.
#[derive(Debug)]
struct Frozen {
    version: u64,
    hash: u64,
    entries: Vec<(EntryId, Arc<Meta>)>,
    /// Seconds since it was last asked for.
    unused: u32,
}

impl Own {
    pub fn new(incarnation: u64) -> Self {
        Self {
            state: State::new(incarnation),
            recording: false,
            history: VecDeque::new(),
            logged_bytes: 0,
            told: 0,
            frozen: None,
        }
    }

    pub fn is_recording(&self) -> bool {
        self.recording
    }

    pub fn begin(&mut self) {
        self.recording = true;
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn version(&self) -> u64 {
        self.state.version()
    }

    pub fn has_news(&self) -> bool {
        self.told < self.version()
    }

    /// Adds an entry, or changes it. One that is too large to be told is taken away, for what others knew of it is not true
    /// any more; then `false`.
    pub fn put(&mut self, id: EntryId, meta: Arc<Meta>, bounds: &Bounds) -> bool {
        let bytes = bytes_max_of(&id, &meta);
        if bytes > bounds.piece_bytes_max {
            self.remove(id, bounds);
            return false;
        }
        self.log(Change { id, meta: Some(meta) }, bytes, bounds);
        true
    }

    /// Removes an entry; one that is not there, because it was too large, is no news.
    pub fn remove(&mut self, id: EntryId, bounds: &Bounds) {
        /// A change that removes an entry, beside its names.
        const REMOVAL_BYTES: usize = 32;
        if self.state.get(&id).is_some() {
            let bytes = REMOVAL_BYTES + id.key.len() + id.topic.len();
            self.log(Change { id, meta: None }, bytes, bounds);
        }
    }

    fn log(&mut self, change: Change, bytes: usize, bounds: &Bounds) {
        self.history.push_back(Logged { change: change.clone(), bytes_before: self.logged_bytes });
        self.logged_bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        self.state.apply(change);
        while self.history_bytes() > u64::try_from(bounds.history_bytes_max).unwrap_or(u64::MAX) {
            self.history.pop_front();
        }
    }

    fn history_bytes(&self) -> u64 {
        self.history.front().map_or(0, |oldest| self.logged_bytes - oldest.bytes_before)
    }

    /// The version that the history leads on from.
    fn history_from(&self) -> u64 {
        self.version() - u64::try_from(self.history.len()).unwrap_or(u64::MAX)
    }

    fn logged_after(&self, version: u64) -> impl Iterator<Item = &Logged> {
        let known = usize::try_from(version - self.history_from()).unwrap_or(usize::MAX);
        self.history.iter().skip(known)
    }

    /// What has changed since this was last called. Where the history does not reach back so far, peers miss something,
    /// and ask.
    pub fn news(&mut self, bounds: &Bounds, wanted: bool) -> Vec<Message> {
        let from = self.told.max(self.history_from());
        self.told = self.version();
        if wanted { self.runs(from, bounds, usize::MAX) } else { Vec::new() }
    }

    pub fn digest(&self) -> Message {
        Message::Digest { version: self.state.version(), hash: self.state.hash() }
    }

    /// Answers who has a version and wants what followed.
    pub fn changes_after(&mut self, after: u64, bounds: &Bounds) -> Vec<Message> {
        if after >= self.version() {
            return vec![self.digest()];
        }
        let is_less = |first: &Logged| {
            let bytes = self.logged_bytes - first.bytes_before;
            bytes <= u64::try_from(self.state.bytes().max(bounds.piece_bytes_max)).unwrap_or(u64::MAX)
        };
        if after >= self.history_from() && self.logged_after(after).next().is_some_and(is_less) {
            return self.runs(after, bounds, bounds.answer_pieces_max);
        }
        self.whole(after + 1, 0, bounds)
    }

    /// The changes after a version, as so many runs at most.
    fn runs(&self, mut from: u64, bounds: &Bounds, runs_max: usize) -> Vec<Message> {
        let mut runs = Vec::new();
        let mut writer = Writer::default();
        let mut logged = self.logged_after(from).peekable();
        while logged.peek().is_some() && runs.len() < runs_max {
            while logged
                .next_if(|next| writer.add(&next.change.id, next.change.meta.as_ref(), bounds))
                .is_some()
            {}
            let (count, run) = writer.end();
            if count == 0 {
                break;
            }
            let rest = Rest::of(logged.peek().is_some(), runs.len() + 1 == runs_max);
            runs.push(Message::Changes { from, count, rest, run });
            from += count;
        }
        runs
    }

    /// Pieces of all entries at a version or a later one; if they are of that version, from one entry on.
    pub fn whole(&mut self, version: u64, at: u64, bounds: &Bounds) -> Vec<Message> {
        let history_from = self.history_from();
        let frozen = match self.frozen.take() {
            Some(kept) if kept.version == version => kept,
            // Others are at it: a later one is of use if the history leads on from it.
            Some(kept) if kept.unused == 0 && kept.version >= history_from.max(version) => kept,
            _ => Frozen {
                version: self.version(),
                hash: self.state.hash(),
                entries: self.state.iter().map(|(id, meta)| (id.clone(), meta.clone())).collect(),
                unused: 0,
            },
        };
        let at = if frozen.version == version { at } else { 0 };
        let pieces = frozen.pieces(usize::try_from(at).unwrap_or(usize::MAX), bounds);
        // Whoever comes after the last piece is to get what is then; who is in the middle goes on if nothing has changed.
        let is_done = matches!(pieces.last(), None | Some(Message::Piece { rest: Rest::Nothing, .. }));
        self.frozen = (!is_done).then_some(Frozen { unused: 0, ..frozen });
        pieces
    }

    /// A second has passed.
    pub fn thaw(&mut self) {
        if let Some(frozen) = &mut self.frozen {
            frozen.unused += 1;
            if frozen.unused > FROZEN_SECONDS {
                self.frozen = None;
            }
        }
    }
}

impl Frozen {
    fn pieces(&self, mut at: usize, bounds: &Bounds) -> Vec<Message> {
        let mut pieces = Vec::new();
        let mut writer = Writer::default();
        let mut is_last = at > self.entries.len();
        while !is_last && pieces.len() < bounds.answer_pieces_max {
            let taken = |(id, meta): &&(EntryId, Arc<Meta>)| writer.add(id, Some(meta), bounds);
            let taken = self.entries[at..].iter().take_while(taken).count();
            let (count, run) = writer.end();
            is_last = at + taken == self.entries.len();
            if taken == 0 && !is_last {
                break;
            }
            pieces.push(Message::Piece {
                version: self.version,
                hash: self.hash,
                at: u64::try_from(at).unwrap_or(u64::MAX),
                count,
                rest: Rest::of(!is_last, pieces.len() + 1 == bounds.answer_pieces_max),
                run,
            });
            at += taken;
        }
        pieces
    }
}
