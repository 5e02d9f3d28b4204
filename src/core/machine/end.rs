//! A task stops or ends; its record is replicated before anybody is told (Rules 12 and 15).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::Machine;
use super::task::{Doing, Task, Why};
use crate::core::branch::Header;
use crate::core::claim::{Claim, Phase, Spec, Want};
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::io::{Action, CallError, Notice, Outcome, Stop, Stuck};
use crate::core::lease::Epoch;
use crate::core::limits;
use crate::core::message::Message;
use crate::core::stored::StoredEnd;

impl Machine {
    /// Tells a loop to stop; what does not run is dealt with at once.
    pub(super) fn stop_for(&mut self, name: &Name, why: Why, grace: Duration) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        match &mut task.doing {
            Doing::Running => {
                task.doing = Doing::Stopping(why);
                self.push(Action::Stop { name: name.clone(), how: Stop::Boundary { grace } });
            }
            Doing::Stopping(standing) => {
                // A loop that waits for a transfer slot is hurried; the graver reason stands.
                let hurry = matches!(standing, Why::Transfer | Why::Reconcile);
                if hurry || matches!(why, Why::Lost | Why::Cancel) {
                    *standing = why;
                    self.push(Action::Stop { name: name.clone(), how: Stop::Boundary { grace } });
                }
            }
            Doing::Settling(_)
            | Doing::Finding(_)
            | Doing::Fetching { .. }
            | Doing::Reconciling(_)
            | Doing::Kept => {
                self.stopped(name, why);
            }
            Doing::Incoming { transferred: None, .. } => self.stopped(name, why),
            Doing::Incoming { .. }
            | Doing::Sealing { .. }
            | Doing::Parting { .. }
            | Doing::Moving { .. }
            | Doing::Ending { .. }
            | Doing::Over { .. } => {}
        }
    }

    pub(super) fn on_stopped(
        &mut self,
        name: &Name,
        epoch: Epoch,
        sealed: Option<(Header, Bytes)>,
        _dropped: bool,
    ) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        if !task.is_of_loop(epoch) {
            return;
        }
        let why = match &task.doing {
            Doing::Stopping(why) => why.clone(),
            // Its target may still take it.
            _ if task.hand.is_some() => Why::Transfer,
            _ => Why::Release,
        };
        self.keep_sealed(name, sealed);
        self.stopped(name, why);
    }

    /// Nothing of the task runs here: what the stop was for happens.
    fn stopped(&mut self, name: &Name, why: Why) {
        match why {
            Why::Transfer => self.seal(name),
            Why::Release => self.part(name),
            Why::Yield { to } => self.yielded(name, &to),
            Why::Lost => self.lost(name),
            Why::Reconcile => self.gather_branches(name),
            Why::Pause => {
                if let Some(task) = self.tasks.get_mut(name) {
                    task.claim.phase = Phase::Paused;
                    task.doing = Doing::Kept;
                    self.publish(name);
                }
            }
            Why::Cancel => self.end(name, Phase::Cancelled, None, String::new()),
        }
    }

    pub(super) fn on_unstoppable(&mut self, name: &Name, epoch: Epoch) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        // Told when a drain gives up on it, and again by its loop.
        if task.is_of_loop(epoch) && !task.unstoppable {
            task.unstoppable = true;
            self.tell(Notice::Unstoppable { name: name.clone() });
        }
    }

    /// Its claim says so: who takes it over from a node that dies meanwhile knows that it is not to
    /// blame (Rule 26).
    pub(super) fn on_resting(&mut self, name: &Name, epoch: Epoch, resting: bool) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        if task.is_of_loop(epoch) && task.claim.resting != resting {
            task.claim.resting = resting;
            self.publish(name);
        }
    }

    pub(super) fn on_ended(&mut self, name: &Name, epoch: Epoch, outcome: Outcome) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        if !task.is_of_loop(epoch) {
            return;
        }
        match &task.doing {
            Doing::Stopping(Why::Lost) => return self.lost(name),
            // The winner may be past what failed here (Rule 9).
            Doing::Stopping(why @ Why::Yield { .. }) if matches!(outcome, Outcome::Failed(_)) => {
                let why = why.clone();
                return self.stopped(name, why);
            }
            _ => {}
        }
        let (phase, output, note) = match outcome {
            Outcome::Done(output) => (Phase::Finished, Some(output), String::new()),
            Outcome::Failed(error) => (Phase::Failed, None, error),
        };
        self.end(name, phase, output, note);
    }

    pub(super) fn on_stuck(
        &mut self,
        name: &Name,
        epoch: Epoch,
        sealed: Option<(Header, Bytes)>,
        why: Stuck,
    ) {
        if !self.tasks.get(name).is_some_and(|task| task.is_of_loop(epoch)) {
            return;
        }
        self.keep_sealed(name, sealed);
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        // It has stopped, which is all that those reasons ask for.
        if let Doing::Stopping(told @ (Why::Lost | Why::Yield { .. } | Why::Cancel)) = &task.doing {
            let told = told.clone();
            return self.stopped(name, told);
        }
        let latest = task.latest.as_ref();
        let (until_resumed, why) = match why {
            // A build that claims to read it and cannot is no reason to try the next one.
            Stuck::Unreadable(why) => {
                (latest.is_none_or(|header| self.reads(&header.kind, header.state_version)), why)
            }
            Stuck::Unkeepable(why) => (true, why),
        };
        self.withdraw_offer(name);
        self.park(name, until_resumed, &why);
    }

    /// What a loop left behind is the newest there is of its task.
    fn keep_sealed(&mut self, name: &Name, sealed: Option<(Header, Bytes)>) {
        if let Some((header, state)) = sealed
            && let Some(task) = self.tasks.get_mut(name)
        {
            let spec = task.spec.clone();
            task.latest = Some(header.clone());
            task.bytes = Some(state.clone());
            self.keep(&spec, header, state, None);
        }
    }

    /// Ends a run here: stored and replicated first, published and told then.
    pub(super) fn end(&mut self, name: &Name, phase: Phase, output: Option<Bytes>, note: String) {
        self.withdraw_offer(name);
        let until = self.now.at + self.config.timing.convergence();
        let targets = self.replica_targets(name);
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let mut waiting: BTreeSet<SessionId> =
            task.replicas.iter().filter(|s| !self.members.is_gone(s)).cloned().collect();
        if waiting.is_empty() {
            waiting.extend(targets);
        }
        let mut claim = task.claim.clone();
        claim.phase = phase;
        claim.note = limits::clipped(note, Claim::MAX_NOTE);
        task.doing = Doing::Ending {
            output: output.clone(),
            stored: false,
            waiting: waiting.clone(),
            acked: BTreeSet::new(),
            widened: false,
            until,
        };
        task.claim.note.clone_from(&claim.note);
        let spec = task.spec.clone();
        self.set_end(claim.clone(), self.now.at);
        self.bare.remove(name);
        self.forget_runs(name, claim.run);
        self.store_end(spec.clone(), output.clone(), None);
        for to in waiting {
            let (claim, spec, output) = (claim.clone(), spec.clone(), output.clone());
            self.send(&to, Message::Ended { claim, spec, output, age: Duration::ZERO });
        }
        self.alarm(name, until);
    }

    /// An end that is being replicated: is it where it must be?
    pub(super) fn look_ending(&mut self, name: &Name) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let Doing::Ending { stored, waiting, until, acked, widened, .. } = &task.doing else {
            return;
        };
        let late = self.now.at >= *until;
        if !(*stored && waiting.is_empty() || late) {
            let until = *until;
            return self.alarm(name, until);
        }
        let (stored, acked) = (*stored, acked.clone());
        if acked.is_empty() && !*widened && self.widen_end(name) {
            return;
        }
        // Held by nobody, it would be as if it had not happened (Rule 12).
        if !stored && acked.is_empty() {
            return self.store_end_again(name);
        }
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let Some((end, _)) = self.ends.get(name) else {
            return;
        };
        task.claim.phase = end.phase.clone();
        task.claim.note.clone_from(&end.note);
        task.claim.replicas = acked.iter().map(|session| session.node.clone()).collect();
        task.doing = Doing::Over { dominated: None };
        let (phase, run) = (task.claim.phase.clone(), task.claim.run);
        self.publish(name);
        self.answer_for_end(name, acked);
        self.answer_callers(name, Ok(run));
        self.tell(Notice::Ended { name: name.clone(), phase });
        let retention = self.config.timing.retention;
        self.alarm_in(name, retention);
    }

    /// Keeps the end that is known of a name, with when it was.
    pub(super) fn store_end(&mut self, spec: Spec, output: Option<Bytes>, from: Option<SessionId>) {
        let Some((claim, since)) = self.ends.get(&spec.name) else {
            return;
        };
        let at = self.now.unix.saturating_sub(self.now.at.since(*since).as_secs());
        let end = StoredEnd { claim: claim.clone(), at };
        self.unstored.insert(spec.name.clone());
        self.push(Action::StoreEnd { end, spec, output, from });
    }

    /// Neither the store nor any peer has taken the end: it is tried until one does.
    fn store_end_again(&mut self, name: &Name) {
        let by = self.now.at + self.config.timing.convergence();
        let Some((claim, _)) = self.ends.get(name).cloned() else {
            return;
        };
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let spec = task.spec.clone();
        let Doing::Ending { output, waiting, until, .. } = &mut task.doing else {
            return;
        };
        *until = by;
        let (output, waiting) = (output.clone(), waiting.clone());
        self.store_end(spec.clone(), output.clone(), None);
        for to in waiting {
            let (claim, spec, output) = (claim.clone(), spec.clone(), output.clone());
            self.send(&to, Message::Ended { claim, spec, output, age: Duration::ZERO });
        }
        self.alarm(name, by);
    }

    /// No replica has taken the end: any other live node will do. False if there is none.
    fn widen_end(&mut self, name: &Name) -> bool {
        let Some((claim, _)) = self.ends.get(name).cloned() else {
            return false;
        };
        let live: BTreeSet<SessionId> = self.members.live().cloned().collect();
        let by = self.now.at + self.config.timing.convergence();
        let Some(task) = self.tasks.get_mut(name) else {
            return false;
        };
        let spec = task.spec.clone();
        let Doing::Ending { output, waiting, widened, until, .. } = &mut task.doing else {
            return false;
        };
        *widened = true;
        let others: Vec<SessionId> = live.difference(waiting).cloned().collect();
        if others.is_empty() {
            return false;
        }
        *waiting = live;
        *until = by;
        let output = output.clone();
        for to in others {
            let (claim, spec, output) = (claim.clone(), spec.clone(), output.clone());
            self.send(&to, Message::Ended { claim, spec, output, age: Duration::ZERO });
        }
        self.alarm(name, by);
        true
    }

    pub(super) fn on_stored_end(
        &mut self,
        name: &Name,
        run: RunId,
        from: Option<SessionId>,
        error: Option<String>,
    ) {
        if let Some(why) = &error {
            let text = format!("the end of {name} could not be stored: {why}");
            self.tell(Notice::Unstored { text, elsewhere: false });
        } else if self.ends.get(name).is_none_or(|(end, _)| end.run == run) {
            self.unstored.remove(name);
        }
        match from {
            Some(from) if error.is_none() => {
                self.send(&from, Message::EndedReply { name: name.clone(), run });
            }
            Some(_) => {}
            None => {
                if let Some(task) = self.tasks.get_mut(name)
                    && let Doing::Ending { stored, .. } = &mut task.doing
                {
                    *stored |= error.is_none();
                    self.dirty.insert(name.clone());
                }
            }
        }
    }

    pub(super) fn on_ended_reply(&mut self, from: &SessionId, name: &Name, run: RunId) {
        let ending = |task: &&mut Box<Task>| {
            matches!(task.doing, Doing::Ending { .. }) && task.claim.run == run
        };
        let Some(task) = self.tasks.get_mut(name).filter(ending) else {
            return self.copied(from, name, run);
        };
        if let Doing::Ending { waiting, acked, widened, .. } = &mut task.doing
            && waiting.remove(from)
        {
            acked.insert(from.clone());
            // Of those asked in the replicas' stead one is enough.
            if *widened {
                waiting.clear();
            }
            self.dirty.insert(name.clone());
        }
    }

    /// A replica is told of an end.
    pub(super) fn on_ended_elsewhere(
        &mut self,
        from: &SessionId,
        claim: Claim,
        spec: Spec,
        output: Option<Bytes>,
        age: Duration,
    ) {
        if !claim.phase.is_terminal() || spec.name != claim.name || spec.run != claim.run {
            return;
        }
        let name = claim.name.clone();
        // Who fails below a live claim hears of that by gossip.
        if !self.admits(&name) || self.is_revoked(&claim) {
            return;
        }
        self.view.raise(&name, claim.epoch);
        self.learn(spec.clone());
        let known = self.ends.get(&name).is_some_and(|(end, _)| !claim.beats(end));
        let held = known && !(output.is_some() && self.bare.contains(&name));
        if output.is_some() || claim.phase != Phase::Finished {
            // It holds what it has sent.
            self.copied(from, &name, claim.run);
        }
        if held && self.unstored.contains(&name) {
            // It is acknowledged when it is stored.
            return self.store_end(spec, output, Some(from.clone()));
        }
        if held {
            return self.send(from, Message::EndedReply { name, run: claim.run });
        }
        // What it brought may be held here by an end of another publisher.
        let same = |end: &Claim| end.run == claim.run && end.epoch == claim.epoch;
        let here =
            self.ends.get(&name).is_some_and(|(end, _)| same(end) && end.phase == claim.phase)
                && !self.bare.contains(&name);
        if output.is_none() && claim.phase == Phase::Finished && !here {
            self.bare.insert(name.clone());
        } else {
            self.bare.remove(&name);
        }
        // Only its output was missing.
        if !known {
            self.set_end(claim.clone(), self.now.at.back(age));
        }
        self.forget_runs(&name, claim.run);
        let retention = self.config.timing.retention;
        self.alarm_in(&name, retention);
        self.store_end(spec, output, Some(from.clone()));
        self.dirty.insert(name);
    }

    /// Whether a terminal record is still to be read.
    pub(super) fn is_retained(&self, name: &Name) -> bool {
        // Whoever holds the record knows its age, and says when it is over.
        let over = self.view.ended(name).is_some_and(|end| end.expired);
        !over
            && self
                .ends
                .get(name)
                .is_none_or(|(_, at)| self.now.at.since(*at) < self.config.timing.retention)
    }

    /// Another run of the name has won, or this run has ended elsewhere: nothing of it goes on.
    pub(super) fn lost(&mut self, name: &Name) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let run = task.claim.run;
        task.claim.phase = Phase::Superseded;
        task.doing = Doing::Over { dominated: None };
        self.publish(name);
        self.answer_callers(name, Err(CallError::Superseded));
        let ended = self.view.claims(name).any(|c| c.run == run && c.phase.is_terminal());
        if ended {
            self.tell(Notice::Reborn { name: name.clone() });
        } else {
            self.tell(Notice::Ended { name: name.clone(), phase: Phase::Superseded });
        }
    }

    /// What the user wants of the newest run of a name.
    pub(super) fn wanted(&self, name: &Name) -> Want {
        let run = self.tasks.get(name).map(|task| task.claim.run);
        self.desires
            .get(name)
            .filter(|desired| run.is_none_or(|run| run == desired.run))
            .map_or(Want::Run, |desired| desired.want)
    }
}
