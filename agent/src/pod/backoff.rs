//! How long to wait before the next try: 1 s, doubled with each failure up to 60 s. Pure.

use serde::{Deserialize, Serialize};

/// Wait after the first failure.
const FIRST_MS: i64 = 1_000;
/// Longest wait: a fault that has gone is noticed within a minute.
pub(super) const MOST_MS: i64 = 60_000;
/// A container that ran this long is well again: its next end is a first one.
pub(super) const WELL_AFTER_MS: i64 = 10 * 60_000;

/// Failures in a row. Times are milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Backoff {
    /// The wait that holds now; 0 for none.
    pub(super) delay_ms: i64,
    /// When the next try comes.
    pub(super) retry_at_ms: i64,
}

impl Backoff {
    /// Another failure, now.
    pub(super) fn failed(&mut self, now_ms: i64) {
        self.delay_ms = match self.delay_ms {
            0 => FIRST_MS,
            delay => delay.saturating_mul(2).min(MOST_MS),
        };
        self.retry_at_ms = now_ms.saturating_add(self.delay_ms);
    }

    /// A container ended after it ran for `ran_ms`.
    pub(super) fn ended(&mut self, ran_ms: i64, now_ms: i64) {
        if ran_ms >= WELL_AFTER_MS {
            self.reset();
        }
        self.failed(now_ms);
    }

    /// All is well.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// When the next try comes, if it is still to be waited for. A clock that was set back does not stretch the wait.
    pub(super) fn waits_until(&self, now_ms: i64) -> Option<i64> {
        let at = self.retry_at_ms.min(now_ms.saturating_add(self.delay_ms));
        (at > now_ms).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_minute() {
        let mut backoff = Backoff::default();
        let mut delays = Vec::new();
        for _ in 0..9 {
            backoff.failed(0);
            delays.push(backoff.delay_ms / 1000);
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn ten_minutes_of_running_forgive() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.ended(1_000, 0);
        }
        assert_eq!(backoff.delay_ms, 16_000);
        backoff.ended(WELL_AFTER_MS - 1, 0);
        assert_eq!(backoff.delay_ms, 32_000);
        backoff.ended(WELL_AFTER_MS, 0);
        assert_eq!(backoff.delay_ms, 1_000);
    }

    #[test]
    fn a_wait_ends_and_is_never_stretched_by_the_clock() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.waits_until(5), None);
        backoff.failed(100_000);
        assert_eq!(backoff.waits_until(100_500), Some(101_000));
        assert_eq!(backoff.waits_until(101_000), None);
        // Set back by a minute: at most the whole wait again.
        assert_eq!(backoff.waits_until(40_000), Some(41_000));
    }
}
