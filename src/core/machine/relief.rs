//! A node that leaves is relieved first of what it keeps for others: a checkpoint must be on as many
//! other nodes as ever before it goes (DEPLOYS 2), or the owner's death right after it costs what was
//! acknowledged. The owners see to that by themselves, and a drain waits for it; one that does not in
//! time may be dead without being known to be, and the copy goes to another node from here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;

use super::Machine;
use super::recover::transfer_time;
use super::task::{Doing, Purpose};
use crate::core::branch::{Header, Position};
use crate::core::claim::{Claim, Phase};
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::io::{Action, Cause};
use crate::core::members::Peer;
use crate::core::message::Rejection;
use crate::core::placement;
use crate::core::record::NodeState;
use crate::core::time::Time;

/// The copies that a draining node gives to others by itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Relief {
    /// Since when their owners are waited for.
    since: Option<Time>,
    giving: BTreeMap<Name, Gift>,
    /// Who has acknowledged which.
    given: BTreeMap<Name, (Header, BTreeSet<SessionId>)>,
    refused: BTreeSet<SessionId>,
    /// How far the pass over what is held has come, if one is under way.
    pass: Option<Bound<Name>>,
    /// When the last pass began: there may be very many names.
    looked: Option<Time>,
}

/// A copy on its way.
#[derive(Clone, Debug)]
struct Gift {
    header: Header,
    to: Vec<SessionId>,
    /// An answer is waited for until then.
    until: Time,
}

/// Copies on their way at a time: each is read whole.
const AT_ONCE: usize = 64;
/// Between two passes over what is held.
const PASS: Duration = Duration::from_millis(400);

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
        // The owner may have died before it published the end. There may be very many outputs, and nothing runs
        // twice for want of one: once their publishers, and then this node, have had the time to give them away
        // one copy will do, if its keeper is known to live.
        if self.copied_run(name) == Some(owner.run) {
            let time = self.config.timing.convergence() * 2;
            let fresh = self
                .drain
                .as_ref()
                .is_some_and(|drain| !drain.is_hurried() && drain.lasts(self.now.at) < time);
            let wanted = if fresh { (replicas + 1).min(keepers) } else { 1 };
            return self.living_ends(name, owner.run) < wanted;
        }
        if owner.phase.is_held() && owner.session != self.config.me {
            // What is below the floor is of no use to anybody.
            return self.copy_here(owner).is_some_and(|best| {
                self.staying_copies(owner) + self.given(owner, best).count()
                    < (replicas + 1).min(keepers)
            });
        }
        owner.phase == Phase::Released && self.is_left_here(owner) && self.staying_copies(owner) < 1
    }

    /// How many others are known to live and to keep the end of a run that is kept here: those that say so in
    /// their claims or are named there, and those that were given it from here. Not a publisher that does not know of
    /// the copy here, and may have heard of the end alone.
    fn living_ends(&self, name: &Name, run: RunId) -> usize {
        let lives = |session: &&SessionId| {
            self.members.get(session).is_some_and(|peer| self.may_keep(peer))
                && self.is_answered_by(session)
        };
        let unaware = self.unaware(name);
        let of_others = self.view.claims(name).filter(|claim| {
            claim.run == run && claim.session != self.config.me && !self.is_void(claim)
        });
        let ends = of_others
            .filter(|claim| claim.phase.is_terminal() && Some(&claim.session) != unaware.as_ref());
        let named = ends.flat_map(|end| {
            let replicas = end.replicas.iter().filter_map(|node| self.members.session_of(node));
            replicas.chain([&end.session])
        });
        let keepers: BTreeSet<&SessionId> =
            named.chain(self.copies.given(name)).filter(lives).collect();
        keepers.len()
    }

    /// Whether what another node has released is kept here: nobody owns it, so nobody sees to its copies.
    fn is_left_here(&self, released: &Claim) -> bool {
        released.session != self.config.me && self.copy_here(released).is_some()
    }

    fn copy_here(&self, owner: &Claim) -> Option<&Header> {
        self.held.get(&owner.name)?.get(&owner.run)?.best_from(owner.floor.as_ref())
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

    /// Gives away what others still rely on, once their owners have had the time to see to it: also while
    /// what runs here has not gone yet, which may take the whole budget.
    pub(super) fn tick_relief(&mut self) {
        let now = self.now.at;
        let patience = self.config.timing.convergence();
        let Some(drain) = &mut self.drain else { return };
        let hurried = drain.is_hurried();
        let relief = &mut drain.relief;
        let since = *relief.since.get_or_insert(now);
        if !hurried && now.since(since) < patience {
            return;
        }
        relief.giving.retain(|name, gift| {
            if now < gift.until {
                return true;
            }
            let given = relief.given.get(name);
            let answered = |to: &SessionId| given.is_some_and(|(_, by)| by.contains(to));
            drain.silent.extend(gift.to.iter().filter(|to| !answered(to)).cloned());
            false
        });
        let begins = relief.pass.is_none() && relief.looked.is_none_or(|at| now.since(at) >= PASS);
        if begins {
            (relief.pass, relief.looked) = (Some(Bound::Unbounded), Some(now));
            self.give_ends();
        }
        self.give_on();
    }

    /// Goes on with the pass over what is held, as far as there is room.
    fn give_on(&mut self) {
        while let Some(relief) = self.drain.as_ref().map(|drain| &drain.relief)
            && let Some(from) = &relief.pass
            && relief.giving.len() < AT_ONCE
        {
            let rest = self.held.range::<Name, _>((from.as_ref(), Bound::Unbounded));
            let mut names = rest.map(|(name, _)| name);
            let next = names
                .find(|name| !relief.giving.contains_key(*name) && self.is_relied_on(name))
                .cloned();
            let gift = next.as_ref().and_then(|name| self.gift(name));
            let Some(drain) = &mut self.drain else { return };
            drain.relief.pass = next.map(Bound::Excluded);
            if let Some(gift) = gift {
                let header = gift.header.clone();
                drain.relief.giving.insert(header.name.clone(), gift);
                self.push(Action::Load { header });
            }
        }
    }

    /// Gives away ends whose other keepers may be dead, by answering for them from here on.
    fn give_ends(&mut self) {
        let ends = self.ends.keys().filter(|name| !self.copies.is_answered_for(name));
        let open = ends.filter(|name| self.is_relied_on(name)).take(AT_ONCE);
        for name in open.cloned().collect::<Vec<_>>() {
            self.answer_for_end(&name, BTreeSet::new());
        }
    }

    /// What is to be given of a name, if somebody is there to take it.
    fn gift(&self, name: &Name) -> Option<Gift> {
        let owner = self.view.owner(name)?;
        let (to, header) = (self.receivers(owner), self.copy_here(owner)?.clone());
        let until = self.now.at + self.patience(transfer_time(header.len));
        (!to.is_empty()).then_some(Gift { header, to, until })
    }

    /// Who is to get a copy of what this claim's owner has here: as many as it lacks, and last those that
    /// may be dead as well.
    fn receivers(&self, owner: &Claim) -> Vec<SessionId> {
        let (Some(drain), Some(best)) = (&self.drain, self.copy_here(owner)) else {
            return Vec::new();
        };
        let given: BTreeSet<&SessionId> = self.given(owner, best).collect();
        let wanted =
            (self.config.replicas + 1).saturating_sub(self.staying_copies(owner) + given.len());
        let lacks = |session: &SessionId| {
            *session != owner.session
                && !owner.replicas.contains(&session.node)
                && !given.contains(session)
                && !drain.relief.refused.contains(session)
        };
        let others = self.members.iter().filter(|(s, peer)| self.may_keep(peer) && lacks(s));
        let mut order = placement::rendezvous(&owner.name, others.map(|(session, _)| session));
        order.sort_by_key(|session| self.is_doubted(session));
        order.into_iter().take(wanted).cloned().collect()
    }

    /// The bytes of a copy that is to be given away.
    pub(super) fn relief_loaded(&mut self, header: &Header, state: &Bytes) {
        let giving = self.drain.as_ref().and_then(|drain| drain.relief.giving.get(&header.name));
        let Some(gift) = giving.filter(|gift| gift.header == *header) else {
            return;
        };
        let Some(owner) = self.view.owner(&header.name).filter(|owner| owner.run == header.run)
        else {
            return;
        };
        let Some(spec) = self.spec_of(&header.name, header.run) else {
            return;
        };
        let (to, claim, spec) = (gift.to.clone(), owner.clone(), spec.clone());
        for to in to {
            self.send_checkpoint(&to, &claim, &spec, header, state);
        }
    }

    /// How a copy that was given away has fared.
    pub(super) fn relief_answered(
        &mut self,
        from: &SessionId,
        name: &Name,
        run: RunId,
        position: Position,
        result: &Result<(), Rejection>,
    ) {
        let Some(relief) = self.drain.as_mut().map(|drain| &mut drain.relief) else {
            return;
        };
        let Some(Gift { header, .. }) = relief.giving.get(name) else {
            return;
        };
        if (header.run, header.position) != (run, position) {
            return;
        }
        match result {
            Ok(()) => {
                let given = relief.given.entry(name.clone());
                let (of, by) = given.or_insert_with(|| (header.clone(), BTreeSet::new()));
                if of != header {
                    (*of, *by) = (header.clone(), BTreeSet::new());
                }
                by.insert(from.clone());
            }
            Err(Rejection::Unavailable(_)) => {
                relief.refused.insert(from.clone());
            }
            // It keeps what a zombie wrote all the same, and says so too.
            Err(Rejection::Superseded(_)) => return,
        }
        if result.is_err() || !self.is_relied_on(name) {
            if let Some(drain) = &mut self.drain {
                drain.relief.giving.remove(name);
            }
            self.give_on();
        }
    }

    /// Those that stay and have acknowledged this copy from here; whom the owner names is counted there.
    fn given<'a>(
        &'a self,
        owner: &'a Claim,
        best: &'a Header,
    ) -> impl Iterator<Item = &'a SessionId> {
        let given = self.drain.as_ref().and_then(|drain| drain.relief.given.get(&owner.name));
        let by = given.filter(|(header, _)| header == best).into_iter().flat_map(|(_, by)| by);
        by.filter(|session| {
            **session != owner.session
                && !owner.replicas.contains(&session.node)
                && self.members.get(session).is_some_and(|peer| self.may_keep(peer))
        })
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

    /// How many peers there are that copies can be given to, or will be while there is time to wait for it.
    fn keepers(&self) -> usize {
        let has_time = self.has_time_to_drain();
        let keeps = |peer: &Peer| self.may_keep(peer) || (has_time && peer.joins());
        let known = self.members.iter().filter(|(_, peer)| keeps(peer)).count();
        known + usize::from(self.expects_joiners())
    }
}
