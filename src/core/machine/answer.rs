//! What the asked says (Rule 13).

use std::collections::BTreeSet;

use super::Machine;
use super::task::Doing;
use crate::core::claim::{Claim, Phase, Spec};
use crate::core::ids::SessionId;
use crate::core::limits;
use crate::core::message::{Answer, Message, Question, Verdict};

impl Machine {
    pub(super) fn on_ask(&mut self, from: &SessionId, asks: Vec<Question>) {
        let mut answers = Vec::with_capacity(asks.len());
        for Question { claim, spec, from: taken_from } in asks {
            // A session speaks for its own claims alone.
            if claim.session != *from || spec.name != claim.name || spec.run != claim.run {
                continue;
            }
            let mut answer = self.answer(claim, spec);
            if answer.verdict == Verdict::Ok
                && taken_from.is_some_and(|s| self.buried.contains_key(&s))
            {
                answer.verdict = Verdict::Buried;
            }
            answers.push(answer);
        }
        if !answers.is_empty() {
            self.send(from, Message::Answers { answers });
        }
    }

    fn answer(&mut self, claim: Claim, spec: Spec) -> Answer {
        let name = claim.name.clone();
        let epoch = claim.epoch;
        let asker = claim.session.clone();
        let (verdict, step_back) = self.verdict(&claim);
        if !self.admits(&name) {
            let (askers, known) = (Vec::new(), Vec::new());
            return Answer { name, epoch, verdict, askers, known, held: None };
        }
        let askers = self.remember_asker(&claim);
        let branches = self.held.get(&name).and_then(|runs| runs.get(&claim.run));
        let held = branches.and_then(|b| b.iter().map(|header| header.position).max());
        // What must be stepped over, or has ended; live claims of third sessions are theirs to tell.
        let known = self
            .view
            .claims(&name)
            .filter(|known| known.session != asker)
            .filter(|known| !known.phase.is_held() || self.is_void(known))
            .filter(|known| !self.buried.contains_key(&known.session))
            .filter(|known| known.beats(&claim) || known.ends(&claim))
            .take(limits::OF_ONE)
            .cloned()
            .collect();
        self.learn(spec);
        // Kept as if gossiped; the asker is remembered until its claim is visible, which it now is
        // here, but not to those I answer: so it stays among the askers.
        self.merge(claim);
        if let Some(winner) = step_back {
            self.withdraw(&name, winner);
        }
        Answer { name, epoch, verdict, askers, known, held }
    }

    /// Remembers who asked about a name, and names the others who have.
    fn remember_asker(&mut self, claim: &Claim) -> Vec<SessionId> {
        if self.askers.len() >= self.config.max_names && !self.askers.contains_key(&claim.name) {
            return Vec::new();
        }
        // Whoever is known here to hold a claim, too: it may be visible to me and not to the asker.
        let holders = self.view.claims(&claim.name);
        let mut named: BTreeSet<SessionId> = holders
            .filter(|known| known.phase.is_held() && !self.is_void(known))
            .map(|known| known.session.clone())
            .collect();
        let others = self.askers.entry(claim.name.clone()).or_default();
        others.insert(claim.session.clone());
        named.extend(others.iter().cloned());
        named.retain(|other| *other != claim.session && *other != self.config.me);
        named.into_iter().take(limits::OF_ONE).collect()
    }

    /// The answer proper, and the claim to step back for if it is a yielding one.
    fn verdict(&self, claim: &Claim) -> (Verdict, Option<Claim>) {
        if let Some((end, _)) = self.ends.get(&claim.name)
            && end.ends(claim)
        {
            return (Verdict::Held(Box::new(end.clone())), None);
        }
        let Some(task) = self.tasks.get(&claim.name) else {
            return (Verdict::Ok, None);
        };
        let mine = &task.claim;
        let held = || (Verdict::Held(Box::new(mine.clone())), None);
        match &task.doing {
            Doing::Settling(_) if mine.beats(claim) => held(),
            Doing::Settling(_) => (Verdict::Yields, Some(claim.clone())),
            // From the offer until the target runs or is gone, the source answers for it.
            Doing::Moving { .. } => match &task.hand {
                Some(hand) if hand.to != claim.session && !self.members.is_gone(&hand.to) => {
                    match self.view.get(&claim.name, &hand.to) {
                        Some(theirs) => (Verdict::Held(Box::new(theirs.clone())), None),
                        None => held(),
                    }
                }
                _ => (Verdict::Ok, None),
            },
            Doing::Over { .. } if mine.ends(claim) => held(),
            Doing::Ending { .. } if mine.run >= claim.run => held(),
            Doing::Over { .. } | Doing::Ending { .. } => (Verdict::Ok, None),
            // A target that was offered the name may be asked by its own source's next target.
            Doing::Incoming { .. } if self.offered_above(claim) => (Verdict::Ok, None),
            Doing::Finding(_)
            | Doing::Fetching { .. }
            | Doing::Running
            | Doing::Stopping(_)
            | Doing::Incoming { .. }
            | Doing::Reconciling(_)
            | Doing::Kept
            | Doing::Sealing { .. }
            | Doing::Parting { .. } => held(),
        }
    }

    /// Whether a claim is above my incoming one because its own source offered it again.
    fn offered_above(&self, claim: &Claim) -> bool {
        let Phase::Incoming { from } = &claim.phase else {
            return false;
        };
        self.view.get(&claim.name, &self.config.me).is_some_and(|mine| {
            matches!(&mine.phase, Phase::Incoming { from: source } if source == from)
                && claim.beats(mine)
        })
    }
}
