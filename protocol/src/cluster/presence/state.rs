//! Entries at a version, and how two such states merge.

use std::collections::BTreeMap;
use std::sync::Arc;

use smol_str::SmolStr;

use crate::cluster::hash::hash;
use crate::presence::{Meta, TrackId, track_number};

/// Bytes an entry takes beside its texts, about: its places in the maps, its meta, their counts.
const ENTRY_BYTES: usize = 256;

/// Names an entry of a node. In this order what one connection shows on several topics stands together, which is mostly
/// the same, and told once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId {
    /// Key.
    pub key: SmolStr,
    /// Which meta of the key.
    pub track: TrackId,
    /// Topic.
    pub topic: SmolStr,
}

impl EntryId {
    /// Of these.
    #[must_use]
    pub fn new(topic: &SmolStr, key: &SmolStr, track: TrackId) -> Self {
        Self { key: key.clone(), track, topic: topic.clone() }
    }
}

/// An entry that is new, that has changed, or (without a meta) that is gone.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Which.
    pub id: EntryId,
    /// What it is now.
    pub meta: Option<Arc<Meta>>,
}

/// All entries of one node at one version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    incarnation: u64,
    version: u64,
    entries: BTreeMap<EntryId, Arc<Meta>>,
    hash: u64,
    bytes: usize,
}

impl State {
    /// Of a node that has had none yet.
    #[must_use]
    pub fn new(incarnation: u64) -> Self {
        Self { incarnation, ..Self::default() }
    }

    /// Changes so far.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// A hash of which entries there are, and in which version each (by its `phx_ref`): the same at every node.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Bytes of the entries, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = (&EntryId, &Arc<Meta>)> {
        self.entries.iter()
    }

    /// An entry.
    #[must_use]
    pub fn get(&self, id: &EntryId) -> Option<&Arc<Meta>> {
        self.entries.get(id)
    }

    /// Takes over a change, which raises the version.
    pub fn apply(&mut self, change: Change) {
        self.version += 1;
        match change.meta {
            Some(meta) => self.put(change.id, meta),
            None => self.remove(&change.id),
        }
    }

    /// A later state replaces this one: of a higher incarnation, or of the same at a higher version. Gives what has
    /// changed. Merging is commutative, associative and idempotent, because there is one writer: two states of one
    /// incarnation and version are the same.
    pub fn merge(&mut self, other: Self) -> Vec<Change> {
        if (other.incarnation, other.version) <= (self.incarnation, self.version) {
            return Vec::new();
        }
        self.replace(other)
    }

    /// Becomes another state, and gives what has changed.
    pub(super) fn replace(&mut self, other: Self) -> Vec<Change> {
        let gone = self.entries.keys().filter(|id| !other.entries.contains_key(*id));
        let gone = gone.map(|id| Change { id: id.clone(), meta: None });
        let is_news = |(id, meta): &(&EntryId, &Arc<Meta>)| {
            self.entries.get(*id).is_none_or(|known| known.phx_ref != meta.phx_ref)
        };
        let news = other.entries.iter().filter(is_news);
        let news = news.map(|(id, meta)| Change { id: id.clone(), meta: Some(meta.clone()) });
        let changes = gone.chain(news).collect();
        *self = other;
        changes
    }

    /// Notes a change that was not taken.
    pub(super) fn skip(&mut self) {
        self.version += 1;
    }

    /// Names the version that entries put together are of.
    pub(super) fn set_version(&mut self, version: u64) {
        self.version = version;
    }

    /// Adds an entry, or changes it.
    pub(super) fn put(&mut self, id: EntryId, meta: Arc<Meta>) {
        self.remove(&id);
        self.hash = self.hash.wrapping_add(entry_hash(&id, &meta));
        self.bytes += entry_bytes(&id, &meta);
        self.entries.insert(id, meta);
    }

    /// Removes an entry, if it is there.
    pub(super) fn remove(&mut self, id: &EntryId) {
        if let Some(meta) = self.entries.remove(id) {
            self.hash = self.hash.wrapping_sub(entry_hash(id, &meta));
            self.bytes -= entry_bytes(id, &meta);
        }
    }
}

/// Bytes an entry takes, about.
pub(super) fn entry_bytes(id: &EntryId, meta: &Meta) -> usize {
    let capabilities: usize =
        meta.facts.capabilities.iter().map(|text| text.len() + size_of::<String>()).sum();
    ENTRY_BYTES + id.topic.len() + id.key.len() + meta.fields.as_bytes().len() + capabilities
}

fn entry_hash(id: &EntryId, meta: &Meta) -> u64 {
    const END: u8 = 0xff;
    let track = track_number(id.track).to_be_bytes();
    let texts = [&id.topic, &id.key, &meta.phx_ref];
    hash(texts.into_iter().flat_map(|text| text.bytes().chain([END])).chain(track))
}
