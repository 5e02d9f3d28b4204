//! Handing one name over, at the target (Rule 18): an offer is refused or accepted, and what was accepted
//! is this node's once its source has decided so, or is gone.

use litemap::LiteMap;

use super::Machine;
use super::task::{Doing, Prior, Purpose, Task};
use super::transfer::RESEND;
use crate::core::branch::Header;
use crate::core::claim::{Claim, Desired, Phase, Spec};
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::io::{self, Action, Cause, Notice};
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

impl Machine {
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
        if self.is_full_for(spec) {
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
            holders: LiteMap::new(),
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
            // What was let go of has been forgotten since.
            let result = Err(Refusal::NotUp);
            return self.send(from, Message::OfferReply { name: name.clone(), epoch, result });
        };
        if task.claim.run != run || task.claim.epoch != epoch || task.from.as_ref() != Some(from) {
            return;
        }
        match &mut task.doing {
            Doing::Incoming { transferred, .. } if transferred.is_none() => {
                *transferred = Some(sealed.clone());
            }
            Doing::Incoming { .. }
            | Doing::Fetching { .. }
            | Doing::Finding(_)
            | Doing::Parting { .. } => return,
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
                false => self.start(name, io::From::Initial, None),
            },
            Some(header) => {
                if let Some(task) = self.tasks.get_mut(name) {
                    task.prior.checkpointed = true;
                    task.claim.checkpointed = true;
                }
                self.fetch(name, header);
            }
        }
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
            |claim| matches!(&claim.phase, Phase::Transferred { to, .. } if *to == self.config.me),
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
}
