//! Joining, and what a booting node finds on its disk (Rule 14).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Machine;
use super::task::Purpose;
use crate::core::branch::{Branches, Header, Position};
use crate::core::claim::{Claim, Phase, Spec};
use crate::core::ids::{Name, NodeId, RunId, SessionId};
use crate::core::io::{Action, Cause, Gone};
use crate::core::limits;
use crate::core::message::Message;
use crate::core::placement;
use crate::core::record::NodeState;
use crate::core::stored::StoredEnd;
use crate::core::time::Time;

type Found = (Name, RunId, Option<Position>);

#[derive(Clone, Debug, Default)]
pub(super) struct Boot {
    /// Names found on disk that are not settled yet. They are offers, not claims.
    offers: BTreeMap<Name, Spec>,
    /// Of those, the ones whose checkpoints are all damaged.
    damaged: BTreeSet<Name>,
    /// What others have found.
    found: BTreeMap<Name, BTreeMap<SessionId, (RunId, Option<Position>)>>,
    /// Nodes of the persisted member list that have not been heard.
    missing: BTreeSet<NodeId>,
    /// When the last of them was heard, or this node was up.
    heard_at: Time,
    up_since: Option<Time>,
    told: bool,
    /// Peers that wait for a checkpoint to be read from the store.
    readers: BTreeMap<(Name, Position, SessionId), BTreeSet<SessionId>>,
}

impl Boot {
    /// Since when this node knows what its peers know.
    pub(super) const fn up_since(&self) -> Option<Time> {
        self.up_since
    }

    pub(super) fn is_offered(&self, name: &Name) -> bool {
        self.offers.contains_key(name)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.offers.len() + self.found.len() + self.missing.len() + self.readers.len()
    }

    /// Whether the disk shows that a run offered here was checkpointed, and has nothing of it.
    pub(super) fn has_lost(&self, name: &Name) -> bool {
        self.damaged.contains(name)
    }

    /// The run of a name that was found on disk and is not settled yet.
    pub(super) fn offered(&self, name: &Name) -> Option<RunId> {
        Some(self.offers.get(name)?.run)
    }

    pub(super) fn readers(&mut self, header: &Header, reader: &SessionId) {
        let key = (header.name.clone(), header.position, header.writer.clone());
        self.readers.entry(key).or_default().insert(reader.clone());
    }

    pub(super) fn take_readers(&mut self, header: &Header) -> BTreeSet<SessionId> {
        let key = (header.name.clone(), header.position, header.writer.clone());
        self.readers.remove(&key).unwrap_or_default()
    }
}

impl Machine {
    pub(super) fn load_boot(&mut self) {
        let me = &self.config.me;
        let (own, others): (Vec<_>, Vec<_>) =
            self.config.members.iter().cloned().partition(|session| session.node == me.node);
        self.boot.missing = others.into_iter().map(|session| session.node).collect();
        // Who holds the directory has outlived all that held it before: there is nobody to wait for.
        let before =
            self.config.record.succeeds.map(|nonce| SessionId::new(me.node.clone(), nonce));
        for session in own.into_iter().chain(before) {
            self.members.mark_gone(self.now.at, &session, Gone::Superseded);
        }
        for stored in std::mem::take(&mut self.config.boot) {
            let name = stored.spec.name.clone();
            // A failure is compared like a live claim (Rule 9): there was one above it.
            let is_revoked = |claim: &Claim| {
                let above = |header: &Header| header.position.epoch > claim.epoch;
                claim.phase == Phase::Failed && stored.checkpoints.iter().any(above)
            };
            let end = stored.end.filter(|(end, _)| !is_revoked(&end.claim));
            if stored.damaged && stored.checkpoints.is_empty() {
                self.boot.damaged.insert(name.clone());
            }
            for header in stored.checkpoints {
                self.view.raise(&name, header.position.epoch);
                let runs = self.held.entry(name.clone()).or_default();
                runs.entry(header.run).or_default().admit(header);
            }
            self.note_pins(&name, stored.spec.run);
            if let Some(desired) = stored.desired
                && self.desires.get(&name).is_none_or(|known| desired.replaces(known))
            {
                self.desires.insert(name.clone(), desired);
            }
            if end.is_none() {
                let runs = self.held.entry(name.clone()).or_default();
                runs.entry(stored.spec.run).or_default();
            }
            if let Some((StoredEnd { claim, at }, output)) = end {
                self.view.raise(&name, claim.epoch);
                let newer = self.ends.get(&name).is_none_or(|(known, _)| claim.beats(known));
                if newer {
                    // A clock that was set back makes it no older than it is, but younger.
                    let age = Duration::from_secs(self.now.unix.saturating_sub(at));
                    if claim.phase == Phase::Finished && !output {
                        self.bare.insert(name.clone());
                    }
                    self.set_end(claim, self.now.at.back(age));
                    self.dirty.insert(name.clone());
                } else {
                    let run = stored.spec.run;
                    self.push(Action::Discard { name: name.clone(), run, headers: Vec::new() });
                }
            } else if self.boot.offers.get(&name).is_none_or(|known| stored.spec.run > known.run) {
                self.boot.offers.insert(name.clone(), stored.spec.clone());
            }
            if self.specs.get(&name).is_none_or(|known| stored.spec.run > known.run) {
                self.specs.insert(name, stored.spec);
            }
        }
        let ends = &self.ends;
        self.boot.offers.retain(|name, spec| ends.get(name).is_none_or(|(e, _)| e.run < spec.run));
        for (name, spec) in &self.boot.offers {
            let held = self.held.get(name).and_then(|runs| runs.get(&spec.run));
            let best = held.and_then(Branches::best).cloned();
            self.actions.push_back(Action::Found { name: name.clone(), run: spec.run, best });
        }
    }

    /// Joining: when does this node know enough to be up?
    pub(super) fn tick_join(&mut self) {
        if self.state != NodeState::Joining {
            return;
        }
        let now = self.now.at;
        let waited = now.since(self.started);
        let timing = &self.config.timing;
        let mut others = self.members.iter().filter(|(_, peer)| peer.gone.is_none()).peekable();
        let known = others.peek().is_some();
        // Whoever has no path to this node cannot reply to it: that must not keep it out for ever.
        let mute = |since: Time| now.since(since) >= timing.silence_floor;
        let up = if known {
            self.members.is_connected(now)
                && others.all(|(_, peer)| peer.caught_up || mute(peer.direct))
                && waited >= timing.gossip_interval
        } else {
            let patience = if self.config.seeds { timing.alone_after } else { timing.solo_after };
            waited >= patience
        };
        drop(others);
        if up {
            self.boot.up_since = Some(now);
            self.boot.heard_at = now;
            self.set_state(NodeState::Up);
            self.dirty.extend(self.ends.keys().cloned().collect::<Vec<_>>());
        }
    }

    /// Settles what was found on disk, once everybody who may know better has been heard.
    pub(super) fn tick_boot(&mut self) {
        let Some(up_since) = self.boot.up_since else {
            return;
        };
        if self.boot.offers.is_empty() {
            return;
        }
        if !std::mem::replace(&mut self.boot.told, true) {
            let peers: Vec<SessionId> = self.members.live().cloned().collect();
            peers.iter().for_each(|peer| self.found_to(peer));
        }
        let now = self.now.at;
        for (session, peer) in self.members.iter() {
            if peer.is_live() && self.boot.missing.remove(&session.node) {
                self.boot.heard_at = now;
            }
        }
        let timing = &self.config.timing;
        let patience = if self.members.is_connected(self.now.at) || self.boot.missing.is_empty() {
            timing.boot_wait
        } else {
            timing.alone_after
        };
        let waited = self.now.at.since(up_since);
        // One interval more than needed, so that what the last of them knows is here too.
        let settled = now.since(self.boot.heard_at) >= timing.gossip_interval * 2;
        let heard = self.boot.missing.is_empty() && settled;
        if !heard && waited < patience {
            return;
        }
        let names: Vec<Name> = self.boot.offers.keys().cloned().collect();
        for name in names {
            self.settle_offer(&name, up_since);
        }
        if self.boot.offers.is_empty() {
            self.boot.found.clear();
            self.boot.damaged.clear();
        }
    }

    fn settle_offer(&mut self, name: &Name, since: Time) {
        let Some(spec) = self.boot.offers.get(name).cloned() else {
            return;
        };
        let known = self.view.last_run(name).is_some_and(|run| run >= spec.run)
            || self.tasks.contains_key(name)
            || self.ends.get(name).is_some_and(|(end, _)| end.run >= spec.run);
        if known || self.state != NodeState::Up {
            // Somebody has it, or it is free under the ordinary rules: the files are a replica now.
            if known {
                self.boot.offers.remove(name);
            }
            return;
        }
        let best = self.best_held(name, spec.run);
        let rivals: Vec<(&SessionId, Option<Position>)> = self
            .boot
            .found
            .get(name)
            .into_iter()
            .flatten()
            .filter(|(session, (run, _))| *run == spec.run && !self.members.is_gone(session))
            .map(|(session, (_, position))| (session, *position))
            .collect();
        let me = &self.config.me;
        let sessions = rivals.iter().map(|(session, _)| *session).chain(std::iter::once(me));
        let mut order = placement::rendezvous(name, sessions);
        order.sort_by_key(|session| {
            let position = if *session == me {
                best
            } else {
                rivals.iter().find(|(rival, _)| rival == session).and_then(|(_, p)| *p)
            };
            std::cmp::Reverse(position)
        });
        let rank = order.iter().position(|session| *session == me).unwrap_or(0);
        let delay = self.config.timing.takeover_delay * u32::try_from(rank).unwrap_or(u32::MAX);
        let waited = self.now.at.since(since);
        if rank > 0 && waited < self.config.timing.boot_wait + delay {
            return;
        }
        let held = self.held.get(name).and_then(|runs| runs.get(&spec.run));
        let version = held.and_then(Branches::best).map(|header| header.state_version);
        let purpose = if self.may_take(&spec, version) {
            Purpose::Run
        } else {
            // Only this node knows of it, perhaps: it keeps the name for a node that can run it.
            let timing = &self.config.timing;
            if waited < timing.boot_wait + timing.silence_floor + delay {
                return;
            }
            Purpose::Custody
        };
        self.claim(spec, Cause::Boot, purpose, Vec::new());
        self.boot.offers.remove(name);
    }

    fn best_held(&self, name: &Name, run: RunId) -> Option<Position> {
        let branches: &Branches = self.held.get(name)?.get(&run)?;
        branches.best().map(|header| header.position)
    }

    /// Tells a peer what was found here.
    pub(super) fn found_to(&mut self, peer: &SessionId) {
        let offers: Vec<Found> = self
            .boot
            .offers
            .iter()
            .map(|(name, spec)| (name.clone(), spec.run, self.best_held(name, spec.run)))
            .collect();
        for chunk in offers.chunks(limits::FOUND) {
            self.send(peer, Message::Found { offers: chunk.to_vec() });
        }
    }

    pub(super) fn on_found(&mut self, from: &SessionId, offers: Vec<Found>) {
        for (name, run, position) in offers {
            // Who has an end or a newer owner tells: the finder's copy must not be born again.
            self.dirty.insert(name.clone());
            // What is not offered here too is no rival's.
            if self.boot.offers.contains_key(&name) && self.members.get(from).is_some() {
                self.boot.found.entry(name).or_default().insert(from.clone(), (run, position));
            }
        }
    }
}
