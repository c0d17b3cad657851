//! Everything that is connected under a credential: sockets, event streams, MCP sessions. Whoever revokes a credential,
//! stops an agent or drains the node finds them here.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use muster_protocol::account::Principal;
use muster_protocol::cluster::NodeKey;
use muster_protocol::cluster::usage::Elsewhere;
use muster_protocol::ids::{AgentId, CredentialId};
use muster_protocol::time::Timestamp;
use muster_protocol::websocket::CloseCode;
use parking_lot::Mutex;

/// Something that can be ended from outside.
pub trait Connection: Send + Sync + 'static {
    /// Ends it.
    fn end(&self, code: CloseCode, reason: &str);

    /// Ends it if it has been silent too long.
    fn end_if_idle(&self, _now_ms: u64) {}

    /// Whether a drain spreads its end over time: sockets, whose clients all come back.
    fn is_socket(&self) -> bool {
        false
    }
}

/// What is connected.
#[derive(Default)]
pub struct Connections {
    table: Mutex<Table>,
    next: AtomicU64,
}

#[derive(Default)]
struct Table {
    entries: HashMap<u64, Entry>,
    by_credential: HashMap<CredentialId, Counts>,
    /// Sockets at other nodes.
    elsewhere: Elsewhere<CredentialId>,
    /// Credentials and agents that were ended so far.
    ends: u64,
    /// The last of them, newest at the back.
    ended: VecDeque<Ended>,
}

/// What a credential has open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sockets.
    pub sockets: usize,
    /// Everything else: event streams, MCP sessions.
    pub streams: usize,
}

impl Counts {
    fn of(&mut self, is_socket: bool) -> &mut usize {
        if is_socket { &mut self.sockets } else { &mut self.streams }
    }
}

/// What was ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Credential(CredentialId),
    Agent(AgentId),
}

/// Ends that are remembered for connections that are being opened meanwhile. One that was checked longer ago than so many
/// ends is closed, and checked again when it comes back.
const ENDS_REMEMBERED: usize = 1_024;

impl Table {
    fn count(&mut self, credential: CredentialId, is_socket: bool) {
        *self.by_credential.entry(credential).or_default().of(is_socket) += 1;
    }

    fn discount(&mut self, credential: CredentialId, is_socket: bool) {
        if let Some(counts) = self.by_credential.get_mut(&credential) {
            *counts.of(is_socket) -= 1;
            if *counts == Counts::default() {
                self.by_credential.remove(&credential);
            }
        }
    }

    fn note(&mut self, ended: Ended) {
        self.ends += 1;
        if self.ended.len() == ENDS_REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(ended);
    }

    /// Whether what this principal stands on has ended since it was checked.
    fn has_ended(&self, principal: &Principal) -> bool {
        let since = usize::try_from(self.ends - principal.as_of).unwrap_or(usize::MAX);
        let mut unseen = self.ended.iter().rev().take(since);
        since > self.ended.len()
            || unseen.any(|ended| match ended {
                Ended::Credential(credential) => *credential == principal.credential,
                Ended::Agent(agent) => Some(*agent) == principal.agent,
            })
    }
}

struct Entry {
    credential: CredentialId,
    agent: Option<AgentId>,
    expires_at: Option<Timestamp>,
    is_socket: bool,
    connection: Weak<dyn Connection>,
}

/// A place among the connections; it is given up when this is dropped.
pub struct Registered {
    connections: Arc<Connections>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut table = self.connections.table.lock();
        let Some(entry) = table.entries.remove(&self.id) else { return };
        table.discount(entry.credential, entry.is_socket);
    }
}

/// A place that is kept for a socket that is being opened. It is given up when this is dropped, unless the socket has it.
pub struct Place {
    connections: Arc<Connections>,
    credential: CredentialId,
    is_taken: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_taken {
            self.connections.table.lock().discount(self.credential, true);
        }
    }
}

impl Connections {
    /// Ends so far: taken before a credential is checked, for [`Principal::as_of`].
    #[must_use]
    pub fn ends(&self) -> u64 {
        self.table.lock().ends
    }

    /// Whether what this principal stands on has ended since it was checked, or so much else that nobody knows.
    #[must_use]
    pub fn has_ended(&self, principal: &Principal) -> bool {
        self.table.lock().has_ended(principal)
    }

    /// Adds a connection. It is ended at once if its credential or its agent was ended since it was checked.
    #[must_use]
    pub fn register(self: &Arc<Self>, principal: &Principal, connection: Weak<dyn Connection>) -> Registered {
        self.register_in(None, principal, connection)
    }

    /// The same in a place that was kept for it.
    #[must_use]
    pub fn register_in(
        self: &Arc<Self>,
        place: Option<Place>,
        principal: &Principal,
        connection: Weak<dyn Connection>,
    ) -> Registered {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Entry {
            credential: principal.credential,
            agent: principal.agent,
            expires_at: principal.expires_at,
            is_socket: connection.upgrade().is_some_and(|connection| connection.is_socket()),
            connection,
        };
        // One that does not fit is given up before the table is locked.
        let place = place.filter(|place| place.credential == entry.credential && entry.is_socket);
        let mut table = self.table.lock();
        let ended = table.has_ended(principal).then(|| entry.connection.upgrade()).flatten();
        match place {
            Some(mut place) => place.is_taken = true,
            None => table.count(entry.credential, entry.is_socket),
        }
        table.entries.insert(id, entry);
        drop(table);
        if let Some(connection) = ended {
            connection.end(CloseCode::Disconnected, "credential ended");
        }
        Registered { connections: self.clone(), id }
    }

    /// Ends everything under a credential; gives how much that was.
    pub fn end_credential(&self, credential: CredentialId, reason: &str) -> usize {
        self.table.lock().note(Ended::Credential(credential));
        self.end_where(CloseCode::Disconnected, reason, |entry| entry.credential == credential)
    }

    /// Ends everything of an agent.
    pub fn end_agent(&self, agent: AgentId, reason: &str) -> usize {
        self.table.lock().note(Ended::Agent(agent));
        self.end_where(CloseCode::Disconnected, reason, |entry| entry.agent == Some(agent))
    }

    /// Ends what has been silent too long, and what stands on a credential that has run out.
    pub fn sweep(&self, now: Timestamp, now_ms: u64) {
        self.end_where(CloseCode::Disconnected, "credential expired", |entry| {
            entry.expires_at.is_some_and(|end| end <= now)
        });
        for connection in self.matching(|_| true) {
            connection.end_if_idle(now_ms);
        }
    }

    /// Ends everything that is not a socket, and gives the sockets, to be ended one by one.
    #[must_use]
    pub fn drain(&self, reason: &str) -> Vec<Arc<dyn Connection>> {
        let (sockets, others): (Vec<_>, Vec<_>) =
            self.matching(|_| true).into_iter().partition(|connection| connection.is_socket());
        for connection in others {
            connection.end(CloseCode::Restart, reason);
        }
        sockets
    }

    /// Keeps a place for a socket of a credential, unless it has as many as it may, here and at other nodes.
    #[must_use]
    pub fn place(self: &Arc<Self>, credential: CredentialId, sockets_max: usize) -> Option<Place> {
        let mut table = self.table.lock();
        let here = table.by_credential.get(&credential).map_or(0, |counts| counts.sockets);
        if here + table.elsewhere.sum(&credential) >= sockets_max {
            return None;
        }
        table.count(credential, true);
        drop(table);
        Some(Place { connections: self.clone(), credential, is_taken: false })
    }

    /// Credentials with at least so many sockets here, and how many.
    #[must_use]
    pub fn sockets_from(&self, least: usize) -> Vec<(CredentialId, u32)> {
        let table = self.table.lock();
        let many = table.by_credential.iter().filter(|(_, counts)| counts.sockets >= least.max(1));
        many.map(|(credential, counts)| (*credential, u32::try_from(counts.sockets).unwrap_or(u32::MAX)))
            .collect()
    }

    /// Notes what another node has told of its sockets.
    pub fn note_elsewhere(&self, node: &NodeKey, whole: bool, sockets: Vec<(CredentialId, u32)>) {
        self.table.lock().elsewhere.note(node, whole, sockets);
    }

    /// Another node is gone, and its sockets with it.
    pub fn forget_elsewhere(&self, node: &NodeKey) {
        self.table.lock().elsewhere.forget(node);
    }

    /// Connections of a credential.
    #[must_use]
    pub fn count(&self, credential: CredentialId) -> Counts {
        self.table.lock().by_credential.get(&credential).copied().unwrap_or_default()
    }

    /// Connections at all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.lock().entries.len()
    }

    /// Whether nothing is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn end_where(&self, code: CloseCode, reason: &str, wanted: impl Fn(&Entry) -> bool) -> usize {
        let found = self.matching(wanted);
        for connection in &found {
            connection.end(code, reason);
        }
        found.len()
    }

    fn matching(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<Arc<dyn Connection>> {
        let table = self.table.lock();
        table
            .entries
            .values()
            .filter(|entry| wanted(entry))
            .filter_map(|entry| entry.connection.upgrade())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_never_more_than_may_be_and_none_is_lost() {
        let connections = Arc::new(Connections::default());
        let credential = CredentialId::from_bytes([1; 16]);
        let node = NodeKey { name: "b".into(), incarnation: 1 };
        connections.note_elsewhere(&node, false, vec![(credential, 3)]);
        let (send, places) = std::sync::mpsc::sync_channel(64);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let (send, connections) = (send.clone(), connections.clone());
                scope.spawn(move || {
                    (0..8)
                        .filter_map(|_| connections.place(credential, 10))
                        .for_each(|place| send.send(place).unwrap());
                });
            }
        });
        drop(send);
        let places: Vec<Place> = places.into_iter().collect();
        assert_eq!((places.len(), connections.count(credential).sockets), (7, 7));
        drop(places);
        assert_eq!(connections.count(credential), Counts::default());
        let kept: Vec<Option<Place>> = (0..7).map(|_| connections.place(credential, 10)).collect();
        assert!(kept.iter().all(Option::is_some) && connections.place(credential, 10).is_none());
        connections.forget_elsewhere(&node);
        assert!(connections.place(credential, 10).is_some());
    }
}
