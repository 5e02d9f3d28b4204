//! What is known of names: other sessions' claims, and specs, within bounds (Rule 26).

use super::task::Doing;
use super::{MAX_OTHER_SPECS, Machine};
use crate::core::claim::{Claim, Spec};
use crate::core::ids::{Kind, Name, RunId, SessionId};
use crate::core::io::Notice;

impl Machine {
    /// Takes another session's claim in, however it came.
    pub(super) fn learn_claim(&mut self, claim: Claim) {
        if claim.session == self.config.me {
            return;
        }
        self.forget_asker(&claim.name, &claim.session);
        self.merge(claim);
    }

    /// Adds a claim to the view, within bounds. A session first heard of this way is silent from
    /// now on (Rule 4).
    pub(super) fn merge(&mut self, claim: Claim) {
        let name = claim.name.clone();
        if !self.admits(&name) {
            return;
        }
        if !self.buried.contains_key(&claim.session)
            && self.members.entry(&claim.session, self.now.at).is_none()
        {
            return;
        }
        if self.view.merge(claim) {
            self.dirty.insert(name);
        }
    }

    /// Whether a name is known, or one more can be: checked before anything of it is kept. When there
    /// is no room a person is told, once.
    pub(super) fn admits(&mut self, name: &Name) -> bool {
        let limit = self.config.max_names;
        let known = self.view.top(name).is_some() || self.tasks.contains_key(name);
        if known || self.names() < limit {
            return true;
        }
        if !std::mem::replace(&mut self.crowded, true) {
            self.tell(Notice::Warning(format!(
                "{limit} names are known, which is `max_names`: new ones are refused; raise it on \
                 every node, or let ended tasks be forgotten sooner (`retention`, \
                 `tombstone_retention`)"
            )));
        }
        false
    }

    pub(super) fn forget_asker(&mut self, name: &Name, session: &SessionId) {
        if let Some(askers) = self.askers.get_mut(name) {
            askers.remove(session);
            if askers.is_empty() {
                self.askers.remove(name);
            }
        }
    }

    pub(super) fn learn(&mut self, spec: Spec) {
        let newer = match self.specs.get(&spec.name) {
            Some(known) => spec.run > known.run,
            None => self.specs.len() < self.config.max_names,
        };
        if newer {
            self.dirty.insert(spec.name.clone());
            self.set_spec(spec);
        } else if self.specs.get(&spec.name).is_some_and(|known| known.run != spec.run) {
            self.set_aside(spec);
        }
    }

    /// Makes a spec the name's, and keeps the one of another run that it replaces.
    pub(super) fn set_spec(&mut self, spec: Spec) {
        let run = spec.run;
        if let Some(old) = self.specs.insert(spec.name.clone(), spec)
            && old.run != run
        {
            self.set_aside(old);
        }
    }

    pub(super) fn set_aside(&mut self, spec: Spec) {
        let stands = self.standing_run(&spec.name);
        let others = self.other_specs.entry(spec.name.clone()).or_default();
        others.insert(spec.run, spec);
        if others.len() > MAX_OTHER_SPECS
            && let Some(least) = others.keys().copied().find(|run| Some(*run) != stands)
        {
            others.remove(&least);
        }
    }

    /// The run of a name that matters here, whatever others are spoken of: the one this node has in
    /// hand, or whose claim stands, or that its disk offers.
    pub(super) fn standing_run(&self, name: &Name) -> Option<RunId> {
        let mine = self.tasks.get(name).filter(|task| !matches!(task.doing, Doing::Over { .. }));
        mine.map(|task| task.claim.run)
            .or_else(|| self.view.standing(name).map(|claim| claim.run))
            .or_else(|| self.view.owner(name).map(|claim| claim.run))
            .or_else(|| self.boot.offered(name))
    }

    /// The spec of one run of a name.
    /// The kind of a run, if that is known here.
    pub fn kind_of(&self, name: &Name, run: RunId) -> Option<&Kind> {
        self.spec_of(name, run).map(|spec| &spec.kind)
    }

    pub(super) fn spec_of(&self, name: &Name, run: RunId) -> Option<&Spec> {
        let newest = self.specs.get(name).filter(|spec| spec.run == run);
        newest.or_else(|| self.other_specs.get(name)?.get(&run))
    }
}
