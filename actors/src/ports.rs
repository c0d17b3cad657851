//! What the actors need from outside: time and randomness. The store has a file of its own ([`crate::store`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

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
    ids_made: Arc<AtomicU32>,
}

/// Of the bits that follow an id's time, those that count (RFC 9562 §6.2, method 1); 48 random ones are left.
const COUNTER_BITS: u32 = 26;

impl Environment {
    /// From a clock and a source of randomness.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        Self { clock, entropy, ids_made: Arc::default() }
    }

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

    /// What follows the time in an id: a count, then randomness. Ids that are made here within one millisecond sort in
    /// the order in which they were made (but where the count begins again, every 2^26 ids).
    #[must_use]
    pub fn id_entropy(&self) -> IdEntropy {
        let mut bytes: IdEntropy = self.random();
        let nth = self.ids_made.fetch_add(1, Ordering::Relaxed) % (1 << COUNTER_BITS);
        // Of the first two bytes an id takes the low 12 bits, of the third the low 6.
        let [_, _, low_bits @ ..] = (nth & 0x3FFF).to_be_bytes();
        let [_, _, high_bits @ ..] = (nth >> 14).to_be_bytes();
        bytes[..2].copy_from_slice(&high_bits);
        bytes[2..4].copy_from_slice(&low_bits);
        bytes
    }

    /// Random bytes.
    #[must_use]
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::ids::TaskId;

    use super::*;

    /// Time stands, and what is drawn gets smaller.
    struct Falling(AtomicU32);

    impl Clock for Falling {
        fn now(&self) -> Timestamp {
            Timestamp::from_unix_ms(1_000)
        }

        fn monotonic_us(&self) -> u64 {
            0
        }
    }

    impl Entropy for Falling {
        fn fill(&self, buffer: &mut [u8]) {
            let [.., byte] = (255 - self.0.fetch_add(1, Ordering::Relaxed) % 256).to_be_bytes();
            buffer.fill(byte);
        }
    }

    #[test]
    fn ids_of_one_instant_sort_in_the_order_in_which_they_were_made() {
        let make = || Arc::new(Falling(AtomicU32::new(0)));
        let environment = Environment::new(make(), make());
        let ids: Vec<TaskId> =
            (0..20_000).map(|_| TaskId::new(environment.now(), environment.id_entropy())).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        assert!(ids.iter().all(|id| id.to_string().parse() == Ok(*id)));
    }
}
