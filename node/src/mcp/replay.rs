//! The last events of Streamable HTTP, for clients that come back with `Last-Event-ID`.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream;
use muster_actors::ports::Environment;
use parking_lot::Mutex;
use rmcp::transport::streamable_http_server::session::{
    EventId, EventStore, EventStoreError, EventStream, ServerSseMessage,
};

/// Events kept, of all sessions together.
const EVENTS_MAX: usize = 1_024;
/// Bytes of them.
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// The events.
pub(super) struct Replay {
    environment: Environment,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    events: VecDeque<Event>,
    bytes: usize,
}

struct Event {
    id: EventId,
    stream: Arc<str>,
    message: ServerSseMessage,
    bytes: usize,
}

impl Replay {
    pub fn new(environment: Environment) -> Self {
        Self { environment, kept: Mutex::default() }
    }
}

#[async_trait::async_trait]
impl EventStore for Replay {
    async fn store_event(
        &self,
        stream_id: &str,
        event: &ServerSseMessage,
    ) -> Result<EventId, EventStoreError> {
        // Nobody guesses it: whoever has an id was sent the event.
        let random: [u8; 16] = self.environment.random();
        let id: EventId = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let bytes = match &event.message {
            Some(message) => serde_json::to_vec(message.as_ref())?.len(),
            None => 0,
        };
        let mut message = event.clone();
        message.event_id = Some(id.clone());
        let mut kept = self.kept.lock();
        kept.bytes += bytes;
        kept.events.push_back(Event { id: id.clone(), stream: stream_id.into(), message, bytes });
        while kept.events.len() > EVENTS_MAX || kept.bytes > BYTES_MAX {
            let Some(oldest) = kept.events.pop_front() else { break };
            kept.bytes -= oldest.bytes;
        }
        Ok(id)
    }

    async fn replay_events_after(&self, last_event_id: &str) -> Result<EventStream, EventStoreError> {
        let kept = self.kept.lock();
        let at = kept.events.iter().position(|event| event.id == last_event_id);
        let at = at.ok_or("the event is not kept any more, or was none")?;
        let stream = &kept.events[at].stream;
        let later: Vec<ServerSseMessage> = kept
            .events
            .iter()
            .skip(at + 1)
            .filter(|event| event.stream == *stream)
            .map(|event| event.message.clone())
            .collect();
        Ok(Box::pin(stream::iter(later)))
    }
}
