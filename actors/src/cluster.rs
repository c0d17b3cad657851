//! The port to the other nodes of a cluster, and what comes from there. A node that is alone has [`Alone`].
//!
//! What is rested on: messages to one node arrive there once and in the order they were sent, however they are carried;
//! where that could not be kept, both sides get [`Event::Reset`]. A receiver is called for one peer by one caller at a
//! time, and only notes what it is given: it never waits.

use std::sync::Arc;

use muster_protocol::cluster::{Member, Members, Message, NodeKey};
use tokio::sync::watch;

/// Something that came from the cluster.
#[derive(Clone, Debug)]
pub enum Event {
    /// A node is up. What was known of another incarnation of it is gone by then ([`Event::Down`]).
    Up(NodeKey),
    /// A node is gone: by its own word, by silence, or because it has started again.
    Down(NodeKey),
    /// Messages to and from this node that were under way may be lost. It is still up.
    Reset(NodeKey),
    /// It said something.
    Message(NodeKey, Box<Message>),
}

/// Takes what comes from the cluster.
pub trait Receiver: Send + Sync + 'static {
    /// Notes it, without waiting.
    fn receive(&self, event: Event);
}

/// The other nodes.
pub trait Cluster: Send + Sync + 'static {
    /// This node.
    fn me(&self) -> &NodeKey;

    /// Whether there are no other nodes and never will be.
    fn is_alone(&self) -> bool {
        false
    }

    /// The nodes that are up, and every change of that. A node is among them before its [`Event::Up`] and until its
    /// [`Event::Down`].
    fn members(&self) -> watch::Receiver<Arc<Members>>;

    /// Sends to a node; `false` when it is not up, or when so much waits for it that the session is reset instead.
    fn send(&self, to: &NodeKey, message: Message) -> bool;

    /// Sends one message to several nodes; gives how many of them did not take it.
    fn send_each(&self, to: &[NodeKey], message: Message) -> usize {
        to.iter().filter(|node| !self.send(node, message.clone())).count()
    }

    /// The other nodes that are up.
    fn others(&self) -> Vec<NodeKey> {
        let members = self.members();
        let members = members.borrow();
        members.nodes.iter().map(|member| &member.key).filter(|key| *key != self.me()).cloned().collect()
    }

    /// Begins: from now on events go to `receiver`. Called once.
    fn start(&self, receiver: Arc<dyn Receiver>);

    /// Lets the others know that this node is going away: it takes over nothing any more.
    fn drain(&self);
}

/// No other nodes.
pub struct Alone {
    me: NodeKey,
    members: watch::Sender<Arc<Members>>,
}

impl Alone {
    /// A cluster of this node.
    #[must_use]
    pub fn new(me: NodeKey) -> Self {
        let nodes = vec![Member { key: me.clone(), draining: false, suspect: false, central: true }];
        Self { me, members: watch::Sender::new(Arc::new(Members { nodes, isolated: false })) }
    }
}

impl Cluster for Alone {
    fn me(&self) -> &NodeKey {
        &self.me
    }

    fn is_alone(&self) -> bool {
        true
    }

    fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }

    fn send(&self, _to: &NodeKey, _message: Message) -> bool {
        false
    }

    fn start(&self, _receiver: Arc<dyn Receiver>) {}

    fn drain(&self) {}
}
