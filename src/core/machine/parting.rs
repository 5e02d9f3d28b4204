//! What is released goes to a replica first (DEPLOYS 2).

use super::Machine;
use super::recover::transfer_time;
use super::task::{Doing, Task};
use crate::core::branch::Header;
use crate::core::ids::{Name, SessionId};
use crate::core::io::Action;

impl Machine {
    /// Stopped, or not started yet, to be released: its last commit goes to a replica first, where
    /// there is one. It is in no hurry otherwise than the drain is.
    pub(super) fn part(&mut self, name: &Name) {
        let targets = self.replica_targets(name);
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Some(latest) = task.latest.clone().or_else(|| self.looked_for(task)) else {
            return self.release(name);
        };
        if targets.is_empty() || self.holders(task) > 0 {
            return self.release(name);
        }
        let until = self.now.at + transfer_time(latest.len);
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        task.latest = Some(latest.clone());
        task.replicas = targets;
        task.doing = Doing::Parting { until };
        self.alarm(name, until);
        match self.tasks.get(name).and_then(|task| task.bytes.clone()) {
            Some(state) => self.replicate_loaded(&latest, &state),
            None => self.push(Action::Load { header: latest }),
        }
    }

    /// The state of a task that was to start here, where this node holds it: perhaps nobody else does.
    fn looked_for(&self, task: &Task) -> Option<Header> {
        if !matches!(task.doing, Doing::Settling(_) | Doing::Finding(_) | Doing::Fetching { .. }) {
            return None;
        }
        let held = self.held.get(&task.claim.name)?.get(&task.claim.run)?;
        held.best_from(task.prior.floor.as_ref()).cloned()
    }

    /// A replica has answered: is the last commit in other hands, or will nobody have it?
    pub(super) fn parted(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let refused = task.replicas.iter().all(|session| task.refused.contains(session));
        if matches!(task.doing, Doing::Parting { .. }) && (self.holders(task) > 0 || refused) {
            self.release(name);
        }
    }

    pub(super) fn look_parting(&mut self, name: &Name) {
        let Some(task) = self.tasks.get(name) else {
            return;
        };
        let Doing::Parting { until } = task.doing else {
            return;
        };
        let gone = task.replicas.iter().all(|session| self.members.is_gone(session));
        if gone {
            // There may be others.
            self.part(name);
        } else if self.now.at >= until {
            self.release(name);
        } else {
            self.alarm(name, until);
        }
    }

    /// How many peers that stay hold the newest commit of a task, for all that is known here.
    pub(super) fn holders(&self, task: &Task) -> usize {
        let stays = |session: &SessionId| self.members.get(session).is_some_and(|p| p.keeps());
        match &task.latest {
            Some(latest) => {
                let acked = task.acked.iter();
                acked.filter(|(s, held)| **held >= latest.position && stays(s)).count()
            }
            // It has not run here: it is where its last owner had it.
            None => {
                let nodes = task.claim.replicas.iter();
                let others = nodes.filter(|node| **node != self.config.me.node);
                others.filter(|node| self.members.session_of(node).is_some_and(stays)).count()
            }
        }
    }
}
