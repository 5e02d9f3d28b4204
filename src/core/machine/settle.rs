//! Nothing starts without settling (Rule 13): the claim is published, all live peers are asked at
//! once, and the task starts when all have answered or `R_eta` has passed for those that have not.

use std::collections::BTreeSet;

use litemap::LiteMap;

use super::task::{Caller, Doing, Prior, Purpose, Settling, Task};
use super::{MAX_BURIED, Machine, Needs};
use crate::core::branch::higher;
use crate::core::claim::{Claim, Phase, Spec, Want};
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::io::{CallError, Cause, Notice};
use crate::core::lease::Epoch;
use crate::core::limits;
use crate::core::message::{Answer, Verdict};

impl Machine {
    /// Publishes a claim above everything seen of the name and asks about it.
    pub(super) fn claim(
        &mut self,
        spec: Spec,
        cause: Cause,
        purpose: Purpose,
        callers: Vec<Caller>,
    ) {
        let name = spec.name.clone();
        let top = self.view.top(&name).cloned();
        let same_run = top.as_ref().filter(|top| top.run == spec.run);
        // A claim that steps over another one is the same attempt as before.
        let carried = self
            .tasks
            .get(&name)
            .filter(|old| old.claim.run == spec.run && matches!(old.doing, Doing::Settling(_)))
            .map(|old| {
                let (keep, from) = (old.keep.clone(), old.from.clone());
                (old.claim.strikes, old.prior.epoch, keep, from, old.freed)
            });
        let mut prior = self.prior(&name, spec.run, same_run);
        let keep = same_run
            .filter(|top| cause != Cause::Unparked && top.phase.waits_for_resume())
            .map(|top| top.phase.clone());
        let ran = cause == Cause::Crash && same_run.is_some_and(|top| top.phase == Phase::Running);
        let strikes = match same_run {
            Some(top) if ran && self.progressed(top) => 0,
            // It was inside a step: that may have been the end of its node.
            Some(top) if ran && !top.resting => top.strikes.saturating_add(1),
            Some(top) => top.strikes,
            None => 0,
        };
        // What was accepted before it is settled comes from its source.
        let offered = self
            .tasks
            .get(&name)
            .filter(|old| matches!(old.doing, Doing::Incoming { .. }))
            .and_then(|old| old.from.clone());
        let from = offered.or_else(|| self.had_before(&name, spec.run));
        let (strikes, keep, from, freed) = match carried {
            Some((strikes, ran, keep, from, freed)) => {
                prior.epoch = ran;
                (strikes, keep, from, freed)
            }
            None => (strikes, keep, from, None),
        };
        let epoch = self.next_epoch(&name);
        let claim = Claim {
            name: name.clone(),
            session: self.config.me.clone(),
            number: self.take_number(),
            version: 0,
            run: spec.run,
            epoch,
            phase: Phase::Claimed,
            terms: self.terms(),
            replicas: prior.replicas.clone(),
            floor: prior.floor.clone(),
            checkpointed: prior.checkpointed,
            strikes,
            note: String::new(),
            heeded: same_run.map_or(0, |top| top.heeded),
            expired: false,
            resting: false,
        };
        let mut callers = callers;
        if let Some(old) = self.tasks.get_mut(&name) {
            self.holding.remove(old.claim.number);
            callers.append(&mut old.callers);
        }
        let until = self.now.at + self.patience(self.config.timing.convergence());
        let (asked, waiting) = (BTreeSet::new(), BTreeSet::new());
        let doing = Doing::Settling(Settling { asked, waiting, answered: 0, until, purpose });
        let older = purpose == Purpose::Older;
        let record = Task::record(claim, spec.clone(), doing);
        let task = Task { cause, freed, from, callers, prior, keep, older, ..record };
        self.tasks.insert(name.clone(), Box::new(task));
        self.set_spec(spec.clone());
        self.push(crate::core::io::Action::PublishSpec(spec));
        self.publish_desired(&name);
        self.publish(&name);
        let mut ask: BTreeSet<SessionId> = self.members.asked().cloned().collect();
        ask.extend(self.askers.get(&name).into_iter().flat_map(|askers| askers.iter().cloned()));
        self.ask(&name, ask);
        self.alarm(&name, until);
    }

    /// An epoch above every one seen; where no claim of the name is known, also above what a forgotten
    /// past can have reached (Rule 10): a checkpoint does not tell how often the name changed hands
    /// after it.
    pub(super) fn next_epoch(&self, name: &Name) -> Epoch {
        // Of what is held here too: no checkpoint is kept but its epoch is seen.
        let above = self.view.epoch(name).map_or(Epoch(1), Epoch::next);
        match self.view.top(name) {
            Some(_) => above,
            None => above.max(Epoch(self.now.unix)),
        }
    }

    pub(super) fn take_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// The other session that has had a run last. What this one had accepted, and not begun, is no
    /// having had it.
    fn had_before(&self, name: &Name, run: RunId) -> Option<SessionId> {
        let mine = self.tasks.get(name).filter(|task| task.claim.run == run);
        let ran_here = mine.is_some_and(|task| task.began > Epoch(0));
        let counts =
            |claim: &&Claim| claim.run == run && (ran_here || claim.session != self.config.me);
        let last = self.view.claims(name).filter(counts).max_by(|a, b| a.order(b))?;
        Some(last.session.clone()).filter(|last| *last != self.config.me)
    }

    /// What is known of the state of a run that is to be taken over.
    fn prior(&self, name: &Name, run: RunId, top: Option<&Claim>) -> Prior {
        let Some(top) = top else {
            let held = self.held.get(name).and_then(|runs| runs.get(&run));
            let held = held.is_some_and(|branches| !branches.is_empty());
            // What the disk shows of another run says nothing of this one.
            let offered = self.boot.offered(name) == Some(run);
            let checkpointed = offered && (held || self.boot.has_lost(name));
            return Prior { checkpointed, ..Prior::default() };
        };
        // Claims of one run can differ in what they know of its state: take the safest of all.
        let same = || self.view.claims(name).filter(|claim| claim.run == top.run);
        let mut replicas = top.replicas.clone();
        for claim in same() {
            let source = matches!(claim.phase, Phase::Transferred { .. } | Phase::Released);
            for node in claim.replicas.iter().chain(source.then_some(&claim.session.node)) {
                if !replicas.contains(node) && replicas.len() < limits::OF_ONE {
                    replicas.push(node.clone());
                }
            }
        }
        Prior {
            replicas,
            holders: LiteMap::new(),
            floor: same().map(|claim| claim.floor.clone()).fold(None, higher),
            checkpointed: same().any(|claim| claim.checkpointed),
            session: Some(top.session.clone()),
            epoch: Some(top.epoch),
        }
    }

    /// Whether a checkpoint held here shows that the owner of a claim committed anything.
    fn progressed(&self, claim: &Claim) -> bool {
        self.held
            .get(&claim.name)
            .and_then(|runs| runs.get(&claim.run))
            .is_some_and(|branches| branches.iter().any(|h| h.position.epoch >= claim.epoch))
    }

    /// Asks those of `sessions` that were not asked yet.
    fn ask(&mut self, name: &Name, sessions: impl IntoIterator<Item = SessionId>) {
        let me = self.config.me.clone();
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let ask = task.question();
        let Doing::Settling(settling) = &mut task.doing else {
            return;
        };
        for session in sessions {
            if session == me || self.members.is_gone(&session) {
                continue;
            }
            if settling.asked.insert(session.clone()) {
                settling.waiting.insert(session.clone());
                self.asks.entry(session).or_default().push(ask.clone());
            }
        }
        if settling.waiting.is_empty() {
            self.dirty.insert(name.clone());
        }
    }

    /// `run` returns once a peer knows the spec, where one lives: until then it is asked again.
    pub(super) fn look_callers(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else { return };
        if task.callers.is_empty() {
            return;
        }
        let (run, ask) = (task.claim.run, task.question());
        let live: Vec<SessionId> = self.members.live().cloned().collect();
        if live.is_empty() {
            return self.answer_callers(name, Ok(run));
        }
        for session in live {
            self.asks.entry(session).or_default().push(ask.clone());
        }
        self.alarm_in(name, self.config.timing.convergence());
    }

    /// Asks a peer again whose link has come up.
    pub(super) fn ask_again(&mut self, session: &SessionId) {
        for task in self.tasks.values() {
            if let Doing::Settling(settling) = &task.doing
                && settling.waiting.contains(session)
            {
                self.asks.entry(session.clone()).or_default().push(task.question());
            }
        }
    }

    /// A session is gone: nobody waits for its answer.
    pub(super) fn settle_gone(&mut self, session: &SessionId) {
        for (name, task) in &mut self.tasks {
            let waiting = match &mut task.doing {
                Doing::Settling(settling) => &mut settling.waiting,
                Doing::Finding(finding) => &mut finding.waiting,
                Doing::Ending { waiting, .. } => waiting,
                _ => continue,
            };
            if waiting.remove(session) {
                self.dirty.insert(name.clone());
            }
        }
    }

    pub(super) fn on_answer(&mut self, from: &SessionId, answer: Answer) {
        let name = answer.name;
        let me = self.config.me.clone();
        for claim in answer.known {
            if claim.name == name {
                self.learn_claim(claim);
            }
        }
        let Some(task) = self.tasks.get_mut(&name) else {
            return;
        };
        if task.claim.epoch != answer.epoch {
            return;
        }
        let run = task.claim.run;
        if let Some(held) = answer.held {
            task.prior.holders.insert(from.clone(), held);
        }
        let Doing::Settling(settling) = &mut task.doing else {
            // It started unanswered; now a peer knows the spec.
            return self.answer_callers(&name, Ok(run));
        };
        match answer.verdict {
            // A run before mine had ended where mine was numbered: whoever still runs it steps back.
            Verdict::Held(claim) if claim.run.number < run.number => {
                if settling.waiting.remove(from) {
                    settling.answered += 1;
                }
                if claim.name == name {
                    self.learn_claim(*claim);
                }
            }
            Verdict::Held(claim) => {
                if claim.name == name {
                    self.withdraw(&name, *claim);
                }
                return;
            }
            Verdict::Buried if self.is_laid_to_rest(&name) => return,
            Verdict::Ok | Verdict::Yields | Verdict::Buried => {
                let Some(Doing::Settling(settling)) =
                    self.tasks.get_mut(&name).map(|task| &mut task.doing)
                else {
                    return;
                };
                if settling.waiting.remove(from) {
                    settling.answered += 1;
                }
            }
        }
        let others: Vec<SessionId> =
            answer.askers.into_iter().filter(|asker| *asker != me).take(64).collect();
        self.ask(&name, others);
        self.dirty.insert(name);
    }

    /// A peer has buried the session that a name would be taken over from: its claims are void, and
    /// where nobody else ever spoke of the name there is nothing to take over (Rule 24). False if
    /// that session was heard of lately, or others have had the name.
    fn is_laid_to_rest(&mut self, name: &Name) -> bool {
        let Some(dead) = self.tasks.get(name).and_then(|task| task.prior.session.clone()) else {
            return false;
        };
        let floor = self.config.timing.silence_floor;
        let fresh = self.members.get(&dead).is_some_and(|p| self.now.at.since(p.news) < floor);
        if fresh || dead == self.config.me || self.buried.len() >= MAX_BURIED {
            return false;
        }
        self.bury(&dead);
        let (me, buried) = (&self.config.me, &self.buried);
        let stands = |c: &Claim| c.session != *me && !buried.contains_key(&c.session);
        if self.view.claims(name).any(stands) {
            return false;
        }
        if let Some(task) = self.tasks.get_mut(name) {
            // Not released: nobody is to take it up.
            task.claim.phase = Phase::Superseded;
            task.doing = Doing::Over { dominated: None };
        }
        self.publish(name);
        self.answer_callers(name, Err(CallError::Superseded));
        true
    }

    /// Steps back for a claim that holds the name, and lets `run` return that run.
    pub(super) fn withdraw(&mut self, name: &Name, holder: Claim) {
        let (run, won) = (holder.run, holder.has_won() || holder.session == self.config.me);
        if holder.session != self.config.me {
            self.learn_claim(holder);
        }
        self.release_claim(name);
        // Another job has the name: this one has ended (Rule 8), and nobody takes it up again.
        if let Some(task) = self.tasks.get_mut(name)
            && task.claim.run != run
        {
            task.claim.phase = Phase::Superseded;
            self.publish(name);
        }
        if won {
            return self.answer_callers(name, Ok(run));
        }
        // Nor is the other one settled.
        if let Some(task) = self.tasks.get_mut(name) {
            let (spec, callers) = (task.spec.clone(), std::mem::take(&mut task.callers));
            self.follow(spec, run, callers);
        }
    }

    /// A settling task: is it settled, or has something better turned up?
    pub(super) fn look_settling(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Doing::Settling(settling) = &task.doing else {
            return;
        };
        if let Some(better) = self.better_than(name, &task.claim) {
            return self.withdraw(name, better);
        }
        // A claim that need only be stepped over: claim again above it.
        let above = self.view.epoch(name).is_some_and(|seen| seen > task.claim.epoch);
        let over = self.view.claims(name).any(|other| {
            other.beats(&task.claim) && (other.phase.is_free() || self.is_void(other))
        });
        if above && over {
            let (spec, cause, purpose) = (task.spec.clone(), task.cause, settling.purpose);
            return self.claim(spec, cause, purpose, Vec::new());
        }
        let (until, unanswered) = (settling.until, !settling.waiting.is_empty());
        if unanswered && self.now.at < until {
            self.alarm(name, until);
        } else if unanswered && self.is_unheard(task.cause) {
            self.wait_to_be_heard(name);
        } else {
            self.settled(name);
        }
    }

    /// Whether a name that others have had is not to be taken on for lack of answers: nobody hears this node, which
    /// may be cut off from who has the name by now (S2).
    pub(super) fn is_unheard(&self, cause: Cause) -> bool {
        matches!(cause, Cause::Crash | Cause::Released)
            && !self.members.may_settle_unanswered(self.now.at)
    }

    /// Waits for answers as long again.
    pub(super) fn wait_to_be_heard(&mut self, name: &Name) {
        let until = self.now.at + self.config.timing.convergence();
        match self.tasks.get_mut(name).map(|task| &mut task.doing) {
            Some(Doing::Settling(settling)) => settling.until = until,
            Some(Doing::Finding(finding)) => {
                (finding.until, finding.give_up) = (until, until + self.config.timing.state_wait);
            }
            _ => return,
        }
        self.alarm(name, until);
    }

    /// A claim of a live session, or an end, that a claimant must step back for.
    fn better_than(&self, name: &Name, mine: &Claim) -> Option<Claim> {
        self.view
            .claims(name)
            .filter(|other| other.session != mine.session)
            .find(|other| {
                other.ends(mine)
                    || (other.phase.is_held() && other.beats(mine) && !self.is_void(other))
            })
            .cloned()
    }

    /// Steps back for a claim above this one's that has begun, as that of an owner that has met it and runs on, or for
    /// an end: what has not started is in nobody's way.
    pub(super) fn yields_before_it_starts(&mut self, name: &Name) -> bool {
        let task = self.tasks.get(name);
        let better = task.and_then(|task| self.better_than(name, &task.claim));
        let better = better.filter(|other| other.phase.is_terminal() || other.phase.has_begun());
        better.map(|better| self.withdraw(name, better)).is_some()
    }

    /// A claim of a session that is gone or buried holds nothing.
    pub(super) fn is_void(&self, claim: &Claim) -> bool {
        claim.session != self.config.me
            && (self.members.is_gone(&claim.session) || self.buried.contains_key(&claim.session))
    }

    /// All have answered: the name is mine.
    fn settled(&mut self, name: &Name) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let Doing::Settling(settling) = &task.doing else {
            return;
        };
        let purpose = settling.purpose;
        let acknowledged = settling.answered > 0 || settling.asked.is_empty();
        let run = task.claim.run;
        if acknowledged {
            self.answer_callers(name, Ok(run));
        }
        if !self.hold_back(name, purpose) {
            self.recover(name);
        }
    }

    /// Keeps a name that is mine now instead of running it, or ends it, where that is what is wanted
    /// of it. False if it is to run.
    pub(super) fn hold_back(&mut self, name: &Name, purpose: Purpose) -> bool {
        let want = self.wanted(name);
        let version = self.tasks.get(name).and_then(|task| self.state_version(task));
        let Some(task) = self.tasks.get_mut(name) else {
            return true;
        };
        let (phase, note) = match (want, task.keep.take()) {
            (Want::Cancel, _) => {
                self.end(name, Phase::Cancelled, None, String::new());
                return true;
            }
            (_, Some(keep)) => (keep, "it was parked until somebody resumes it".to_owned()),
            (Want::Pause, None) => (Phase::Paused, String::new()),
            (Want::Run, None) if purpose == Purpose::Custody => {
                let why = Needs::Node(task.spec.kind.clone(), version).why();
                (Phase::Parked { until_resumed: false }, why)
            }
            (Want::Run, None) => return false,
        };
        self.keep_as(name, phase, note);
        true
    }

    /// Holds a name without running it.
    pub(super) fn keep_as(&mut self, name: &Name, phase: Phase, note: String) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        task.claim.phase = phase.clone();
        task.claim.note = limits::clipped(note.clone(), Claim::MAX_NOTE);
        task.doing = Doing::Kept;
        task.parking.get_or_insert_default().since = Some(self.now.at);
        // What is kept is replicated as what runs is: this may be the last copy.
        if task.latest.is_none() {
            let runs = self.held.get(name);
            let branches = runs.and_then(|runs| runs.get(&task.claim.run));
            task.latest = branches.and_then(|b| b.best_from(task.claim.floor.as_ref())).cloned();
        }
        self.keep_run(name);
        self.publish(name);
        match phase {
            Phase::Quarantined => self.tell(Notice::Quarantined { name: name.clone() }),
            Phase::Parked { .. } => self.tell(Notice::Parked { name: name.clone(), why: note }),
            _ => {}
        }
    }
}
