//! Handing one name over with its state (Rule 18): offer, stop, seal, `Transferred`, taken.
//!
//! `Transferred` in the source's own claims is the single decision. Before it, anything that goes
//! wrong leaves the name with the source; after it, the source never runs that epoch again.

use std::time::Duration;

use bytes::Bytes;

use super::Machine;
use super::recover::transfer_time;
use super::task::{Caller, Doing, Hand, Prior, Purpose, Task, Why};
use crate::core::branch::{Branches, Header};
use crate::core::claim::{Claim, Desired, Phase, Spec};
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::io::{Action, Cause, Notice, Stop};
use crate::core::lease::Epoch;
use crate::core::message::{Message, Refusal};
use crate::core::record::NodeState;

/// What an offer is about, beside the claim and the spec.
#[derive(Clone, Copy, Debug)]
pub(super) struct OfferTerms {
    /// The epoch the target would have.
    pub epoch: Epoch,
    /// Nothing runs at the source.
    pub idle: bool,
    /// The version of the newest state, if there is one.
    pub version: Option<u32>,
    pub cause: Cause,
}

/// After this long without an answer an offer goes to the next node, and a decision is told again.
const RESEND: Duration = Duration::from_millis(500);

impl Machine {
    // ---- the source -----------------------------------------------------------------------

    /// Offers a name to the best node that was not tried yet. False if there is none.
    pub(super) fn offer(&mut self, name: &Name) -> bool {
        let Some(task) = self.tasks.get(name) else {
            return false;
        };
        let mut tried = task.hand.as_ref().map(|hand| hand.tried.clone()).unwrap_or_default();
        tried.insert(self.config.me.clone());
        let version = task.latest.as_ref().map(|header| header.state_version);
        let parked = task.claim.phase == (Phase::Parked { until_resumed: false });
        let (spec, idle, current) = (task.spec.clone(), !task.runs(), task.claim.epoch);
        let Some(to) = self.choose(&spec, version, &tried) else {
            return false;
        };
        tried.insert(to.clone());
        let record = self.members.get(&to).and_then(|peer| peer.record.as_ref());
        let cause = match record.is_some_and(|record| self.is_older(&record.revision)) {
            _ if parked => Cause::Unparked,
            true => Cause::Rollback,
            false => Cause::Drain,
        };
        let epoch = self.next_epoch(name);
        if current >= epoch {
            // There is no higher one that the target could have: the name is released instead.
            return false;
        }
        self.view.raise(name, epoch);
        let since = self.now.at;
        let Some(task) = self.tasks.get_mut(name) else {
            return false;
        };
        task.hand = Some(Hand { to: to.clone(), epoch, accepted: false, since, tried });
        let claim = task.claim.clone();
        let desired = self.desires.get(name).filter(|d| d.run == spec.run).cloned();
        self.send(&to, Message::Offer { claim, epoch, spec, desired, idle, version, cause });
        self.alarm_in(name, RESEND);
        true
    }

    /// Takes an open offer back.
    pub(super) fn withdraw_offer(&mut self, name: &Name) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        if matches!(task.doing, Doing::Moving { .. }) {
            return;
        }
        if let Some(hand) = task.hand.take() {
            self.push(Action::FreeSlot(name.clone()));
            self.send(&hand.to, Message::Withdraw { name: name.clone(), epoch: hand.epoch });
        }
    }

    pub(super) fn on_offer_reply(
        &mut self,
        from: &SessionId,
        name: &Name,
        epoch: Epoch,
        result: Result<(), Refusal>,
    ) {
        let is_open = |hand: &Hand| hand.to == *from && hand.epoch == epoch;
        let offered = |task: &&mut Box<Task>| task.hand.as_ref().is_some_and(is_open);
        let Some(task) = self.tasks.get_mut(name).filter(offered) else {
            // Taken back, and the word of that was lost: whoever has accepted must not wait for ever.
            if result.is_ok() {
                self.send(from, Message::Withdraw { name: name.clone(), epoch });
            }
            return;
        };
        let Some(hand) = &mut task.hand else { return };
        match result {
            Ok(()) if hand.accepted => {}
            Ok(()) => {
                hand.accepted = true;
                let doing = task.doing.clone();
                self.load_pins(name);
                let Some(task) = self.tasks.get_mut(name) else {
                    return;
                };
                match doing {
                    Doing::Running => {
                        task.doing = Doing::Stopping(Why::Transfer);
                        let how = Stop::WithSlot;
                        self.push(Action::Stop { name: name.clone(), how });
                    }
                    Doing::Kept => self.seal(name),
                    // The target of a decided transfer is gone; this is the next one.
                    Doing::Moving { .. } => self.seal(name),
                    _ => {}
                }
            }
            Err(refusal) => {
                if let Refusal::Held(held) = refusal {
                    self.view.raise(name, held);
                }
                self.offer_failed(name);
            }
        }
    }

    /// The target will not have it: the next one, or none.
    pub(super) fn offer_failed(&mut self, name: &Name) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        match task.doing {
            Doing::Sealing { .. } => task.doing = Doing::Kept,
            Doing::Moving { .. } => {}
            _ if task.hand.is_none() => return,
            _ => {}
        }
        if !self.offer(name) {
            self.unplaced(name);
        }
    }

    /// Nobody takes it. A node that drains releases it at its next boundary; another keeps it.
    fn unplaced(&mut self, name: &Name) {
        let draining = self.drain.is_some();
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        task.hand = None;
        self.actions.push_back(Action::FreeSlot(name.clone()));
        match task.doing {
            Doing::Moving { .. } => {
                // Decided, and its target is gone: whoever can may have it (Rule 18).
                self.release(name);
            }
            _ if draining => {
                let grace = self.config.timing.stop_grace;
                self.stop_for(name, Why::Release, grace);
            }
            Doing::Stopping(Why::Transfer) => task.doing = Doing::Stopping(Why::Release),
            _ => {}
        }
    }

    /// Stopped: the target gets the sealed state, unless it has it already.
    pub(super) fn seal(&mut self, name: &Name) {
        let now = self.now.at;
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let Some(hand) = task.hand.as_ref().filter(|hand| hand.accepted) else {
            // The offer fell through while the step ended.
            task.doing = Doing::Kept;
            let open = task.hand.is_some();
            self.push(Action::FreeSlot(name.clone()));
            if !open && !self.offer(name) {
                self.unplaced(name);
            }
            return;
        };
        let to = hand.to.clone();
        let Some(latest) = task.latest.clone() else {
            task.doing = Doing::Sealing { since: now };
            return self.decide(name);
        };
        task.doing = Doing::Sealing { since: now };
        if task.acked.get(&to).is_some_and(|held| *held >= latest.position) {
            return self.decide(name);
        }
        self.alarm_in(name, transfer_time(latest.len));
        match self.tasks.get(name).and_then(|task| task.bytes.clone()) {
            Some(state) => self.seal_loaded(&latest, &state),
            None => self.push(Action::Load { header: latest }),
        }
    }

    /// The sealed bytes are here: to the target with them.
    pub(super) fn seal_loaded(&mut self, header: &Header, state: &Bytes) {
        let Some(task) = self.tasks.get(&header.name) else {
            return;
        };
        let Doing::Sealing { .. } = task.doing else {
            return;
        };
        let Some(hand) = &task.hand else { return };
        if task.latest.as_ref() == Some(header) {
            let (to, claim, spec) = (hand.to.clone(), task.claim.clone(), task.spec.clone());
            self.send_checkpoint(&to, &claim, &spec, header, state);
        }
    }

    /// A replica acknowledged: is it the sealed state at the target?
    pub(super) fn sealed_at(
        &mut self,
        from: &SessionId,
        name: &Name,
        position: crate::core::branch::Position,
    ) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Doing::Sealing { .. } = task.doing else {
            return;
        };
        let sealed = task.latest.as_ref().is_some_and(|latest| latest.position == position);
        if sealed && task.hand.as_ref().is_some_and(|hand| hand.to == *from) {
            self.decide(name);
        }
    }

    pub(super) fn seal_refused(&mut self, from: &SessionId, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        if matches!(task.doing, Doing::Sealing { .. })
            && task.hand.as_ref().is_some_and(|hand| hand.to == *from)
        {
            self.offer_failed(name);
        }
    }

    /// The single decision: this epoch has ended here for good, the next one is the target's.
    fn decide(&mut self, name: &Name) {
        let now = self.now.at;
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let Some(hand) = &task.hand else { return };
        let to = hand.to.clone();
        task.claim.phase = Phase::Transferred { to: to.clone() };
        if task.latest.is_some() {
            task.claim.checkpointed = true;
            if !task.claim.replicas.contains(&to.node) {
                task.claim.replicas.insert(0, to.node.clone());
                task.claim.replicas.truncate(8);
            }
        }
        task.bytes = None;
        task.doing = Doing::Moving { sent: now };
        self.publish(name);
        self.push(Action::FreeSlot(name.clone()));
        self.tell_target(name);
    }

    fn tell_target(&mut self, name: &Name) {
        let now = self.now.at;
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let Doing::Moving { sent, .. } = &mut task.doing else {
            return;
        };
        *sent = now;
        let Some(hand) = &task.hand else { return };
        let message = Message::Transferred {
            name: name.clone(),
            run: task.claim.run,
            epoch: hand.epoch,
            sealed: task.latest.clone(),
        };
        let to = hand.to.clone();
        self.send(&to, message);
        self.alarm_in(name, RESEND);
    }

    pub(super) fn on_taken(&mut self, from: &SessionId, name: &Name, epoch: Epoch) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let mine = task.hand.as_ref().is_some_and(|h| h.to == *from && h.epoch == epoch);
        if mine && matches!(task.doing, Doing::Moving { .. }) {
            task.doing = Doing::Over { dominated: None };
            task.hand = None;
            let run = task.claim.run;
            // Whoever waits for `run` may go on: a peer has the spec.
            self.answer_callers(name, Ok(run));
            self.tell(Notice::Moved { name: name.clone(), to: from.clone(), epoch });
            self.dirty.insert(name.clone());
        }
    }

    /// A handover under way: has it stalled, or has the target gone?
    pub(super) fn look_hand(&mut self, name: &Name) {
        let now = self.now.at;
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Some(hand) = &task.hand else { return };
        let (to, epoch, accepted, since) = (hand.to.clone(), hand.epoch, hand.accepted, hand.since);
        let gone = self.members.is_gone(&to);
        match &task.doing {
            Doing::Moving { sent, .. } => {
                let sent = *sent;
                let theirs = self.view.get(name, &to).filter(|c| c.epoch >= epoch);
                // It let go of it before it heard of the decision: the next one may have it.
                if theirs.is_some_and(|c| c.epoch == epoch && c.phase.is_free()) {
                    return self.offer_failed(name);
                }
                if theirs.is_some_and(|c| !matches!(c.phase, Phase::Incoming { .. })) {
                    return self.on_taken(&to, name, epoch);
                }
                if gone {
                    if self.view.owner(name).is_some_and(|owner| {
                        owner.session != to && owner.epoch > epoch && !self.is_void(owner)
                    }) {
                        return self.over(name);
                    }
                    if accepted {
                        self.offer_failed(name);
                    }
                } else if !accepted && now.since(since) >= RESEND {
                    self.offer_failed(name);
                } else if accepted && now.since(sent) >= RESEND {
                    self.tell_target(name);
                } else {
                    self.alarm_in(name, RESEND);
                }
            }
            Doing::Sealing { since } => {
                let len = task.latest.as_ref().map_or(0, |latest| latest.len);
                let until = *since + transfer_time(len);
                if gone || now >= until {
                    self.send(&to, Message::Withdraw { name: name.clone(), epoch });
                    self.offer_failed(name);
                } else {
                    self.alarm(name, until);
                }
            }
            Doing::Running | Doing::Kept | Doing::Stopping(Why::Transfer) => {
                if gone || (!accepted && now.since(since) >= RESEND * 2) {
                    self.send(&to, Message::Withdraw { name: name.clone(), epoch });
                    self.offer_failed(name);
                } else if !accepted {
                    self.alarm_in(name, RESEND);
                }
            }
            _ => {}
        }
    }

    /// Others have the name under later claims.
    fn over(&mut self, name: &Name) {
        if let Some(task) = self.tasks.get_mut(name) {
            task.hand = None;
            task.doing = Doing::Over { dominated: None };
            let run = task.claim.run;
            self.answer_callers(name, Ok(run));
            self.dirty.insert(name.clone());
        }
    }

    /// Writes `Released`: stopped, and anybody may take it at once.
    pub(super) fn release(&mut self, name: &Name) {
        self.withdraw_offer(name);
        let replicas = self.tasks.get(name).map_or(0, |task| self.holders(task));
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let callers = std::mem::take(&mut task.callers);
        let fresh = matches!(task.doing, Doing::Settling(_)) && !task.prior.checkpointed;
        let spec = task.spec.clone();
        task.bytes = None;
        task.hand = None;
        self.release_claim(name);
        self.tell(Notice::Released { name: name.clone(), replicas });
        if fresh && !callers.is_empty() {
            self.place(spec, callers);
        } else {
            let run = spec.run;
            callers.into_iter().for_each(|caller: Caller| self.reply_to(caller, Ok(run)));
        }
    }

    // ---- the target -----------------------------------------------------------------------

    pub(super) fn on_offer(
        &mut self,
        from: &SessionId,
        claim: Claim,
        spec: Spec,
        desired: Option<Desired>,
        terms: OfferTerms,
    ) {
        let epoch = terms.epoch;
        let name = spec.name.clone();
        if claim.name != name || claim.session != *from || claim.run != spec.run {
            return;
        }
        let reply = |result| Message::OfferReply { name: name.clone(), epoch, result };
        self.learn_claim(claim.clone());
        if let Some(desired) = desired.filter(|desired| desired.name == name) {
            self.learn_desired(desired);
        }
        if let Some(task) = self.tasks.get(&name)
            && task.claim.epoch == epoch
            && matches!(&task.doing, Doing::Incoming { .. })
            && matches!(&task.claim.phase, Phase::Incoming { from: source } if source == from)
        {
            return self.send(from, reply(Ok(())));
        }
        let refusal = match self.refuses_offer(from, &claim, &spec, &terms) {
            Some(refusal) => refusal,
            None => {
                self.accept(from, &claim, spec, &terms);
                return self.send(from, reply(Ok(())));
            }
        };
        self.send(from, reply(Err(refusal)));
    }

    /// Gossiped capability is never trusted alone: the receiver checks again.
    fn refuses_offer(
        &mut self,
        from: &SessionId,
        claim: &Claim,
        spec: &Spec,
        &OfferTerms { epoch, version, .. }: &OfferTerms,
    ) -> Option<Refusal> {
        if self.state != NodeState::Up {
            return Some(Refusal::NotUp);
        }
        if claim.epoch >= epoch {
            return Some(Refusal::Held(claim.epoch));
        }
        if !self.admits(&spec.name) {
            return Some(Refusal::TooManyNames);
        }
        if self.load.full || self.is_full_of(&spec.kind) {
            return Some(Refusal::Full);
        }
        if !self.may_take(spec, version) {
            return Some(Refusal::Incompatible);
        }
        // At or below what is held, or what this node has said OK to.
        let name = &spec.name;
        let above = self
            .view
            .claims(name)
            .filter(|other| other.session != *from && !self.is_void(other))
            .filter(|other| other.run > claim.run || other.epoch >= epoch)
            .find(|other| other.phase.is_held() || other.phase.is_terminal());
        if let Some(above) = above {
            return Some(Refusal::Held(above.epoch));
        }
        let busy = self.tasks.get(name).filter(|t| !matches!(t.doing, Doing::Over { .. }));
        if let Some(task) = busy {
            return Some(Refusal::Held(task.claim.epoch));
        }
        self.view.epoch(name).filter(|seen| *seen > epoch).map(Refusal::Held)
    }

    fn accept(&mut self, from: &SessionId, source: &Claim, spec: Spec, terms: &OfferTerms) {
        let &OfferTerms { epoch, idle, cause, .. } = terms;
        let name = spec.name.clone();
        if let Some(old) = self.tasks.get(&name) {
            self.holding.remove(old.claim.number);
        }
        let keep = source.phase.waits_for_resume().then(|| source.phase.clone());
        let claim = Claim {
            session: self.config.me.clone(),
            number: self.take_number(),
            version: 0,
            epoch,
            phase: Phase::Incoming { from: from.clone() },
            terms: self.terms(),
            strikes: if keep.is_some() { source.strikes } else { 0 },
            note: String::new(),
            resting: false,
            ..source.clone()
        };
        let prior = Prior {
            replicas: source.replicas.clone(),
            floor: source.floor.clone(),
            checkpointed: source.checkpointed,
            session: Some(from.clone()),
            epoch: None,
        };
        let said = self.now.at;
        let task = Task {
            // What waits for `resume` is not taken out of parking by an offer.
            cause: if keep.is_some() { Cause::Drain } else { cause },
            keep,
            from: Some(from.clone()),
            prior,
            first_offer: !idle,
            ..Task::record(claim, spec.clone(), Doing::Incoming { transferred: None, said })
        };
        self.tasks.insert(name.clone(), Box::new(task));
        self.learn(spec.clone());
        self.push(Action::PublishSpec(spec));
        self.publish_desired(&name);
        self.publish(&name);
    }

    pub(super) fn on_withdraw(&mut self, from: &SessionId, name: &Name, epoch: Epoch) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let theirs =
            matches!(&task.claim.phase, Phase::Incoming { from: source } if source == from);
        if theirs
            && task.claim.epoch == epoch
            && matches!(task.doing, Doing::Incoming { transferred: None, .. })
        {
            self.release_claim(name);
        }
    }

    pub(super) fn on_transferred(
        &mut self,
        from: &SessionId,
        name: &Name,
        run: RunId,
        epoch: Epoch,
        sealed: Option<Header>,
    ) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        if task.claim.run != run || task.claim.epoch != epoch || task.from.as_ref() != Some(from) {
            return;
        }
        match &mut task.doing {
            Doing::Incoming { transferred, .. } if transferred.is_none() => {
                *transferred = Some(sealed.clone());
            }
            Doing::Incoming { .. } | Doing::Fetching { .. } | Doing::Finding(_) => return,
            // It was let go of before.
            Doing::Over { .. } if task.claim.phase == Phase::Released => {
                let result = Err(Refusal::NotUp);
                let reply = Message::OfferReply { name: name.clone(), epoch, result };
                return self.send(from, reply);
            }
            // Told again: the acknowledgement was lost.
            _ => {
                let message = Message::Taken { name: name.clone(), epoch };
                return self.send(from, message);
            }
        }
        // Settling is waived only for the first offer of a session that was itself running it.
        if !self.tasks.get(name).is_some_and(|task| task.first_offer) {
            let known = self.tasks.get(name).map(|task| (task.spec.clone(), task.cause));
            return known
                .map_or((), |(spec, cause)| self.claim(spec, cause, Purpose::Run, Vec::new()));
        }
        self.take(name, sealed);
    }

    /// It is mine now: run it from the sealed state.
    fn take(&mut self, name: &Name, sealed: Option<Header>) {
        if let Some(task) = self.tasks.get_mut(name) {
            task.latest.clone_from(&sealed);
        }
        if self.hold_back(name, Purpose::Run) {
            return;
        }
        match sealed {
            None => match self.tasks.get(name).is_some_and(|task| task.prior.checkpointed) {
                true => self.recover(name),
                false => self.start_taken(name),
            },
            Some(header) => {
                if let Some(task) = self.tasks.get_mut(name) {
                    task.prior.checkpointed = true;
                    task.claim.checkpointed = true;
                }
                self.fetch(name, header, Vec::new());
            }
        }
    }

    fn start_taken(&mut self, name: &Name) {
        self.start(name, crate::core::io::From::Initial, None);
    }

    /// A name that was accepted: the source has gone, or its decision is visible by gossip.
    pub(super) fn look_incoming(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Doing::Incoming { transferred: None, said } = &task.doing else {
            return;
        };
        let Some(source) = task.from.clone() else {
            return;
        };
        let (epoch, due) = (task.claim.epoch, *said + RESEND * 4);
        let theirs = self.view.get(name, &source);
        let decided = theirs.is_some_and(
            |claim| matches!(&claim.phase, Phase::Transferred { to } if *to == self.config.me),
        );
        // It was offered to nobody after all, and the word of that was lost.
        if theirs.is_some_and(|claim| claim.phase.is_free() && claim.run == task.claim.run) {
            return self.release_claim(name);
        }
        if !self.members.is_gone(&source) {
            if self.now.at < due {
                return self.alarm(name, due);
            }
            // It tells if it has changed its mind.
            if let Some(Doing::Incoming { said, .. }) =
                self.tasks.get_mut(name).map(|task| &mut task.doing)
            {
                *said = self.now.at;
            }
            self.alarm_in(name, RESEND * 4);
            let reply = Message::OfferReply { name: name.clone(), epoch, result: Ok(()) };
            return self.send(&source, reply);
        }
        let spec = task.spec.clone();
        if decided {
            // The decision is known and the sealed state may be here: the best there is at or above
            // the floor (the one exception to H4).
            if let Some(Doing::Incoming { transferred, .. }) =
                self.tasks.get_mut(name).map(|task| &mut task.doing)
            {
                *transferred = Some(None);
            }
            let what = "its source is gone: continued from the best checkpoint".to_owned();
            let held = self.held.get(name).and_then(|runs| runs.get(&spec.run));
            let exact = held.is_some_and(|branches| !branches.is_empty());
            if !exact {
                self.tell(Notice::StateLost { name: name.clone(), what });
            }
            return self.recover(name);
        }
        // Undecided: the ordinary rules, and this node is first in line.
        self.claim(spec, Cause::Crash, Purpose::Run, Vec::new());
    }

    /// A session is gone: what was to go there goes elsewhere.
    pub(super) fn hands_gone(&mut self, session: &SessionId) {
        for (name, task) in &self.tasks {
            if task.hand.as_ref().is_some_and(|hand| hand.to == *session) {
                self.dirty.insert(name.clone());
            }
        }
    }

    /// Repeats to a peer whose link has come up what it may have missed.
    pub(super) fn resend_to(&mut self, session: &SessionId) {
        self.ask_again(session);
        self.replicate_again(session);
        self.owe_again(session);
        let moving: Vec<Name> = self
            .tasks
            .iter()
            .filter(|(_, task)| {
                matches!(task.doing, Doing::Moving { .. })
                    && task.hand.as_ref().is_some_and(|hand| hand.accepted && hand.to == *session)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in moving {
            self.tell_target(&name);
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
        if !self.offer(name) {
            self.look_older(name);
        }
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
