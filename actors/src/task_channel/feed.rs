//! What one join of a task's channel is told: live as long as it keeps up, otherwise from the store.
//!
//! Chunks have numbers in the order of their arrival. A feed that has told the client of number n takes n + 1 as it is
//! published; whatever does not follow (a replay is under way, a publication was lost, the connection is full) is read
//! from the store by a task of its own, until nothing is left to read. What is said about the whole task waits as long.

use std::sync::{Arc, Weak};
use std::time::Duration;

use muster_protocol::error_code::ErrorCode;
use muster_protocol::ids::{AgentId, TaskId};
use muster_protocol::json::Json;
use muster_protocol::task_channel::payloads::JoinRequest;
use muster_protocol::task_channel::{Direction, Side};
use muster_protocol::topic::event;
use parking_lot::Mutex;
use smol_str::SmolStr;
use tokio::sync::oneshot;

use super::{Audience, REASSIGNED, Shared, Told, end_event, facts_of, task_payload};
use crate::egress::{Class, Outcome, Outlet};
use crate::pubsub::Listener;
use crate::store::{ChannelState, ChunkRange, StoreError, StoredChunk};

/// Events that wait until a feed has caught up; with more it ends, and its client joins again.
const HELD_EVENTS_MAX: usize = 256;

/// What one join is told.
pub(super) struct Feed {
    task: TaskId,
    agent: AgentId,
    outlet: Arc<Outlet>,
    shared: Weak<Shared>,
    stall_timeout: Duration,
    read_bytes_max: usize,
    inner: Mutex<Inner>,
    myself: Weak<Self>,
}

/// How far one direction has been told.
#[derive(Clone, Copy, Default)]
struct Cursor {
    /// Whether the join hears it: it speaks for the other side.
    is_heard: bool,
    /// Number of the last chunk that was told.
    told: u64,
    /// Number of the newest chunk that is known to exist.
    newest: u64,
    /// Whether the end was told.
    is_complete: bool,
}

struct Inner {
    /// Whether it is known whom the join speaks for.
    is_begun: bool,
    /// Whether the store is being read; it is from the start, until [`Feed::begin`].
    is_behind: bool,
    /// Whether something may be missing that no number tells of.
    is_unsure: bool,
    streams: [Cursor; 2],
    /// What waits until the feed has caught up, in order. The end of a stream names it.
    held: Vec<(SmolStr, Json, Option<Direction>)>,
    is_ended: bool,
}

const fn place(direction: Direction) -> usize {
    match direction {
        Direction::Input => 0,
        Direction::Output => 1,
    }
}

/// Chunks that are sent again at the start of a join.
struct Replay {
    direction: Direction,
    after: Option<u64>,
    nth_max: u64,
}

impl Feed {
    /// Silent until [`Self::begin`].
    pub fn new(shared: &Arc<Shared>, task: TaskId, agent: AgentId, outlet: Arc<Outlet>) -> Arc<Self> {
        let streams = [Cursor::default(); 2];
        let inner = Inner {
            is_begun: false,
            is_behind: true,
            is_unsure: false,
            streams,
            held: Vec::new(),
            is_ended: false,
        };
        Arc::new_cyclic(|myself| Self {
            task,
            agent,
            outlet,
            shared: Arc::downgrade(shared),
            stall_timeout: Duration::from_millis(shared.limits.reader_stall_timeout_ms),
            read_bytes_max: shared.limits.stream_read_bytes_max,
            inner: Mutex::new(inner),
            myself: myself.clone(),
        })
    }

    /// The join is answered: sends again what was asked for, and goes on from there.
    pub fn begin(&self, state: &ChannelState, request: JoinRequest) {
        let facts = facts_of(&state.task);
        let mut replays = Vec::new();
        {
            let mut inner = self.inner.lock();
            inner.is_begun = true;
            for direction in Direction::ALL {
                let stream = state.stream(direction);
                let cursor = &mut inner.streams[place(direction)];
                cursor.is_heard = facts.is(self.agent, direction.sender().other());
                cursor.told = stream.chunks;
                cursor.newest = cursor.newest.max(stream.chunks);
                // Its own a side has; it is sent again to a side that says from where.
                let is_wanted = cursor.is_heard || request.after_seq(direction).is_some();
                if request.replay && is_wanted {
                    let after = request.after_seq(direction);
                    replays.push(Replay { direction, after, nth_max: stream.chunks });
                }
                let Some(closing) = &stream.closing else { continue };
                if !(request.replay && cursor.is_heard) {
                    // Told before this join; only a replay tells it again, at its end.
                    cursor.is_complete = true;
                } else if !inner.held.iter().any(|(_, _, of)| *of == Some(direction)) {
                    let event = direction.complete_event().into();
                    inner.held.insert(0, (event, Json::of(closing), Some(direction)));
                }
            }
            inner.is_ended |= state.task.status.is_final();
        }
        self.catch_up(replays);
    }

    /// Something of what was published may be lost.
    pub fn missed(&self) {
        let starts = {
            let mut inner = self.inner.lock();
            inner.is_unsure = true;
            !std::mem::replace(&mut inner.is_behind, true)
        };
        if starts {
            self.catch_up(Vec::new());
        }
    }

    /// Reads the store from now on, in a task of its own. The feed has been marked as behind.
    fn catch_up(&self, replays: Vec<Replay>) {
        let Some(feed) = self.myself.upgrade() else { return };
        tokio::spawn(async move {
            let mut watched = Watched { feed: &feed, is_done: false };
            let reason = feed.read_on(replays).await.err();
            watched.is_done = true;
            if let Some(reason) = reason {
                feed.outlet.fail(reason.reason());
            }
        });
    }

    /// Sends again, and then what is left to tell; gives why the join ends, if it does.
    async fn read_on(&self, replays: Vec<Replay>) -> Result<(), ErrorCode> {
        for Replay { direction, mut after, nth_max } in replays {
            loop {
                let chunks = self.read(direction, ChunkRange::BySeq { after, nth_max }).await?;
                let Some(last) = chunks.last() else { break };
                after = Some(last.chunk.seq);
                for stored in &chunks {
                    if !self.push(direction.chunk_event(), &stored.chunk.payload()).await? {
                        return Ok(());
                    }
                }
            }
        }
        loop {
            self.make_sure().await?;
            if let Some((direction, after)) = self.next_missing() {
                let chunks = self.read(direction, ChunkRange::ByArrival { after }).await?;
                if chunks.is_empty() {
                    // Not kept any longer.
                    let mut inner = self.inner.lock();
                    let cursor = &mut inner.streams[place(direction)];
                    cursor.told = cursor.newest;
                }
                for stored in &chunks {
                    if !self.push(direction.chunk_event(), &stored.chunk.payload()).await? {
                        return Ok(());
                    }
                    let mut inner = self.inner.lock();
                    let cursor = &mut inner.streams[place(direction)];
                    cursor.told = stored.nth;
                    cursor.newest = cursor.newest.max(stored.nth);
                }
                continue;
            }
            match self.next_held() {
                Held::Event(event, payload) => {
                    if !self.push(&event, &payload).await? {
                        return Ok(());
                    }
                }
                Held::More => {}
                Held::None => return Ok(()),
            }
        }
    }

    /// The first direction of which chunks are missing, and after which number.
    fn next_missing(&self) -> Option<(Direction, u64)> {
        let inner = self.inner.lock();
        Direction::ALL.into_iter().find_map(|direction| {
            let cursor = inner.streams[place(direction)];
            (cursor.is_heard && cursor.told < cursor.newest).then_some((direction, cursor.told))
        })
    }

    /// What waits; with nothing left the feed is live from here on, under the same lock.
    fn next_held(&self) -> Held {
        let mut inner = self.inner.lock();
        if inner.is_unsure
            || inner.streams.iter().any(|cursor| cursor.is_heard && cursor.told < cursor.newest)
        {
            return Held::More;
        }
        if inner.held.is_empty() {
            inner.is_behind = false;
            return Held::None;
        }
        let (event, payload, of) = inner.held.remove(0);
        if let Some(direction) = of {
            inner.streams[place(direction)].is_complete = true;
        }
        Held::Event(event, payload)
    }

    /// After something may have been lost: looks how things stand.
    async fn make_sure(&self) -> Result<(), ErrorCode> {
        if !std::mem::take(&mut self.inner.lock().is_unsure) {
            return Ok(());
        }
        let shared = self.shared.upgrade().ok_or(ErrorCode::Draining)?;
        let state = shared.store.task_channel(self.task).await.map_err(|error| unread(&error))?;
        let facts = facts_of(&state.task);
        if !facts.is(self.agent, Side::Client) && !facts.is(self.agent, Side::Provider) {
            self.outlet.close();
            return Ok(());
        }
        let mut inner = self.inner.lock();
        for direction in Direction::ALL {
            let stream = state.stream(direction);
            let cursor = &mut inner.streams[place(direction)];
            cursor.newest = cursor.newest.max(stream.chunks);
            let is_told = !cursor.is_heard || cursor.is_complete;
            let Some(closing) = stream.closing.as_ref().filter(|_| !is_told) else { continue };
            if !inner.held.iter().any(|(_, _, of)| *of == Some(direction)) {
                inner.held.push((direction.complete_event().into(), Json::of(closing), Some(direction)));
            }
        }
        if let Some(event) = end_event(state.task.status).filter(|_| !inner.is_ended) {
            inner.is_ended = true;
            inner.held.push((event.into(), task_payload(&state.task), None));
        }
        Ok(())
    }

    async fn read(&self, direction: Direction, range: ChunkRange) -> Result<Vec<StoredChunk>, ErrorCode> {
        let shared = self.shared.upgrade().ok_or(ErrorCode::Draining)?;
        let read = shared.store.read_channel_chunks(self.task, direction, range, self.read_bytes_max);
        read.await.map_err(|error| unread(&error))
    }

    /// Pushes, once there is room; whether the join is still there.
    async fn push(&self, event: &str, payload: &Json) -> Result<bool, ErrorCode> {
        loop {
            match self.outlet.push(Class::Stream, event, payload) {
                Outcome::Taken => return Ok(true),
                Outcome::Gone => return Ok(false),
                Outcome::Full => {}
            }
            let taken_before = self.outlet.sink().taken_bytes();
            let (sender, drained) = oneshot::channel();
            let call = move || {
                let _join_gone = sender.send(());
            };
            self.outlet.sink().when_drained(Box::new(call));
            let waited = tokio::time::timeout(self.stall_timeout, drained).await;
            if waited.is_err() && self.outlet.sink().taken_bytes() == taken_before {
                return Err(ErrorCode::ReaderStalled);
            }
        }
    }

    /// A chunk was published. Whether the store has to be read for it.
    fn chunk(&self, inner: &mut Inner, (direction, nth): (Direction, u64), payload: &Json) -> bool {
        let cursor = &mut inner.streams[place(direction)];
        cursor.newest = cursor.newest.max(nth);
        if inner.is_behind || nth <= cursor.told {
            return false;
        }
        if nth == cursor.told + 1
            && self.outlet.push(Class::Stream, direction.chunk_event(), payload) != Outcome::Full
        {
            cursor.told = nth;
            return false;
        }
        true
    }

    /// Something else was published.
    fn event(&self, inner: &mut Inner, name: &str, told: Told) -> bool {
        let direction = told.of.map(|(direction, _)| direction);
        if let Some((direction, nth)) = told.of {
            let cursor = &mut inner.streams[place(direction)];
            cursor.newest = cursor.newest.max(nth);
            let is_waiting = inner.held.iter().any(|(_, _, of)| *of == Some(direction));
            if inner.streams[place(direction)].is_complete || is_waiting {
                return false;
            }
        }
        if is_end(name) && std::mem::replace(&mut inner.is_ended, true) {
            return false;
        }
        let is_next = direction.is_none_or(|direction| {
            let cursor = &inner.streams[place(direction)];
            cursor.told == cursor.newest
        });
        if !inner.is_behind
            && is_next
            && self.outlet.push(Class::Stream, name, &told.payload) != Outcome::Full
        {
            if let Some(direction) = direction {
                inner.streams[place(direction)].is_complete = true;
            }
            return false;
        }
        inner.held.push((name.into(), told.payload, direction));
        true
    }
}

fn is_end(name: &str) -> bool {
    let ends = [event::CHANNEL_TASK_COMPLETED, event::CHANNEL_TASK_FAILED, event::CHANNEL_TASK_CANCELLED];
    ends.contains(&name)
}

fn unread(error: &StoreError) -> ErrorCode {
    tracing::warn!(%error, "cannot read the channel of a task");
    // The client joins again, and finds out then.
    ErrorCode::ChannelCrash
}

enum Held {
    Event(SmolStr, Json),
    /// There is something to be read first.
    More,
    None,
}

/// A task that reads for a feed: if it crashes, the join ends.
struct Watched<'a> {
    feed: &'a Feed,
    is_done: bool,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.feed.outlet.fail(ErrorCode::ChannelCrash.reason());
        }
    }
}

impl Listener for Feed {
    fn hear(&self, name: &str, payload: &Json) {
        let Ok(told) = payload.parse::<Told>() else {
            tracing::error!(
                name,
                "a node told something of a task's channel that this one does not understand"
            );
            return;
        };
        if name == REASSIGNED {
            let provider = told.payload.parse::<AgentId>().ok();
            let mut inner = self.inner.lock();
            inner.is_unsure |= !inner.is_begun;
            // An agent that is both sides stays, as the client.
            let is_client = inner.streams[place(Direction::Output)].is_heard;
            let is_out = inner.is_begun && !is_client && provider != Some(self.agent);
            drop(inner);
            if is_out {
                self.outlet.close();
            }
            return;
        }
        let (starts, is_full) = {
            let mut inner = self.inner.lock();
            let is_mine = match told.to {
                Audience::Both => true,
                // Before the join is answered it is not known yet whom it speaks for: then the store tells of chunks.
                Audience::Only(Side::Client) => inner.streams[place(Direction::Output)].is_heard,
                Audience::Only(Side::Provider) => inner.streams[place(Direction::Input)].is_heard,
            };
            let falls_behind = match told.of {
                Some((direction, nth)) if name == direction.chunk_event() => {
                    if is_mine {
                        self.chunk(&mut inner, (direction, nth), &told.payload)
                    } else {
                        let cursor = &mut inner.streams[place(direction)];
                        cursor.newest = cursor.newest.max(nth);
                        false
                    }
                }
                _ if is_mine => self.event(&mut inner, name, told),
                // The end of a stream that came before the answer: the store is asked for it.
                Some(_) if !inner.is_begun => {
                    inner.is_unsure = true;
                    false
                }
                _ => false,
            };
            let starts = falls_behind && !std::mem::replace(&mut inner.is_behind, true);
            (starts, inner.held.len() > HELD_EVENTS_MAX)
        };
        if is_full {
            self.outlet.fail(ErrorCode::Overloaded.reason());
        } else if starts {
            self.catch_up(Vec::new());
        }
    }
}
