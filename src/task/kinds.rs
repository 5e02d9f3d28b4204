//! The kinds of tasks a node runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Retry;
use super::codec::{self, DecodeError, EncodeError, Limits, Value};
use super::erased::{AnyKind, Job};
use crate::core::ids::{InvalidName, Kind};
use crate::core::record::Versions;

/// Why a kind was not registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// Another task is registered under the same kind.
    #[error("the kind {0} is registered twice: give each task a KIND of its own")]
    Duplicate(Kind),
    /// The kind's name is not allowed.
    #[error("the kind's name is not allowed: {0}")]
    Name(#[from] InvalidName),
    /// The oldest readable state version is above the one that is written.
    #[error(
        "the kind {kind} reads state versions from {oldest} but writes {newest}: \
         OLDEST_STATE_VERSION must not be above STATE_VERSION"
    )]
    Versions {
        /// The kind.
        kind: Kind,
        /// Its `OLDEST_STATE_VERSION`.
        oldest: u32,
        /// Its `STATE_VERSION`.
        newest: u32,
    },
}

/// The kinds of tasks a node runs, without their types.
#[derive(Default)]
pub(crate) struct Kinds {
    kinds: BTreeMap<Kind, Registered>,
    limits: Limits,
}

/// A kind, and what its code says of it. Asked once, where it is registered: no code of a user's
/// runs on the control thread.
#[derive(Clone)]
pub(crate) struct Registered {
    pub(crate) erased: Arc<dyn AnyKind>,
    pub(crate) versions: Versions,
    pub(crate) retry: Retry,
    /// The version that states are written in, if the code can.
    pub(crate) writes: Arc<AtomicU32>,
    max_running: Option<usize>,
    pin: bool,
}

impl Kinds {
    /// None yet.
    #[cfg(test)]
    pub(crate) fn new(limits: Limits) -> Self {
        Self { kinds: BTreeMap::new(), limits }
    }

    /// Adds a kind.
    pub(crate) fn register<J: Job>(&mut self, job: J) -> Result<(), RegisterError> {
        let kind = Kind::new(J::kind())?;
        let erased = job.erase().0;
        let registered = Registered {
            versions: erased.versions(),
            retry: erased.retry(),
            writes: Arc::new(AtomicU32::new(erased.versions().newest)),
            max_running: erased.max_running(),
            pin: erased.pin(),
            erased,
        };
        let Versions { oldest, newest } = registered.versions;
        if oldest > newest {
            return Err(RegisterError::Versions { kind, oldest, newest });
        }
        if self.kinds.contains_key(&kind) {
            return Err(RegisterError::Duplicate(kind));
        }
        self.kinds.insert(kind, registered);
        Ok(())
    }

    /// Every kind with the state versions it reads and writes, for the node's record.
    pub(crate) fn versions(&self) -> BTreeMap<Kind, Versions> {
        let versions = |(kind, of): (&Kind, &Registered)| (kind.clone(), of.versions);
        self.kinds.iter().map(versions).collect()
    }

    /// How many tasks of a kind may be here at once, where there is a limit beside the node's.
    pub(crate) fn limits_by_kind(&self) -> BTreeMap<Kind, usize> {
        let limit = |(kind, of): (&Kind, &Registered)| Some((kind.clone(), of.max_running?));
        self.kinds.iter().filter_map(limit).collect()
    }

    /// The kinds whose tasks are finished where they are, if there is time.
    pub(crate) fn finished_here(&self) -> BTreeSet<Kind> {
        self.kinds.iter().filter(|(_, of)| of.pin).map(|(kind, _)| kind.clone()).collect()
    }

    /// From the next time on, states of a kind are written in this version.
    pub(crate) fn write_version(&self, kind: &Kind, version: u32) {
        if let Some(registered) = self.kinds.get(kind) {
            registered.writes.store(version, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self, kind: &Kind) -> Option<Registered> {
        self.kinds.get(kind).cloned()
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// The args of a run, for its spec.
    pub(crate) fn encode_args<A: Serialize>(&self, args: &A) -> Result<Bytes, EncodeError> {
        codec::encode(args, Value::Args, &self.limits)
    }

    /// The output of a run, from its terminal record.
    pub(crate) fn decode_output<O: DeserializeOwned>(&self, out: &[u8]) -> Result<O, DecodeError> {
        codec::decode(out, Value::Output, &self.limits)
    }
}

impl fmt::Debug for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.kinds.keys()).finish()
    }
}
