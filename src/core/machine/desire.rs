//! Pause, resume, cancel: a register per run that whoever owns the run obeys (Rule 23).

use super::task::{Caller, Doing, Purpose, Why};
use super::{Machine, Needs};
use crate::core::claim::{Desired, Phase, Want};
use crate::core::ids::{Name, RunId};
use crate::core::io::{Action, CallError, Cause};
use crate::core::message::Message;
use crate::core::placement;

impl Machine {
    pub(super) fn on_want(&mut self, call: u64, name: &Name, run: Option<RunId>, want: Want) {
        let caller = Caller::Here(call);
        let (run, session) = match (self.view.holder(name), self.boot.offered(name)) {
            (Some(owner), _) if run.is_some_and(|run| run < owner.run) => {
                return self.reply_to(caller, Err(CallError::Superseded));
            }
            // Gossip of the caller's own run has not come round yet.
            (Some(owner), _) if run.is_some_and(|run| run > owner.run) => {
                (run.unwrap_or(owner.run), owner.session.clone())
            }
            (Some(owner), _) if owner.phase.is_terminal() => {
                return self.reply_to(caller, Err(CallError::Ended));
            }
            (Some(owner), _) => (owner.run, owner.session.clone()),
            // Whoever comes to have it obeys.
            (None, Some(run)) => (run, self.config.me.clone()),
            (None, None) => return self.reply_to(caller, Err(CallError::Unknown)),
        };
        let known = self.desires.get(name).filter(|desired| desired.run == run);
        if want != Want::Cancel && known.is_some_and(|desired| desired.want == Want::Cancel) {
            return self.reply_to(caller, Err(CallError::Cancelled));
        }
        let version = known.map_or(0, |desired| desired.version).saturating_add(1);
        let writer = self.config.me.clone();
        let desired = Desired { name: name.clone(), run, version, writer, want };
        self.push(Action::PublishDesired(desired.clone()));
        let home = placement::rendezvous(name, self.members.live()).first().map(|s| (*s).clone());
        for to in std::iter::once(session.clone()).chain(home.filter(|home| *home != session)) {
            if to != self.config.me {
                self.send(&to, Message::Desire { desired: desired.clone() });
            }
        }
        self.learn_desired(desired);
        self.reply_to(caller, Ok(run));
    }

    /// Joins a register value.
    pub(super) fn learn_desired(&mut self, desired: Desired) {
        let name = desired.name.clone();
        let newer = match self.desires.get(&name) {
            Some(known) => desired.replaces(known),
            None => self.desires.len() < self.config.max_names,
        };
        if newer {
            // The home publishes it too: it outlives the caller.
            let home = placement::rendezvous(
                &name,
                self.members.live().chain(std::iter::once(&self.config.me)),
            );
            if home.first() == Some(&&self.config.me) {
                self.push(Action::PublishDesired(desired.clone()));
            }
            self.desires.insert(name.clone(), desired);
            self.keep_run(&name);
            self.dirty.insert(name);
        }
    }

    /// Who has a name publishes what is wanted of it: the caller and the home that did may be gone
    /// before it is.
    pub(super) fn publish_desired(&mut self, name: &Name) {
        if let Some(desired) = self.desires.get(name) {
            self.push(Action::PublishDesired(desired.clone()));
        }
    }

    /// Keeps on disk what a run is that is held here, and what is wanted of it, so that a restart of
    /// all nodes forgets neither (Rule 14).
    pub(super) fn keep_run(&mut self, name: &Name) {
        if !self.config.durable {
            return;
        }
        let desired = self.desires.get(name).cloned();
        let mine = self.tasks.get(name).filter(|task| !matches!(task.doing, Doing::Over { .. }));
        let run = match (mine, &desired) {
            (Some(task), _) => task.claim.run,
            (None, Some(desired)) => desired.run,
            (None, None) => return,
        };
        let replica = self.held.get(name).is_some_and(|runs| runs.contains_key(&run));
        if mine.is_none() && !replica {
            return;
        }
        let Some(spec) = self.spec_of(name, run).cloned() else {
            return;
        };
        // It is cleaned away like the checkpoints that follow.
        self.held.entry(name.clone()).or_default().entry(run).or_default();
        let desired = desired.filter(|desired| desired.run == run);
        self.push(Action::StoreRun { spec, desired });
    }

    /// The owner obeys.
    pub(super) fn look_desired(&mut self, name: &Name) {
        let Some(desired) = self.desires.get(name) else {
            return;
        };
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        if desired.run != task.claim.run {
            return;
        }
        let grace = self.config.timing.stop_grace;
        let kept = matches!(task.doing, Doing::Kept);
        let looking = matches!(task.doing, Doing::Finding(_) | Doing::Fetching { .. });
        match desired.want {
            Want::Cancel if task.runs() || kept || looking => {
                if !matches!(task.doing, Doing::Stopping(Why::Cancel)) {
                    self.withdraw_offer(name);
                    self.stop_for(name, Why::Cancel, grace);
                }
            }
            // What is looked for is found first: it may be the last copy, and wants replicas.
            Want::Pause if matches!(task.doing, Doing::Running) => {
                self.withdraw_offer(name);
                self.stop_for(name, Why::Pause, grace);
            }
            Want::Run if kept && self.resumes(name) => {
                let (spec, version) = (task.spec.clone(), self.state_version(task));
                if self.may_take(&spec, version) {
                    // Under a new epoch: one epoch never starts twice.
                    self.claim(spec, Cause::Unparked, Purpose::Run, Vec::new());
                } else {
                    // Whoever can run it gets it.
                    let why = Needs::Node(spec.kind, version).why();
                    self.park(name, false, &why);
                }
                if let Some(task) = self.tasks.get_mut(name) {
                    task.claim.strikes = 0;
                }
            }
            _ => {}
        }
    }

    /// Whether "run it" is about this pause or parking.
    fn resumes(&self, name: &Name) -> bool {
        let Some(task) = self.tasks.get(name) else {
            return false;
        };
        let waits = match task.claim.phase {
            Phase::Paused => true,
            // Only an order given since then ends a quarantine, or makes lost state acceptable.
            Phase::Quarantined | Phase::Parked { until_resumed: true } => {
                self.desires.get(name).is_some_and(|desired| desired.version > task.claim.heeded)
            }
            _ => false,
        };
        waits && task.hand.is_none()
    }

    /// Remembers, for whoever keeps a task from now on, which orders were given before it was parked.
    pub(super) fn heed(&mut self, name: &Name) {
        let known = self.desires.get(name);
        if let Some(task) = self.tasks.get_mut(name) {
            let known = known.filter(|desired| desired.run == task.claim.run);
            task.claim.heeded = known.map_or(0, |desired| desired.version);
        }
    }
}
