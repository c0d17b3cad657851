//! Supervises the links: one that crashes is started again, and its session begins anew, for nobody knows how far it had
//! come.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::nodes::Nodes;
use super::peer::{Notice, Peer};

/// What the hub is told: nothing.
pub struct Nothing;

impl ractor::Message for Nothing {}

/// Supervises the links.
pub struct Hub {
    /// All nodes.
    pub nodes: Arc<Nodes>,
}

impl Actor for Hub {
    type Msg = Nothing;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Nothing>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Nothing>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(cell, error) = event {
            let is_its = |peer: &Arc<Peer>| {
                peer.actor.lock().as_ref().is_some_and(|actor| actor.get_id() == cell.get_id())
            };
            if let Some(peer) = self.nodes.all_peers().into_iter().find(is_its) {
                tracing::error!(peer = %peer.name, %error, "a link crashed; starting it again");
                self.nodes.begin_link(&peer);
                peer.tell(Notice::Crashed);
            }
        }
        Ok(())
    }
}
