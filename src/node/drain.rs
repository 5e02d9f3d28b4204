//! Draining: what starts it, what hurries it, and the report it ends with.

use std::process::ExitCode;
use std::time::Duration;

use futures_core::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, stream};
use serde::Serialize;

use crate::core::ids::Name;
use crate::signal::{Signal, Signals};

/// What tells a node to drain: any future, or the process's signals.
///
/// A future starts the drain when it completes. [`crate::signal::term_or_int`] goes on after that: a
/// further signal within one second is taken for the same one (process groups deliver twice), a
/// later one ends the waiting for step boundaries, and one more ends the drain at once.
pub trait Trigger {
    /// The signals, the first of which starts the drain.
    fn signals(self) -> BoxStream<'static, Option<Signal>>;
}

impl<F: Future + Send + 'static> Trigger for F {
    fn signals(self) -> BoxStream<'static, Option<Signal>> {
        stream::once(self.map(|_| None)).boxed()
    }
}

impl Trigger for Signals {
    fn signals(self) -> BoxStream<'static, Option<Signal>> {
        self.map(Some).boxed()
    }
}

/// How a drain went.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DrainReport {
    /// Tasks that run on another node now, with their state.
    pub moved: usize,
    /// Tasks that are kept until some node can run them: by another node, or on this node's disk.
    pub parked: usize,
    /// Of those parked, the ones whose last commit is on this node's disk alone, as when no peer is
    /// left: they go on from there once a node is started on its data directory, and not before.
    pub only_on_disk: usize,
    /// Tasks that were stopped and released, with their last commit on at least one replica.
    pub released: usize,
    /// Tasks that ended while the node drained.
    pub ended: usize,
    /// Tasks whose code had not returned when the drain ended. Other nodes take them over once this
    /// process is gone and has been silent for [`Timing::silence_floor`](crate::Timing::silence_floor), with two nodes for
    /// [`Timing::alone_after`](crate::Timing::alone_after): of a node that drains, refused connections say nothing (Rule 5).
    pub unstoppable: Vec<Name>,
    /// Tasks that nobody was given: this node held them to the end, or neither another node nor this
    /// node's disk holds their last commit. What a replica or a data directory has of them is taken up
    /// once this process is gone.
    pub abandoned: Vec<Name>,
    /// How long it took.
    pub elapsed: Duration,
    /// The signal that cut it short, if one did.
    pub forced: Option<Signal>,
    /// The node had ended before it could be drained: nothing is known of its tasks.
    pub unknown: bool,
}

impl DrainReport {
    /// Whether every task is in other hands, or at least on this node's disk
    /// ([`DrainReport::only_on_disk`]).
    pub const fn is_clean(&self) -> bool {
        self.unstoppable.is_empty() && self.abandoned.is_empty() && !self.unknown
    }

    /// The code to exit with: 0 when the drain [is clean](DrainReport::is_clean), 75 (EX_TEMPFAIL of sysexits.h)
    /// when not, 130 or 143 when a second SIGINT or SIGTERM cut the drain short.
    ///
    /// Returned from `main`, it is reached only when the runtime has shut down, which waits for
    /// closures that block: where a task may be unstoppable, pass [`DrainReport::code`] to
    /// [`std::process::exit`].
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    /// [`DrainReport::exit_code`] as a number.
    pub const fn code(&self) -> u8 {
        match self.forced {
            Some(Signal::Interrupt) => 130,
            Some(Signal::Terminate) => 143,
            None if self.is_clean() => 0,
            None => 75,
        }
    }

    pub(crate) const fn outcome(&self) -> &'static str {
        match self.forced {
            Some(_) => "forced",
            None if self.is_clean() => "clean",
            None => "incomplete",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn the_exit_code_says_whether_all_is_in_other_hands() {
        let clean = DrainReport { moved: 3, ..DrainReport::default() };
        assert_eq!(clean.code(), 0);
        let abandoned = DrainReport { abandoned: vec![Name::new("t").unwrap()], ..clean.clone() };
        assert_eq!(abandoned.code(), 75);
        let unstoppable =
            DrainReport { unstoppable: vec![Name::new("t").unwrap()], ..clean.clone() };
        assert_eq!(unstoppable.code(), 75);
        let unknown = DrainReport { unknown: true, ..DrainReport::default() };
        assert_eq!(unknown.code(), 75);
        let forced = DrainReport { forced: Some(Signal::Terminate), ..abandoned };
        assert_eq!(forced.code(), 143);
        let interrupted = DrainReport { forced: Some(Signal::Interrupt), ..clean };
        assert_eq!(interrupted.code(), 130);
    }
}
