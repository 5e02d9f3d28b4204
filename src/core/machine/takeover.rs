//! Who takes a name whose owner is gone, and when (Rules 5 to 7, 13, 24).

use std::time::Duration;

use super::task::{Doing, Purpose};
use super::{MAX_BURIED, Machine, TICK};
use crate::core::claim::{Claim, Mode, Phase, Want};
use crate::core::ids::{Name, SessionId};
use crate::core::io::{Cause, Gone, Notice};
use crate::core::placement::{self, Candidate};
use crate::core::record::NodeState;
use crate::core::time::Time;

impl Machine {
    /// Nobody alive holds a name that has not ended: is it this node's turn?
    pub(super) fn look_takeover(&mut self, name: &Name) {
        if self.state != NodeState::Up {
            return;
        }
        if self.tasks.get(name).is_some_and(|task| !matches!(task.doing, Doing::Over { .. })) {
            return;
        }
        let Some((top, free_since, cause)) = self.vacant(name) else {
            // That its target is gone would touch no claim of the name.
            if self.awaits_target(name) {
                self.alarm_in(name, self.config.timing.convergence());
            }
            return;
        };
        if top.phase.is_held() && top.terms.mode == Mode::Unknown {
            // Whoever does not know the owner's promise cannot keep it (Rule 11).
            if self.left_alone.insert(name.clone()) {
                let session = &top.session;
                self.tell(Notice::Warning(format!(
                    "{name} was held by {session} in a mode that this build does not know: a node \
                     of a newer build has to take it over"
                )));
            }
            return;
        }
        self.left_alone.remove(name);
        if let Some(until) = self.members.brake()
            && cause == Cause::Crash
        {
            return self.alarm(name, until);
        }
        // A node that nobody echoes may be the one that is cut off (S2).
        if !self.members.may_take_over(self.now.at) {
            return self.alarm_in(name, TICK * 5);
        }
        if self.load_now().full || self.specs.get(name).is_some_and(|spec| self.is_full_for(spec)) {
            self.passed_over.insert(name.clone());
        }
        let Some((rank, purpose)) = self.takeover_rank(name, &top) else {
            return;
        };
        let timing = &self.config.timing;
        let mut due = free_since + timing.takeover_delay * rank;
        if purpose == Purpose::Custody {
            due = due + timing.silence_floor + timing.takeover_delay;
        }
        if self.now.at < due {
            return self.alarm(name, due);
        }
        let Some(spec) = self.spec_of(name, top.run).cloned() else {
            return;
        };
        self.claim(spec, cause, purpose, Vec::new());
        if let Some(task) = self.tasks.get_mut(name) {
            task.freed = (cause == Cause::Released).then_some(free_since);
        }
    }

    /// The highest claim of a name nobody alive holds, since when, and why.
    fn vacant(&self, name: &Name) -> Option<(Claim, Time, Cause)> {
        let claims = || {
            let claims = self.view.claims(name);
            claims.filter(|c| c.phase != Phase::Superseded && !self.buried.contains_key(&c.session))
        };
        let top = claims().max_by(|a, b| a.order(b))?;
        // A run that its node has let go of, perhaps before it ran, does not come before one that was at work.
        let at_work = |c: &&Claim| c.run != top.run && c.phase.has_begun();
        let at_work = claims().filter(|c| top.phase.is_free() && at_work(c));
        let top = at_work.max_by(|a, b| a.order(b)).unwrap_or(top);
        if self.view.ended(name).is_some()
            || self.ends.get(name).is_some_and(|(end, _)| end.ends(top))
        {
            return None;
        }
        // A run that stepped back for another one that lives does not ask again without end.
        let other = |c: &&Claim| c.run != top.run && c.phase.is_held() && !self.is_void(c);
        if top.phase.is_free() && claims().any(|claim| other(&claim)) {
            return None;
        }
        let mut since = None;
        let mut cause = Cause::Released;
        for claim in claims().filter(|claim| claim.run == top.run) {
            if claim.session == self.config.me && claim.phase.is_held() {
                return None;
            }
            let gone = self.members.get(&claim.session).and_then(|peer| peer.gone);
            match &claim.phase {
                Phase::Superseded => continue,
                Phase::Released => continue,
                // It has arrived: the source has nothing more to do with it.
                Phase::Transferred { .. } if claim.epoch < top.epoch && top.phase.has_begun() => {}
                // The target has it, or its source will find another.
                Phase::Transferred { to, .. } => {
                    let source_lives = gone.is_none() && claim.session != self.config.me;
                    let target_lives = *to != self.config.me && !self.members.is_gone(to);
                    if source_lives || (target_lives && !self.left_it(name, to, claim)) {
                        return None;
                    }
                    if let Some((_, at)) = gone {
                        since = since.max(Some(at));
                    }
                }
                _ if claim.phase.is_held() => {
                    let (why, at) = gone?;
                    since = since.max(Some(at + self.longer_floor(claim, why)));
                    // A goodbye promises that everything has stopped.
                    if why != Gone::Left {
                        cause = Cause::Crash;
                    }
                }
                _ => continue,
            }
        }
        // Records of what was before the last release are older than it.
        let seen = self.free_since.get(name).copied();
        let since = since.max(seen).unwrap_or(self.now.at);
        (top.phase != Phase::Superseded).then(|| (top.clone(), since, cause))
    }

    /// Whether the source of a transfer is gone, and its target has not been heard to have the name.
    fn awaits_target(&self, name: &Name) -> bool {
        self.view.claims(name).any(|claim| match &claim.phase {
            Phase::Transferred { to, .. } => {
                self.members.is_gone(&claim.session)
                    && *to != self.config.me
                    && self.view.get(name, to).is_none()
            }
            _ => false,
        })
    }

    /// How much longer than mine the owner's silence floor is: a taker obeys the owner's (Rule 11).
    fn longer_floor(&self, claim: &Claim, why: Gone) -> Duration {
        match why {
            Gone::Silent => {
                claim.terms.silence_floor.saturating_sub(self.config.timing.silence_floor)
            }
            _ => Duration::ZERO,
        }
    }

    /// Whether the target of a transfer has since written that it does not hold the name.
    fn left_it(&self, name: &Name, to: &SessionId, from: &Claim) -> bool {
        self.view
            .get(name, to)
            .is_some_and(|theirs| theirs.epoch > from.epoch && theirs.phase.is_free())
    }

    /// Notes when a name was first seen free, for the ranks to count from.
    pub(super) fn look_free(&mut self, name: &Name) {
        let free = self.view.owner(name).is_some_and(|owner| owner.phase.is_free());
        if free {
            let now = self.now.at;
            self.free_since.entry(name.clone()).or_insert(now);
        } else {
            self.free_since.remove(name);
        }
    }

    /// This node's place in the order of takers, and whether it would run the name or only keep it.
    /// Replicas first, as the claim names them, then the rendezvous order.
    fn takeover_rank(&self, name: &Name, top: &Claim) -> Option<(u32, Purpose)> {
        let spec = self.spec_of(name, top.run)?;
        let version = self
            .held
            .get(name)
            .and_then(|runs| runs.get(&top.run)?.best())
            .map(|header| header.state_version);
        let me = &self.config.me;
        let up = self.members.iter().filter(|(_, peer)| peer.is_up());
        let mut eligible: Vec<&SessionId> = up
            .clone()
            .filter(|(_, peer)| !peer.load.full)
            .filter_map(|(session, peer)| {
                let record = peer.record.as_ref()?;
                Candidate { session, record, load: peer.load }
                    .can_run(&spec.kind, version)
                    .then_some(session)
            })
            .collect();
        let cancelled = self.wanted(name) == Want::Cancel;
        if self.may_take(spec, version) || cancelled {
            eligible.push(me);
        }
        let mut before = 0;
        if !eligible.is_empty() {
            let order = placement::rendezvous(name, eligible);
            let replica = |session: &SessionId| {
                top.replicas.iter().position(|node| *node == session.node).unwrap_or(usize::MAX)
            };
            let mut ranked = order;
            ranked.sort_by_key(|session| replica(session));
            if let Some(rank) = ranked.iter().position(|session| *session == me) {
                return Some((u32::try_from(rank).ok()?, Purpose::Run));
            }
            // Those may have their limits, which are not known here.
            before = ranked.len();
        }
        let all = up.map(|(session, _)| session).chain(std::iter::once(me));
        let rank = placement::rendezvous(name, all).iter().position(|session| *session == me)?;
        // A parked claim that was released by a holder that left is kept by the next one.
        Some((u32::try_from(before + rank).ok()?, Purpose::Custody))
    }

    /// Voids a dead session's claims (Rule 24).
    pub(super) fn bury(&mut self, session: &SessionId) {
        self.buried.insert(session.clone(), self.now.at);
        self.refused.remove(session);
        self.members.forget(session);
        self.touch_all_of(session);
    }

    /// Forgets a session of which nothing was ever known but what others say.
    pub(super) fn forget_session(&mut self, session: &SessionId) {
        self.members.forget(session);
        self.refused.remove(session);
        self.rivalries.remove(session);
        self.askers.retain(|_, askers| {
            askers.remove(session);
            !askers.is_empty()
        });
        self.drop_claims(session);
    }

    /// Drops a buried session's claims: gossip has forgotten them too, and would bring them again.
    fn drop_claims(&mut self, session: &SessionId) {
        for name in self.view.names_of(session) {
            self.view.remove(&name, session);
            self.dirty.insert(name);
        }
        self.view.forget_session(session);
    }

    /// Buries those of the gone whose names are all settled elsewhere, and forgets old graves.
    pub(super) fn tick_burials(&mut self) {
        let timing = &self.config.timing;
        let (grace, memory) = (timing.dead_node_grace, timing.tombstone_retention);
        let now = self.now.at;
        // Looking through all that a dead session held is not for every tick.
        if now.since(self.mourned) < timing.silence_floor {
            return;
        }
        self.mourned = now;
        let old: Vec<SessionId> = self
            .buried
            .iter()
            .filter(|(_, at)| now.since(**at) >= memory)
            .map(|(session, _)| session.clone())
            .collect();
        for session in old {
            self.buried.remove(&session);
            self.drop_claims(&session);
        }
        let due: Vec<(SessionId, bool)> = self
            .members
            .iter()
            .filter(|(_, peer)| peer.gone.is_some_and(|(_, at)| now.since(at) >= grace))
            .map(|(session, peer)| (session.clone(), peer.is_hearsay()))
            .filter(|(session, hearsay)| {
                self.view.names_of(session).iter().all(|name| {
                    self.view.get(name, session).is_some_and(|dead| {
                        // Nobody here could take over what nothing is known of but a word.
                        if *hearsay && self.spec_of(name, dead.run).is_none() {
                            return true;
                        }
                        self.view.claims(name).any(|other| {
                            !self.is_void(other)
                                && other.session != *session
                                && (other.replaces(dead) || other.ends(dead))
                        })
                    })
                })
            })
            .collect();
        for (session, hearsay) in due {
            if hearsay {
                // It needs no grave: gossip does not speak of it, and whoever does is told nothing new.
                self.forget_session(&session);
                continue;
            } else if self.buried.len() < MAX_BURIED {
                self.bury(&session);
            } else {
                continue;
            }
            self.drop_claims(&session);
        }
    }
}
