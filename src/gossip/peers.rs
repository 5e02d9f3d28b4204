//! Who has been heard, from where, and who is to be probed.
//!
//! A session is *verified* at an address once a datagram from there echoes a counter that this
//! process has sent: before that its datagrams may be a recording, its address a spoof.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::core::ids::SessionId;
use crate::core::record::NodeState;
use crate::core::time::Time;
use crate::core::timing::Timing;

use super::header::{Echo, Header};
use super::rejected::Rejected;
use super::replay::Window;

const PROBE_MIN: Duration = Duration::from_millis(100);
const PROBE_MAX: Duration = Duration::from_secs(5);

/// How long an address that was probed on demand, or only heard of, stays a target unanswered.
const UNKNOWN_TARGET: Duration = Duration::from_secs(60);

/// Datagrams of one session with nothing new in them make one event in this time.
const HEARD_EVERY: Duration = Duration::from_millis(1);

/// Unverified datagrams of one session draw one probe in this time.
const CHALLENGE_EVERY: Duration = Duration::from_millis(20);

/// Everybody this node has heard or remembers.
pub(super) struct Peers {
    own: SessionId,
    sessions: BTreeMap<SessionId, Peer>,
    by_address: BTreeMap<SocketAddr, SessionId>,
    book: BTreeMap<SessionId, Entry>,
    /// Left or superseded; kept out of the book although late datagrams may come.
    retired: BTreeMap<SessionId, Time>,
    targets: BTreeMap<SocketAddr, Target>,
    own_addresses: BTreeSet<SocketAddr>,
    limit: usize,
    silent_after: Duration,
    /// How long an unverified session counts as news: the most that replays can feign (X2).
    trust: Duration,
    remember: Duration,
}

struct Peer {
    address: SocketAddr,
    first: Time,
    heard: Time,
    verified: bool,
    /// The first counter sent to the present address, which has to come back from there.
    challenge: Option<u64>,
    challenged: Option<Time>,
    window: Window,
    /// The highest of my counters that it has echoed.
    echoed: u64,
    /// It had been silent (or unknown), and no echo has come since.
    returning: bool,
    told: Option<(Time, NodeState, u64, Vec<u64>)>,
}

#[derive(Clone, Copy)]
struct Entry {
    address: SocketAddr,
    seen: Time,
}

struct Target {
    /// Last heard, or else since when it is a target.
    since: Time,
    heard: bool,
    next: Time,
    /// A seed is never given up.
    seed: bool,
}

/// What an authentic, fresh datagram means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Accepted {
    pub(super) verified: bool,
    /// A counter of mine that is echoed for the first time.
    pub(super) echoed: Option<u64>,
    /// First echo after silence: gossip at once.
    pub(super) returned: bool,
    /// Worth an event.
    pub(super) news: bool,
    /// Ask the sender to prove itself.
    pub(super) challenge: bool,
}

impl Peers {
    pub(super) fn new(own: SessionId, timing: &Timing, limit: usize) -> Self {
        Self {
            own,
            sessions: BTreeMap::new(),
            by_address: BTreeMap::new(),
            book: BTreeMap::new(),
            retired: BTreeMap::new(),
            targets: BTreeMap::new(),
            own_addresses: BTreeSet::new(),
            limit,
            silent_after: timing.gossip_interval * 2,
            trust: timing.silence_floor,
            remember: timing.address_book,
        }
    }

    /// Never to be probed.
    pub(super) fn add_own_address(&mut self, address: SocketAddr) {
        self.own_addresses.insert(address);
    }

    /// To be probed for ever.
    pub(super) fn add_seed(&mut self, address: SocketAddr, now: Time) {
        if let Some(target) = self.add_target(address, now) {
            target.seed = true;
        }
    }

    /// A session that was seen, perhaps by others, at its advertised address.
    pub(super) fn remember(&mut self, session: &SessionId, address: SocketAddr, now: Time) {
        if *session == self.own || self.retired.contains_key(session) {
            return;
        }
        if !self.book.contains_key(session) && self.book.len() >= self.limit {
            let oldest = self
                .book
                .iter()
                .min_by_key(|(_, entry)| entry.seen)
                .map(|(session, _)| session.clone());
            if let Some(oldest) = oldest {
                self.book.remove(&oldest);
            }
        }
        let entry = Entry { address, seen: now };
        self.book.insert(session.clone(), entry);
        self.by_address.entry(address).or_insert_with(|| session.clone());
        self.add_target(address, now);
    }

    /// Left or superseded: no longer remembered.
    pub(super) fn retire(&mut self, session: &SessionId, now: Time) {
        self.retired.insert(session.clone(), now);
        self.book.remove(session);
        self.by_address.retain(|_, at| at != session);
    }

    /// Everybody remembered, by session.
    pub(super) fn book(&self) -> Vec<(SessionId, SocketAddr)> {
        self.book.iter().map(|(session, entry)| (session.clone(), entry.address)).collect()
    }

    /// Probe this address at the next opportunity.
    pub(super) fn probe(&mut self, address: SocketAddr, now: Time) {
        if let Some(target) = self.add_target(address, now) {
            target.next = now;
            target.heard = false;
        }
    }

    fn add_target(&mut self, address: SocketAddr, now: Time) -> Option<&mut Target> {
        let full = self.targets.len() >= 2 * self.limit && !self.targets.contains_key(&address);
        if full || self.own_addresses.contains(&address) {
            return None;
        }
        Some(self.targets.entry(address).or_insert(Target {
            since: now,
            heard: false,
            next: now,
            seed: false,
        }))
    }

    /// Whether a session is known by its datagrams.
    pub(super) fn knows(&self, session: &SessionId) -> bool {
        self.sessions.contains_key(session)
    }

    /// The addresses of verified sessions heard lately.
    pub(super) fn reachable(&self, now: Time) -> Vec<SocketAddr> {
        self.sessions
            .values()
            .filter(|peer| peer.verified && now.since(peer.heard) <= self.silent_after)
            .map(|peer| peer.address)
            .collect()
    }

    /// What to echo in a datagram that is about to go to `to` with `counter`.
    pub(super) fn sending(&mut self, to: SocketAddr, counter: u64) -> Option<Echo> {
        let session = self.by_address.get(&to)?;
        let peer = self.sessions.get_mut(session)?;
        if peer.address == to {
            peer.challenge.get_or_insert(counter);
        }
        Some(Echo { nonce: session.nonce, counter: peer.window.highest() })
    }

    /// Takes note of an authentic datagram; `sent` is the highest counter this node has used.
    pub(super) fn accept(
        &mut self,
        header: &Header,
        from: SocketAddr,
        sent: u64,
        now: Time,
    ) -> Result<Accepted, Rejected> {
        let session = &header.session;
        if *session == self.own {
            return Err(Rejected::Own);
        }
        if !self.sessions.contains_key(session) {
            self.make_room(now)?;
        }
        let peer = self.sessions.entry(session.clone()).or_insert_with(|| Peer::new(from, now));
        if !peer.window.take(header.counter) {
            return Err(Rejected::Replayed);
        }
        if peer.address != from {
            peer.address = from;
            peer.verified = false;
            peer.challenge = None;
        }
        if now.since(peer.heard) > self.silent_after {
            peer.returning = true;
        }
        peer.heard = now;

        let mut accepted = Accepted::default();
        let echo = header.echo.filter(|echo| echo.nonce == self.own.nonce && echo.counter <= sent);
        if let Some(echo) = echo.filter(|echo| echo.counter > peer.echoed) {
            peer.echoed = echo.counter;
            accepted.echoed = Some(echo.counter);
            if peer.challenge.is_some_and(|first| echo.counter >= first) {
                peer.verified = true;
            }
            accepted.returned = peer.verified && std::mem::take(&mut peer.returning);
        }
        accepted.verified = peer.verified;
        accepted.challenge =
            !peer.verified && peer.challenged.is_none_or(|last| now.since(last) >= CHALLENGE_EVERY);
        if accepted.challenge {
            peer.challenged = Some(now);
        }
        let trusted = peer.verified || now.since(peer.first) <= self.trust;
        accepted.news = trusted && (accepted.echoed.is_some() || peer.tells(header, now));
        if accepted.news {
            let released = header.released.clone();
            peer.told = Some((now, header.state, header.watermark, released));
        }

        let verified = peer.verified;
        self.by_address.insert(from, session.clone());
        self.hear(from, now);
        if verified {
            // What a session advertises lasts longer than where a datagram came from.
            let address = self.book.get(session).map_or(from, |entry| entry.address);
            self.remember(session, address, now);
            self.hear(address, now);
        }
        Ok(accepted)
    }

    fn hear(&mut self, address: SocketAddr, now: Time) {
        if let Some(target) = self.targets.get_mut(&address) {
            target.since = now;
            target.heard = true;
        }
    }

    /// Makes room for one more session by dropping the one not heard for longest, if it is silent.
    fn make_room(&mut self, now: Time) -> Result<(), Rejected> {
        if self.sessions.len() < self.limit {
            return Ok(());
        }
        let oldest = self
            .sessions
            .iter()
            .min_by_key(|(_, peer)| peer.heard)
            .filter(|(_, peer)| now.since(peer.heard) > self.trust)
            .map(|(session, _)| session.clone())
            .ok_or(Rejected::Limit)?;
        self.sessions.remove(&oldest);
        self.by_address.retain(|_, session| *session != oldest);
        Ok(())
    }

    /// Whom to probe now: everybody silent, ten times in as long as the silence has lasted, though
    /// not more often than every 100 ms nor more rarely than every 5 s.
    pub(super) fn due(&mut self, now: Time) -> Vec<SocketAddr> {
        self.book.retain(|_, entry| now.since(entry.seen) <= self.remember);
        self.retired.retain(|_, at| now.since(*at) <= self.remember);
        let remembered: BTreeSet<SocketAddr> =
            self.book.values().map(|entry| entry.address).collect();
        self.targets.retain(|address, target| {
            target.seed || remembered.contains(address) || now.since(target.since) <= UNKNOWN_TARGET
        });
        let mut due = Vec::new();
        for (address, target) in &mut self.targets {
            let silence = now.since(target.since);
            if now < target.next || (target.heard && silence <= self.silent_after) {
                continue;
            }
            target.next = now + (silence / 10).clamp(PROBE_MIN, PROBE_MAX);
            due.push(*address);
        }
        due
    }
}

impl Peer {
    fn new(address: SocketAddr, now: Time) -> Self {
        Self {
            address,
            first: now,
            heard: now,
            verified: false,
            // Its first address needs no challenge of its own: any echo of this process is fresh.
            challenge: Some(1),
            challenged: None,
            window: Window::default(),
            echoed: 0,
            returning: true,
            told: None,
        }
    }

    fn tells(&self, header: &Header, now: Time) -> bool {
        self.told.as_ref().is_none_or(|(at, state, watermark, released)| {
            now.since(*at) >= HEARD_EVERY
                || *state != header.state
                || *watermark != header.watermark
                || *released != header.released
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use uuid::Uuid;

    use crate::core::ids::NodeId;

    use super::*;

    fn session(number: u128) -> SessionId {
        SessionId::new(NodeId::new("n").unwrap(), Uuid::from_u128(number))
    }

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn at(millis: u64) -> Time {
        Time::from_micros(1_000_000_000 + millis * 1000)
    }

    fn peers() -> Peers {
        Peers::new(session(1), &Timing::default(), 10)
    }

    fn header(from: u128, counter: u64, echo: Option<u64>) -> Header {
        Header {
            session: session(from),
            counter,
            echo: echo.map(|counter| Echo { nonce: Uuid::from_u128(1), counter }),
            state: NodeState::Up,
            watermark: 0,
            released: Vec::new(),
        }
    }

    #[test]
    fn a_session_is_verified_by_its_first_echo_and_then_gossiped_with_once() {
        let mut peers = peers();
        let first = peers.accept(&header(2, 1, None), address(2), 0, at(0));
        assert!(matches!(
            first,
            Ok(Accepted { verified: false, challenge: true, returned: false, .. })
        ));
        assert_eq!(peers.reachable(at(0)), []);
        let second = peers.accept(&header(2, 2, Some(1)), address(2), 1, at(1)).unwrap();
        assert!(second.verified && second.returned);
        assert_eq!(second.echoed, Some(1));
        let third = peers.accept(&header(2, 3, Some(1)), address(2), 1, at(2)).unwrap();
        assert!(third.verified && !third.returned);
        assert_eq!(third.echoed, None);
        assert_eq!(peers.reachable(at(3)), [address(2)]);
        assert_eq!(peers.book(), [(session(2), address(2))]);
    }

    #[test]
    fn an_echo_of_a_counter_never_sent_or_of_another_process_proves_nothing() {
        let mut peers = peers();
        let ahead = peers.accept(&header(2, 1, Some(50)), address(2), 3, at(0));
        assert!(!ahead.unwrap().verified);
        let mut foreign = header(2, 2, Some(1));
        foreign.echo.as_mut().unwrap().nonce = Uuid::from_u128(77);
        let foreign = peers.accept(&foreign, address(2), 3, at(1)).unwrap();
        assert!(!foreign.verified);
        assert_eq!(foreign.echoed, None);
    }

    #[test]
    fn replays_and_own_datagrams_are_dropped() {
        let mut peers = peers();
        let taken = header(2, 1, None);
        assert!(peers.accept(&taken, address(2), 0, at(0)).is_ok());
        assert_eq!(peers.accept(&taken, address(2), 0, at(1)), Err(Rejected::Replayed));
        assert_eq!(peers.accept(&header(1, 1, None), address(2), 0, at(1)), Err(Rejected::Own));
    }

    #[test]
    fn a_recording_is_news_for_no_longer_than_the_silence_floor() {
        let mut peers = peers();
        let news = |peers: &mut Peers, counter, millis| {
            peers.accept(&header(2, counter, None), address(2), 0, at(millis)).unwrap().news
        };
        assert!(news(&mut peers, 1, 0));
        assert!(news(&mut peers, 2, 9_000));
        assert!(!news(&mut peers, 3, 11_000));
    }

    #[test]
    fn a_session_at_a_new_address_has_to_prove_itself_again() {
        let mut peers = peers();
        peers.accept(&header(2, 1, Some(5)), address(2), 5, at(0)).unwrap();
        let moved = peers.accept(&header(2, 2, Some(6)), address(3), 6, at(1)).unwrap();
        assert!(!moved.verified && moved.challenge);
        assert!(peers.sending(address(3), 9).is_some());
        let stale = peers.accept(&header(2, 3, Some(8)), address(3), 9, at(2));
        assert!(!stale.unwrap().verified);
        let proven = peers.accept(&header(2, 4, Some(9)), address(3), 9, at(3));
        assert!(proven.unwrap().verified);
    }

    #[test]
    fn silent_peers_are_probed_often_at_first_and_more_rarely_later() {
        let mut peers = peers();
        peers.accept(&header(2, 1, Some(1)), address(2), 1, at(0)).unwrap();
        let count = |peers: &mut Peers, from: u64, to: u64| {
            (from..to).step_by(10).filter(|ms| !peers.due(at(*ms)).is_empty()).count()
        };
        assert_eq!(count(&mut peers, 0, 1000), 0);
        let early = count(&mut peers, 1010, 2010);
        assert!((7..=8).contains(&early), "{early}");
        count(&mut peers, 2010, 100_000);
        let late = count(&mut peers, 100_000, 200_000);
        assert!((19..=20).contains(&late), "{late}");
    }

    #[test]
    fn the_address_book_outlives_silence_and_forgets_who_left() {
        let mut peers = peers();
        for number in [2, 3] {
            peers.accept(&header(number, 1, Some(1)), address(number as u16), 1, at(0)).unwrap();
        }
        peers.retire(&session(3), at(1));
        peers.accept(&header(3, 2, Some(2)), address(3), 2, at(2)).unwrap();
        let hours = |hours: u64| at(hours * 3600 * 1000);
        assert_eq!(peers.due(hours(23)), [address(2)]);
        assert_eq!(peers.book(), [(session(2), address(2))]);
        assert_eq!(peers.due(hours(25)), []);
        assert_eq!(peers.book(), []);
    }

    #[test]
    fn a_seed_is_probed_for_ever_and_oneself_never() {
        let mut peers = peers();
        peers.add_own_address(address(1));
        peers.add_seed(address(1), at(0));
        peers.add_seed(address(2), at(0));
        peers.probe(address(3), at(0));
        assert_eq!(peers.due(at(0)), [address(2), address(3)]);
        assert_eq!(peers.due(at(100_000_000)), [address(2)]);
    }

    #[test]
    fn a_flood_of_sessions_pushes_out_nobody_who_is_heard() {
        let mut peers = peers();
        for number in 2..12 {
            assert!(peers.accept(&header(number, 1, None), address(2), 0, at(0)).is_ok());
        }
        assert_eq!(peers.accept(&header(12, 1, None), address(2), 0, at(1)), Err(Rejected::Limit));
        assert!(peers.accept(&header(12, 1, None), address(2), 0, at(11_000)).is_ok());
        assert_eq!(peers.sessions.len(), 10);
    }
}
