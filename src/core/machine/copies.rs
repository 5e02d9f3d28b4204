//! How many nodes hold an end: as many as hold a checkpoint, whoever goes (Rule 12).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::Machine;
use super::task::Doing;
use crate::core::ids::{Name, NodeId, RunId, SessionId};
use crate::core::io::Action;
use crate::core::message::Message;
use crate::core::placement;
use crate::core::record::NodeState;

/// Ends that this node publishes, and therefore answers for.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies {
    /// The peers that have said that they hold it, too.
    held_by: BTreeMap<Name, BTreeSet<SessionId>>,
    /// Ends that may want another copy.
    due: BTreeSet<Name>,
}

/// Ends looked at in one tick: nobody waits for a copy, and there may be very many.
const AT_ONCE: usize = 64;

impl Machine {
    /// This node publishes an end from now on, of which these peers hold a copy.
    pub(super) fn answer_for_end(&mut self, name: &Name, held_by: BTreeSet<SessionId>) {
        self.copies.held_by.insert(name.clone(), held_by);
        self.copies.due.insert(name.clone());
    }

    /// This node publishes the end no more.
    pub(super) fn drop_copies(&mut self, name: &Name) {
        self.copies.held_by.remove(name);
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
        let wanted = self.config.replicas;
        let few = self.copies.held_by.iter().filter(|(_, held_by)| held_by.len() < wanted);
        self.copies.due.extend(few.map(|(name, _)| name.clone()));
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
            return self.drop_copies(name);
        };
        if self.lacking(name).is_empty() {
            return;
        }
        self.push(Action::LoadEnd { name: name.clone(), run });
        // It may be lost on its way.
        self.alarm_in(name, self.config.timing.convergence());
    }

    /// An alarm has rung: is every copy where it should be?
    pub(super) fn look_copies(&mut self, name: &Name) {
        if self.copies.held_by.contains_key(name) && !self.lacking(name).is_empty() {
            self.copies.due.insert(name.clone());
        }
    }

    /// The run whose end is to be copied: one that this node publishes and that can still be read.
    fn copied_run(&self, name: &Name) -> Option<RunId> {
        let task = self.tasks.get(name)?;
        let (end, at) = self.ends.get(name)?;
        let young = self.now.at.since(*at) < self.config.timing.retention;
        let published = matches!(task.doing, Doing::Over { .. }) && task.claim.phase.is_terminal();
        (young && published && end.run == task.claim.run).then_some(end.run)
    }

    /// The peers that are to get a copy.
    fn lacking(&self, name: &Name) -> Vec<SessionId> {
        let Some(held_by) = self.copies.held_by.get(name) else {
            return Vec::new();
        };
        let wanted = self.config.replicas.saturating_sub(held_by.len());
        let others = self.members.iter().filter(|(s, peer)| peer.is_up() && !held_by.contains(*s));
        let order = placement::rendezvous(name, others.map(|(session, _)| session));
        order.into_iter().take(wanted).cloned().collect()
    }

    /// What an end brought has been read; nothing where the task brought nothing.
    pub(super) fn on_loaded_end(&mut self, name: &Name, run: RunId, output: Option<Bytes>) {
        if self.copied_run(name) != Some(run) {
            return;
        }
        let (Some(task), Some((end, at))) = (self.tasks.get(name), self.ends.get(name)) else {
            return;
        };
        let (claim, spec, age) = (end.clone(), task.spec.clone(), self.now.at.since(*at));
        for to in self.lacking(name) {
            let (claim, spec, output) = (claim.clone(), spec.clone(), output.clone());
            self.send(&to, Message::Ended { claim, spec, output, age });
        }
    }

    /// A peer holds a copy: whoever looks for the output learns where it is.
    pub(super) fn copied(&mut self, from: &SessionId, name: &Name) {
        let Some(held_by) = self.copies.held_by.get_mut(name) else {
            return;
        };
        held_by.insert(from.clone());
        let nodes: Vec<NodeId> = held_by.iter().map(|session| session.node.clone()).collect();
        if let Some(task) = self.tasks.get_mut(name)
            && task.claim.replicas != nodes
        {
            task.claim.replicas = nodes;
            self.publish(name);
        }
    }
}
