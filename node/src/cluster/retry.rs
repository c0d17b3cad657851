//! How long to wait before something that failed is tried again.

use muster_actors::ports::Environment;

/// How often a wait is doubled at most.
const DOUBLINGS_MAX: u32 = 8;

/// Milliseconds to wait: `first_ms`, doubled with each of so many failures, `most_ms` at most.
pub fn wait_ms(environment: &Environment, failures: u32, first_ms: u64, most_ms: u64) -> u64 {
    let ms = (first_ms << failures.min(DOUBLINGS_MAX)).min(most_ms);
    // Between half of that and all of it, so that those who start together do not come together for ever.
    let [random] = environment.random();
    ms / 2 + ms * u64::from(random) / (2 * u64::from(u8::MAX))
}
