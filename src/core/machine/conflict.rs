//! Two live claims meet: who stops, and when (Rules 9 and 21).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::Machine;
use super::task::{Doing, Why};
use crate::core::branch::{Header, Position};
use crate::core::claim::{Claim, Phase};
use crate::core::ids::{Name, SessionId};
use crate::core::io::{Action, Notice};
use crate::core::time::Time;

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

/// The branch of a run that this node ran and lost, and the winner that is to have it (Rule 21).
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Owed {
    header: Header,
    claim: Claim,
    to: SessionId,
    acked: bool,
}

/// The conflicts with one session.
#[derive(Clone, Debug, Default)]
pub(super) struct Rivalry {
    /// Over which names; those settled since may linger.
    names: BTreeSet<Name>,
    /// When it was last asked for proof of life.
    asked: Option<Time>,
}

/// From when a claim is seen until its session is asked for proof of life: when a datagram was sent
/// is known to the millisecond, and what it proves has to come after the claim.
const PROOF_AFTER: Duration = Duration::from_millis(2);

impl Machine {
    /// Compares the claim under which a task runs here with all others of the name.
    pub(super) fn look_conflict(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        if !matches!(task.doing, Doing::Running | Doing::Stopping(Why::Transfer) | Doing::Kept) {
            return;
        }
        let mine = task.claim.clone();
        let kept = matches!(task.doing, Doing::Kept);
        let mut over = false;
        let mut step_over = false;
        let mut rivals: Vec<SessionId> = Vec::new();
        for other in self.view.claims(name).filter(|other| other.session != mine.session) {
            match self.judge(&mine, kept, other) {
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
            self.rivalries.entry(rival.clone()).or_default().names.insert(name.clone());
        }
        if step_over && rivals.is_empty() {
            self.remint(name);
        }
        for rival in rivals {
            self.conflict_with(name, &rival);
        }
    }

    fn judge(&self, mine: &Claim, kept: bool, other: &Claim) -> Verdict {
        if other.run > mine.run {
            // Another job altogether: it has won once it runs or has ended, not while it asks.
            return if other.has_won() { Verdict::Over } else { Verdict::None };
        }
        if other.run < mine.run {
            // It wins by its run, whatever the epochs: a store must not refuse it for the loser's.
            let above = other.epoch >= mine.epoch && other.has_won();
            return if above && !kept { Verdict::StepOver } else { Verdict::None };
        }
        if matches!(other.phase, Phase::Finished | Phase::Cancelled) {
            return Verdict::Over;
        }
        if !other.beats(mine) {
            // A store may already have the other's token under this epoch: mint above it.
            let tie = other.epoch == mine.epoch && other.phase == Phase::Running;
            return if tie { Verdict::StepOver } else { Verdict::None };
        }
        match &other.phase {
            // A target that my own offer made is no rival.
            Phase::Incoming { from } if *from == mine.session => Verdict::None,
            _ if self.is_void(other) => Verdict::StepOver,
            Phase::Running => Verdict::Rival,
            // What merely keeps the name yields to who keeps it above; two that stepped over each
            // other would never end. A claimant is told that the name is held.
            Phase::Claimed if kept => Verdict::None,
            phase if kept && phase.is_held() => Verdict::Rival,
            _ => Verdict::StepOver,
        }
    }

    /// Claims the name anew above everything seen, without stopping. Above the highest epoch there is
    /// nothing: there the order of sessions stands, or two would step over each other for ever.
    pub(super) fn remint(&mut self, name: &Name) {
        let epoch = self.next_epoch(name);
        if self.tasks.get(name).is_none_or(|task| task.claim.epoch >= epoch) {
            return;
        }
        let number = self.take_number();
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let runs = matches!(task.doing, Doing::Running | Doing::Stopping(Why::Transfer));
        self.holding.remove(task.claim.number);
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
        let Some(rivalry) = self.rivalries.get(session) else {
            return;
        };
        let is_rival = |name: &Name| {
            self.tasks.get(name).is_some_and(|task| task.rivals.contains_key(session))
        };
        let (standing, settled): (Vec<Name>, Vec<Name>) =
            rivalry.names.iter().cloned().partition(|name| is_rival(name));
        if standing.is_empty() {
            self.rivalries.remove(session);
        } else if let Some(rivalry) = self.rivalries.get_mut(session) {
            rivalry.names.retain(|name| !settled.contains(name));
        }
        for name in standing {
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
            return self.ask_for_life(name, rival, seen);
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

    /// Asks a rival whose claim was seen at `seen` for proof of life, again until there is some: gossip
    /// would bring it by chance.
    fn ask_for_life(&mut self, name: &Name, rival: &SessionId, seen: Time) {
        let now = self.now.at;
        let due = seen + PROOF_AFTER;
        if now < due {
            return self.alarm(name, due);
        }
        let patience = self.config.timing.gossip_interval / 4;
        let rivalry = self.rivalries.entry(rival.clone()).or_default();
        if rivalry.asked.is_none_or(|asked| asked < due || now.since(asked) >= patience) {
            rivalry.asked = Some(now);
            self.push(Action::Probe(rival.clone()));
        }
        self.alarm_in(name, patience);
    }

    /// The loser has stopped: its branch is kept here and at the winner.
    pub(super) fn yielded(&mut self, name: &Name, to: &SessionId) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let (branch, state, claim) = (task.latest.clone(), task.bytes.take(), task.claim.clone());
        self.release_claim(name);
        let Some(header) = branch else { return };
        let owed = Owed { header: header.clone(), claim, to: to.clone(), acked: false };
        self.owed.insert(name.clone(), owed);
        match state {
            Some(state) => self.owed_loaded(&header, &state),
            None => self.push(Action::Load { header }),
        }
    }

    /// A loser's branch: it goes to the next winner too, and stays until the run has ended or a
    /// winner's checkpoint contains it (Rule 21).
    pub(super) fn look_owed(&mut self, name: &Name) {
        let Some(owed) = self.owed.get(name) else {
            return;
        };
        let run = owed.header.run;
        let held = self.held.get(name).and_then(|runs| runs.get(&run));
        let here = held.is_some_and(|branches| branches.iter().any(|h| *h == owed.header));
        let owner = self.view.owner(name).filter(|owner| owner.run == run);
        match owner {
            Some(owner) if here && owner.session != self.config.me => {
                let other = owner.session != owed.to;
                if other && owner.phase == Phase::Running && !self.is_void(owner) {
                    let to = owner.session.clone();
                    self.owe(name, to);
                }
            }
            // In between owners.
            None if here && self.view.last_run(name).is_none_or(|last| last <= run) => {}
            _ => {
                self.owed.remove(name);
            }
        }
    }

    fn owe(&mut self, name: &Name, to: SessionId) {
        if let Some(owed) = self.owed.get_mut(name) {
            owed.to = to;
            owed.acked = false;
            let header = owed.header.clone();
            self.push(Action::Load { header });
        }
    }

    /// The bytes of a branch that the winner is to get.
    pub(super) fn owed_loaded(&mut self, header: &Header, state: &Bytes) {
        let Some(owed) = self.owed.get(&header.name).filter(|owed| owed.header == *header) else {
            return;
        };
        let Some(spec) = self.specs.get(&header.name).filter(|s| s.run == header.run) else {
            return;
        };
        let (to, claim, spec) = (owed.to.clone(), owed.claim.clone(), spec.clone());
        if !owed.acked {
            self.send_checkpoint(&to, &claim, &spec, header, state);
        }
    }

    pub(super) fn owed_acked(&mut self, from: &SessionId, name: &Name, position: Position) {
        if let Some(owed) = self.owed.get_mut(name)
            && owed.to == *from
            && owed.header.position == position
        {
            owed.acked = true;
        }
    }

    /// A link has come up: what its peer may have missed goes out again.
    pub(super) fn owe_again(&mut self, session: &SessionId) {
        let lost: Vec<Header> = self
            .owed
            .values()
            .filter(|owed| owed.to == *session && !owed.acked)
            .map(|owed| owed.header.clone())
            .collect();
        for header in lost {
            self.push(Action::Load { header });
        }
    }
}
