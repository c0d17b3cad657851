//! Who wants which topics: what this node has told the others that it wants, whether they have noted it, and what they
//! have told it. A publication goes only where it is wanted.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use smol_str::SmolStr;

use super::{Interest, NodeKey};

/// Topics in one message.
const TOPICS_PER_MESSAGE: usize = 1_000;
/// Topics noted for one peer; what it wants beyond is not sent to it, and counted.
const TOPICS_PER_PEER_MAX: usize = 4_194_304;

/// The table of a node.
#[derive(Debug, Default)]
pub struct Interests {
    mine: HashMap<SmolStr, Mine>,
    peers: HashMap<NodeKey, Peer>,
    wanted_by: HashMap<SmolStr, Vec<NodeKey>>,
    tokens: u64,
}

#[derive(Debug, Default)]
struct Mine {
    subscribers: usize,
    /// Peers that have not noted it yet.
    unconfirmed: HashSet<NodeKey>,
}

#[derive(Debug, Default)]
struct Peer {
    /// What it wants.
    topics: HashSet<SmolStr>,
    /// What it has been told and has not noted, by token.
    told: BTreeMap<u64, Vec<SmolStr>>,
    suspect: bool,
}

/// What a node that did not want a topic before has to send, and to whom.
pub type ToSend = Vec<(NodeKey, Interest)>;

impl Interests {
    /// One more subscriber here. Gives what to send, and whether all peers know of it already.
    pub fn want(&mut self, topic: &SmolStr) -> (ToSend, bool) {
        if let Some(mine) = self.mine.get_mut(topic) {
            mine.subscribers += 1;
            return (Vec::new(), mine.unconfirmed.is_empty());
        }
        let mut mine = Mine { subscribers: 1, unconfirmed: HashSet::new() };
        let mut send = Vec::with_capacity(self.peers.len());
        for (key, peer) in &mut self.peers {
            self.tokens += 1;
            let interest = Interest {
                token: self.tokens,
                whole: false,
                wanted: vec![topic.clone()],
                unwanted: Vec::new(),
            };
            send.push((key.clone(), interest));
            // Nobody waits for one that says nothing: it publishes nothing either, as long as that lasts.
            if !peer.suspect {
                peer.told.insert(self.tokens, vec![topic.clone()]);
                mine.unconfirmed.insert(key.clone());
            }
        }
        let confirmed = mine.unconfirmed.is_empty();
        self.mine.insert(topic.clone(), mine);
        (send, confirmed)
    }

    /// One subscriber less; with the last, the others are told. Gives what to send, and whether it was the last.
    pub fn release(&mut self, topic: &str) -> (ToSend, bool) {
        let Some(mine) = self.mine.get_mut(topic) else { return (Vec::new(), false) };
        mine.subscribers -= 1;
        if mine.subscribers > 0 {
            return (Vec::new(), false);
        }
        self.mine.remove(topic);
        let unwanted =
            || Interest { token: 0, whole: false, wanted: Vec::new(), unwanted: vec![topic.into()] };
        (self.peers.keys().map(|key| (key.clone(), unwanted())).collect(), true)
    }

    /// A peer has come up, or may have missed something: it is told everything.
    pub fn tell_all(&mut self, key: &NodeKey) -> Vec<Interest> {
        let peer = self.peers.entry(key.clone()).or_default();
        let unconfirmed: Vec<SmolStr> = std::mem::take(&mut peer.told).into_values().flatten().collect();
        let topics: Vec<SmolStr> = self.mine.keys().cloned().collect();
        let mut messages: Vec<Interest> = topics
            .chunks(TOPICS_PER_MESSAGE)
            .map(|topics| Interest { token: 0, whole: false, wanted: topics.to_vec(), unwanted: Vec::new() })
            .collect();
        if messages.is_empty() {
            messages.push(Interest { token: 0, whole: true, wanted: Vec::new(), unwanted: Vec::new() });
        }
        messages[0].whole = true;
        if !unconfirmed.is_empty() {
            self.tokens += 1;
            peer.told.insert(self.tokens, unconfirmed);
            if let Some(last) = messages.last_mut() {
                last.token = self.tokens;
            }
        }
        messages
    }

    /// A peer is gone. Gives the topics that all others have noted.
    pub fn down(&mut self, key: &NodeKey) -> Vec<SmolStr> {
        let Some(peer) = self.peers.remove(key) else { return Vec::new() };
        for topic in &peer.topics {
            self.unwant(topic, key);
        }
        self.confirm(key, peer.told.into_values().flatten())
    }

    /// Which peers say nothing at the moment. Gives the topics that nobody is waited for any more.
    pub fn suspects(&mut self, suspects: &BTreeSet<NodeKey>) -> Vec<SmolStr> {
        let mut told = Vec::new();
        for (key, peer) in &mut self.peers {
            peer.suspect = suspects.contains(key);
            if peer.suspect {
                let topics: Vec<_> = std::mem::take(&mut peer.told).into_values().flatten().collect();
                told.push((key.clone(), topics));
            }
        }
        told.into_iter().flat_map(|(key, topics)| self.confirm(&key, topics.into_iter())).collect()
    }

    /// A peer has noted what went with a token. Gives the topics that all have noted by now.
    pub fn noted(&mut self, key: &NodeKey, token: u64) -> Vec<SmolStr> {
        let topics = self.peers.get_mut(key).and_then(|peer| peer.told.remove(&token)).unwrap_or_default();
        self.confirm(key, topics.into_iter())
    }

    /// Notes what a peer wants; `false` when it wants more than is kept.
    pub fn note(&mut self, key: &NodeKey, interest: &Interest) -> bool {
        let peer = self.peers.entry(key.clone()).or_default();
        let gone: Vec<SmolStr> = if interest.whole {
            std::mem::take(&mut peer.topics).into_iter().collect()
        } else {
            interest.unwanted.iter().filter(|topic| peer.topics.remove(*topic)).cloned().collect()
        };
        for topic in &gone {
            self.unwant(topic, key);
        }
        let Some(peer) = self.peers.get_mut(key) else { return false };
        for topic in &interest.wanted {
            if peer.topics.len() >= TOPICS_PER_PEER_MAX {
                return false;
            }
            if peer.topics.insert(topic.clone()) {
                self.wanted_by.entry(topic.clone()).or_default().push(key.clone());
            }
        }
        true
    }

    /// The peers that want a topic.
    #[must_use]
    pub fn wanted_by(&self, topic: &str) -> &[NodeKey] {
        self.wanted_by.get(topic).map_or(&[], Vec::as_slice)
    }

    /// Whether nothing is remembered of any topic.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mine.is_empty() && self.wanted_by.is_empty()
    }

    fn unwant(&mut self, topic: &str, key: &NodeKey) {
        if let Some(nodes) = self.wanted_by.get_mut(topic) {
            nodes.retain(|node| node != key);
            if nodes.is_empty() {
                self.wanted_by.remove(topic);
            }
        }
    }

    fn confirm(&mut self, key: &NodeKey, topics: impl Iterator<Item = SmolStr>) -> Vec<SmolStr> {
        topics
            .filter(|topic| {
                self.mine
                    .get_mut(topic)
                    .is_some_and(|mine| mine.unconfirmed.remove(key) && mine.unconfirmed.is_empty())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeKey {
        NodeKey { name: name.into(), incarnation: 1 }
    }

    #[test]
    fn a_topic_is_confirmed_when_every_peer_has_noted_it() {
        let (a, b) = (node("a"), node("b"));
        let mut table = Interests::default();
        assert!(table.want(&"alone".into()).1, "nobody else");
        for key in [&a, &b] {
            let told = table.tell_all(key);
            assert_eq!((told.len(), told[0].whole, told[0].token), (1, true, 0));
        }
        let (send, confirmed) = table.want(&"t".into());
        assert_eq!((send.len(), confirmed), (2, false));
        assert!(!table.want(&"t".into()).1, "the second subscriber waits too");
        let token_of = |key: &NodeKey| send.iter().find(|(to, _)| to == key).unwrap().1.token;
        assert_eq!(table.noted(&a, token_of(&a)), Vec::<SmolStr>::new());
        assert_eq!(table.noted(&a, token_of(&b)), Vec::<SmolStr>::new(), "another's token");
        assert_eq!(table.noted(&b, token_of(&b)), ["t"]);
        assert!(table.want(&"t".into()).1);
        for _ in 0..2 {
            assert_eq!(table.release("t"), (Vec::new(), false));
        }
        let (send, was_last) = table.release("t");
        assert_eq!((send.len(), was_last), (2, true));
    }

    #[test]
    fn nobody_waits_for_a_peer_that_is_gone_or_silent() {
        let (a, b) = (node("a"), node("b"));
        let mut table = Interests::default();
        table.tell_all(&a);
        table.tell_all(&b);
        assert!(!table.want(&"t".into()).1);
        assert_eq!(table.down(&a), Vec::<SmolStr>::new());
        assert_eq!(table.suspects(&[b.clone()].into()), ["t"]);
        assert!(table.want(&"u".into()).1);
        assert_eq!(table.suspects(&BTreeSet::new()), Vec::<SmolStr>::new());
        assert!(!table.want(&"v".into()).1);
    }

    #[test]
    fn after_a_reset_the_whole_table_confirms_what_was_under_way() {
        let a = node("a");
        let mut table = Interests::default();
        table.tell_all(&a);
        let (send, _) = table.want(&"t".into());
        let again = table.tell_all(&a);
        assert_eq!(table.noted(&a, send[0].1.token), Vec::<SmolStr>::new(), "the old token is void");
        assert_eq!(table.noted(&a, again[0].token), ["t"]);
    }

    #[test]
    fn what_peers_want_is_kept_by_topic_and_forgotten_with_them() {
        let (a, b) = (node("a"), node("b"));
        let interest = |whole, wanted: &[&str], unwanted: &[&str]| Interest {
            token: 1,
            whole,
            wanted: wanted.iter().copied().map(SmolStr::from).collect(),
            unwanted: unwanted.iter().copied().map(SmolStr::from).collect(),
        };
        let mut table = Interests::default();
        assert!(table.note(&a, &interest(true, &["t", "u"], &[])));
        assert!(table.note(&b, &interest(false, &["t", "t"], &[])));
        assert_eq!(table.wanted_by("t"), [a.clone(), b.clone()]);
        assert!(table.note(&a, &interest(false, &[], &["t", "never"])));
        assert_eq!(table.wanted_by("t"), std::slice::from_ref(&b));
        assert!(table.note(&a, &interest(true, &["v"], &[])));
        assert!(table.wanted_by("u").is_empty());
        table.down(&a);
        table.down(&b);
        assert!(table.is_empty());
    }
}
