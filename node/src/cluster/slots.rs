//! Which connection is the link to a node: there is one at a time, and both ends agree which.
//!
//! When two nodes dial each other at once, or one dials again because it has lost what the other still holds, the node of
//! the smaller name decides. It lets the first stand; about any further one it asks the other end whether it still has the
//! first, and only if it does not, the new one takes its place. So a healthy link is not displaced by a late dial, and one
//! that only one end has noticed to be dead is replaced at once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use smol_str::SmolStr;

use super::fabric::Connection;

/// How long what is left of a connection has to go.
const GONE_TIMEOUT: Duration = Duration::from_secs(2);

/// The links, by the name of the node.
#[derive(Default)]
pub struct Slots(Mutex<HashMap<SmolStr, Slot>>);

#[derive(Default)]
struct Slot {
    current: Option<Arc<Connection>>,
    /// Connections on which it is being agreed. As many as there are handshakes and dials at once, which are bounded.
    candidates: HashSet<u64>,
}

impl Slot {
    fn is_empty(&self) -> bool {
        self.current.is_none() && self.candidates.is_empty()
    }
}

/// A connection on which it is being agreed, until this is dropped. However that ends, by a time limit too, nothing is left
/// of one that was not agreed on.
pub struct Candidate<'a> {
    slots: &'a Slots,
    connection: Arc<Connection>,
    is_agreed: bool,
}

impl Candidate<'_> {
    /// It is the link.
    pub fn agreed(mut self) {
        self.is_agreed = true;
    }
}

impl Slots {
    /// Notes that a connection may become the link.
    pub fn consider(&self, connection: &Arc<Connection>) -> Candidate<'_> {
        self.0.lock().entry(connection.peer.name.clone()).or_default().candidates.insert(connection.id);
        Candidate { slots: self, connection: connection.clone(), is_agreed: false }
    }

    /// The link to a node.
    pub fn current(&self, name: &str) -> Option<Arc<Connection>> {
        self.0.lock().get(name).and_then(|slot| slot.current.clone())
    }

    /// Whether this connection is the link, or may become it.
    pub fn holds(&self, name: &str, id: u64) -> bool {
        let slots = self.0.lock();
        let Some(slot) = slots.get(name) else { return false };
        let is_current =
            slot.current.as_ref().is_some_and(|current| current.id == id && !current.cut.is_cancelled());
        is_current || slot.candidates.contains(&id)
    }

    /// Lets a connection be the link if there is none.
    pub fn stand(&self, connection: &Arc<Connection>) -> Result<(), Arc<Connection>> {
        let mut slots = self.0.lock();
        let slot = slots.entry(connection.peer.name.clone()).or_default();
        match &slot.current {
            Some(current) => Err(current.clone()),
            None => {
                slot.current = Some(connection.clone());
                Ok(())
            }
        }
    }

    /// Lets a connection be the link, and waits until nothing is left of another.
    pub async fn replace(&self, connection: &Arc<Connection>) -> bool {
        while let Err(current) = self.stand(connection) {
            current.cut.cancel();
            if tokio::time::timeout(GONE_TIMEOUT, current.gone.cancelled()).await.is_err() {
                return false;
            }
            self.clear(&current);
        }
        true
    }

    /// Notes that nothing is left of a connection.
    pub fn clear(&self, connection: &Connection) {
        let mut slots = self.0.lock();
        if let Some(slot) = slots.get_mut(&connection.peer.name) {
            slot.current.take_if(|current| current.id == connection.id);
            if slot.is_empty() {
                slots.remove(&connection.peer.name);
            }
        }
    }

    /// Whether there is no link.
    pub fn is_empty(&self) -> bool {
        self.0.lock().values().all(|slot| slot.current.is_none())
    }

    /// Ends all links.
    pub fn cut_all(&self) {
        for current in self.0.lock().values().filter_map(|slot| slot.current.as_ref()) {
            current.cut.cancel();
        }
    }
}

impl Drop for Candidate<'_> {
    fn drop(&mut self) {
        let connection = &self.connection;
        let mut slots = self.slots.0.lock();
        if let Some(slot) = slots.get_mut(&connection.peer.name) {
            slot.candidates.remove(&connection.id);
            if !self.is_agreed {
                slot.current.take_if(|current| Arc::ptr_eq(current, connection));
            }
            if slot.is_empty() {
                slots.remove(&connection.peer.name);
            }
        }
        drop(slots);
        if !self.is_agreed {
            connection.cut.cancel();
            connection.gone.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::cluster::NodeKey;

    use super::*;

    fn connection(id: u64) -> Arc<Connection> {
        Connection::new(id, NodeKey { name: "b".into(), incarnation: 1 })
    }

    #[tokio::test]
    async fn a_connection_that_was_given_up_while_it_was_agreed_on_keeps_no_other_out() {
        let (slots, first, second) = (Slots::default(), connection(1), connection(3));
        let candidate = slots.consider(&first);
        assert!(slots.stand(&first).is_ok() && slots.stand(&second).is_err());
        // The other waits until nothing is left of the first, which is never opened.
        let given_up = async {
            tokio::task::yield_now().await;
            drop(candidate);
        };
        let (replaced, ()) = tokio::join!(slots.replace(&second), given_up);
        assert!(replaced && slots.holds("b", second.id) && !slots.holds("b", first.id));
        slots.clear(&second);
        let candidate = slots.consider(&first);
        assert!(slots.stand(&first).is_ok());
        drop(candidate);
        assert!(slots.is_empty(), "nobody has to ask for it");
    }

    #[test]
    fn what_was_agreed_on_stays_until_nothing_is_left_of_it() {
        let (slots, first, second) = (Slots::default(), connection(1), connection(3));
        let candidate = slots.consider(&first);
        assert!(slots.holds("b", first.id) && slots.is_empty());
        assert!(slots.stand(&first).is_ok());
        candidate.agreed();
        drop(slots.consider(&second));
        assert!(slots.holds("b", first.id) && !first.cut.is_cancelled() && second.cut.is_cancelled());
        slots.clear(&first);
        assert!(slots.is_empty() && slots.0.lock().is_empty());
    }
}
