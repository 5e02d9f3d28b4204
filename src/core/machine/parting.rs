//! What is released goes to a replica first (DEPLOYS 2).

use std::collections::BTreeSet;

use super::Machine;
use super::drain::Drain;
use super::recover::transfer_time;
use super::task::{Doing, Purpose, Task};
use crate::core::branch::Header;
use crate::core::claim::Phase;
use crate::core::ids::{Name, SessionId};
use crate::core::io::{Action, Cause};
use crate::core::time::Time;

/// How often it is looked whether a replica has shown that it lives, in a gossip interval.
const LOOKS: u32 = 4;

impl Machine {
    /// Stopped, or not started yet, to be released: its last commit goes to a replica first, where
    /// there is one. It is in no hurry otherwise than the drain is.
    pub(super) fn part(&mut self, name: &Name) {
        if self.awaits_joiners(name) {
            return;
        }
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
        let lacks = |to| task.acked.get(to).is_none_or(|held| *held < latest.position);
        let lacking = targets.iter().any(lacks);
        // What they had acknowledged before needs no more than a sign of life.
        let wait =
            if lacking { transfer_time(latest.len) } else { self.config.timing.convergence() };
        let until = self.now.at + self.patience(wait);
        let Some(task) = self.tasks.get_mut(name) else {
            return;
        };
        task.latest = Some(latest.clone());
        task.replicas = targets;
        task.doing = Doing::Parting { until };
        self.look_at_parting(name, until);
        if !lacking {
            return;
        }
        match self.tasks.get(name).and_then(|task| task.bytes.clone()) {
            Some(state) => self.replicate_loaded(&latest, &state),
            None => self.push(Action::Load { header: latest }),
        }
    }

    /// Whether somebody may soon be there who can have it: it is kept until then, or goes on starting here.
    fn awaits_joiners(&mut self, name: &Name) -> bool {
        if !self.expects_taker(name) {
            return false;
        }
        let taker = self.has_taker(name);
        let Some(task) = self.tasks.get_mut(name) else {
            return false;
        };
        let phase = &task.claim.phase;
        if phase.has_begun() && *phase != Phase::Recovering {
            task.doing = Doing::Kept;
            return true;
        }
        match task.doing {
            _ if taker => false,
            Doing::Parting { .. } | Doing::Moving { .. } => {
                let spec = task.spec.clone();
                self.claim(spec, Cause::Drain, Purpose::Custody, Vec::new());
                true
            }
            _ => true,
        }
    }

    /// Whether another node could have a task now.
    fn has_taker(&self, name: &Name) -> bool {
        let me = BTreeSet::from([self.config.me.clone()]);
        self.tasks.get(name).is_some_and(|task| {
            !self.candidates(&task.spec, self.state_version(task), &me).is_empty()
        })
    }

    /// The state of a task that was to start here, where this node holds it: perhaps nobody else does.
    fn looked_for(&self, task: &Task) -> Option<Header> {
        if !matches!(task.doing, Doing::Settling(_) | Doing::Finding(_) | Doing::Fetching { .. }) {
            return None;
        }
        self.newest_here(task).cloned()
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
        if self.holders(task) > 0 {
            return self.release(name);
        }
        let gone = task.replicas.iter().all(|session| self.members.is_gone(session));
        if gone {
            // There may be others.
            return self.part(name);
        }
        if self.now.at < until {
            return self.look_at_parting(name, until);
        }
        // They may be dead as well: others are asked, if there are any.
        let asked = task.replicas.clone();
        if let Some(drain) = &mut self.drain {
            drain.silent.extend(asked.iter().cloned());
        }
        let others = self.replica_targets(name);
        let open = |drain: &Drain| others.iter().any(|to| !drain.silent.contains(to));
        if self.drain.as_ref().is_some_and(open) {
            self.part(name);
        } else {
            self.release(name);
        }
    }

    fn look_at_parting(&mut self, name: &Name, until: Time) {
        let soon = self.now.at + self.config.timing.gossip_interval / LOOKS;
        self.alarm(name, until.min(soon));
    }

    /// How many peers that stay hold the newest commit of a task, for all that is known here.
    pub(super) fn holders(&self, task: &Task) -> usize {
        let stays =
            |session: &SessionId| self.members.get(session).is_some_and(|p| self.may_keep(p));
        match &task.latest {
            Some(latest) => {
                let acked = task.acked.iter().filter(|(_, held)| **held >= latest.position);
                acked.filter(|(s, _)| stays(s) && self.is_answered_by(s)).count()
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
