//! Topics that nobody here watches or is on, with few from other nodes: mostly the own topics of their agents. A topic
//! takes about a kilobyte; asleep it takes a tenth.

use std::collections::HashMap;
use std::sync::Arc;

use muster_protocol::cluster::presence::EntryId;
use muster_protocol::presence::{Meta, TopicPresence, track_number};
use smol_str::SmolStr;

/// Metas with which a topic sleeps: they are looked through.
const METAS_MAX: usize = 4;

/// The topics that sleep, with the metas on them. None is empty.
#[derive(Default)]
pub(super) struct Asleep(HashMap<SmolStr, Vec<(SmolStr, Arc<Meta>)>>);

impl Asleep {
    /// Takes in a change of another node's entry, on a topic that is not awake; `false` if it has to wake up first.
    pub fn note(&mut self, id: &EntryId, meta: Option<&Arc<Meta>>) -> bool {
        if let Some(metas) = self.0.get_mut(&id.topic) {
            let is_other = |(key, known): &(SmolStr, Arc<Meta>)| *key != id.key || known.id != id.track;
            metas.retain(is_other);
            match meta {
                Some(_) if metas.len() >= METAS_MAX => return false,
                Some(meta) => metas.push((id.key.clone(), meta.clone())),
                None if metas.is_empty() => {
                    self.0.remove(&id.topic);
                }
                None => {}
            }
        } else if let Some(meta) = meta {
            self.0.insert(id.topic.clone(), vec![(id.key.clone(), meta.clone())]);
        }
        true
    }

    /// Lets a topic that nobody watches sleep, if there is nobody of this node on it; it sleeps as well as forgotten when
    /// nobody is on it at all.
    pub fn takes(&mut self, topic: &SmolStr, presence: &TopicPresence) -> bool {
        let may_sleep = |meta: &Arc<Meta>| track_number(meta.id) != meta.id;
        let metas: Vec<_> = presence.metas().take(METAS_MAX + 1).collect();
        if metas.len() > METAS_MAX || !metas.iter().all(|(_, meta)| may_sleep(meta)) {
            return false;
        }
        if !metas.is_empty() {
            let metas = metas.into_iter().map(|(key, meta)| (key.clone(), meta.clone())).collect();
            self.0.insert(topic.clone(), metas);
        }
        true
    }

    /// The metas of a topic that wakes up.
    pub fn wake(&mut self, topic: &SmolStr) -> Vec<(SmolStr, Arc<Meta>)> {
        self.0.remove(topic).unwrap_or_default()
    }
}
