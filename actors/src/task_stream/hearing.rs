//! What other nodes say about streams, on its way to the actors: in the order it was said, through openings and closings.

use muster_protocol::cluster::NodeKey;
use muster_protocol::cluster::stream::{StreamMessage, What};
use muster_protocol::ids::TaskId;

use super::command::Command;
use super::{INBOX_COMMANDS_MAX, Streams};
use crate::inbox::Refused;

impl Streams {
    /// A node came or went, or what was said to it and by it may be lost.
    pub fn node_changed(&self, node: &NodeKey) {
        self.registry.gone(node);
        self.tell_all(|| Command::Gone(node.clone()));
    }

    /// Other nodes are up now.
    pub fn members_changed(&self) {
        self.tell_all(|| Command::Examine);
    }

    fn tell_all(&self, command: impl Fn() -> Command) {
        for handle in self.registry.live.lock().values().filter_map(|slot| slot.get()) {
            let _stream_gone = handle.inbox.push_always(command());
        }
    }

    /// A node says something about a stream.
    pub fn hear(&self, node: NodeKey, message: StreamMessage) {
        let StreamMessage { task, follow, what } = message;
        let registry = &self.registry;
        if what == What::Released {
            return registry.released(&node, follow);
        }
        let mut asked = registry.asked.lock();
        // First those that wait, so that what a node says arrives in its order.
        if let Some(waiting) = asked.get_mut(&task) {
            if waiting.len() < INBOX_COMMANDS_MAX {
                waiting.push((node, follow, what));
            }
            return;
        }
        let (node, what) = match self.live_handle(task) {
            Some(handle) => match handle.inbox.push_always(Command::Peer { node, follow, what }) {
                Err(Refused::Closed(Command::Peer { node, what, .. })) => (node, what),
                _ => return,
            },
            None => (node, what),
        };
        match what {
            What::Follow { .. } | What::Request { .. } => {
                asked.insert(task, vec![(node, follow, what)]);
                let streams = self.clone();
                tokio::spawn(async move { streams.open_for_nodes(task).await });
            }
            What::Release => {
                let _gone = registry.peer(node, task, follow).tell(What::Released);
            }
            What::Following { .. } | What::Chunks { .. } => {
                let _gone = registry.peer(node, task, follow).tell(What::Unfollow);
            }
            What::Unfollow | What::Changed | What::NotOwner | What::Answers(_) | What::Released => {}
        }
    }

    /// Opens a stream that other nodes want something of, and gives it what they said.
    async fn open_for_nodes(&self, task: TaskId) {
        let registry = &self.registry;
        loop {
            let opened = self.open(task).await;
            let mut asked = registry.asked.lock();
            let Some(waiting) = asked.remove(&task) else { return };
            match opened {
                Ok(handle) => {
                    let mut waiting = waiting.into_iter();
                    let closed = waiting.find_map(|(node, follow, what)| {
                        let pushed = handle.inbox.push_always(Command::Peer { node, follow, what });
                        match pushed {
                            Err(Refused::Closed(Command::Peer { node, follow, what })) => {
                                Some((node, follow, what))
                            }
                            _ => None,
                        }
                    });
                    let Some(first) = closed else { return };
                    // It was forgotten in between: it is opened again.
                    registry.forget(&handle);
                    asked.insert(task, std::iter::once(first).chain(waiting).collect());
                }
                Err(refusal) => {
                    tracing::warn!(%refusal, %task, "cannot open a stream for another node");
                    for (node, follow, _) in waiting {
                        let _gone = registry.peer(node, task, follow).tell(What::NotOwner);
                    }
                    return;
                }
            }
        }
    }
}
