//! Before a large fan-out of a stream whose producer does not wait for each acknowledgement: lets what is on its way
//! come too. Two bursts that follow each other would otherwise never meet, and each reader is written to twice as often.

use super::State;

/// Readers from which on a stream gathers.
const READERS_MIN: usize = 64;
/// Part of what a fan-out takes that is waited before the next.
const PART: u64 = 6;
/// At most, in microseconds.
const WAIT_US_MAX: u64 = 3_000;
/// Rounds after one with several chunks in which it is waited.
const ROUNDS: u8 = 8;

/// What a stream knows of the pace of its producer.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// How long the last fan-out took, in microseconds.
    fan_out_us: u64,
    /// For how many more rounds its producer is taken to send without waiting.
    rounds: u8,
}

impl Gathering {
    /// Notes how many chunks came together.
    pub fn took(&mut self, chunks: usize) {
        match chunks {
            0 => {}
            1 => self.rounds = self.rounds.saturating_sub(1),
            _ => self.rounds = ROUNDS,
        }
    }

    /// Notes how long a fan-out took.
    pub fn fanned_out(&mut self, us: u64) {
        self.fan_out_us = us;
    }

    /// How long to wait for more, in microseconds, if at all.
    fn patience_us(&self, readers: usize) -> Option<u64> {
        (self.rounds > 0 && readers >= READERS_MIN).then(|| (self.fan_out_us / PART).min(WAIT_US_MAX))
    }
}

impl State {
    /// Waits for more, until nothing has come for half the patience there is.
    pub(super) async fn gather(&self) {
        let Some(patience_us) = self.gathering.patience_us(self.readers.len()) else { return };
        let environment = &self.registry.environment;
        let begun_us = environment.monotonic_us();
        let (mut waiting, mut changed_us) = (self.handle.inbox.len(), begun_us);
        loop {
            tokio::task::yield_now().await;
            let (now_us, more) = (environment.monotonic_us(), self.handle.inbox.len());
            if more != waiting {
                (waiting, changed_us) = (more, now_us);
            }
            if now_us - changed_us >= patience_us / 2 || now_us - begun_us >= patience_us {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_producer_that_does_not_wait_is_waited_for() {
        let mut gathering = Gathering::default();
        gathering.fanned_out(1_200);
        assert_eq!(gathering.patience_us(1_000), None);
        gathering.took(2);
        assert_eq!(gathering.patience_us(READERS_MIN - 1), None);
        for _ in 0..ROUNDS {
            assert_eq!(gathering.patience_us(1_000), Some(200));
            gathering.took(1);
        }
        assert_eq!(gathering.patience_us(1_000), None);
        gathering.took(16);
        gathering.fanned_out(10_000_000);
        assert_eq!(gathering.patience_us(READERS_MIN), Some(WAIT_US_MAX));
    }
}
