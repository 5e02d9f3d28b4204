//! What nodes say to each other over links.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::branch::{Header, Position};
use super::claim::{Claim, Desired, Spec};
use super::ids::{Kind, Name, RunId, SessionId};
use super::io::{Cause, Gone};
use super::lease::Epoch;
use super::limits;
use super::record::NodeState;

/// A message from session to session. Lost with the link; every exchange is repeated or times out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Message {
    /// To a third node whose direct link is cut; one hop only.
    Relay {
        /// The writer.
        from: SessionId,
        /// The reader.
        to: SessionId,
        /// What it says.
        message: Box<Message>,
    },
    /// "I am now …", at once rather than with the next round of gossip.
    State {
        /// The sender's state.
        state: NodeState,
        /// That of the header which says so: an earlier datagram may still be under way. 0 from
        /// builds that do not number their headers.
        #[serde(default)]
        version: u64,
    },
    /// "I do not hear these: what do they say?" (Rule 2)
    Unheard {
        /// Whom.
        #[serde(deserialize_with = "limits::list::<_, _, { limits::LISTED }>")]
        sessions: Vec<SessionId>,
    },
    /// To a [`Message::Unheard`].
    Hearsay {
        /// What those say that the sender has heard lately, itself or by others.
        #[serde(deserialize_with = "limits::list::<_, _, { limits::LISTED }>")]
        said: Vec<Said>,
    },
    /// Goodbye: everything here has stopped.
    Leave,
    /// The goodbye was heard.
    LeaveHeard,
    /// "I saw its link break and its address refuse" (Rule 5).
    Dead {
        /// The suspect.
        session: SessionId,
    },
    /// "These have said goodbye, or were superseded", to a node that may not have heard it.
    Gone {
        /// Who, and why.
        #[serde(deserialize_with = "limits::list::<_, _, { limits::LISTED }>")]
        sessions: Vec<(SessionId, Gone)>,
    },
    /// "These sessions are dead and buried here" (Rule 24), to a node that joins.
    Buried {
        /// Whose claims are void.
        #[serde(deserialize_with = "limits::list::<_, _, { limits::LISTED }>")]
        sessions: Vec<SessionId>,
    },
    /// "My checkpoint contains what you keep for me, and others keep it": drop it.
    Obsolete {
        /// The newest checkpoint of the line.
        header: Header,
    },
    /// "Start this there", from the node where `run` was called.
    Start {
        /// Matches the reply.
        call: u64,
        /// What to start.
        spec: Spec,
    },
    /// How a [`Message::Start`] went.
    StartReply {
        /// Of the request.
        call: u64,
        /// The run that now holds the name, or why there is none.
        result: Result<RunId, Refusal>,
    },
    /// "May I start these?" (Rule 13)
    Ask {
        /// One for each name.
        #[serde(deserialize_with = "limits::list::<_, _, { limits::LISTED }>")]
        asks: Vec<Question>,
    },
    /// To an [`Message::Ask`], for each name.
    Answers {
        /// One for each claim asked about.
        #[serde(deserialize_with = "limits::list::<_, _, { limits::LISTED }>")]
        answers: Vec<Answer>,
    },
    /// "Take these over from me" (Rule 18).
    Offer {
        /// The source's claim; the offered epoch is the next one unless stated.
        claim: Claim,
        /// The epoch the target would have.
        epoch: Epoch,
        /// What to run.
        spec: Spec,
        /// What the user wants of it.
        desired: Option<Desired>,
        /// The source never started under `claim`, or has stopped: nothing runs there.
        idle: bool,
        /// The version of its newest state, if it has one.
        #[serde(default)]
        version: Option<u32>,
        /// Why it is offered.
        #[serde(default)]
        cause: Cause,
    },
    /// To an [`Message::Offer`].
    OfferReply {
        /// The task.
        name: Name,
        /// The offered epoch.
        epoch: Epoch,
        /// Accepted (and published as incoming), or why not.
        result: Result<(), Refusal>,
    },
    /// "I no longer offer this."
    Withdraw {
        /// The task.
        name: Name,
        /// The offered epoch.
        epoch: Epoch,
    },
    /// "Keep this" (a replica of a checkpoint).
    Checkpoint {
        /// The claim under which it was written.
        claim: Claim,
        /// What to run, so that the replica can be resumed alone.
        spec: Spec,
        /// Its header.
        header: Header,
        /// The state.
        #[serde(deserialize_with = "limits::bytes::<_, { limits::STATE }>")]
        state: Bytes,
    },
    /// To a [`Message::Checkpoint`].
    CheckpointReply {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
        /// Which checkpoint.
        position: Position,
        /// Kept, or why not.
        result: Result<(), Rejection>,
    },
    /// "It is yours": the source has stopped for good (Rule 18).
    Transferred {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
        /// The target's epoch.
        epoch: Epoch,
        /// The sealed checkpoint, none if the task never committed.
        sealed: Option<Header>,
    },
    /// "It runs here now": the source may forget it.
    Taken {
        /// The task.
        name: Name,
        /// The epoch it runs under.
        epoch: Epoch,
    },
    /// "Which checkpoints of this do you hold?"
    FindState {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
    },
    /// To a [`Message::FindState`].
    States {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
        /// The newest of each branch held.
        #[serde(deserialize_with = "limits::list::<_, _, { limits::OF_ONE }>")]
        headers: Vec<Header>,
    },
    /// "Send me that one."
    GetState {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
        /// Which checkpoint.
        position: Position,
        /// Its writer.
        writer: SessionId,
    },
    /// To a [`Message::GetState`]; no state if it is gone or unreadable.
    StateData {
        /// Its header.
        header: Header,
        /// The state.
        #[serde(deserialize_with = "limits::optional_bytes::<_, { limits::STATE }>")]
        state: Option<Bytes>,
    },
    /// "It has ended; keep this instead of the checkpoints" (Rule 12).
    Ended {
        /// The terminal claim.
        claim: Claim,
        /// Its spec.
        spec: Spec,
        /// The output, if it finished.
        #[serde(deserialize_with = "limits::optional_bytes::<_, { limits::OUTPUT }>")]
        output: Option<Bytes>,
        /// How long ago it ended, as far as the sender knows: a copy is no younger.
        #[serde(default)]
        age: Duration,
    },
    /// To a [`Message::Ended`].
    EndedReply {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
    },
    /// Pause, resume, cancel (Rule 23).
    Desire {
        /// The register's new value.
        desired: Desired,
    },
    /// Files a booting node has found (Rule 14).
    Found {
        /// Name, run, the best branch's position and number of commits.
        #[serde(deserialize_with = "limits::list::<_, _, { limits::FOUND }>")]
        offers: Vec<(Name, RunId, Option<Position>)>,
    },
}

/// Why a message makes no sense, whoever sends it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// What it says is for its writer alone to say, over a link of its own.
    #[error("a message of this kind is never relayed")]
    Relayed,
    /// The state is not the one that its header speaks of.
    #[error("its state has {found} bytes, and {declared} by its header")]
    OtherState {
        /// By the header.
        declared: u64,
        /// What came.
        found: usize,
    },
}

impl Message {
    /// Checks what decoding alone does not.
    ///
    /// # Errors
    /// See [`Unfit`].
    pub fn check(&self) -> Result<(), Unfit> {
        let (header, state) = match self {
            Self::Relay { message, .. } if message.may_be_relayed() => return message.check(),
            Self::Relay { .. } => return Err(Unfit::Relayed),
            Self::Checkpoint { header, state, .. }
            | Self::StateData { header, state: Some(state) } => (header, state),
            _ => return Ok(()),
        };
        if header.len == state.len() as u64 {
            return Ok(());
        }
        Err(Unfit::OtherState { declared: header.len, found: state.len() })
    }

    /// Whether a third node may pass it on. Nothing binds what is relayed to its writer but the word of
    /// who relays it. So what is evidence of who lives is not: two observers of a death would be one.
    pub const fn may_be_relayed(&self) -> bool {
        !matches!(
            self,
            Self::Relay { .. }
                | Self::State { .. }
                | Self::Unheard { .. }
                | Self::Hearsay { .. }
                | Self::Dead { .. }
                | Self::Gone { .. }
                | Self::Buried { .. }
        )
    }
}

/// What a session's header says, passed on by another (Rule 2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// Whose.
    pub session: SessionId,
    /// Of two, the higher is the later one.
    pub version: u64,
    /// Its state.
    pub state: NodeState,
    /// Claims numbered at most this have stopped.
    pub watermark: u64,
    /// Later ones that have stopped too.
    #[serde(deserialize_with = "limits::list::<_, _, { limits::OF_ONE }>")]
    pub released: Vec<u64>,
    /// Who passes it on has a link to the session, and can relay.
    pub linked: bool,
}

/// "May I start this?" (Rule 13)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// The claim under which it would start.
    pub claim: Claim,
    /// What, for the asked to keep.
    pub spec: Spec,
    /// The session that it would be taken over from, which is gone as far as the claimant knows.
    #[serde(default)]
    pub from: Option<SessionId>,
}

/// What a peer says of a claim it was asked about (Rule 13).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The task.
    pub name: Name,
    /// The epoch asked about.
    pub epoch: Epoch,
    /// The answer proper.
    pub verdict: Verdict,
    /// Other sessions that asked the same peer: the claimant asks them too.
    #[serde(deserialize_with = "limits::list::<_, _, { limits::OF_ONE }>")]
    pub askers: Vec<SessionId>,
    /// Claims the asked knows that are no reason to hold but must be stepped over.
    #[serde(deserialize_with = "limits::list::<_, _, { limits::OF_ONE }>")]
    pub known: Vec<Claim>,
    /// Where the newest checkpoint of the run stands that the asked holds: its owner may have died before
    /// its claim said so.
    #[serde(default)]
    pub held: Option<Position>,
}

/// The answer proper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Verdict {
    /// Go ahead, for all I know.
    Ok,
    /// My own claim is lower and not settled: I step back.
    Yields,
    /// I run it, or my own claim is higher. Carries that claim.
    Held(Box<Claim>),
    /// The session it would be taken over from is dead and buried here (Rule 24).
    Buried,
}

/// Why a node does not take a task. Gossiped capability is never trusted alone: the receiver checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It does not register the kind, or cannot read the state's version.
    #[error("the node cannot run this kind of task, or cannot read its state's version")]
    Incompatible,
    /// It runs as many as it may.
    #[error("the node runs as many tasks as it may")]
    Full,
    /// It is joining, cordoned, draining or leaving.
    #[error("the node takes no new tasks now")]
    NotUp,
    /// The name is held under a claim that is not below the offer.
    #[error("the name is already held under epoch {0}")]
    Held(Epoch),
    /// It did not answer in time.
    #[error("the node did not answer in time")]
    NoAnswer,
    /// It knows as many names as it may.
    #[error("the node knows as many names as it may (`max_names`)")]
    TooManyNames,
    /// The name has a run of a task of this other kind.
    #[error("the name has a run of a task of kind {0}")]
    OtherKind(Kind),
}

/// Why a replica did not keep a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Rejection {
    /// The name has gone to a higher epoch: also tells a zombie owner (Rule 20).
    Superseded(Box<Claim>),
    /// The store failed or is full.
    Unavailable(#[serde(deserialize_with = "limits::text::<_, { limits::TEXT }>")] String),
}
