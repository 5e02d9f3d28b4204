//! One name on this node, from its first claim to its last record.

use std::collections::BTreeSet;

use bytes::Bytes;
use litemap::LiteMap;

use super::reconcile::Reconciling;
use crate::core::branch::{Ancestor, Branches, Header, Position};
use crate::core::claim::{Claim, Phase, Spec};
use crate::core::ids::{NodeId, SessionId};
use crate::core::io::Cause;
use crate::core::lease::Epoch;
use crate::core::message::Question;
use crate::core::time::Time;

/// My claim of a name, and what this node is doing about it.
#[derive(Clone, Debug)]
pub(super) struct Task {
    /// As last published.
    pub claim: Claim,
    pub spec: Spec,
    pub doing: Doing,
    /// The epoch that its loop began under; it may have been re-minted since.
    pub began: Epoch,
    /// Why it came here.
    pub cause: Cause,
    /// Since when it had been known to be free, if it was released.
    pub freed: Option<Time>,
    /// From whom it came.
    pub from: Option<SessionId>,
    /// Who waits for `run` to return.
    pub callers: Vec<Caller>,
    /// Where its state may be, by the claim it was taken from.
    pub prior: Prior,
    /// The newest commit of it under my lease, or the one it was started from.
    pub latest: Option<Header>,
    /// Its bytes, while they are on their way to a replica or a target.
    pub bytes: Option<Bytes>,
    /// When the newest commit went out.
    pub sent: Time,
    /// The newest commit each replica has acknowledged.
    pub acked: LiteMap<SessionId, Position>,
    /// Who gets its commits.
    pub replicas: Vec<SessionId>,
    /// A forced commit that waits for its acknowledgement.
    pub forced: Option<Position>,
    /// Replicas whose store has failed.
    pub refused: BTreeSet<SessionId>,
    /// It was parked until somebody resumes it, and whoever has it keeps it so.
    pub keep: Option<Phase>,
    /// Nobody reads its newest state: it may go on from one of an older version.
    pub older: bool,
    /// What is known of it while it cannot run here.
    pub parking: Option<Box<Parking>>,
    /// Live claims above mine, and when I first saw each (Rule 21).
    pub rivals: LiteMap<SessionId, Time>,
    /// The handover under way.
    pub hand: Option<Hand>,
    /// It did not stop in its grace (Rule 15).
    pub unstoppable: bool,
    /// It was offered by a session that was itself running it (Rule 13).
    pub first_offer: bool,
}

/// What happens to a name here.
#[derive(Clone, Debug)]
pub(super) enum Doing {
    /// Asking every live peer (Rule 13).
    Settling(Settling),
    /// Settled; looking for its state (Rule 20).
    Finding(Finding),
    /// Settled; the state is on its way from a peer or the store.
    Fetching {
        header: Header,
        from: Option<SessionId>,
        until: Time,
        /// Peers that did not deliver what they hold: others are asked first.
        failed: BTreeSet<SessionId>,
    },
    /// Its loop runs.
    Running,
    /// Its loop was told to stop.
    Stopping(Why),
    /// Accepted from a source that still has it (Rule 18).
    Incoming {
        transferred: Option<Option<Header>>,
        /// When the source was last told that it is accepted.
        said: Time,
    },
    /// It has stopped to take in what others have done of it (Rule 22).
    Reconciling(Reconciling),
    /// Held; nothing runs.
    Kept,
    /// Stopped for handing over: the target is getting the sealed state.
    Sealing { since: Time },
    /// Stopped for good: its last commit goes to a replica before it is released.
    Parting { until: Time },
    /// `Transferred` is written: this epoch never runs again.
    Moving { sent: Time },
    /// Ended; the record is being replicated before anybody is told (Rule 12).
    Ending {
        output: Option<Bytes>,
        stored: bool,
        waiting: BTreeSet<SessionId>,
        acked: BTreeSet<SessionId>,
        /// Others than the replicas have been asked to keep it.
        widened: bool,
        until: Time,
    },
    /// Only my record is left.
    Over { dominated: Option<Time> },
}

/// Why a loop was told to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// To hand it over.
    Transfer,
    /// To let anybody take it.
    Release,
    /// Another claim of the run won.
    Yield { to: SessionId },
    /// Another run won, or this run has ended elsewhere.
    Lost,
    /// To make one state of its branches.
    Reconcile,
    /// As desired.
    Pause,
    /// As desired.
    Cancel,
}

#[derive(Clone, Debug)]
pub(super) struct Settling {
    pub asked: BTreeSet<SessionId>,
    pub waiting: BTreeSet<SessionId>,
    pub answered: usize,
    pub until: Time,
    pub purpose: Purpose,
}

/// What a settled claim is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To run it.
    Run,
    /// To keep it for others (Rule 24).
    Custody,
    /// To run it, from a state of an older version if nobody reads the newest.
    Older,
}

#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub waiting: BTreeSet<SessionId>,
    pub found: Vec<(SessionId, Header)>,
    /// When to stop waiting for those that have not answered.
    pub until: Time,
    /// When to give up looking.
    pub give_up: Time,
    /// Every live peer has been asked, not only the replicas.
    pub everyone: bool,
    /// As in [`Doing::Fetching`].
    pub failed: BTreeSet<SessionId>,
}

/// What the claim before mine said of the state.
#[derive(Clone, Debug, Default)]
pub(super) struct Prior {
    pub replicas: Vec<NodeId>,
    /// Who has said to hold a checkpoint of it, and where that stands.
    pub holders: LiteMap<SessionId, Position>,
    pub floor: Option<Ancestor>,
    pub checkpointed: bool,
    pub session: Option<SessionId>,
    /// Under which epoch it ran last.
    pub epoch: Option<Epoch>,
}

/// A task that is kept, or is to be, since it cannot run here.
#[derive(Clone, Debug, Default)]
pub(super) struct Parking {
    /// Since when it is kept.
    pub since: Option<Time>,
    /// Checkpoints of it that this node and others were found to hold.
    pub found: Branches,
}

#[derive(Clone, Debug)]
pub(super) struct Hand {
    pub to: SessionId,
    pub epoch: Epoch,
    pub accepted: bool,
    pub since: Time,
    pub tried: BTreeSet<SessionId>,
}

/// Who waits for `run` to return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// A call on this node.
    Here(u64),
    /// A call on another node.
    There(SessionId, u64),
}

impl Task {
    /// A claim with nothing behind it yet.
    pub fn record(claim: Claim, spec: Spec, doing: Doing) -> Self {
        Self {
            claim,
            spec,
            doing,
            began: Epoch(0),
            cause: Cause::Start,
            freed: None,
            from: None,
            callers: Vec::new(),
            prior: Prior::default(),
            latest: None,
            bytes: None,
            sent: Time::ZERO,
            acked: LiteMap::new(),
            replicas: Vec::new(),
            forced: None,
            refused: BTreeSet::new(),
            keep: None,
            older: false,
            parking: None,
            rivals: LiteMap::new(),
            hand: None,
            unstoppable: false,
            first_offer: false,
        }
    }

    /// Whether it may be started, for those who are to be asked.
    pub fn question(&self) -> Question {
        let taken = self.cause == Cause::Crash;
        Question {
            claim: self.claim.clone(),
            spec: self.spec.clone(),
            from: self.prior.session.clone().filter(|_| taken),
        }
    }

    /// Whether code of the task may be running now.
    pub fn runs(&self) -> bool {
        matches!(self.doing, Doing::Running | Doing::Stopping(_))
    }

    /// Whether its epoch has ended here for good, in favour of a target.
    pub fn is_decided(&self) -> bool {
        matches!(self.claim.phase, Phase::Transferred { .. })
    }

    /// Whether an event under this epoch is of the loop that runs, or ran, it now: a re-mint can
    /// overtake it.
    pub fn is_of_loop(&self, epoch: Epoch) -> bool {
        self.runs() && (self.began..=self.claim.epoch).contains(&epoch)
    }

    /// On its way to running here.
    pub const fn is_starting(&self) -> bool {
        matches!(
            self.doing,
            Doing::Settling(_)
                | Doing::Finding(_)
                | Doing::Fetching { .. }
                | Doing::Incoming { .. }
        )
    }
}
