//! Messages larger than a datagram: split, put together, asked for again.
//!
//! chitchat builds messages of up to 65,507 bytes, which IP would fragment and real networks lose.
//! Without asking again for lost fragments, a large message arrives almost never at 5 % loss.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use crate::core::ids::SessionId;
use crate::core::time::Time;

use super::header::Fragment;
use super::rejected::Rejected;

/// Longest message: chitchat's own limit.
pub(super) const MAX_MESSAGE: usize = 65_507;

/// Fragments of one message at most; with the default datagram size it takes about 50.
const MAX_COUNT: usize = 512;

/// How long a message's fragments may pause before the missing ones are asked for; doubles.
const ASK_AFTER: Duration = Duration::from_millis(8);
const ASK_AT_MOST_AFTER: Duration = Duration::from_millis(128);

/// How often before the message is given up. Gossip will bring its content again.
pub(super) const ASKS: u32 = 10;

/// Finished messages remembered per session, since their fragments may be duplicated.
const DONE: usize = 32;

/// Length of a fragment of a message, and how many there are.
pub(super) fn split(total: usize, room: usize) -> (usize, usize) {
    let count = total.div_ceil(room.max(1)).max(1);
    let chunk = total.div_ceil(count).max(1);
    (chunk, total.div_ceil(chunk).max(1))
}

/// Fragments of messages that have not arrived whole.
pub(super) struct Reassembly {
    sessions: BTreeMap<SessionId, Incoming>,
    held: usize,
    per_session: usize,
    in_total: usize,
}

#[derive(Default)]
struct Incoming {
    /// Oldest first.
    partials: VecDeque<Partial>,
    held: usize,
    done: VecDeque<u64>,
}

struct Partial {
    message: u64,
    from: SocketAddr,
    chunk: usize,
    bytes: Vec<u8>,
    arrived: Vec<bool>,
    missing: usize,
    asks: u32,
    ask_at: Time,
}

impl Partial {
    fn cost(total: usize, count: usize) -> usize {
        total + count + size_of::<Self>()
    }

    fn held(&self) -> usize {
        Self::cost(self.bytes.len(), self.arrived.len())
    }
}

/// A request for what is missing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) to: SocketAddr,
    pub(super) message: u64,
    /// Bit `i % 8` of byte `i / 8` stands for fragment `i`.
    pub(super) bitmap: Vec<u8>,
}

impl Reassembly {
    pub(super) fn new(per_session: usize, in_total: usize) -> Self {
        Self { sessions: BTreeMap::new(), held: 0, per_session, in_total }
    }

    /// Takes a fragment; returns the message it completes. What a message will need is charged to
    /// its session before anything is allocated; a session over its share loses its own oldest.
    pub(super) fn take(
        &mut self,
        session: &SessionId,
        from: SocketAddr,
        fragment: Fragment<'_>,
        now: Time,
    ) -> Result<Option<Vec<u8>>, Rejected> {
        let total = fragment.total as usize;
        let count = usize::from(fragment.count);
        let index = usize::from(fragment.index);
        if total == 0 || total > MAX_MESSAGE || count == 0 || count > MAX_COUNT || index >= count {
            return Err(Rejected::Malformed);
        }
        let chunk = total.div_ceil(count);
        let start = index * chunk;
        if total.div_ceil(chunk) != count || fragment.bytes.len() != chunk.min(total - start) {
            return Err(Rejected::Malformed);
        }
        if count == 1 {
            return Ok(Some(fragment.bytes.to_vec()));
        }

        let incoming = self.sessions.entry(session.clone()).or_default();
        if incoming.done.contains(&fragment.message) {
            return Ok(None);
        }
        let known =
            incoming.partials.iter().position(|partial| partial.message == fragment.message);
        let at = match known {
            Some(at) => at,
            None => {
                let cost = Partial::cost(total, count);
                while incoming.held + cost > self.per_session {
                    let Some(oldest) = incoming.partials.pop_front() else {
                        return Err(Rejected::Limit);
                    };
                    incoming.held -= oldest.held();
                    self.held -= oldest.held();
                }
                if self.held + cost > self.in_total {
                    return Err(Rejected::Limit);
                }
                self.held += cost;
                incoming.held += cost;
                incoming.partials.push_back(Partial {
                    message: fragment.message,
                    from,
                    chunk,
                    bytes: vec![0; total],
                    arrived: vec![false; count],
                    missing: count,
                    asks: 0,
                    ask_at: now + ASK_AFTER,
                });
                incoming.partials.len() - 1
            }
        };
        let Some(partial) = incoming.partials.get_mut(at) else {
            return Err(Rejected::Limit);
        };
        if partial.bytes.len() != total || partial.chunk != chunk {
            return Err(Rejected::Malformed);
        }
        let (Some(arrived), Some(place)) = (
            partial.arrived.get_mut(index),
            partial.bytes.get_mut(start..start + fragment.bytes.len()),
        ) else {
            return Err(Rejected::Malformed);
        };
        if *arrived {
            return Ok(None);
        }
        *arrived = true;
        place.copy_from_slice(fragment.bytes);
        partial.missing -= 1;
        partial.from = from;
        partial.ask_at = partial.ask_at.max(now + ASK_AFTER);
        if partial.missing > 0 {
            return Ok(None);
        }
        let Some(whole) = incoming.partials.remove(at) else {
            return Ok(None);
        };
        incoming.held -= whole.held();
        self.held -= whole.held();
        incoming.done.push_back(whole.message);
        if incoming.done.len() > DONE {
            incoming.done.pop_front();
        }
        Ok(Some(whole.bytes))
    }

    /// What to ask for now. A message asked for too often is given up.
    pub(super) fn due(&mut self, now: Time) -> Vec<Ask> {
        let mut asks = Vec::new();
        for incoming in self.sessions.values_mut() {
            let mut freed = 0;
            incoming.partials.retain_mut(|partial| {
                if partial.ask_at > now {
                    return true;
                }
                if partial.asks == ASKS {
                    freed += partial.held();
                    return false;
                }
                let wait = (ASK_AFTER * 2u32.pow(partial.asks)).min(ASK_AT_MOST_AFTER);
                partial.asks += 1;
                partial.ask_at = now + wait;
                asks.push(Ask {
                    to: partial.from,
                    message: partial.message,
                    bitmap: bitmap(&partial.arrived),
                });
                true
            });
            incoming.held -= freed;
            self.held -= freed;
        }
        asks
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// When [`Self::due`] has something to do next.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.sessions
            .values()
            .flat_map(|incoming| &incoming.partials)
            .map(|partial| partial.ask_at)
            .min()
    }

    /// Forgets the sessions that `keep` does not want.
    pub(super) fn retain(&mut self, keep: impl Fn(&SessionId) -> bool) {
        let held = &mut self.held;
        self.sessions.retain(|session, incoming| {
            let kept = keep(session);
            if !kept {
                *held -= incoming.held;
            }
            kept
        });
    }
}

fn bitmap(arrived: &[bool]) -> Vec<u8> {
    arrived
        .chunks(8)
        .map(|eight| {
            eight
                .iter()
                .enumerate()
                .filter(|(_, arrived)| !**arrived)
                .fold(0, |byte, (bit, _)| byte | 1 << bit)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;
    use uuid::Uuid;

    use crate::core::ids::NodeId;

    use super::super::kept::Kept;
    use super::*;

    fn session(number: u128) -> SessionId {
        SessionId::new(NodeId::new("n").unwrap(), Uuid::from_u128(number))
    }

    fn at(millis: u64) -> Time {
        Time::from_micros(millis * 1000)
    }

    fn address() -> SocketAddr {
        ([127, 0, 0, 1], 4000).into()
    }

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 % 251) as u8).collect()
    }

    fn pieces(
        message: u64,
        text: &[u8],
        (chunk, count): (usize, usize),
    ) -> impl Iterator<Item = Fragment<'_>> {
        text.chunks(chunk).enumerate().map(move |(index, bytes)| Fragment {
            message,
            index: index as u16,
            count: count as u16,
            total: text.len() as u32,
            bytes,
        })
    }

    #[test]
    fn a_duplicate_of_a_finished_message_starts_nothing() {
        let mut reassembly = Reassembly::new(1 << 20, 1 << 20);
        let text = text(5000);
        let plan = split(text.len(), 1300);
        let whole: Vec<_> = pieces(1, &text, plan)
            .chain(pieces(1, &text, plan))
            .filter_map(|piece| reassembly.take(&session(1), address(), piece, at(0)).unwrap())
            .collect();
        assert_eq!(whole, [text]);
        assert_eq!(reassembly.held, 0);
        assert_eq!(reassembly.next_due(), None);
    }

    #[test]
    fn a_flood_of_partials_stays_within_both_caps_and_hurts_only_its_session() {
        let (per_session, in_total) = (200_000, 500_000);
        let mut reassembly = Reassembly::new(per_session, in_total);
        let text = text(60_000);
        let plan = split(text.len(), 1300);
        let mut honest = pieces(1, &text, plan);
        let first = honest.next().unwrap();
        reassembly.take(&session(99), address(), first, at(0)).unwrap();
        let mut refused = 0;
        for message in 1..200u64 {
            for flooding in 1..20 {
                let piece = pieces(message, &text, plan).next().unwrap();
                if reassembly.take(&session(flooding), address(), piece, at(1))
                    == Err(Rejected::Limit)
                {
                    refused += 1;
                }
                assert!(reassembly.held <= in_total);
                assert!(reassembly.sessions.values().all(|incoming| incoming.held <= per_session));
            }
        }
        assert!(refused > 0);
        let whole = honest
            .filter_map(|piece| reassembly.take(&session(99), address(), piece, at(2)).unwrap())
            .next();
        assert_eq!(whole, Some(text));
    }

    #[test]
    fn a_session_over_its_share_loses_its_own_oldest() {
        let mut reassembly = Reassembly::new(200_000, 1 << 20);
        let text = text(60_000);
        let plan = split(text.len(), 1300);
        for message in 1..=4 {
            let first = pieces(message, &text, plan).next().unwrap();
            assert_eq!(reassembly.take(&session(1), address(), first, at(0)), Ok(None));
            assert!(reassembly.held <= 200_000);
        }
        for (message, whole) in [(4, true), (2, true), (1, false)] {
            let rest = pieces(message, &text, plan).skip(1);
            let completed = rest
                .filter_map(|piece| reassembly.take(&session(1), address(), piece, at(1)).unwrap())
                .next();
            assert_eq!(completed.is_some(), whole, "{message}");
        }
    }

    #[test]
    fn a_message_that_never_completes_is_asked_for_a_bounded_number_of_times() {
        let mut reassembly = Reassembly::new(1 << 20, 1 << 20);
        let text = text(5000);
        let piece = pieces(1, &text, split(text.len(), 1300)).nth(2).unwrap();
        reassembly.take(&session(1), address(), piece, at(0)).unwrap();
        assert_eq!(reassembly.due(at(5)), []);
        let first = reassembly.due(at(8));
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].bitmap, [0b1011]);
        let more: usize = (9..5000).map(|ms| reassembly.due(at(ms)).len()).sum();
        assert_eq!(more as u32, ASKS - 1);
        assert_eq!(reassembly.held, 0);
    }

    #[test]
    fn forgotten_sessions_give_their_room_back() {
        let mut reassembly = Reassembly::new(1 << 20, 1 << 20);
        let text = text(5000);
        let piece = pieces(1, &text, split(text.len(), 1300)).next().unwrap();
        reassembly.take(&session(1), address(), piece, at(0)).unwrap();
        assert!(reassembly.held > 0);
        reassembly.retain(|_| false);
        assert_eq!(reassembly.held, 0);
    }

    proptest! {
        #[test]
        fn the_loss_of_any_subset_is_recovered_by_asking(
            len in 1usize..MAX_MESSAGE,
            lost in proptest::collection::vec(any::<bool>(), 64),
            lost_again in proptest::collection::vec(any::<bool>(), 64),
        ) {
            let text = text(len);
            let plan = split(len, 1300);
            let mut kept = Kept::new(1 << 20);
            kept.keep(address(), 7, text.clone().into(), plan, at(0));
            let mut reassembly = Reassembly::new(1 << 20, 1 << 20);
            let mut whole = None;
            // With all of it lost nobody knows of the message.
            for piece in pieces(7, &text, plan) {
                let index = usize::from(piece.index);
                if index > 0 && lost[index % 64] {
                    continue;
                }
                if let Some(text) = reassembly.take(&session(1), address(), piece, at(0)).unwrap() {
                    whole = Some(text);
                }
            }
            for round in 1..=3u64 {
                for ask in reassembly.due(at(round * 200)) {
                    for resend in kept.missing(ask.to, ask.message, &ask.bitmap) {
                        if round == 1 && lost_again[usize::from(resend.index) % 64] {
                            continue;
                        }
                        let piece = Fragment {
                            message: ask.message,
                            index: resend.index,
                            count: resend.count,
                            total: resend.total,
                            bytes: &resend.bytes,
                        };
                        if let Some(text) =
                            reassembly.take(&session(1), address(), piece, at(round * 200)).unwrap()
                        {
                            prop_assert!(whole.is_none());
                            whole = Some(text);
                        }
                    }
                }
            }
            prop_assert_eq!(whole, Some(text));
            prop_assert_eq!(reassembly.held, 0);
        }

        #[test]
        fn random_fragments_never_panic_nor_exceed_the_caps(
            pieces in proptest::collection::vec(
                (0u64..4, any::<u16>(), any::<u16>(), any::<u32>(), 0usize..1500),
                0..60,
            ),
        ) {
            let mut reassembly = Reassembly::new(100_000, 150_000);
            let bytes = text(1500);
            for (message, index, count, total, len) in pieces {
                let piece = Fragment {
                    message,
                    index: index % 8,
                    count: count % 8,
                    total: total % 8000,
                    bytes: &bytes[..len],
                };
                let _ = reassembly.take(&session(1), address(), piece, at(0));
                prop_assert!(reassembly.held <= 150_000);
            }
        }

        #[test]
        fn a_split_fits_and_covers(total in 1usize..70_000, room in 100usize..2000) {
            let (chunk, count) = split(total, room);
            prop_assert!(chunk <= room);
            prop_assert_eq!(total.div_ceil(chunk), count);
            prop_assert_eq!(total.div_ceil(count), chunk);
        }
    }
}
