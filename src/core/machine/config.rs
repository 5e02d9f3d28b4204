//! How a machine is made: who it is, what its disk holds, what it may take.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::claim::Mode;
use crate::core::ids::{Kind, SessionId};
use crate::core::record::NodeRecord;
use crate::core::stored::StoredRun;
use crate::core::timing::Timing;

/// What a taker does when no state at or above the floor can be found (Rule 20).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnLostState {
    /// Keep the name until somebody says `resume`.
    #[default]
    Park,
    /// Begin at the initial state.
    Restart,
    /// Begin at the best state there is.
    UseOlder,
}

/// What the machine must know before it starts.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// My session.
    pub me: SessionId,
    /// My static record.
    pub record: NodeRecord,
    /// All durations; already checked.
    pub timing: Timing,
    /// My mode.
    pub mode: Mode,
    /// How many other nodes get each checkpoint.
    pub replicas: usize,
    /// Whether any seed is configured.
    pub seeds: bool,
    /// The sessions the data directory remembers.
    pub members: Vec<SessionId>,
    /// What the data directory holds.
    pub boot: Vec<StoredRun>,
    /// Whether checkpoints survive this process.
    pub durable: bool,
    /// Whether a refused reconnect proves death (Rule 5).
    pub known_dead: bool,
    /// How many tasks of a kind this node takes at most; none where there is no limit.
    pub kind_limits: BTreeMap<Kind, usize>,
    /// Kinds whose tasks a draining node finishes itself if it can.
    pub finish_here: BTreeSet<Kind>,
    /// Bound on names known.
    pub max_names: usize,
    /// See there.
    pub on_lost_state: OnLostState,
}
