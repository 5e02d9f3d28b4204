//! What goes into the machine and what comes out: the whole interface between deciding and doing.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::branch::{Ancestor, Header, Position};
use super::claim::{Claim, Desired, Phase, Spec, Want};
use super::ids::{Kind, Name, RunId, SessionId};
use super::lease::{Epoch, Lease};
use super::message::{Message, Refusal};
use super::reconcile::Side;
use super::record::{Load, NodeRecord, NodeState};
use super::stored::StoredEnd;
use super::time::Time;

/// The two clocks, read once per event by whoever calls the machine.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Boot time; every deadline is in it.
    pub at: Time,
    /// Unix seconds: only the floor of a first epoch uses it (Rule 10).
    pub unix: u64,
}

/// Something that happened.
#[allow(
    clippy::large_enum_variant,
    reason = "an event lives for one step; a box for every message is dearer"
)]
#[derive(Clone, Debug)]
pub enum Event {
    /// A sealed datagram arrived (Rule 2).
    Heard {
        /// Its sender.
        from: SessionId,
        /// The state in its header.
        state: NodeState,
        /// Ascends with every change of what its header says.
        version: u64,
        /// Claims numbered at most this have stopped.
        watermark: u64,
        /// Later ones that have stopped too.
        released: Vec<u64>,
        /// When I sent the newest datagram it echoes.
        echoed: Option<Time>,
    },
    /// Gossip brought a newer heartbeat of a session, by whatever path.
    Heartbeat {
        /// Whose.
        of: SessionId,
    },
    /// The failure detector (phi) changed its mind. It can only delay a takeover.
    Suspicion {
        /// About whom.
        of: SessionId,
        /// Whether it holds the session for dead.
        suspected: bool,
    },
    /// A session's static record was read.
    Record {
        /// Whose.
        of: SessionId,
        /// The record.
        record: NodeRecord,
    },
    /// A session's load was read.
    Load {
        /// Whose.
        of: SessionId,
        /// The load.
        load: Load,
    },
    /// Records of a session changed: all its claims that are new, different or gone.
    Claims {
        /// Whose.
        of: SessionId,
        /// Name by name; none where the record is gone.
        changes: Vec<(Name, Option<Claim>)>,
    },
    /// Specs a session publishes.
    Specs {
        /// New or changed ones.
        specs: Vec<Spec>,
    },
    /// Desired states a session publishes.
    Desires {
        /// New or changed ones.
        desires: Vec<Desired>,
    },
    /// I hold the version of this session's records that its first reply showed (Rule 14).
    CaughtUp {
        /// Whose.
        of: SessionId,
    },
    /// A link's handshake completed.
    LinkUp {
        /// With whom.
        with: SessionId,
    },
    /// A link broke.
    LinkDown {
        /// With whom.
        with: SessionId,
        /// Connecting again was refused, and so was a datagram where the platform tells (Rule 5).
        refused: bool,
    },
    /// A message arrived over a link.
    Message {
        /// From whom: the link's authenticated session.
        from: SessionId,
        /// What it says.
        message: Message,
    },
    /// The user calls `run` or `rerun`.
    Run {
        /// Matches the reply.
        call: u64,
        /// What to start; its run is a proposal (number 0, a fresh uuid).
        spec: Spec,
        /// Start another run although the last has ended.
        again: bool,
    },
    /// The user pauses, resumes or cancels.
    Want {
        /// Matches the reply.
        call: u64,
        /// The task.
        name: Name,
        /// Of this run; none for whatever run the name has.
        run: Option<RunId>,
        /// What is wanted.
        want: Want,
    },
    /// The user stops taking new tasks, or takes them again.
    Cordon(bool),
    /// The user begins to drain.
    Drain {
        /// When the budget ends.
        deadline: Time,
    },
    /// Waiting for step boundaries is over (budget spent, or a second signal).
    DrainNow,
    /// Everything has stopped: say goodbye.
    Leave,
    /// A task's loop committed a state.
    Committed {
        /// Its header.
        header: Header,
        /// The state.
        state: Bytes,
        /// Whether somebody waits for it to be replicated (`checkpoint_now`).
        forced: bool,
    },
    /// A task's loop has ended because it was told to. Nothing of the task runs any more.
    Stopped {
        /// The task.
        name: Name,
        /// The epoch it ran under.
        epoch: Epoch,
        /// Its last commit, if it ever committed.
        sealed: Option<(Header, Bytes)>,
        /// Whether a step was cut short.
        dropped: bool,
    },
    /// A task did not stop in its grace: something of it still runs (Rule 15).
    Unstoppable {
        /// The task.
        name: Name,
        /// The epoch it runs under.
        epoch: Epoch,
    },
    /// A task has begun to wait for its next attempt, outside of any step, or has ceased to.
    Resting {
        /// The task.
        name: Name,
        /// The epoch it runs under.
        epoch: Epoch,
        /// Whether it waits.
        resting: bool,
    },
    /// A task's loop has ended by itself.
    Ended {
        /// The task.
        name: Name,
        /// The epoch it ran under.
        epoch: Epoch,
        /// How.
        outcome: Outcome,
    },
    /// A task's loop has ended because this build cannot go on with it. Nothing of the task runs any
    /// more.
    Stuck {
        /// The task.
        name: Name,
        /// The epoch it ran, or would have run, under.
        epoch: Epoch,
        /// Its last kept state.
        sealed: Option<(Header, Bytes)>,
        /// Why.
        why: Stuck,
    },
    /// The store holds a checkpoint now, or failed to.
    Stored {
        /// Its header.
        header: Header,
        /// Who waits for the acknowledgement; none for one of our own.
        from: Option<SessionId>,
        /// Why it failed.
        error: Option<String>,
    },
    /// The store holds a terminal record now, or failed to.
    StoredEnd {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
        /// Who waits for the acknowledgement; none for one of our own.
        from: Option<SessionId>,
        /// Why it failed.
        error: Option<String>,
    },
    /// The answer to [`Action::Load`].
    Loaded {
        /// Its header.
        header: Header,
        /// The state; none if it is gone or unreadable.
        state: Option<Bytes>,
        /// It could not be read now, which says nothing of whether it is there.
        failed: bool,
    },
    /// The answer to [`Action::LoadEnd`].
    LoadedEnd {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
        /// The output; none if there is none or it is unreadable.
        output: Option<Bytes>,
    },
    /// The store found a checkpoint damaged; it holds this older one of the same branch (C2).
    FellBack {
        /// What is damaged.
        damaged: Header,
        /// What there is instead.
        to: Header,
    },
    /// The answer to [`Action::Reconcile`].
    Reconciled {
        /// The task.
        name: Name,
        /// The epoch it was asked under.
        epoch: Epoch,
        /// What was chosen; none if the code does not say.
        chosen: Option<Side>,
    },
    /// Time passed.
    Tick,
}

/// How a task ended by itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// With an output (MessagePack with field names).
    Done(Bytes),
    /// With an error, for people.
    Failed(String),
}

/// Why a task cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// This build does not read its state, for a reason meant for people.
    Unreadable(String),
    /// Its next state, or its output, cannot be kept: over a limit, or not to be encoded.
    Unkeepable(String),
}

/// Where a task begins.
// Lives in a queue for microseconds: a box would cost more than the bytes.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq)]
pub enum From {
    /// At the initial state.
    Initial,
    /// At a checkpoint.
    Checkpoint {
        /// Its header.
        header: Header,
        /// The state.
        state: Bytes,
    },
}

/// How a task is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At a step boundary at which a transfer slot is free; steps go on until then (Rule 18).
    WithSlot,
    /// At the next step boundary; the step is dropped after the grace.
    Boundary {
        /// How long the step may still take.
        grace: Duration,
    },
}

/// Something to do.
// Lives in a queue for microseconds: a box would cost more than the bytes.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum Action {
    /// Send a message over the link to a session, dialling if there is none.
    Send {
        /// To whom.
        to: SessionId,
        /// What.
        message: Message,
    },
    /// Send a session a datagram that it answers at once.
    Probe(SessionId),
    /// Publish a claim of mine.
    Publish(Claim),
    /// Publish no claim of mine of this name any more.
    Retract(Name),
    /// Publish a spec.
    PublishSpec(Spec),
    /// Publish this spec no more.
    RetractSpec(Name),
    /// Publish a desired state.
    PublishDesired(Desired),
    /// Publish this desired state no more.
    RetractDesired(Name),
    /// Put this into the header of every datagram (Rule 2).
    Header {
        /// My state.
        state: NodeState,
        /// Ascends with every change of the others.
        version: u64,
        /// All claims numbered at most this have stopped.
        watermark: u64,
        /// Later ones that have stopped too.
        released: Vec<u64>,
    },
    /// Publish my load.
    PublishLoad(Load),
    /// Run a task.
    Start {
        /// What.
        spec: Spec,
        /// Under which lease.
        lease: Lease,
        /// From where.
        from: From,
        /// The line of descent so far, for the headers it will write.
        lineage: Vec<Ancestor>,
        /// Sequence number of the last commit in the line.
        seq: u64,
    },
    /// Go on under a higher epoch, from the next step on; nothing stops (Rule 9).
    Reepoch {
        /// The task.
        name: Name,
        /// Under which lease.
        lease: Lease,
    },
    /// Stop a task; answered by `Stopped`, `Unstoppable`, `Stuck` or `Ended`.
    Stop {
        /// The task.
        name: Name,
        /// How.
        how: Stop,
    },
    /// Have a task's code choose what state goes on where its copies have met; answered by `Reconciled`.
    Reconcile {
        /// What it is.
        spec: Spec,
        /// To be repeated in the answer.
        epoch: Epoch,
        /// The winner's own first, if it has any.
        branches: Vec<(Header, Bytes)>,
    },
    /// Commit every task's state at its next boundary, whatever the throttle says.
    CommitAll,
    /// The transfer of this task is decided one way or the other: its slot is free.
    FreeSlot(Name),
    /// A commit of this task has reached this many replicas.
    Replicated {
        /// The task.
        name: Name,
        /// Which commit.
        position: Position,
        /// How many replicas hold it.
        replicas: usize,
        /// How many it could have; zero when there is no peer.
        wanted: usize,
    },
    /// From now on, write a kind's state in this version, if that is possible (DEPLOYS 3.3).
    WriteVersion {
        /// The kind, one that this node runs.
        kind: Kind,
        /// One that its code reads.
        version: u32,
    },
    /// Renew every task's permit (Rule 17), or end it.
    Permit {
        /// No step starts after this.
        until: Time,
    },
    /// Keep a checkpoint with its spec; answered by `Stored`.
    Store {
        /// What it is of.
        spec: Spec,
        /// Its header.
        header: Header,
        /// The state.
        state: Bytes,
        /// To be repeated in the answer.
        from: Option<SessionId>,
    },
    /// Keep what a run is and what is wanted of it, if no more is to be kept of it yet.
    StoreRun {
        /// What it is.
        spec: Spec,
        /// What is wanted of it, if anything is.
        desired: Option<Desired>,
    },
    /// Keep a terminal record instead of a run's checkpoints; answered by `StoredEnd`.
    StoreEnd {
        /// How it ended, and when.
        end: StoredEnd,
        /// Its spec.
        spec: Spec,
        /// The output.
        output: Option<Bytes>,
        /// To be repeated in the answer.
        from: Option<SessionId>,
    },
    /// Read a checkpoint; answered by `Loaded`.
    Load {
        /// Which.
        header: Header,
    },
    /// Read the output of an end; answered by `LoadedEnd`.
    LoadEnd {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
    },
    /// Delete checkpoints of a run.
    Discard {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
        /// Which; all of the run, its terminal record included, if empty.
        headers: Vec<Header>,
    },
    /// Delete the output of a terminal record, keep the tombstone.
    DropOutput {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
    },
    /// The claim that owns a name has changed: what lookups answer from.
    Owner {
        /// The name.
        name: Name,
        /// The highest claim that counts; none when the name is forgotten.
        claim: Option<Claim>,
    },
    /// A name was found on disk, and nothing else is known of it yet: until `Owner` says more, lookups
    /// answer with that (Rule 14).
    Found {
        /// The name.
        name: Name,
        /// Its newest run.
        run: RunId,
        /// The best checkpoint of it, if there is any.
        best: Option<Header>,
    },
    /// A call has its result; what lookups say of its name has been told before.
    Reply {
        /// Which call.
        call: u64,
        /// Its result.
        result: Result<RunId, CallError>,
    },
    /// The drain has come to its end: nothing is left to move.
    Drained,
    /// There is no goodbye: these tasks still run here. The node stays, so that nobody takes them.
    Stays {
        /// What runs.
        running: Vec<Name>,
    },
    /// The goodbye was heard by this many of so many peers.
    Left {
        /// Peers that acknowledged.
        heard: usize,
        /// Peers that were told.
        told: usize,
    },
    /// Tell the user, the metrics and the log.
    Tell(Notice),
}

/// Why `run`, `pause`, `resume` or `cancel` failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// No node that can run it took it. Nothing was started.
    #[error("no node took the task: {0}; start a node that registers its kind, or try again")]
    NoNode(Refusal),
    /// The name is unknown here.
    #[error("no task of this name is known here: check the name, or wait for gossip")]
    Unknown,
    /// It has ended already.
    #[error("the task has ended already")]
    Ended,
    /// It has been cancelled, and nothing takes that back (Rule 23).
    #[error("the task has been cancelled, which nothing takes back")]
    Cancelled,
    /// The name has a run of a task of this other kind. Nothing was started.
    #[error("the name has a run of a task of kind {0}: choose another name")]
    OtherKind(Kind),
    /// Another run of the name won (Rule 8).
    #[error("another run of this name exists")]
    Superseded,
    /// This node is joining or fenced and cannot answer for the cluster. Nothing was started.
    #[error("this node has not joined its cluster yet: wait until it is ready")]
    NotReady,
}

/// Why a name changed hands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// Started afresh.
    Start,
    /// Handed over by a node that drains.
    #[default]
    Drain,
    /// Handed over by a node that drains, to a revision that was there before its own.
    Rollback,
    /// Taken over from a dead or silent session.
    Crash,
    /// Taken after its owner released it.
    Released,
    /// Resumed from disk after a restart.
    Boot,
    /// Taken out of parking.
    Unparked,
}

/// Something a user wants to know.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// My own state changed.
    State(NodeState),
    /// A peer was seen for the first time.
    PeerUp(SessionId),
    /// A peer is gone, and why.
    PeerGone(SessionId, Gone),
    /// A task runs here now.
    Started {
        /// The task.
        name: Name,
        /// Under which epoch.
        epoch: Epoch,
        /// Why.
        cause: Cause,
        /// The session it came from, if any.
        from: Option<SessionId>,
        /// Since when it had been known to be free, if it was released.
        freed: Option<Time>,
    },
    /// A task of this node runs elsewhere now.
    Moved {
        /// The task.
        name: Name,
        /// Where.
        to: SessionId,
        /// Under which epoch.
        epoch: Epoch,
    },
    /// A task of this node was released, to be taken by anybody.
    Released {
        /// The task.
        name: Name,
        /// How many replicas hold its last commit.
        replicas: usize,
    },
    /// A task cannot run anywhere now.
    Parked {
        /// The task.
        name: Name,
        /// Why.
        why: String,
    },
    /// Three takeovers brought no progress.
    Quarantined {
        /// The task.
        name: Name,
    },
    /// A task cannot be stopped and is therefore not released.
    Unstoppable {
        /// The task.
        name: Name,
    },
    /// A task ended.
    Ended {
        /// The task.
        name: Name,
        /// How.
        phase: Phase,
    },
    /// Branches of a run have become one.
    Reconciled {
        /// The task.
        name: Name,
        /// How many there were.
        branches: usize,
        /// Where it goes on.
        seq: u64,
    },
    /// Two live claims met.
    Conflict {
        /// The task.
        name: Name,
        /// Who goes on.
        kept: SessionId,
        /// Who stops.
        stopped: SessionId,
    },
    /// The newest state could not be had; what was done instead.
    StateLost {
        /// The task.
        name: Name,
        /// What was done.
        what: String,
    },
    /// A finished run ended a copy of itself that was born again.
    Reborn {
        /// The task.
        name: Name,
    },
    /// Too many nodes fell silent at once: takeover pauses (the brake, Rule 7).
    Brake {
        /// Until when.
        until: Time,
    },
    /// Something could not be stored: on a full disk, each checkpoint of each task.
    Unstored {
        /// What, and why.
        text: String,
        /// It was a peer that could not.
        elsewhere: bool,
    },
    /// Something a person should look at.
    Warning(String),
}

/// Why a session is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Gone {
    /// It said goodbye.
    Left,
    /// A newer process of its node proved that it replaces it (Rule 6).
    Superseded,
    /// Its links broke and its address refuses (Rule 5).
    Dead,
    /// Silent for T.
    Silent,
}
