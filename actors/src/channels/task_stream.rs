//! `task_stream:<id>`: a task's output, from where the reader wants it (agrenting.md E).

use std::sync::Arc;

use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::TaskId;
use muster_protocol::json::read_object;
use muster_protocol::phoenix::Ref;
use serde::Deserialize;

use crate::egress::Outlet;
use crate::socket::{OwnedPayload, Socket};
use crate::task_stream::Attachment;

/// What the join holds on to.
pub struct TaskStreamChannel {
    _attachment: Attachment,
}

#[derive(Default, Deserialize)]
struct JoinPayload {
    #[serde(default)]
    after_seq: Option<serde_json::Value>,
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
            // Whatever is no object carries no cursor: Phoenix takes any payload at a join.
            OwnedPayload::Json(json) if json.as_bytes().starts_with(b"{") => {
                read_object::<JoinPayload>(json.as_str())?.after_seq
            }
            _ => None,
        };
        let after = match after {
            None | Some(serde_json::Value::Null) => None,
            Some(value) => Some(value.as_u64().ok_or_else(|| {
                Refusal::field(ErrorCode::InvalidPayload, "after_seq", "a whole number from 0")
            })?),
        };
        let attachment =
            socket.core.streams.attach(task, (&socket.principal, outlet), reference, after).await?;
        Ok(Self { _attachment: attachment })
    }
}
