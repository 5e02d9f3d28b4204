//! Two live claims meet: who stops, and when (Rules 9 and 21).

use super::Machine;
use super::task::{Doing, Why};
use crate::core::claim::{Claim, Phase};
use crate::core::ids::{Name, SessionId};
use crate::core::io::{Action, Notice};

/// What another session's claim means for a task that runs here.
enum Verdict {
    /// Nothing: it is lower, or says nothing about who runs.
    None,
    /// The run has ended, or another run of the name has won.
    Over,
    /// Its claim is higher and it says that it runs: it wins if it lives.
    Rival,
    /// Its claim is higher, or equally high in epoch, and does not win: step over it.
    StepOver,
}

impl Machine {
    /// Compares the claim under which a task runs here with all others of the name.
    pub(super) fn look_conflict(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        if !matches!(task.doing, Doing::Running | Doing::Stopping(Why::Transfer) | Doing::Kept) {
            return;
        }
        let (mine, runs) = (task.claim.clone(), task.runs());
        let mut over = false;
        let mut step_over = false;
        let mut rivals: Vec<SessionId> = Vec::new();
        for other in self.view.claims(name).filter(|other| other.session != mine.session) {
            match self.judge(&mine, runs, other) {
                Verdict::None => {}
                Verdict::Over => over = true,
                Verdict::Rival => rivals.push(other.session.clone()),
                Verdict::StepOver => step_over = true,
            }
        }
        let end = self.ends.get(name).is_some_and(|(end, _)| {
            let failed = end.phase == Phase::Failed && end.run == mine.run;
            end.session != mine.session && !failed && end.ends(&mine)
        });
        if over || end {
            let grace = self.config.timing.stop_grace;
            self.withdraw_offer(name);
            return self.stop_for(name, Why::Lost, grace);
        }
        let now = self.now.at;
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        task.rivals.retain(|session, _| rivals.contains(session));
        for rival in &rivals {
            task.rivals.entry(rival.clone()).or_insert(now);
        }
        if step_over && rivals.is_empty() {
            self.remint(name);
        }
        for rival in rivals {
            self.conflict_with(name, &rival);
        }
    }

    fn judge(&self, mine: &Claim, runs: bool, other: &Claim) -> Verdict {
        if other.run > mine.run {
            // Another job altogether: it has won once it runs or has ended, not while it asks.
            return if other.has_won() { Verdict::Over } else { Verdict::None };
        }
        if other.run < mine.run {
            return Verdict::None;
        }
        if matches!(other.phase, Phase::Finished | Phase::Cancelled) {
            return Verdict::Over;
        }
        if other.beats(mine) {
            // A target that my own offer made is no rival.
            if matches!(&other.phase, Phase::Incoming { from } if *from == mine.session) {
                return Verdict::None;
            }
            // Who runs goes on above whoever only keeps it; of two keepers, the higher keeps it.
            let wins = match other.phase {
                Phase::Running => true,
                Phase::Paused | Phase::Parked { .. } | Phase::Quarantined => !runs,
                _ => false,
            };
            return if wins && !self.is_void(other) { Verdict::Rival } else { Verdict::StepOver };
        }
        if other.epoch == mine.epoch && other.phase == Phase::Running {
            // A store may already have the other's token under this epoch: mint above it.
            return Verdict::StepOver;
        }
        Verdict::None
    }

    /// Claims the name anew above everything seen, without stopping.
    fn remint(&mut self, name: &Name) {
        let epoch = self.next_epoch(name);
        let number = self.take_number();
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let runs = matches!(task.doing, Doing::Running | Doing::Stopping(Why::Transfer));
        self.holding.remove(&task.claim.number);
        task.claim.number = number;
        task.claim.version = 0;
        task.claim.epoch = epoch;
        let lease = task.claim.lease();
        self.withdraw_offer(name);
        self.publish(name);
        if runs {
            self.push(Action::Reepoch { name: name.clone(), lease });
        }
    }

    /// Something was heard of a session: does it prove that a rival lives?
    pub(super) fn conflict_evidence(&mut self, session: &SessionId) {
        let names: Vec<Name> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.rivals.contains_key(session))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.conflict_with(&name, session);
        }
    }

    /// Stops for a rival whose life is proven since its claim was first seen here: it echoed
    /// something sent later, or, without a direct path, its heartbeat still advances `R_eta` later.
    /// A corpse's claim stops nobody.
    fn conflict_with(&mut self, name: &Name, rival: &SessionId) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Some(seen) = task.rivals.get(rival).copied() else {
            return;
        };
        let Some(peer) = self.members.get(rival) else {
            return;
        };
        let direct = peer.echoed.is_some_and(|sent| sent > seen);
        let relayed = peer.heartbeat > seen + self.config.timing.convergence();
        if !(direct || relayed) {
            return;
        }
        let kept_only = matches!(task.doing, Doing::Kept);
        let me = self.config.me.clone();
        self.withdraw_offer(name);
        if !kept_only {
            self.tell(Notice::Conflict { name: name.clone(), kept: rival.clone(), stopped: me });
        }
        let grace = self.config.timing.stop_grace;
        if let Some(task) = self.tasks.get_mut(name) {
            task.rivals.clear();
        }
        self.stop_for(name, Why::Yield { to: rival.clone() }, grace);
    }

    /// The loser has stopped: its branch is kept here and at the winner.
    pub(super) fn yielded(&mut self, name: &Name, to: &SessionId) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let branch = task.latest.clone().zip(task.bytes.take());
        let (claim, spec) = (task.claim.clone(), task.spec.clone());
        self.release_claim(name);
        if let Some((header, state)) = branch {
            self.send_checkpoint(to, &claim, &spec, &header, &state);
        }
    }
}
