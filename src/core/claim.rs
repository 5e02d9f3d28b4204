//! A claim: one session's published statement "I hold NAME under this lease", and the order of claims.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::branch::Ancestor;
use super::ids::{Kind, Name, NodeId, RunId, SessionId};
use super::lease::{Epoch, Lease};
use super::limits;

/// What a claimant is doing about the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Phase {
    /// Asking every live peer before it starts (Rule 13).
    Claimed,
    /// Accepted a transfer; the source still runs, or its state is on the way (Rule 18).
    Incoming {
        /// Who hands over.
        from: SessionId,
    },
    /// Owns the name and looks for its state (Rule 20).
    Recovering,
    /// Runs it.
    Running,
    /// Owns it and does not run it, as desired (Rule 23).
    Paused,
    /// Keeps it for a node that can run it (Rule 24).
    Parked {
        /// No node runs it before somebody says `resume`: its state is lost or not readable.
        until_resumed: bool,
    },
    /// Parked because three takeovers brought no progress; waits for `resume`.
    Quarantined,
    /// Stopped for good under this epoch; a higher one is the target's (Rule 18).
    Transferred {
        /// Who has it.
        to: SessionId,
        /// Which: others claim above it, whether or not they have heard of the target's claim.
        #[serde(default)]
        epoch: Epoch,
    },
    /// Stopped; anybody may take it at once.
    Released,
    /// Another run of the name has won; this one has ended (Rule 8).
    Superseded,
    /// Ended with an output.
    Finished,
    /// Ended with an error.
    Failed,
    /// Ended by request.
    Cancelled,
}

impl Phase {
    /// Ended: the name is not to be run again under this run.
    pub const fn is_terminal(&self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Cancelled)
    }

    /// Nobody holds the name by virtue of this claim.
    pub const fn is_free(&self) -> bool {
        matches!(self, Self::Released | Self::Superseded)
    }

    /// The claimant holds the name: it runs it, is about to, or keeps it.
    pub const fn is_held(&self) -> bool {
        !self.is_terminal() && !self.is_free() && !matches!(self, Self::Transferred { .. })
    }

    /// The claimant has the name, and is not only about to.
    pub const fn has_begun(&self) -> bool {
        self.is_held() && !matches!(self, Self::Claimed | Self::Incoming { .. })
    }

    /// The claimant has the name, and does not run it.
    pub const fn is_kept(&self) -> bool {
        matches!(self, Self::Paused | Self::Parked { .. } | Self::Quarantined)
    }

    /// Only an order of the user ends it, whoever holds the name (Rules 20 and 26).
    pub const fn waits_for_resume(&self) -> bool {
        matches!(self, Self::Quarantined | Self::Parked { until_resumed: true })
    }

    /// Rule 9: cancelled, then finished, then everything else. A failure is compared like a live
    /// claim: a minority whose database is away must not fail what the majority nearly finished.
    const fn class(&self) -> u8 {
        match self {
            Self::Cancelled => 2,
            Self::Finished => 1,
            _ => 0,
        }
    }
}

/// The owner's promises about time, which a taker obeys (Rule 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The owner's mode.
    #[serde(rename = "m")]
    pub mode: Mode,
    /// T, the silence floor.
    #[serde(rename = "t")]
    pub silence_floor: Duration,
}

/// What a node does when it cannot tell a dead peer from a cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Takes over after the silence floor; under a partition a task can run on both sides.
    #[default]
    Available,
    /// One that this build does not know: what is held in it is seen, and not taken over (Rule 11).
    Unknown,
}

impl Mode {
    const AVAILABLE: &str = "a";
}

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Available => Self::AVAILABLE,
            Self::Unknown => "?",
        })
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Mode;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a mode")
            }

            fn visit_str<E>(self, text: &str) -> Result<Mode, E> {
                Ok(if text == Mode::AVAILABLE { Mode::Available } else { Mode::Unknown })
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// One session's record of one name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// The name.
    #[serde(rename = "n")]
    pub name: Name,
    /// The claimant.
    #[serde(rename = "s")]
    pub session: SessionId,
    /// Ascending per session: what a release watermark speaks of (Rule 2).
    #[serde(rename = "c")]
    pub number: u64,
    /// Counts the changes of this claim under its number: the later one stands.
    #[serde(rename = "v", default)]
    pub version: u32,
    /// Which run.
    #[serde(rename = "r")]
    pub run: RunId,
    /// Under which epoch.
    #[serde(rename = "e")]
    pub epoch: Epoch,
    /// Doing what.
    #[serde(rename = "p")]
    pub phase: Phase,
    /// Obeyed by whoever takes over.
    #[serde(rename = "t")]
    pub terms: Terms,
    /// The nodes that acknowledged the newest checkpoint.
    #[serde(
        rename = "k",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "limits::list::<_, _, { limits::OF_ONE }>"
    )]
    pub replicas: Vec<NodeId>,
    /// The last forced checkpoint: nothing below it may be continued from (Rule 20).
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Ancestor>,
    /// Whether any checkpoint was ever acknowledged: if so the initial state is no state to start from.
    #[serde(rename = "a", default)]
    pub checkpointed: bool,
    /// Takeovers in a row that brought no progress.
    #[serde(rename = "x", default)]
    pub strikes: u8,
    /// Why it is parked, failed or quarantined, for people; at most [`Claim::MAX_NOTE`] bytes.
    #[serde(
        rename = "o",
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "limits::text::<_, { Claim::MAX_NOTE }>"
    )]
    pub note: String,
    /// The version of the desired state that was known when it was parked until somebody resumes it:
    /// only a later order does, whoever keeps it by then.
    #[serde(rename = "h", default, skip_serializing_if = "is_default")]
    pub heeded: u64,
    /// It has ended, and its output is kept no longer.
    #[serde(rename = "g", default, skip_serializing_if = "is_default")]
    pub expired: bool,
    /// It waits, outside of any step, until it is tried again.
    #[serde(rename = "w", default, skip_serializing_if = "is_default")]
    pub resting: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Claim {
    /// Bound on [`Claim::note`] in bytes.
    pub const MAX_NOTE: usize = 512;

    /// The lease claimed.
    pub fn lease(&self) -> Lease {
        Lease { epoch: self.epoch, session: self.session.clone() }
    }

    /// The order of claims of one name (Rule 9). The highest owns it, on every node alike.
    pub fn order(&self, other: &Self) -> Ordering {
        self.run
            .cmp(&other.run)
            .then_with(|| self.phase.class().cmp(&other.phase.class()))
            .then_with(|| self.epoch.cmp(&other.epoch))
            .then_with(|| self.session.cmp(&other.session))
    }

    /// Whether this record ends the run that `other` claims, or one above it, or `other` only asks
    /// for the same job once more. A failure ends only its own claim and what it beats: it is
    /// compared like a live claim.
    pub fn ends(&self, other: &Self) -> bool {
        match self.phase {
            Phase::Finished | Phase::Cancelled => {
                self.run >= other.run || other.never_began(self.run)
            }
            Phase::Failed => self.order(other).is_ge(),
            _ => false,
        }
    }

    /// Whether this merely asks for the job that `run` does too, started on nodes that did not hear of
    /// each other: as far as is known, nobody has run anything under it (Rule 8).
    const fn never_began(&self, run: RunId) -> bool {
        let asked = matches!(self.phase, Phase::Claimed | Phase::Released);
        asked && !self.checkpointed && self.run.number == run.number
    }

    /// Whether a run that this claim is of replaces a lower one: it holds the name or has ended,
    /// and does not merely ask.
    pub const fn has_won(&self) -> bool {
        !matches!(self.phase, Phase::Claimed) && !self.phase.is_free()
    }

    /// Whether `other` is of no use any more beside this one: it is lower, and this one does not merely ask or
    /// step back where `other` is of another run, which goes on or has ended without it (Rule 8).
    pub fn replaces(&self, other: &Self) -> bool {
        let stands = if self.run == other.run {
            self.phase != Phase::Superseded || other.phase == Phase::Superseded
        } else {
            self.has_won()
        };
        stands && self.beats(other)
    }

    /// Whether this one is above `other` in the order of claims.
    pub fn beats(&self, other: &Self) -> bool {
        self.order(other) == Ordering::Greater
    }
}

/// What to run: published beside the claims, and kept by every peer that was asked about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The name.
    #[serde(rename = "n")]
    pub name: Name,
    /// Which run of it.
    #[serde(rename = "r")]
    pub run: RunId,
    /// Which code.
    #[serde(rename = "k")]
    pub kind: Kind,
    /// MessagePack with field names.
    #[serde(rename = "a", deserialize_with = "limits::bytes::<_, { limits::ARGS }>")]
    pub args: Bytes,
}

/// What the user wants of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Want {
    /// Run it.
    #[default]
    #[serde(rename = "r")]
    Run,
    /// Keep it, do not run it.
    #[serde(rename = "p")]
    Pause,
    /// End it; absorbs everything else.
    #[serde(rename = "c")]
    Cancel,
}

/// The desired state of a run: a last-writer-wins register whose join lets `Cancel` absorb (Rule 23).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// The name.
    #[serde(rename = "n")]
    pub name: Name,
    /// Which run of it.
    #[serde(rename = "r")]
    pub run: RunId,
    /// One above the highest the writer had seen.
    #[serde(rename = "v")]
    pub version: u64,
    /// Breaks ties.
    #[serde(rename = "w")]
    pub writer: SessionId,
    /// The value.
    #[serde(rename = "d")]
    pub want: Want,
}

impl Desired {
    /// Whether this register value replaces `other`: a newer run's does, then `Cancel`, then the
    /// higher version, then the writer.
    pub fn replaces(&self, other: &Self) -> bool {
        let key = |desired: &Self| (desired.run, desired.want == Want::Cancel, desired.version);
        key(self)
            .cmp(&key(other))
            .then_with(|| self.writer.cmp(&other.writer))
            .then_with(|| self.want.cmp(&other.want))
            == Ordering::Greater
    }
}
