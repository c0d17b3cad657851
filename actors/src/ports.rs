//! What the actors need from outside: time and randomness. The store has a file of its own ([`crate::store`]).

use std::sync::Arc;

use muster_protocol::ids::IdEntropy;
use muster_protocol::time::Timestamp;

/// Reads time.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time, for records and for what clients see.
    fn now(&self) -> Timestamp;

    /// Microseconds that never go back, for intervals.
    fn monotonic_us(&self) -> u64;
}

/// Draws random bytes.
pub trait Entropy: Send + Sync + 'static {
    /// Fills the buffer with bytes nobody can guess.
    fn fill(&self, buffer: &mut [u8]);
}

/// Time and randomness together, as they are passed around.
#[derive(Clone)]
pub struct Environment {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

impl Environment {
    /// Wall-clock time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Monotonic milliseconds.
    #[must_use]
    pub fn monotonic_ms(&self) -> u64 {
        self.clock.monotonic_us() / 1_000
    }

    /// Monotonic microseconds.
    #[must_use]
    pub fn monotonic_us(&self) -> u64 {
        self.clock.monotonic_us()
    }

    /// Random bytes for an id.
    #[must_use]
    pub fn id_entropy(&self) -> IdEntropy {
        self.random()
    }

    /// Random bytes.
    #[must_use]
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes);
        bytes
    }
}
