//! What a node says of itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ids::Kind;

/// Where a session stands in its life; carried by the header of every datagram (Rule 2).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NodeState {
    /// Learning what the others know; owns nothing (Rule 14).
    #[default]
    Joining,
    /// Takes part in everything.
    Up,
    /// Keeps what it runs, takes nothing new.
    Cordoned,
    /// Hands its tasks over.
    Draining,
    /// Has stopped everything and says goodbye.
    Leaving,
    /// Lost its right to run and is stopping.
    Fencing,
    /// Has stopped; its heartbeat is off.
    Fenced,
}

impl NodeState {
    /// The code in a datagram's header.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Joining => 0,
            Self::Up => 1,
            Self::Cordoned => 2,
            Self::Draining => 3,
            Self::Leaving => 4,
            Self::Fencing => 5,
            Self::Fenced => 6,
        }
    }

    /// The state of a code; none for one this build does not know.
    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Joining,
            1 => Self::Up,
            2 => Self::Cordoned,
            3 => Self::Draining,
            4 => Self::Leaving,
            5 => Self::Fencing,
            6 => Self::Fenced,
            _ => return None,
        })
    }

    /// A sealed datagram in this state is no news: the session's leases are running out (Rule 4).
    pub(crate) const fn is_fenced(self) -> bool {
        matches!(self, Self::Fencing | Self::Fenced)
    }
}

/// The state versions a kind's code reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest it reads.
    pub oldest: u32,
    /// The newest it reads, and writes where nobody needs an older one.
    pub newest: u32,
}

impl Versions {
    /// Whether a state of `version` can be resumed.
    pub const fn reads(&self, version: u32) -> bool {
        self.oldest <= version && version <= self.newest
    }
}

/// The static record of a session, published once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Where its links are accepted (TCP); datagrams use the same address (UDP).
    pub address: SocketAddr,
    /// An opaque label of the program's revision.
    pub revision: String,
    /// Since when this node has had this revision, Unix milliseconds (placement only).
    pub since_ms: u64,
    /// The number of the deploy, where one is given: it goes before `since_ms`.
    #[serde(default)]
    pub rollout: Option<u64>,
    /// The kinds it runs.
    pub kinds: BTreeMap<Kind, Versions>,
    /// How many tasks it runs at most.
    pub max_running: u32,
    /// The session of the same node id that this one replaces, with the data directory's lock as
    /// proof (Rule 6).
    pub succeeds: Option<Uuid>,
}

/// A session's changing load, for placement only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Tasks running or about to.
    pub running: u32,
    /// Takes nothing more: the only load that bears on takeover (Rule 13).
    pub full: bool,
}
