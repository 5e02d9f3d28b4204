//! A node's account of itself, for `/status` pages and tools.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;

use crate::core::branch::Progress;
use crate::core::ids::{Kind, SessionId};
use crate::core::io::Gone;
use crate::core::record::NodeState;
use crate::registry::Entry;

/// How a node sees itself and its cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// The cluster.
    pub cluster: String,
    /// This node's session.
    pub session: SessionId,
    /// Where others reach it.
    pub address: SocketAddr,
    /// Its revision.
    pub revision: String,
    /// Its state.
    pub state: NodeState,
    /// Whether it is ready for traffic.
    pub ready: bool,
    /// The other nodes, in the order of their sessions.
    pub peers: Vec<PeerStatus>,
    /// What runs here, in the order of names.
    pub running: Vec<RunningTask>,
    /// How many names are known, by state.
    pub tasks: BTreeMap<&'static str, usize>,
    /// The kinds this node runs.
    pub kinds: BTreeMap<Kind, KindStatus>,
}

/// A kind of tasks that a node runs, and the versions of their state.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct KindStatus {
    /// The oldest version that this build reads.
    pub oldest: u32,
    /// The newest version that this build reads.
    pub newest: u32,
    /// The version it writes now, where the task can: the newest that all nodes read that are there,
    /// or were within the last [`Timing::finalize_after`](crate::Timing::finalize_after).
    pub writes: u32,
    /// Tasks held here whose newest state one of those nodes cannot read. A rollback to it would go
    /// back to their last checkpoint of an older version.
    pub one_way: usize,
}

/// A peer, as this node sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PeerStatus {
    /// Its session.
    pub session: SessionId,
    /// Where it is reached; none while unknown.
    pub address: Option<SocketAddr>,
    /// Its state, as last heard.
    pub state: NodeState,
    /// Why others may take over what it ran; none while it is there. One that left is listed no more;
    /// one that died or fell silent is until its node is back or it is forgotten.
    pub gone: Option<Gone>,
    /// Its revision; none while its record has not arrived.
    pub revision: Option<String>,
    /// How many tasks it runs.
    pub running: u32,
    /// Whether it takes no more.
    pub full: bool,
    /// Whether a link to it stands.
    pub linked: bool,
    /// The kinds it runs.
    pub kinds: Vec<Kind>,
}

/// A task that runs here.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RunningTask {
    /// What is known of it.
    #[serde(flatten)]
    pub entry: Entry,
    /// How far it is.
    pub progress: Option<Progress>,
}
