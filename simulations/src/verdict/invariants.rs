//! What must hold, by the identifiers of `docs/semantics.md`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::scenario::{Fault, FaultKind, Scenario};

/// An invariant that the observer can check. A scenario in which it can be broken exercises it, or
/// shows nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Invariant {
    /// At most one copy of a task runs where nothing is cut.
    L4,
    /// Who is heard is not missed.
    S3,
    /// Copies that a cut allowed run together for no longer than their bound, and end shortly after it.
    L7,
    /// No step is carried out without the one before it.
    H4Skips,
    /// A handover repeats no step.
    H4Repeats,
    /// A finished task is not born anew.
    R7,
    /// A task is taken on.
    V1Start,
    /// A task is carried out to its end.
    V1End,
    /// What it brought can be read, and is right.
    V1Output,
    /// All nodes agree that it has ended.
    V2,
    /// A process becomes a node.
    V5Start,
    /// A drain leaves nothing behind.
    V5Drain,
}

impl Invariant {
    pub(crate) const ALL: [Self; 12] = [
        Self::L4,
        Self::S3,
        Self::L7,
        Self::H4Skips,
        Self::H4Repeats,
        Self::R7,
        Self::V1Start,
        Self::V1End,
        Self::V1Output,
        Self::V2,
        Self::V5Start,
        Self::V5Drain,
    ];

    const fn text(self) -> &'static str {
        match self {
            Self::L4 => "L4 one copy at a time",
            Self::S3 => "S3 who is heard is not missed",
            Self::L7 => "L7 no overlap over its bound",
            Self::H4Skips => "H4 no step without the one before it",
            Self::H4Repeats => "H4 a handover repeats nothing",
            Self::R7 => "R7 a task ends once",
            Self::V1Start => "V1 a task is taken on",
            Self::V1End => "V1 a task finishes",
            Self::V1Output => "V1 a result is right",
            Self::V2 => "V2 all nodes know the end",
            Self::V5Start => "V5 a process becomes a node",
            Self::V5Drain => "V5 a drain leaves nothing behind",
        }
    }

    /// Whether it can be broken in a scenario: if so, its runs must exercise it.
    pub(crate) fn applies(self, scenario: &Scenario) -> bool {
        let has =
            |kinds: &[FaultKind]| scenario.faults.iter().any(|fault| kinds.contains(&fault.kind));
        let cuts = has(&[FaultKind::Cut, FaultKind::CutOneWay]);
        let timing = scenario.timing.timing();
        let foul = |fault: &Fault| !scenario.network.changed(&fault.network).is_fair(&timing);
        let cuts = cuts || scenario.faults.iter().any(foul);
        let losses = has(&[FaultKind::Crash, FaultKind::PowerOff]);
        let drains = has(&[FaultKind::Drain]);
        match self {
            Self::S3 => scenario.nobody_missed,
            Self::L7 => cuts && !scenario.nobody_missed,
            Self::H4Repeats => drains && !cuts && !losses,
            Self::R7 => !cuts && !losses,
            Self::V5Drain => drains,
            _ => true,
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text())
    }
}
