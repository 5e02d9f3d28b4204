//! Keeps exchanges from piling up: one unanswered SYN per peer, and one large answer to what a peer
//! has shown of its versions.
//!
//! Where peers or networks are slower than the rounds, stale SYNs queue and each draws the same
//! large delta again, until nothing else is carried.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::SocketAddr;
use std::time::Duration;

use xxhash_rust::xxh3::Xxh3Default;

use crate::core::time::Time;

use super::digest::Shown;

/// The longest a SYN is waited for.
const MAX_PATIENCE: Duration = Duration::from_secs(2);

/// A large answer needs this long to arrive, fragments asked for again included.
const IN_FLIGHT: Duration = Duration::from_millis(200);

/// How long an idle peer's figures are kept.
const KEEP: Duration = Duration::from_secs(60);

/// A summary of the versions in a digest; heartbeats do not bear on what is answered.
pub(super) fn versions(shown: &[Shown]) -> u64 {
    let mut hash = Xxh3Default::new();
    for Shown { id, version } in shown {
        hash.update(id.node_id.as_bytes());
        hash.write_u64(id.generation_id);
        hash.write_u64(*version);
    }
    hash.finish()
}

/// The state of the exchanges with each peer.
pub(super) struct Exchanges {
    peers: BTreeMap<SocketAddr, Exchange>,
    least: Duration,
    swept: Time,
}

struct Exchange {
    asked: Option<Asked>,
    /// Twice the last round trip that was measured, doubled for every SYN that was not answered.
    patience: Duration,
    /// The last large answer: to which versions, and when.
    large: Option<(u64, Time)>,
    used: Time,
}

#[derive(Clone, Copy)]
struct Asked {
    at: Time,
    /// An answer may be to an earlier one: its time measures nothing (Karn's rule).
    again: bool,
}

impl Exchanges {
    pub(super) const fn new(least: Duration) -> Self {
        Self { peers: BTreeMap::new(), least, swept: Time::ZERO }
    }

    /// Whether a SYN may be sent; it is, then. One that may not need not: what it was meant to push
    /// travels in answer to the reply that is on its way, or with the next round.
    pub(super) fn may_ask(&mut self, to: SocketAddr, now: Time) -> bool {
        let exchange = self.with(to, now);
        let again = match exchange.asked {
            Some(asked) if now.since(asked.at) < exchange.patience => return false,
            Some(_) => {
                exchange.patience = (exchange.patience * 2).min(MAX_PATIENCE);
                true
            }
            None => false,
        };
        exchange.asked = Some(Asked { at: now, again });
        true
    }

    /// A peer that was silent is back: what was under way to it is lost.
    pub(super) fn forget(&mut self, peer: SocketAddr) {
        self.peers.remove(&peer);
    }

    /// The engine starts afresh: nobody answers to it yet.
    pub(super) fn clear(&mut self) {
        self.peers.clear();
    }

    /// A SYN-ACK came.
    pub(super) fn answered(&mut self, from: SocketAddr, now: Time) {
        let least = self.least;
        let exchange = self.with(from, now);
        if let Some(Asked { at, again: false }) = exchange.asked.take() {
            exchange.patience = (now.since(at) * 2).clamp(least, MAX_PATIENCE.max(least));
        }
    }

    /// Whether a large answer to these versions may be sent; it is, then.
    pub(super) fn may_answer(&mut self, to: SocketAddr, versions: u64, now: Time) -> bool {
        if self.is_answered(to, versions, now) {
            return false;
        }
        self.with(to, now).large = Some((versions, now));
        true
    }

    /// Whether a large answer to these versions is still on its way.
    pub(super) fn is_answered(&self, to: SocketAddr, versions: u64, now: Time) -> bool {
        self.peers.get(&to).is_some_and(|exchange| {
            exchange.large.is_some_and(|(answered, at)| {
                answered == versions && now.since(at) < exchange.patience.max(IN_FLIGHT)
            })
        })
    }

    fn with(&mut self, peer: SocketAddr, now: Time) -> &mut Exchange {
        if now.since(self.swept) > KEEP {
            self.swept = now;
            self.peers.retain(|_, exchange| now.since(exchange.used) <= KEEP);
        }
        let exchange = self.peers.entry(peer).or_insert(Exchange {
            asked: None,
            patience: self.least,
            large: None,
            used: now,
        });
        exchange.used = now;
        exchange
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_micros(1_000_000 + millis * 1000)
    }

    fn peer() -> SocketAddr {
        ([127, 0, 0, 1], 4000).into()
    }

    #[test]
    fn one_syn_is_under_way_until_it_is_answered_or_given_up() {
        let mut exchanges = Exchanges::new(Duration::from_millis(100));
        assert!(exchanges.may_ask(peer(), at(0)));
        assert!(!exchanges.may_ask(peer(), at(50)));
        exchanges.answered(peer(), at(51));
        assert!(exchanges.may_ask(peer(), at(52)));
        assert!(exchanges.may_ask(peer(), at(160)));
    }

    #[test]
    fn a_slow_peer_is_asked_ever_more_rarely_until_a_round_trip_is_measured() {
        let mut exchanges = Exchanges::new(Duration::from_millis(25));
        let asked = (0..800).filter(|ms| exchanges.may_ask(peer(), at(*ms))).count();
        assert_eq!(asked, 6);
        exchanges.answered(peer(), at(800));
        assert!(exchanges.may_ask(peer(), at(801)));
        exchanges.answered(peer(), at(811));
        assert!(exchanges.may_ask(peer(), at(812)));
        assert!(!exchanges.may_ask(peer(), at(830)));
        assert!(exchanges.may_ask(peer(), at(840)));
    }

    #[test]
    fn a_peer_that_returns_is_asked_at_once() {
        let mut exchanges = Exchanges::new(Duration::from_millis(25));
        for ms in 0..5000 {
            exchanges.may_ask(peer(), at(ms));
        }
        assert!(!exchanges.may_ask(peer(), at(5001)));
        exchanges.forget(peer());
        assert!(exchanges.may_ask(peer(), at(5001)));
    }

    #[test]
    fn the_same_versions_draw_one_large_answer_at_a_time() {
        let mut exchanges = Exchanges::new(Duration::from_millis(25));
        assert!(exchanges.may_answer(peer(), 7, at(0)));
        assert!(!exchanges.may_answer(peer(), 7, at(100)));
        assert!(exchanges.may_answer(peer(), 8, at(100)));
        assert!(!exchanges.is_answered(peer(), 7, at(101)));
        assert!(exchanges.may_answer(peer(), 8, at(301)));
    }
}
