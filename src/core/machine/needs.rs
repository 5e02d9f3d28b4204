//! What a parked task waits for.

use std::fmt;

use super::Machine;
use super::task::{Doing, Task};
use crate::core::claim::Phase;
use crate::core::ids::{Kind, Name};

/// What a task that is kept without running waits for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// A node that runs the kind and reads this version of its state, where there is a state.
    Node(Kind, Option<u32>),
    /// `resume`: its state is lost or cannot be read.
    State,
    /// `resume`: three takeovers in a row brought no progress.
    Quarantine,
}

impl Needs {
    /// Why it waits, in one word.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Node(..) => "no_node",
            Self::State => "state",
            Self::Quarantine => "quarantine",
        }
    }

    /// Why it waits and what to do, for people.
    pub fn why(&self) -> String {
        match self {
            Self::Node(kind, Some(version)) => format!(
                "no live node runs the kind {kind} and reads version {version} of its state: \
                 start one that does"
            ),
            Self::Node(kind, None) => {
                format!("no live node runs the kind {kind}: start one that does")
            }
            Self::State => "its state is lost or cannot be read".to_owned(),
            Self::Quarantine => "three takeovers in a row brought no progress".to_owned(),
        }
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(kind, Some(version)) => write!(f, "{kind}@{version}"),
            Self::Node(kind, None) => write!(f, "{kind}"),
            Self::State | Self::Quarantine => f.write_str("resume"),
        }
    }
}

impl Machine {
    /// What a task waits for that is kept here; none if it waits for nothing, or only for an order.
    pub fn needs(&self, name: &Name) -> Option<Needs> {
        let task = self.tasks.get(name).filter(|task| matches!(task.doing, Doing::Kept))?;
        match task.claim.phase {
            Phase::Parked { until_resumed: false } => {
                Some(Needs::Node(task.spec.kind.clone(), self.state_version(task)))
            }
            Phase::Parked { until_resumed: true } => Some(Needs::State),
            Phase::Quarantined => Some(Needs::Quarantine),
            _ => None,
        }
    }

    /// The version of the newest state of a task held here, as far as known.
    pub(super) fn state_version(&self, task: &Task) -> Option<u32> {
        let newest = || self.held.get(&task.claim.name)?.get(&task.claim.run)?.best();
        Some(task.latest.as_ref().or_else(newest)?.state_version)
    }
}
