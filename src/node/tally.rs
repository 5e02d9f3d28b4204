//! What is measured over several events: moves, gaps, overlaps, gauges.

use std::collections::BTreeMap;
use std::time::Duration;

use super::metrics;
use crate::core::claim::{Claim, Phase};
use crate::core::ids::Name;
use crate::core::time::Time;
use crate::registry::TaskState;

/// Two moves of a task within this time count as a double move.
const DOUBLE: Duration = Duration::from_secs(600);
/// A stop that nobody took up within this time is no gap of a move any more.
const FORGET: Duration = Duration::from_secs(60);
/// Bound on what is remembered; beyond it, measurements are lost.
const MAX: usize = 100_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// When tasks stopped here.
    stopped: BTreeMap<Name, Time>,
    /// When a claim was seen that ends a task here.
    losing: BTreeMap<Name, Time>,
    /// When tasks came here.
    moved: BTreeMap<Name, Time>,
    /// The gauges that were set, to be zeroed when nothing is counted under them.
    shown: BTreeMap<(String, TaskState), usize>,
    expired: Time,
}

impl Tally {
    pub(super) fn stopped(&mut self, now: Time, name: &Name) {
        if let Some(seen) = self.losing.remove(name) {
            metrics::overlap(now.since(seen));
        }
        if self.stopped.len() < MAX {
            self.stopped.insert(name.clone(), now);
        }
    }

    /// It runs elsewhere.
    pub(super) fn moved_away(&mut self, now: Time, name: &Name) {
        if let Some(stopped) = self.stopped.remove(name) {
            metrics::move_gap(now.since(stopped));
        }
    }

    /// It runs here after running elsewhere; whether it had moved lately.
    pub(super) fn moved_here(&mut self, now: Time, name: &Name) -> bool {
        self.stopped.remove(name);
        let again = self.moved.get(name).is_some_and(|before| now.since(*before) < DOUBLE);
        if self.moved.len() < MAX {
            self.moved.insert(name.clone(), now);
        }
        again
    }

    /// A claim was seen that ends the task here.
    pub(super) fn losing(&mut self, now: Time, name: &Name) {
        if self.losing.len() < MAX {
            self.losing.entry(name.clone()).or_insert(now);
        }
    }

    pub(super) fn expire(&mut self, now: Time) {
        if now.since(self.expired) < FORGET {
            return;
        }
        self.expired = now;
        self.stopped.retain(|_, at| now.since(*at) < FORGET);
        self.losing.retain(|_, at| now.since(*at) < FORGET);
        self.moved.retain(|_, at| now.since(*at) < DOUBLE);
    }

    /// Sets the gauges of what this node holds.
    pub(super) fn gauge(
        &mut self,
        own: &BTreeMap<Name, Claim>,
        kind_of: impl Fn(&Name) -> Option<String>,
    ) {
        for count in self.shown.values_mut() {
            *count = 0;
        }
        let mut parked = 0;
        for (name, claim) in own {
            if !claim.phase.is_held() {
                continue;
            }
            parked += usize::from(matches!(claim.phase, Phase::Parked { .. } | Phase::Quarantined));
            let kind = kind_of(name).unwrap_or_else(|| "unknown".into());
            *self.shown.entry((kind, TaskState::of(&claim.phase))).or_default() += 1;
        }
        for ((kind, state), count) in &self.shown {
            metrics::tasks(kind, state.as_str(), *count);
        }
        self.shown.retain(|_, count| *count > 0);
        metrics::parked(parked);
    }
}
