//! Presence and the other nodes: what they say comes in, what changes here goes out.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use muster_protocol::cluster::presence::{Change, Counts, EntryId, Message, Outcome};
use muster_protocol::cluster::{self, NodeKey};

use super::{Command, Presence, State};
use crate::elsewhere::Elsewhere;

/// Something about another node.
pub(super) enum FromNode {
    Up(NodeKey),
    Down(NodeKey),
    Reset(NodeKey),
    Said(NodeKey, Message),
}

/// For whoever hands out what comes from the cluster ([`crate::cluster::Event`]): all of these only note it.
impl Presence {
    /// A node is up.
    pub fn node_up(&self, node: NodeKey) {
        self.note(FromNode::Up(node));
    }

    /// A node is gone: so are its entries, at once.
    pub fn node_down(&self, node: NodeKey) {
        self.note(FromNode::Down(node));
    }

    /// Messages to and from a node may have been lost.
    pub fn node_reset(&self, node: NodeKey) {
        self.note(FromNode::Reset(node));
    }

    /// A node has said something. It is dropped where too much waits already; what is missed is noticed within a second.
    pub fn node_said(&self, node: NodeKey, message: Message) {
        let bytes = message.bytes();
        let waiting = self.said_bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting + bytes > self.said_bytes_max {
            self.said_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.said_dropped.fetch_add(1, Ordering::Relaxed);
            self.metrics.presence_refused.get_or_create(&[("what", "inbox")]).inc();
            return;
        }
        self.note(FromNode::Said(node, message));
    }

    /// The agents that are online at other nodes.
    pub(crate) fn elsewhere(&self) -> &Elsewhere {
        &self.elsewhere
    }

    /// Whether this node does what one of all nodes has to do. In doubt two do it, or none.
    pub(crate) fn is_first_of_nodes(&self) -> bool {
        let members = self.cluster.members();
        let members = members.borrow();
        let stays = |draining: bool| {
            let stays =
                members.nodes.iter().filter(move |member| !member.suspect && member.draining == draining);
            stays.map(|member| &member.key).min()
        };
        stays(false).or_else(|| stays(true)).is_none_or(|first| first == self.cluster.me())
    }

    fn note(&self, from: FromNode) {
        let _closed = self.inbox.push_always(Command::Node(from));
    }
}

impl State {
    pub(super) fn across(&mut self, from: FromNode, node: &Arc<Presence>) {
        let mut out = Outcome::default();
        // What a node does not take away itself went with an earlier process of it, or with the node.
        let is_lost = !matches!(from, FromNode::Said(..));
        match from {
            FromNode::Up(peer) => {
                if !self.replicas.is_recording() {
                    // All there are so far are this node's own.
                    let entries = self.topics.iter().flat_map(|(topic, entry)| {
                        let metas = entry.presence.metas();
                        metas.map(|(key, meta)| (EntryId::new(topic, key, meta.id), meta.clone()))
                    });
                    self.replicas.record(entries);
                }
                self.replicas.up(&peer, &mut out);
            }
            FromNode::Down(peer) => self.replicas.down(&peer, &mut out),
            FromNode::Reset(peer) => self.replicas.reset(&peer, &mut out),
            FromNode::Said(peer, message) => {
                node.said_bytes.fetch_sub(message.bytes(), Ordering::Relaxed);
                self.replicas.receive(&peer, message, &mut out);
            }
        }
        node.elsewhere.note(&out.changes, is_lost);
        self.absorb(out, node);
    }

    /// Own changes since the last time, to all peers.
    pub(super) fn push_across(&mut self, node: &Arc<Presence>) {
        let mut out = Outcome::default();
        self.replicas.push(&mut out);
        self.absorb(out, node);
    }

    /// A second has passed.
    pub(super) fn second_across(&mut self, node: &Arc<Presence>) {
        let mut out = Outcome::default();
        self.replicas.digest(&mut out);
        self.absorb(out, node);
        let refused = std::mem::take(&mut self.refused) + node.said_dropped.swap(0, Ordering::Relaxed);
        if refused > 0 {
            tracing::warn!(
                refused,
                entries = self.replicas.remote_entries(),
                "not all presence of or to other nodes is shown; muster_presence_refused_total says why"
            );
        }
    }

    /// Events from other nodes, after the changes they follow have been told.
    pub(super) fn tell_from_across(&mut self, node: &Arc<Presence>) {
        self.tells_bytes = 0;
        for tell in std::mem::take(&mut self.tells) {
            if let Some(topic) = self.topics.get_mut(&tell.topic) {
                topic.tell_about(&tell.topic, &tell.key, (&tell.event, tell.payload), node);
            }
        }
    }

    fn absorb(&mut self, mut out: Outcome, node: &Arc<Presence>) {
        if !out.changes.is_empty() {
            for Change { id, meta } in out.changes {
                if !self.topics.contains_key(&id.topic) && self.asleep.note(&id, meta.as_ref()) {
                    continue;
                }
                let entry = self.topic(&id.topic);
                match meta {
                    Some(meta) => entry.presence.put(&id.key, meta),
                    None => {
                        entry.presence.untrack(&id.key, id.track);
                    }
                }
                if !self.dirty.contains(&id.topic) {
                    self.dirty.insert(id.topic);
                }
            }
            let entries = i64::try_from(self.replicas.remote_entries()).unwrap_or(i64::MAX);
            node.metrics.presence_remote_entries.set(entries);
        }
        for tell in out.tells {
            if self.tells_bytes + tell.bytes() > node.tells_bytes_max {
                out.counts.tells_refused += 1;
            } else {
                self.tells_bytes += tell.bytes();
                self.tells.push(tell);
            }
        }
        for (to, message) in out.messages {
            // What cannot be sent is missed: a reset or the end of that node follows, or its next digest shows it.
            let _sent = node.cluster.send(&to, cluster::Message::Presence(message));
        }
        self.count(&out.counts, node);
    }

    fn count(&mut self, counts: &Counts, node: &Arc<Presence>) {
        let refused = [
            ("entries", counts.entries_refused),
            ("malformed", counts.malformed),
            ("events", counts.tells_refused),
            ("too_large", counts.too_large),
        ];
        for (what, count) in refused.into_iter().filter(|(_, count)| *count > 0) {
            node.metrics.presence_refused.get_or_create(&[("what", what)]).inc_by(count);
            self.refused += count;
        }
        if counts.diverged > 0 {
            tracing::warn!(
                "what is known of another node's presence differed from what it is; asking for all of it"
            );
        }
        let repairs = [
            ("changes", counts.asked_for_changes),
            ("whole", counts.asked_for_all),
            ("diverged", counts.diverged),
        ];
        for (how, count) in repairs.into_iter().filter(|(_, count)| *count > 0) {
            node.metrics.presence_repairs.get_or_create(&[("how", how)]).inc_by(count);
        }
    }
}
