//! Changes as bytes: encoded once, and sent to every peer as they are.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smol_str::SmolStr;

use super::Bounds;
use super::state::{Change, EntryId};
use crate::json::{Json, as_bytes};
use crate::money::Amount;
use crate::presence::{Facts, Meta, track_id, track_number};

/// Bytes of a `phx_ref`.
const REF_BYTES_MAX: usize = 64;

/// Changes one after the other, each as MessagePack with field names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run(Bytes);

impl Run {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where in memory they are.
    #[cfg(test)]
    pub(super) fn place(&self) -> *const u8 {
        self.0.as_ptr()
    }
}

impl Serialize for Run {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Run {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = Run;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Run, E> {
                Ok(Run(Bytes::copy_from_slice(bytes)))
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Run, E> {
                Ok(Run(bytes.into()))
            }
        }
        deserializer.deserialize_bytes(Text)
    }
}

/// Short names: they are said for each change.
#[derive(Serialize, Deserialize)]
struct WireChange<'a> {
    #[serde(rename = "t")]
    topic: SmolStr,
    #[serde(rename = "k")]
    key: SmolStr,
    #[serde(rename = "n")]
    number: u64,
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    meta: Option<WireMeta<'a>>,
}

#[derive(Serialize, Deserialize)]
struct WireMeta<'a> {
    #[serde(rename = "r")]
    phx_ref: SmolStr,
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    phx_ref_prev: Option<SmolStr>,
    /// That of the meta before it in the run, when absent.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    content: Option<Content<'a>>,
}

#[derive(Serialize, Deserialize)]
struct Content<'a> {
    #[serde(rename = "f", with = "as_bytes")]
    fields: Json,
    #[serde(rename = "a", default)]
    capabilities: Vec<Cow<'a, str>>,
    #[serde(rename = "s", default)]
    reputation: f64,
    #[serde(rename = "b", default)]
    base_price_micros: i64,
}

/// Bytes that an entry takes in a run at most.
pub(super) fn bytes_max_of(id: &EntryId, meta: &Meta) -> usize {
    /// Names and heads of all fields, the numbers, and the two references.
    const REST: usize = 96 + 2 * REF_BYTES_MAX;
    /// The head of a text.
    const HEAD: usize = 5;
    let capabilities: usize = meta.facts.capabilities.iter().map(|text| text.len() + HEAD).sum();
    REST + id.topic.len() + id.key.len() + meta.fields.as_bytes().len() + capabilities
}

/// Makes runs of changes.
#[derive(Default)]
pub(super) struct Writer {
    out: Vec<u8>,
    count: u64,
    last: Option<Arc<Meta>>,
}

impl Writer {
    /// Adds a change; `false`, and nothing is added, if the run would become too long by it. A first one is always taken.
    pub fn add(&mut self, id: &EntryId, meta: Option<&Arc<Meta>>, bounds: &Bounds) -> bool {
        let before = self.out.len();
        let change = WireChange {
            topic: id.topic.clone(),
            key: id.key.clone(),
            number: track_number(id.track),
            meta: meta.map(|meta| self.wire_meta(meta)),
        };
        // Writing into a Vec cannot fail, and these types have nothing that MessagePack cannot say.
        let written = change.serialize(&mut rmp_serde::Serializer::new(&mut self.out).with_struct_map());
        if written.is_err() || (self.count > 0 && self.out.len() > bounds.piece_bytes_max) {
            self.out.truncate(before);
            return false;
        }
        self.count += 1;
        if let Some(meta) = meta {
            self.last = Some(meta.clone());
        }
        true
    }

    fn wire_meta<'a>(&self, meta: &'a Meta) -> WireMeta<'a> {
        let is_same = |last: &Arc<Meta>| last.fields == meta.fields && last.facts == meta.facts;
        let content = (!self.last.as_ref().is_some_and(is_same)).then(|| Content {
            fields: meta.fields.clone(),
            capabilities: meta.facts.capabilities.iter().map(|text| text.as_str().into()).collect(),
            reputation: meta.facts.reputation,
            base_price_micros: meta.facts.base_price.micros(),
        });
        let (phx_ref, phx_ref_prev) = (meta.phx_ref.clone(), meta.phx_ref_prev.clone());
        WireMeta { phx_ref, phx_ref_prev, content }
    }

    /// Ends the run: gives how many changes it holds, and the run.
    pub fn end(&mut self) -> (u64, Run) {
        self.last = None;
        (std::mem::take(&mut self.count), Run(std::mem::take(&mut self.out).into()))
    }
}

/// A run that is not as it must be.
#[derive(Debug)]
pub(super) struct Malformed;

/// Reads a run of so many changes, of the peer that is known here by a number.
pub(super) fn read(run: &Run, count: u64, origin: u16, bounds: &Bounds) -> Result<Vec<Change>, Malformed> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(&run.0);
    let mut last: Option<(Json, Arc<Facts>)> = None;
    let mut changes: Vec<Change> = Vec::new();
    for _ in 0..count {
        let change = WireChange::deserialize(&mut reader).map_err(|_| Malformed)?;
        let names = [&change.topic, &change.key];
        if names.iter().any(|name| name.is_empty() || name.len() > bounds.name_bytes_max)
            || track_number(change.number) != change.number
        {
            return Err(Malformed);
        }
        let track = track_id(origin, change.number);
        let meta = match change.meta {
            None => None,
            Some(meta) => {
                let refs = [Some(&meta.phx_ref), meta.phx_ref_prev.as_ref()];
                if refs.into_iter().flatten().any(|text| text.is_empty() || text.len() > REF_BYTES_MAX) {
                    return Err(Malformed);
                }
                if let Some(content) = meta.content {
                    last = Some(content.check()?);
                }
                let (fields, facts) = last.clone().ok_or(Malformed)?;
                let (phx_ref, phx_ref_prev) = (meta.phx_ref, meta.phx_ref_prev);
                Some(Arc::new(Meta { id: track, phx_ref, phx_ref_prev, fields, facts }))
            }
        };
        // What one connection shows on several topics is kept once, its key too.
        let key = match changes.last() {
            Some(before) if before.id.key == change.key => before.id.key.clone(),
            _ => change.key,
        };
        changes.push(Change { id: EntryId { key, track, topic: change.topic }, meta });
    }
    Ok(changes)
}

impl Content<'_> {
    fn check(self) -> Result<(Json, Arc<Facts>), Malformed> {
        let text = self.fields.as_bytes();
        // References are written into it: it must be an object.
        let is_object = text.starts_with(b"{") && text.ends_with(b"}");
        if !is_object || !self.reputation.is_finite() {
            return Err(Malformed);
        }
        let base_price = Amount::from_micros(self.base_price_micros).ok_or(Malformed)?;
        let capabilities = self.capabilities.into_iter().map(Cow::into_owned).collect();
        Ok((self.fields, Arc::new(Facts { capabilities, reputation: self.reputation, base_price })))
    }
}
