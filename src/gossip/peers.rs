//! Who has been heard, and where each session is to be reached.
//!
//! What a session advertises is believed once an echo has come from there (see [`Places`]). Until
//! then it is reached where its own datagrams come from, if that is verified. So a peer behind NAT or
//! in a container, whose datagrams bear another source than it advertises, is reached at both, and a
//! peer that advertises somebody else's address directs nothing there but probes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::core::ids::SessionId;
use crate::core::time::Time;
use crate::core::timing::Timing;
use crate::net::NetworkLimits;
use crate::rate::{Rate, Seldom, Sources};

use super::header::{Echo, Header};
use super::pace::Pace;
use super::places::Places;
use super::rejected::Rejected;
use super::replay::Window;

/// Datagrams of one session with nothing new in them make one event in this time.
const HEARD_EVERY: Duration = Duration::from_millis(1);

/// Unverified datagrams of one session draw one probe in this time.
const CHALLENGE_EVERY: Duration = Duration::from_millis(20);

/// The longest datagram that all strangers together are reckoned with.
const DATAGRAM: u32 = 1400;

/// Everybody this node has heard or remembers.
pub(super) struct Peers {
    own: SessionId,
    sessions: BTreeMap<SessionId, Peer>,
    places: Places,
    strangers: Sources,
    /// What sessions advertise.
    adverts: BTreeMap<SessionId, Advert>,
    /// Where they may.
    within: Vec<IpNet>,
    book: BTreeMap<SessionId, Entry>,
    /// Left or superseded; kept out of the book although late datagrams may come.
    retired: BTreeMap<SessionId, Time>,
    /// Sessions whose advertised address has been confirmed since this was last asked for.
    located: BTreeMap<SessionId, SocketAddr>,
    /// About adverts that are not used.
    outside: Seldom,
    limit: usize,
    silent_after: Duration,
    /// How long an unverified session counts as news: the most that replays can feign (X2).
    trust: Duration,
    remember: Duration,
}

struct Peer {
    /// Where it was verified last.
    address: Option<SocketAddr>,
    first: Time,
    heard: Time,
    challenged: Option<Time>,
    window: Window,
    /// The highest of my counters that it has echoed.
    echoed: u64,
    /// The first datagram sent to it that it has not echoed, and when that was.
    unechoed: Option<(u64, Time)>,
    /// It had been silent (or unknown), and no echo has come since.
    returning: bool,
    /// When its header was told last, of which version, with how many released numbers listed.
    told: Option<(Time, u64, usize)>,
}

#[derive(Clone, Copy)]
struct Entry {
    address: SocketAddr,
    seen: Time,
}

/// What a session says of where it is.
struct Advert {
    address: SocketAddr,
    since: Time,
    seen: Time,
    /// An echo has come from there.
    confirmed: bool,
}

/// Paths that seem to be open in one direction alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OneWay {
    /// Sessions that are heard and go on without echoing what was sent to them.
    pub(super) unechoed: usize,
    /// Sessions that others hear, since their hearts beat, and this node does not.
    pub(super) unheard: usize,
}

/// What an authentic, fresh datagram means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Accepted {
    /// Its sender has proved to be where it came from.
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
    pub(super) fn new(
        own: SessionId,
        timing: &Timing,
        limit: usize,
        network: &NetworkLimits,
        within: Vec<IpNet>,
        now: Time,
    ) -> Self {
        let silent_after = timing.gossip_interval * 2;
        let peer = Rate { count: network.peer_datagrams, bytes: network.peer_bytes };
        let stranger = Rate { count: network.stranger_datagrams, bytes: network.stranger_bytes };
        let strangers = Rate {
            count: network.strangers_datagrams,
            bytes: network.strangers_datagrams.saturating_mul(DATAGRAM),
        };
        Self {
            own,
            sessions: BTreeMap::new(),
            places: Places::new(limit * 3, silent_after, Pace::new(network.probes, now), peer),
            strangers: Sources::new(stranger, strangers, now),
            adverts: BTreeMap::new(),
            within,
            book: BTreeMap::new(),
            retired: BTreeMap::new(),
            located: BTreeMap::new(),
            outside: Seldom::default(),
            limit,
            silent_after,
            trust: timing.silence_floor,
            remember: timing.address_book,
        }
    }

    /// Whether a datagram may be looked at. Asked before anything is decrypted or allocated for it.
    pub(super) fn admit(&mut self, from: SocketAddr, bytes: usize, now: Time) -> bool {
        let known = self.places.admit(from, bytes, now);
        known.unwrap_or_else(|| self.strangers.admit(from.ip(), bytes, now))
    }

    /// Never to be probed.
    pub(super) fn add_own_address(&mut self, address: SocketAddr) {
        self.places.add_own(address);
    }

    /// To be probed for ever.
    pub(super) fn add_seed(&mut self, address: SocketAddr, now: Time) {
        self.places.add_seed(address, now);
    }

    /// Probe this address at the next opportunity.
    pub(super) fn probe(&mut self, address: SocketAddr, now: Time) {
        self.places.hasten(address, now);
    }

    /// A session that was reached at this address, in this process's life or before.
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
        let old = self.book.insert(session.clone(), Entry { address, seen: now });
        self.places.add(address, Some(session), now);
        // A source that was good until its session's own address was known.
        if let Some(old) = old.map(|entry| entry.address).filter(|old| *old != address)
            && !self.book.values().any(|entry| entry.address == old)
        {
            self.places.leave_alone(old);
        }
    }

    /// A session whose heart beats advertises this address. It is probed, and believed once an echo
    /// has come from there.
    pub(super) fn advertised(&mut self, session: &SessionId, address: SocketAddr, now: Time) {
        if *session == self.own || self.retired.contains_key(session) {
            return;
        }
        let known = self.adverts.get(session).map(|advert| advert.address);
        if known.is_none() && self.adverts.len() >= self.limit {
            return;
        }
        let allowed = self.may_advertise(session, address.ip());
        let advert = self.adverts.entry(session.clone()).or_insert(Advert {
            address,
            since: now,
            seen: now,
            confirmed: false,
        });
        advert.seen = now;
        if advert.address != address {
            advert.address = address;
            advert.confirmed = false;
        }
        if advert.confirmed {
            if let Some(entry) = self.book.get_mut(session) {
                entry.seen = now;
            }
        } else if self.places.is_there(address, session) {
            self.confirm(session, address, now);
        } else if allowed {
            self.places.add(address, Some(session), now);
            self.places.renew(address, now);
        } else if known != Some(address) {
            Rejected::Advertised.count();
            if let Some(unsaid) = self.outside.speak(now) {
                tracing::warn!(
                    target: "handover::gossip",
                    peer = %session,
                    %address,
                    unsaid,
                    "a peer advertises an address outside of the networks allowed: it is not used"
                );
            }
        }
    }

    /// Whether an address may be probed because somebody advertises it.
    fn may_advertise(&self, session: &SessionId, address: IpAddr) -> bool {
        let source = || self.sessions.get(session).and_then(|peer| peer.address);
        self.within.is_empty()
            || self.within.iter().any(|network| network.contains(&address))
            || source().is_some_and(|source| source.ip() == address)
    }

    /// What a session advertises is where it is.
    fn confirm(&mut self, session: &SessionId, address: SocketAddr, now: Time) {
        if let Some(advert) = self.adverts.get_mut(session) {
            advert.confirmed = true;
        }
        self.remember(session, address, now);
        self.located.insert(session.clone(), address);
    }

    /// Sessions whose advertised address has been confirmed since this was last asked.
    pub(super) fn take_located(&mut self) -> BTreeMap<SessionId, SocketAddr> {
        std::mem::take(&mut self.located)
    }

    /// Nobody knows any more where a session is: if it comes back that is news.
    pub(super) fn mislay(&mut self, session: &SessionId) {
        self.adverts.remove(session);
    }

    /// Left or superseded: no longer remembered.
    pub(super) fn retire(&mut self, session: &SessionId, now: Time) {
        if self.retired.len() >= 4 * self.limit {
            let oldest = self.retired.iter().min_by_key(|(_, at)| **at);
            if let Some(oldest) = oldest.map(|(session, _)| session.clone()) {
                self.retired.remove(&oldest);
            }
        }
        self.retired.insert(session.clone(), now);
        self.book.remove(session);
        self.adverts.remove(session);
        self.located.remove(session);
        self.places.forget(session);
    }

    /// Everybody remembered, by session.
    pub(super) fn book(&self) -> Vec<(SessionId, SocketAddr)> {
        self.book.iter().map(|(session, entry)| (session.clone(), entry.address)).collect()
    }

    /// Whether a session is known by its datagrams.
    pub(super) fn knows(&self, session: &SessionId) -> bool {
        self.sessions.contains_key(session)
    }

    /// Where a session has proved to be: what it advertises, or else where it was heard last.
    fn reach(&self, session: &SessionId) -> Option<SocketAddr> {
        let advert = self.adverts.get(session).map(|advert| advert.address);
        let source = self.sessions.get(session).and_then(|peer| peer.address);
        advert.into_iter().chain(source).find(|address| self.places.is_there(*address, session))
    }

    /// Where sessions heard lately are reached.
    pub(super) fn reachable(&self, now: Time) -> Vec<SocketAddr> {
        self.sessions
            .iter()
            .filter(|(_, peer)| now.since(peer.heard) <= self.silent_after)
            .filter_map(|(session, _)| self.reach(session))
            .collect()
    }

    /// Where to send what is meant for this address: there, if somebody has proved to be there, or
    /// where else the session that is said to be there has proved to be.
    pub(super) fn route(&self, to: SocketAddr) -> Option<SocketAddr> {
        match self.places.session_at(to)? {
            (_, true) => Some(to),
            (session, false) => self.reach(session),
        }
    }

    /// What to echo in a datagram that is about to go to `to` with `counter`.
    pub(super) fn sending(&mut self, to: SocketAddr, counter: u64, now: Time) -> Option<Echo> {
        let session = self.places.sending(to, counter)?;
        let peer = self.sessions.get_mut(session)?;
        peer.unechoed.get_or_insert((counter, now));
        Some(Echo { nonce: session.nonce, counter: peer.window.highest() })
    }

    /// Takes note of an authentic datagram of `bytes` bytes; `sent` is the highest counter this node
    /// has used.
    pub(super) fn accept(
        &mut self,
        header: &Header,
        (from, bytes): (SocketAddr, usize),
        sent: u64,
        now: Time,
    ) -> Result<Accepted, Rejected> {
        let session = &header.session;
        if *session == self.own {
            return Err(Rejected::Own);
        }
        // What a session tells a third is no news of it here, or each of its datagrams that was recorded
        // would be one (X2): only who has heard this session writes to it.
        if header.echo.is_some_and(|echo| echo.nonce != self.own.nonce) {
            return Err(Rejected::Misdirected);
        }
        if !self.sessions.contains_key(session) {
            self.make_room(now)?;
        }
        let peer = self.sessions.entry(session.clone()).or_insert_with(|| Peer::new(now));
        if !peer.window.take(header.counter) {
            return Err(Rejected::Replayed);
        }
        // Not before: whoever writes a peer's address on forgeries or recordings must not spend its share.
        if !self.places.charge(from, bytes, now) {
            return Err(Rejected::Rate);
        }
        let echo = header.echo.map(|echo| echo.counter).filter(|counter| *counter <= sent);
        let verified = self.places.hear(from, session, echo, now).ok_or(Rejected::Limit)?;
        if now.since(peer.heard) > self.silent_after {
            peer.returning = true;
        }
        peer.heard = now;
        if verified {
            peer.address = Some(from);
        }

        let mut accepted = Accepted { verified, ..Accepted::default() };
        if let Some(counter) = echo.filter(|counter| *counter > peer.echoed) {
            peer.echoed = counter;
            peer.unechoed.take_if(|(sent, _)| *sent <= counter);
            accepted.echoed = Some(counter);
            accepted.returned = verified && std::mem::take(&mut peer.returning);
        }
        accepted.challenge =
            !verified && peer.challenged.is_none_or(|last| now.since(last) >= CHALLENGE_EVERY);
        if accepted.challenge {
            peer.challenged = Some(now);
        }
        let trusted = verified && header.echo.is_some() || now.since(peer.first) <= self.trust;
        // What was overtaken says nothing of now.
        let newest = header.counter == peer.window.highest();
        accepted.news = trusted && newest && (accepted.echoed.is_some() || peer.tells(header, now));
        if accepted.news {
            peer.told = Some((now, header.version, header.released.len()));
        }
        if verified {
            self.place(session, from, now);
        }
        if accepted.returned {
            self.places.sweep(now);
        }
        Ok(accepted)
    }

    /// A session was heard where it has proved to be.
    fn place(&mut self, session: &SessionId, from: SocketAddr, now: Time) {
        match self.adverts.get(session) {
            Some(advert) if advert.address == from && !advert.confirmed => {
                self.confirm(session, from, now);
            }
            Some(advert) if advert.confirmed => {
                // Heard from elsewhere, as behind NAT: what it advertises lasts longer.
                let address = advert.address;
                self.remember(session, address, now);
                self.places.heard_elsewhere(address, now);
            }
            _ => self.remember(session, from, now),
        }
    }

    /// Which paths seem to be open in one direction alone.
    pub(super) fn one_way(&self, now: Time) -> OneWay {
        let patience = self.silent_after * 2;
        let lately = |at: Time| now.since(at) <= patience;
        let heard = |session| self.sessions.get(session).is_some_and(|peer| lately(peer.heard));
        let unechoed = self.sessions.values().filter(|peer| {
            // Heard a round after that was sent which it does not echo.
            let ignores =
                |(_, sent): (u64, Time)| !lately(sent) && peer.heard > sent + patience / 2;
            lately(peer.heard) && peer.unechoed.is_some_and(ignores)
        });
        let unheard = self.adverts.iter().filter(|(session, advert)| {
            lately(advert.seen) && !lately(advert.since) && !heard(session)
        });
        OneWay { unechoed: unechoed.count(), unheard: unheard.count() }
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
        self.places.forget(&oldest);
        Ok(())
    }

    /// Whom to probe now.
    pub(super) fn due(&mut self, now: Time) -> Vec<SocketAddr> {
        self.book.retain(|_, entry| now.since(entry.seen) <= self.remember);
        self.adverts.retain(|_, advert| now.since(advert.seen) <= self.remember);
        self.retired.retain(|_, at| now.since(*at) <= self.remember);
        let remembered: BTreeSet<SocketAddr> =
            self.book.values().map(|entry| entry.address).collect();
        self.places.due(&remembered, now)
    }
}

impl Peer {
    fn new(now: Time) -> Self {
        Self {
            address: None,
            first: now,
            heard: now,
            challenged: None,
            window: Window::default(),
            echoed: 0,
            unechoed: None,
            returning: true,
            told: None,
        }
    }

    fn tells(&self, header: &Header, now: Time) -> bool {
        self.told.is_none_or(|(at, version, released)| {
            now.since(at) >= HEARD_EVERY
                || version != header.version
                || released < header.released.len()
        })
    }
}

#[cfg(test)]
mod tests;
