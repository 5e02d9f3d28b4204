//! When a failed step is tried again, and when no more.

use std::time::Duration;

/// How a kind of task retries: exponential backoff with jitter, under a budget of attempts in a row.
///
/// The budget is per task and starts afresh as soon as the step that failed has succeeded. A
/// handover or a takeover costs no attempt.
///
/// ```
/// use std::time::Duration;
/// use handover::Retry;
///
/// let patient = Retry::default().attempts(100).delays(Duration::from_secs(1), Duration::from_secs(600));
/// # let _ = (patient, Retry::never());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    attempts: u32,
    first: Duration,
    longest: Duration,
}

impl Default for Retry {
    /// Ten attempts in a row, between them 100 ms, doubling up to 60 s.
    fn default() -> Self {
        Self { attempts: 10, first: Duration::from_millis(100), longest: Duration::from_secs(60) }
    }
}

impl Retry {
    /// The first failure ends the task.
    #[must_use]
    pub fn never() -> Self {
        Self::default().attempts(1)
    }

    /// How often in a row a step may be attempted; at least once.
    #[must_use]
    pub fn attempts(self, attempts: u32) -> Self {
        Self { attempts, ..self }
    }

    /// The delay after the first failure, and the longest that doubling it may lead to.
    #[must_use]
    pub fn delays(self, first: Duration, longest: Duration) -> Self {
        Self { first, longest, ..self }
    }

    /// The delay after this many failures in a row; none when the budget is spent. `jitter` is drawn
    /// from 0 to 1 and takes away up to half, so that tasks that failed together come back apart.
    pub(crate) fn delay(&self, failures: u32, jitter: f64) -> Option<Duration> {
        if failures >= self.attempts {
            return None;
        }
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.first.saturating_mul(1 << doublings).min(self.longest);
        Some(full.mul_f64(1.0 - jitter / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_jitter_takes_at_most_half() {
        let retry = Retry::default().attempts(u32::MAX);
        let ms = |failures, jitter| retry.delay(failures, jitter).map(|delay| delay.as_millis());
        assert_eq!(ms(1, 0.0), Some(100));
        assert_eq!(ms(2, 0.0), Some(200));
        assert_eq!(ms(3, 1.0), Some(200));
        assert_eq!(ms(10, 0.0), Some(51_200));
        assert_eq!(ms(11, 0.0), Some(60_000));
        assert_eq!(ms(1_000_000, 1.0), Some(30_000));
    }

    #[test]
    fn the_budget_counts_attempts() {
        assert_eq!(Retry::never().delay(1, 0.0), None);
        assert!(Retry::default().delay(9, 0.0).is_some());
        assert_eq!(Retry::default().delay(10, 0.0), None);
    }
}
