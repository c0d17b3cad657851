//! The actor of one record.

use std::marker::PhantomData;
use std::time::Duration;

use muster_protocol::error_code::{ErrorCode, Refusal};
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::{Asked, Life, Rules};
use crate::inbox::Wake;
use crate::store::StoreError;
use crate::task_stream::refusal_of;

/// How often a change is decided anew because somebody else was first.
const ATTEMPTS_MAX: usize = 16;
/// An actor that has had nothing to do for about this long ends, in milliseconds.
const IDLE_MS: u64 = 10_000;

pub(super) struct SessionActor<R>(PhantomData<fn() -> R>);

impl<R> SessionActor<R> {
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

/// What the actor holds.
pub(super) struct State<R: Rules> {
    life: Life<R>,
    /// As it was stored or read last; another node may have changed it since.
    record: Option<R::Record>,
    /// Whether there was something to do since the last look.
    is_used: bool,
}

impl<R: Rules> Actor for SessionActor<R> {
    type Msg = Wake;
    type State = State<R>;
    type Arguments = Life<R>;

    async fn pre_start(&self, myself: ActorRef<Wake>, life: Life<R>) -> Result<State<R>, ActorProcessingErr> {
        life.inbox.attach(myself.clone());
        myself.send_interval(Duration::from_millis(IDLE_MS), || Wake::Tick);
        Ok(State { life, record: None, is_used: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<Wake>,
        message: Wake,
        state: &mut State<R>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Wake::Work => {
                state.is_used = true;
                for Asked { command, reply } in state.life.inbox.take() {
                    let answer = state.decide(&command).await;
                    let _caller_gone = reply.send(answer);
                }
            }
            Wake::Tick if state.is_used => state.is_used = false,
            Wake::Tick => {
                if state.life.inbox.close_if_empty() {
                    myself.stop(None);
                }
            }
        }
        Ok(())
    }
}

impl<R: Rules> State<R> {
    async fn decide(&mut self, command: &R::Command) -> Result<R::Answer, Refusal> {
        let registry = self.life.registry.clone();
        let rules = &registry.rules;
        // What is remembered may be old: then a refusal says nothing.
        let mut is_fresh = false;
        for _ in 0..ATTEMPTS_MAX {
            let record = match self.record.take() {
                Some(record) => record,
                None => {
                    is_fresh = true;
                    rules.load(self.life.id).await.map_err(refusal_of)?
                }
            };
            let decision = rules.decide(&record, command, registry.environment.now());
            let Some(change) = decision.change else {
                if is_fresh {
                    self.record = Some(record);
                    return decision.answer;
                }
                continue;
            };
            match rules.save(&record, &change).await {
                Ok(after) => {
                    rules.tell(&after, &change);
                    self.record = Some(after);
                    return decision.answer;
                }
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(refusal_of(error)),
            }
        }
        Err(ErrorCode::Overloaded.into())
    }
}
