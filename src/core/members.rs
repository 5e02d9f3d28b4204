//! Who is there: sessions, the evidence of their life, and how long they have been silent
//! (Rules 2 to 7).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::ids::{NodeId, SessionId};
use super::io::Gone;
use super::record::{Load, NodeRecord, NodeState};
use super::time::Time;
use super::timing::Timing;

/// What is known of one session other than mine.
#[derive(Clone, Debug)]
pub struct Peer {
    /// From its newest header that is known, its own or passed on.
    pub state: NodeState,
    /// That header's version; 0 before the first one.
    pub version: u64,
    /// When a header of it was news here last.
    pub said: Time,
    /// Who has a link to it and passed on last what it says, and when: relays go there.
    pub via: Option<(SessionId, Time)>,
    /// Told of as being there.
    pub announced: bool,
    /// Its static record, once read.
    pub record: Option<NodeRecord>,
    /// Its load, and what has been placed there since it was read.
    pub load: Load,
    /// A heartbeat or a sealed datagram that was not fenced (Rule 4).
    pub news: Time,
    /// The last sealed datagram; before the first one, when the session became known.
    pub direct: Time,
    /// A sealed datagram of it has come, not only word of it.
    pub met: bool,
    /// The last heartbeat by any path.
    pub heartbeat: Time,
    /// Gossip carries it, and so its failure detector knows it.
    pub gossiped: bool,
    /// When I sent the newest datagram that it echoed.
    pub echoed: Option<Time>,
    /// Its records are here up to the version its first reply showed (Rule 14).
    pub caught_up: bool,
    /// A link to it is up.
    pub linked: bool,
    /// When its last link broke, unless an echo of what was sent later has shown that it lives.
    broke: Option<Time>,
    /// Why it counts as gone, if it does, and since when.
    pub gone: Option<(Gone, Time)>,
    /// That it is gone is only the word of others.
    rumoured: bool,
    /// The failure detector holds it for dead.
    suspected: bool,
    /// Observers that saw its link break and its address refuse (Rule 5).
    dead_to: BTreeSet<SessionId>,
}

impl Peer {
    fn new(now: Time) -> Self {
        Self {
            state: NodeState::Joining,
            version: 0,
            said: now,
            via: None,
            announced: false,
            record: None,
            load: Load::default(),
            news: now,
            direct: now,
            met: false,
            heartbeat: now,
            gossiped: false,
            echoed: None,
            caught_up: false,
            linked: false,
            broke: None,
            gone: None,
            rumoured: false,
            suspected: false,
            dead_to: BTreeSet::new(),
        }
    }

    /// Holds names: up, cordoned or draining, and not gone.
    pub fn is_live(&self) -> bool {
        self.gone.is_none()
            && matches!(self.state, NodeState::Up | NodeState::Cordoned | NodeState::Draining)
    }

    /// Is asked when a name is settled (Rule 13): live, or joining, since it may be up by now and
    /// claim names itself. One that was never met, perhaps a corpse that gossip tells of, is not:
    /// if it is up it has caught up with this node, and so has been met (Rule 14).
    pub fn is_asked(&self) -> bool {
        self.is_live() || self.joins()
    }

    /// Has shown itself, and is not up yet.
    pub fn joins(&self) -> bool {
        self.gone.is_none() && self.was_met() && self.state == NodeState::Joining
    }

    /// Has shown itself: it is not only told of.
    pub const fn was_met(&self) -> bool {
        self.met || self.linked
    }

    /// Nothing has shown that it exists but what others say.
    pub const fn is_hearsay(&self) -> bool {
        !self.met && !self.linked && !self.gossiped
    }

    /// May be given tasks.
    pub fn is_up(&self) -> bool {
        self.gone.is_none() && self.state == NodeState::Up
    }

    /// May be given what others are to keep for it: a cordoned node takes no tasks, and stays.
    pub fn keeps(&self) -> bool {
        self.gone.is_none() && matches!(self.state, NodeState::Up | NodeState::Cordoned)
    }
}

/// All sessions but mine.
#[derive(Clone, Debug)]
pub struct Members {
    me: SessionId,
    timing: Timing,
    known_dead: bool,
    /// The other node, where the member list on disk shows that there only ever were two (Rule 7).
    pair: Option<NodeId>,
    peers: BTreeMap<SessionId, Peer>,
    /// Sessions that had to make room for others.
    displaced: Vec<SessionId>,
    /// Send time of the newest datagram of mine that anybody has echoed.
    evidence: Option<Time>,
    /// Start of the present unbroken spell of two-way evidence.
    spell: Time,
    /// Since when nobody has echoed me.
    alone_since: Time,
    brake: Option<Time>,
    last_tick: Time,
    /// The end of the last visible gap in my own clock, until an echo sent after it has come.
    gap: Option<Time>,
    /// When what others have published since is here, for all that can be known.
    informed: Time,
}

/// What a look at the clock has shown.
#[derive(Debug, Default)]
pub struct Ticked {
    /// Sessions that have just become silent.
    pub silent: Vec<SessionId>,
    /// The brake has just been pulled.
    pub braked: Option<Time>,
}

impl Members {
    /// Bound on sessions known at once.
    pub(super) const MAX: usize = 4096;
    /// Bound on those of which there is nothing but hearsay.
    pub(super) const MAX_HEARSAY: usize = Self::MAX / 2;

    /// Knows nobody yet.
    pub fn new(
        now: Time,
        me: SessionId,
        timing: Timing,
        known_dead: bool,
        persisted: &[SessionId],
    ) -> Self {
        let mut others: Vec<&NodeId> =
            persisted.iter().map(|s| &s.node).filter(|node| **node != me.node).collect();
        others.dedup();
        let pair = match others.as_slice() {
            [other] => Some((*other).clone()),
            _ => None,
        };
        Self {
            me,
            timing,
            known_dead,
            pair,
            peers: BTreeMap::new(),
            displaced: Vec::new(),
            evidence: None,
            spell: now,
            alone_since: now,
            brake: None,
            last_tick: now,
            gap: None,
            informed: Time::ZERO,
        }
    }

    /// One session.
    pub fn get(&self, session: &SessionId) -> Option<&Peer> {
        self.peers.get(session)
    }

    /// Changes one session, getting to know it by hearsay if need be. Mine is never among them, and none
    /// is added beyond the bound: peers can speak of sessions that never were.
    pub fn entry(&mut self, session: &SessionId, now: Time) -> Option<&mut Peer> {
        if *session == self.me {
            return None;
        }
        if !self.peers.contains_key(session) {
            let hearsay = || self.peers.values().filter(|peer| peer.is_hearsay()).count();
            if self.peers.len() >= Self::MAX || hearsay() >= Self::MAX_HEARSAY {
                return None;
            }
            if session.node != self.me.node && self.pair.as_ref() != Some(&session.node) {
                self.pair = None;
            }
        }
        Some(self.peers.entry(session.clone()).or_insert_with(|| Peer::new(now)))
    }

    /// As [`Self::entry`], for a session that has shown itself: what is only hearsay makes room for it.
    fn meet(&mut self, session: &SessionId, now: Time) -> Option<&mut Peer> {
        if *session != self.me && !self.peers.contains_key(session) {
            let hearsay = self.peers.iter().filter(|(_, peer)| peer.is_hearsay());
            let full =
                self.peers.len() >= Self::MAX || hearsay.clone().count() >= Self::MAX_HEARSAY;
            let oldest = hearsay.min_by_key(|(_, peer)| peer.direct);
            if let Some(oldest) = oldest.map(|(session, _)| session.clone()).filter(|_| full) {
                self.peers.remove(&oldest);
                self.displaced.push(oldest);
            }
        }
        self.entry(session, now)
    }

    /// As [`Self::entry`], for a session that gossip carries.
    pub fn gossiped(&mut self, session: &SessionId, now: Time) -> Option<&mut Peer> {
        let peer = self.meet(session, now)?;
        peer.gossiped = true;
        Some(peer)
    }

    /// Sessions that have made room for others since this was last asked: nothing of them counts.
    pub fn take_displaced(&mut self) -> Vec<SessionId> {
        std::mem::take(&mut self.displaced)
    }

    /// All sessions, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&SessionId, &Peer)> + Clone {
        self.peers.iter()
    }

    /// Sessions that are asked when a name is settled (Rule 13).
    pub fn asked(&self) -> impl Iterator<Item = &SessionId> {
        self.peers.iter().filter(|(_, peer)| peer.is_asked()).map(|(session, _)| session)
    }

    /// Sessions that hold names.
    pub fn live(&self) -> impl Iterator<Item = &SessionId> {
        self.peers.iter().filter(|(_, peer)| peer.is_live()).map(|(session, _)| session)
    }

    /// Whether the session is known to be gone. An unknown one is not: unknown is not absent.
    pub fn is_gone(&self, session: &SessionId) -> bool {
        self.peers.get(session).is_some_and(|peer| peer.gone.is_some())
    }

    /// The live session of a node, the newest if there are several.
    pub fn session_of(&self, node: &NodeId) -> Option<&SessionId> {
        self.live().filter(|session| session.node == *node).last()
    }

    /// Whether somebody has echoed a recent datagram of mine (Rule 4).
    pub fn is_connected(&self, now: Time) -> bool {
        self.evidence.is_some_and(|sent| now.since(sent) < self.timing.evidence_window())
    }

    /// Until when takeover pauses (the brake, Rule 7).
    pub fn brake(&self) -> Option<Time> {
        self.brake
    }

    /// Whether this node may take over what others held: somebody echoes it, or it has been alone
    /// for long enough, or there is nobody left who could (Rules 4 and 7).
    pub fn may_take_over(&self, now: Time) -> bool {
        self.is_connected(now) || self.may_act_alone(now)
    }

    /// Whether silence is consent to what was asked for as long as gossip takes to reach everyone (Rule 13): somebody
    /// has heard something that was sent since, or there is nobody to hear it.
    pub fn may_settle_unanswered(&self, now: Time) -> bool {
        let asked = self.timing.convergence();
        self.evidence.is_some_and(|sent| now.since(sent) <= asked) || self.may_act_alone(now)
    }

    fn may_act_alone(&self, now: Time) -> bool {
        self.peers.values().all(Peer::is_surely_gone)
            || now.since(self.alone_since) >= self.patience()
    }

    /// How long a node that nobody echoes waits before it takes anything over (Rule 7).
    fn patience(&self) -> Duration {
        match self.pair {
            Some(_) => self.timing.silence_floor,
            None => self.timing.alone_after,
        }
    }

    /// Whether steps may start: after a visible gap only one gossip interval after an echo sent after it has
    /// come, since an echo brings no claims, or after `alone_after`, or when there is nobody who could echo (Rule 17).
    pub fn may_step(&self, now: Time) -> bool {
        now >= self.informed
            && self.gap.is_none_or(|gap| {
                now.since(gap) >= self.timing.alone_after
                    || self.peers.values().all(Peer::is_surely_gone)
            })
    }

    /// A sealed datagram arrived, with its sender's state as of a version of its header. Returns
    /// whether the session came back from being gone.
    pub fn heard(
        &mut self,
        now: Time,
        from: &SessionId,
        (state, version): (NodeState, u64),
        echoed: Option<Time>,
    ) -> bool {
        let connected = self.is_connected(now);
        let Some(peer) = self.meet(from, now) else {
            return false;
        };
        peer.says(now, state, version);
        peer.direct = now;
        peer.said = now;
        peer.met = true;
        // Even a fenced process is not a dead one, and may still be stopping (Rule 5).
        let mut back = peer.is_known_dead() && peer.revive();
        // The word of others does not outweigh its own; an echo shows that this is no recording.
        back |= echoed.is_some() && peer.state != NodeState::Leaving && peer.refute();
        peer.dead_to.clear();
        if !peer.state.is_fenced() {
            peer.news = now;
            back |= peer.revive();
        }
        if let Some(sent) = echoed {
            peer.echoed = peer.echoed.max(Some(sent));
            peer.broke.take_if(|broke| sent > *broke);
            if self.gap.is_some_and(|gap| sent > gap) {
                self.gap = None;
                self.informed = now + self.timing.gossip_interval;
            }
            // Whether that is recent enough is for who asks; until somebody may, no spell counts.
            if !connected {
                self.spell = now;
            }
            self.evidence = self.evidence.max(Some(sent));
        }
        back
    }

    /// A session's header was passed on by `by`, which is `linked` to it or not. No news of its life (Rule 4): that is what heartbeats
    /// and its own datagrams are for. Returns whether its state has changed.
    pub fn hearsay(
        &mut self,
        now: Time,
        of: &SessionId,
        (state, version): (NodeState, u64),
        by: &SessionId,
        linked: bool,
    ) -> bool {
        let Some(peer) = self.peers.get_mut(of) else {
            return false;
        };
        if linked {
            peer.via = Some((by.clone(), now));
        } else {
            peer.via.take_if(|(via, _)| via == by);
        }
        peer.says(now, state, version)
    }

    /// Sessions whose headers do not come here: they are asked for.
    pub fn unheard(&self, now: Time) -> impl Iterator<Item = &SessionId> {
        let patience = self.timing.unheard_after();
        let unheard = move |peer: &Peer| peer.gone.is_none() && now.since(peer.direct) > patience;
        self.peers.iter().filter(move |(_, peer)| unheard(peer)).map(|(session, _)| session)
    }

    /// Whether there has been news of a session of late.
    pub fn is_heard(&self, now: Time, session: &SessionId) -> bool {
        let lately = self.timing.unheard_after();
        let heard = |peer: &Peer| peer.gone.is_none() && now.since(peer.news) <= lately;
        self.peers.get(session).is_some_and(heard)
    }

    /// Whether a session has echoed a datagram that was sent after `since`.
    pub fn has_echoed_since(&self, session: &SessionId, since: Time) -> bool {
        self.peers.get(session).is_some_and(|peer| peer.echoed.is_some_and(|sent| sent > since))
    }

    /// A newer heartbeat came by any path. Returns whether the session came back from silence.
    pub fn heartbeat(&mut self, now: Time, of: &SessionId) -> bool {
        let Some(peer) = self.gossiped(of, now) else {
            return false;
        };
        peer.news = now;
        peer.heartbeat = now;
        // A relayed heartbeat of a process that is known dead is an echo from the grave: only its
        // own sealed datagram revives it (Rule 5).
        if matches!(peer.gone, Some((Gone::Silent, _))) { peer.revive() } else { false }
    }

    /// A frame arrived over a link. Returns whether the session came back from silence; from being
    /// known dead only a datagram brings it back, since frames are read after their writer's end.
    pub fn frame(&mut self, now: Time, from: &SessionId) -> bool {
        let Some(peer) = self.peers.get_mut(from).filter(|peer| !peer.state.is_fenced()) else {
            return false;
        };
        peer.news = now;
        matches!(peer.gone, Some((Gone::Silent, _))) && peer.revive()
    }

    /// The failure detector changed its mind.
    pub fn suspicion(&mut self, now: Time, of: &SessionId, suspected: bool) {
        if let Some(peer) = self.gossiped(of, now) {
            peer.suspected = suspected;
        }
    }

    /// Marks a session gone for a reason that needs no silence. Returns whether it was not before.
    pub fn mark_gone(&mut self, now: Time, session: &SessionId, why: Gone) -> bool {
        let Some(peer) = self.entry(session, now) else {
            return false;
        };
        let news = !peer.is_surely_gone();
        if news {
            peer.rumoured = false;
            peer.gone = Some((why, now));
            peer.unlink(now);
        }
        news
    }

    /// Others say that a session is gone for good. It is not if it is heard here, and an echo of its own
    /// undoes it. Returns whether it counts as gone now and did not before.
    pub fn told_gone(&mut self, now: Time, session: &SessionId, why: Gone) -> bool {
        let lately = self.timing.unheard_after();
        let heard = self.peers.get(session).is_some_and(|peer| {
            let closing = peer.state == NodeState::Leaving;
            !closing && (peer.linked || (peer.met && now.since(peer.direct) <= lately))
        });
        let news = !heard && self.mark_gone(now, session, why);
        if news && let Some(peer) = self.peers.get_mut(session) {
            peer.rumoured = true;
        }
        news
    }

    /// A link to a session came up. Returns whether it had counted as gone by the word of others.
    pub fn link_up(&mut self, now: Time, with: &SessionId) -> bool {
        let Some(peer) = self.meet(with, now) else {
            return false;
        };
        // Its handshake is as fresh as an echoed datagram.
        let back = peer.refute();
        peer.linked = true;
        peer.broke = None;
        back
    }

    /// Whether others may say of a session that it is dead and buried: it is unknown, gone, or was
    /// heard of lately for the first time, and only by gossip, which speaks of the dead too.
    pub fn may_be_buried(&self, now: Time, session: &SessionId) -> bool {
        self.peers.get(session).is_none_or(|peer| {
            let hardly_known = now.since(peer.direct) <= self.timing.silence_floor;
            peer.gone.is_some() || (!peer.met && !peer.linked && hardly_known)
        })
    }

    /// Whether a refused dial of a session says anything of its life: not where no link of it has broken,
    /// as behind a firewall that lets datagrams alone pass, nor where it has answered since one did, as
    /// behind one that has changed (Rule 5).
    pub fn can_tell_death(&self, session: &SessionId) -> bool {
        self.peers.get(session).is_some_and(|peer| peer.broke.is_some())
    }

    /// An observer saw a session's link break and its address refuse. Returns whether that makes it
    /// known dead (Rule 5).
    pub fn observed_dead(&mut self, now: Time, suspect: &SessionId, by: &SessionId) -> bool {
        let may_tell = match *by == self.me {
            true => self.can_tell_death(suspect),
            false => self.peers.get(by).is_some_and(Peer::is_live),
        };
        if !self.known_dead || !may_tell {
            return false;
        }
        let Some(peer) = self.entry(suspect, now) else {
            return false;
        };
        peer.dead_to.insert(by.clone());
        self.known_dead(now, suspect)
    }

    /// My link to a session broke. Returns whether it is now known to be dead: while the link
    /// stands, whatever others report is between them and the suspect.
    pub fn link_broke(&mut self, now: Time, with: &SessionId) -> bool {
        if let Some(peer) = self.entry(with, now) {
            peer.unlink(now);
        }
        self.known_dead(now, with)
    }

    fn known_dead(&mut self, now: Time, suspect: &SessionId) -> bool {
        let others = self.live().filter(|session| *session != suspect).count() + 1;
        let Some(peer) = self.peers.get(suspect) else {
            return false;
        };
        let closing = matches!(peer.state, NodeState::Draining | NodeState::Leaving);
        let enough = !peer.dead_to.is_empty() && peer.dead_to.len() >= others.min(2);
        enough && !closing && !peer.linked && self.mark_gone(now, suspect, Gone::Dead)
    }

    /// Time passed: who has become silent? (Rules 4 and 7)
    pub fn tick(&mut self, now: Time) -> Ticked {
        if now.since(self.last_tick) > self.timing.visible_gap() {
            // Nothing could be heard while this process did not run: neither the silence of others
            // nor my own loneliness counts from before (Rule 4).
            self.gap = Some(now);
            self.spell = now;
            self.alone_since = now;
        }
        self.last_tick = now;
        let mut ticked = Ticked::default();
        if self.is_connected(now) {
            self.alone_since = now;
        }
        let alone_for = now.since(self.alone_since);
        let (connected, patience) = (self.is_connected(now), self.patience());
        for (session, peer) in &mut self.peers {
            if peer.gone.is_some() {
                continue;
            }
            let silent = if connected {
                let since = peer.news.max(self.spell);
                // No failure detector speaks of who is not gossiped.
                (peer.suspected || !peer.gossiped) && now.since(since) >= self.timing.silence_floor
            } else {
                alone_for >= patience && now.since(peer.news) >= patience
            };
            if silent {
                peer.gone = Some((Gone::Silent, now));
                ticked.silent.push(session.clone());
            }
        }
        if self.brake.is_some_and(|until| now >= until) {
            self.brake = None;
        }
        if !ticked.silent.is_empty() && self.brake.is_none() {
            ticked.braked = self.pull_brake(now);
        }
        ticked
    }

    /// More than half of the known nodes, and at least three, fell silent within T: that looks like
    /// a fault of mine rather than of theirs (S6).
    fn pull_brake(&mut self, now: Time) -> Option<Time> {
        let floor = self.timing.silence_floor;
        let fell =
            |peer: &Peer| matches!(peer.gone, Some((Gone::Silent, at)) if now.since(at) <= floor);
        // Whom only gossip tells of was never heard, and has not fallen silent: it may be long dead.
        let met = || self.peers.values().filter(|peer| peer.was_met());
        let silent = met().filter(|peer| fell(peer)).count();
        let known = 1 + met().filter(|peer| peer.gone.is_none() || fell(peer)).count();
        if silent >= 3 && 2 * silent > known {
            self.brake = Some(now + self.timing.silence_floor * 3);
        }
        self.brake
    }

    /// Forgets a session altogether (it is buried).
    pub fn forget(&mut self, session: &SessionId) {
        self.peers.remove(session);
    }
}

impl Peer {
    /// Takes a header's state in, unless it is older than what is known: datagrams overtake each other,
    /// and what is passed on is late. Returns whether the state has changed.
    fn says(&mut self, now: Time, state: NodeState, version: u64) -> bool {
        if version < self.version {
            return false;
        }
        if version > self.version {
            self.said = now;
        }
        self.version = version;
        std::mem::replace(&mut self.state, state) != state
    }

    /// A message on a link says its state; version 0 from a build that does not number headers.
    pub fn states(&mut self, now: Time, state: NodeState, version: u64) {
        self.says(now, state, if version == 0 { self.version } else { version });
    }

    fn unlink(&mut self, now: Time) {
        if std::mem::take(&mut self.linked) {
            self.broke = Some(now);
        }
    }

    /// Gone for a reason that needs no silence.
    const fn is_surely_gone(&self) -> bool {
        matches!(self.gone, Some((Gone::Left | Gone::Superseded | Gone::Dead, _)))
    }

    const fn is_known_dead(&self) -> bool {
        matches!(self.gone, Some((Gone::Dead, _)))
    }

    /// The session itself shows that those are wrong who say that it is gone.
    fn refute(&mut self) -> bool {
        let wrong = std::mem::take(&mut self.rumoured) && self.gone.is_some();
        if wrong {
            self.gone = None;
            self.dead_to.clear();
        }
        wrong
    }

    /// A sealed datagram of the session itself undoes a verdict that was only an inference.
    fn revive(&mut self) -> bool {
        self.dead_to.clear();
        if matches!(self.gone, Some((Gone::Silent | Gone::Dead, _))) {
            self.gone = None;
            return true;
        }
        false
    }
}
