//! Which rule an event or a message is for.

use super::Machine;
use super::incoming::OfferTerms;
use crate::core::ids::SessionId;
use crate::core::io::{Action, Event, Gone};
use crate::core::message::Message;

impl Machine {
    pub(super) fn dispatch(&mut self, event: Event) {
        if self.is_from_the_grave(&event) {
            return;
        }
        match event {
            Event::Heard { from, state, version, watermark, released, echoed } => {
                self.on_heard(&from, (state, version), watermark, &released, echoed);
            }
            Event::Heartbeat { of } => {
                if self.members.heartbeat(self.now.at, &of) {
                    self.on_back(&of);
                }
                self.conflict_evidence(&of);
            }
            Event::Suspicion { of, suspected } => {
                self.members.suspicion(self.now.at, &of, suspected);
            }
            Event::Record { of, record } => self.on_record(&of, record),
            Event::Load { of, load } => {
                if let Some(peer) = self.members.gossiped(&of, self.now.at)
                    && std::mem::replace(&mut peer.load, load).full != load.full
                {
                    self.review_later();
                }
            }
            Event::Claims { of, changes } => self.on_claims(&of, changes),
            Event::Specs { specs } => specs.into_iter().for_each(|spec| self.learn(spec)),
            Event::Desires { desires } => {
                desires.into_iter().for_each(|desired| self.learn_desired(desired));
            }
            Event::CaughtUp { of } => {
                if let Some(peer) = self.members.gossiped(&of, self.now.at) {
                    peer.caught_up = true;
                }
            }
            Event::LinkUp { with } => self.on_link_up(&with),
            Event::LinkDown { with, refused } => self.on_link_down(&with, refused),
            Event::Message { from, message } => self.on_message(&from, message),
            Event::Run { call, spec, again } => self.on_run(call, spec, again),
            Event::Want { call, name, run, want } => self.on_want(call, &name, run, want),
            Event::Cordon(on) => self.on_cordon(on),
            Event::Drain { deadline } => self.on_drain(deadline),
            Event::DrainNow => self.on_drain_now(),
            Event::Leave => self.on_leave(),
            Event::Committed { header, state, forced } => self.on_committed(header, state, forced),
            Event::Stopped { name, epoch, sealed, dropped } => {
                self.on_stopped(&name, epoch, sealed, dropped);
            }
            Event::Unstoppable { name, epoch } => self.on_unstoppable(&name, epoch),
            Event::Resting { name, epoch, resting } => self.on_resting(&name, epoch, resting),
            Event::Ended { name, epoch, outcome } => self.on_ended(&name, epoch, outcome),
            Event::Stuck { name, epoch, sealed, why } => self.on_stuck(&name, epoch, sealed, why),
            Event::Stored { header, from, error } => self.on_stored(header, from, error),
            Event::StoredEnd { name, run, from, error } => {
                self.on_stored_end(&name, run, from, error);
            }
            Event::Loaded { header, failed: true, .. } => self.on_load_failed(&header),
            Event::Loaded { header, state, .. } => self.on_loaded(header, state),
            Event::LoadedEnd { name, run, output } => self.on_loaded_end(&name, run, output),
            Event::FellBack { damaged, to } => self.on_fell_back(&damaged, to),
            Event::Reconciled { name, epoch, chosen } => {
                self.on_reconciled(&name, epoch, chosen);
            }
            Event::Tick => {}
        }
    }

    /// Gossip about a session that is buried here. Its claims are kept, void; nothing else of it
    /// counts before a datagram of its own, fresh and echoed, ends the burial (Rule 24).
    fn is_from_the_grave(&self, event: &Event) -> bool {
        match event {
            Event::Heard { from, echoed: None, .. } => self.buried.contains_key(from),
            Event::Heartbeat { of }
            | Event::Suspicion { of, .. }
            | Event::Record { of, .. }
            | Event::Load { of, .. }
            | Event::CaughtUp { of } => self.buried.contains_key(of),
            _ => false,
        }
    }

    fn on_message(&mut self, from: &SessionId, message: Message) {
        // Else two that hold each other for silent step over each other's claims without end.
        if self.members.frame(self.now.at, from) {
            self.on_back(from);
        }
        match message {
            Message::Relay { from: writer, to, message } => {
                if to == self.config.me {
                    // One hop only: a relayed relay is dropped.
                    if message.may_be_relayed() {
                        self.on_relayed(from, &writer, *message);
                    }
                } else if self.members.get(&to).is_some_and(|peer| peer.linked)
                    && writer == *from
                    && message.may_be_relayed()
                {
                    self.push(Action::Send {
                        to: to.clone(),
                        message: Message::Relay { from: writer, to, message },
                    });
                }
            }
            Message::State { state, version } => {
                if let Some(peer) = self.members.entry(from, self.now.at) {
                    peer.states(self.now.at, state, version);
                }
                self.on_state(from);
            }
            Message::Unheard { sessions } => self.on_unheard(from, &sessions),
            Message::Hearsay { said } => self.on_hearsay(from, said),
            Message::Leave => {
                self.send(from, Message::LeaveHeard);
                self.gone(from, Gone::Left);
                // Who leaves as well has nothing to hear of this node, and may be no more.
                self.on_leave_heard(from);
            }
            Message::LeaveHeard => self.on_leave_heard(from),
            Message::Dead { session } => {
                if self.members.observed_dead(self.now.at, &session, from) {
                    self.on_gone(&session, Gone::Dead);
                }
            }
            Message::Gone { sessions } => self.on_told_gone(sessions),
            Message::Buried { sessions } => self.on_buried(sessions),
            Message::Start { call, spec } => self.on_start(from, call, spec),
            Message::StartReply { call, result } => self.on_start_reply(from, call, result),
            Message::Ask { asks } => self.on_ask(from, asks),
            Message::Answers { answers } => {
                answers.into_iter().for_each(|answer| self.on_answer(from, answer));
            }
            Message::Offer { claim, epoch, spec, desired, idle, version, cause } => {
                let terms = OfferTerms { epoch, idle, version, cause };
                self.on_offer(from, claim, spec, desired, terms);
            }
            Message::OfferReply { name, epoch, result } => {
                self.on_offer_reply(from, &name, epoch, result);
            }
            Message::Withdraw { name, epoch } => self.on_withdraw(from, &name, epoch),
            Message::Checkpoint { claim, spec, header, state } => {
                self.on_checkpoint(from, claim, spec, header, state);
            }
            Message::CheckpointReply { name, run, position, result } => {
                self.on_checkpoint_reply(from, &name, run, position, result);
            }
            Message::Obsolete { header } => self.on_obsolete(&header),
            Message::Transferred { name, run, epoch, sealed } => {
                self.on_transferred(from, &name, run, epoch, sealed);
            }
            Message::Taken { name, epoch } => self.on_taken(from, &name, epoch),
            Message::FindState { name, run } => self.on_find_state(from, &name, run),
            Message::States { name, run, headers } => self.on_states(from, &name, run, headers),
            Message::GetState { name, run, position, writer } => {
                self.on_get_state(from, &name, run, position, &writer);
            }
            Message::StateData { header, state } => {
                // Not as its header says, it is as good as none (H4).
                let state = state.filter(|state| header.describes(state));
                self.on_state_data(header, state);
            }
            Message::Ended { claim, spec, output, age } => {
                self.on_ended_elsewhere(from, claim, spec, output, age);
            }
            Message::EndedReply { name, run } => self.on_ended_reply(from, &name, run),
            Message::Desire { desired } => self.learn_desired(desired),
            Message::Found { offers } => self.on_found(from, offers),
        }
    }

    /// Takes in what a session says by the word of another.
    fn on_relayed(&mut self, by: &SessionId, writer: &SessionId, message: Message) {
        // The answer goes back by the way that is known to be open.
        if let Some(peer) = self.members.entry(writer, self.now.at) {
            peer.via = Some((by.clone(), self.now.at));
        }
        if !matches!(message, Message::Leave) {
            return self.on_message(writer, message);
        }
        // A goodbye frees all that its writer runs: what is heard of itself outweighs it.
        if self.members.told_gone(self.now.at, writer, Gone::Left) {
            self.on_gone(writer, Gone::Left);
        }
        if self.members.is_gone(writer) {
            self.send(writer, Message::LeaveHeard);
        }
    }
}
