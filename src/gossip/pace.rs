//! How often silent peers are probed (Rule 3).
//!
//! With `n` silent addresses and a budget of `P` probes a second (`NetworkLimits::probes`, default 50),
//! one that has been silent for `s` is probed every
//!
//! ```text
//! clamp(s / 10, 100 ms, clamp(n / P, 100 ms, 5 s))
//! ```
//!
//! but never more than `P` of them a second, those first who have waited longest. So while few are
//! silent they are probed every 100 ms however long that lasts, and a heal is noticed within tens of
//! milliseconds from either side. A probe takes 180 to 208 bytes with all its headers:
//!
//! | silent | each every | probes a second | bytes a second |
//! |---|---|---|---|
//! | 1 | 100 ms | 10 | 2 KB |
//! | 5 | 100 ms | 50 | 10 KB |
//! | 50 | 1 s | 50 | 10 KB |
//! | 500 | 10 s | 50 | 10 KB |
//!
//! Where many are silent, some path between the two sides is tried all the more often, by every node
//! of both. And the first silent session that answers makes a node look for all the others at once, a
//! *sweep*: whoever is found does the same on its side. Sweeps are at least `n / P` seconds apart, and
//! 200 ms, so that they too cost no more than `P` probes a second in the long run.

use std::time::Duration;

use crate::core::time::Time;
use crate::rate::{Bucket, Rate};

/// The schedule of probes.
pub(super) struct Pace {
    per_second: u32,
    bucket: Bucket,
    /// Probes of the present sweep that may still go out.
    sweeping: usize,
    /// No sweep begins before.
    next_sweep: Time,
}

impl Pace {
    /// Between two probes of one address.
    pub(super) const LEAST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(5);

    /// Between two sweeps.
    const SWEEPS: Duration = Duration::from_millis(200);

    pub(super) fn new(per_second: u32, now: Time) -> Self {
        let bucket = Bucket::full(Self::rate(per_second), now);
        Self { per_second, bucket, sweeping: 0, next_sweep: Time::ZERO }
    }

    const fn rate(per_second: u32) -> Rate {
        Rate { count: per_second, bytes: 0 }
    }

    /// How often an address is probed that has been silent for so long, one of so many.
    pub(super) fn every(&self, silence: Duration, silent: usize) -> Duration {
        let most = self.share(silent).clamp(Self::LEAST, Self::MOST);
        (silence / 10).clamp(Self::LEAST, most)
    }

    /// How long the budget takes for so many probes.
    fn share(&self, probes: usize) -> Duration {
        let micros = (probes as u64).saturating_mul(1_000_000) / u64::from(self.per_second.max(1));
        Duration::from_micros(micros)
    }

    /// Whether all of so many silent addresses may be probed now; they are, then.
    pub(super) fn may_sweep(&mut self, silent: usize, now: Time) -> bool {
        let may = silent > 0 && now >= self.next_sweep;
        if may {
            self.sweeping = silent;
            self.next_sweep = now + self.share(silent).max(Self::SWEEPS);
        }
        may
    }

    /// Whether one more probe may go out now, to an address whose turn is `first` in a sweep or else
    /// ordinary.
    pub(super) fn take(&mut self, first: bool, now: Time) -> bool {
        if first && self.sweeping > 0 {
            self.sweeping -= 1;
            return true;
        }
        self.bucket.take(Self::rate(self.per_second), 0, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);

    #[test]
    fn few_are_probed_often_however_long_they_are_silent_and_many_within_the_budget() {
        let pace = Pace::new(50, Time::ZERO);
        for (silence, silent, every) in [
            (S, 1, MS * 100),
            (S * 3600, 1, MS * 100),
            (S * 3600, 5, MS * 100),
            (S * 3600, 50, S),
            (S * 5, 50, MS * 500),
            (S, 50, MS * 100),
            (S * 20, 500, S * 2),
            (S * 3600, 500, S * 5),
        ] {
            assert_eq!(pace.every(silence, silent), every, "{silent} for {silence:?}");
        }
    }

    #[test]
    fn sweeps_keep_their_distance() {
        let mut pace = Pace::new(50, Time::ZERO);
        let at = |ms: u32| Time::ZERO + S + MS * ms;
        assert!(!pace.may_sweep(0, at(0)), "there is nobody to look for");
        assert!(pace.may_sweep(500, at(0)));
        assert!(!pace.may_sweep(500, at(9_999)));
        assert!(pace.may_sweep(2, at(10_000)));
        assert!(!pace.may_sweep(2, at(10_199)));
        assert!(pace.may_sweep(2, at(10_200)));
    }
}
