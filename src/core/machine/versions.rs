//! Which version of its state each kind writes, and what is kept for those who read older ones
//! (DEPLOYS 3.3).
//!
//! While nodes of an older build are there, or were lately, states are written as they read them.
//! Where that cannot be done the last checkpoint that they read stays pinned. Once none of them has
//! been seen for `finalize_after` the newest version is written, and nothing is pinned.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Machine;
use super::task::Doing;
use crate::core::branch::Header;
use crate::core::ids::{Kind, Name, RunId};
use crate::core::io::Action;
use crate::core::record::Versions;
use crate::core::time::Time;

/// Between two looks at who is there.
const LOOK: Duration = Duration::from_secs(1);
/// Bound on the kinds that others run and this node does not.
const MAX_KINDS: usize = 1_000;
/// Bound on the ranges of versions remembered of one kind.
const MAX_RANGES: usize = 32;

/// What other nodes read, and when it was last known that they are there.
#[derive(Clone, Debug, Default)]
pub(super) struct Readers {
    seen: BTreeMap<Kind, BTreeMap<(u32, u32), Time>>,
    /// What was last said of each kind.
    written: BTreeMap<Kind, u32>,
    /// Names with a pinned checkpoint here.
    pinned: BTreeSet<Name>,
    looked: Option<Time>,
}

impl Readers {
    fn see(&mut self, now: Time, kind: &Kind, versions: Versions) {
        if !self.seen.contains_key(kind) && self.seen.len() >= MAX_KINDS {
            return;
        }
        let ranges = self.seen.entry(kind.clone()).or_default();
        let range = (versions.oldest, versions.newest);
        if ranges.len() < MAX_RANGES || ranges.contains_key(&range) {
            ranges.insert(range, now);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.seen.len() + self.written.len() + self.pinned.len()
    }

    /// What nodes that are there, or were lately, read of a kind.
    fn of(&self, kind: &Kind) -> impl Iterator<Item = Versions> {
        let ranges = self.seen.get(kind).into_iter().flat_map(BTreeMap::keys);
        ranges.map(|(oldest, newest)| Versions { oldest: *oldest, newest: *newest })
    }

    /// The version to write: the newest that all of them read.
    fn common(&self, kind: &Kind, own: Versions) -> u32 {
        let newest = self.of(kind).map(|versions| versions.newest).min();
        newest.map_or(own.newest, |newest| newest.clamp(own.oldest, own.newest))
    }

    fn all_read(&self, kind: &Kind, version: u32) -> bool {
        self.of(kind).all(|versions| versions.reads(version))
    }
}

impl Machine {
    pub(super) fn tick_versions(&mut self) {
        let now = self.now.at;
        if self.readers.looked.is_some_and(|at| now.since(at) < LOOK) {
            return;
        }
        self.readers.looked = Some(now);
        self.look_readers();
        self.unpin();
    }

    /// Says which version each kind writes, where that has changed.
    pub(super) fn look_readers(&mut self) {
        let now = self.now.at;
        for (_, peer) in self.members.iter().filter(|(_, peer)| peer.gone.is_none()) {
            for (kind, versions) in peer.record.iter().flat_map(|record| &record.kinds) {
                self.readers.see(now, kind, *versions);
            }
        }
        let finalize_after = self.config.timing.finalize_after;
        self.readers.seen.retain(|_, ranges| {
            ranges.retain(|_, at| now.since(*at) < finalize_after);
            !ranges.is_empty()
        });
        for (kind, own) in &self.config.record.kinds {
            let version = self.readers.common(kind, *own);
            let before = self.readers.written.insert(kind.clone(), version);
            if before.unwrap_or(own.newest) != version {
                self.actions.push_back(Action::WriteVersion { kind: kind.clone(), version });
            }
        }
    }

    /// Remembers that something may be pinned.
    pub(super) fn note_pins(&mut self, name: &Name, run: RunId) {
        let branches = self.held.get(name).and_then(|runs| runs.get(&run));
        if branches.is_some_and(|branches| branches.pinned().next().is_some()) {
            self.readers.pinned.insert(name.clone());
        }
    }

    /// Forgets pinned checkpoints once nobody can need them.
    fn unpin(&mut self) {
        // Whoever has just started has not seen who was there before.
        if self.now.at.since(self.started) < self.config.timing.finalize_after {
            return;
        }
        for name in self.readers.pinned.clone() {
            let mut pinned = false;
            let mut obsolete: BTreeMap<RunId, Vec<Header>> = BTreeMap::new();
            for (run, branches) in self.held.get(&name).into_iter().flatten() {
                for header in branches.pinned() {
                    let mut newer =
                        branches.iter().filter(|h| *h != header && h.descends_from(header));
                    let read = |h: &Header| self.readers.all_read(&h.kind, h.state_version);
                    if newer.all(read) {
                        obsolete.entry(*run).or_default().push(header.clone());
                    } else {
                        pinned = true;
                    }
                }
            }
            for (run, headers) in obsolete {
                if let Some(branches) = self.held.get_mut(&name).and_then(|r| r.get_mut(&run)) {
                    headers.iter().for_each(|header| branches.drop_exact(header));
                }
                self.push(Action::Discard { name: name.clone(), run, headers });
            }
            if !pinned {
                self.readers.pinned.remove(&name);
            }
        }
    }

    /// The kinds this node runs, the versions of their states it reads, and the one it writes now.
    pub fn kinds(&self) -> impl Iterator<Item = (&Kind, Versions, u32)> {
        self.config.record.kinds.iter().map(|(kind, own)| {
            (kind, *own, self.readers.written.get(kind).copied().unwrap_or(own.newest))
        })
    }

    /// Whether a node that is there, or was lately, cannot go on from the newest state of a task
    /// that is held here: a rollback would go back to what is pinned.
    pub fn is_one_way(&self, name: &Name) -> bool {
        let Some(task) = self.tasks.get(name).filter(|task| task.claim.phase.is_held()) else {
            return false;
        };
        let version = self.state_version(task);
        version.is_some_and(|version| !self.readers.all_read(&task.spec.kind, version))
    }

    /// Whether anybody who lives, this node included, can go on from a version of a kind's state,
    /// now or when it takes tasks again.
    pub(super) fn is_read(&self, kind: &Kind, version: u32) -> bool {
        let reads = |kinds: &BTreeMap<Kind, Versions>| {
            kinds.get(kind).is_some_and(|versions| versions.reads(version))
        };
        reads(&self.config.record.kinds)
            || self
                .members
                .iter()
                .filter(|(_, peer)| peer.is_live())
                .any(|(_, peer)| peer.record.as_ref().is_some_and(|record| reads(&record.kinds)))
    }

    /// Sends what is pinned of a task to those that keep its newest checkpoint, or get it.
    pub(super) fn load_pins(&mut self, name: &Name) {
        for header in self.pins_of(name) {
            self.push(Action::Load { header });
        }
    }

    fn pins_of(&self, name: &Name) -> Vec<Header> {
        let runs = self.tasks.get(name).zip(self.held.get(name));
        let branches = runs.and_then(|(task, runs)| runs.get(&task.claim.run));
        let pinned = branches.into_iter().flat_map(|branches| branches.pinned());
        // What is not of its line goes along as well: only who goes on with it can take that in (Rule 22).
        pinned.cloned().chain(self.strays(name)).collect()
    }

    /// The bytes of a pinned checkpoint, for replicas and for a target.
    pub(super) fn pin_loaded(&mut self, header: &Header, state: &bytes::Bytes) {
        let Some(task) = self.tasks.get(&header.name) else {
            return;
        };
        if matches!(task.doing, Doing::Over { .. }) || !self.pins_of(&header.name).contains(header)
        {
            return;
        }
        let mut to: BTreeSet<_> = task.replicas.iter().cloned().collect();
        to.extend(task.hand.iter().filter(|hand| hand.accepted).map(|hand| hand.to.clone()));
        let (claim, spec) = (task.claim.clone(), task.spec.clone());
        for to in to {
            self.send_checkpoint(&to, &claim, &spec, header, state);
        }
    }
}
