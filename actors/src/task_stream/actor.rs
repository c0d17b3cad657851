//! The actor of one task's stream. Here a chunk gets its seq, is sent to the store and goes out to the readers; here
//! the end of a task is ordered after its last chunk.
//!
//! In a cluster one node owns the stream and does that; on each other node that has to do with it, the same actor follows
//! the owner. Either becomes the other when nodes come and go, and its readers stay.

mod delivery;
mod ending;
mod following;
mod forwarding;
mod gathering;
mod owning;
mod storing;
mod taking_over;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::analytics::Event;
use muster_protocol::cluster::NodeKey;
use muster_protocol::cluster::stream::What;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::ids::AgentId;
use muster_protocol::task::{Ending, Task, TaskAction};
use muster_protocol::task_stream::{Chunk, NewChunk, Retain, StreamLog};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use smol_str::SmolStr;

use self::gathering::Gathering;
use super::ack::Ack;
use super::command::Command;
use super::reader::Reader;
use super::{Handle, Registry, Tail};
use crate::egress::Roster;
use crate::inbox::Wake;
use crate::settings::Acknowledge;
use crate::store::{Append, StoreError, StreamHead};

/// What this node is to the stream.
enum Role {
    /// It gives out the seqs and writes to the store.
    Owner(owning::Owning),
    /// Another does, or it is not known yet who.
    Follower(following::Following),
}

pub(super) struct StreamActor;

/// State of one stream.
pub(super) struct State {
    handle: Arc<Handle>,
    registry: Arc<Registry>,
    role: Role,
    /// What its owner writes under: another that claims it fences that one off.
    epoch: u64,
    /// Commands that wait until this stream knows where it stands, and whether it may by now.
    held: Vec<Command>,
    run_held_again: bool,
    /// A node that took the stream over, and when.
    favoured: Option<(NodeKey, u64)>,
    /// When it is to wake by itself.
    wake_due_ms: Option<u64>,
    log: StreamLog,
    /// Readers may have chunks up to this seq.
    shown_seq: u64,
    /// First seq the store has; older ones are gone.
    stored_from: u64,
    task: Task,
    ending: Option<Ending>,
    readers: Roster<Reader>,
    acks: Vec<(u64, Ack)>,
    /// Chunks that have their seq but were not sent out yet.
    fresh: Vec<Chunk>,
    begins_task: bool,
    appends_pending: usize,
    bytes_counted: usize,
    active_at_ms: u64,
    tick_pending: bool,
    gathering: Gathering,
}

/// How often a stream looks after stalled readers and its own idleness, in milliseconds.
const TICK_MS: u64 = 5_000;

impl Actor for StreamActor {
    type Msg = Wake;
    type State = State;
    type Arguments = (Arc<Handle>, Arc<Registry>, StreamHead, bool);

    async fn pre_start(
        &self,
        _myself: ActorRef<Wake>,
        (handle, registry, head, is_owner): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let active_at_ms = registry.environment.monotonic_ms();
        let role = if is_owner {
            Role::Owner(owning::Owning::default())
        } else {
            Role::Follower(following::Following::new(false, active_at_ms))
        };
        let mut state = State {
            role,
            held: Vec::new(),
            run_held_again: false,
            favoured: None,
            wake_due_ms: None,
            ending: Ending::of(&head.task),
            epoch: head.epoch,
            shown_seq: head.last_seq,
            log: StreamLog::restore(head.last_seq, head.newest),
            stored_from: head.first_seq,
            task: head.task,
            handle,
            registry,
            readers: Roster::default(),
            acks: Vec::new(),
            fresh: Vec::new(),
            begins_task: false,
            appends_pending: 0,
            bytes_counted: 0,
            active_at_ms,
            tick_pending: false,
            gathering: Gathering::default(),
        };
        state.registry.metrics.streams.inc();
        state.count_bytes();
        Ok(state)
    }

    async fn post_start(&self, myself: ActorRef<Wake>, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.handle.inbox.attach(myself.clone());
        state.schedule_tick(&myself);
        state.settle(&myself);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Wake>,
        wake: Wake,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match wake {
            Wake::Work => state.work(&myself).await,
            Wake::Tick => {
                // What was told quietly.
                state.work(&myself).await;
                state.tick(&myself);
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Wake>,
        _event: SupervisionEvent,
        _state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

/// What an owner sent in several messages, as if it were one: then it leaves for this node's readers as one write, too.
fn joined(commands: impl Iterator<Item = Command>) -> Vec<Command> {
    let mut joined: Vec<Command> = Vec::new();
    for command in commands {
        match (joined.last_mut(), command) {
            (
                Some(Command::Peer { node, follow, what: What::Chunks { chunks } }),
                Command::Peer { node: from, follow: its, what: What::Chunks { chunks: more } },
            ) if *node == from && *follow == its => chunks.extend(more),
            (_, command) => joined.push(command),
        }
    }
    joined
}

impl State {
    async fn work(&mut self, myself: &ActorRef<Wake>) {
        self.gather().await;
        let mut commands = self.handle.inbox.take();
        if self.wake_due_ms.is_some_and(|due_ms| due_ms <= self.registry.environment.monotonic_ms()) {
            self.wake_due_ms = None;
            self.mind_owner(myself);
        }
        if commands.is_empty() {
            return;
        }
        // That nodes come and go is no use of the stream.
        if commands.iter().any(|command| !matches!(command, Command::Examine | Command::Gone(_))) {
            self.active_at_ms = self.registry.environment.monotonic_ms();
        }
        let emitted = commands.iter().filter(|command| matches!(command, Command::Emit { .. })).count();
        self.gathering.took(emitted);
        loop {
            self.run(myself, commands).await;
            if !std::mem::take(&mut self.run_held_again) {
                break;
            }
            commands = std::mem::take(&mut self.held);
        }
        // Last: keys that were looked up in memory above stay there for as long as this batch needs them.
        self.trim();
        self.note_waiting(myself);
    }

    async fn run(&mut self, myself: &ActorRef<Wake>, commands: Vec<Command>) {
        let commands = joined(commands.into_iter().map(|command| self.as_chunk(command)));
        let known = self.seqs_known_to_store(&commands).await;
        for command in commands {
            // Another node may have come to own the stream by one of those before.
            let Some(command) = self.hold(myself, command) else { continue };
            match (command, &self.role) {
                (Command::Emit { by, chunk, ack }, Role::Owner(_)) => self.emit(by, chunk, ack, &known),
                (Command::Emit { by, chunk, ack }, Role::Follower(_)) => self.forward_chunk(by, chunk, ack),
                (other, _) => {
                    // What was emitted before goes out before.
                    self.send_out().await;
                    self.obey(myself, other).await;
                }
            }
        }
        self.send_out().await;
        self.show();
        self.let_go_when_stored(myself);
    }

    async fn obey(&mut self, myself: &ActorRef<Wake>, command: Command) {
        match command {
            Command::Emit { .. } => {}
            Command::Attach { joining, after } => {
                self.show();
                self.attach(joining, after);
            }
            Command::Detach(id) => self.detach(id),
            Command::Drained(id) => self.advance(id),
            Command::Fetched(id, fetched) => self.fetched(id, fetched),
            Command::Read { after, bytes_max, reply } => {
                // Whoever has an acknowledgement finds its chunk.
                self.show();
                self.read(after, bytes_max, reply);
            }
            Command::Stored { upto, epoch, result } => self.stored(myself, (upto, epoch), result),
            Command::Finish { ending, by, provider, again, reply } => {
                self.finish_or_forward(myself, (ending, again), (by, provider), reply).await;
            }
            Command::Reassign { provider, by, again, reply } => {
                self.reassign_or_forward(myself, (provider, by, again), reply).await;
            }
            #[allow(clippy::panic, reason = "a crash drill crashes")]
            Command::Panic => panic!("crash drill"),
            Command::Peer { node, follow, what } => self.obey_peer(myself, (node, follow), what).await,
            Command::Examine => self.examine(myself),
            Command::Gone(node) => self.gone(myself, &node),
            Command::Claimed { follow, result } => self.claimed(myself, follow, result),
            Command::Verified(epoch) => self.verified(myself, epoch),
            Command::TaskRead(read) => self.task_read(read),
            Command::EndRead(head) => self.end_read(*head),
        }
    }

    /// Where memory no longer has all chunks, the store knows which of the keys at hand are old.
    async fn seqs_known_to_store(&self, commands: &[Command]) -> HashMap<SmolStr, u64> {
        if !self.log.has_chunks_only_in_store() {
            return HashMap::new();
        }
        let keys: Vec<SmolStr> = commands
            .iter()
            .filter_map(|command| match command {
                Command::Emit { chunk, .. } => chunk.idempotency_key.clone(),
                _ => None,
            })
            .filter(|key| self.log.seq_of_key(key).is_none())
            .collect();
        if keys.is_empty() {
            return HashMap::new();
        }
        match self.registry.store.seqs_of_keys(self.task.id, &keys).await {
            Ok(found) => found.into_iter().collect(),
            Err(error) => {
                // Without the answer a retry would double its chunk: these are refused, and tried again.
                tracing::error!(%error, "cannot look up idempotency keys");
                keys.into_iter().map(|key| (key, UNKNOWABLE)).collect()
            }
        }
    }

    fn emit(&mut self, by: AgentId, chunk: NewChunk, ack: Ack, known: &HashMap<SmolStr, u64>) {
        let metrics = &self.registry.metrics;
        // Asked before, but the task may have been given to another since.
        if by != self.task.provider {
            ack.refuse(&ErrorCode::Unauthorized.into());
            return;
        }
        let same = |key: &SmolStr| self.log.seq_of_key(key).or_else(|| known.get(key).copied());
        match chunk.idempotency_key.as_ref().and_then(same) {
            None => {}
            Some(UNKNOWABLE) => {
                ack.refuse(&ErrorCode::StoreUnavailable.into());
                return;
            }
            Some(seq) => {
                metrics.chunks_deduplicated.inc();
                self.acknowledge(ack, seq);
                return;
            }
        }
        match self.task.status.after(TaskAction::Emit) {
            Ok(status) => {
                self.begins_task |= status != self.task.status;
                self.task.status = status;
            }
            Err(refusal) => {
                metrics.chunks_refused.get_or_create(&[("reason", refusal.code.reason())]).inc();
                ack.refuse(&refusal);
                return;
            }
        }
        metrics.chunks.inc();
        let chunk = self.log.append(chunk, self.registry.environment.now());
        let seq = chunk.seq;
        self.fresh.push(chunk);
        self.acknowledge(ack, seq);
    }

    /// Answers at once what is durable already, or need not be; the rest waits for the store.
    fn acknowledge(&mut self, ack: Ack, seq: u64) {
        if seq <= self.log.durable_seq() || self.registry.settings.acknowledge == Acknowledge::Memory {
            ack.ok(seq);
        } else {
            self.acks.push((seq, ack));
        }
    }

    /// Hands the new chunks to the store; where no other node can come to own the stream, readers have them before.
    async fn send_out(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let fresh = std::mem::take(&mut self.fresh);
        if !self.shows_what_is_stored() {
            self.show_chunks(&fresh);
        }
        self.registry.analytics.record(Event::Chunks(&self.task, fresh.len() as u64));
        let now = self.registry.environment.now();
        let upto = fresh.last().map_or(0, |chunk| chunk.seq);
        let append = Append {
            task: self.task.id,
            epoch: self.epoch,
            chunks: fresh,
            begins_task: std::mem::take(&mut self.begins_task),
            is_awaited: self.shows_what_is_stored() || self.acks.iter().any(|(seq, _)| *seq <= upto),
            now,
        };
        self.appends_pending += 1;
        let first = append.chunks.first().map_or(0, |chunk| chunk.seq);
        // Nodes that passed chunks on are answered behind these chunks.
        let of_this = self.acks.extract_if(.., |(seq, ack)| *seq >= first && !ack.is_of_peer()).collect();
        let done = self.when_stored((upto, self.epoch), of_this);
        self.registry.store.append_chunks(append, done).await;
        self.count_bytes();
    }

    /// The store did not take a write: what is in memory is not to be trusted any more. Producers are told to try again,
    /// readers to join again, and the stream is opened anew from its log.
    fn give_up(&mut self, myself: &ActorRef<Wake>, error: &StoreError) {
        tracing::error!(%error, task = %self.task.id, "stream cannot be written; closing it");
        let refusal = Refusal::new(ErrorCode::StoreUnavailable);
        for (_, ack) in self.acks.drain(..) {
            ack.refuse(&refusal);
        }
        for mut reader in self.readers.take() {
            reader.released = true;
            reader.outlet.fail(refusal.code.reason());
        }
        self.refuse_waiting(&refusal);
        self.registry.forget(&self.handle);
        for command in self.handle.inbox.close() {
            command.refuse(&refusal);
        }
        myself.stop(None);
    }

    fn tell_tail(&self) {
        if self.handle.tail.receiver_count() > 0 {
            self.handle.tail.send_replace(Tail { seq: self.shown_seq, ended: self.ending.is_some() });
        }
    }

    fn trim(&mut self) {
        self.log.trim(self.retain());
        self.count_bytes();
    }

    fn retain(&self) -> Retain {
        let limits = &self.registry.limits;
        if self.registry.memory_is_short() {
            return Retain { chunks_max: 0, bytes_max: 0 };
        }
        Retain { chunks_max: limits.stream_buffer_chunks_max, bytes_max: limits.stream_buffer_bytes_max }
    }

    fn count_bytes(&mut self) {
        self.registry.count_bytes(self.bytes_counted, self.log.bytes());
        self.bytes_counted = self.log.bytes();
    }

    fn schedule_tick(&mut self, myself: &ActorRef<Wake>) {
        if !std::mem::replace(&mut self.tick_pending, true) {
            myself.send_after(Duration::from_millis(TICK_MS), || Wake::Tick);
        }
    }

    fn tick(&mut self, myself: &ActorRef<Wake>) {
        self.tick_pending = false;
        let now_ms = self.registry.environment.monotonic_ms();
        let stall_ms = self.registry.limits.reader_stall_timeout_ms;
        let metrics = &self.registry.metrics;
        self.readers.retain_mut(|reader| {
            if !reader.is_stalled(now_ms, stall_ms) {
                return true;
            }
            metrics.readers_stalled.inc();
            reader.released = true;
            reader.outlet.fail(ErrorCode::ReaderStalled.reason());
            false
        });
        let idle_ms = now_ms.saturating_sub(self.active_at_ms);
        let keep_ms = match self.ending {
            Some(_) => self.registry.settings.finished_replay_ms,
            None => self.registry.settings.idle_unload_ms,
        };
        self.mind_readers(myself);
        self.remind_owner(myself);
        if idle_ms < keep_ms || !self.end_if_unused(myself) {
            self.schedule_tick(myself);
        }
    }

    /// Ends this actor if nobody needs the stream here: whoever does later opens it again. Whether it has.
    fn end_if_unused(&mut self, myself: &ActorRef<Wake>) -> bool {
        let unused = self.readers.iter().all(|reader| reader.told_end)
            && self.handle.tail.receiver_count() == 0
            && self.acks.is_empty()
            && self.appends_pending == 0
            && self.held.is_empty()
            && match &self.role {
                Role::Owner(owning) => !owning.is_followed(),
                Role::Follower(following) => !following.is_waited_for(),
            };
        if !unused || !self.handle.inbox.close_if_empty() {
            return false;
        }
        self.unfollow();
        self.readers.iter_mut().for_each(|reader| reader.released = true);
        self.registry.forget(&self.handle);
        myself.stop(None);
        true
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.registry.metrics.streams.dec();
        self.registry.count_bytes(self.bytes_counted, 0);
    }
}

/// Stands in the table of known keys where the store could not be asked.
const UNKNOWABLE: u64 = u64::MAX;
