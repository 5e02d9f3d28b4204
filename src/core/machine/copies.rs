//! How many nodes hold an end: as many as hold a checkpoint, whoever goes (Rule 12). Whoever publishes
//! it answers for the copies; who holds one that the publisher does not name gives it one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::Machine;
use super::task::Doing;
use crate::core::ids::{Name, NodeId, RunId, SessionId};
use crate::core::io::Action;
use crate::core::limits;
use crate::core::message::Message;
use crate::core::placement;
use crate::core::record::NodeState;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies {
    /// Of ends that this node publishes: the peers that have said that they hold them, too.
    held_by: BTreeMap<Name, BTreeSet<SessionId>>,
    /// Publishers that know of the copy here.
    told: BTreeMap<Name, SessionId>,
    /// Ends that may want another copy.
    due: BTreeSet<Name>,
}

impl Copies {
    /// Whether this node sees to the copies of an end.
    pub(super) fn is_answered_for(&self, name: &Name) -> bool {
        self.held_by.contains_key(name)
    }

    /// Who has said to hold an end that this node answers for.
    pub(super) fn given(&self, name: &Name) -> impl Iterator<Item = &SessionId> {
        self.held_by.get(name).into_iter().flatten()
    }
}

#[cfg(test)]
impl Copies {
    pub(super) fn len(&self) -> usize {
        self.held_by.len() + self.told.len() + self.due.len()
    }
}

/// Ends looked at in one tick: nobody waits for a copy, and there may be very many.
const AT_ONCE: usize = 64;

impl Machine {
    /// This node publishes an end from now on, of which these peers hold a copy.
    pub(super) fn answer_for_end(&mut self, name: &Name, held_by: BTreeSet<SessionId>) {
        self.copies.held_by.insert(name.clone(), held_by);
        self.copies.due.insert(name.clone());
    }

    /// Nothing is to be copied of the name any more.
    pub(super) fn drop_copies(&mut self, name: &Name) {
        self.copies.held_by.remove(name);
        self.copies.told.remove(name);
        self.copies.due.remove(name);
    }

    /// A session is gone, and the copies that it held with it.
    pub(super) fn copies_gone(&mut self, session: &SessionId) {
        for (name, held_by) in &mut self.copies.held_by {
            if held_by.remove(session) {
                self.copies.due.insert(name.clone());
            }
        }
    }

    /// Somebody may be there now who can hold what too few do.
    pub(super) fn review_copies(&mut self) {
        let wanted = self.copies_wanted();
        let few = self.copies.held_by.iter().filter(|(_, held_by)| self.staying(held_by) < wanted);
        let few: Vec<Name> = few.map(|(name, _)| name.clone()).collect();
        self.copies.due.extend(few);
    }

    /// How many others are to hold an end that this node publishes: one more when it is about to go.
    fn copies_wanted(&self) -> usize {
        let replicas = self.config.replicas;
        let goes = replicas > 0 && self.state == NodeState::Draining;
        replicas + usize::from(goes)
    }

    /// How many of these are there to stay: who drains takes its copies with it. For a node that drains, those
    /// alone that it knows to live: it will not be there when the others turn out to be dead.
    fn staying(&self, held_by: &BTreeSet<SessionId>) -> usize {
        let stays = |session: &&SessionId| {
            self.members.get(session).is_some_and(|p| p.keeps()) && !self.is_doubted(session)
        };
        held_by.iter().filter(stays).count()
    }

    /// Goes on with the ends that want a copy, a few at a time.
    pub(super) fn tick_copies(&mut self) {
        if !matches!(self.state, NodeState::Up | NodeState::Cordoned | NodeState::Draining) {
            return;
        }
        for _ in 0..AT_ONCE {
            let Some(name) = self.copies.due.pop_first() else {
                return;
            };
            self.copy_end(&name);
        }
    }

    /// Reads the output of an end that too few peers hold.
    fn copy_end(&mut self, name: &Name) {
        let Some(run) = self.copied_run(name) else {
            // Whoever has what it brought gives it to its publisher, which answers for the copies from then on.
            if !self.bare.contains(name) {
                self.drop_copies(name);
            }
            return;
        };
        if self.lacking(name).is_empty() {
            return;
        }
        self.push(Action::LoadEnd { name: name.clone(), run });
        // It may be lost on its way.
        self.alarm_in(name, self.config.timing.convergence());
    }

    /// Is every copy where it should be?
    pub(super) fn look_copies(&mut self, name: &Name) {
        if self.copied_run(name).is_some() && !self.lacking(name).is_empty() {
            self.copies.due.insert(name.clone());
        }
    }

    /// The run whose end is held here whole and can still be read.
    pub(super) fn copied_run(&self, name: &Name) -> Option<RunId> {
        let (end, at) = self.ends.get(name)?;
        let young = self.now.at.since(*at) < self.config.timing.retention;
        let mine = self.tasks.get(name);
        let over = mine.is_none_or(|task| matches!(task.doing, Doing::Over { .. }));
        (young && over && !self.bare.contains(name)).then_some(end.run)
    }

    /// The peers that are to get a copy.
    fn lacking(&self, name: &Name) -> Vec<SessionId> {
        let mut lacking: Vec<SessionId> = self.unaware(name).into_iter().collect();
        if let Some(held_by) = self.copies.held_by.get(name) {
            let wanted = self.copies_wanted().saturating_sub(self.staying(held_by));
            let others =
                self.members.iter().filter(|(s, peer)| peer.keeps() && !held_by.contains(*s));
            let mut order = placement::rendezvous(name, others.map(|(session, _)| session));
            order.sort_by_key(|session| self.is_doubted(session));
            lacking.extend(order.into_iter().take(wanted).cloned());
        }
        lacking
    }

    /// The one that publishes the end that is held here, and does not know of this copy: it may only
    /// have heard of the end, and is the one that is asked for what it brought.
    pub(super) fn unaware(&self, name: &Name) -> Option<SessionId> {
        let run = self.copied_run(name)?;
        let me = &self.config.me;
        let ends = self.view.claims(name).filter(|claim| claim.run == run && !self.is_void(claim));
        let publisher = ends.filter(|c| c.phase.is_terminal()).max_by(|a, b| a.order(b))?;
        let knows = publisher.session == *me
            || publisher.replicas.contains(&me.node)
            || self.copies.told.get(name) == Some(&publisher.session);
        (!knows).then(|| publisher.session.clone())
    }

    /// What an end brought has been read; nothing where the task brought nothing.
    pub(super) fn on_loaded_end(&mut self, name: &Name, run: RunId, output: Option<Bytes>) {
        if self.copied_run(name) != Some(run) {
            return;
        }
        let (Some(spec), Some((end, at))) = (self.spec_of(name, run), self.ends.get(name)) else {
            return;
        };
        let (claim, spec, age) = (end.clone(), spec.clone(), self.now.at.since(*at));
        for to in self.lacking(name) {
            let (claim, spec, output) = (claim.clone(), spec.clone(), output.clone());
            self.send(&to, Message::Ended { claim, spec, output, age });
        }
    }

    /// A peer holds a copy: whoever looks for the output learns where it is.
    pub(super) fn copied(&mut self, from: &SessionId, name: &Name, run: RunId) {
        if self.ends.get(name).is_none_or(|(end, _)| end.run != run) {
            return;
        }
        if self.unaware(name).as_ref() == Some(from) {
            self.copies.told.insert(name.clone(), from.clone());
            self.dirty.insert(name.clone());
        }
        let Some(held_by) = self.copies.held_by.get_mut(name) else {
            return;
        };
        held_by.insert(from.clone());
        let nodes = held_by.iter().map(|session| session.node.clone());
        let nodes: Vec<NodeId> = nodes.take(limits::OF_ONE).collect();
        if let Some(task) = self.tasks.get_mut(name)
            && task.claim.replicas != nodes
        {
            task.claim.replicas = nodes;
            self.publish(name);
        }
    }
}
