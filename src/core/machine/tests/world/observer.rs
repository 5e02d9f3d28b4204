//! A neutral observer: what ran where, who owns what, and what must hold of every action.

use std::time::Duration;

use super::{World, name};
use crate::core::claim::{Claim, Phase};
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::io::Notice;
use crate::core::lease::Epoch;
use crate::core::time::Time;

/// One stretch of a task's code running somewhere, as a neutral observer sees it.
#[derive(Clone, Debug)]
pub(in super::super) struct Stretch {
    pub name: Name,
    pub run: RunId,
    pub epoch: Epoch,
    pub session: SessionId,
    pub from_seq: u64,
    pub start: Time,
    pub end: Option<Time>,
    /// The last commit, once it has ended.
    pub to_seq: u64,
}

impl World {
    /// Sessions that run a name now.
    pub(in super::super) fn running(&self, task: &str) -> Vec<SessionId> {
        let task = name(task);
        self.nodes
            .values()
            .filter(|node| node.alive && node.loops.contains_key(&task))
            .map(|node| node.session.clone())
            .collect()
    }

    /// Pairs of stretches of one name on two sessions that overlap, and by how much.
    pub(in super::super) fn overlaps(&self) -> Vec<(Stretch, Stretch, Duration)> {
        let mut overlaps = Vec::new();
        for (i, a) in self.stretches.iter().enumerate() {
            for b in &self.stretches[i + 1..] {
                if a.name != b.name || a.session == b.session {
                    continue;
                }
                let start = a.start.max(b.start);
                let end = a.end.unwrap_or(self.now).min(b.end.unwrap_or(self.now));
                if end > start {
                    overlaps.push((a.clone(), b.clone(), end.since(start)));
                }
            }
        }
        overlaps
    }

    pub(in super::super) fn assert_no_overlap(&self) {
        let overlaps = self.overlaps();
        assert!(overlaps.is_empty(), "ran twice: {:#?}", overlaps.first());
    }

    /// The claim that one session publishes of a name.
    pub(in super::super) fn claim_of(&self, session: &SessionId, task: &str) -> Option<&Claim> {
        self.nodes[session].gossip[session].claims.get(&name(task))
    }

    /// Who owns a name, as one node sees it.
    pub(in super::super) fn owner(&self, at: &SessionId, task: &str) -> Option<&Claim> {
        self.nodes[at].owners.get(&name(task))
    }

    /// Stretches of a name that began after a point in time.
    pub(in super::super) fn since(&self, task: &str, from: Time) -> Vec<&Stretch> {
        let task = name(task);
        self.stretches.iter().filter(|s| s.name == task && s.start > from).collect()
    }

    /// The one session that runs a name.
    pub(in super::super) fn runner(&self, task: &str) -> SessionId {
        let running = self.running(task);
        assert_eq!(running.len(), 1, "{task} runs on {running:?}");
        running[0].clone()
    }

    /// The one session that runs a name, the first that its claim names as a replica, and the first
    /// that is neither.
    pub(in super::super) fn roles(&self, task: &str) -> (SessionId, SessionId, SessionId) {
        let owner = self.runner(task);
        let replicas = &self.claim_of(&owner, task).unwrap().replicas;
        let (holders, rest): (Vec<SessionId>, Vec<SessionId>) = self
            .living()
            .into_iter()
            .filter(|node| *node != owner)
            .partition(|node| replicas.contains(&node.node));
        let (Some(replica), Some(third)) = (holders.first(), rest.first()) else {
            panic!("{owner} has {task}, {holders:?} hold it, {rest:?} do not");
        };
        (owner, replica.clone(), third.clone())
    }

    /// Sessions whose processes live.
    pub(in super::super) fn living(&self) -> Vec<SessionId> {
        let living = self.nodes.values().filter(|node| node.alive);
        living.map(|node| node.session.clone()).collect()
    }

    pub(in super::super) fn told(&self, at: &SessionId, test: impl Fn(&Notice) -> bool) -> usize {
        self.nodes[at].notices.iter().filter(|(_, notice)| test(notice)).count()
    }

    /// Time between the end of each stretch of a name and the start of the next.
    pub(in super::super) fn gaps(&self, task: &str) -> Vec<Duration> {
        let task = name(task);
        let mut of: Vec<&Stretch> = self.stretches.iter().filter(|s| s.name == task).collect();
        of.sort_by_key(|s| s.start);
        of.windows(2).filter_map(|w| Some(w[1].start.since(w[0].end?))).collect()
    }

    /// No node runs a task without its own published claim of that very run and epoch (L6).
    pub(super) fn check_own_claims(&mut self, session: &SessionId) {
        let Some(node) = self.nodes.get_mut(session) else { return };
        for name in std::mem::take(&mut node.changed) {
            let Some(task) = node.loops.get(&name) else { continue };
            let claim = node.gossip[session].claims.get(&name);
            assert!(
                claim.is_some_and(|claim| claim.phase == Phase::Running
                    && claim.run == task.spec.run
                    && claim.epoch == task.lease.epoch),
                "L6: {session} runs {name} under {:?} and publishes {claim:?}",
                task.lease
            );
        }
    }

    pub(super) fn changed(&mut self, session: &SessionId, name: &Name) {
        if let Some(node) = self.nodes.get_mut(session) {
            node.changed.insert(name.clone());
        }
    }

    /// A session never lowers the epoch it advertises (L2); the record of an end is a copy.
    pub(super) fn check_epoch(&mut self, session: &SessionId, claim: &Claim) {
        let Some(node) = self.nodes.get_mut(session) else { return };
        let highest = node.epochs.entry(claim.name.clone()).or_default();
        assert!(
            claim.epoch >= *highest || claim.phase.is_terminal(),
            "L2: {session} lowers {} from {highest} to {claim:?}",
            claim.name
        );
        *highest = (*highest).max(claim.epoch);
    }
}
