//! A drain under way: its deadlines, and what its report will say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::oneshot;

use super::drain::DrainReport;
use crate::core::claim::{Claim, Phase};
use crate::core::ids::{Name, NodeId};
use crate::core::time::Time;
use crate::signal::Signal;

/// After the budget, how long pushing last commits and publishing releases may take.
const WIND_UP: Duration = Duration::from_secs(3);
/// The same after a second signal.
const HURRIED_WIND_UP: Duration = Duration::from_millis(500);

/// What became of one task.
#[derive(Debug)]
enum Fate {
    Moved,
    Parked,
    Released { replicas: usize },
    Ended,
    Unstoppable,
}

/// Who keeps what a drained node had.
#[derive(Clone, Debug)]
pub(super) struct Keepers {
    /// The names whose last commit its own disk has.
    pub(super) stored: BTreeSet<Name>,
    /// The nodes that there is a link to, and that stay.
    pub(super) linked: BTreeSet<NodeId>,
}

#[derive(Debug)]
pub(super) struct Draining {
    begun: Time,
    /// When waiting for step boundaries ends.
    deadline: Time,
    /// When the report is given as things stand.
    give_up: Time,
    hurried: bool,
    forced: Option<Signal>,
    fates: BTreeMap<Name, Fate>,
    waiting: Vec<oneshot::Sender<DrainReport>>,
    report: Option<DrainReport>,
}

impl Draining {
    pub(super) fn new(now: Time, budget: Duration) -> Self {
        Self {
            begun: now,
            deadline: now + budget,
            give_up: now + budget + WIND_UP,
            hurried: false,
            forced: None,
            fates: BTreeMap::new(),
            waiting: Vec::new(),
            report: None,
        }
    }

    pub(super) const fn deadline(&self) -> Time {
        self.deadline
    }

    /// Gives the report when there is one.
    pub(super) fn wait(&mut self, reply: oneshot::Sender<DrainReport>) {
        match &self.report {
            // Whoever asked may have stopped waiting.
            Some(report) => drop(reply.send(report.clone())),
            None => self.waiting.push(reply),
        }
    }

    /// Waiting for step boundaries ends now. False if it had ended already.
    pub(super) fn hurry(&mut self, now: Time, signal: Option<Signal>) -> bool {
        if self.hurried || self.report.is_some() {
            return false;
        }
        self.hurried = true;
        self.forced = signal;
        self.give_up = now + HURRIED_WIND_UP;
        true
    }

    /// The budget is spent, for the first time.
    pub(super) fn is_overdue(&mut self, now: Time) -> bool {
        if self.hurried || self.report.is_some() || now < self.deadline {
            return false;
        }
        self.hurried = true;
        true
    }

    /// Nothing more is waited for.
    pub(super) fn is_hopeless(&self, now: Time) -> bool {
        self.report.is_none() && now >= self.give_up
    }

    pub(super) fn is_over(&self) -> bool {
        self.report.is_some()
    }

    pub(super) fn moved(&mut self, name: &Name) {
        self.fates.insert(name.clone(), Fate::Moved);
    }

    pub(super) fn parked(&mut self, name: &Name) {
        self.fates.insert(name.clone(), Fate::Parked);
    }

    pub(super) fn released(&mut self, name: &Name, replicas: usize) {
        self.fates.insert(name.clone(), Fate::Released { replicas });
    }

    pub(super) fn ended(&mut self, name: &Name) {
        self.fates.insert(name.clone(), Fate::Ended);
    }

    pub(super) fn unstoppable(&mut self, name: &Name) {
        self.fates.insert(name.clone(), Fate::Unstoppable);
    }

    /// Gives the report to those who wait for it.
    pub(super) fn tell(&mut self) {
        if let Some(report) = &self.report {
            for waiting in self.waiting.drain(..) {
                // Whoever asked may have stopped waiting.
                let _ = waiting.send(report.clone());
            }
        }
    }

    /// Ends the drain. `own` are the claims that this node publishes.
    pub(super) fn finish(
        &mut self,
        now: Time,
        own: &BTreeMap<Name, Claim>,
        Keepers { stored, linked }: &Keepers,
        abort: Option<Signal>,
    ) -> &DrainReport {
        let mut report = DrainReport {
            elapsed: now.since(self.begun),
            forced: abort.or(self.forced),
            ..DrainReport::default()
        };
        let mut abandoned = BTreeSet::new();
        for (name, fate) in &self.fates {
            // A claim that still holds the name is more than what was once reported of it.
            if own.get(name).is_some_and(|claim| claim.phase.is_held())
                && !matches!(fate, Fate::Unstoppable)
            {
                continue;
            }
            match fate {
                Fate::Moved => report.moved += 1,
                Fate::Parked => report.parked += 1,
                Fate::Released { replicas: 1.. } => report.released += 1,
                // Taken by now, or never checkpointed: then its spec, which peers have, is all of it.
                Fate::Released { .. }
                    if own
                        .get(name)
                        .is_none_or(|claim| !linked.is_empty() && !claim.checkpointed) =>
                {
                    report.released += 1;
                }
                Fate::Released { .. } if stored.contains(name) => {
                    report.parked += 1;
                    report.only_on_disk += 1;
                }
                Fate::Released { .. } => drop(abandoned.insert(name.clone())),
                Fate::Ended => report.ended += 1,
                Fate::Unstoppable => report.unstoppable.push(name.clone()),
            }
        }
        for (name, claim) in own {
            let unstoppable = matches!(self.fates.get(name), Some(Fate::Unstoppable));
            if !claim.phase.is_held() || unstoppable {
                continue;
            }
            // Not handed over, yet somebody or something else keeps its state.
            let replicated = claim.replicas.iter().any(|node| linked.contains(node));
            match claim.phase {
                Phase::Parked { .. } | Phase::Quarantined | Phase::Paused
                    if stored.contains(name) || replicated =>
                {
                    report.parked += 1;
                    report.only_on_disk += usize::from(!replicated);
                }
                _ => drop(abandoned.insert(name.clone())),
            }
        }
        report.abandoned = abandoned.into_iter().collect();
        self.report.insert(report)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::checkpoint::testing::{end, name};

    fn nodes(of: &[&str]) -> impl Iterator<Item = NodeId> {
        of.iter().map(|node| NodeId::new(node).unwrap())
    }

    fn kept(on_disk: bool, linked: &[&str]) -> Keepers {
        let stored = on_disk.then(|| name("t")).into_iter().collect();
        Keepers { stored, linked: nodes(linked).collect() }
    }

    fn own(phase: Phase, replicas: &[&str]) -> BTreeMap<Name, Claim> {
        let claim = Claim {
            phase,
            checkpointed: true,
            replicas: nodes(replicas).collect(),
            ..end("t", 1, Phase::Finished).claim
        };
        BTreeMap::from([(name("t"), claim)])
    }

    fn report(draining: &mut Draining, own: &BTreeMap<Name, Claim>, by: &Keepers) -> DrainReport {
        draining.finish(Time::from_micros(1), own, by, None).clone()
    }

    fn draining() -> Draining {
        Draining::new(Time::ZERO, Duration::from_secs(25))
    }

    /// It moved, came back, and stayed.
    #[test]
    fn a_claim_that_holds_the_name_outweighs_what_was_reported_before() {
        let mut draining = draining();
        draining.moved(&name("t"));
        let report = report(&mut draining, &own(Phase::Running, &["b"]), &kept(false, &["b"]));
        assert_eq!((report.moved, report.abandoned), (0, vec![name("t")]));
    }

    #[test]
    fn what_waits_is_kept_where_a_replica_can_be_reached_or_a_disk_has_it() {
        let parked = own(Phase::Parked { until_resumed: true }, &["b"]);
        for (on_disk, linked, expected) in [
            (false, &["b", "c"][..], (1, 0, 0)),
            (false, &["c"], (0, 0, 1)),
            (false, &[], (0, 0, 1)),
            (true, &["b"], (1, 0, 0)),
            (true, &["c"], (1, 1, 0)),
            (true, &[], (1, 1, 0)),
        ] {
            let report = report(&mut draining(), &parked, &kept(on_disk, linked));
            let found = (report.parked, report.only_on_disk, report.abandoned.len());
            assert_eq!(found, expected, "{on_disk} {linked:?}");
        }
        let bare = own(Phase::Parked { until_resumed: true }, &[]);
        assert_eq!(report(&mut draining(), &bare, &kept(false, &["b"])).abandoned, [name("t")]);
    }

    #[test]
    fn what_was_released_counts_by_who_holds_it() {
        for (replicas, by, released, parked) in [
            (1, kept(false, &["b"]), 1, 0),
            (0, kept(false, &["b"]), 0, 0),
            (0, kept(true, &[]), 0, 1),
        ] {
            let mut draining = draining();
            draining.released(&name("t"), replicas);
            let report = report(&mut draining, &own(Phase::Released, &[]), &by);
            assert_eq!((report.released, report.parked), (released, parked), "{by:?}");
            assert_eq!(report.only_on_disk, parked, "{by:?}");
            assert_eq!(report.abandoned.len(), 1 - released - parked);
        }
    }
}
