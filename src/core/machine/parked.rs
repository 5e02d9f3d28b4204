//! Parked names (Rule 24): who keeps one offers it as soon as somebody can go on with it.

use super::Machine;
use super::task::{Doing, Purpose};
use crate::core::branch::{Branches, Header};
use crate::core::claim::Phase;
use crate::core::ids::Name;
use crate::core::io::{Cause, Notice};

impl Machine {
    /// A parked name whose holder is not the one to run it: offered as soon as somebody can.
    pub(super) fn look_parked(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        if task.claim.phase != (Phase::Parked { until_resumed: false })
            || !matches!(task.doing, Doing::Kept)
            || task.hand.is_some()
        {
            return;
        }
        let version = self.state_version(task);
        let spec = task.spec.clone();
        if self.may_take(&spec, version) {
            return self.claim(spec, Cause::Unparked, Purpose::Run, Vec::new());
        }
        if self.is_full_for(&spec) {
            self.passed_over.insert(name.clone());
        }
        if !self.offer(name) {
            self.look_older(name);
        }
    }

    /// Offers every kept name that waits for a node that can run it.
    pub(super) fn touch_kept(&mut self) {
        let kept: Vec<Name> = self
            .tasks
            .iter()
            .filter(|(_, task)| matches!(task.doing, Doing::Kept | Doing::Running))
            .map(|(name, _)| name.clone())
            .collect();
        self.later.extend(kept);
    }

    /// Nobody who lives can go on from the newest state, and for long enough: the best one of an
    /// older version will do, if it is above the floor. What was done since is not forgotten: the
    /// newest state stays as a branch.
    fn look_older(&mut self, name: &Name) {
        let patience = self.config.timing.silence_floor;
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Some(newest) = self.state_version(task) else {
            return;
        };
        let parking = task.parking.as_deref();
        let since = parking.and_then(|parking| parking.since);
        let due = since.unwrap_or(self.now.at) + patience;
        if self.now.at < due {
            return self.alarm(name, due);
        }
        if self.is_read(&task.spec.kind, newest) {
            return self.alarm_in(name, patience);
        }
        let (spec, floor) = (task.spec.clone(), task.claim.floor.clone());
        let mut known = parking.map(|parking| parking.found.clone()).unwrap_or_default();
        let held = self.held.get(name).and_then(|runs| runs.get(&spec.run));
        held.into_iter().flat_map(Branches::iter).for_each(|h| drop(known.admit(h.clone())));
        let read = |version: u32| version != newest && self.is_read(&spec.kind, version);
        let Some(older) = known.best_of(floor.as_ref(), read).cloned() else {
            return;
        };
        if self.may_take(&spec, Some(older.state_version)) {
            return self.claim(spec, Cause::Unparked, Purpose::Older, Vec::new());
        }
        let here = held.is_some_and(|branches| branches.iter().any(|header| *header == older));
        self.tell_older(name, newest, &older);
        if let Some(task) = self.tasks.get_mut(name) {
            task.latest = here.then_some(older);
            task.bytes = None;
        }
        if !self.offer(name) {
            self.alarm_in(name, patience);
        }
    }

    pub(super) fn tell_older(&mut self, name: &Name, newest: u32, older: &Header) {
        let what = format!(
            "continued from its last checkpoint of version {}: no live node reads version {newest}",
            older.state_version
        );
        self.tell(Notice::StateLost { name: name.clone(), what });
    }
}
