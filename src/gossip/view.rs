//! What the engine knows of everybody else, turned into events.
//!
//! The engine's listeners say nothing of deletions, resets and forgotten nodes. So every poll
//! compares versions and reads the keys that are newer than the last one read, and everything again
//! when the engine's copy has gone back. Of a session's incarnations the newest speaks (Rule 1).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use chitchat::{Chitchat, ChitchatId, NodeState};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::core::ids::{Name, NodeId, SessionId};
use crate::core::record::{Load, NodeRecord};
use crate::core::time::Time;

use super::digest::Shown;
use super::pages::{self, Page, PageKey};
use super::{GossipEvent, Table};

/// The key of the static record.
pub(super) const RECORD: &str = "node";
/// The key of the load.
pub(super) const LOAD: &str = "load";

/// The engine's id of a session's incarnation.
pub(super) fn engine_id(session: &SessionId, generation: u64, address: SocketAddr) -> ChitchatId {
    let text = format!("{}/{}", session.node, session.nonce.simple());
    ChitchatId::new(text, generation, address)
}

/// The session of an engine's id; none if this is not how sessions are written.
pub(super) fn session_of(id: &ChitchatId) -> Option<SessionId> {
    let (node, nonce) = id.node_id.rsplit_once('/')?;
    let session = SessionId::new(NodeId::new(node).ok()?, Uuid::try_parse(nonce).ok()?);
    // Only one spelling, or two ids would be one session.
    (session.nonce.simple().to_string() == nonce).then_some(session)
}

/// A record of the engine's text values.
pub(super) fn to_text<T: Serialize>(value: &T) -> String {
    // Plain data into memory has no way to fail.
    rmp_serde::to_vec_named(value)
        .map_or_else(|_| String::new(), |bytes| STANDARD_NO_PAD.encode(bytes))
}

fn from_text<T: DeserializeOwned>(text: &str) -> Option<T> {
    rmp_serde::from_slice(&STANDARD_NO_PAD.decode(text).ok()?).ok()
}

type Change = (Name, Option<Bytes>);

/// Everybody else, as told to the node so far.
pub(super) struct View {
    own: SessionId,
    sessions: BTreeMap<SessionId, Session>,
    /// Whose the engine's ids are, so as to parse each only once.
    owners: BTreeMap<ChitchatId, Option<SessionId>>,
    interval: Duration,
    /// For how long after a restart of the engine nobody is taken for forgotten.
    grace: Duration,
    patient_until: Time,
}

/// What one poll found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) events: Vec<GossipEvent>,
    /// Sessions whose heart beats, with the address they advertise.
    pub(super) alive: Vec<(SessionId, SocketAddr)>,
    /// Where to gossip, since not all that a session publishes is here.
    pub(super) incomplete: Vec<SocketAddr>,
}

struct Session {
    reading: ChitchatId,
    since: Time,
    heartbeat: u64,
    version: u64,
    collected: u64,
    pages: BTreeMap<PageKey, Seen>,
    /// Records of earlier incarnations that this one has not confirmed yet.
    leftover: BTreeMap<(Table, Name), u64>,
    record: (u64, Option<NodeRecord>),
    load: (u64, Option<Load>),
    /// All that the incarnation had published at some moment since it was first seen is here.
    complete: bool,
    caught_up: bool,
    suspected: bool,
    undecided_since: Time,
}

struct Seen {
    version: u64,
    split: bool,
    /// Hashes; in a split page, of records whose deeper page is not here yet.
    records: BTreeMap<Name, u64>,
}

impl Session {
    fn new(id: &ChitchatId, now: Time) -> Self {
        Self {
            reading: id.clone(),
            since: now,
            heartbeat: 0,
            version: 0,
            collected: 0,
            pages: BTreeMap::new(),
            leftover: BTreeMap::new(),
            record: (0, None),
            load: (0, None),
            complete: false,
            caught_up: false,
            suspected: false,
            undecided_since: now,
        }
    }

    /// Goes on with a newer incarnation. What the old one published holds until the new one is
    /// complete: nothing is gone only because gossip was restarted.
    fn succeed(&mut self, id: &ChitchatId, now: Time) {
        for (key, page) in std::mem::take(&mut self.pages) {
            for (name, hash) in page.records {
                self.leftover.insert((key.table, name), hash);
            }
        }
        self.reading = id.clone();
        self.since = now;
        self.heartbeat = 0;
        self.version = 0;
        self.collected = 0;
        self.record.0 = 0;
        self.load.0 = 0;
        self.complete = false;
    }

    fn read(&mut self, of: &SessionId, state: &NodeState, events: &mut Vec<GossipEvent>) {
        let heartbeat = u64::from(state.heartbeat());
        let went_back = state.max_version() < self.version
            || state.last_gc_version() != self.collected
            || heartbeat < self.heartbeat;
        if went_back {
            // Each key is still taken only if it is newer than what was read under it.
            self.version = 0;
        }
        if heartbeat > self.heartbeat {
            self.heartbeat = heartbeat;
            events.push(GossipEvent::Heartbeat { of: of.clone() });
        }
        self.collected = state.last_gc_version();
        if state.max_version() == self.version {
            return;
        }
        let mut newer: Vec<_> = state
            .key_values_including_deleted()
            .filter(|(_, value)| value.version > self.version && !value.is_deleted())
            .collect();
        // In the order in which their owner wrote them.
        newer.sort_unstable_by_key(|(_, value)| value.version);
        self.version = state.max_version();

        let mut changes: BTreeMap<Table, Vec<Change>> = BTreeMap::new();
        for (key, value) in newer {
            if let Some(key) = PageKey::parse(key) {
                let table = changes.entry(key.table).or_default();
                self.read_page(key, value.version, &value.value, table);
            } else if key == RECORD && value.version > self.record.0 {
                self.record.0 = value.version;
                let record: Option<NodeRecord> = from_text(&value.value);
                if let Some(record) = record.filter(|new| self.record.1.as_ref() != Some(new)) {
                    self.record.1 = Some(record.clone());
                    let of = of.clone();
                    events.push(GossipEvent::Static { of, record });
                }
            } else if key == LOAD && value.version > self.load.0 {
                self.load.0 = value.version;
                let load: Option<Load> = from_text(&value.value);
                if let Some(load) = load.filter(|new| self.load.1 != Some(*new)) {
                    self.load.1 = Some(load);
                    let of = of.clone();
                    events.push(GossipEvent::Load { of, load });
                }
            }
        }
        report(of, changes, events);
    }

    fn read_page(&mut self, key: PageKey, version: u64, value: &str, changes: &mut Vec<Change>) {
        if self
            .pages
            .get(&key)
            .is_some_and(|seen| seen.version >= version)
        {
            return;
        }
        let page = match pages::decode(value) {
            Ok(page) => page,
            Err(reason) => return reason.count(),
        };
        let mut before = self
            .pages
            .remove(&key)
            .map_or_else(BTreeMap::new, |seen| seen.records);
        for prefix in key.prefix.above() {
            let table = key.table;
            if let Some(above) = self.pages.get_mut(&PageKey { table, prefix }) {
                above.records.retain(|name, hash| {
                    let moved = key.prefix.covers(name);
                    if moved {
                        before.insert(name.clone(), *hash);
                    }
                    !moved
                });
            }
        }
        let seen = match page {
            Page::Split => Seen {
                version,
                split: true,
                records: before,
            },
            Page::Records(records) => {
                let mut hashes = BTreeMap::new();
                for (name, record) in records {
                    if !key.prefix.covers(&name) || self.deeper(key, &name) {
                        continue;
                    }
                    let hash = xxh3_64(&record);
                    let known = before.remove(&name);
                    let left = self.leftover.remove(&(key.table, name.clone()));
                    if known.or(left) != Some(hash) {
                        changes.push((name.clone(), Some(record)));
                    }
                    hashes.insert(name, hash);
                }
                changes.extend(before.into_keys().map(|name| (name, None)));
                Seen {
                    version,
                    split: false,
                    records: hashes,
                }
            }
        };
        self.pages.insert(key, seen);
    }

    /// Whether a deeper page that is here speaks for the name.
    fn deeper(&self, key: PageKey, name: &Name) -> bool {
        let table = key.table;
        key.prefix
            .below(name)
            .any(|prefix| self.pages.contains_key(&PageKey { table, prefix }))
    }

    /// All of the newest incarnation is here: what only earlier ones published is gone.
    fn completed(&mut self, of: &SessionId, events: &mut Vec<GossipEvent>) {
        self.complete = true;
        let mut changes: BTreeMap<Table, Vec<Change>> = BTreeMap::new();
        for (table, name) in std::mem::take(&mut self.leftover).into_keys() {
            changes.entry(table).or_default().push((name, None));
        }
        report(of, changes, events);
        if !std::mem::replace(&mut self.caught_up, true) {
            events.push(GossipEvent::CaughtUp { of: of.clone() });
        }
    }
}

fn report(of: &SessionId, changes: BTreeMap<Table, Vec<Change>>, events: &mut Vec<GossipEvent>) {
    for (table, changes) in changes {
        if !changes.is_empty() {
            let of = of.clone();
            events.push(GossipEvent::Records { of, table, changes });
        }
    }
}

impl View {
    pub(super) const fn new(own: SessionId, interval: Duration, grace: Duration) -> Self {
        Self {
            own,
            sessions: BTreeMap::new(),
            owners: BTreeMap::new(),
            interval,
            grace,
            patient_until: Time::ZERO,
        }
    }

    /// The engine starts with nothing: nobody is forgotten or suspected for that.
    pub(super) fn engine_restarted(&mut self, now: Time) {
        self.patient_until = now + self.grace;
        for session in self.sessions.values_mut() {
            session.undecided_since = now;
        }
    }

    /// Compares with the engine.
    pub(super) fn poll(&mut self, chitchat: &Chitchat, now: Time) -> Found {
        let mut found = Found::default();
        let live: BTreeSet<&ChitchatId> = chitchat.live_nodes().collect();
        let dead: BTreeSet<&ChitchatId> = chitchat.dead_nodes().collect();
        // Ids are ordered by generation within a session, so the newest is taken.
        let mut newest: BTreeMap<SessionId, (&ChitchatId, &NodeState)> = BTreeMap::new();
        let states = chitchat.node_states();
        self.owners.retain(|id, _| states.contains_key(id));
        for (id, state) in states {
            if !self.owners.contains_key(id) {
                self.owners.insert(id.clone(), session_of(id));
            }
            match self.owners.get(id) {
                Some(Some(session)) if *session != self.own => {
                    newest.insert(session.clone(), (id, state));
                }
                _ => {}
            }
        }

        for (of, (id, state)) in &newest {
            let session = self
                .sessions
                .entry(of.clone())
                .or_insert_with(|| Session::new(id, now));
            if session.reading < **id {
                session.succeed(id, now);
            } else if session.reading != **id {
                // An older incarnation, after this node's engine was restarted.
                continue;
            }
            let before = session.heartbeat;
            session.read(of, state, &mut found.events);
            if session.heartbeat > before {
                found.alive.push((of.clone(), id.gossip_advertise_addr));
            }
            let suspected = if live.contains(id) {
                session.undecided_since = now;
                false
            } else if dead.contains(id) && now.since(session.undecided_since) > self.interval * 8 {
                true
            } else {
                session.suspected
            };
            if std::mem::replace(&mut session.suspected, suspected) != suspected {
                found.events.push(GossipEvent::Suspicion {
                    of: of.clone(),
                    suspected,
                });
            }
            if !session.complete && !suspected {
                found.incomplete.push(id.gossip_advertise_addr);
            }
        }

        if now >= self.patient_until {
            self.sessions.retain(|of, _| {
                let kept = newest.contains_key(of);
                if !kept {
                    found.events.push(GossipEvent::Forgotten { of: of.clone() });
                }
                kept
            });
        }
        found
    }

    /// A reply of `from` was taken in, and the view polled since: where the engine's copy has
    /// reached what the reply showed, it is complete. A session's own word counts at once, the
    /// others' once it has had the time for its own.
    pub(super) fn shown(
        &mut self,
        from: &SessionId,
        shown: &[Shown],
        now: Time,
    ) -> Vec<GossipEvent> {
        let mut events = Vec::new();
        for Shown { id, version } in shown {
            let Some(of) = session_of(id) else {
                continue;
            };
            let Some(session) = self.sessions.get_mut(&of) else {
                continue;
            };
            let counts = of == *from || now.since(session.since) > self.interval * 4;
            if !session.complete && counts && session.reading == *id && session.version >= *version
            {
                session.completed(&of, &mut events);
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::super::pages::Pages;
    use super::*;

    fn session(node: &str) -> SessionId {
        SessionId::new(NodeId::new(node).unwrap(), Uuid::from_u128(7))
    }

    fn address() -> SocketAddr {
        ([127, 0, 0, 1], 4000).into()
    }

    fn name(number: usize) -> Name {
        Name::new(format!("task-{number}")).unwrap()
    }

    #[test]
    fn a_session_survives_its_engine_id_whatever_its_node_is_called() {
        for node in ["n1", "a/b", "/", "ü"] {
            let id = engine_id(&session(node), 5, address());
            assert_eq!(session_of(&id), Some(session(node)));
        }
    }

    #[test]
    fn only_one_spelling_of_a_session_is_read() {
        for text in [
            "n1",
            "n1/",
            "/00000000000000000000000000000007",
            "n1/00000000-0000-0000-0000-000000000007",
            "n1/0000000000000000000000000000000A",
        ] {
            assert_eq!(session_of(&ChitchatId::new(text, 1, address())), None);
        }
    }

    /// An owner's pages and a reader of them, with the engine's rule in between: newer keys come in
    /// the order of their present versions, and may be cut off anywhere.
    struct Pair {
        pages: Pages,
        keys: BTreeMap<PageKey, u64>,
        version: u64,
        owned: BTreeMap<Name, Bytes>,
        reader: Session,
        read: u64,
        told: BTreeMap<Name, Bytes>,
    }

    impl Pair {
        fn new() -> Self {
            Self {
                pages: Pages::new(1, 300),
                keys: BTreeMap::new(),
                version: 0,
                owned: BTreeMap::new(),
                reader: Session::new(&engine_id(&session("n1"), 1, address()), Time::ZERO),
                read: 0,
                told: BTreeMap::new(),
            }
        }

        fn write(&mut self, puts: &[(usize, Option<u8>)]) {
            let mut changed = BTreeSet::new();
            for (number, value) in puts {
                let record = value.map(|byte| Bytes::from(vec![byte; 40]));
                match &record {
                    Some(record) => self.owned.insert(name(*number), record.clone()),
                    None => self.owned.remove(&name(*number)),
                };
                self.pages
                    .put(Table::Claims, &name(*number), record, &mut changed);
            }
            for key in changed {
                self.version += 1;
                self.keys.insert(key, self.version);
            }
        }

        /// Reads at most `most` keys; returns the names that were reported gone.
        fn read(&mut self, most: usize) -> BTreeSet<Name> {
            let mut newer: Vec<_> = self
                .keys
                .iter()
                .filter(|(_, version)| **version > self.read)
                .map(|(key, version)| (*version, *key))
                .collect();
            newer.sort_unstable();
            let mut changes = Vec::new();
            for (version, key) in newer.into_iter().take(most) {
                let value = self.pages.value(&key);
                self.reader.read_page(key, version, &value, &mut changes);
                self.read = version;
            }
            let mut gone = BTreeSet::new();
            for (name, record) in changes {
                match record {
                    Some(record) => {
                        self.told.insert(name, record);
                    }
                    None => {
                        self.told.remove(&name);
                        gone.insert(name);
                    }
                }
            }
            gone
        }
    }

    proptest! {
        #[test]
        fn a_reader_cut_off_anywhere_misses_nothing_that_stays_and_ends_up_equal(
            rounds in proptest::collection::vec(
                (
                    proptest::collection::vec((10usize..60, proptest::option::of(0u8..3)), 0..20),
                    0usize..12,
                ),
                1..40,
            ),
        ) {
            let mut pair = Pair::new();
            let stay: Vec<_> = (0..10).map(|number| (number, Some(9))).collect();
            pair.write(&stay);
            for (puts, most) in rounds {
                pair.write(&puts);
                let gone = pair.read(most);
                prop_assert!((0..10).all(|number| !gone.contains(&name(number))));
            }
            pair.read(usize::MAX);
            prop_assert_eq!(&pair.told, &pair.owned);
            // Read all over again, as after a reset of the engine's copy.
            pair.read = 0;
            let gone = pair.read(usize::MAX);
            prop_assert!(gone.is_empty());
            prop_assert_eq!(&pair.told, &pair.owned);
        }
    }

    #[test]
    fn a_new_incarnation_takes_nothing_away_until_it_is_complete() {
        let of = session("n1");
        let mut pair = Pair::new();
        pair.write(&[(1, Some(1)), (2, Some(2)), (3, Some(3))]);
        pair.read(usize::MAX);
        pair.reader
            .succeed(&engine_id(&of, 2, address()), Time::ZERO);

        // The new one has published what the old one had, but for one record.
        pair.pages = Pages::new(1, 300);
        pair.keys.clear();
        pair.version = 0;
        pair.read = 0;
        pair.owned.clear();
        pair.write(&[(1, Some(1)), (3, Some(4))]);
        assert!(pair.read(1).is_empty());
        assert!(pair.read(usize::MAX).is_empty());
        assert_eq!(pair.told.get(&name(2)), Some(&Bytes::from(vec![2; 40])));
        assert_eq!(pair.told.get(&name(3)), Some(&Bytes::from(vec![4; 40])));

        let mut events = Vec::new();
        pair.reader.completed(&of, &mut events);
        match &events[0] {
            GossipEvent::Records { changes, .. } => assert_eq!(changes[..], [(name(2), None)]),
            other => panic!("{other:?}"),
        }
        assert!(matches!(events[1], GossipEvent::CaughtUp { .. }));
    }

    #[test]
    fn malformed_pages_and_foreign_names_change_nothing() {
        let mut pair = Pair::new();
        pair.write(&[(1, Some(1))]);
        pair.read(usize::MAX);
        let key = *pair.keys.keys().next().unwrap();
        let mut changes = Vec::new();
        for value in ["%", "AAAA", "kZ"] {
            pair.reader.read_page(key, 99, value, &mut changes);
        }
        assert!(changes.is_empty());
        // A valid page under a key its names do not belong to.
        let value = pair.pages.value(&key);
        let other = (0..16)
            .filter_map(|digit| PageKey::parse(&format!("c:{digit:x}")))
            .find(|other| *other != key)
            .unwrap();
        pair.reader.read_page(other, 100, &value, &mut changes);
        assert!(changes.is_empty());
        assert_eq!(pair.told, pair.owned);
    }
}
