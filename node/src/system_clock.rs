//! The one place that reads clocks and draws random bytes; everybody else is given them.
#![allow(clippy::disallowed_methods, reason = "this is the one module the lint leaves them to")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use muster_actors::ports::{Clock, Entropy, Environment};
use muster_protocol::time::Timestamp;

/// The machine's clocks.
struct SystemClock {
    started: Instant,
}

/// How far the wall clock has been moved by drills, in milliseconds.
static MOVED_MS: AtomicI64 = AtomicI64::new(0);

/// Moves the wall clock of this process forward, for drills: what takes days is tried in seconds. Intervals are measured
/// by another clock, which stays.
pub fn advance(ms: u64) {
    MOVED_MS.fetch_add(i64::try_from(ms).unwrap_or(0), Ordering::Relaxed);
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Timestamp::from_unix_ms(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX));
        now.plus_ms(MOVED_MS.load(Ordering::Relaxed))
    }

    fn monotonic_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// The kernel's randomness.
struct SystemEntropy;

impl Entropy for SystemEntropy {
    #[allow(
        clippy::expect_used,
        reason = "without randomness no secret can be made: nothing sensible is left to do"
    )]
    fn fill(&self, buffer: &mut [u8]) {
        getrandom::fill(buffer).expect("the kernel gives random bytes");
    }
}

/// The real thing.
#[must_use]
pub fn environment() -> Environment {
    Environment::new(Arc::new(SystemClock { started: Instant::now() }), Arc::new(SystemEntropy))
}
