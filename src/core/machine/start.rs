//! `run`: joins the run that exists, or finds a node that starts one. A run that is only claimed may
//! still step back for another one: whoever joins it waits until it is settled.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Machine;
use super::task::{Caller, Doing, Purpose};
use crate::core::claim::{Claim, Phase, Spec};
use crate::core::ids::{Kind, Name, RunId, SessionId};
use crate::core::io::{CallError, Cause};
use crate::core::message::{Message, Refusal};
use crate::core::placement::{self, Candidate};
use crate::core::record::{NodeRecord, NodeState};
use crate::core::time::Time;

/// Starts asked for here that run on other nodes, or wait for one.
#[derive(Clone, Debug, Default)]
pub(super) struct Starts {
    by_id: BTreeMap<u64, Pending>,
    by_name: BTreeMap<Name, u64>,
    next: u64,
    /// Who waits until another node's claim is settled.
    following: BTreeMap<Name, Following>,
}

#[cfg(test)]
impl Starts {
    pub(super) fn len(&self) -> usize {
        self.by_id.len() + self.by_name.len() + self.following.len()
    }
}

#[derive(Clone, Debug)]
struct Following {
    /// What to start if no run of that number or a higher one comes of the claim.
    spec: Spec,
    callers: Vec<Caller>,
    /// Since when the claim has stopped, for all that is known here.
    stopped: Option<Time>,
}

impl Starts {
    fn take(&mut self, id: u64) -> Option<Pending> {
        let pending = self.by_id.remove(&id)?;
        if self.by_name.get(&pending.spec.name) == Some(&id) {
            self.by_name.remove(&pending.spec.name);
        }
        Some(pending)
    }
}

#[derive(Clone, Debug)]
struct Pending {
    spec: Spec,
    callers: Vec<Caller>,
    target: Option<SessionId>,
    tried: BTreeSet<SessionId>,
    /// What the last one asked said.
    refusal: Option<Refusal>,
    until: Time,
}

/// How long a target may take to answer before the next one is asked: settling takes `R_eta` at most.
const PATIENCE: Duration = Duration::from_secs(5);

/// Only a call for the same kind of task joins a run.
fn same_kind(asked: &Kind, of: &Kind) -> Result<(), CallError> {
    if asked == of { Ok(()) } else { Err(CallError::OtherKind(of.clone())) }
}

impl Machine {
    pub(super) fn on_run(&mut self, call: u64, spec: Spec, again: bool) {
        let caller = Caller::Here(call);
        if self.state == NodeState::Joining || self.state.is_fenced() {
            return self.reply_to(caller, Err(CallError::NotReady));
        }
        let name = spec.name.clone();
        if let Some(task) = self.tasks.get_mut(&name)
            && matches!(task.doing, Doing::Settling(_))
        {
            return match same_kind(&spec.kind, &task.spec.kind) {
                Ok(()) => task.callers.push(caller),
                Err(other) => self.reply_to(caller, Err(other)),
            };
        }
        let pending = self.starts.by_name.get(&name);
        if let Some(pending) = pending.and_then(|id| self.starts.by_id.get_mut(id)) {
            return match same_kind(&spec.kind, &pending.spec.kind) {
                Ok(()) => pending.callers.push(caller),
                Err(other) => self.reply_to(caller, Err(other)),
            };
        }
        let claimed = self.claimed_elsewhere(&name).map(|claim| claim.run);
        let standing = self.view.standing(&name).filter(|claim| !self.is_outlived(claim));
        if let (None, Some(run)) = (standing, claimed) {
            return self.follow(spec, run, vec![caller]);
        }
        let last = self.last_run(&name);
        let standing = standing.or_else(|| self.view.owner(&name));
        let standing = standing.filter(|claim| claim.phase != Phase::Superseded);
        if let Some(run) = standing.map(|claim| claim.run).or(last) {
            let ended = standing.is_some_and(|claim| claim.phase.is_terminal());
            let superseded = self.view.top(&name).is_some_and(|c| c.phase == Phase::Superseded);
            let forgotten = ended && !self.is_retained(&name);
            if !(superseded || forgotten || (ended && again)) {
                let result = self.joined(&name, run, &spec.kind);
                return self.reply_to(caller, result);
            }
        }
        match claimed {
            Some(run) => self.follow(spec, run, vec![caller]),
            None => self.place_anew(spec, vec![caller]),
        }
    }

    /// Whether a claim is of the dead, and later runs of the name have been asked for: it had ended by then.
    fn is_outlived(&self, claim: &Claim) -> bool {
        let stands = |other: &&Claim| other.phase != Phase::Superseded;
        let mut others = self.view.claims(&claim.name).filter(stands);
        self.is_void(claim) && others.any(|other| other.run.number > claim.run.number)
    }

    /// What a call for a task of a kind is told of the run that has its name.
    fn joined(&self, name: &Name, run: RunId, asked: &Kind) -> Result<RunId, CallError> {
        match self.specs.get(name).filter(|known| known.run == run) {
            Some(known) => same_kind(asked, &known.kind).map(|()| run),
            None => Ok(run),
        }
    }

    /// The newest run of a name of which anything is known.
    fn last_run(&self, name: &Name) -> Option<RunId> {
        self.view.last_run(name).max(self.specs.get(name).map(|spec| spec.run))
    }

    fn place_anew(&mut self, mut spec: Spec, callers: Vec<Caller>) {
        spec.run.number = self.last_run(&spec.name).map_or(0, |run| run.number).saturating_add(1);
        self.place(spec, callers);
    }

    /// A new run that another node claims and has not settled, as far as is known here: it may step
    /// back for one that is not known here, or has done so. One that has stopped has done so, or has
    /// ended, and a header said so first.
    fn claimed_elsewhere(&self, name: &Name) -> Option<&Claim> {
        let owner = self.view.owner(name)?;
        let unsettled = match &owner.phase {
            Phase::Claimed | Phase::Released => !owner.checkpointed,
            Phase::Superseded => true,
            _ => false,
        };
        let elsewhere = owner.session != self.config.me && !self.is_void(owner);
        (unsettled && elsewhere).then_some(owner)
    }

    /// Waits for what comes of a claim.
    pub(super) fn follow(&mut self, mut spec: Spec, claimed: RunId, callers: Vec<Caller>) {
        if callers.is_empty() {
            return;
        }
        let name = spec.name.clone();
        spec.run.number = claimed.number;
        let new = Following { spec, callers: Vec::new(), stopped: None };
        self.starts.following.entry(name.clone()).or_insert(new).callers.extend(callers);
        self.dirty.insert(name);
    }

    /// Has anything come of the claim that callers wait for?
    pub(super) fn look_following(&mut self, name: &Name) {
        let Some(following) = self.starts.following.get(name) else {
            return;
        };
        let number = following.spec.run.number;
        let since = following.stopped;
        let found = self.view.standing(name).or_else(|| self.view.owner(name));
        let found = found.filter(|c| c.run.number >= number && c.phase != Phase::Superseded);
        let run = found.map(|claim| claim.run);
        if found.is_none_or(|claim| !claim.has_won())
            && let Some(claimed) = self.claimed_elsewhere(name)
        {
            // It tells what has become of it when gossip comes round.
            let stopped = (claimed.phase != Phase::Claimed).then(|| since.unwrap_or(self.now.at));
            let due = stopped.map(|at| at + self.config.timing.convergence());
            if let Some(following) = self.starts.following.get_mut(name) {
                following.stopped = stopped;
            }
            if due.is_none_or(|due| self.now.at < due) {
                return due.into_iter().for_each(|due| self.alarm(name, due));
            }
        }
        let Some(Following { spec, callers, .. }) = self.starts.following.remove(name) else {
            return;
        };
        let settling =
            self.tasks.get_mut(name).filter(|task| matches!(task.doing, Doing::Settling(_)));
        match (settling, run) {
            (Some(task), _) => task.callers.extend(callers),
            (None, Some(run)) => {
                let result = self.joined(name, run, &spec.kind);
                callers.into_iter().for_each(|caller| self.reply_to(caller, result.clone()));
            }
            // It came to nothing.
            (None, None) => self.place_anew(spec, callers),
        }
    }

    /// Finds a node for a new run.
    pub(super) fn place(&mut self, spec: Spec, callers: Vec<Caller>) {
        let id = self.starts.next;
        self.starts.next += 1;
        let pending = Pending {
            spec,
            callers,
            target: None,
            tried: BTreeSet::new(),
            refusal: None,
            until: self.now.at,
        };
        self.starts.by_name.insert(pending.spec.name.clone(), id);
        self.starts.by_id.insert(id, pending);
        self.place_next(id);
    }

    fn place_next(&mut self, id: u64) {
        let Some(pending) = self.starts.by_id.get(&id) else {
            return;
        };
        let (spec, tried) = (pending.spec.clone(), pending.tried.clone());
        let Some(target) = self.choose(&spec, None, &tried) else {
            let Some(pending) = self.starts.take(id) else {
                return;
            };
            let refusal = pending.refusal.unwrap_or_else(|| self.why_nobody(&spec.kind));
            for caller in pending.callers {
                self.reply_to(caller, Err(CallError::NoNode(refusal.clone())));
            }
            return;
        };
        if target == self.config.me {
            let callers = self.starts.take(id).map(|p| p.callers).unwrap_or_default();
            return self.begin(spec, callers);
        }
        let until = self.now.at + PATIENCE;
        if let Some(pending) = self.starts.by_id.get_mut(&id) {
            pending.tried.insert(target.clone());
            pending.target = Some(target.clone());
            pending.until = until;
        }
        self.send(&target, Message::Start { call: id, spec });
    }

    /// Why there is no node to start a task of a kind on.
    fn why_nobody(&self, kind: &Kind) -> Refusal {
        let runs = |record: &NodeRecord| record.kinds.contains_key(kind);
        let me = runs(&self.config.record).then_some(self.state);
        let there = || self.members.iter().filter(|(_, peer)| peer.gone.is_none());
        let able = there().filter(|(_, peer)| peer.record.as_ref().is_some_and(runs));
        let states: Vec<NodeState> = able.map(|(_, peer)| peer.state).chain(me).collect();
        let unknown = there().any(|(_, peer)| peer.record.is_none());
        match states.as_slice() {
            [] if !unknown => Refusal::Incompatible,
            states if states.contains(&NodeState::Up) => Refusal::Full,
            _ => Refusal::NotUp,
        }
    }

    /// The node to start or to receive a task, other than those tried.
    pub(super) fn choose(
        &mut self,
        spec: &Spec,
        state_version: Option<u32>,
        tried: &BTreeSet<SessionId>,
    ) -> Option<SessionId> {
        let candidates = self.candidates(spec, state_version, tried);
        let chosen = placement::choose(&spec.name, &candidates)?.clone();
        // Until its next report, count what is sent there.
        if let Some(peer) = self.members.entry(&chosen, self.now.at) {
            peer.load.running = peer.load.running.saturating_add(1);
        }
        Some(chosen)
    }

    /// The nodes that could, other than those tried.
    pub(super) fn candidates(
        &self,
        spec: &Spec,
        state_version: Option<u32>,
        tried: &BTreeSet<SessionId>,
    ) -> Vec<Candidate<'_>> {
        let mut candidates: Vec<Candidate<'_>> = self
            .members
            .iter()
            .filter(|(session, peer)| peer.is_up() && !peer.load.full && !tried.contains(*session))
            .filter_map(|(session, peer)| {
                Some(Candidate { session, record: peer.record.as_ref()?, load: peer.load })
            })
            .filter(|candidate| candidate.can_run(&spec.kind, state_version))
            .collect();
        if self.may_take(spec, state_version) && !tried.contains(&self.config.me) {
            candidates.push(Candidate {
                session: &self.config.me,
                record: &self.config.record,
                load: self.load_now(),
            });
        }
        candidates
    }

    pub(super) fn on_start(&mut self, from: &SessionId, call: u64, spec: Spec) {
        self.begin(spec, vec![Caller::There(from.clone(), call)]);
    }

    /// Starts a new run here, or joins what has come of the name since it was placed here: a
    /// `Start` can be long on its way, and what runs meanwhile must not be claimed over.
    fn begin(&mut self, spec: Spec, callers: Vec<Caller>) {
        let name = spec.name.clone();
        let here = self.tasks.get_mut(&name).filter(|t| !matches!(t.doing, Doing::Over { .. }));
        if let Some(task) = here {
            let same = same_kind(&spec.kind, &task.spec.kind);
            if matches!(task.doing, Doing::Settling(_)) && same.is_ok() {
                for caller in callers {
                    if !task.callers.contains(&caller) {
                        task.callers.push(caller);
                    }
                }
                return;
            }
            // An older run that others saw end still goes on here: it ends by theirs.
            let older = task.claim.run.number < spec.run.number;
            let result = match older {
                true => Err(CallError::NoNode(Refusal::Held(task.claim.epoch))),
                false => same.map(|()| task.claim.run),
            };
            return callers.into_iter().for_each(|caller| self.reply_to(caller, result.clone()));
        }
        let standing = self.view.standing(&name).or_else(|| self.view.owner(&name));
        if let Some(owner) = standing
            && owner.run.number >= spec.run.number
            && owner.phase != Phase::Superseded
        {
            let run = owner.run;
            if !owner.has_won() && self.claimed_elsewhere(&name).is_some() {
                return self.follow(spec, run, callers);
            }
            let result = self.joined(&name, run, &spec.kind);
            return callers.into_iter().for_each(|caller| self.reply_to(caller, result.clone()));
        }
        let refusal = match self.may_take(&spec, None) {
            _ if !self.admits(&name) => Refusal::TooManyNames,
            true => return self.claim(spec, Cause::Start, Purpose::Run, callers),
            false if self.state != NodeState::Up => Refusal::NotUp,
            false if self.is_full_for(&spec) => Refusal::Full,
            false => Refusal::Incompatible,
        };
        let result = Err(CallError::NoNode(refusal));
        callers.into_iter().for_each(|caller| self.reply_to(caller, result.clone()));
    }

    pub(super) fn on_start_reply(
        &mut self,
        from: &SessionId,
        id: u64,
        result: Result<RunId, Refusal>,
    ) {
        let Some(pending) = self.starts.by_id.get_mut(&id) else {
            return;
        };
        if pending.target.as_ref() != Some(from) {
            return;
        }
        match result {
            Ok(run) => {
                let Some(pending) = self.starts.take(id) else {
                    return;
                };
                // The caller's node keeps the spec too: one more copy outlives the owner.
                if pending.spec.run == run {
                    self.learn(pending.spec);
                }
                for caller in pending.callers {
                    self.reply_to(caller, Ok(run));
                }
            }
            // No other node would say otherwise.
            Err(Refusal::OtherKind(kind)) => {
                for caller in self.starts.take(id).map(|p| p.callers).unwrap_or_default() {
                    self.reply_to(caller, Err(CallError::OtherKind(kind.clone())));
                }
            }
            Err(refusal) => {
                pending.refusal = Some(refusal);
                self.place_next(id);
            }
        }
    }

    /// A target is gone or cut off: the next one is asked. Two claims of one run settle.
    pub(super) fn starts_lost(&mut self, session: &SessionId) {
        let lost: Vec<u64> = self
            .starts
            .by_id
            .iter()
            .filter(|(_, pending)| pending.target.as_ref() == Some(session))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            if let Some(pending) = self.starts.by_id.get_mut(&id) {
                pending.refusal = Some(Refusal::NoAnswer);
            }
            self.place_next(id);
        }
    }

    pub(super) fn starts_tick(&mut self) {
        let now = self.now.at;
        let late: Vec<u64> = self
            .starts
            .by_id
            .iter()
            .filter(|(_, pending)| now >= pending.until)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            if let Some(pending) = self.starts.by_id.get_mut(&id) {
                pending.refusal = Some(Refusal::NoAnswer);
            }
            self.place_next(id);
        }
    }

    /// Lets everybody who waits for `run` of a name go on.
    pub(super) fn answer_callers(&mut self, name: &Name, result: Result<RunId, CallError>) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        for caller in std::mem::take(&mut task.callers) {
            self.reply_to(caller, result.clone());
        }
    }

    pub(super) fn reply_to(&mut self, caller: Caller, result: Result<RunId, CallError>) {
        match caller {
            Caller::Here(call) => self.replies.push((call, result)),
            Caller::There(session, call) => {
                let result = result.map_err(|error| match error {
                    CallError::NoNode(refusal) => refusal,
                    CallError::OtherKind(kind) => Refusal::OtherKind(kind),
                    _ => Refusal::NotUp,
                });
                self.send(&session, Message::StartReply { call, result });
            }
        }
    }
}
