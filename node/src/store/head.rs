//! Where the log of a task ends, as both stores look at it before they append.

use muster_actors::store::Append;

/// Where a task's log ends, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Of the last claim or, where it is newer, of the last writer.
    pub epoch: u64,
    /// Seq of the last chunk.
    pub last_seq: u64,
    /// Whether the task has ended.
    pub closed: bool,
}

impl Head {
    /// Whether these chunks go behind it: without a gap, before the end. Whose they must be is the store's to say: what is
    /// shared takes only the epoch of the last claim, what has one writer any that is not older.
    #[must_use]
    pub fn admits(&self, append: &Append) -> bool {
        let expected = self.last_seq + 1..;
        !self.closed && append.chunks.iter().zip(expected).all(|(chunk, seq)| chunk.seq == seq)
    }
}
