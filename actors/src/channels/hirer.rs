//! `hirer:<id>`: what happens to a user's hirings (agrenting.md D).

use std::sync::Arc;

use muster_protocol::json::Json;
use muster_protocol::phoenix::Ref;

use crate::egress::Outlet;
use crate::pubsub::Subscription;
use crate::socket::Socket;

/// What the join holds on to.
pub struct HirerChannel {
    _subscription: Subscription,
}

impl HirerChannel {
    pub(super) async fn join(socket: &Arc<Socket>, outlet: &Arc<Outlet>, reference: &Ref) -> Self {
        let subscription = socket.core.pubsub.subscribe(outlet.topic(), outlet).await;
        outlet.open(reference, &Json::empty_object());
        Self { _subscription: subscription }
    }
}
