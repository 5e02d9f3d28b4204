//! What handles ask of the control loop.

use std::time::Duration;

use tokio::sync::oneshot;

use super::drain::DrainReport;
use super::status::Status;
use super::wire::{Answer, Query};
use crate::core::claim::{Spec, Want};
use crate::core::ids::{Name, RunId};
use crate::core::io::CallError;
use crate::signal::Signal;

/// A request; whoever made it may have stopped waiting.
#[derive(Debug)]
pub(crate) enum Command {
    /// Start a task, or join its run.
    Run { spec: Spec, again: bool, reply: oneshot::Sender<Result<RunId, CallError>> },
    /// Pause, resume, cancel.
    Want {
        name: Name,
        run: Option<RunId>,
        want: Want,
        reply: oneshot::Sender<Result<RunId, CallError>>,
    },
    /// Ask whoever should know.
    Ask {
        query: Query,
        /// How often it was asked in vain: each time another node is asked.
        attempt: usize,
        reply: oneshot::Sender<Option<Answer>>,
    },
    /// Take no new tasks, or take them again.
    Cordon(bool),
    /// Hand everything over.
    Drain { budget: Duration, reply: oneshot::Sender<DrainReport> },
    /// Wait for no step any more.
    Hurry { signal: Option<Signal> },
    /// Report the drain as it stands.
    Abort { signal: Option<Signal> },
    /// Say goodbye and end.
    Leave { reply: oneshot::Sender<Farewell> },
    /// End at once.
    Close,
    /// Describe everything.
    Status { reply: oneshot::Sender<Status> },
    /// What drives gossip panics at its next turn.
    #[cfg(test)]
    DoomGossip,
}

/// How the goodbye went, or what still runs here, so that there was none.
pub(crate) type Farewell = Result<Goodbye, Vec<Name>>;

/// How the goodbye went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goodbye {
    /// Peers that acknowledged.
    pub(crate) heard: usize,
    /// Peers that were told.
    pub(crate) told: usize,
}
