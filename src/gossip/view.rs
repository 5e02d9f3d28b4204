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
use chitchat::{Chitchat, ChitchatId, NodeState};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::core::ids::{NodeId, SessionId};
use crate::core::record::{Load, NodeRecord};
use crate::core::time::Time;

use super::digest::Shown;
use super::pages::PageKey;
use super::reader::{Change, Reader};
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
    pages: Reader,
    record: (u64, Option<NodeRecord>),
    load: (u64, Option<Load>),
    /// All that the incarnation had published at some moment since it was first seen is here.
    complete: bool,
    caught_up: bool,
    suspected: bool,
    undecided_since: Time,
}

impl Session {
    fn new(id: &ChitchatId, now: Time) -> Self {
        Self {
            reading: id.clone(),
            since: now,
            heartbeat: 0,
            version: 0,
            collected: 0,
            pages: Reader::default(),
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
        self.pages.succeed();
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
                let changes = changes.entry(key.table).or_default();
                self.pages.read(key, value.version, &value.value, changes);
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

    /// All of the newest incarnation is here: what only earlier ones published is gone.
    fn completed(&mut self, of: &SessionId, events: &mut Vec<GossipEvent>) {
        self.complete = true;
        let mut changes: BTreeMap<Table, Vec<Change>> = BTreeMap::new();
        for (table, name) in self.pages.completed() {
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
            let session = self.sessions.entry(of.clone()).or_insert_with(|| Session::new(id, now));
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
                found.events.push(GossipEvent::Suspicion { of: of.clone(), suspected });
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

    use super::*;

    fn session(node: &str) -> SessionId {
        SessionId::new(NodeId::new(node).unwrap(), Uuid::from_u128(7))
    }

    fn address() -> SocketAddr {
        ([127, 0, 0, 1], 4000).into()
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
}
