//! Presence of one topic as a pure state machine: what is there now, what was last told, and the difference.
//!
//! Changes gather until [`TopicPresence::flush`], which makes one diff of them: an entry that came and went in between
//! is never told. [`TopicPresence::snapshot`] is the state as of the last flush and is encoded once per version, so a
//! newcomer that gets a snapshot and then every later diff is told of each entry exactly once.

use std::collections::BTreeMap;
use std::sync::Arc;

use smol_str::SmolStr;

use crate::json::{self, Json};
use crate::money::Amount;

/// Names one tracked meta within a process: [`track_id`] of which node tracks it and its number there.
pub type TrackId = u64;

/// Bits of a [`TrackId`] that are the number: enough for a million a second over eight years.
const TRACK_NUMBER_BITS: u32 = 48;

/// The id of a meta by its number at the node that tracks it. `origin` is the number by which this process knows that
/// node, 0 for itself: so ids of several nodes do not clash.
#[must_use]
pub const fn track_id(origin: u16, number: u64) -> TrackId {
    ((origin as u64) << TRACK_NUMBER_BITS) | track_number(number)
}

/// The number of a meta at the node that tracks it.
#[must_use]
pub const fn track_number(id: TrackId) -> u64 {
    id & ((1 << TRACK_NUMBER_BITS) - 1)
}

/// What a view of part of a topic goes by, beside the key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// What it can do.
    pub capabilities: Vec<String>,
    /// 0 to 5.
    pub reputation: f64,
    /// What it asks.
    pub base_price: Amount,
}

/// One tracked meta of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    /// Who tracks it.
    pub id: TrackId,
    /// Names this version of the meta to clients; a new one with each update.
    pub phx_ref: SmolStr,
    /// The reference before the last update.
    pub phx_ref_prev: Option<SmolStr>,
    /// The fields, as a JSON object without the two references.
    pub fields: Json,
    /// The same, for views.
    pub facts: Arc<Facts>,
}

impl Meta {
    fn write(&self, out: &mut Vec<u8>) {
        let fields = self.fields.as_bytes();
        // The object without its closing brace.
        out.extend_from_slice(&fields[..fields.len() - 1]);
        if fields.len() > 2 {
            out.push(b',');
        }
        out.extend_from_slice(b"\"phx_ref\":");
        json::write_string(out, &self.phx_ref);
        if let Some(previous) = &self.phx_ref_prev {
            out.extend_from_slice(b",\"phx_ref_prev\":");
            json::write_string(out, previous);
        }
        out.push(b'}');
    }
}

/// What changed on a topic between two flushes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Diff {
    /// Metas that are new, by key.
    pub joins: Vec<(SmolStr, Vec<Arc<Meta>>)>,
    /// Metas that are gone, by key, as they were last told.
    pub leaves: Vec<(SmolStr, Vec<Arc<Meta>>)>,
}

impl Diff {
    /// The payload of `presence_diff`, for metas that `sees` lets through; `None` when nothing is left of it. A meta that
    /// comes into a view by a change is a join there, one that falls out of it a leave.
    #[must_use]
    pub fn payload(&self, sees: impl Fn(&str, &Meta) -> bool) -> Option<Json> {
        let visible = |side: &[(SmolStr, Vec<Arc<Meta>>)]| {
            side.iter().any(|(key, metas)| metas.iter().any(|meta| sees(key, meta)))
        };
        if !visible(&self.joins) && !visible(&self.leaves) {
            return None;
        }
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(b"{\"joins\":");
        write_entries(&mut out, self.joins.iter().map(|(key, metas)| (key, metas.as_slice())), &sees);
        out.extend_from_slice(b",\"leaves\":");
        write_entries(&mut out, self.leaves.iter().map(|(key, metas)| (key, metas.as_slice())), &sees);
        out.push(b'}');
        Some(Json::from_trusted_bytes(out.into()))
    }
}

fn write_entries<'a>(
    out: &mut Vec<u8>,
    entries: impl Iterator<Item = (&'a SmolStr, &'a [Arc<Meta>])>,
    sees: &impl Fn(&str, &Meta) -> bool,
) {
    out.push(b'{');
    let mut first_key = true;
    for (key, metas) in entries {
        let mut first_meta = true;
        for meta in metas.iter().filter(|meta| sees(key, meta)) {
            if std::mem::take(&mut first_meta) {
                if !std::mem::take(&mut first_key) {
                    out.push(b',');
                }
                json::write_string(out, key);
                out.extend_from_slice(b":{\"metas\":[");
            } else {
                out.push(b',');
            }
            meta.write(out);
        }
        if !first_meta {
            out.extend_from_slice(b"]}");
        }
    }
    out.push(b'}');
}

/// Presence of one topic.
#[derive(Debug, Default)]
pub struct TopicPresence {
    entries: BTreeMap<SmolStr, Vec<Arc<Meta>>>,
    /// Of the keys touched since the last flush: their metas as of that flush.
    told: BTreeMap<SmolStr, Vec<Arc<Meta>>>,
    snapshot: Option<Json>,
}

impl TopicPresence {
    /// Adds a meta under a key. A second one of the same id replaces the first, and names its reference. Gives the meta
    /// as it is kept.
    pub fn track(&mut self, key: &SmolStr, meta: Meta) -> Arc<Meta> {
        let metas = self.entries.get(key).map(Vec::as_slice).unwrap_or_default();
        let phx_ref_prev = match metas.iter().find(|present| present.id == meta.id) {
            Some(present) => Some(present.phx_ref.clone()),
            None => meta.phx_ref_prev,
        };
        let meta = Arc::new(Meta { phx_ref_prev, ..meta });
        self.put(key, meta.clone());
        meta
    }

    /// Adds a meta under a key as it is, in place of one of the same id.
    pub fn put(&mut self, key: &SmolStr, meta: Arc<Meta>) {
        self.remember(key);
        let metas = self.entries.entry(key.clone()).or_default();
        match metas.iter_mut().find(|present| present.id == meta.id) {
            Some(present) => *present = meta,
            None => metas.push(meta),
        }
    }

    /// Replaces a meta of a key by one of the same id, and gives it as it is kept; `None` if there is none.
    pub fn update(&mut self, key: &SmolStr, meta: Meta) -> Option<Arc<Meta>> {
        let metas = self.entries.get(key)?;
        metas.iter().any(|present| present.id == meta.id).then(|| self.track(key, meta))
    }

    /// Removes a meta; `false` if it was not there.
    pub fn untrack(&mut self, key: &SmolStr, id: TrackId) -> bool {
        if !self.entries.get(key).is_some_and(|metas| metas.iter().any(|meta| meta.id == id)) {
            return false;
        }
        self.remember(key);
        if let Some(metas) = self.entries.get_mut(key) {
            metas.retain(|meta| meta.id != id);
            if metas.is_empty() {
                self.entries.remove(key);
            }
        }
        true
    }

    /// Makes one diff of all changes since the last flush; `None` when there are none that show.
    pub fn flush(&mut self) -> Option<Diff> {
        let mut diff = Diff::default();
        for (key, before) in std::mem::take(&mut self.told) {
            let now = self.entries.get(&key).map(Vec::as_slice).unwrap_or_default();
            let not_in = |metas: &[Arc<Meta>], others: &[Arc<Meta>]| -> Vec<Arc<Meta>> {
                metas
                    .iter()
                    .filter(|meta| others.iter().all(|other| other.phx_ref != meta.phx_ref))
                    .cloned()
                    .collect()
            };
            let (joined, left) = (not_in(now, &before), not_in(&before, now));
            if !joined.is_empty() {
                diff.joins.push((key.clone(), joined));
            }
            if !left.is_empty() {
                diff.leaves.push((key, left));
            }
        }
        if diff.joins.is_empty() && diff.leaves.is_empty() {
            return None;
        }
        self.snapshot = None;
        Some(diff)
    }

    /// Whether a flush has something to look at.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        !self.told.is_empty()
    }

    /// The payload of `presence_state`. To be called right after a flush: it holds what has been told, and no more.
    pub fn snapshot(&mut self) -> Json {
        debug_assert!(!self.has_changes(), "snapshot of a state that was not flushed");
        if let Some(snapshot) = &self.snapshot {
            return snapshot.clone();
        }
        let snapshot = self.snapshot_of(|_, _| true);
        self.snapshot = Some(snapshot.clone());
        snapshot
    }

    /// The same for a reader that sees only some metas; not cached.
    #[must_use]
    pub fn snapshot_of(&self, sees: impl Fn(&str, &Meta) -> bool) -> Json {
        let mut out = Vec::with_capacity(64);
        write_entries(&mut out, self.entries.iter().map(|(key, metas)| (key, metas.as_slice())), &sees);
        Json::from_trusted_bytes(out.into())
    }

    /// The metas of some keys as they were last told: what is taken from or given to a reader whose view changes.
    #[must_use]
    pub fn told_metas(&self, wanted: impl Fn(&str) -> bool) -> Vec<(SmolStr, Vec<Arc<Meta>>)> {
        let touched = self.told.iter().filter(|(_, metas)| !metas.is_empty());
        let untouched = self.entries.iter().filter(|(key, _)| !self.told.contains_key(*key));
        touched
            .chain(untouched)
            .filter(|(key, _)| wanted(key))
            .map(|(key, metas)| (key.clone(), metas.clone()))
            .collect()
    }

    /// All metas, by key.
    pub fn metas(&self) -> impl Iterator<Item = (&SmolStr, &Arc<Meta>)> {
        self.entries.iter().flat_map(|(key, metas)| metas.iter().map(move |meta| (key, meta)))
    }

    /// Whether nobody is present and nothing waits to be told.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.told.is_empty()
    }

    fn remember(&mut self, key: &SmolStr) {
        if !self.told.contains_key(key) {
            let before = self.entries.get(key).cloned().unwrap_or_default();
            self.told.insert(key.clone(), before);
        }
    }
}

/// Makes a `phx_ref`: unique as long as `salt` is unique per process start and `counter` is not reused.
#[must_use]
pub fn phx_ref(salt: u64, counter: u64) -> SmolStr {
    use base64::Engine;
    let mut bytes = [0; 12];
    bytes[..5].copy_from_slice(&salt.to_be_bytes()[3..]);
    bytes[5..].copy_from_slice(&counter.to_be_bytes()[1..]);
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes).into()
}

#[cfg(test)]
mod tests;
