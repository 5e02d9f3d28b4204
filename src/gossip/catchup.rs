//! Whom to gossip with out of turn, so that what a peer has and this node lacks is fetched at once and
//! not a message per round.
//!
//! A peer's reply shows the versions it holds. As long as they are ahead of what is here it is asked
//! again, one peer at a time: on a timer, or with several at a time, stale replies would queue and each
//! draw the same delta again. A peer that is back after silence is asked at once, and until a reply of
//! it has shown nothing that is missing; since it does the same, both end up equal.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::core::time::Time;

/// How long a pull may stay unanswered before another one is made: question or answer are lost.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);

/// Peers that are back are asked at once, so many in this time: each sends the same at first.
const AT_ONCE: usize = 4;
const WINDOW: Duration = Duration::from_millis(100);

/// Replies in a row that bring a peer no nearer, after which rounds have to do: what is missing may be
/// something that the engine does not take.
const STALLS: u32 = 3;

/// Times that a peer is asked in vain before rounds have to do.
const ATTEMPTS: u32 = 8;

/// Peers remembered as given up.
const MOST_BEHIND: usize = 1000;

/// The state of catching up.
#[derive(Default)]
pub(super) struct CatchUp {
    /// The one pull that is not answered yet.
    pull: Option<(SocketAddr, Time)>,
    /// Peers that have more, or probably do.
    wanted: BTreeSet<SocketAddr>,
    behind: BTreeMap<SocketAddr, Behind>,
    /// Since when peers that are back are counted, and how many there were.
    window: (Time, usize),
}

/// How far this node is behind a peer.
struct Behind {
    /// Versions missing at its last reply; none before the first.
    missing: Option<u64>,
    /// Replies since that brought nothing.
    stalls: u32,
    /// Questions since the last reply.
    attempts: u32,
}

impl Behind {
    const UNKNOWN: Self = Self { missing: None, stalls: 0, attempts: 0 };

    /// It is remembered what was missing then, so as not to begin again because of the same.
    const fn is_given_up(&self) -> bool {
        self.stalls >= STALLS
    }
}

impl CatchUp {
    /// The engine starts afresh.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// A peer is back after silence. Whether to gossip with it now; else its turn comes.
    pub(super) fn returned(&mut self, peer: SocketAddr, now: Time) -> bool {
        self.behind.insert(peer, Behind::UNKNOWN);
        if now.since(self.window.0) > WINDOW {
            self.window = (now, 0);
        }
        self.window.1 += 1;
        let at_once = self.window.1 <= AT_ONCE;
        if !at_once {
            self.wanted.insert(peer);
        }
        at_once
    }

    /// A message of a peer was large: it probably has more.
    pub(super) fn large(&mut self, peer: SocketAddr) {
        self.wanted.insert(peer);
    }

    /// A peer's reply was taken in, and showed so many versions that are not here.
    pub(super) fn replied(&mut self, peer: SocketAddr, missing: u64) {
        self.pull.take_if(|(asked, _)| *asked == peer);
        self.wanted.remove(&peer);
        if missing == 0 {
            self.behind.remove(&peer);
            return;
        }
        let behind = self.behind.entry(peer).or_insert(Behind::UNKNOWN);
        let nearer = behind.missing.is_none_or(|before| missing < before);
        behind.stalls = if nearer { 0 } else { behind.stalls.saturating_add(1) };
        behind.missing = Some(missing);
        behind.attempts = 0;
        if !behind.is_given_up() {
            self.wanted.insert(peer);
        }
    }

    /// Whom to gossip with now, if nobody's answer is waited for.
    pub(super) fn next(&mut self, now: Time) -> Option<SocketAddr> {
        if self.pull.is_some_and(|(_, asked)| now.since(asked) < PATIENCE) {
            return None;
        }
        let next = self.wanted.pop_first();
        self.pull = next.map(|peer| (peer, now));
        next
    }

    /// Whether anybody's answer is waited for: then `retry` is due every [`PATIENCE`].
    pub(super) fn is_waiting(&self) -> bool {
        let waiting = || self.behind.values().any(|behind| !behind.is_given_up());
        self.pull.is_some() || !self.wanted.is_empty() || waiting()
    }

    /// Peers that have not replied in time are wanted again.
    pub(super) fn retry(&mut self, now: Time) {
        self.pull.take_if(|(_, asked)| now.since(*asked) >= PATIENCE);
        let pulled = self.pull.map(|(peer, _)| peer);
        let full = self.behind.len() > MOST_BEHIND;
        self.behind.retain(|peer, behind| {
            if behind.is_given_up() {
                return !full;
            }
            if pulled != Some(*peer) && self.wanted.insert(*peer) {
                behind.attempts += 1;
            }
            behind.attempts < ATTEMPTS
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn at(millis: u64) -> Time {
        Time::from_micros(5_000_000 + millis * 1000)
    }

    #[test]
    fn a_peer_is_asked_until_it_shows_nothing_new() {
        let mut catch_up = CatchUp::default();
        assert!(catch_up.returned(peer(1), at(0)));
        assert_eq!(catch_up.next(at(0)), None);
        for missing in [900, 500, 1] {
            catch_up.replied(peer(1), missing);
            assert_eq!(catch_up.next(at(1)), Some(peer(1)));
            assert_eq!(catch_up.next(at(2)), None, "one at a time");
        }
        catch_up.replied(peer(1), 0);
        assert!(!catch_up.is_waiting());
        catch_up.retry(at(300));
        assert_eq!(catch_up.next(at(300)), None);
    }

    #[test]
    fn a_question_that_is_lost_is_asked_again() {
        let mut catch_up = CatchUp::default();
        catch_up.replied(peer(1), 500);
        assert_eq!(catch_up.next(at(0)), Some(peer(1)));
        catch_up.retry(at(249));
        assert_eq!(catch_up.next(at(249)), None);
        assert!(catch_up.is_waiting());
        catch_up.retry(at(250));
        assert_eq!(catch_up.next(at(250)), Some(peer(1)));
        catch_up.replied(peer(1), 0);
        assert!(!catch_up.is_waiting());
    }

    #[test]
    fn what_does_not_come_is_not_asked_for_without_end() {
        let mut catch_up = CatchUp::default();
        let mut asked = 0;
        catch_up.replied(peer(1), 7);
        while catch_up.next(at(0)).is_some() {
            asked += 1;
            catch_up.replied(peer(1), 7);
        }
        assert_eq!(asked, STALLS);
        // Nor when rounds show the same again.
        catch_up.replied(peer(1), 7);
        assert_eq!(catch_up.next(at(0)), None);
        assert!(!catch_up.is_waiting());
        // But what is new is fetched.
        catch_up.replied(peer(1), 30);
        catch_up.replied(peer(1), 20);
        assert_eq!(catch_up.next(at(1)), Some(peer(1)));
        catch_up.replied(peer(1), 0);
        // Nor is one that never replies.
        assert!(catch_up.returned(peer(2), at(0)));
        let asked = (1..100).filter(|second| {
            catch_up.retry(at(second * 1000));
            catch_up.next(at(second * 1000)).is_some()
        });
        assert_eq!(asked.count(), ATTEMPTS as usize);
        assert!(!catch_up.is_waiting());
    }

    #[test]
    fn of_many_that_are_back_a_few_are_asked_at_once_and_the_others_in_turn() {
        let mut catch_up = CatchUp::default();
        let at_once = (1..=20).filter(|port| catch_up.returned(peer(*port), at(0))).count();
        assert_eq!(at_once, AT_ONCE);
        let mut turns = 0;
        while let Some(next) = catch_up.next(at(1)) {
            catch_up.replied(next, 0);
            turns += 1;
        }
        assert_eq!(turns, 20 - AT_ONCE);
        assert!(catch_up.returned(peer(30), at(200)));
    }

    #[test]
    fn one_that_does_not_answer_keeps_the_others_waiting_only_so_long() {
        let mut catch_up = CatchUp::default();
        catch_up.large(peer(1));
        catch_up.large(peer(2));
        assert_eq!(catch_up.next(at(0)), Some(peer(1)));
        assert_eq!(catch_up.next(at(249)), None);
        assert_eq!(catch_up.next(at(250)), Some(peer(2)));
    }
}
