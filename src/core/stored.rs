//! What a store keeps of a run: what the machine finds there when it starts (Rule 14).

use serde::{Deserialize, Serialize};

use super::branch::Header;
use super::claim::{Claim, Desired, Spec};

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRun {
    /// What to run.
    pub spec: Spec,
    /// The newest valid checkpoint of each branch.
    pub checkpoints: Vec<Header>,
    /// There were others, which are damaged.
    pub damaged: bool,
    /// What was last wanted of it, if anything was.
    pub desired: Option<Desired>,
    /// How it ended, and whether its output is there.
    pub end: Option<(StoredEnd, bool)>,
}

/// How a run ended, and when: its record is kept for a time that goes on while no process has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredEnd {
    /// The terminal claim.
    pub claim: Claim,
    /// When, in unix seconds: boot time means nothing to the next process.
    pub at: u64,
}
