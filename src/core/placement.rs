//! Who should have a name: rendezvous hashing, the newest revision, the least loaded (DEPLOYS 3.5).

use std::cmp::Reverse;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::ids::{Kind, Name, NodeId, SessionId};
use super::record::{Load, NodeRecord};

/// A node that may be given something.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its session.
    pub session: &'a SessionId,
    /// Its static record.
    pub record: &'a NodeRecord,
    /// Its load.
    pub load: Load,
}

impl Candidate<'_> {
    /// Whether it runs the kind and reads the state's version, if there is a state yet.
    pub fn can_run(&self, kind: &Kind, state_version: Option<u32>) -> bool {
        self.record
            .kinds
            .get(kind)
            .is_some_and(|versions| state_version.is_none_or(|version| versions.reads(version)))
    }

    /// Load in parts per 1,024 of what it takes.
    fn fill(&self) -> u64 {
        u64::from(self.load.running) * 1024 / u64::from(self.record.max_running.max(1))
    }
}

/// A node's weight for a name (highest random weight; Thaler and Ravishankar, 1996). Stable across
/// builds and machines: nodes of different revisions must agree.
fn weight(name: &Name, node: &NodeId) -> u64 {
    let seed = xxh3_64_with_seed(node.as_str().as_bytes(), 0x68_61_6e_64_6f_76_65_72);
    xxh3_64_with_seed(name.as_str().as_bytes(), seed)
}

/// Sorts sessions into the rendezvous order of a name, the home first.
pub fn rendezvous<'a>(
    name: &Name,
    sessions: impl IntoIterator<Item = &'a SessionId>,
) -> Vec<&'a SessionId> {
    let mut order: Vec<&SessionId> = sessions.into_iter().collect();
    order.sort_by_cached_key(|session| Reverse((weight(name, &session.node), (*session).clone())));
    order
}

/// The target of a start or a handover: newest revision, then least loaded, then the rendezvous
/// order, so that nodes that drain at once agree.
///
/// The newest revision is that of the node that has had its revision for the shortest time: it gets
/// a rollback right, whose label is older but whose nodes are the newest. Numbers of deploys, where
/// they are given, go before that.
pub fn choose<'a>(name: &Name, candidates: &[Candidate<'a>]) -> Option<&'a SessionId> {
    let newest = candidates
        .iter()
        .max_by_key(|candidate| {
            (candidate.record.rollout, candidate.record.since_ms, candidate.session)
        })
        .map(|candidate| &candidate.record.revision)?;
    candidates
        .iter()
        .filter(|candidate| candidate.record.revision == *newest)
        .min_by_key(|candidate| {
            (candidate.fill(), Reverse(weight(name, &candidate.session.node)), candidate.session)
        })
        .map(|candidate| candidate.session)
}
