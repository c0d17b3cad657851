//! Accepting messages, many in one transaction; one that hands a task over is stored with that task, in one of its own.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use muster_protocol::analytics::Event;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::handoff::Handoff;
use muster_protocol::ids::AgentId;
use muster_protocol::message::Receipt;
use muster_protocol::protocol_version::{Table, Version};
use muster_protocol::task::Task;

use super::Telling;
use super::gather::Work;
use crate::analytics::Analytics;
use crate::handoffs::Handoffs;
use crate::ports::Environment;
use crate::store::{Accepted, NewMessage, Store};
use crate::task_stream::refusal_of;

/// Accepts messages.
pub(super) struct Accepting {
    pub store: Arc<dyn Store>,
    pub telling: Telling,
    pub analytics: Arc<Analytics>,
    pub environment: Environment,
    pub versions: Table,
    pub handoffs: Arc<Handoffs>,
}

/// A message to accept, and what comes with it when it hands a task over.
pub(super) type Item = (NewMessage, Option<Box<(Task, Handoff)>>);

impl Accepting {
    /// A receipt that says whether its version is going away (R133).
    fn receipt(&self, receipt: Receipt) -> Receipt {
        let version: Option<Version> = receipt.protocol_version.parse().ok();
        let deprecation =
            version.and_then(|version| self.versions.deprecation(version, self.environment.now()));
        Receipt { deprecation, ..receipt }
    }

    /// Accepts messages in one transaction.
    async fn accept(&self, new: Vec<NewMessage>) -> Vec<Result<Receipt, Refusal>> {
        if new.is_empty() {
            return Vec::new();
        }
        let receipts: Vec<Receipt> = new.iter().map(|one| Receipt::of(&one.message, false)).collect();
        match self.store.accept_messages(new).await {
            Ok(accepted) => self.accepted(receipts, accepted),
            Err(error) => {
                let refusal = refusal_of(error);
                receipts.iter().map(|_| Err(refusal.clone())).collect()
            }
        }
    }

    /// The same for one with a task: both or neither.
    async fn hand_over(&self, new: NewMessage, (task, handoff): (Task, Handoff)) -> Result<Receipt, Refusal> {
        let receipt = Receipt::of(&new.message, false);
        let accepted = self.store.create_handoff(new, task.clone(), handoff).await.map_err(refusal_of)?;
        if accepted == Accepted::New {
            self.handoffs.created(&task);
        }
        self.accepted(vec![receipt], vec![accepted]).pop().unwrap_or_else(|| Err(ErrorCode::Internal.into()))
    }

    /// Recipients have news of what was accepted; what their senders are told.
    fn accepted(&self, receipts: Vec<Receipt>, accepted: Vec<Accepted>) -> Vec<Result<Receipt, Refusal>> {
        let is_new = |(_, accepted): &(&Receipt, &Accepted)| **accepted == Accepted::New;
        let of_new = || receipts.iter().zip(&accepted).filter(is_new).map(|(receipt, _)| receipt);
        let recipients: BTreeSet<AgentId> = of_new().map(|receipt| receipt.to_agent_id).collect();
        let new = of_new().count();
        self.analytics.record_all(of_new().flat_map(|receipt| {
            [Event::MessageSent(receipt.from_agent_id), Event::MessageReceived(receipt.to_agent_id)]
        }));
        self.telling.metrics.agent_messages.get_or_create(&[("what", "accepted")]).inc_by(new as u64);
        self.telling.mailboxes.news(recipients.iter().copied());
        let answer = |(receipt, accepted)| match accepted {
            Accepted::New => Ok(self.receipt(receipt)),
            Accepted::Known(message) => Ok(self.receipt(Receipt::of(&message, true))),
            Accepted::Mismatch => Err(ErrorCode::IdempotencyMismatch.into()),
        };
        receipts.into_iter().zip(accepted).map(answer).collect()
    }
}

#[async_trait]
impl Work for Accepting {
    type Item = Item;
    type Answer = Receipt;

    fn weight((new, _): &Item) -> usize {
        256 + new.message.payload.as_ref().map_or(0, |payload| payload.as_bytes().len())
    }

    async fn work(&self, items: Vec<Item>) -> Vec<Result<Receipt, Refusal>> {
        let mut answers = Vec::with_capacity(items.len());
        let mut plain = Vec::new();
        for (new, with) in items {
            let Some(with) = with else {
                plain.push(new);
                continue;
            };
            // What came before it is before it, and its want of money is nobody else's.
            answers.extend(self.accept(std::mem::take(&mut plain)).await);
            answers.push(self.hand_over(new, *with).await);
        }
        answers.extend(self.accept(plain).await);
        answers
    }
}
