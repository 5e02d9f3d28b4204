//! A node that leaves is relieved first of what it keeps for others: a checkpoint must be on as many
//! other nodes as ever before it goes (DEPLOYS 2), or the owner's death right after it costs what was
//! acknowledged. The owners see to that by themselves; a drain waits for it.

use std::ops::Bound;

use super::Machine;
use super::task::{Doing, Purpose};
use crate::core::claim::{Claim, Phase};
use crate::core::ids::{Name, SessionId};
use crate::core::io::Cause;
use crate::core::record::NodeState;

impl Machine {
    /// A name of which too few others keep a copy without this node: looked for from `from` on, and
    /// then from the beginning.
    pub(super) fn relied_on(&self, from: Option<&Name>) -> Option<Name> {
        let within = |range: (Bound<&Name>, Bound<&Name>)| {
            let held = self.held.range::<Name, _>(range).map(|(name, _)| name);
            let ends = self.ends.range::<Name, _>(range).map(|(name, _)| name);
            held.chain(ends).find(|name| self.is_relied_on(name)).cloned()
        };
        match from {
            None => within((Bound::Unbounded, Bound::Unbounded)),
            Some(from) => within((Bound::Included(from), Bound::Unbounded))
                .or_else(|| within((Bound::Unbounded, Bound::Excluded(from)))),
        }
    }

    fn is_relied_on(&self, name: &Name) -> bool {
        let Some(owner) = self.view.owner(name) else {
            return false;
        };
        let (replicas, keepers) = (self.config.replicas, self.keepers());
        if replicas == 0 || keepers == 0 {
            return false;
        }
        if owner.phase.is_held() && owner.session != self.config.me {
            let held = self.held.get(name).and_then(|runs| runs.get(&owner.run));
            // What is below the floor is of no use to anybody.
            return held.is_some_and(|held| held.best_from(owner.floor.as_ref()).is_some())
                && self.staying_copies(owner) < (replicas + 1).min(keepers);
        }
        if owner.phase == Phase::Released {
            return self.is_left_here(owner) && self.staying_copies(owner) < 1;
        }
        // Nothing runs twice for want of an output, and there may be very many: one copy will do.
        let ends = || {
            let claims = self.view.claims(name).filter(|claim| claim.run == owner.run);
            claims.filter(|claim| claim.phase.is_terminal() && !self.is_void(claim))
        };
        owner.phase.is_terminal()
            && self.copied_run(name) == Some(owner.run)
            && ends().all(|end| self.staying_copies(end) < 1)
    }

    /// Whether what another node has released is kept here: nobody owns it, so nobody sees to its copies.
    fn is_left_here(&self, released: &Claim) -> bool {
        let held = self.held.get(&released.name).and_then(|runs| runs.get(&released.run));
        released.session != self.config.me
            && held.is_some_and(|held| held.best_from(released.floor.as_ref()).is_some())
    }

    /// Names that nobody has any more, where nobody stays who could: this node is the last that knows of them.
    pub(super) fn orphans(&self) -> Vec<Name> {
        if self.keepers() > 0 {
            return Vec::new();
        }
        let is_orphan = |name: &&Name| {
            let Some(owner) = self.view.owner(name).filter(|owner| !owner.phase.is_terminal())
            else {
                return false;
            };
            let held = !owner.phase.is_free() && !self.is_void(owner);
            let was_here = self.tasks.get(*name).is_some_and(|task| task.claim.run == owner.run);
            let superseded = owner.phase == Phase::Superseded;
            !(held || was_here || superseded) && self.spec_of(name, owner.run).is_some()
        };
        self.view.names().filter(is_orphan).cloned().collect()
    }

    /// Keeps a name that nobody else has until another node has its state, by the way of all that a drain
    /// finds here: then it is this node that has released it, and that answers for it.
    pub(super) fn take_up(&mut self, name: &Name) {
        let owner = self.view.owner(name);
        let Some(spec) = owner.and_then(|owner| self.spec_of(name, owner.run)).cloned() else {
            return;
        };
        let task = self.tasks.get(name);
        let idle = task.is_none_or(|task| matches!(task.doing, Doing::Over { .. }));
        if idle && self.state == NodeState::Draining {
            self.claim(spec, Cause::Drain, Purpose::Custody, Vec::new());
        }
    }

    pub(super) fn is_released(&self, name: &Name) -> bool {
        self.view.owner(name).is_some_and(|owner| owner.phase == Phase::Released)
    }

    /// How many nodes that stay hold what this claim speaks of: an owner once it has begun, and not
    /// while it looks for it; one that has released it may never have had it.
    fn staying_copies(&self, owner: &Claim) -> usize {
        let stays = |session: &SessionId| self.members.get(session).is_some_and(|p| p.keeps());
        let others = owner.replicas.iter().filter(|node| **node != owner.session.node);
        let replicas = others.filter(|node| self.members.session_of(node).is_some_and(stays));
        let has = owner.phase.is_terminal()
            || (owner.phase.has_begun() && owner.phase != Phase::Recovering);
        replicas.count() + usize::from(has && stays(&owner.session))
    }

    /// How many peers there are that copies can be given to.
    fn keepers(&self) -> usize {
        self.members.iter().filter(|(_, peer)| peer.keeps()).count()
    }
}
