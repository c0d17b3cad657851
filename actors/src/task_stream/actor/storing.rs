//! From the store back to the producers: acknowledgements leave with the commit that makes them true, without waking the
//! stream, which learns of it when it wakes for something else.

use std::sync::atomic::Ordering;

use muster_protocol::error_code::ErrorCode;
use ractor::ActorRef;

use super::{Role, State};
use crate::inbox::Wake;
use crate::store::{AppendDone, StoreError};
use crate::task_stream::ack::{Ack, AckBatch};
use crate::task_stream::command::Command;

impl State {
    /// What is done when the store has an append, or could not take it: its acknowledgements are answered.
    pub(super) fn when_stored(&self, (upto, epoch): (u64, u64), acks: Vec<(u64, Ack)>) -> AppendDone {
        let (handle, registry) = (self.handle.clone(), self.registry.clone());
        Box::new(move |result| {
            let now_ms = registry.environment.monotonic_ms();
            let mut batch = AckBatch::default();
            for (seq, ack) in acks {
                match &result {
                    Ok(()) => {}
                    Err(StoreError::Fenced) => {
                        ack.not_owner(&ErrorCode::OwnerUnreachable.into());
                        continue;
                    }
                    Err(_) => {
                        ack.refuse(&ErrorCode::StoreUnavailable.into());
                        continue;
                    }
                }
                #[allow(clippy::cast_precision_loss, reason = "milliseconds of one acknowledgement")]
                let seconds = now_ms.saturating_sub(ack.received_at_ms) as f64 / 1_000.0;
                registry.metrics.chunk_ack_seconds.observe(seconds);
                batch.ok(ack, seq);
            }
            let is_news = result.is_err();
            let stored = Command::Stored { upto, epoch, result };
            // Quietly first and asked afterwards, so that whoever begins to wait in between finds it there.
            let told =
                if is_news { handle.inbox.push_always(stored) } else { handle.inbox.push_quietly(stored) };
            // Behind that, so that whoever has an acknowledgement finds its chunk.
            drop(batch);
            if told.is_ok() && handle.awaits_store.load(Ordering::Acquire) {
                handle.inbox.wake();
            }
        })
    }

    /// After a turn: the store's answers wake the stream only if readers or a retry of a chunk that it is still storing
    /// wait for them, or more is held than should be, until it is stored.
    pub(super) fn note_waiting(&self, myself: &ActorRef<Wake>) {
        let waits = !self.acks.is_empty()
            || self.appends_pending > 0
                && (self.shows_what_is_stored() || self.is_leaving() || self.log.is_over(self.retain()));
        self.handle.awaits_store.store(waits, Ordering::Release);
        if waits && !self.handle.inbox.is_empty() {
            // It came before the note; a stream that is ending hears no more.
            let _ending = myself.send_message(Wake::Work);
        }
    }

    pub(super) fn stored(
        &mut self,
        myself: &ActorRef<Wake>,
        (upto, epoch): (u64, u64),
        result: Result<(), StoreError>,
    ) {
        self.appends_pending -= 1;
        if let Err(error) = result {
            // Of an earlier time as owner, it is known already.
            if epoch == self.epoch && matches!(self.role, Role::Owner(_)) {
                self.fenced(myself, &error);
            }
            return;
        }
        self.log.confirm(upto);
        if self.acks.iter().any(|(seq, _)| *seq <= upto) {
            self.show();
        }
        let mut batch = AckBatch::default();
        for (seq, ack) in self.acks.extract_if(.., |(seq, _)| *seq <= upto) {
            batch.ok(ack, seq);
        }
    }
}
