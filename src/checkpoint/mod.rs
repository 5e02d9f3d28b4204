//! Checkpoints at rest: how they are written, what a store keeps of a run, and the stores.
//!
//! A store applies batches of [`Write`]s, each batch in one transaction, and answers reads from what
//! it has acknowledged. What a write does to a run is decided in one place for all stores
//! (`catalog`); they differ in where the bytes go:
//!
//! - [`MemoryStore`]: lost with the process, bounded in bytes.
//! - `DurableStore` (feature `redb`): on disk when a write is acknowledged; keeps the checkpoint
//!   before the newest one of each branch, and falls back to it, with a report, if the newest is
//!   damaged.
//!
//! Stores block. [`StoreWorker`] runs one beside the control loop.

mod catalog;
#[cfg(test)]
mod conformance;
pub(crate) mod directory;
#[cfg(feature = "redb")]
mod durable;
pub(crate) mod envelope;
mod frame;
mod memory;
#[cfg(test)]
pub(crate) mod testing;
mod worker;

use std::fmt;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;

use crate::core::branch::{Header, Position};
use crate::core::claim::{Desired, Spec};
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::stored::{StoredEnd, StoredRun};

#[cfg(feature = "redb")]
pub(crate) use self::durable::DurableStore;
pub(crate) use self::frame::FrameError;
pub(crate) use self::memory::MemoryStore;
pub(crate) use self::worker::{Answer, Execution, Limits, QueueFull, Reply, Request, StoreWorker};

/// Keeps checkpoints and terminal records of this node's and other nodes' tasks.
pub(crate) trait CheckpointStore: fmt::Debug + Send + Sync + 'static {
    /// Applies the writes in order and together; answers each of them, in order. What was answered
    /// `Ok` survives whatever the store promises to survive. A write that is refused leaves the
    /// others alone; if the transaction fails, none of them has been applied.
    fn apply(&self, batch: Vec<Write>) -> Vec<Result<(), StoreError>>;

    /// Reads a checkpoint; none if it is gone.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] once, if it is damaged: it is forgotten then, and what it fell back to
    /// takes its place. [`StoreError::Io`] if it could not be read; try again.
    fn get(
        &self,
        name: &Name,
        run: RunId,
        position: Position,
        writer: &SessionId,
    ) -> Result<Option<(Header, Bytes)>, StoreError>;

    /// Reads the output of a run that has finished; none if it has none, or no longer.
    ///
    /// # Errors
    /// As [`CheckpointStore::get`].
    fn get_output(&self, name: &Name, run: RunId) -> Result<Option<Bytes>, StoreError>;

    /// Everything that is kept, ordered by name and run.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it could not be read.
    fn runs(&self) -> Result<Vec<StoredRun>, StoreError>;

    /// The damage found since the last call, at opening or reading. It waits for the batch that is
    /// being applied: once a [`StoreWorker`] has the store, damage comes with its answers.
    fn take_damage(&self) -> Vec<Damage>;

    /// One write by itself.
    #[cfg(test)]
    fn write(&self, write: Write) -> Result<(), StoreError> {
        self.apply(vec![write]).pop().unwrap_or(Err(StoreError::Stopped))
    }
}

/// A change.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    /// Keep a checkpoint, instead of those that its line contains. One that is known already, or
    /// contained in one that is, changes nothing.
    Put {
        /// What it is of.
        spec: Spec,
        /// Its header.
        header: Header,
        /// The state.
        state: Bytes,
    },
    /// Keep what a run is and what is wanted of it. After its end nothing of that is kept.
    Run {
        /// What it is.
        spec: Spec,
        /// What is wanted of it, if anything is.
        desired: Option<Desired>,
    },
    /// Keep a terminal record instead of the run's checkpoints (Rule 12). A lower one than is known
    /// changes nothing. A failure compares like a live claim (Rule 9), so it spares checkpoints of
    /// higher epochs, and they are still taken after it.
    End {
        /// How it ended, and when.
        end: StoredEnd,
        /// What ended.
        spec: Spec,
        /// Its output.
        output: Option<Bytes>,
    },
    /// Forget the output, keep the terminal record.
    DropOutput {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
    },
    /// Forget branches by their newest checkpoint. A run with neither checkpoint nor terminal record
    /// left is forgotten altogether.
    Discard {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
        /// Which; all of the run, its terminal record included, if empty. One that a later
        /// checkpoint has replaced needs no discarding, and changes nothing.
        headers: Vec<(Position, SessionId)>,
    },
}

impl Write {
    /// Whose run it changes.
    fn key(&self) -> (Name, RunId) {
        match self {
            Self::Put { spec, .. } | Self::Run { spec, .. } | Self::End { spec, .. } => {
                (spec.name.clone(), spec.run)
            }
            Self::DropOutput { name, run } | Self::Discard { name, run, .. } => {
                (name.clone(), *run)
            }
        }
    }

    /// How many bytes of the user's it carries.
    fn weight(&self) -> usize {
        match self {
            Self::Put { state, .. } => state.len(),
            Self::End { output, .. } => output.as_ref().map_or(0, Bytes::len),
            Self::Run { .. } | Self::DropOutput { .. } | Self::Discard { .. } => 0,
        }
    }
}

/// Why a store did not do as asked. A write that failed is not acknowledged: it may be repeated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum StoreError {
    /// No room.
    #[error("the checkpoint store is full ({0}): give it more room, or run fewer or smaller tasks")]
    Full(String),
    /// The system failed.
    #[error("the checkpoint store failed: {message}; check the disk of the data directory")]
    Io {
        /// What kind of failure.
        kind: io::ErrorKind,
        /// What the system says.
        message: String,
    },
    /// What was to be read is damaged.
    #[error("{0}")]
    Corrupt(Box<Damage>),
    /// The write is no checkpoint that can be kept: too large, or not what its header says.
    #[error("the checkpoint cannot be stored: {0}")]
    Unfit(#[from] FrameError),
    /// The write contradicts itself.
    #[error("the write contradicts itself: {0}")]
    Invalid(&'static str),
    /// There are as many unreconciled branches as are kept of one run.
    #[error(
        "the run has {0} unreconciled branches already: wait until its owner has reconciled them"
    )]
    TooManyBranches(usize),
    /// The run has ended.
    #[error("the run has ended: its checkpoints are no longer kept")]
    Ended,
    /// The store's worker has stopped.
    #[error("the checkpoint store has stopped")]
    Stopped,
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        let message = error.to_string();
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::Full(message),
            kind => Self::Io { kind, message },
        }
    }
}

/// Something at rest is not what was written. Tell a person: disks that do this get worse.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub(crate) enum Damage {
    /// A checkpoint.
    Checkpoint {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
        /// Which checkpoint.
        position: Position,
        /// What is wrong.
        what: String,
        /// The checkpoint before it in its branch, else the newest of the run that is left.
        fell_back_to: Option<Box<Header>>,
    },
    /// The record of a run: its spec and how it ended. Without the spec its checkpoints are of no
    /// use here; they are kept until a peer brings the spec again.
    Run {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
        /// What is wrong.
        what: String,
    },
    /// The output of a finished run.
    Output {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
        /// What is wrong.
        what: String,
    },
    /// The file as a whole, or a part of it that cannot be told.
    File {
        /// What is wrong.
        what: String,
        /// Where it has been moved, if it has been replaced.
        aside: Option<PathBuf>,
        /// Records that could be carried over.
        saved: usize,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkpoint { name, run, position, what, fell_back_to } => {
                write!(
                    f,
                    "checkpoint {}/{} of task {name} (run {run}) is unusable here: {what}; ",
                    position.epoch, position.seq
                )?;
                match fell_back_to {
                    Some(header) => {
                        write!(f, "fell back to {}/{}", header.position.epoch, header.position.seq)
                    }
                    None => f.write_str("none is left here, its replicas may have it"),
                }
            }
            Self::Run { name, run, what } => {
                write!(f, "the record of task {name} (run {run}) is unusable here: {what}")
            }
            Self::Output { name, run, what } => {
                write!(f, "the output of task {name} (run {run}) is unusable here: {what}")
            }
            Self::File { what, aside, saved } => {
                write!(f, "the checkpoint file is damaged: {what}; ")?;
                match aside {
                    Some(path) => write!(
                        f,
                        "moved aside to {}, {saved} records were carried over",
                        path.display()
                    ),
                    None => f.write_str("it stays in use"),
                }
            }
        }
    }
}
