//! Datagrams and gossip: heartbeats, echoes, and what each session publishes.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use rand::Rng;

use super::time::Due;
use super::{MS, World};
use crate::core::claim::{Claim, Desired, Spec};
use crate::core::ids::{Name, SessionId};
use crate::core::io::Event;
use crate::core::record::{Load, NodeRecord, NodeState};

/// What a datagram says: state, version, watermark, released.
pub type Says = (NodeState, u64, u64, Vec<u64>);

/// What one session publishes, as gossip carries it.
#[derive(Clone, Debug, Default)]
pub(super) struct Published {
    pub version: u64,
    pub heartbeat: u64,
    pub record: Option<NodeRecord>,
    pub load: Load,
    pub claims: BTreeMap<Name, Claim>,
    pub specs: BTreeMap<Name, Spec>,
    pub desires: BTreeMap<Name, Desired>,
}

impl World {
    /// Datagrams to everybody, and a gossip exchange with everybody.
    pub(super) fn round(&mut self, session: &SessionId) {
        if !self.is_alive(session) {
            return;
        }
        let every = self.nodes[session].setup.timing.gossip_interval / 2;
        self.at(every, Due::Round { node: session.clone() });
        if self.is_paused(session) {
            return;
        }
        if let Some(node) = self.nodes.get_mut(session)
            && let Some(mine) = node.gossip.get_mut(session)
        {
            Rc::make_mut(mine).heartbeat += 1;
        }
        let peers: Vec<SessionId> =
            self.nodes.keys().filter(|peer| *peer != session).cloned().collect();
        for peer in peers {
            let delay = self.datagram(session, &peer, false);
            self.at(delay, Due::Gossip { from: session.clone(), to: peer });
        }
        self.suspect(session);
    }

    /// Sends a datagram; how long it takes.
    pub(super) fn datagram(&mut self, from: &SessionId, to: &SessionId, probe: bool) -> Duration {
        let delay = MS * self.rng.random_range(1..3);
        if let Some(node) = self.nodes.get(from).filter(|node| node.alive) {
            let due = Due::Datagram {
                from: from.clone(),
                to: to.clone(),
                sent: self.now,
                echo: node.seen.get(to).copied(),
                header: node.header.clone(),
                probe,
            };
            self.at(delay, due);
        }
        delay
    }

    fn suspect(&mut self, session: &SessionId) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(session) else { return };
        let late = node.setup.timing.gossip_interval * 4;
        let mut events = Vec::new();
        for (of, at) in &node.beaten {
            let suspected = now.since(*at) > late;
            let changed = if suspected {
                node.suspected.insert(of.clone())
            } else {
                node.suspected.remove(of)
            };
            if changed {
                events.push(Event::Suspicion { of: of.clone(), suspected });
            }
        }
        for event in events {
            self.give(session, event);
        }
    }

    /// Both sides end with the newer of what each knows, third sessions included. Where only the
    /// question arrives, the asked learns the heartbeats in its digest and nothing else.
    pub(super) fn exchange(&mut self, a: &SessionId, b: &SessionId) {
        if self.is_cut(a, b)
            || !self.is_alive(a)
            || !self.is_alive(b)
            || self.is_paused(a)
            || self.is_paused(b)
        {
            return;
        }
        if self.is_cut(b, a) {
            return self.digest(b, a);
        }
        self.pull(a, b);
        self.pull(b, a);
    }

    fn digest(&mut self, to: &SessionId, from: &SessionId) {
        let theirs = self.nodes[from].gossip.clone();
        let now = self.now;
        let mut newer = Vec::new();
        if let Some(node) = self.nodes.get_mut(to) {
            for (of, new) in theirs.into_iter().filter(|(of, _)| of != to) {
                let old = node.gossip.entry(of.clone()).or_default();
                if new.heartbeat > old.heartbeat {
                    Rc::make_mut(old).heartbeat = new.heartbeat;
                    node.beaten.insert(of.clone(), now);
                    newer.push(of);
                }
            }
        }
        for of in newer {
            self.give(to, Event::Heartbeat { of });
        }
    }

    fn pull(&mut self, to: &SessionId, from: &SessionId) {
        let theirs = self.nodes[from].gossip.clone();
        let now = self.now;
        let mut events = Vec::new();
        if let Some(node) = self.nodes.get_mut(to) {
            for (of, new) in theirs {
                if of == *to {
                    continue;
                }
                let old = node.gossip.entry(of.clone()).or_default();
                if Rc::ptr_eq(old, &new) {
                    continue;
                }
                if new.heartbeat > old.heartbeat {
                    node.beaten.insert(of.clone(), now);
                    events.push(Event::Heartbeat { of: of.clone() });
                }
                if new.version < old.version {
                    // What is known here is newer; a question alone may have brought a heartbeat there.
                    if new.heartbeat > old.heartbeat {
                        Rc::make_mut(old).heartbeat = new.heartbeat;
                    }
                    continue;
                }
                if new.version > old.version || old.record.is_none() {
                    events.extend(diff(&of, old, &new));
                }
                let heartbeat = old.heartbeat;
                *old = new;
                if heartbeat > old.heartbeat {
                    Rc::make_mut(old).heartbeat = heartbeat;
                }
            }
            events.push(Event::CaughtUp { of: from.clone() });
        }
        for event in events {
            self.give(to, event);
        }
    }

    pub(super) fn publish(&mut self, session: &SessionId, change: impl FnOnce(&mut Published)) {
        let Some(node) = self.nodes.get_mut(session) else { return };
        let Some(mine) = node.gossip.get_mut(session) else { return };
        let mine = Rc::make_mut(mine);
        mine.version += 1;
        change(mine);
        let peers: Vec<SessionId> =
            self.nodes.keys().filter(|peer| *peer != session).cloned().collect();
        for to in peers {
            if self.pushes.insert((session.clone(), to.clone())) {
                self.at(MS * 2, Due::Gossip { from: session.clone(), to });
            }
        }
    }
}

fn diff(of: &SessionId, old: &Published, new: &Published) -> Vec<Event> {
    let mut events = Vec::new();
    if new.record != old.record
        && let Some(record) = &new.record
    {
        events.push(Event::Record { of: of.clone(), record: record.clone() });
    }
    if new.load != old.load {
        events.push(Event::Load { of: of.clone(), load: new.load });
    }
    let specs: Vec<Spec> = new
        .specs
        .iter()
        .filter(|(name, spec)| old.specs.get(*name) != Some(*spec))
        .map(|(_, spec)| spec.clone())
        .collect();
    if !specs.is_empty() {
        events.push(Event::Specs { specs });
    }
    let desires: Vec<Desired> = new
        .desires
        .iter()
        .filter(|(name, desired)| old.desires.get(*name) != Some(*desired))
        .map(|(_, desired)| desired.clone())
        .collect();
    if !desires.is_empty() {
        events.push(Event::Desires { desires });
    }
    let mut changes: Vec<(Name, Option<Claim>)> = new
        .claims
        .iter()
        .filter(|(name, claim)| old.claims.get(*name) != Some(*claim))
        .map(|(name, claim)| (name.clone(), Some(claim.clone())))
        .collect();
    changes.extend(
        old.claims.keys().filter(|n| !new.claims.contains_key(*n)).map(|n| (n.clone(), None)),
    );
    if !changes.is_empty() {
        events.push(Event::Claims { of: of.clone(), changes });
    }
    events
}
