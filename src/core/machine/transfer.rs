//! Handing one name over with its state, at the source (Rule 18): offer, stop, seal, `Transferred`, taken.
//!
//! `Transferred` in the source's own claims is the single decision. Before it, anything that goes
//! wrong leaves the name with the source; after it, the source never runs that epoch again.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::Machine;
use super::drain::Drain;
use super::recover::transfer_time;
use super::task::{Caller, Doing, Hand, Task, Why};
use crate::core::branch::{Header, Position};
use crate::core::claim::{Claim, Phase};
use crate::core::ids::{Name, SessionId};
use crate::core::io::{Action, Cause, Notice, Stop};
use crate::core::lease::Epoch;
use crate::core::limits;
use crate::core::members::Peer;
use crate::core::message::{Message, Refusal};
use crate::core::placement::Candidate;

/// After twice this long without an answer an offer goes to the next node, or is repeated if there is none;
/// a decision is told again after this long.
pub(super) const RESEND: Duration = Duration::from_millis(500);

impl Machine {
    /// Offers a name to the best node that was not tried yet. False if there is none.
    pub(super) fn offer(&mut self, name: &Name) -> bool {
        let Some(task) = self.tasks.get(name) else {
            return false;
        };
        let mut tried = task.hand.as_ref().map(|hand| hand.tried.clone()).unwrap_or_default();
        tried.insert(self.config.me.clone());
        let version = task.latest.as_ref().map(|header| header.state_version);
        let spec = task.spec.clone();
        let Some(to) = self.choose(&spec, version, &tried) else {
            return false;
        };
        tried.insert(to.clone());
        self.offer_to(name, to, tried)
    }

    /// Offers it to this node. False if there is no epoch left for that.
    pub(super) fn offer_to(
        &mut self,
        name: &Name,
        to: SessionId,
        tried: BTreeSet<SessionId>,
    ) -> bool {
        let epoch = self.next_epoch(name);
        let current = self.tasks.get(name).map_or(Epoch(0), |task| task.claim.epoch);
        if current >= epoch {
            // There is no higher one that the target could have: the name is released instead.
            return false;
        }
        self.view.raise(name, epoch);
        let since = self.now.at;
        let Some(task) = self.tasks.get_mut(name) else {
            return false;
        };
        task.hand = Some(Hand { to, epoch, accepted: false, since, tried });
        self.send_offer(name);
        self.alarm_in(name, RESEND);
        true
    }

    fn send_offer(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Some(hand) = &task.hand else { return };
        let (to, epoch) = (hand.to.clone(), hand.epoch);
        let record = self.members.get(&to).and_then(|peer| peer.record.as_ref());
        let parked = task.claim.phase == (Phase::Parked { until_resumed: false });
        let cause = match record.is_some_and(|record| self.is_older(&record.revision)) {
            _ if parked => Cause::Unparked,
            true => Cause::Rollback,
            false => Cause::Drain,
        };
        let (claim, spec, idle) = (task.claim.clone(), task.spec.clone(), !task.runs());
        let version = task.latest.as_ref().map(|header| header.state_version);
        let desired = self.desires.get(name).filter(|d| d.run == spec.run).cloned();
        self.send(&to, Message::Offer { claim, epoch, spec, desired, idle, version, cause });
    }

    /// Whether an offer without an answer is better repeated than given up: its target is there, if
    /// busy, there is no other, and what runs has time to end its step afterwards. What has stopped has
    /// not: whoever can may have it.
    fn is_worth_waiting(&self, task: &Task, hand: &Hand) -> bool {
        let version = task.latest.as_ref().map(|header| header.state_version);
        task.runs()
            && self.members.is_heard(self.now.at, &hand.to)
            && self.drain.as_ref().is_none_or(|drain| drain.has_time(self.now.at))
            && self.candidates(&task.spec, version, &hand.tried).is_empty()
    }

    /// Takes an open offer back.
    pub(super) fn withdraw_offer(&mut self, name: &Name) {
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        let decided = matches!(task.doing, Doing::Moving { .. });
        if decided && task.hand.as_ref().is_some_and(|hand| hand.accepted) {
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
            Doing::Sealing { .. } if task.is_decided() => {
                task.doing = Doing::Moving { sent: self.now.at };
            }
            Doing::Sealing { .. } => task.doing = Doing::Kept,
            Doing::Moving { .. } => {}
            _ if task.hand.is_none() => return,
            _ => {}
        }
        let hurried = self.drain.as_ref().is_some_and(Drain::is_hurried);
        if hurried || !self.offer(name) {
            self.unplaced(name);
        }
    }

    /// Nobody takes it. A node that drains releases it at its next boundary; another keeps it.
    fn unplaced(&mut self, name: &Name) {
        let (draining, expects) = (self.drain.is_some(), self.expects_taker(name));
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        task.hand = None;
        self.actions.push_back(Action::FreeSlot(name.clone()));
        match task.doing {
            Doing::Moving { .. } => {
                // Decided, and its target is gone: whoever can may have it (Rule 18).
                self.part(name);
            }
            Doing::Running | Doing::Kept if expects => {}
            _ if draining => {
                let grace = self.config.timing.stop_grace;
                self.stop_for(name, Why::Release, grace);
            }
            Doing::Stopping(Why::Transfer) => task.doing = Doing::Stopping(Why::Release),
            _ => {}
        }
    }

    /// Whether a node that is joining, or is about to be heard, may take what this one drains, and there is time to
    /// wait for that: where a whole service is replaced at once there is nobody else. It is looked for again.
    pub(super) fn expects_taker(&mut self, name: &Name) -> bool {
        let Some(task) = self.tasks.get(name) else {
            return false;
        };
        let version = task.latest.as_ref().map(|header| header.state_version);
        let joins = |(session, peer): (&SessionId, &Peer)| {
            let able = |record| {
                Candidate { session, record, load: peer.load }.can_run(&task.spec.kind, version)
            };
            peer.joins() && peer.record.as_ref().is_none_or(able)
        };
        let expects =
            self.has_time_to_drain() && (self.members.iter().any(joins) || self.expects_joiners());
        if expects {
            self.alarm_in(name, RESEND.min(self.config.timing.gossip_interval));
        }
        expects
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
    pub(super) fn sealed_at(&mut self, from: &SessionId, name: &Name, position: Position) {
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
        task.claim.phase = Phase::Transferred { to: to.clone(), epoch: hand.epoch };
        if task.latest.is_some() {
            task.claim.checkpointed = true;
            if !task.claim.replicas.contains(&to.node) {
                task.claim.replicas.insert(0, to.node.clone());
                task.claim.replicas.truncate(limits::OF_ONE);
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
            self.over(name);
            self.tell(Notice::Moved { name: name.clone(), to: from.clone(), epoch });
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
                // It let go of it before it heard of the decision: the next one may have it. Headers
                // cannot tell that from a claim above its own: where only they say so, it is asked.
                let has_let_go = |c: &Claim| c.epoch == epoch && c.phase.is_free();
                if let Some(theirs) = theirs.filter(|theirs| has_let_go(theirs)) {
                    if !self.view.is_covered(theirs) {
                        return self.offer_failed(name);
                    }
                } else if theirs.is_some_and(|c| !is_about_to(&c.phase)) {
                    return self.on_taken(&to, name, epoch);
                }
                if gone {
                    if self.view.owner(name).is_some_and(|owner| {
                        owner.session != to && owner.epoch > epoch && !self.is_void(owner)
                    }) {
                        return self.over(name);
                    }
                    self.offer_failed(name);
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
                let late = !accepted && now.since(since) >= RESEND * 2;
                if gone || (late && !self.is_worth_waiting(task, hand)) {
                    self.send(&to, Message::Withdraw { name: name.clone(), epoch });
                    self.offer_failed(name);
                } else if late {
                    let now = self.now.at;
                    if let Some(hand) = self.tasks.get_mut(name).and_then(|task| task.hand.as_mut())
                    {
                        hand.since = now;
                    }
                    self.send_offer(name);
                    self.alarm_in(name, RESEND * 2);
                } else if !accepted {
                    self.alarm_in(name, RESEND);
                }
            }
            _ => {}
        }
    }

    /// The name is in other hands, and they know that it is theirs.
    fn over(&mut self, name: &Name) {
        if let Some(task) = self.tasks.get_mut(name) {
            task.hand = None;
            task.doing = Doing::Over { dominated: None };
            self.holding.remove(task.claim.number);
            let run = task.claim.run;
            // Whoever waits for `run` may go on: a peer has the spec.
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

    /// A session is gone: what was to go there goes elsewhere, or nowhere.
    pub(super) fn hands_gone(&mut self, session: &SessionId) {
        for (name, task) in &self.tasks {
            let parting = matches!(task.doing, Doing::Parting { .. });
            if task.hand.as_ref().is_some_and(|hand| hand.to == *session)
                || (parting && task.replicas.contains(session))
            {
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
}

/// Whether a target has accepted the name, and has not begun: it settles a second offer first.
const fn is_about_to(phase: &Phase) -> bool {
    matches!(phase, Phase::Incoming { .. } | Phase::Claimed)
}
