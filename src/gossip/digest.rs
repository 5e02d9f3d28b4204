//! What a chitchat message says of heartbeats and versions, checked before chitchat believes it.
//!
//! chitchat keeps its digests to itself but publishes its codec. A SYN and a SYN-ACK begin with
//! magic number (2 bytes), protocol version, type, number of entries (2), and then per entry an id
//! and three numbers: heartbeat, last collected version, newest version.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chitchat::{ChitchatId, Deserializable, Serializable};

use crate::core::time::Time;
use crate::rate::Seldom;

use super::rejected::Rejected;

/// Which step of the handshake a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Syn,
    SynAck,
    Ack,
    Other,
}

const COUNT_AT: usize = 4;

/// Reads the step of a serialized message.
pub(super) fn step(message: &[u8]) -> Step {
    match message.get(3) {
        Some(0) => Step::Syn,
        Some(1) => Step::SynAck,
        Some(2) => Step::Ack,
        _ => Step::Other,
    }
}

/// A heartbeat grows with every message a node takes in, and no node takes in more per second.
const HEARTBEATS_PER_SECOND: u64 = 20_000;

/// How far ahead of this node's clock a generation may be, in milliseconds.
const GENERATION_SKEW: u64 = 24 * 3600 * 1000;

/// The engine fills a block with 16 KiB before it compresses it; pages do not shrink to a tenth.
const MAX_BLOCKS: usize = 256;

/// The share of the digest limit from which on every new id is warned about.
const WARN_AT: f64 = 0.75;

/// Watches what digests claim: heartbeats that jump, generations from the future, too many ids.
pub(super) struct Screen {
    ids: BTreeMap<ChitchatId, Seen>,
    bytes: usize,
    limit: usize,
    /// This node's clock when it started, Unix milliseconds, and the same moment in boot time. A
    /// clock that is set while the node runs changes nothing (C4).
    origin: (u64, Time),
    /// One digest can hold thousands of bad ids, and each comes again with every round.
    implausible: Seldom,
    full: Seldom,
    nearly_full: Seldom,
}

struct Seen {
    heartbeat: u64,
    at: Time,
}

/// One entry of a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) id: ChitchatId,
    pub(super) version: u64,
}

impl Screen {
    /// Digests of known ids stay below `limit` bytes: chitchat panics when one exceeds a message.
    pub(super) fn new(limit: usize, unix_ms: u64, now: Time) -> Self {
        Self {
            ids: BTreeMap::new(),
            bytes: 0,
            limit,
            origin: (unix_ms, now),
            implausible: Seldom::default(),
            full: Seldom::default(),
            nearly_full: Seldom::default(),
        }
    }

    /// Takes implausible entries out of a message's digest and holds heartbeats to what time
    /// explains; returns what it shows of each remaining id. An entry is taken out rather than the
    /// message refused, or one bad id that others have taken in would cut this node off from them.
    pub(super) fn check(
        &mut self,
        message: &mut Vec<u8>,
        now: Time,
    ) -> Result<Vec<Shown>, Rejected> {
        let mut rest = message.get(COUNT_AT..).ok_or(Rejected::Malformed)?;
        match step(message) {
            Step::Syn | Step::SynAck => {}
            Step::Ack => return check_blocks(rest).map(|()| Vec::new()),
            Step::Other => return Ok(Vec::new()),
        }
        let count = read::<u16>(&mut rest)?;
        let mut kept: u16 = 0;
        let mut digest = Vec::with_capacity(message.len());
        let mut shown = Vec::new();
        for _ in 0..count {
            let id = read::<ChitchatId>(&mut rest)?;
            let heartbeat = read::<u64>(&mut rest)?;
            let collected = read::<u64>(&mut rest)?;
            let version = read::<u64>(&mut rest)?;
            let heartbeat = match self.admit(&id, heartbeat, now) {
                Ok(heartbeat) => heartbeat,
                Err(reason) => {
                    reason.count();
                    continue;
                }
            };
            id.serialize(&mut digest);
            heartbeat.serialize(&mut digest);
            collected.serialize(&mut digest);
            version.serialize(&mut digest);
            kept += 1;
            shown.push(Shown { id, version });
        }
        if step(message) == Step::SynAck {
            check_blocks(rest)?;
        }
        let mut screened = Vec::with_capacity(message.len());
        screened.extend_from_slice(message.get(..COUNT_AT).unwrap_or_default());
        kept.serialize(&mut screened);
        screened.extend_from_slice(&digest);
        screened.extend_from_slice(rest);
        *message = screened;
        Ok(shown)
    }

    fn admit(&mut self, id: &ChitchatId, heartbeat: u64, now: Time) -> Result<u64, Rejected> {
        if let Some(seen) = self.ids.get_mut(id) {
            let elapsed = now.since(seen.at) + Duration::from_secs(1);
            let plausible = seen.heartbeat.saturating_add(heartbeats(elapsed));
            if heartbeat > plausible {
                Rejected::Implausible.count();
                return Ok(seen.heartbeat);
            }
            if heartbeat > seen.heartbeat {
                seen.heartbeat = heartbeat;
                seen.at = now;
            }
            return Ok(heartbeat);
        }
        let unix_ms = self.origin.0 + now.since(self.origin.1).as_millis() as u64;
        let latest = unix_ms + GENERATION_SKEW;
        let age = Duration::from_millis(latest.saturating_sub(id.generation_id));
        if id.generation_id > latest || heartbeat > heartbeats(age) {
            if let Some(unsaid) = self.implausible.speak(now) {
                tracing::warn!(
                    target: "handover::gossip",
                    ?id,
                    heartbeat,
                    unsaid,
                    "a node's generation or heartbeat is ahead of its time: check its clock"
                );
            }
            return Err(Rejected::Implausible);
        }
        let bytes = self.bytes + entry_len(id);
        if bytes > self.limit {
            if let Some(unsaid) = self.full.speak(now) {
                tracing::error!(
                    target: "handover::gossip",
                    ?id,
                    known = self.ids.len(),
                    unsaid,
                    "too many nodes, dead ones included: one is refused until others are forgotten"
                );
            }
            return Err(Rejected::Limit);
        }
        if bytes as f64 > self.limit as f64 * WARN_AT
            && let Some(unsaid) = self.nearly_full.speak(now)
        {
            tracing::warn!(
                target: "handover::gossip",
                known = self.ids.len() + 1,
                unsaid,
                "nearly as many nodes, dead ones included, as gossip can carry"
            );
        }
        self.bytes = bytes;
        self.ids.insert(id.clone(), Seen { heartbeat, at: now });
        Ok(heartbeat)
    }

    /// Forgets the ids that chitchat has forgotten, unless they were heard of since `before`.
    pub(super) fn retain(&mut self, known: &BTreeSet<ChitchatId>, before: Time) {
        let bytes = &mut self.bytes;
        self.ids.retain(|id, seen| {
            let keep = known.contains(id) || seen.at >= before;
            if !keep {
                *bytes -= entry_len(id);
            }
            keep
        });
    }
}

/// A delta is a sequence of blocks, each a kind (0 ends it), a length and as many bytes, mostly
/// compressed. Bounding their number bounds what unpacking allocates, at 64 KiB each.
fn check_blocks(mut delta: &[u8]) -> Result<(), Rejected> {
    for _ in 0..MAX_BLOCKS {
        if read::<u8>(&mut delta)? == 0 {
            return Ok(());
        }
        let len = usize::from(read::<u16>(&mut delta)?);
        delta = delta.get(len..).ok_or(Rejected::Malformed)?;
    }
    Err(Rejected::Limit)
}

fn heartbeats(elapsed: Duration) -> u64 {
    (elapsed.as_millis() as u64).saturating_mul(HEARTBEATS_PER_SECOND / 1000)
}

fn entry_len(id: &ChitchatId) -> usize {
    id.serialized_len() + 3 * size_of::<u64>()
}

fn read<T: Deserializable>(bytes: &mut &[u8]) -> Result<T, Rejected> {
    T::deserialize(bytes).map_err(|_| Rejected::Malformed)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use chitchat::ChitchatMessage;
    use proptest::prelude::*;
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    /// Counts what is logged.
    #[derive(Clone, Default)]
    struct Lines(Arc<AtomicUsize>);

    impl Subscriber for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    fn id(name: &str, generation: u64) -> ChitchatId {
        ChitchatId::new(name, generation, ([127, 0, 0, 1], 4000).into())
    }

    fn syn(entries: &[(ChitchatId, u64, u64)]) -> Vec<u8> {
        syn_in("cluster", entries)
    }

    /// A SYN whose digest says: heartbeat and version of each id.
    pub(in crate::gossip) fn syn_in(cluster: &str, entries: &[(ChitchatId, u64, u64)]) -> Vec<u8> {
        let mut out = Vec::new();
        45_139u16.serialize(&mut out);
        out.extend([0, 0]);
        (entries.len() as u16).serialize(&mut out);
        for (id, heartbeat, version) in entries {
            id.serialize(&mut out);
            heartbeat.serialize(&mut out);
            0u64.serialize(&mut out);
            version.serialize(&mut out);
        }
        cluster.to_string().serialize(&mut out);
        out
    }

    fn at(seconds: u64) -> Time {
        Time::from_micros(seconds * 1_000_000)
    }

    fn screen() -> Screen {
        Screen::new(50_000, NOW, at(0))
    }

    #[test]
    fn the_layout_is_the_one_of_the_engine() {
        let original = syn(&[(id("a", NOW), 7, 70), (id("b", NOW + 1), 8, 80)]);
        let parsed = ChitchatMessage::deserialize(&mut &original[..]).unwrap();
        assert_eq!(parsed.serialize_to_vec(), original);

        let mut message = original.clone();
        let shown = screen().check(&mut message, at(1)).unwrap();
        assert_eq!(message, original);
        let versions: Vec<_> = shown.iter().map(|shown| shown.version).collect();
        assert_eq!(versions, [70, 80]);
    }

    #[test]
    fn a_forged_heartbeat_is_held_to_the_last_one() {
        let mut screen = screen();
        screen.check(&mut syn(&[(id("a", NOW), 7, 1)]), at(1)).unwrap();
        let mut forged = syn(&[(id("a", NOW), u64::MAX, 1)]);
        screen.check(&mut forged, at(2)).unwrap();
        assert_eq!(forged, syn(&[(id("a", NOW), 7, 1)]));
        let mut honest = syn(&[(id("a", NOW), 20, 1)]);
        screen.check(&mut honest, at(3)).unwrap();
        assert_eq!(honest, syn(&[(id("a", NOW), 20, 1)]));
    }

    #[test]
    fn ids_from_the_future_are_taken_out_and_the_rest_stays() {
        let mut message = syn(&[
            (id("a", NOW), 7, 1),
            (id("b", NOW + 2 * GENERATION_SKEW), 7, 1),
            (id("c", NOW), u64::MAX, 1),
        ]);
        let shown = screen().check(&mut message, at(1)).unwrap();
        assert_eq!(shown.len(), 1);
        assert_eq!(message, syn(&[(id("a", NOW), 7, 1)]));
        assert!(ChitchatMessage::deserialize(&mut &message[..]).is_ok());
    }

    #[test]
    fn bad_ids_without_number_make_few_lines_in_the_log() {
        let lines = Lines::default();
        let _every_place = crate::test_log::every_place_is_heard();
        tracing::subscriber::with_default(lines.clone(), || {
            let mut screen = screen();
            let future: Vec<_> = (0..500).map(|i| (id(&format!("n{i}"), u64::MAX), 1, 1)).collect();
            let many: Vec<_> =
                (0..500).map(|i| (id(&format!("node-{i}/{i:0200x}"), NOW), 1, 1)).collect();
            for second in 1..=20 {
                screen.check(&mut syn(&future), at(second)).unwrap();
                screen.check(&mut syn(&many), at(second)).unwrap();
            }
        });
        let lines = lines.0.load(Ordering::Relaxed);
        assert!((3..=6).contains(&lines), "{lines} lines");
    }

    #[test]
    fn more_ids_than_a_digest_can_carry_are_refused_until_some_are_forgotten() {
        let mut screen = screen();
        let all: Vec<_> =
            (0..2000).map(|i| (id(&format!("node-{i}/{:032x}", i), NOW), 1, 1)).collect();
        for (number, entry) in all.iter().enumerate() {
            let mut message = syn(std::slice::from_ref(entry));
            let shown = screen.check(&mut message, at(1)).unwrap();
            assert_eq!(shown.is_empty(), number >= screen.ids.len());
        }
        assert!(screen.ids.len() > 400 && screen.ids.len() < 1000);
        assert!(screen.bytes <= 50_000);
        screen.retain(&BTreeSet::new(), at(2));
        assert_eq!(screen.bytes, 0);
        let mut message = syn(&all[1999..]);
        assert_eq!(screen.check(&mut message, at(3)).unwrap().len(), 1);
    }

    #[test]
    fn a_delta_that_would_unpack_without_bound_is_refused() {
        let ack = |blocks: usize| {
            let mut message = vec![0x53, 0xb0, 0, 2];
            for _ in 0..blocks {
                message.extend([1, 2, 0, 9, 9]);
            }
            message.push(0);
            message
        };
        assert_eq!(screen().check(&mut ack(100), at(1)), Ok(Vec::new()));
        assert_eq!(screen().check(&mut ack(300), at(1)), Err(Rejected::Limit));
        let mut cut = ack(3);
        cut.truncate(12);
        assert_eq!(screen().check(&mut cut, at(1)), Err(Rejected::Malformed));
    }

    #[test]
    fn a_clock_set_while_the_node_runs_is_not_consulted() {
        let mut screen = screen();
        let mut later = syn(&[(id("a", NOW + 90 * GENERATION_SKEW), 7, 1)]);
        let ninety_days = at(90 * GENERATION_SKEW / 1000);
        assert_eq!(screen.check(&mut later, ninety_days).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn random_messages_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut message = vec![0x53, 0xb0, 0, 0];
            message.extend(tail);
            let _ = screen().check(&mut message, at(1));
        }
    }
}
