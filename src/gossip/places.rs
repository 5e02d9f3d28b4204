//! Addresses: who was heard there, whether that is proved, and which of them are probed.
//!
//! An address is *verified* for a session once a datagram of that session has come from there that
//! echoes a counter sent to that very address: whoever spoofs an address, or repeats from elsewhere
//! what somebody else has sent, never saw that counter. Before that, no more bytes go there than have
//! come from there, but for probes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::core::ids::SessionId;
use crate::core::time::Time;
use crate::rate::{Bucket, Rate};

const PROBE_MIN: Duration = Duration::from_millis(100);
const PROBE_MAX: Duration = Duration::from_secs(5);

/// How long an address that nobody remembers is kept unheard, and probed if it was asked for.
const FORGET: Duration = Duration::from_secs(60);

/// All addresses that matter.
pub(super) struct Places {
    all: BTreeMap<SocketAddr, Place>,
    own: BTreeSet<SocketAddr>,
    limit: usize,
    silent_after: Duration,
    /// What a verified address may send.
    rate: Rate,
}

/// One address.
pub(super) struct Place {
    /// Whose datagrams came from there last; before the first one, who is said to be there.
    session: Option<SessionId>,
    verified: bool,
    sent: Sent,
    bucket: Bucket,
    /// Last heard, or else since when it matters.
    since: Time,
    heard: bool,
    /// When it is probed next, if it is.
    next: Option<Time>,
    /// Never given up.
    seed: bool,
}

/// The counters of the last datagrams sent to an address; 0 stands for none.
#[derive(Default)]
struct Sent {
    counters: [u64; 16],
    next: usize,
}

impl Sent {
    fn push(&mut self, counter: u64) {
        if let Some(place) = self.counters.get_mut(self.next) {
            *place = counter;
        }
        self.next = (self.next + 1) % self.counters.len();
    }

    fn contains(&self, counter: u64) -> bool {
        counter != 0 && self.counters.contains(&counter)
    }
}

impl Places {
    pub(super) const fn new(limit: usize, silent_after: Duration, rate: Rate) -> Self {
        Self { all: BTreeMap::new(), own: BTreeSet::new(), limit, silent_after, rate }
    }

    /// Never to be probed.
    pub(super) fn add_own(&mut self, address: SocketAddr) {
        self.own.insert(address);
    }

    /// Probes an address for ever.
    pub(super) fn add_seed(&mut self, address: SocketAddr, now: Time) {
        if self.add(address, None, now)
            && let Some(place) = self.all.get_mut(&address)
        {
            place.seed = true;
        }
    }

    /// Probes an address from now on, where `session` is said to be. False if there is no room.
    pub(super) fn add(
        &mut self,
        address: SocketAddr,
        session: Option<&SessionId>,
        now: Time,
    ) -> bool {
        if self.own.contains(&address) || !self.make_room(address, now) {
            return false;
        }
        let place = self.all.entry(address).or_insert_with(|| Place::new(self.rate, now));
        if place.next.is_none() {
            place.next = Some(now);
        }
        if place.session.is_none() {
            place.session = session.cloned();
        }
        true
    }

    /// Keeps an address that is asked for again from being given up unheard.
    pub(super) fn renew(&mut self, address: SocketAddr, now: Time) {
        if let Some(place) = self.all.get_mut(&address).filter(|place| !place.heard) {
            place.since = place.since.max(now.back(FORGET / 2));
        }
    }

    /// Probes an address at the next opportunity.
    pub(super) fn hasten(&mut self, address: SocketAddr, now: Time) {
        if self.add(address, None, now)
            && let Some(place) = self.all.get_mut(&address)
        {
            place.next = Some(now);
            place.heard = false;
        }
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// No longer probes an address, unless it is a seed.
    pub(super) fn leave_alone(&mut self, address: SocketAddr) {
        if let Some(place) = self.all.get_mut(&address).filter(|place| !place.seed) {
            place.next = None;
        }
    }

    /// Whether a session has proved to be there.
    pub(super) fn is_there(&self, address: SocketAddr, session: &SessionId) -> bool {
        let place = self.all.get(&address);
        place.is_some_and(|place| place.verified && place.session.as_ref() == Some(session))
    }

    /// Who has proved to be there, or is only said to be.
    pub(super) fn session_at(&self, address: SocketAddr) -> Option<(&SessionId, bool)> {
        let place = self.all.get(&address)?;
        Some((place.session.as_ref()?, place.verified))
    }

    /// Whether one more datagram may come from a verified address; none if it is none.
    pub(super) fn admit(&mut self, from: SocketAddr, bytes: usize, now: Time) -> Option<bool> {
        let place = self.all.get_mut(&from).filter(|place| place.verified)?;
        Some(place.bucket.take(self.rate, bytes, now))
    }

    /// Notes a counter that is about to go there; returns who is there, for the echo.
    pub(super) fn sending(&mut self, to: SocketAddr, counter: u64) -> Option<&SessionId> {
        let place = self.all.get_mut(&to)?;
        place.sent.push(counter);
        place.session.as_ref()
    }

    /// An authentic datagram of a session has come from there, echoing `echo`. Returns whether the
    /// session has proved to be there; none if there is no room to remember the address.
    pub(super) fn hear(
        &mut self,
        from: SocketAddr,
        session: &SessionId,
        echo: Option<u64>,
        now: Time,
    ) -> Option<bool> {
        if !self.make_room(from, now) {
            return None;
        }
        let place = self.all.entry(from).or_insert_with(|| Place::new(self.rate, now));
        if place.session.as_ref() != Some(session) {
            place.session = Some(session.clone());
            place.verified = false;
        }
        place.since = now;
        place.heard = true;
        place.verified |= echo.is_some_and(|counter| place.sent.contains(counter));
        Some(place.verified)
    }

    /// A session that is remembered here was heard from elsewhere: no need to probe it.
    pub(super) fn heard_elsewhere(&mut self, address: SocketAddr, now: Time) {
        if let Some(place) = self.all.get_mut(&address) {
            place.since = now;
            place.heard = true;
        }
    }

    /// A session is no more.
    pub(super) fn forget(&mut self, session: &SessionId) {
        for place in self.all.values_mut().filter(|p| p.session.as_ref() == Some(session)) {
            place.session = None;
            place.verified = false;
        }
    }

    /// Makes room for an address: one that nobody answers at, or that is silent, gives way.
    fn make_room(&mut self, address: SocketAddr, now: Time) -> bool {
        if self.all.len() < self.limit || self.all.contains_key(&address) {
            return true;
        }
        let rank = |place: &Place| (place.verified, place.next.is_some(), place.since);
        let dispensable = |place: &Place| {
            !place.seed && (!place.verified || now.since(place.since) > self.silent_after)
        };
        let least = self
            .all
            .iter()
            .filter(|(_, place)| dispensable(place) && now.since(place.since) > PROBE_MIN)
            .min_by_key(|(_, place)| rank(place))
            .map(|(address, _)| *address);
        least.is_some_and(|least| self.all.remove(&least).is_some())
    }

    /// Whom to probe now: everybody silent, ten times in as long as the silence has lasted, though
    /// not more often than every 100 ms nor more rarely than every 5 s. `remembered` addresses are
    /// never given up.
    pub(super) fn due(&mut self, remembered: &BTreeSet<SocketAddr>, now: Time) -> Vec<SocketAddr> {
        self.all.retain(|address, place| {
            place.seed || remembered.contains(address) || now.since(place.since) <= FORGET
        });
        let mut due = Vec::new();
        for (address, place) in &mut self.all {
            let silence = now.since(place.since);
            let Some(next) = place.next else { continue };
            if now < next || (place.heard && silence <= self.silent_after) {
                continue;
            }
            place.next = Some(now + (silence / 10).clamp(PROBE_MIN, PROBE_MAX));
            due.push(*address);
        }
        due
    }
}

impl Place {
    fn new(rate: Rate, now: Time) -> Self {
        Self {
            session: None,
            verified: false,
            sent: Sent::default(),
            bucket: Bucket::full(rate, now),
            since: now,
            heard: false,
            next: None,
            seed: false,
        }
    }
}
