//! Many requests, one transaction: what waits is taken together, in the order in which it came, and answered when it is
//! durable. The next transaction gathers meanwhile.

use std::sync::Arc;

use async_trait::async_trait;
use muster_protocol::error_code::{ErrorCode, Refusal};
use muster_protocol::json::Json;
use muster_protocol::phoenix::Ref;
use muster_protocol::phoenix::encode::Status;
use tokio::sync::{mpsc, oneshot};

use crate::egress::Outlet;

/// What is done to many at once.
#[async_trait]
pub(super) trait Work: Send + Sync + 'static {
    /// What is asked for.
    type Item: Send + 'static;
    /// What comes of it.
    type Answer: Send + 'static;

    /// Bytes of one, about.
    fn weight(item: &Self::Item) -> usize;

    /// Does it; gives an answer for each, in order.
    async fn work(&self, items: Vec<Self::Item>) -> Vec<Result<Self::Answer, Refusal>>;
}

enum To<A> {
    Request(oneshot::Sender<Result<A, Refusal>>),
    Push { outlet: Arc<Outlet>, reference: Ref, response: fn(&A) -> Json },
    Nobody,
}

/// Who waits for an answer. There is always one: what is dropped unanswered says so.
pub struct Waiter<A>(To<A>);

impl<A> Waiter<A> {
    /// A request, which waits for what the receiver gets.
    #[must_use]
    pub fn request() -> (Self, oneshot::Receiver<Result<A, Refusal>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(To::Request(sender)), receiver)
    }

    /// A push over a channel.
    #[must_use]
    pub fn push(outlet: Arc<Outlet>, reference: Ref, response: fn(&A) -> Json) -> Self {
        Self(To::Push { outlet, reference, response })
    }

    /// Answers.
    pub fn answer(mut self, answer: Result<A, Refusal>) {
        self.give(answer);
    }

    fn give(&mut self, answer: Result<A, Refusal>) {
        match std::mem::replace(&mut self.0, To::Nobody) {
            // Whoever gave up finds out by asking again.
            To::Request(sender) => drop(sender.send(answer)),
            To::Push { outlet, reference, response } => {
                let (status, response) = match &answer {
                    Ok(answer) => (Status::Ok, response(answer)),
                    Err(refusal) => (Status::Error, refusal.response()),
                };
                // What one transaction answers leaves as few writes.
                outlet.reply_soon(&reference, status, &response);
            }
            To::Nobody => {}
        }
    }
}

impl<A> Drop for Waiter<A> {
    fn drop(&mut self) {
        self.give(Err(ErrorCode::Internal.into()));
    }
}

/// Bytes of one transaction, about; one item may be more.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// The way to what is done together.
pub(super) struct Gather<W: Work> {
    waiting: mpsc::Sender<(W::Item, Waiter<W::Answer>)>,
}

impl<W: Work> Gather<W> {
    /// So many may wait, so many go together. Runs until it is dropped.
    pub fn start(work: W, places: usize, together: usize) -> Self {
        let (waiting, mut items) = mpsc::channel(places.max(1));
        let work = Arc::new(work);
        tokio::spawn(async move {
            while let Some(first) = items.recv().await {
                let (asked, waiters) = gather::<W>(first, &mut items, together);
                let work = work.clone();
                // Whatever fails in it, those that come later are served.
                let answers = tokio::spawn(async move { work.work(asked).await }).await;
                let mut answers = answers.unwrap_or_default().into_iter();
                for waiter in waiters {
                    waiter.answer(answers.next().unwrap_or_else(|| Err(ErrorCode::Internal.into())));
                }
            }
        });
        Self { waiting }
    }

    /// Asks; waits for a place alone.
    pub async fn ask(&self, item: W::Item, waiter: Waiter<W::Answer>) {
        // One that could not be sent is dropped here, and answers that.
        drop(self.waiting.send((item, waiter)).await);
    }
}

type Gathered<W> = (Vec<<W as Work>::Item>, Vec<Waiter<<W as Work>::Answer>>);

fn gather<W: Work>(
    (item, waiter): (W::Item, Waiter<W::Answer>),
    items: &mut mpsc::Receiver<(W::Item, Waiter<W::Answer>)>,
    together: usize,
) -> Gathered<W> {
    let mut bytes = W::weight(&item);
    let (mut asked, mut waiters) = (vec![item], vec![waiter]);
    while asked.len() < together && bytes < BYTES_MAX {
        let Ok((item, waiter)) = items.try_recv() else { break };
        bytes += W::weight(&item);
        asked.push(item);
        waiters.push(waiter);
    }
    (asked, waiters)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting;

    #[async_trait]
    impl Work for Counting {
        type Item = u32;
        type Answer = (u32, usize);

        fn weight(item: &u32) -> usize {
            if *item == 7 { BYTES_MAX } else { 1 }
        }

        async fn work(&self, items: Vec<u32>) -> Vec<Result<(u32, usize), Refusal>> {
            assert!(!items.contains(&13), "a batch that crashes");
            tokio::task::yield_now().await;
            items.iter().map(|item| Ok((*item, items.len()))).collect()
        }
    }

    async fn ask(gather: &Gather<Counting>, items: &[u32]) -> Vec<Result<(u32, usize), Refusal>> {
        let mut receivers = Vec::new();
        for item in items {
            let (waiter, receiver) = Waiter::request();
            gather.ask(*item, waiter).await;
            receivers.push(receiver);
        }
        let mut answers = Vec::new();
        for receiver in receivers {
            answers.push(receiver.await.unwrap());
        }
        answers
    }

    #[tokio::test]
    async fn what_waits_goes_together_within_bounds_and_each_has_its_own_answer() {
        let gather = Gather::start(Counting, 100, 4);
        let answers = ask(&gather, &[1, 2, 3, 4, 5, 6, 7, 8]).await;
        let items: Vec<_> = answers.iter().map(|answer| answer.as_ref().unwrap().0).collect();
        assert_eq!(items, [1, 2, 3, 4, 5, 6, 7, 8]);
        let sizes: Vec<_> = answers.iter().map(|answer| answer.as_ref().unwrap().1).collect();
        assert_eq!(sizes, [4, 4, 4, 4, 3, 3, 3, 1], "four at most, and nothing behind what is large");
    }

    #[tokio::test]
    async fn a_crash_is_answered_and_the_next_are_served() {
        let gather = Gather::start(Counting, 100, 1);
        let answers = ask(&gather, &[13, 1]).await;
        assert_eq!(answers[0], Err(Refusal::new(ErrorCode::Internal)));
        assert_eq!(answers[1], Ok((1, 1)));
    }
}
