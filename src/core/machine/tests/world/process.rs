//! A process: how it is made, what it leaves on its disk, how it ends or stands still.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use uuid::Uuid;

use super::gossip::Published;
use super::time::Due;
use super::{MS, Node, World};
use crate::core::branch::Header;
use crate::core::claim::{Desired, Mode, Spec};
use crate::core::ids::{Kind, Name, NodeId, RunId, SessionId};
use crate::core::io::Event;
use crate::core::machine::{Machine, MachineConfig, OnLostState};
use crate::core::record::{NodeRecord, NodeState, Versions};
use crate::core::stored::{StoredEnd, StoredRun};
use crate::core::time::Time;
use crate::core::timing::Timing;

/// How a node is made.
#[derive(Clone, Debug)]
pub(in super::super) struct Setup {
    /// Each with the newest version of its state.
    pub kinds: Vec<(&'static str, u32)>,
    /// The oldest version that any of them reads.
    pub oldest: u32,
    /// Whether their code writes older versions when it is to.
    pub downgrades: bool,
    pub revision: &'static str,
    pub since_ms: u64,
    pub rollout: Option<u64>,
    /// Tasks are finished here, if there is time.
    pub finish_here: bool,
    pub durable: bool,
    pub seeds: bool,
    pub replicas: usize,
    pub known_dead: bool,
    pub max_running: u32,
    pub max_names: usize,
    pub kind_limit: Option<usize>,
    pub on_lost_state: OnLostState,
    pub timing: Timing,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            kinds: vec![("count", 1)],
            oldest: 1,
            downgrades: true,
            revision: "r1",
            since_ms: 1,
            rollout: None,
            finish_here: false,
            durable: false,
            seeds: true,
            replicas: 1,
            known_dead: true,
            max_running: 1000,
            max_names: 100_000,
            kind_limit: None,
            on_lost_state: OnLostState::Park,
            timing: Timing::default(),
        }
    }
}

/// What survives a process.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Disk {
    pub runs: BTreeMap<(Name, RunId), Stored>,
    pub members: BTreeSet<SessionId>,
    pub nonce: Option<Uuid>,
}

#[derive(Clone, Debug)]
pub(in super::super) struct Stored {
    pub spec: Spec,
    pub desired: Option<Desired>,
    pub checkpoints: Vec<(Header, Bytes)>,
    pub damaged: bool,
    pub end: Option<(StoredEnd, Option<Bytes>)>,
}

impl World {
    /// Starts a process.
    pub(in super::super) fn boot(&mut self, node: &str, setup: Setup, mut disk: Disk) -> SessionId {
        self.born += 1;
        let id = NodeId::new(node).unwrap();
        let session = SessionId::new(id, Uuid::from_u128(u128::from(self.born)));
        let kinds = setup
            .kinds
            .iter()
            .map(|(kind, version)| {
                (Kind::new(kind).unwrap(), Versions { oldest: setup.oldest, newest: *version })
            })
            .collect();
        let finish_here = setup.kinds.iter().filter(|_| setup.finish_here);
        let finish_here = finish_here.map(|(kind, _)| Kind::new(kind).unwrap()).collect();
        let record = NodeRecord {
            address: "127.0.0.1:1".parse().unwrap(),
            revision: setup.revision.to_owned(),
            since_ms: setup.since_ms,
            rollout: setup.rollout,
            kinds,
            max_running: setup.max_running,
            succeeds: disk.nonce.filter(|_| setup.durable),
        };
        let stored = disk.runs.values().map(|run| StoredRun {
            spec: run.spec.clone(),
            desired: run.desired.clone(),
            damaged: run.damaged,
            checkpoints: run.checkpoints.iter().map(|(header, _)| header.clone()).collect(),
            end: run.end.as_ref().map(|(end, output)| (end.clone(), output.is_some())),
        });
        let config = MachineConfig {
            me: session.clone(),
            record: record.clone(),
            timing: setup.timing.clone(),
            mode: Mode::Available,
            replicas: setup.replicas,
            seeds: setup.seeds,
            members: disk.members.iter().cloned().collect(),
            boot: if setup.durable { stored.collect() } else { Vec::new() },
            durable: setup.durable,
            known_dead: setup.known_dead,
            kind_limits: setup
                .kind_limit
                .map(|limit| (Kind::new("count").unwrap(), limit))
                .into_iter()
                .collect(),
            finish_here,
            max_names: setup.max_names,
            on_lost_state: setup.on_lost_state,
        };
        disk.nonce = Some(session.nonce);
        let machine = Machine::new(self.clock(), config);
        let published = Published { record: Some(record), ..Published::default() };
        let node = Node {
            session: session.clone(),
            machine,
            setup,
            alive: true,
            disk,
            loops: BTreeMap::new(),
            gossip: BTreeMap::from([(session.clone(), Rc::new(published))]),
            header: (NodeState::Joining, 0, 0, Vec::new()),
            seen: BTreeMap::new(),
            beaten: BTreeMap::new(),
            suspected: BTreeSet::new(),
            permit: Time::ZERO,
            wakes: self.now,
            writes: BTreeMap::new(),
            notices: Vec::new(),
            replies: BTreeMap::new(),
            owners: BTreeMap::new(),
            found: BTreeMap::new(),
            shown: BTreeMap::new(),
            ended: BTreeMap::new(),
            drained: None,
            left: None,
            goodbye: None,
            disk_full: false,
            paused: None,
            goes_on: BTreeMap::new(),
            slots: BTreeSet::new(),
            epochs: BTreeMap::new(),
            changed: BTreeSet::new(),
            inbox: VecDeque::new(),
        };
        self.nodes.insert(session.clone(), node);
        self.perform(&session);
        let jitter = MS * self.rng.random_range(1..50);
        self.at(jitter, Due::Round { node: session.clone() });
        self.at(jitter, Due::Wake { node: session.clone() });
        for other in self.nodes.keys().cloned().collect::<Vec<_>>() {
            if other != session {
                self.at(MS, Due::LinkCheck { a: session.clone(), b: other });
            }
        }
        session
    }

    /// The process is gone at once; its kernel closes its sockets.
    pub(in super::super) fn crash(&mut self, session: &SessionId) {
        let Some(node) = self.nodes.get_mut(session) else { return };
        node.alive = false;
        let stretches: Vec<usize> = node.loops.values().map(|l| l.stretch).collect();
        node.loops.clear();
        for stretch in stretches {
            self.stretches[stretch].end = Some(self.now);
        }
        if let Some(node) = self.nodes.get_mut(session) {
            node.inbox.clear();
        }
        for other in self.nodes.keys().cloned().collect::<Vec<_>>() {
            if self.unlink(session, &other) && !self.is_cut(&other, session) {
                // Redialled: a last datagram can arrive after the link broke.
                for after in [MS, MS * 200] {
                    let event = Event::LinkDown { with: session.clone(), refused: true };
                    self.at(after, Due::Deliver { to: other.clone(), event });
                }
            }
        }
    }

    /// SIGSTOP until `for_how_long` from now.
    pub(in super::super) fn pause(&mut self, session: &SessionId, for_how_long: Duration) {
        let until = self.now + for_how_long;
        if let Some(node) = self.nodes.get_mut(session) {
            node.paused = Some(until);
            node.wakes = until;
        }
        self.at(for_how_long, Due::Wake { node: session.clone() });
    }

    /// What a process leaves behind.
    pub(in super::super) fn disk_of(&self, session: &SessionId) -> Disk {
        self.nodes[session].disk.clone()
    }

    pub(super) fn is_alive(&self, session: &SessionId) -> bool {
        self.nodes.get(session).is_some_and(|node| node.alive)
    }

    pub(super) fn is_paused(&self, session: &SessionId) -> bool {
        self.nodes.get(session).is_some_and(|n| n.paused.is_some_and(|until| until > self.now))
    }
}
