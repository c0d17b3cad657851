//! A queue in front of an actor: many messages, one wake-up. The actor takes all that waits at once, so a burst costs
//! one mailbox message, and what belongs together leaves together.

use parking_lot::Mutex;
use ractor::{ActorRef, Message};

/// What an actor behind an inbox is told.
#[derive(Debug)]
pub enum Wake {
    /// The inbox has something.
    Work,
    /// Some time has passed.
    Tick,
}

impl Message for Wake {}

/// Why an item was not taken; it comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// As many wait as may.
    Full(T),
    /// The actor has ended.
    Closed(T),
}

/// A bounded queue that wakes its actor.
pub struct Inbox<T> {
    inner: Mutex<Inner<T>>,
    items_max: usize,
}

struct Inner<T> {
    items: Vec<T>,
    actor: Option<ActorRef<Wake>>,
    /// Whether the actor has been woken for what waits.
    woken: bool,
    closed: bool,
}

impl<T> Inbox<T> {
    /// For so many items at most.
    #[must_use]
    pub fn new(items_max: usize) -> Self {
        Self {
            inner: Mutex::new(Inner { items: Vec::new(), actor: None, woken: false, closed: false }),
            items_max,
        }
    }

    /// Names the actor to wake: when it starts, and again when it is restarted.
    pub fn attach(&self, actor: ActorRef<Wake>) {
        let mut inner = self.inner.lock();
        inner.woken = false;
        inner.actor = Some(actor);
        inner.wake();
    }

    /// Adds an item.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn push(&self, item: T) -> Result<(), Refused<T>> {
        self.push_within(item, self.items_max, true)
    }

    /// Adds an item that must not be refused for want of room: those that make room, and those bounded elsewhere.
    ///
    /// # Errors
    /// Only [`Refused::Closed`].
    pub fn push_always(&self, item: T) -> Result<(), Refused<T>> {
        self.push_within(item, usize::MAX, true)
    }

    /// The same for what the actor need not know before it wakes for something else.
    ///
    /// # Errors
    /// Only [`Refused::Closed`].
    pub fn push_quietly(&self, item: T) -> Result<(), Refused<T>> {
        self.push_within(item, usize::MAX, false)
    }

    fn push_within(&self, item: T, items_max: usize, wakes: bool) -> Result<(), Refused<T>> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(Refused::Closed(item));
        }
        if inner.items.len() >= items_max {
            return Err(Refused::Full(item));
        }
        inner.items.push(item);
        if wakes {
            inner.wake();
        }
        Ok(())
    }

    /// Wakes the actor for what waits, unless it has been.
    pub fn wake(&self) {
        self.inner.lock().wake();
    }

    /// Items that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.lock().items.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes everything that waits.
    #[must_use]
    pub fn take(&self) -> Vec<T> {
        let mut inner = self.inner.lock();
        inner.woken = false;
        std::mem::take(&mut inner.items)
    }

    /// Closes, unless something waits; whether it is closed now.
    pub fn close_if_empty(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.closed |= inner.items.is_empty();
        inner.closed
    }

    /// Closes and gives back what waits.
    pub fn close(&self) -> Vec<T> {
        let mut inner = self.inner.lock();
        inner.closed = true;
        std::mem::take(&mut inner.items)
    }
}

impl<T> Inner<T> {
    /// Wakes the actor for what waits, unless it has been.
    fn wake(&mut self) {
        if !self.woken
            && !self.items.is_empty()
            && let Some(actor) = &self.actor
        {
            // An actor that is gone is restarted or its inbox closed: in both cases nobody waits for this wake-up.
            let _gone = actor.send_message(Wake::Work);
            self.woken = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_closed_only_when_empty() {
        let inbox = Inbox::new(2);
        assert_eq!(inbox.push(1), Ok(()));
        assert_eq!(inbox.push(2), Ok(()));
        assert_eq!(inbox.push(3), Err(Refused::Full(3)));
        assert_eq!(inbox.push_always(3), Ok(()));
        assert_eq!(inbox.push_quietly(4), Ok(()));
        assert!(!inbox.close_if_empty());
        assert_eq!(inbox.take(), [1, 2, 3, 4]);
        assert!(inbox.close_if_empty());
        assert_eq!(inbox.push_always(4), Err(Refused::Closed(4)));
    }
}
