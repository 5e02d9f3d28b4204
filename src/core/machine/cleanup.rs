//! Records that have served their time, and ends that outlive their writers (Rules 8 and 12).

use std::collections::BTreeSet;

use super::Machine;
use super::task::{Doing, Task};
use crate::core::branch::Branches;
use crate::core::claim::{Claim, Phase, Spec};
use crate::core::ids::{Name, RunId};
use crate::core::io::{Action, Notice};
use crate::core::placement;
use crate::core::record::NodeState;
use crate::core::time::Time;

impl Machine {
    /// An end whose writer is gone: who holds it publishes it on, else the name's home does.
    pub(super) fn look_end(&mut self, name: &Name) {
        if self.state == NodeState::Joining {
            return;
        }
        self.revoke_failure(name);
        // What this node has stepped back from keeps no end from being published.
        let speaks = |task: &Task| {
            let phase = &task.claim.phase;
            !matches!(task.doing, Doing::Over { .. }) || phase.is_held() || phase.is_terminal()
        };
        if self.tasks.get(name).is_some_and(|task| speaks(task)) {
            return;
        }
        let Some((end, _)) = self.ends.get(name) else {
            return self.look_orphaned_end(name);
        };
        let end = end.clone();
        let writer = self.members.get(&end.session);
        let spoken_for = end.session != self.config.me && writer.is_some_and(|p| p.gone.is_none());
        let newer = self.view.claims(name).any(|claim| claim.run > end.run && claim.replaces(&end));
        if spoken_for || newer || self.is_ended_alive(name, end.run) {
            return;
        }
        if let Some(spec) = self.specs.get(name).cloned() {
            self.adopt_end(end, spec);
        }
    }

    /// A finished task that only gossip remembers must not be forgotten with its writer.
    fn look_orphaned_end(&mut self, name: &Name) {
        let Some(end) = self.view.ended(name).filter(|end| self.is_void(end)).cloned() else {
            return;
        };
        // Of those that have published it the last one that went.
        let ends = self.view.claims(name).filter(|c| c.run == end.run && c.phase.is_terminal());
        let gone = ends.filter_map(|claim| self.members.get(&claim.session)?.gone);
        let gone = gone.map(|(_, at)| at).max();
        let (Some(at), false) = (gone, self.is_ended_alive(name, end.run)) else {
            return;
        };
        // Its replicas come first.
        let due = at + self.config.timing.silence_floor;
        if self.now.at < due {
            return self.alarm(name, due);
        }
        let live = self.members.live().chain(std::iter::once(&self.config.me));
        let home = placement::rendezvous(name, live).first() == Some(&&self.config.me);
        if let Some(spec) = self.specs.get(name).filter(|spec| home && spec.run == end.run).cloned()
        {
            self.keep_end(&end, &spec);
            self.adopt_end(end, spec);
        }
    }

    /// Whether somebody who lives publishes that the run has ended.
    fn is_ended_alive(&self, name: &Name, run: RunId) -> bool {
        self.view
            .claims(name)
            .any(|claim| claim.run == run && claim.phase.is_terminal() && !self.is_void(claim))
    }

    /// Publishes an end that this node holds as a record of its own.
    fn adopt_end(&mut self, end: Claim, spec: Spec) {
        let name = end.name.clone();
        let number = self.take_number();
        // Who held copies for its last publisher may be there no more: those who do say so.
        let replicas = Vec::new();
        let claim = Claim { session: self.config.me.clone(), number, version: 0, replicas, ..end };
        let doing = Doing::Over { dominated: None };
        self.tasks.insert(name.clone(), Box::new(Task::record(claim, spec.clone(), doing)));
        self.answer_for_end(&name, BTreeSet::new());
        self.push(Action::PublishSpec(spec));
        self.publish(&name);
    }

    /// Keeps an end that gossip told of, in the place of the run's checkpoints.
    fn keep_end(&mut self, end: &Claim, spec: &Spec) {
        self.set_end(end.clone(), self.now.at);
        self.bare.insert(end.name.clone());
        self.forget_runs(&end.name, end.run);
        self.store_end(spec.clone(), None, None);
    }

    /// Makes an end the one of its name. Those of older runs are of no use any more: the store is to forget
    /// them.
    pub(super) fn set_end(&mut self, end: Claim, at: Time) {
        let (name, run) = (end.name.clone(), end.run);
        if let Some((old, _)) = self.ends.insert(name.clone(), (end, at))
            && old.run != run
        {
            self.push(Action::Discard { name, run: old.run, headers: Vec::new() });
        }
    }

    /// A failure that a live claim of its run has risen above is no end (Rule 9).
    pub(super) fn is_revoked(&self, end: &Claim) -> bool {
        let lives = |claim: &Claim| claim.phase.is_held() && !self.is_void(claim);
        end.phase == Phase::Failed
            && self
                .view
                .claims(&end.name)
                .any(|claim| claim.run == end.run && claim.beats(end) && lives(claim))
    }

    /// Forgets a failure that is no end, whatever this node's own record of the name says.
    pub(super) fn revoke_failure(&mut self, name: &Name) {
        let Some((end, _)) = self.ends.get(name).filter(|(end, _)| self.is_revoked(end)) else {
            return;
        };
        let run = end.run;
        let ending =
            self.tasks.get(name).is_some_and(|task| matches!(task.doing, Doing::Ending { .. }));
        if ending {
            return;
        }
        self.ends.remove(name);
        self.unstored.remove(name);
        self.bare.remove(name);
        self.drop_copies(name);
        // What is held of the run is of those above the failure, and must not go with it.
        let held = self.held.get(name).and_then(|runs| runs.get(&run));
        if held.is_none_or(Branches::is_empty) {
            self.push(Action::Discard { name: name.clone(), run, headers: Vec::new() });
        }
    }

    /// Forgets the checkpoints of a run that has ended, and of those before it. The end replaces
    /// those of its own run in the store.
    pub(super) fn forget_runs(&mut self, name: &Name, ended: RunId) {
        let Some(runs) = self.held.get_mut(name) else {
            return;
        };
        let older: Vec<RunId> = runs.keys().copied().filter(|run| *run < ended).collect();
        runs.retain(|run, _| *run > ended);
        if runs.is_empty() {
            self.held.remove(name);
        }
        for run in older {
            self.push(Action::Discard { name: name.clone(), run, headers: Vec::new() });
        }
    }

    /// Removes records that have served their time (Rule 12).
    pub(super) fn look_cleanup(&mut self, name: &Name) {
        self.clean_own(name);
        self.clean_end(name);
        self.clean_held(name);
    }

    fn clean_own(&mut self, name: &Name) {
        let now = self.now.at;
        let patience = self.config.timing.convergence();
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Doing::Over { dominated } = &task.doing else {
            return;
        };
        let above = self
            .view
            .claims(name)
            .filter(|other| other.session != self.config.me && !self.is_void(other))
            .find(|other| other.replaces(&task.claim));
        let twice = above
            .filter(|above| {
                task.claim.phase == Phase::Finished
                    && above.phase == Phase::Finished
                    && above.run == task.claim.run
                    && above.epoch != task.claim.epoch
            })
            .map(|above| above.session.clone());
        // What stepped back has been heard by then too, unless somebody still asks.
        let heard = task.claim.phase == Phase::Superseded
            && self.view.claims(name).all(|other| {
                other.session == self.config.me
                    || self.buried.contains_key(&other.session)
                    || other.phase == Phase::Superseded
                    || other.has_won()
            });
        let (above, dominated) = (above.is_some() || heard, *dominated);
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let Doing::Over { dominated: since } = &mut task.doing else {
            return;
        };
        match (above, dominated) {
            (false, _) => *since = None,
            (true, None) => {
                *since = Some(now);
                self.alarm_in(name, patience);
                if let Some(kept) = twice {
                    let stopped = self.config.me.clone();
                    self.tell(Notice::Conflict { name: name.clone(), kept, stopped });
                }
            }
            (true, Some(at)) if now.since(at) < patience => self.alarm(name, at + patience),
            // Its output is to be where the end is published.
            (true, Some(_)) if self.unaware(name).is_some() => self.alarm_in(name, patience),
            (true, Some(_)) => {
                if let Some(task) = self.tasks.remove(name) {
                    self.holding.remove(task.claim.number);
                }
                self.drop_copies(name);
                self.view.remove(name, &self.config.me.clone());
                self.push(Action::Retract(name.clone()));
                self.push(Action::RetractSpec(name.clone()));
            }
        }
    }

    fn clean_end(&mut self, name: &Name) {
        let Some((end, at)) = self.ends.get(name) else {
            return;
        };
        let (run, at) = (end.run, *at);
        let timing = &self.config.timing;
        let (retention, memory) = (timing.retention, timing.tombstone_retention);
        if self.now.at.since(at) < retention {
            return self.alarm(name, at + retention);
        }
        // Whoever has just come may still meet a copy that was born again without it (Rule 14).
        let met = self.boot.up_since().unwrap_or(self.now.at) + timing.boot_wait;
        let bury = (at + retention + memory).max(met);
        let lower = self.view.claims(name).any(|other| {
            other.session != self.config.me && !other.phase.is_terminal() && end.ends(other)
        });
        if self.now.at < bury || lower {
            if self.bare.insert(name.clone()) {
                self.push(Action::DropOutput { name: name.clone(), run });
                self.expire(name, run);
            }
            return self.alarm(name, bury.max(self.now.at + retention));
        }
        self.ends.remove(name);
        self.unstored.remove(name);
        self.bare.remove(name);
        self.drop_copies(name);
        self.push(Action::Discard { name: name.clone(), run, headers: Vec::new() });
        if self.view.last_run(name).is_some_and(|newest| newest > run) {
            return;
        }
        if self.tasks.get(name).is_none_or(|t| matches!(t.doing, Doing::Over { .. })) {
            self.forget(name);
        }
    }

    /// Tells those who hold no record of an end that its output is kept no longer.
    fn expire(&mut self, name: &Name, run: RunId) {
        if let Some((end, _)) = self.ends.get_mut(name).filter(|(end, _)| end.run == run) {
            end.expired = true;
        }
        let published = self.tasks.get_mut(name).filter(|task| {
            task.claim.run == run
                && task.claim.phase.is_terminal()
                && matches!(task.doing, Doing::Over { .. })
        });
        if let Some(task) = published {
            task.claim.expired = true;
            self.publish(name);
        }
    }

    /// Checkpoints of a run that has ended elsewhere, or that another run has replaced.
    fn clean_held(&mut self, name: &Name) {
        let Some(runs) = self.held.get(name) else {
            return;
        };
        let mine = self
            .tasks
            .get(name)
            .filter(|task| !matches!(task.doing, Doing::Over { .. }))
            .map(|task| task.claim.run);
        let ended = self
            .view
            .ended(name)
            .filter(|end| Some(end.run) != mine && runs.contains_key(&end.run))
            .filter(|end| self.ends.get(name).is_none_or(|(known, _)| end.beats(known)))
            .cloned();
        // What is kept with what it brought is not to give way to what was merely heard.
        let whole = |end: &Claim| {
            let kept = self.ends.get(name);
            kept.is_some_and(|(kept, _)| kept.run == end.run && kept.phase == Phase::Finished)
        };
        if let Some(end) = ended.filter(|end| !whole(end))
            && let Some(spec) = self.specs.get(name).filter(|spec| spec.run == end.run).cloned()
        {
            return self.keep_end(&end, &spec);
        }
        let won = self.view.claims(name).filter(|claim| claim.has_won()).map(|c| c.run).max();
        let replaced: Vec<RunId> =
            runs.keys().copied().filter(|run| won.is_some_and(|won| *run < won)).collect();
        for run in replaced {
            self.clean_replaced(name, run);
        }
    }

    /// The checkpoints of a run that lost against another are kept for the retention (Rule 8).
    fn clean_replaced(&mut self, name: &Name, run: RunId) {
        let key = (name.clone(), run);
        let since = *self.outdated.entry(key.clone()).or_insert(self.now.at);
        let due = since + self.config.timing.retention;
        if self.now.at < due {
            return self.alarm(name, due);
        }
        self.outdated.remove(&key);
        if let Some(runs) = self.held.get_mut(name) {
            runs.remove(&run);
            if runs.is_empty() {
                self.held.remove(name);
            }
        }
        self.push(Action::Discard { name: name.clone(), run, headers: Vec::new() });
    }

    /// A name of which nothing is left but what it once was: its highest epoch, its spec, what was
    /// wanted of it. Remembered as long as a tombstone, so that nothing grows for ever.
    pub(super) fn look_idle(&mut self, name: &Name) {
        let used = self.tasks.contains_key(name)
            || self.ends.contains_key(name)
            || self.held.contains_key(name)
            || self.boot.is_offered(name)
            || self.view.top(name).is_some();
        let remembered = self.view.epoch(name).is_some()
            || self.specs.contains_key(name)
            || self.desires.contains_key(name)
            || self.askers.contains_key(name);
        if used || !remembered {
            self.idle.remove(name);
            return;
        }
        let since = *self.idle.entry(name.clone()).or_insert(self.now.at);
        let due = since + self.config.timing.tombstone_retention;
        if self.now.at < due {
            return self.alarm(name, due);
        }
        self.forget(name);
    }

    /// Forgets everything about a name.
    fn forget(&mut self, name: &Name) {
        if let Some(task) = self.tasks.remove(name) {
            self.holding.remove(task.claim.number);
            self.push(Action::Retract(name.clone()));
        }
        self.other_specs.remove(name);
        if self.specs.remove(name).is_some() {
            self.push(Action::RetractSpec(name.clone()));
        }
        if self.desires.remove(name).is_some() {
            self.push(Action::RetractDesired(name.clone()));
        }
        self.view.forget(name);
        self.held.remove(name);
        self.askers.remove(name);
        self.free_since.remove(name);
        self.left_alone.remove(name);
        self.idle.remove(name);
    }
}
