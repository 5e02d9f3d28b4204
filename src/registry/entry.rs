//! What is known of one name.

use std::fmt;

use serde::Serialize;

use crate::core::claim::{Claim, Phase};
use crate::core::ids::{Name, NodeId, RunId, SessionId};
use crate::core::lease::Epoch;

/// Who holds a name, as far as this node knows: at most a round of gossip old while the cluster is
/// connected.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// The name.
    pub name: Name,
    /// The node that holds it, or ended it.
    pub node: NodeId,
    /// That node's session.
    pub session: SessionId,
    /// The epoch it is held under.
    pub epoch: Epoch,
    /// Which run of the name.
    pub run: RunId,
    /// What the holder does with it.
    pub state: TaskState,
    /// The holder's revision; none while its record has not arrived.
    pub revision: Option<String>,
    /// Why it is parked or failed, for people; empty otherwise.
    pub note: String,
    /// The other nodes that hold its newest checkpoint, or its output, as its holder said last: empty at first
    /// after a move, until another node has acknowledged one.
    pub replicas: Vec<NodeId>,
    /// The run has ended and its retention is over: its output is kept no longer, and the next `run` of
    /// the name starts another.
    pub expired: bool,
    /// The last session that was seen to run it, since it last started.
    #[serde(skip)]
    pub(crate) ran_on: Option<SessionId>,
}

impl Entry {
    /// What is known of a name that was found on this node's disk, and of nothing else.
    pub(crate) fn found(
        me: &SessionId,
        revision: &str,
        name: Name,
        run: RunId,
        epoch: Option<Epoch>,
    ) -> Self {
        Self {
            name,
            node: me.node.clone(),
            session: me.clone(),
            epoch: epoch.unwrap_or_default(),
            run,
            state: TaskState::Stored,
            revision: Some(revision.to_owned()),
            note: String::new(),
            replicas: Vec::new(),
            expired: false,
            ran_on: None,
        }
    }

    pub(crate) fn of(claim: &Claim, revision: Option<String>, before: Option<&Self>) -> Self {
        let state = TaskState::of(&claim.phase);
        let holder = &claim.session.node;
        let ran_on = match state {
            TaskState::Running => Some(claim.session.clone()),
            // It starts afresh from here.
            TaskState::Paused | TaskState::Parked | TaskState::Quarantined => None,
            _ => before
                .filter(|before| before.run == claim.run)
                .and_then(|before| before.ran_on.clone()),
        };
        Self {
            name: claim.name.clone(),
            node: holder.clone(),
            session: claim.session.clone(),
            epoch: claim.epoch,
            run: claim.run,
            state,
            revision,
            note: claim.note.clone(),
            // What was taken over names its new holder, who kept it for the old one.
            replicas: claim.replicas.iter().filter(|node| *node != holder).cloned().collect(),
            expired: claim.expired,
            ran_on,
        }
    }
}

/// What is being done with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TaskState {
    /// Found on this node's disk when it started; whether somebody runs it is not known yet. The
    /// entry's node is this one, which has a checkpoint or at least the task's arguments; its epoch
    /// is the one that was written under.
    Stored,
    /// Claimed; starts when the other nodes have been asked.
    Starting,
    /// On its way from one node to another.
    Moving,
    /// Its new owner looks for its newest checkpoint.
    Recovering,
    /// Running.
    Running,
    /// Stopped on request, until it is resumed.
    Paused,
    /// No node can run it now; its state is kept.
    Parked,
    /// It crashed three owners in a row without progress; it waits for `resume`.
    Quarantined,
    /// Stopped by its owner and not yet taken by another.
    Released,
    /// Another run of the name has won.
    Superseded,
    /// Ended with an output.
    Finished,
    /// Ended with an error.
    Failed,
    /// Ended by request.
    Cancelled,
}

impl TaskState {
    pub(crate) const fn of(phase: &Phase) -> Self {
        match phase {
            Phase::Claimed => Self::Starting,
            Phase::Incoming { .. } | Phase::Transferred { .. } => Self::Moving,
            Phase::Recovering => Self::Recovering,
            Phase::Running => Self::Running,
            Phase::Paused => Self::Paused,
            Phase::Parked { .. } => Self::Parked,
            Phase::Quarantined => Self::Quarantined,
            Phase::Released => Self::Released,
            Phase::Superseded => Self::Superseded,
            Phase::Finished => Self::Finished,
            Phase::Failed => Self::Failed,
            Phase::Cancelled => Self::Cancelled,
        }
    }

    /// Whether the run has ended.
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Cancelled | Self::Superseded)
    }

    /// The state as one word, as in metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Starting => "starting",
            Self::Moving => "moving",
            Self::Recovering => "recovering",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Parked => "parked",
            Self::Quarantined => "quarantined",
            Self::Released => "released",
            Self::Superseded => "superseded",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
