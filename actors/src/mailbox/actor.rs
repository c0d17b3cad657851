//! The actor of one mailbox: has the store do what the mailbox wants, and pushes what comes of it.

use std::sync::Arc;
use std::time::Duration;

use muster_protocol::analytics::Event;
use muster_protocol::mailbox::{JITTER_PER_MILLE, Step};
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::{Life, Mailboxes, Todo};
use crate::egress::Outlet;
use crate::inbox::Wake;
use crate::messages::Telling;
use crate::store::{Mail, StoreError};

/// Bytes of messages that are read from the store at once, about.
const BYTES_AT_ONCE: usize = 1024 * 1024;
/// How long a mailbox waits when the store cannot be reached, in milliseconds.
const PAUSE_MS: u64 = 1_000;
/// How often one of several nodes asks the store for messages that it was not told of, in milliseconds.
const LOOK_EVERY_MS: u64 = 5_000;

/// What wakes an actor later.
type Timer = tokio::task::JoinHandle<Result<(), ractor::MessagingErr<Wake>>>;

pub(super) struct MailboxActor;

/// What the actor holds.
pub(super) struct State {
    life: Life,
    /// Wakes it when something is due; an earlier one that is not needed any more does no harm.
    timer: Option<(u64, Timer)>,
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some((_, timer)) = self.timer.take() {
            timer.abort();
        }
    }
}

impl Actor for MailboxActor {
    type Msg = Wake;
    type State = State;
    type Arguments = Life;

    async fn pre_start(&self, myself: ActorRef<Wake>, life: Life) -> Result<State, ActorProcessingErr> {
        if !life.registry.needs.cluster.is_alone() {
            // Not all at the same moment.
            let more_ms = u64::from(u16::from_be_bytes(life.registry.needs.environment.random())) % 1_000;
            myself.send_interval(Duration::from_millis(LOOK_EVERY_MS + more_ms), || Wake::Tick);
        }
        let mut inner = life.live.inner.lock();
        inner.actor = Some(myself);
        inner.wake();
        drop(inner);
        Ok(State { life, timer: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Wake>,
        message: Wake,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Wake::Work => state.life.live.inner.lock().woken = false,
            Wake::Tick => state.life.live.inner.lock().mailbox.news(),
        }
        if !state.work(&myself).await {
            myself.stop(None);
        }
        Ok(())
    }
}

impl State {
    /// Does all there is to do; whether somebody is still joined.
    async fn work(&mut self, myself: &ActorRef<Wake>) -> bool {
        loop {
            let environment = &self.life.registry.needs.environment;
            let now_ms = environment.monotonic_ms();
            let live = &self.life.live;
            let todo = live.inner.lock().todo(now_ms, live.lag_bytes_max);
            match todo {
                Todo::End => {
                    self.requeue().await;
                    if self.life.end_if_empty() {
                        return false;
                    }
                }
                Todo::CatchUp(seqs) => {
                    if !self.catch_up(&seqs).await {
                        self.wake_at(now_ms + PAUSE_MS, now_ms, myself);
                        return true;
                    }
                }
                Todo::WaitFor(full) => self.wait_for(&full),
                Todo::Step(Step::Wait(at_ms)) => {
                    if let Some(at_ms) = at_ms {
                        self.wake_at(at_ms, now_ms, myself);
                    }
                    return true;
                }
                Todo::Step(step) => {
                    if let Err(error) = self.step(step).await {
                        tracing::warn!(%error, agent = %self.life.live.agent, "messages cannot be pushed now");
                        self.life.live.inner.lock().mailbox.failed_to_ask(now_ms, PAUSE_MS);
                    }
                }
            }
        }
    }

    /// Everybody has gone: what they were pushed and cannot have had is queued again.
    async fn requeue(&self) {
        let (registry, live) = (&self.life.registry, &self.life.live);
        let unheard = {
            let mut inner = live.inner.lock();
            if inner.seats.is_empty() { inner.mailbox.unheard() } else { Vec::new() }
        };
        if unheard.is_empty() {
            return;
        }
        self.count("requeued", unheard.len());
        if let Err(error) = registry.needs.store.requeue_mail(live.agent, unheard).await {
            // They are pushed all the same when somebody joins; only their retries stay counted.
            tracing::warn!(%error, agent = %live.agent, "messages cannot be queued again now");
        }
    }

    fn wake_at(&mut self, at_ms: u64, now_ms: u64, myself: &ActorRef<Wake>) {
        match &self.timer {
            Some((until_ms, timer)) if *until_ms <= at_ms && !timer.is_finished() => return,
            Some((_, timer)) => timer.abort(),
            None => {}
        }
        let after = Duration::from_millis(at_ms.saturating_sub(now_ms).max(1));
        self.timer = Some((at_ms, myself.send_after(after, || Wake::Work)));
    }

    async fn step(&self, step: Step) -> Result<(), StoreError> {
        let (registry, live) = (&self.life.registry, &self.life.live);
        let (store, environment) = (&registry.needs.store, &registry.needs.environment);
        let now = environment.now();
        match step {
            Step::Fetch { known, room } => {
                let most = (room, BYTES_AT_ONCE);
                let (found, full) = store.fetch_mail(live.agent, known, most, now).await?;
                self.push(found, |inner, counted, now_ms, jitter| {
                    inner.mailbox.fetched(counted, full, now_ms, jitter)
                });
            }
            Step::Retry(asked) => {
                let found = store.retry_mail(live.agent, asked.clone(), now).await?;
                self.count("retried", found.len());
                self.push(found, |inner, counted, now_ms, jitter| {
                    inner.mailbox.retried(&asked, counted, now_ms, jitter)
                });
            }
            Step::Fail(seqs) => {
                let failed = store.fail_mail(live.agent, seqs.clone(), now).await?;
                live.inner.lock().mailbox.failed(&seqs);
                self.count("failed", failed.len());
                let dead = failed.iter().map(|outcome| Event::MessageDead(outcome.to));
                registry.needs.analytics.record_all(dead);
                let mailboxes = Mailboxes(registry.clone());
                mailboxes.settled(failed.iter().map(|outcome| (outcome.to, outcome.id)));
                let (pubsub, metrics) = (registry.needs.pubsub.clone(), registry.needs.metrics.clone());
                let telling = Telling { mailboxes, pubsub, metrics };
                failed.iter().for_each(|outcome| telling.sender(outcome));
            }
            Step::Wait(_) => {}
        }
        Ok(())
    }

    /// Notes what the store has counted, and pushes it, under one lock.
    fn push(
        &self,
        found: Vec<Mail>,
        note: impl FnOnce(
            &mut super::Inner,
            &[muster_protocol::mailbox::Counted],
            u64,
            &mut dyn FnMut() -> i64,
        ) -> Vec<usize>,
    ) {
        let needs = &self.life.registry.needs;
        let counted: Vec<_> = found.iter().map(Mail::counted).collect();
        let mut jitter = || {
            let random = i64::from(u16::from_be_bytes(needs.environment.random()));
            random % (2 * JITTER_PER_MILLE + 1) - JITTER_PER_MILLE
        };
        let now_ms = needs.environment.monotonic_ms();
        let full = {
            let mut inner = self.life.live.inner.lock();
            let pushed = note(&mut inner, &counted, now_ms, &mut jitter);
            let mails: Vec<&Mail> = pushed.iter().filter_map(|at| found.get(*at)).collect();
            self.count("pushed", mails.len());
            self.life.live.push(&mut inner, &mails)
        };
        self.wait_for(&full);
    }

    fn count(&self, what: &'static str, messages: usize) {
        let counters = &self.life.registry.needs.metrics.agent_messages;
        counters.get_or_create(&[("what", what)]).inc_by(messages as u64);
    }

    /// Whether the store could be read.
    async fn catch_up(&self, seqs: &[u64]) -> bool {
        let live = &self.life.live;
        let read = self.life.registry.needs.store.read_mail(live.agent, seqs.to_vec(), BYTES_AT_ONCE).await;
        let found = match read {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, agent = %live.agent, "messages cannot be read now");
                return false;
            }
        };
        let now_ms = self.life.registry.needs.environment.monotonic_ms();
        let full = live.catch_up(&mut live.inner.lock(), seqs, &found, now_ms);
        self.wait_for(&full);
        true
    }

    fn wait_for(&self, full: &[Arc<Outlet>]) {
        full.iter().for_each(|outlet| self.life.live.wait_for(outlet));
    }
}
