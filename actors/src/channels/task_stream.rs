//! `task_stream:<id>`: a task's output, from where the reader wants it (agrenting.md E).

use std::sync::Arc;

use muster_protocol::error_code::Refusal;
use muster_protocol::ids::TaskId;
use muster_protocol::phoenix::Ref;
use muster_protocol::task_stream::join_cursor;

use crate::egress::Outlet;
use crate::socket::{OwnedPayload, Socket};
use crate::task_stream::Attachment;

/// What the join holds on to.
pub struct TaskStreamChannel {
    _attachment: Attachment,
}

impl TaskStreamChannel {
    pub(super) async fn join(
        socket: &Arc<Socket>,
        outlet: &Arc<Outlet>,
        task: TaskId,
        payload: &OwnedPayload,
        reference: &Ref,
    ) -> Result<Self, Refusal> {
        let after = match payload {
            OwnedPayload::Json(json) => join_cursor(json.as_str())?,
            OwnedPayload::Binary(_) => None,
        };
        let attachment =
            socket.core.streams.attach(task, (&socket.principal, outlet), reference, after).await?;
        Ok(Self { _attachment: attachment })
    }
}
