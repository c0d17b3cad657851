//! Chunks on their way to the store: all that wait go into one transaction, whatever tasks they are of, and each is
//! answered and told when it is durable.

use std::sync::Arc;

use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::limits::Limits;
use muster_protocol::phoenix::Ref;
use muster_protocol::phoenix::encode::Status;
use muster_protocol::task_channel::batch::PutChunk;
use muster_protocol::task_channel::{StreamBounds, Taken};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Audience, Told, tell};
use crate::egress::Outlet;
use crate::inbox::{Inbox, Wake};
use crate::pubsub::PubSub;
use crate::store::Store;
use crate::supervisor::ChildSpec;
use crate::task_stream::refusal_of;
use muster_protocol::json::Json;

/// Chunks of one transaction.
const BATCH_CHUNKS_MAX: usize = 256;
/// Bytes of one transaction, about.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The answer that whoever pushed a chunk waits for. It is given, whatever becomes of the chunk; until then the chunk keeps
/// its room.
pub(super) struct Answer {
    outlet: Arc<Outlet>,
    reference: Option<Ref>,
    _room: OwnedSemaphorePermit,
}

impl Answer {
    pub fn new(outlet: Arc<Outlet>, reference: Ref, room: OwnedSemaphorePermit) -> Self {
        Self { outlet, reference: Some(reference), _room: room }
    }

    fn give(mut self, result: Result<Json, Refusal>) {
        self.say(result);
    }

    fn say(&mut self, result: Result<Json, Refusal>) {
        let Some(reference) = self.reference.take() else { return };
        match result {
            Ok(response) => self.outlet.reply_soon(&reference, Status::Ok, &response),
            Err(refusal) => self.outlet.reply_soon(&reference, Status::Error, &refusal.response()),
        };
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Not answered: the writer has crashed, or the node is going away. Whether it was stored is not known.
        self.say(Err(ErrorCode::Internal.into()));
    }
}

enum Item {
    Put(Box<PutChunk>, Answer),
    Settled(oneshot::Sender<()>),
}

/// A writer: what waits for it outlives its actor.
pub(super) struct Writer {
    inbox: Inbox<Item>,
    store: Arc<dyn Store>,
    pubsub: Arc<PubSub>,
    bounds: StreamBounds,
}

impl Writer {
    pub fn new(store: Arc<dyn Store>, pubsub: Arc<PubSub>, limits: &Limits) -> Arc<Self> {
        // What waits is bounded by the room that each chunk takes.
        Arc::new(Self { inbox: Inbox::new(usize::MAX), store, pubsub, bounds: StreamBounds::from(limits) })
    }

    pub fn child(self: &Arc<Self>) -> ChildSpec {
        let writer = self.clone();
        let start = move |supervisor| -> crate::supervisor::Spawned {
            let writer = writer.clone();
            Box::pin(async move {
                let (actor, _) = Actor::spawn_linked(None, WriterActor, writer, supervisor).await?;
                Ok(actor.get_cell())
            })
        };
        ChildSpec { name: "task_channel_writer", start: Box::new(start) }
    }

    pub fn put(&self, put: PutChunk, answer: Answer) {
        // It is never closed.
        let _open = self.inbox.push_always(Item::Put(Box::new(put), answer));
    }

    /// Resolves once everything before is stored or refused.
    pub async fn settle(&self) {
        let (sender, settled) = oneshot::channel();
        let _open = self.inbox.push_always(Item::Settled(sender));
        // A crash drops what waited, and that is settled too.
        let _settled = settled.await;
    }

    async fn work(&self) {
        let (mut puts, mut answers, mut bytes) = (Vec::new(), Vec::new(), 0);
        for item in self.inbox.take() {
            match item {
                Item::Put(put, answer) => {
                    bytes += put.chunk.bytes.len();
                    puts.push(*put);
                    answers.push(answer);
                    if puts.len() >= BATCH_CHUNKS_MAX || bytes >= BATCH_BYTES_MAX {
                        self.store(std::mem::take(&mut puts), std::mem::take(&mut answers)).await;
                        bytes = 0;
                    }
                }
                Item::Settled(tell) => {
                    self.store(std::mem::take(&mut puts), std::mem::take(&mut answers)).await;
                    bytes = 0;
                    let _gone = tell.send(());
                }
            }
        }
        self.store(puts, answers).await;
    }

    async fn store(&self, puts: Vec<PutChunk>, answers: Vec<Answer>) {
        if puts.is_empty() {
            return;
        }
        match self.store.put_channel_chunks(puts.clone(), self.bounds).await {
            Ok(results) => {
                for ((put, answer), result) in puts.iter().zip(answers).zip(results) {
                    answer.give(result.map(|taken| self.taken(put, taken)));
                }
            }
            Err(error) => {
                let refusal = refusal_of(error);
                answers.into_iter().for_each(|answer| answer.give(Err(refusal.clone())));
            }
        }
    }

    /// Tells the other side of a chunk that is stored; gives the answer.
    fn taken(&self, put: &PutChunk, taken: Taken) -> Json {
        #[derive(Serialize)]
        struct Reply {
            seq: u64,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            duplicate: bool,
        }
        let direction = put.direction;
        if let Taken::New(nth) = taken {
            let to = Audience::Only(direction.sender().other());
            let told = Told { to, of: Some((direction, nth)), payload: put.chunk.payload() };
            tell(&self.pubsub, put.task, direction.chunk_event(), &told);
        }
        Json::of(&Reply { seq: put.chunk.seq, duplicate: taken == Taken::Duplicate })
    }
}

struct WriterActor;

impl Actor for WriterActor {
    type Msg = Wake;
    type State = Arc<Writer>;
    type Arguments = Arc<Writer>;

    async fn pre_start(
        &self,
        myself: ActorRef<Wake>,
        writer: Arc<Writer>,
    ) -> Result<Arc<Writer>, ActorProcessingErr> {
        writer.inbox.attach(myself);
        Ok(writer)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Wake>,
        _wake: Wake,
        writer: &mut Arc<Writer>,
    ) -> Result<(), ActorProcessingErr> {
        writer.work().await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Wake>,
        _event: SupervisionEvent,
        _writer: &mut Arc<Writer>,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}
