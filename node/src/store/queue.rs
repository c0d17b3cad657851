//! The way to whoever works off the writes of a store.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;

/// How long writes that nobody waits for may wait for others, so that they share what makes them durable.
pub const COMPANY: Duration = Duration::from_millis(5);

/// A bounded queue that can be closed.
pub struct Queue<T>(Mutex<Option<mpsc::Sender<T>>>);

impl<T> Queue<T> {
    /// A queue with so many places, and its other end.
    #[must_use]
    pub fn new(places: usize) -> (Self, mpsc::Receiver<T>) {
        let (sender, receiver) = mpsc::channel(places);
        (Self(Mutex::new(Some(sender))), receiver)
    }

    /// Queues a write, waiting for a place. A closed queue drops it, and its answer with it, which whoever waits for takes for
    /// a refusal.
    pub async fn submit(&self, write: T) {
        let queue = self.0.lock().clone();
        if let Some(queue) = queue {
            // One that could not be sent is dropped here.
            drop(queue.send(write).await);
        }
    }

    /// Takes no more; what is queued is still worked off.
    pub fn close(&self) {
        drop(self.0.lock().take());
    }
}
