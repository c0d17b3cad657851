//! How a stream's chunks reach its readers: live while they keep up, from the log when they do not.

use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::join_rules::may_read_stream;
use muster_protocol::json::Json;
use muster_protocol::task_stream::{Chunk, Read};
use serde::Serialize;
use tokio::sync::oneshot;

use super::State;
use crate::egress::{Burst, Class, OfOutlet, Outcome, OutletId};
use crate::store::StoreError;
use crate::task_stream::command::Reading;
use crate::task_stream::reader::{Joining, Mode};

impl State {
    /// Whether readers have chunks only once the store has them. Else a node that owns a stream no more without knowing
    /// would show them what another owner gives other seqs to, and readers go on from the last seq they saw.
    pub(super) fn shows_what_is_stored(&self) -> bool {
        !self.registry.cluster.is_alone()
    }

    /// Sends readers and the nodes that follow what they may have by now.
    pub(super) fn show(&mut self) {
        let upto = self.log.durable_seq();
        while self.shown_seq < upto {
            match self.log.read(self.shown_seq, upto, usize::MAX) {
                Read::Chunks(chunks) => {
                    let chunks: Vec<Chunk> = chunks.into_iter().cloned().collect();
                    self.show_chunks(&chunks);
                }
                Read::Stored { upto } => {
                    self.shown_seq = upto;
                    self.advance_all();
                }
                Read::End => return,
            }
        }
    }

    /// Sends chunks that follow on those before.
    pub(super) fn show_chunks(&mut self, chunks: &[Chunk]) {
        let Some(last) = chunks.last() else { return };
        self.shown_seq = last.seq;
        let begun_us = self.registry.environment.monotonic_us();
        self.tell_followers(chunks);
        self.fan_out(chunks);
        self.gathering.fanned_out(self.registry.environment.monotonic_us() - begun_us);
        self.tell_tail();
    }

    fn fan_out(&mut self, fresh: &[Chunk]) {
        let Some(first) = fresh.first().map(|chunk| chunk.seq) else { return };
        let bytes: usize = fresh.iter().map(Chunk::weight).sum();
        let small = bytes <= self.registry.limits.stream_read_bytes_max;
        let events = fresh
            .iter()
            .map(|chunk| (muster_protocol::topic::event::STREAM_CHUNK, chunk.body.clone()))
            .collect();
        let topic =
            self.readers.iter().next().map(|reader| reader.outlet.topic().clone()).unwrap_or_default();
        let mut burst = Burst::new(&topic, events);
        let now_ms = self.active_at_ms;
        let mut slow = Vec::new();
        let metrics = &self.registry.metrics;
        self.readers.retain_mut(|reader| {
            if reader.mode != Mode::Live {
                return true;
            }
            if !small || reader.cursor + 1 != first {
                slow.push(reader.outlet_id());
                return true;
            }
            match reader.outlet.write(Class::Stream, &[burst.pushes(&reader.outlet)]) {
                Outcome::Taken => {
                    reader.cursor += fresh.len() as u64;
                    metrics.chunks_delivered.inc_by(fresh.len() as u64);
                    true
                }
                Outcome::Full => {
                    metrics.readers_lagged.inc();
                    reader.fall_behind(now_ms);
                    self.handle.wake_when_drained(&reader.outlet);
                    true
                }
                Outcome::Gone => {
                    reader.released = true;
                    false
                }
            }
        });
        for id in slow {
            self.advance(id);
        }
    }

    pub(super) fn attach(&mut self, joining: Joining, after: Option<u64>) {
        let (cursor, truncated) = self.start_of(after);
        #[derive(Serialize)]
        struct Joined {
            seq: u64,
            first_seq: u64,
            status: &'static str,
            truncated: bool,
        }
        let response = Joined {
            seq: self.newest_readable(),
            first_seq: if cursor < self.shown_seq { cursor + 1 } else { 0 },
            status: self.task.status.as_str(),
            truncated,
        };
        let reader = joining.answer(&Json::of(&response), cursor);
        // It may have been admitted before the task was given to another.
        if !may_read_stream(&reader.principal, &self.task.parties()) {
            reader.outlet.close();
        }
        let id = reader.outlet_id();
        self.readers.insert(reader);
        self.advance(id);
    }

    /// Where a reader starts, and whether it misses something it asked for (agrenting.md R43, R44).
    fn start_of(&self, after: Option<u64>) -> (u64, bool) {
        let oldest = self.stored_from - 1;
        match after {
            // A plain join gets what is in memory.
            None => {
                let cursor = (self.log.first_in_memory() - 1).max(oldest).min(self.shown_seq);
                (cursor, cursor > 0)
            }
            // A reader that is ahead of a node alone saw chunks that were never acknowledged. Their retries come again,
            // under the same seqs, and it is sent what comes after these. Of several nodes this one is only behind.
            Some(after) => (after.max(oldest), after < oldest),
        }
    }

    fn newest_readable(&self) -> u64 {
        if self.stored_from > self.shown_seq { 0 } else { self.shown_seq }
    }

    pub(super) fn detach(&mut self, id: OutletId) {
        if let Some(mut reader) = self.readers.remove(id) {
            reader.released = true;
        }
    }

    /// Sends every reader what it does not have, and lets those know that come for it.
    pub(super) fn advance_all(&mut self) {
        let ids: Vec<OutletId> = self.readers.iter().map(OfOutlet::outlet_id).collect();
        for id in ids {
            self.advance(id);
        }
        self.tell_tail();
    }

    /// Brings a reader as far as its connection takes it.
    pub(super) fn advance(&mut self, id: OutletId) {
        let Some(reader) = self.readers.get_mut(id) else { return };
        if reader.mode == Mode::WaitsForStore {
            return;
        }
        loop {
            let bytes_max = self.registry.limits.stream_read_bytes_max;
            let outcome = match self.log.read(reader.cursor, self.shown_seq, bytes_max) {
                Read::Chunks(chunks) => {
                    let chunks: Vec<_> = chunks.iter().map(|chunk| (chunk.seq, chunk.body.clone())).collect();
                    self.registry.metrics.chunks_delivered.inc_by(chunks.len() as u64);
                    reader.send_chunks(&chunks)
                }
                Read::Stored { upto } => {
                    reader.mode = Mode::WaitsForStore;
                    let after = reader.cursor.max(self.stored_from - 1);
                    self.registry.clone().fetch(self.handle.clone(), id, after, upto);
                    return;
                }
                Read::End => match &self.ending {
                    Some(ending) if !reader.told_end => {
                        let (event, payload) = ending.event();
                        let outcome = reader.outlet.push(Class::Stream, event, &payload);
                        reader.told_end = outcome == Outcome::Taken;
                        outcome
                    }
                    _ => {
                        reader.mode = Mode::Live;
                        return;
                    }
                },
            };
            match outcome {
                Outcome::Taken => {}
                Outcome::Full => {
                    if reader.mode == Mode::Live {
                        self.registry.metrics.readers_lagged.inc();
                    }
                    reader.fall_behind(self.active_at_ms);
                    self.handle.wake_when_drained(&reader.outlet);
                    return;
                }
                Outcome::Gone => {
                    self.detach(id);
                    return;
                }
            }
        }
    }

    pub(super) fn fetched(&mut self, id: OutletId, fetched: Result<Vec<Chunk>, StoreError>) {
        let Some(reader) = self.readers.get_mut(id) else { return };
        let chunks = match fetched {
            Ok(chunks) => chunks,
            Err(error) => {
                tracing::error!(%error, "cannot read a stream from the store");
                reader.outlet.fail(ErrorCode::StoreUnavailable.reason());
                self.detach(id);
                return;
            }
        };
        reader.mode = Mode::Live;
        if chunks.is_empty() {
            // The store has dropped them meanwhile: what is in memory is all there is.
            reader.cursor = self.log.first_in_memory() - 1;
            self.stored_from = self.log.first_in_memory();
        } else {
            let chunks: Vec<_> = chunks.into_iter().map(|chunk| (chunk.seq, chunk.body)).collect();
            self.registry.metrics.chunks_delivered.inc_by(chunks.len() as u64);
            if reader.send_chunks(&chunks) == Outcome::Full {
                reader.fall_behind(self.active_at_ms);
                self.handle.wake_when_drained(&reader.outlet);
                return;
            }
        }
        self.advance(id);
    }

    pub(super) fn read(
        &mut self,
        after: Option<u64>,
        bytes_max: usize,
        reply: oneshot::Sender<Result<Reading, Refusal>>,
    ) {
        let (cursor, truncated) = self.start_of(after);
        let last_seq = self.shown_seq;
        let mut reading = Reading {
            chunks: Vec::new(),
            seq: self.newest_readable(),
            first_seq: if cursor < last_seq { cursor + 1 } else { 0 },
            truncated,
            status: self.task.status.as_str(),
            ending: None,
        };
        match self.log.read(cursor, last_seq, bytes_max) {
            Read::Chunks(chunks) => {
                reading.chunks = chunks.iter().map(|chunk| (chunk.seq, chunk.body.clone())).collect();
                let is_last = reading.chunks.last().is_some_and(|(seq, _)| *seq == last_seq);
                reading.ending = self.ending.clone().filter(|_| is_last);
            }
            Read::End => reading.ending = self.ending.clone(),
            Read::Stored { upto } => {
                // Once the last chunk is read, that is the end.
                reading.ending = self.ending.clone();
                self.registry.clone().read_stored(self.task.id, (cursor, upto, bytes_max), reading, reply);
                return;
            }
        }
        let _reader_gone = reply.send(Ok(reading));
    }
}
