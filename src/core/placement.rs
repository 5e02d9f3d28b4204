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

    /// Load in parts per 1,024 of what it takes; of those that are alike in that, as all are that have
    /// little to do, how often it has doubled. No finer: loads are known late, and whoever is the least
    /// loaded by one would be given everything that starts until that is known.
    fn fill(&self) -> (u64, u32) {
        let running = u64::from(self.load.running);
        let of =
            |parts: u64| running.saturating_mul(parts) / u64::from(self.record.max_running.max(1));
        (of(1 << 10), u64::BITS - of(1 << 32).leading_zeros())
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::*;

    fn name(i: usize) -> Name {
        Name::new(format!("job/{i}")).unwrap()
    }

    fn session(node: usize) -> SessionId {
        SessionId::new(NodeId::new(format!("n{node}")).unwrap(), Uuid::from_u128(1))
    }

    fn record(revision: &str, since_ms: u64, rollout: Option<u64>) -> NodeRecord {
        NodeRecord {
            address: ([127, 0, 0, 1], 1).into(),
            revision: revision.into(),
            since_ms,
            rollout,
            kinds: BTreeMap::new(),
            max_running: 10_000,
            succeeds: None,
        }
    }

    /// Which of nodes with these numbers of tasks would have a name.
    fn chosen(name: &Name, running: &[u32]) -> usize {
        let (record, nodes) = (record("r1", 1, None), (0..running.len()).map(session));
        let nodes: Vec<SessionId> = nodes.collect();
        let loads = running.iter().map(|running| Load { running: *running, full: false });
        let candidates: Vec<Candidate<'_>> = nodes
            .iter()
            .zip(loads)
            .map(|(session, load)| Candidate { session, record: &record, load })
            .collect();
        let chosen = choose(name, &candidates).unwrap();
        nodes.iter().position(|session| session == chosen).unwrap()
    }

    #[test]
    fn the_first_tasks_of_idle_nodes_are_spread() {
        let mut running = [0; 3];
        for i in 0..12 {
            running[chosen(&name(i), &running)] += 1;
        }
        assert!(running.iter().all(|n| (2..=6).contains(n)), "{running:?}");
    }

    #[test]
    fn the_least_loaded_has_it_and_among_those_alike_the_rendezvous_order_decides() {
        for i in 0..50 {
            assert_eq!(chosen(&name(i), &[40, 9, 30]), 1);
            assert_eq!(chosen(&name(i), &[9_000, 8_000, 5_000]), 2);
            let nodes: Vec<SessionId> = (0..3).map(session).collect();
            let home = rendezvous(&name(i), &nodes)[0].clone();
            assert_eq!(nodes[chosen(&name(i), &[5, 8, 7])], home);
        }
    }

    /// Only what was on a node that is gone has another home now (Thaler and Ravishankar, 1996).
    #[test]
    fn who_goes_moves_only_its_own_names_and_all_have_about_as_many() {
        let nodes: Vec<SessionId> = (0..5).map(session).collect();
        let mut homes = BTreeMap::new();
        for i in 0..2_000 {
            let before = rendezvous(&name(i), &nodes);
            let after = rendezvous(&name(i), &nodes[1..]);
            assert_eq!(
                before.iter().filter(|s| **s != &nodes[0]).collect::<Vec<_>>(),
                after.iter().collect::<Vec<_>>()
            );
            *homes.entry(before[0]).or_insert(0) += 1;
        }
        assert!(homes.values().all(|n| (300..500).contains(n)), "{homes:?}");
    }

    #[test]
    fn the_newest_revision_goes_before_the_least_load_and_a_rollout_number_before_both() {
        let nodes: Vec<SessionId> = (0..2).map(session).collect();
        let pick = |old: NodeRecord, new: NodeRecord| {
            let load = |running| Load { running, full: false };
            let candidates = [
                Candidate { session: &nodes[0], record: &old, load: load(0) },
                Candidate { session: &nodes[1], record: &new, load: load(5_000) },
            ];
            choose(&name(1), &candidates) == Some(&nodes[1])
        };
        assert!(pick(record("r1", 1, None), record("r2", 2, None)));
        assert!(!pick(record("r1", 2, None), record("r2", 1, None)));
        assert!(pick(record("r1", 2, Some(1)), record("r2", 1, Some(2))));
    }
}
