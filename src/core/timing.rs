//! The symbols of the timing model, their defaults, and the start-up checks.

mod bounds;

use std::time::Duration;

pub use self::bounds::Pace;

/// The durations a node lives by. Symbols as in `docs/semantics.md`. All nodes of a cluster should
/// have the same; a taker goes by the silence floor that the owner of a task has published.
///
/// ```
/// use handover::{Node, Timing};
/// use std::time::Duration;
///
/// let mut timing = Timing::default();
/// timing.gossip_interval = Duration::from_millis(250);
/// timing.silence_floor = Duration::from_secs(4); // taken over after 4 s of silence instead of 10
/// timing.alone_after = Duration::from_secs(30); // one of two nodes, cut off, goes on after 30 s
/// timing.stop_grace = Duration::from_secs(2); // to end a step when its task is paused or cancelled
/// timing.check()?; // `start` does the same, and refuses what cannot hold
/// let node = Node::builder("shop").timing(timing);
/// # Ok::<(), handover::InvalidTiming>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Timing {
    /// g: between rounds of gossip. Default 0.5 s.
    pub gossip_interval: Duration,
    /// T: how long a session must be silent before its tasks are taken over. Default 10 s.
    pub silence_floor: Duration,
    /// K: between one takeover rank and the next. Default one gossip interval.
    pub takeover_delay: Duration,
    /// How long a task may take to reach a step boundary before its step is dropped. Default 10 s.
    pub stop_grace: Duration,
    /// How long a node that hears nobody waits before it takes anything over. Default 60 s.
    pub alone_after: Duration,
    /// How long a node without seeds waits before it is up. Default 5 s.
    pub solo_after: Duration,
    /// How long a booting node waits for the members it remembers. Default T.
    pub boot_wait: Duration,
    /// How long a taker looks for state at or above the floor. Default T.
    pub state_wait: Duration,
    /// How long a terminal state and its output stay readable. Default 1 h.
    pub retention: Duration,
    /// How long a tombstone outlives its retention. Default 24 h.
    pub tombstone_retention: Duration,
    /// After how long chitchat forgets a dead node. Default 12 min.
    pub dead_node_grace: Duration,
    /// How long a session stays in the address book unseen. Default 24 h.
    pub address_book: Duration,
    /// How long after the last node of an older build was seen states are written as it reads them,
    /// or the last that it reads is kept: the time in which a deploy can be rolled back. Default 10 min.
    pub finalize_after: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let t = Duration::from_secs(10);
        let g = Duration::from_millis(500);
        Self {
            gossip_interval: g,
            silence_floor: t,
            takeover_delay: g,
            stop_grace: Duration::from_secs(10),
            alone_after: Duration::from_secs(60),
            solo_after: Duration::from_secs(5),
            boot_wait: t,
            state_wait: t,
            retention: Duration::from_secs(3600),
            tombstone_retention: Duration::from_secs(24 * 3600),
            dead_node_grace: Duration::from_secs(12 * 60),
            address_book: Duration::from_secs(24 * 3600),
            finalize_after: Duration::from_secs(10 * 60),
        }
    }
}

/// Why a [`Timing`] was refused. Nothing has been started.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTiming {
    /// A duration that must be positive is zero.
    #[error("{0} must be longer than zero")]
    Zero(&'static str),
    /// A duration is shorter than a machine's clock and scheduler can keep.
    #[error("{name} is {value:?}, under the limit of {limit:?}: choose a longer one")]
    TooShort {
        /// Which.
        name: &'static str,
        /// What was given.
        value: Duration,
        /// The shortest allowed.
        limit: Duration,
    },
    /// A duration is longer than any cluster lives. Sums of durations must not overflow.
    #[error("{name} is {value:?}, over the limit of {limit:?}: choose a shorter one")]
    TooLong {
        /// Which.
        name: &'static str,
        /// What was given.
        value: Duration,
        /// The longest allowed.
        limit: Duration,
    },
    /// A relation between two durations does not hold.
    #[error("{lesser} ({lesser_is:?}) must be at most {greater} ({greater_is:?}): {why}")]
    Order {
        /// The symbol that is too long.
        lesser: &'static str,
        /// Its value.
        lesser_is: Duration,
        /// The symbol, or product, that bounds it.
        greater: &'static str,
        /// Its value.
        greater_is: Duration,
        /// What goes wrong otherwise.
        why: &'static str,
    },
}

impl Timing {
    /// The longest that any of the durations may be: a hundred years.
    pub const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

    /// The shortest that [`Timing::gossip_interval`] may be: a millisecond.
    pub const SHORTEST: Duration = Duration::from_millis(1);

    /// Two-way evidence counts while the echoed counter was sent at most this long ago (Rule 4).
    pub(crate) fn evidence_window(&self) -> Duration {
        Duration::from_secs(5).min(self.silence_floor / 2)
    }

    /// R_eta: by when gossip has reached everyone, at up to 20 % loss. 4 g.
    pub(crate) fn convergence(&self) -> Duration {
        self.gossip_interval.saturating_mul(4)
    }

    /// After how long others are asked about a session whose datagrams do not come (Rule 2). Silent
    /// peers are probed after two gossip intervals.
    pub(crate) fn unheard_after(&self) -> Duration {
        self.gossip_interval.saturating_mul(3)
    }

    /// A jump of one's own clock that long means the process did not run (Rules 4 and 17).
    pub(crate) fn visible_gap(&self) -> Duration {
        self.silence_floor / 2
    }

    /// How long a task's permit lasts without being renewed (Rule 17).
    pub(crate) fn permit(&self) -> Duration {
        self.silence_floor / 2
    }

    /// Checks what the protocol takes for granted.
    ///
    /// # Errors
    /// Names the first relation that does not hold, with both values and the reason.
    pub fn check(&self) -> Result<(), InvalidTiming> {
        for (name, value, may_be_zero) in [
            ("gossip_interval", self.gossip_interval, false),
            ("silence_floor", self.silence_floor, false),
            ("takeover_delay", self.takeover_delay, false),
            ("stop_grace", self.stop_grace, true),
            ("alone_after", self.alone_after, false),
            ("solo_after", self.solo_after, false),
            ("boot_wait", self.boot_wait, true),
            ("state_wait", self.state_wait, true),
            ("retention", self.retention, false),
            ("tombstone_retention", self.tombstone_retention, true),
            ("dead_node_grace", self.dead_node_grace, false),
            ("address_book", self.address_book, true),
            ("finalize_after", self.finalize_after, true),
        ] {
            if value.is_zero() && !may_be_zero {
                return Err(InvalidTiming::Zero(name));
            }
            let limit = Self::LONGEST;
            if value > limit {
                return Err(InvalidTiming::TooLong { name, value, limit });
            }
        }
        let (name, value, limit) = ("gossip_interval", self.gossip_interval, Self::SHORTEST);
        if value < limit {
            return Err(InvalidTiming::TooShort { name, value, limit });
        }
        let order = |lesser, lesser_is, greater, greater_is, why| {
            if lesser_is <= greater_is {
                Ok(())
            } else {
                Err(InvalidTiming::Order { lesser, lesser_is, greater, greater_is, why })
            }
        };
        order(
            "8 gossip_interval",
            self.gossip_interval.saturating_mul(8),
            "silence_floor",
            self.silence_floor,
            "a few lost datagrams would look like a death",
        )?;
        order(
            "takeover_delay",
            self.takeover_delay,
            "silence_floor",
            self.silence_floor,
            "the second in rank would wait longer for the first than a death takes to be known",
        )?;
        order(
            "silence_floor",
            self.silence_floor,
            "alone_after",
            self.alone_after,
            "a node that hears nobody would be quicker to take over than one that does",
        )?;
        order(
            "silence_floor",
            self.silence_floor,
            "dead_node_grace / 4",
            self.dead_node_grace / 4,
            "a dead node's tasks would be forgotten before they are taken over",
        )?;
        order(
            "2 dead_node_grace",
            self.dead_node_grace.saturating_mul(2),
            "tombstone_retention",
            self.tombstone_retention,
            "a node that was away would revive finished tasks",
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_interval_that_no_clock_can_keep_is_refused() {
        for value in [Duration::from_nanos(1), Timing::SHORTEST - Duration::from_nanos(1)] {
            let timing = Timing { gossip_interval: value, ..Timing::default() };
            let (name, limit) = ("gossip_interval", Timing::SHORTEST);
            assert_eq!(timing.check(), Err(InvalidTiming::TooShort { name, value, limit }));
        }
        let shortest = Timing { gossip_interval: Timing::SHORTEST, ..Timing::default() };
        assert_eq!(shortest.check(), Ok(()));
    }

    #[test]
    fn a_rank_that_takes_longer_than_a_death_is_refused() {
        let timing = |takeover_delay| Timing { takeover_delay, ..Timing::default() };
        let floor = Timing::default().silence_floor;
        assert_eq!(timing(floor).check(), Ok(()));
        let error = timing(Duration::from_secs(1000)).check().unwrap_err();
        assert!(matches!(error, InvalidTiming::Order { lesser: "takeover_delay", .. }), "{error}");
    }

    #[test]
    fn durations_whose_sums_would_overflow_are_refused() {
        let limit = Timing::LONGEST;
        for value in [Duration::MAX, limit + Duration::from_nanos(1)] {
            let timing = Timing { boot_wait: value, ..Timing::default() };
            let error = InvalidTiming::TooLong { name: "boot_wait", value, limit };
            assert_eq!(timing.check(), Err(error));
            let timing = Timing { solo_after: value, ..Timing::default() };
            let error = InvalidTiming::TooLong { name: "solo_after", value, limit };
            assert_eq!(timing.check(), Err(error));
        }
        let longest = Timing { boot_wait: limit, solo_after: limit, ..Timing::default() };
        assert_eq!(longest.check(), Ok(()));
    }
}
