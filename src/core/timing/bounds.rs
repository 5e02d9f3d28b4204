//! How long a task can run twice, or nowhere, for each fault: the formulas of `docs/semantics.md`, section 2.3.

use std::time::Duration;

use super::Timing;

/// What of a task and its network enters the formulas besides [`Timing`].
///
/// ```
/// use handover::{Pace, Timing};
/// use std::time::Duration;
///
/// let timing = Timing::default();
/// let pace = Pace { step: Duration::from_secs(2), ..Pace::default() };
/// let minute = Duration::from_secs(60);
/// // Where the network is cut for a minute, both sides run the task for a little less than a minute.
/// assert!(timing.overlap_of_cut(minute, &pace) < minute);
/// // Once it is whole again, the copy that loses stops at the end of its step.
/// assert!(timing.overlap_after_heal(&pace) < Duration::from_secs(4));
/// // A cut that is shorter than the silence floor costs nothing.
/// assert!(timing.overlap_of_cut(Duration::from_secs(5), &pace).is_zero());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// The longest step. One that takes longer than [`Timing::stop_grace`] is dropped then. Default 1 s.
    pub step: Duration,
    /// κ: the longest stretch of a step between two awaits, or the longest tracked blocking closure: nothing ends
    /// that early. Default 0.
    pub unbroken: Duration,
    /// σ: from the claim to the first step, with the reading of the state. Default 0.2 s.
    pub start: Duration,
    /// δ: one way through the network, at worst. Default 10 ms.
    pub delay: Duration,
    /// The two copies reach each other only through other nodes. Default false.
    pub relayed: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            step: Duration::from_secs(1),
            unbroken: Duration::ZERO,
            start: Duration::from_millis(200),
            delay: Duration::from_millis(10),
            relayed: false,
        }
    }
}

impl Timing {
    /// S: from the order to stop until a task's code has stopped.
    #[must_use]
    pub fn stop_within(&self, pace: &Pace) -> Duration {
        pace.step.min(self.stop_grace).saturating_add(pace.unbroken)
    }

    /// H + S: how long after the end of a cut two copies end, where at most every fifth datagram is lost. H is one
    /// round of gossip until somebody of each side meets, and one until each loser has heard; an exchange is three
    /// messages, the proof that the winner lives is two. Without a direct path that proof is a heartbeat that still
    /// advances once gossip has reached everyone (Rule 21). With three copies, from when all know the highest claim.
    #[must_use]
    pub fn overlap_after_heal(&self, pace: &Pace) -> Duration {
        let proof = if pace.relayed { self.convergence() } else { Duration::ZERO };
        let heard = self.gossip_interval.saturating_mul(2).saturating_add(proof);
        heard.saturating_add(pace.delay.saturating_mul(8)).saturating_add(self.stop_within(pace))
    }

    /// W: for how long together two copies of a task run because of a cut of that length, if it ran before the cut.
    /// The other side misses its owner's last sign of life by up to three rounds of gossip, and waits for the
    /// silence floor.
    #[must_use]
    pub fn overlap_of_cut(&self, cut: Duration, pace: &Pace) -> Duration {
        self.overlap_of_starts(cut, pace).saturating_sub(self.first_takeover())
    }

    /// The same of a task that was started on both sides of the cut.
    #[must_use]
    pub fn overlap_of_starts(&self, cut: Duration, pace: &Pace) -> Duration {
        cut.saturating_add(self.overlap_after_heal(pace))
    }

    /// How soon after its last sign of life an owner can have lost a task by silence alone.
    fn first_takeover(&self) -> Duration {
        self.silence_floor.saturating_sub(self.unheard_after())
    }

    /// U: for how long a task runs nowhere after its owner was silently lost, as with its machine, if the first in
    /// rank can take it and has its state; each rank that cannot adds [`Timing::takeover_delay`].
    #[must_use]
    pub fn gap_of_silence(&self, pace: &Pace) -> Duration {
        let noticed = self.silence_floor.saturating_add(self.convergence());
        let claimed =
            noticed.saturating_add(self.gossip_interval.saturating_add(self.takeover_delay));
        claimed.saturating_add(pace.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_minutes_cut_runs_a_task_twice_for_a_little_less_than_a_minute() {
        let (timing, pace) = (Timing::default(), Pace { delay: Duration::ZERO, ..Pace::default() });
        assert_eq!(timing.overlap_after_heal(&pace), S * 2);
        assert_eq!(timing.overlap_after_heal(&Pace { relayed: true, ..pace }), S * 4);
        assert_eq!(timing.overlap_of_cut(S * 60, &pace), S * 60 + S * 2 - S * 10 + S * 3 / 2);
        assert_eq!(timing.overlap_of_starts(S * 60, &pace), S * 62);
        assert_eq!(timing.overlap_of_cut(S * 6, &pace), Duration::ZERO);
    }

    #[test]
    fn a_step_is_dropped_at_the_stop_grace_and_what_cannot_be_dropped_is_added() {
        let timing = Timing { stop_grace: S * 5, ..Timing::default() };
        let pace = Pace { step: S * 60, unbroken: S * 3, ..Pace::default() };
        assert_eq!(timing.stop_within(&pace), S * 8);
    }

    #[test]
    fn nothing_overflows() {
        let timing = Timing::default();
        let longest = Duration::MAX;
        let pace = Pace {
            step: longest,
            unbroken: longest,
            start: longest,
            delay: longest,
            relayed: true,
        };
        assert_eq!(timing.overlap_of_starts(Duration::MAX, &pace), Duration::MAX);
        assert_eq!(timing.gap_of_silence(&pace), Duration::MAX);
    }
}
