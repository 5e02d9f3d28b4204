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

use super::pace::Pace;

/// How long an address that nobody remembers is kept unheard, and probed if it was asked for.
const FORGET: Duration = Duration::from_secs(60);

/// How many times a peer's share may be opened under its address. What is forged costs the peer
/// nothing of its share, and this node no more than that many ciphers.
const FORGERIES: u32 = 8;

const fn sealed(rate: Rate) -> Rate {
    Rate {
        count: rate.count.saturating_mul(FORGERIES),
        bytes: rate.bytes.saturating_mul(FORGERIES),
    }
}

/// All addresses that matter.
pub(super) struct Places {
    all: BTreeMap<SocketAddr, Place>,
    own: BTreeSet<SocketAddr>,
    limit: usize,
    silent_after: Duration,
    pace: Pace,
    /// What a verified address may send.
    rate: Rate,
}

/// One address.
pub(super) struct Place {
    /// Whose datagrams came from there last; before the first one, who is said to be there.
    session: Option<SessionId>,
    verified: bool,
    sent: Sent,
    /// Sealed datagrams that may bear this source: anybody can write it on one.
    sealed: Bucket,
    /// Authentic ones.
    bucket: Bucket,
    /// Last heard, or else since when it matters.
    since: Time,
    heard: bool,
    /// Whether it is looked for while it is silent.
    target: bool,
    /// When that was done last.
    probed: Option<Time>,
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
    pub(super) const fn new(limit: usize, silent_after: Duration, pace: Pace, rate: Rate) -> Self {
        Self { all: BTreeMap::new(), own: BTreeSet::new(), limit, silent_after, pace, rate }
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
        place.target = true;
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
            place.probed = None;
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
            place.target = false;
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

    /// Whether one more datagram that bears a verified address may be opened; none if it is none.
    pub(super) fn admit(&mut self, from: SocketAddr, bytes: usize, now: Time) -> Option<bool> {
        let place = self.all.get_mut(&from).filter(|place| place.verified)?;
        Some(place.sealed.take(sealed(self.rate), bytes, now))
    }

    /// Whether an authentic datagram is within the share of the verified address it came from.
    pub(super) fn charge(&mut self, from: SocketAddr, bytes: usize, now: Time) -> bool {
        let place = self.all.get_mut(&from).filter(|place| place.verified);
        place.is_none_or(|place| place.bucket.take(self.rate, bytes, now))
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
        let rank = |place: &Place| (place.verified, place.target, place.since);
        let dispensable = |place: &Place| {
            !place.seed && (!place.verified || now.since(place.since) > self.silent_after)
        };
        let least = self
            .all
            .iter()
            .filter(|(_, place)| dispensable(place) && now.since(place.since) > Pace::LEAST)
            .min_by_key(|(_, place)| rank(place))
            .map(|(address, _)| *address);
        least.is_some_and(|least| self.all.remove(&least).is_some())
    }

    /// Somebody silent has answered: who else was lost may be back too, and is looked for at once.
    pub(super) fn sweep(&mut self, now: Time) {
        let silent =
            self.all.values().filter(|place| place.is_sought(self.silent_after, now)).count();
        if self.pace.may_sweep(silent, now) {
            for place in self.all.values_mut() {
                place.probed = None;
            }
        }
    }

    /// Whom to probe now, of those who are silent: see [`Pace`]. `remembered` addresses are never
    /// given up.
    pub(super) fn due(&mut self, remembered: &BTreeSet<SocketAddr>, now: Time) -> Vec<SocketAddr> {
        self.all.retain(|address, place| {
            place.seed || remembered.contains(address) || now.since(place.since) <= FORGET
        });
        let silent: Vec<(SocketAddr, &mut Place)> = self
            .all
            .iter_mut()
            .filter(|(_, place)| place.is_sought(self.silent_after, now))
            .map(|(address, place)| (*address, place))
            .collect();
        let count = silent.len();
        let mut due: Vec<(Option<Time>, SocketAddr, &mut Place)> = silent
            .into_iter()
            .filter(|(_, place)| {
                let every = self.pace.every(now.since(place.since), count);
                place.probed.is_none_or(|probed| now.since(probed) >= every)
            })
            .map(|(address, place)| (place.probed, address, place))
            .collect();
        // Who has waited longest comes first, those that never had a turn before all.
        due.sort_unstable_by_key(|(probed, address, _)| (*probed, *address));
        let mut probe = Vec::new();
        for (probed, address, place) in due {
            if !self.pace.take(probed.is_none(), now) {
                break;
            }
            place.probed = Some(now);
            probe.push(address);
        }
        probe
    }
}

impl Place {
    fn new(rate: Rate, now: Time) -> Self {
        Self {
            session: None,
            verified: false,
            sent: Sent::default(),
            sealed: Bucket::full(sealed(rate), now),
            bucket: Bucket::full(rate, now),
            since: now,
            heard: false,
            target: false,
            probed: None,
            seed: false,
        }
    }

    /// Whether it is to be looked for: it was never heard, or is silent.
    fn is_sought(&self, silent_after: Duration, now: Time) -> bool {
        self.target && (!self.heard || now.since(self.since) > silent_after)
    }
}
