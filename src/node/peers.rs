//! The other sessions, as the edge needs them: where they are, and what to show of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::status::PeerStatus;
use crate::core::ids::{NodeId, SessionId};
use crate::core::io::Gone;
use crate::core::record::{Load, NodeRecord, NodeState};
use crate::core::time::Time;

/// What is known of one session.
#[derive(Debug, Default)]
pub(super) struct Peer {
    record: Option<NodeRecord>,
    load: Load,
    state: NodeState,
    /// Of the header that says so.
    version: u64,
    /// Where an echo has come from that it advertises: what is dialled.
    located: Option<SocketAddr>,
    /// Where it was heard or linked; good for showing until its record comes.
    heard_at: Option<SocketAddr>,
    linked: bool,
    /// The address a link is kept to.
    wanted: Option<SocketAddr>,
    /// It said goodbye.
    left: bool,
    /// It has been told of as being there, and not as having left: gossip goes on telling of sessions
    /// that ended before this node began.
    listed: bool,
    /// Why it is not there.
    gone: Option<Gone>,
    /// The last that came from itself.
    alive: Option<Time>,
    /// When its link broke last.
    broke: Option<Time>,
    /// Since when it has been heard without a link to it having stood.
    unlinked: Option<Time>,
    /// That has been told.
    told_unlinked: bool,
}

impl Peer {
    /// Where it is, for all that is known.
    fn address(&self) -> Option<SocketAddr> {
        let said = || self.record.as_ref().map(|record| record.address);
        self.located.or_else(said).or(self.heard_at)
    }
}

/// All sessions but our own.
#[derive(Debug, Default)]
pub(super) struct Peers {
    all: BTreeMap<SessionId, Peer>,
    /// Something that is shown has changed since it was last shown.
    dirty: bool,
}

impl Peers {
    /// A hostile peer with the key could make up sessions without end.
    const MAX: usize = 4096;

    /// Where a session is reached.
    pub(super) fn address(&self, session: &SessionId) -> Option<SocketAddr> {
        self.all.get(session)?.address()
    }

    /// Whether a link to it stands.
    pub(super) fn is_linked(&self, session: &SessionId) -> bool {
        self.all.get(session).is_some_and(|peer| peer.linked)
    }

    /// The sessions of a node, linked ones first: a restarted node has two for a while.
    pub(super) fn of_node(&self, node: &NodeId) -> Vec<&SessionId> {
        let mut found: Vec<(&SessionId, &Peer)> =
            self.all.iter().filter(|(session, _)| session.node == *node).collect();
        found.sort_by_key(|(_, peer)| !peer.linked);
        found.into_iter().map(|(session, _)| session).collect()
    }

    pub(super) fn heard(
        &mut self,
        session: &SessionId,
        (state, version): (NodeState, u64),
        at: SocketAddr,
        now: Time,
    ) {
        let Some(peer) = self.entry(session) else {
            return;
        };
        peer.alive = Some(now);
        if !peer.linked {
            peer.unlinked.get_or_insert(now);
        }
        // One datagram can overtake another.
        let changed = peer.state != state && version >= peer.version;
        if changed {
            peer.state = state;
        }
        peer.version = peer.version.max(version);
        peer.heard_at = Some(at);
        self.dirty |= changed;
    }

    pub(super) fn located(&mut self, session: &SessionId, at: SocketAddr) {
        if let Some(peer) = self.entry(session) {
            peer.located = Some(at);
            self.dirty = true;
        }
    }

    pub(super) fn record(&mut self, session: &SessionId, record: NodeRecord) {
        if let Some(peer) = self.entry(session) {
            peer.record = Some(record);
            self.dirty = true;
        }
    }

    pub(super) fn load(&mut self, session: &SessionId, load: Load) {
        if let Some(peer) = self.entry(session) {
            peer.load = load;
            self.dirty = true;
        }
    }

    pub(super) fn link_up(&mut self, session: &SessionId, address: Option<SocketAddr>) {
        if let Some(peer) = self.entry(session) {
            peer.linked = true;
            peer.unlinked = None;
            peer.told_unlinked = false;
            peer.heard_at = peer.heard_at.or(address);
            self.dirty = true;
        }
    }

    /// Whether the session had said goodbye, so that its link is not to be had again.
    pub(super) fn link_down(&mut self, session: &SessionId, now: Time) -> bool {
        let Some(peer) = self.all.get_mut(session) else {
            return false;
        };
        if peer.linked {
            peer.broke = Some(now);
        }
        self.dirty |= peer.linked;
        peer.linked = false;
        peer.left
    }

    /// A frame came from it.
    pub(super) fn lives(&mut self, session: &SessionId, now: Time) {
        if let Some(peer) = self.all.get_mut(session) {
            peer.alive = Some(now);
        }
    }

    /// It is not there, for all that is known. One that is dead had its links closed by its kernel, so
    /// it lived until then.
    pub(super) fn gone(&mut self, session: &SessionId, why: Gone) {
        if let Some(peer) = self.all.get_mut(session) {
            self.dirty |= peer.gone != Some(why);
            peer.gone = Some(why);
            // Who comes back is given time for a link.
            peer.unlinked = None;
            if why == Gone::Dead {
                peer.alive = peer.alive.max(peer.broke);
            }
        }
    }

    /// The last sign of life of a session.
    pub(super) fn last_sign_of(&self, session: &SessionId) -> Option<Time> {
        self.all.get(session)?.alive
    }

    /// It said goodbye: its link is its own to close.
    pub(super) fn left(&mut self, session: &SessionId) {
        if let Some(peer) = self.all.get_mut(session) {
            peer.left = true;
            self.dirty |= std::mem::take(&mut peer.listed);
        }
    }

    /// It is there, perhaps after all.
    pub(super) fn is_there(&mut self, session: &SessionId) {
        if let Some(peer) = self.entry(session) {
            peer.left = false;
            peer.gone = None;
            peer.listed = true;
            self.dirty = true;
        }
    }

    /// Whether it has been told of as being there.
    pub(super) fn is_listed(&self, session: &SessionId) -> bool {
        self.all.get(session).is_some_and(|peer| peer.listed)
    }

    /// The address to keep a link to, if that is not kept already. Neither the source of a datagram,
    /// which behind NAT is nobody's listener, nor an address that is only said to be the peer's.
    pub(super) fn wants(&mut self, session: &SessionId) -> Option<SocketAddr> {
        let peer = self.all.get_mut(session)?;
        let address = peer.located?;
        if peer.left || peer.wanted == Some(address) {
            return None;
        }
        peer.wanted = Some(address);
        Some(address)
    }

    /// No link is kept any more.
    pub(super) fn unwanted(&mut self, session: &SessionId) {
        if let Some(peer) = self.all.get_mut(session) {
            self.dirty |= peer.linked;
            peer.linked = false;
            peer.wanted = None;
        }
    }

    /// Forgets a session.
    pub(super) fn remove(&mut self, session: &SessionId) {
        self.dirty |= self.all.remove(session).is_some();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The sessions that have not left: what is silent may be back.
    pub(super) fn not_left(&self) -> impl Iterator<Item = &SessionId> {
        self.all.iter().filter(|(_, peer)| !peer.left).map(|(session, _)| session)
    }

    /// The sessions that a link stands to, and that are not about to go.
    pub(super) fn staying(&self) -> impl Iterator<Item = &SessionId> {
        let stays =
            |peer: &Peer| peer.linked && matches!(peer.state, NodeState::Up | NodeState::Cordoned);
        self.all.iter().filter(move |(_, peer)| stays(peer)).map(|(session, _)| session)
    }

    /// Who is there and has been heard for longer than `patience` without a link, and where it should be
    /// reached: each once, until a link has stood.
    pub(super) fn unlinked(
        &mut self,
        now: Time,
        patience: Duration,
    ) -> Vec<(SessionId, SocketAddr)> {
        let late = |peer: &Peer| {
            let there = peer.listed && peer.gone.is_none();
            there && peer.unlinked.is_some_and(|since| now.since(since) > patience)
        };
        let untold = self.all.iter_mut().filter(|(_, peer)| !peer.told_unlinked && late(peer));
        untold
            .filter_map(|(session, peer)| {
                let address = peer.address()?;
                peer.told_unlinked = true;
                Some((session.clone(), address))
            })
            .collect()
    }

    /// Whether a session is known there.
    pub(super) fn is_at(&self, address: SocketAddr) -> bool {
        self.all.values().any(|peer| peer.address() == Some(address))
    }

    pub(super) fn revision(&self, session: &SessionId) -> Option<String> {
        Some(self.all.get(session)?.record.as_ref()?.revision.clone())
    }

    /// What to show, if it has changed since the last time.
    pub(super) fn changed(&mut self) -> Option<Arc<[PeerStatus]>> {
        std::mem::take(&mut self.dirty).then(|| self.shown().into())
    }

    pub(super) fn shown(&self) -> Vec<PeerStatus> {
        let show = |(session, peer): (&SessionId, &Peer)| PeerStatus {
            session: session.clone(),
            address: peer.address(),
            state: peer.state,
            gone: peer.gone,
            revision: peer.record.as_ref().map(|record| record.revision.clone()),
            running: peer.load.running,
            full: peer.load.full,
            linked: peer.linked,
            kinds: peer.record.iter().flat_map(|record| record.kinds.keys().cloned()).collect(),
        };
        let present = self.all.iter().filter(|(_, peer)| peer.listed && peer.gone.is_none());
        let present: BTreeSet<&NodeId> = present.map(|(session, _)| &session.node).collect();
        // A node that has come back is shown once.
        let listed = |(session, peer): &(&SessionId, &Peer)| {
            peer.listed && (peer.gone.is_none() || !present.contains(&session.node))
        };
        self.all.iter().filter(listed).map(show).collect()
    }

    /// Forgets who is neither linked nor dialled, the longest unheard first: gossip does not say of a
    /// session that it never carried when that is over.
    fn make_room(&mut self) -> bool {
        let idle = self.all.iter().filter(|(_, peer)| !peer.linked && peer.wanted.is_none());
        let least = idle.min_by_key(|(_, peer)| (peer.listed, peer.record.is_some(), peer.alive));
        let least = least.map(|(session, _)| session.clone());
        least.is_some_and(|least| self.all.remove(&least).is_some())
    }

    fn entry(&mut self, session: &SessionId) -> Option<&mut Peer> {
        if !self.all.contains_key(session) {
            if self.all.len() >= Self::MAX && !self.make_room() {
                return None;
            }
            self.dirty = true;
        }
        Some(self.all.entry(session.clone()).or_default())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use uuid::Uuid;

    use super::*;

    fn session(number: u128) -> SessionId {
        SessionId::new(NodeId::new("n").unwrap(), Uuid::from_u128(number))
    }

    #[test]
    fn sessions_that_only_ever_had_a_link_make_room_for_others_and_linked_ones_stay() {
        let mut peers = Peers::default();
        let at = |second| Time::from_micros(second * 1_000_000);
        let address = ([127, 0, 0, 1], 4000).into();
        for number in 0..100 {
            peers.link_up(&session(number), None);
        }
        for number in 100..10_000 {
            peers.link_up(&session(number), None);
            peers.link_down(&session(number), at(number as u64));
        }
        peers.heard(&session(20_000), (NodeState::Up, 1), address, at(20_000));
        assert_eq!(peers.last_sign_of(&session(20_000)), Some(at(20_000)));
        assert!(peers.all.len() <= Peers::MAX);
        assert_eq!(peers.all.values().filter(|peer| peer.linked).count(), 100);
    }

    #[test]
    fn who_is_heard_without_a_link_is_told_of_once_until_a_link_has_stood() {
        let (mut peers, one) = (Peers::default(), session(1));
        let at = |second| Time::from_micros(second * 1_000_000);
        let address: SocketAddr = ([127, 0, 0, 1], 4000).into();
        let floor = Duration::from_secs(10);
        let told = |peers: &mut Peers, second| peers.unlinked(at(second), floor);
        let hear = |peers: &mut Peers, seconds: std::ops::Range<u64>| {
            for second in seconds {
                peers.heard(&one, (NodeState::Up, 1), address, at(second));
            }
        };
        hear(&mut peers, 0..12);
        assert_eq!(told(&mut peers, 11), [], "it is not there yet");
        peers.is_there(&one);
        assert_eq!(told(&mut peers, 10), [], "not for longer than that");
        assert_eq!(told(&mut peers, 11), [(one.clone(), address)]);
        assert_eq!(told(&mut peers, 100), [], "once");

        // A link stands, and breaks.
        peers.link_up(&one, Some(address));
        hear(&mut peers, 100..150);
        assert_eq!(told(&mut peers, 150), []);
        peers.link_down(&one, at(150));
        hear(&mut peers, 151..162);
        assert_eq!(told(&mut peers, 161), []);
        assert_eq!(told(&mut peers, 162), [(one.clone(), address)]);

        // Who was away is given as long again.
        peers.link_up(&one, Some(address));
        peers.link_down(&one, at(170));
        hear(&mut peers, 170..172);
        peers.gone(&one, Gone::Silent);
        assert_eq!(told(&mut peers, 190), []);
        hear(&mut peers, 190..191);
        peers.is_there(&one);
        assert_eq!(told(&mut peers, 200), []);
        assert_eq!(told(&mut peers, 201), [(one.clone(), address)]);
    }

    #[test]
    fn who_is_gone_is_shown_as_gone_until_its_node_is_back() {
        let mut peers = Peers::default();
        peers.is_there(&session(1));
        peers.gone(&session(1), Gone::Dead);
        let shown = peers.shown();
        assert_eq!((shown.len(), shown[0].gone), (1, Some(Gone::Dead)));
        peers.is_there(&session(2));
        let shown = peers.shown();
        assert_eq!((shown.len(), &shown[0].session, shown[0].gone), (1, &session(2), None));
        peers.gone(&session(2), Gone::Silent);
        assert_eq!(peers.shown().len(), 2);
        peers.is_there(&session(2));
        assert_eq!(peers.shown()[0].gone, None);
    }
}
