//! The link to one other node: one actor for each name, through which everything from and to that node goes, so that what
//! comes of it comes in order. It carries the session and picks what carries its frames.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use muster_actors::cluster::Event;
use muster_protocol::cluster::frame::{Frame, Header};
use muster_protocol::cluster::membership::{Change, Heard};
use muster_protocol::cluster::session::{Carrier, Outgoing, Session};
use muster_protocol::cluster::{Message, NodeKey};
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::hints::Surroundings;
use super::nodes::Nodes;
use super::peer::{Direct, Notice, Open, Peer, State, Via};

/// What is said to a process with which there is no session yet.
fn no_session() -> Outgoing {
    Outgoing { epoch: 0, peer_epoch: 0, number: 0, ack: 0, items: Bytes::new() }
}

/// A frame without messages was not taken: what it acknowledged is owed still, and said with the next tick.
fn give_back_bare(state: &mut State) {
    if let Some(open) = state.open.as_mut() {
        open.session.give_back_bare();
    }
}

/// The actor.
pub struct Link {
    /// The node.
    pub peer: Arc<Peer>,
    /// All nodes.
    pub nodes: Arc<Nodes>,
}

impl Actor for Link {
    type Msg = Notice;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Notice>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Notice>,
        notice: Notice,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        self.take(&myself, notice);
        Ok(())
    }
}

impl Link {
    fn take(&self, myself: &ActorRef<Notice>, notice: Notice) {
        match notice {
            Notice::Frame(via, frame, _held) => self.take_frame(via, *frame),
            Notice::Opened(connection) => {
                let heard_at_ms = self.nodes.now_ms();
                let replaced = self.peer.state.lock().direct.replace(Direct {
                    connection,
                    heard_at_ms,
                    is_heard_at_ms: heard_at_ms,
                });
                if let Some(replaced) = replaced {
                    replaced.connection.cut.cancel();
                }
                self.heartbeat();
                self.pump();
            }
            Notice::Closed(id) => {
                let mut state = self.peer.state.lock();
                if state.direct.as_ref().is_some_and(|direct| direct.connection.id == id) {
                    state.direct = None;
                }
                drop(state);
                self.pump();
            }
            Notice::Wake => {
                // Before looking: who pushes while this looks wakes again.
                self.peer.is_woken.store(false, Ordering::Release);
                self.pump();
            }
            Notice::Tick => self.tick(myself),
            Notice::Overflowed(key) => {
                tracing::warn!(peer = %key, "too much waited for a node: its session begins anew");
                self.raise_reset(key);
                self.pump();
            }
            Notice::Crashed => self.recover(),
            Notice::Tell => self.heartbeat(),
        }
    }

    /// After a crash nobody knows how far it had come: which process is up stands, and the session with it begins anew.
    fn recover(&self) {
        // What was to wake it may be gone too.
        self.peer.is_woken.store(false, Ordering::Release);
        let up = self.nodes.up(&self.peer.name);
        let mut state = self.peer.state.lock();
        match state.open.as_mut().filter(|open| Some(&open.key) == up.as_ref()) {
            Some(open) => {
                self.nodes.metrics.dropped(open.session.reset(self.nodes.next_epoch()));
                let key = open.key.clone();
                drop(state);
                self.raise_reset(key);
            }
            None => {
                let open = state.open.as_ref().map(|open| open.key.clone());
                drop(state);
                let changes = [open.map(Change::Down), up.map(Change::Up)];
                changes.into_iter().flatten().for_each(|change| self.apply(change, "its link crashed"));
            }
        }
        self.pump();
    }

    fn raise_reset(&self, key: NodeKey) {
        self.peer.state.lock().resets += 1;
        self.nodes.metrics.resets.inc();
        self.nodes.raise(Event::Reset(key));
    }

    fn take_frame(&self, via: Via, frame: Frame) {
        let (now_ms, now_us) = (self.nodes.now_ms(), self.nodes.now_us());
        let header = &frame.header;
        let key = header.from.clone();
        if header.to.is_none() && !self.is_open(&key) {
            return self.greet(&key);
        }
        let heard = Heard {
            key: key.clone(),
            draining: header.draining,
            goodbye: header.goodbye,
            sightings: header.sightings.clone(),
        };
        match self.nodes.heard(&heard, now_ms) {
            Ok(changes) => {
                let why = if header.goodbye { "it said goodbye" } else { "it has started again" };
                changes.into_iter().for_each(|change| self.apply(change, why));
            }
            Err(refusal) => return self.nodes.refuse(&key, &refusal),
        }
        let mut state = self.peer.state.lock();
        let State { open, direct, echo, round_trip_us, .. } = &mut *state;
        if let (Via::Direct(id), Some(direct)) = (via, direct.as_mut())
            && direct.connection.id == id
        {
            direct.heard_at_ms = now_ms;
        }
        if let Some(direct) = direct.as_mut().filter(|direct| direct.connection.id == header.hears) {
            direct.is_heard_at_ms = now_ms;
        }
        let Some(open) = open.as_mut().filter(|open| open.key == key) else { return };
        if header.to.is_some() && header.sent_us > 0 {
            *echo = Some((header.sent_us, now_us));
        }
        if header.echo_us > 0
            && let Some(taken) = now_us.checked_sub(header.echo_us.saturating_add(header.held_us))
        {
            *round_trip_us = Some(taken);
            self.nodes.metrics.round_trip(taken);
        }
        // Epoch 0 is who has no session yet: it lets be known that it is there, and is answered.
        let mut received = None;
        if header.epoch > 0 && header.to.is_some() {
            let before = open.session.counts();
            received = Some(open.session.receive(frame));
            self.nodes.metrics.dropped(open.session.counts().messages_dropped - before.messages_dropped);
        }
        drop(state);
        if let Some(received) = received {
            if received.reset {
                tracing::warn!(peer = %key, "the session with a node begins anew");
                self.raise_reset(key.clone());
            }
            for item in received.items {
                self.take_message(&key, &item);
            }
        }
        self.pump();
    }

    fn is_open(&self, key: &NodeKey) -> bool {
        self.peer.state.lock().open.as_ref().is_some_and(|open| open.key == *key)
    }

    /// Answers who lets all know that it is there. That alone brings nobody up, for it may have been recorded while a
    /// process lived that has ended since; what is addressed to this process was said in its lifetime.
    fn greet(&self, key: &NodeKey) {
        let state = self.peer.state.lock();
        if let Some(fallback) = self.fallback() {
            self.put(&state, fallback, key, &no_session(), (self.nodes.now_us(), None));
        }
    }

    fn take_message(&self, key: &NodeKey, bytes: &Bytes) {
        match Message::decode(bytes) {
            Ok(message) => {
                self.nodes.metrics.received.inc();
                self.nodes.raise(Event::Message(key.clone(), Box::new(message)));
            }
            Err(error) => {
                // A newer node says things that this one does not know.
                tracing::debug!(peer = %key, %error, "passed over a message");
                self.nodes.metrics.passed_over.inc();
            }
        }
    }

    fn apply(&self, change: Change, why: &'static str) {
        match change {
            Change::Up(key) => {
                tracing::info!(peer = %key, "a node is up");
                let session = Session::new(self.nodes.next_epoch(), self.nodes.bounds);
                let mut state = self.peer.state.lock();
                (state.echo, state.round_trip_us, state.carrier) = (None, None, None);
                state.open = Some(Open { key: key.clone(), session });
                drop(state);
                self.nodes.raise(Event::Up(key));
            }
            Change::Down(key) => {
                tracing::info!(peer = %key, why, "a node is gone");
                let mut state = self.peer.state.lock();
                if let Some(mut open) = state.open.take() {
                    self.nodes.metrics.dropped(open.session.drop_all());
                }
                // Whatever its process still holds of this connection is nobody's any more.
                if let Some(direct) = state.direct.take_if(|direct| direct.connection.peer == key) {
                    direct.connection.cut.cancel();
                }
                drop(state);
                self.nodes.raise(Event::Down(key));
            }
        }
    }

    fn tick(&self, myself: &ActorRef<Notice>) {
        let now_ms = self.nodes.now_ms();
        if let Some(change) = self.nodes.tick(&self.peer.name, now_ms) {
            tracing::warn!(peer = %self.peer.name, "a node has been silent for too long");
            self.apply(change, "it is silent");
        }
        let mut state = self.peer.state.lock();
        if let Some(direct) = &state.direct
            && now_ms.saturating_sub(direct.heard_at_ms) >= self.nodes.config.down_after_ms
        {
            tracing::warn!(peer = %direct.connection.peer, "a connection is silent: it is cut");
            direct.connection.cut.cancel();
            state.direct = None;
        }
        let is_due = now_ms >= state.heartbeat_at_ms;
        let owes = state.open.as_ref().is_some_and(|open| open.session.may_answer());
        drop(state);
        // By the link itself, so that nothing is heard of the node meanwhile.
        if is_due && self.nodes.forget(&self.peer) {
            return myself.stop(None);
        }
        self.pump();
        if is_due {
            self.heartbeat();
        } else if owes {
            self.answer();
        }
    }

    /// What carries frames beside the connection, if it does just now. Numbers of connections are odd.
    fn fallback(&self) -> Option<Carrier> {
        let connection = self.nodes.fallback.as_ref()?.connection()?;
        Some(Carrier { id: connection << 1, reliable: false })
    }

    /// Which way frames go just now: over the connection, unless it is silent or the other end does not hear it.
    fn carrier(&self, state: &State, now_ms: u64) -> Option<Carrier> {
        let fallback = self.fallback();
        let Some(direct) = &state.direct else { return fallback };
        let carrier = Carrier { id: direct.connection.id, reliable: true };
        let is_silent = self.is_long_ago(direct.heard_at_ms.min(direct.is_heard_at_ms), now_ms);
        if is_silent { fallback.or(Some(carrier)) } else { Some(carrier) }
    }

    fn is_long_ago(&self, at_ms: u64, now_ms: u64) -> bool {
        now_ms.saturating_sub(at_ms) >= self.nodes.config.suspect_after_ms
    }

    /// Sends what may leave.
    fn pump(&self) {
        let (now_ms, now_us) = (self.nodes.now_ms(), self.nodes.now_us());
        let mut state = self.peer.state.lock();
        let Some(carrier) = self.carrier(&state, now_ms) else {
            state.carrier = None;
            return;
        };
        if state.carrier != Some(carrier) {
            (state.carrier, state.carrier_since_ms) = (Some(carrier), now_ms);
        }
        while let Some(open) = state.open.as_mut() {
            let Some(out) = open.session.poll(now_ms, carrier) else { break };
            let key = open.key.clone();
            if !self.put(&state, carrier, &key, &out, (now_us, None)) {
                if let Some(open) = state.open.as_mut() {
                    open.session.give_back();
                }
                return;
            }
        }
        let must_answer = state.open.as_ref().is_some_and(|open| open.session.must_answer());
        drop(state);
        if must_answer {
            self.answer();
        }
    }

    /// Sends a frame without messages the way all go.
    fn answer(&self) {
        let (now_ms, now_us) = (self.nodes.now_ms(), self.nodes.now_us());
        let mut state = self.peer.state.lock();
        let Some(carrier) = self.carrier(&state, now_ms) else { return };
        let Some(open) = state.open.as_mut() else { return };
        let (out, key) = (open.session.bare(), open.key.clone());
        if !self.put(&state, carrier, &key, &out, (now_us, None)) {
            give_back_bare(&mut state);
        }
    }

    /// Lets the node know that this one is there, the way frames go; and over the connection too, if they go another way,
    /// so that both ends see when it is of use again.
    fn heartbeat(&self) {
        // Before the lock: it looks at all peers.
        let surroundings = self.nodes.surroundings();
        let (now_ms, now_us) = (self.nodes.now_ms(), self.nodes.now_us());
        let mut state = self.peer.state.lock();
        state.heartbeat_at_ms = now_ms + self.nodes.config.heartbeat_ms;
        let direct = state.direct.as_ref().map(|direct| direct.connection.clone());
        let carrier = self.carrier(&state, now_ms);
        let open = state.open.as_mut().map(|open| (open.key.clone(), open.session.bare()));
        let mut is_taken = false;
        if let Some(connection) = direct {
            // To a process that has just taken the other's place there is no session yet.
            let out = open.iter().find(|(key, _)| *key == connection.peer).map(|(_, out)| out.clone());
            let out = out.unwrap_or_else(no_session);
            let carrier = Carrier { id: connection.id, reliable: true };
            is_taken |= self.put(&state, carrier, &connection.peer, &out, (now_us, Some(&surroundings)));
        }
        if let (Some((key, out)), Some(carrier)) = (open, carrier.filter(|carrier| !carrier.reliable)) {
            is_taken |= self.put(&state, carrier, &key, &out, (now_us, Some(&surroundings)));
        }
        if !is_taken {
            give_back_bare(&mut state);
        }
    }

    /// The connection over which the node is heard, or 0.
    fn hears(&self, state: &State, now_ms: u64) -> u64 {
        let direct = state.direct.as_ref().filter(|direct| !self.is_long_ago(direct.heard_at_ms, now_ms));
        direct.map_or(0, |direct| direct.connection.id)
    }

    /// Hands one frame over, now.
    fn put(
        &self,
        state: &State,
        carrier: Carrier,
        to: &NodeKey,
        out: &Outgoing,
        (now_us, surroundings): (u64, Option<&Surroundings>),
    ) -> bool {
        let (echo_us, heard_us) = state.echo.unwrap_or((0, now_us));
        let mut header = Header {
            sent_us: now_us,
            echo_us,
            held_us: now_us.saturating_sub(heard_us),
            hears: self.hears(state, now_us / 1_000),
            ..out.header(self.nodes.header(Some(to.clone())))
        };
        if let Some(Surroundings { own, others, sightings }) = surroundings {
            header.address.clone_from(own);
            header.others.clone_from(others);
            header.sightings.clone_from(sightings);
        }
        let frame = match Frame::encode(&header, &out.items) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!(%error, "a frame could not be written");
                return false;
            }
        };
        if !carrier.reliable {
            return self.nodes.fallback.as_ref().is_some_and(|fallback| fallback.send(to, frame));
        }
        // A connection to another process of that node takes nothing that is meant for this one.
        let direct = state.direct.as_ref().map(|direct| &direct.connection);
        direct.is_some_and(|connection| {
            connection.id == carrier.id && connection.peer == *to && connection.send(&frame)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use muster_actors::cluster::{Cluster, Receiver};
    use muster_protocol::limits::Limits;
    use parking_lot::Mutex;
    use prometheus_client::registry::Registry;

    use super::super::metric_definitions::ClusterMetrics;
    use super::super::nodes::Parts;
    use super::super::transport::Inbound;
    use super::*;
    use crate::config::ClusterConfig;

    /// Notes which nodes came, and crashes the first time that one goes.
    #[derive(Default)]
    struct Fragile {
        came: Mutex<Vec<NodeKey>>,
        has_crashed: AtomicBool,
    }

    impl Receiver for Fragile {
        fn receive(&self, event: Event) {
            match event {
                Event::Up(key) => self.came.lock().push(key),
                Event::Down(_) if !self.has_crashed.swap(true, Ordering::SeqCst) => panic!("on purpose"),
                _ => {}
            }
        }
    }

    fn key(name: &str, incarnation: u64) -> NodeKey {
        NodeKey { name: name.into(), incarnation }
    }

    async fn nodes() -> (Arc<Nodes>, Arc<Fragile>) {
        let parts = Parts {
            me: key("a", 1),
            config: ClusterConfig::default(),
            limits: Limits::default(),
            environment: crate::system_clock::environment(),
            metrics: ClusterMetrics::register(&mut Registry::default()),
            fallback: None,
        };
        let nodes = Nodes::new(parts, Box::new(|_| {})).await.unwrap();
        let receiver = Arc::new(Fragile::default());
        nodes.start(receiver.clone());
        (nodes, receiver)
    }

    /// A word of a process, to this one or to all.
    fn hear(nodes: &Arc<Nodes>, from: NodeKey, to: Option<NodeKey>) {
        let header = Header { from, ..nodes.header(to) };
        Inbound::receive(nodes, Frame::encode(&header, &[]).unwrap());
    }

    async fn until(holds: impl Fn() -> bool) {
        let looking = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), looking).await.expect("it holds in time");
    }

    #[tokio::test]
    async fn a_link_that_crashes_loses_neither_who_is_up_nor_room_for_what_comes() {
        let (nodes, receiver) = nodes().await;
        hear(&nodes, key("b", 1), Some(nodes.me.clone()));
        until(|| *receiver.came.lock() == [key("b", 1)]).await;
        let peer = nodes.find_peer("b").unwrap();
        // As if its wake were lost with it.
        peer.is_woken.store(true, Ordering::SeqCst);
        hear(&nodes, key("b", 2), Some(nodes.me.clone()));
        until(|| *receiver.came.lock() == [key("b", 1), key("b", 2)]).await;
        assert!(receiver.has_crashed.load(Ordering::SeqCst));
        assert_eq!((peer.pending_bytes(), peer.is_woken.load(Ordering::SeqCst)), (0, false));
        assert!(nodes.send(&key("b", 2), Message::InterestNoted { token: 1 }), "there is a session");
        assert!(!nodes.send(&key("b", 1), Message::InterestNoted { token: 1 }));
    }

    #[tokio::test]
    async fn a_link_to_a_stranger_ends_and_one_to_a_node_that_is_known_does_not() {
        let (nodes, receiver) = nodes().await;
        hear(&nodes, key("b", 1), Some(nodes.me.clone()));
        hear(&nodes, key("c", 1), None);
        until(|| *receiver.came.lock() == [key("b", 1)]).await;
        let (known, stranger) = (nodes.find_peer("b").unwrap(), nodes.find_peer("c").unwrap());
        for peer in [&known, &stranger] {
            peer.tell(Notice::Tick);
        }
        until(|| nodes.find_peer("c").is_none()).await;
        // A heartbeat is due when it is looked who is a stranger.
        until(|| known.state.lock().heartbeat_at_ms > 0).await;
        assert!(nodes.find_peer("b").is_some());
    }
}
