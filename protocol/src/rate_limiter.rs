//! A token bucket over plain data: the caller brings the time.

use serde::{Deserialize, Serialize};

/// Rate and burst of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Tokens that come back per `period_ms`.
    pub tokens: u32,
    /// Length of the period, in milliseconds.
    pub period_ms: u32,
    /// Most tokens that can be saved up.
    pub burst: u32,
}

impl Rate {
    /// So many per second, and so many at once.
    #[must_use]
    pub const fn per_second(tokens: u32, burst: u32) -> Self {
        Self { tokens, period_ms: 1_000, burst }
    }

    /// So many per minute, all of which may come at once.
    #[must_use]
    pub const fn per_minute(tokens: u32) -> Self {
        Self { tokens, period_ms: 60_000, burst: tokens }
    }
}

/// State of one bucket. Starts full.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    /// Milli-tokens, so that slow rates lose nothing to rounding. Below 0 when more was charged than there was.
    milli_tokens: i64,
    refilled_at_ms: u64,
}

const MILLI: i64 = 1_000;

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate, now_ms: u64) -> Self {
        Self { milli_tokens: i64::from(rate.burst) * MILLI, refilled_at_ms: now_ms }
    }

    /// Takes `cost` tokens.
    ///
    /// # Errors
    /// Too few are there; nothing was taken. The error is the time in milliseconds after which they would be.
    pub fn take(&mut self, rate: Rate, cost: u32, now_ms: u64) -> Result<(), u64> {
        self.refill(rate, now_ms);
        let wanted = i64::from(cost) * MILLI;
        if self.milli_tokens >= wanted {
            self.milli_tokens -= wanted;
            return Ok(());
        }
        let missing = self.milli_tokens.abs_diff(wanted);
        let per_period = u64::from(rate.tokens.max(1)) * MILLI.unsigned_abs();
        Err((missing * u64::from(rate.period_ms)).div_ceil(per_period).max(1))
    }

    /// Gives back tokens that were taken for work that did not happen.
    pub fn give_back(&mut self, rate: Rate, cost: u32) {
        self.milli_tokens = (self.milli_tokens + i64::from(cost) * MILLI).min(i64::from(rate.burst) * MILLI);
    }

    /// Takes `cost` tokens that are gone already, whether they are there or not. The debt is one burst at most.
    pub fn charge(&mut self, rate: Rate, cost: u32, now_ms: u64) {
        self.refill(rate, now_ms);
        let floor = -i64::from(rate.burst) * MILLI;
        self.milli_tokens = (self.milli_tokens - i64::from(cost) * MILLI).max(floor);
    }

    /// Whole tokens left at `now_ms`.
    pub fn remaining(&mut self, rate: Rate, now_ms: u64) -> u32 {
        self.refill(rate, now_ms);
        u32::try_from(self.milli_tokens.max(0) / MILLI).unwrap_or(u32::MAX)
    }

    /// Whether it is full again, so that it can be forgotten: a new one would be the same.
    pub fn is_full(&mut self, rate: Rate, now_ms: u64) -> bool {
        self.remaining(rate, now_ms) >= rate.burst
    }

    fn refill(&mut self, rate: Rate, now_ms: u64) {
        // A clock that goes back gives nothing and takes nothing.
        let elapsed_ms = now_ms.saturating_sub(self.refilled_at_ms);
        let gained = elapsed_ms.saturating_mul(u64::from(rate.tokens) * MILLI.unsigned_abs())
            / u64::from(rate.period_ms.max(1));
        if gained == 0 {
            return;
        }
        let gained = i64::try_from(gained).unwrap_or(i64::MAX);
        self.milli_tokens = self.milli_tokens.saturating_add(gained).min(i64::from(rate.burst) * MILLI);
        self.refilled_at_ms = now_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_charged_is_paid_back_before_anything_is_taken() {
        let rate = Rate::per_second(10, 20);
        let mut bucket = TokenBucket::new(rate, 0);
        bucket.charge(rate, 25, 0);
        assert_eq!((bucket.remaining(rate, 0), bucket.take(rate, 1, 0)), (0, Err(600)));
        assert_eq!(bucket.take(rate, 1, 600), Ok(()));
        bucket.charge(rate, u32::MAX, 600);
        assert_eq!(bucket.take(rate, 1, 600), Err(2_100), "one burst of debt and no more");
        assert!(bucket.is_full(rate, 4_600));
    }

    #[test]
    fn burst_then_rate() {
        let rate = Rate::per_second(200, 400);
        let mut bucket = TokenBucket::new(rate, 0);
        for _ in 0..400 {
            assert_eq!(bucket.take(rate, 1, 0), Ok(()));
        }
        assert_eq!(bucket.take(rate, 1, 0), Err(5));
        assert_eq!(bucket.take(rate, 1, 4), Err(1));
        assert_eq!(bucket.take(rate, 1, 5), Ok(()));
    }

    #[test]
    fn slow_rates_say_when_to_come_back() {
        let rate = Rate::per_minute(30);
        let mut bucket = TokenBucket::new(rate, 0);
        assert_eq!(bucket.take(rate, 30, 0), Ok(()));
        assert_eq!(bucket.take(rate, 1, 0), Err(2_000));
        assert!(!bucket.is_full(rate, 59_000));
        assert!(bucket.is_full(rate, 60_000));
    }

    proptest! {
        /// Whatever the arrival times: never more than burst + rate × elapsed, and waiting as told always helps.
        #[test]
        fn never_gives_more_than_the_rate(steps in proptest::collection::vec((0_u64..50, 1_u32..5), 1..200)) {
            let rate = Rate::per_second(100, 20);
            let (mut now, mut taken) = (0_u64, 0_u64);
            let mut bucket = TokenBucket::new(rate, now);
            for (pause, cost) in steps {
                now += pause;
                match bucket.take(rate, cost, now) {
                    Ok(()) => taken += u64::from(cost),
                    Err(wait_ms) => {
                        let mut later = bucket;
                        prop_assert!(later.take(rate, cost, now + wait_ms).is_ok());
                    }
                }
                prop_assert!(taken <= 20 + now / 10);
            }
        }
    }
}
