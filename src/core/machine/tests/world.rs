//! A world for the machine alone: virtual time, a network of directed cuts, task loops that count.
//!
//! Gossip, links, stores and loops are the simplest that keep their contracts, so that a failing
//! test points at a rule. The same seed gives the same run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use crate::core::branch::{Ancestor, Header, Position, Progress};
use crate::core::claim::{Claim, Desired, Mode, Phase, Spec, Want};
use crate::core::ids::{Kind, Name, NodeId, RunId, SessionId};
use crate::core::io::{Action, CallError, Event, From, Notice, Now, Outcome, Stop, Stuck};
use crate::core::lease::{Epoch, Lease};
use crate::core::machine::{Machine, MachineConfig, OnLostState};
use crate::core::message::Message;
use crate::core::record::{Load, NodeRecord, NodeState, Versions};
use crate::core::stored::{StoredEnd, StoredRun};
use crate::core::time::Time;
use crate::core::timing::Timing;

pub(super) const MS: Duration = Duration::from_millis(1);

/// One stretch of a task's code running somewhere, as a neutral observer sees it.
#[derive(Clone, Debug)]
pub(super) struct Stretch {
    pub name: Name,
    pub run: RunId,
    pub epoch: Epoch,
    pub session: SessionId,
    pub from_seq: u64,
    pub start: Time,
    pub end: Option<Time>,
    /// The last commit, once it has ended.
    pub to_seq: u64,
}

/// What happens to a message that a rule of [`World::faults`] matches.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    Lost,
    Twice,
    Late(Duration),
}

/// A fault of the links that a test orders: the next `times` messages that match.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub hits: fn(&Message) -> bool,
    pub fate: Fate,
    pub times: usize,
}

/// Faults of all links, by chance.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Noise {
    pub lose: f64,
    pub twice: f64,
    pub late: f64,
}

/// Kills a process just before it carries out an action that matches.
#[derive(Clone, Debug)]
pub(super) struct Trip {
    pub task: &'static str,
    /// The acting session, whether it runs the action's task at that moment, and the action.
    pub at: fn(&SessionId, bool, &Action) -> bool,
    /// None: whoever acts.
    pub victim: Option<SessionId>,
}

/// How a node is made.
#[derive(Clone, Debug)]
pub(super) struct Setup {
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
pub(super) struct Disk {
    pub runs: BTreeMap<(Name, RunId), Stored>,
    pub members: BTreeSet<SessionId>,
    pub nonce: Option<Uuid>,
}

#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub spec: Spec,
    pub desired: Option<Desired>,
    pub checkpoints: Vec<(Header, Bytes)>,
    pub end: Option<(StoredEnd, Option<Bytes>)>,
}

#[derive(Clone, Debug)]
struct Loop {
    spec: Spec,
    lease: Lease,
    lineage: Vec<Ancestor>,
    seq: u64,
    goal: u64,
    step: Duration,
    stop: Option<Stop>,
    generation: u64,
    stretch: usize,
    stuck: bool,
    resumed_at: u64,
    /// The last commit, as an interrupted step would leave it.
    committed: Option<(Header, Bytes)>,
}

/// What a datagram says: state, version, watermark, released.
type Says = (NodeState, u64, u64, Vec<u64>);

/// What one session publishes, as gossip carries it.
#[derive(Clone, Debug, Default)]
struct Published {
    version: u64,
    heartbeat: u64,
    record: Option<NodeRecord>,
    load: Load,
    claims: BTreeMap<Name, Claim>,
    specs: BTreeMap<Name, Spec>,
    desires: BTreeMap<Name, Desired>,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub session: SessionId,
    pub machine: Machine,
    pub setup: Setup,
    pub alive: bool,
    pub disk: Disk,
    loops: BTreeMap<Name, Loop>,
    gossip: BTreeMap<SessionId, Rc<Published>>,
    header: Says,
    /// Send time of the newest datagram of each peer that arrived here.
    seen: BTreeMap<SessionId, Time>,
    beaten: BTreeMap<SessionId, Time>,
    suspected: BTreeSet<SessionId>,
    permit: Time,
    /// When its machine is woken next.
    wakes: Time,
    /// What each kind is to be written in, where that was said.
    pub writes: BTreeMap<Kind, u32>,
    pub notices: Vec<(Time, Notice)>,
    pub replies: BTreeMap<u64, Result<RunId, CallError>>,
    pub owners: BTreeMap<Name, Claim>,
    /// What was found on disk.
    pub found: BTreeMap<Name, Option<Header>>,
    /// Who each name was shown to be with, and since when.
    pub shown: BTreeMap<Name, Vec<(Time, SessionId, Phase)>>,
    /// The newest run of each name that this node has shown as ended, and since when.
    pub ended: BTreeMap<Name, (RunId, Time)>,
    pub drained: Option<Time>,
    pub left: Option<Time>,
    /// Checkpoints written from now on fail.
    pub disk_full: bool,
    /// Paused by SIGSTOP until then.
    paused: Option<Time>,
    /// Tasks that hold a transfer slot.
    slots: BTreeSet<Name>,
    /// The highest epoch published of each name (L2).
    epochs: BTreeMap<Name, Epoch>,
    /// Names whose claim or loop has changed since the last check (L6).
    changed: BTreeSet<Name>,
    inbox: VecDeque<Event>,
}

#[derive(Clone, Debug)]
enum Due {
    Deliver {
        to: SessionId,
        event: Event,
    },
    /// A frame on the link between two sessions: lost if the link is not up when it arrives.
    Frame {
        from: SessionId,
        to: SessionId,
        message: Message,
    },
    Datagram {
        from: SessionId,
        to: SessionId,
        sent: Time,
        echo: Option<Time>,
        header: Says,
        /// It is to be answered at once.
        probe: bool,
    },
    Gossip {
        from: SessionId,
        to: SessionId,
    },
    Step {
        node: SessionId,
        name: Name,
        generation: u64,
    },
    /// A step's grace is over: it is dropped.
    Grace {
        node: SessionId,
        name: Name,
        generation: u64,
    },
    Round {
        node: SessionId,
    },
    Wake {
        node: SessionId,
    },
    LinkCheck {
        a: SessionId,
        b: SessionId,
    },
}

#[derive(Clone, Debug)]
pub(super) struct World {
    pub now: Time,
    /// What everybody's wall clock showed when time began, in seconds.
    pub unix: u64,
    pub nodes: BTreeMap<SessionId, Node>,
    pub stretches: Vec<Stretch>,
    pub finished: BTreeMap<Name, Vec<(RunId, u64)>>,
    queue: BTreeMap<(Time, u64), Due>,
    order: u64,
    cuts: BTreeSet<(NodeId, NodeId)>,
    /// Pushes on their way: changes within two milliseconds go together.
    pushes: BTreeSet<(SessionId, SessionId)>,
    links: BTreeSet<(SessionId, SessionId)>,
    pub rng: SmallRng,
    calls: u64,
    born: u64,
    pub step: Duration,
    pub goal: u64,
    /// Names whose step hangs and cannot be stopped.
    pub stuck: BTreeSet<Name>,
    /// Names that no code can open.
    pub unreadable: BTreeSet<Name>,
    /// How often each of them was tried.
    pub refused: BTreeMap<Name, u64>,
    /// Names whose code kills its process at the first step.
    pub poison: BTreeSet<Name>,
    /// Messages dropped once, by a test's own rule.
    pub lose: Vec<fn(&Message) -> bool>,
    /// What a test does to particular messages.
    pub faults: Vec<Fault>,
    /// What happens to any message.
    pub noise: Noise,
    pub trip: Option<Trip>,
    /// A tenth of a second, and what has happened in it: a livelock must end a test.
    busy: (u64, u64),
    /// More than this in a tenth of a second is a livelock (V6).
    pub max_events: u64,
    /// How long one step of a name takes, where it is not [`World::step`].
    pub steps: BTreeMap<Name, Duration>,
    /// Messages that a test loses for as long as it likes: from, to, what.
    pub blocked: Option<fn(&SessionId, &SessionId, &Message) -> bool>,
    /// How long a store takes to read.
    pub reads_take: Duration,
    /// How long the last event of a loop is on its way.
    pub ends_late: Duration,
    /// Of so many steps one commits.
    pub commit_every: u64,
    /// Somebody waits for every commit (`checkpoint_now`).
    pub forced: bool,
    /// Where a name's code fails for good at its next step.
    pub failing: BTreeSet<(Name, SessionId)>,
    pub sent: Vec<(Time, SessionId, SessionId, Message)>,
    pub record_messages: bool,
    /// As many messages as one node can send another at once; more are lost, as by a full queue.
    pub outbox: usize,
    /// How many each has sent another at once, and when.
    sending: BTreeMap<(SessionId, SessionId), (Time, usize)>,
    /// Messages that a full outbox did not take.
    pub overflowed: usize,
    /// How long states are, in bytes: 8 at least.
    pub state_len: usize,
    /// The newest commit of each name that a replica has acknowledged to its owner.
    pub acknowledged: BTreeMap<Name, (RunId, u64)>,
    pub steps_done: BTreeMap<Name, u64>,
}

/// Transfers at once from one node.
const SLOTS: usize = 8;

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: Time::from_micros(1_000_000_000),
            unix: 1_700_000_000,
            nodes: BTreeMap::new(),
            stretches: Vec::new(),
            finished: BTreeMap::new(),
            queue: BTreeMap::new(),
            order: 0,
            cuts: BTreeSet::new(),
            pushes: BTreeSet::new(),
            links: BTreeSet::new(),
            rng: SmallRng::seed_from_u64(seed),
            calls: 0,
            born: 0,
            step: MS * 50,
            goal: 1_000,
            stuck: BTreeSet::new(),
            poison: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            refused: BTreeMap::new(),
            lose: Vec::new(),
            faults: Vec::new(),
            noise: Noise::default(),
            trip: None,
            busy: (0, 0),
            max_events: 50_000,
            steps: BTreeMap::new(),
            blocked: None,
            reads_take: MS / 10,
            ends_late: Duration::ZERO,
            commit_every: 1,
            forced: false,
            failing: BTreeSet::new(),
            sent: Vec::new(),
            record_messages: false,
            outbox: usize::MAX,
            sending: BTreeMap::new(),
            overflowed: 0,
            acknowledged: BTreeMap::new(),
            state_len: 8,
            steps_done: BTreeMap::new(),
        }
    }

    /// A cluster of `n` nodes (n0, n1, …) that are all up.
    pub(super) fn cluster(seed: u64, n: usize) -> (Self, Vec<SessionId>) {
        Self::cluster_of(seed, n, &Setup::default())
    }

    pub(super) fn cluster_of(seed: u64, n: usize, setup: &Setup) -> (Self, Vec<SessionId>) {
        let mut world = Self::new(seed);
        let nodes: Vec<SessionId> = (0..n)
            .map(|i| {
                let setup = Setup { seeds: n > 1, ..setup.clone() };
                world.boot(&format!("n{i}"), setup, Disk::default())
            })
            .collect();
        world.run_for(Duration::from_secs(7));
        for node in &nodes {
            assert_eq!(world.nodes[node].machine.state(), NodeState::Up, "{node} is up");
        }
        (world, nodes)
    }

    /// Starts a process.
    pub(super) fn boot(&mut self, node: &str, setup: Setup, mut disk: Disk) -> SessionId {
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
            disk_full: false,
            paused: None,
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

    // ---- faults ---------------------------------------------------------------------------

    /// The process is gone at once; its kernel closes its sockets.
    pub(super) fn crash(&mut self, session: &SessionId) {
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

    /// Cuts datagrams and streams from one node to another.
    pub(super) fn cut(&mut self, from: &SessionId, to: &SessionId) {
        self.cuts.insert((from.node.clone(), to.node.clone()));
        self.at(Duration::from_secs(5), Due::LinkCheck { a: from.clone(), b: to.clone() });
    }

    pub(super) fn cut_both(&mut self, a: &SessionId, b: &SessionId) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Cuts every path between two groups.
    pub(super) fn split(&mut self, a: &[SessionId], b: &[SessionId]) {
        for x in a {
            for y in b {
                self.cut_both(x, y);
            }
        }
    }

    pub(super) fn heal(&mut self) {
        self.cuts.clear();
        let nodes: Vec<SessionId> = self.nodes.keys().cloned().collect();
        for a in &nodes {
            for b in &nodes {
                if a < b {
                    self.at(MS * 100, Due::LinkCheck { a: a.clone(), b: b.clone() });
                }
            }
        }
    }

    /// Cuts one node off from all others.
    pub(super) fn isolate(&mut self, node: &SessionId) {
        for other in self.nodes.keys().cloned().collect::<Vec<_>>() {
            if other.node != node.node {
                self.cut_both(node, &other);
            }
        }
    }

    /// A firewall between two nodes begins to REJECT: links break, connecting is refused, datagrams
    /// are lost, and both processes live.
    pub(super) fn reject(&mut self, a: &SessionId, b: &SessionId) {
        self.cuts.insert((a.node.clone(), b.node.clone()));
        self.cuts.insert((b.node.clone(), a.node.clone()));
        self.unlink(a, b);
        for (to, with) in [(a, b), (b, a)] {
            let event = Event::LinkDown { with: with.clone(), refused: true };
            self.at(MS, Due::Deliver { to: to.clone(), event });
        }
    }

    /// Undoes the cuts between two nodes.
    pub(super) fn mend(&mut self, a: &SessionId, b: &SessionId) {
        self.cuts.remove(&(a.node.clone(), b.node.clone()));
        self.cuts.remove(&(b.node.clone(), a.node.clone()));
        self.at(MS * 100, Due::LinkCheck { a: a.clone(), b: b.clone() });
    }

    /// Everybody's gossip has forgotten a dead session; only the machines remember it.
    pub(super) fn gossip_forgets(&mut self, session: &SessionId) {
        for node in self.nodes.values_mut().filter(|node| node.session != *session) {
            node.gossip.remove(session);
            node.beaten.remove(session);
        }
    }

    /// What a process leaves behind.
    pub(super) fn disk_of(&self, session: &SessionId) -> Disk {
        self.nodes[session].disk.clone()
    }

    /// A task's loop is dropped where it stands, with the runtime it ran on.
    pub(super) fn end_loop(&mut self, at: &SessionId, task: &str) {
        let node = self.nodes.get_mut(at).unwrap();
        let task = node.loops.remove(&name(task)).unwrap();
        self.stretches[task.stretch].end = Some(self.now);
        self.stretches[task.stretch].to_seq = task.seq;
    }

    /// SIGSTOP until `for_how_long` from now.
    pub(super) fn pause(&mut self, session: &SessionId, for_how_long: Duration) {
        let until = self.now + for_how_long;
        if let Some(node) = self.nodes.get_mut(session) {
            node.paused = Some(until);
            node.wakes = until;
        }
        self.at(for_how_long, Due::Wake { node: session.clone() });
    }

    fn is_cut(&self, from: &SessionId, to: &SessionId) -> bool {
        self.cuts.contains(&(from.node.clone(), to.node.clone()))
    }

    fn is_alive(&self, session: &SessionId) -> bool {
        self.nodes.get(session).is_some_and(|node| node.alive)
    }

    fn is_paused(&self, session: &SessionId) -> bool {
        self.nodes.get(session).is_some_and(|n| n.paused.is_some_and(|until| until > self.now))
    }

    // ---- what users do --------------------------------------------------------------------

    pub(super) fn start(&mut self, at: &SessionId, task: &str) -> u64 {
        self.start_kind(at, task, "count", false)
    }

    pub(super) fn start_kind(
        &mut self,
        at: &SessionId,
        task: &str,
        kind: &str,
        again: bool,
    ) -> u64 {
        self.calls += 1;
        let uuid = Uuid::from_u128(u128::from(self.now.as_micros()) << 64 | u128::from(self.calls));
        let spec = Spec {
            name: name(task),
            run: RunId { number: 0, uuid },
            kind: Kind::new(kind).unwrap(),
            args: Bytes::from_static(b"args"),
        };
        let call = self.calls;
        self.give(at, Event::Run { call, spec, again });
        call
    }

    pub(super) fn want(&mut self, at: &SessionId, task: &str, want: Want) -> u64 {
        self.calls += 1;
        let call = self.calls;
        self.give(at, Event::Want { call, name: name(task), want });
        call
    }

    pub(super) fn drain(&mut self, at: &SessionId, budget: Duration) {
        let deadline = self.now + budget;
        self.give(at, Event::Drain { deadline });
    }

    pub(super) fn give(&mut self, to: &SessionId, event: Event) {
        let clock = self.clock();
        if self.is_paused(to) {
            if let Some(node) = self.nodes.get_mut(to) {
                node.inbox.push_back(event);
            }
            return;
        }
        if let Some(node) = self.nodes.get_mut(to)
            && node.alive
        {
            node.machine.handle(clock, event);
            self.perform(to);
            self.wake_in_time(to);
        }
    }

    // ---- time -----------------------------------------------------------------------------

    pub(super) fn clock(&self) -> Now {
        Now { at: self.now, unix: self.unix + self.now.as_micros() / 1_000_000 }
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some((&key, _)) = self.queue.first_key_value() {
            if key.0 > end {
                break;
            }
            let Some(due) = self.queue.remove(&key) else { break };
            self.now = self.now.max(key.0);
            self.happen(due);
        }
        self.now = end;
    }

    /// Runs until a condition holds; panics after `limit`.
    pub(super) fn run_until(&mut self, limit: Duration, what: &str, test: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        while !test(self) {
            assert!(self.now < end, "after {limit:?} still not: {what}");
            self.run_for(MS * 10);
        }
    }

    fn at(&mut self, after: Duration, due: Due) {
        self.order += 1;
        self.queue.insert((self.now + after, self.order), due);
    }

    fn happen(&mut self, due: Due) {
        let tenth = self.now.as_micros() / 100_000;
        self.busy = if self.busy.0 == tenth { (tenth, self.busy.1 + 1) } else { (tenth, 0) };
        assert!(self.busy.1 < self.max_events, "a livelock at {}: {due:?}", self.now);
        match due {
            Due::Deliver { to, event } => self.give(&to, event),
            Due::Frame { from, to, message } => {
                if self.linked(&from, &to) && !self.is_cut(&from, &to) {
                    self.give(&to, Event::Message { from, message });
                }
            }
            Due::Datagram { from, to, sent, echo, header, probe } => {
                if self.is_cut(&from, &to) || !self.is_alive(&to) || self.is_paused(&to) {
                    return;
                }
                if let Some(node) = self.nodes.get_mut(&to) {
                    let seen = node.seen.entry(from.clone()).or_insert(sent);
                    *seen = (*seen).max(sent);
                }
                let (state, version, watermark, released) = header;
                let sender = from.clone();
                let event =
                    Event::Heard { from, state, version, watermark, released, echoed: echo };
                self.give(&to, event);
                if probe {
                    self.datagram(&to, &sender, false);
                }
            }
            Due::Gossip { from, to } => {
                self.exchange(&from, &to);
                self.pushes.remove(&(from, to));
            }
            Due::Step { node, name, generation } => self.step_done(&node, &name, generation),
            Due::Grace { node, name, generation } => self.grace_over(&node, &name, generation),
            Due::Round { node } => self.round(&node),
            Due::Wake { node } => self.wake(&node),
            Due::LinkCheck { a, b } => self.link_check(&a, &b),
        }
    }

    /// Whatever happens to a machine can make it want to be woken earlier than before.
    fn wake_in_time(&mut self, session: &SessionId) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(session).filter(|node| node.alive) else { return };
        let next = node.machine.next_timeout().max(now + MS);
        if next < node.wakes {
            node.wakes = next;
            self.at(next.since(now), Due::Wake { node: session.clone() });
        }
    }

    fn wake(&mut self, session: &SessionId) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(session) else { return };
        // An earlier one has come before it.
        if !node.alive || now < node.wakes {
            return;
        }
        node.wakes = Time::from_micros(u64::MAX);
        self.give(session, Event::Tick);
        while let Some(event) = self.nodes.get_mut(session).and_then(|node| node.inbox.pop_front())
        {
            self.give(session, event);
        }
    }

    /// Datagrams to everybody, and a gossip exchange with everybody.
    fn round(&mut self, session: &SessionId) {
        if !self.is_alive(session) {
            return;
        }
        let every = self.nodes[session].setup.timing.gossip_interval / 2;
        self.at(every, Due::Round { node: session.clone() });
        if self.is_paused(session) {
            return;
        }
        if let Some(node) = self.nodes.get_mut(session)
            && let Some(mine) = node.gossip.get_mut(session)
        {
            Rc::make_mut(mine).heartbeat += 1;
        }
        let peers: Vec<SessionId> =
            self.nodes.keys().filter(|peer| *peer != session).cloned().collect();
        for peer in peers {
            let delay = self.datagram(session, &peer, false);
            self.at(delay, Due::Gossip { from: session.clone(), to: peer });
        }
        self.suspect(session);
    }

    /// Sends a datagram; how long it takes.
    fn datagram(&mut self, from: &SessionId, to: &SessionId, probe: bool) -> Duration {
        let delay = MS * self.rng.random_range(1..3);
        if let Some(node) = self.nodes.get(from).filter(|node| node.alive) {
            let due = Due::Datagram {
                from: from.clone(),
                to: to.clone(),
                sent: self.now,
                echo: node.seen.get(to).copied(),
                header: node.header.clone(),
                probe,
            };
            self.at(delay, due);
        }
        delay
    }

    fn suspect(&mut self, session: &SessionId) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(session) else { return };
        let late = node.setup.timing.gossip_interval * 4;
        let mut events = Vec::new();
        for (of, at) in &node.beaten {
            let suspected = now.since(*at) > late;
            let changed = if suspected {
                node.suspected.insert(of.clone())
            } else {
                node.suspected.remove(of)
            };
            if changed {
                events.push(Event::Suspicion { of: of.clone(), suspected });
            }
        }
        for event in events {
            self.give(session, event);
        }
    }

    /// Both sides end with the newer of what each knows, third sessions included. Where only the
    /// question arrives, the asked learns the heartbeats in its digest and nothing else.
    fn exchange(&mut self, a: &SessionId, b: &SessionId) {
        if self.is_cut(a, b)
            || !self.is_alive(a)
            || !self.is_alive(b)
            || self.is_paused(a)
            || self.is_paused(b)
        {
            return;
        }
        if self.is_cut(b, a) {
            return self.digest(b, a);
        }
        self.pull(a, b);
        self.pull(b, a);
    }

    fn digest(&mut self, to: &SessionId, from: &SessionId) {
        let theirs = self.nodes[from].gossip.clone();
        let now = self.now;
        let mut newer = Vec::new();
        if let Some(node) = self.nodes.get_mut(to) {
            for (of, new) in theirs.into_iter().filter(|(of, _)| of != to) {
                let old = node.gossip.entry(of.clone()).or_default();
                if new.heartbeat > old.heartbeat {
                    Rc::make_mut(old).heartbeat = new.heartbeat;
                    node.beaten.insert(of.clone(), now);
                    newer.push(of);
                }
            }
        }
        for of in newer {
            self.give(to, Event::Heartbeat { of });
        }
    }

    fn pull(&mut self, to: &SessionId, from: &SessionId) {
        let theirs = self.nodes[from].gossip.clone();
        let now = self.now;
        let mut events = Vec::new();
        if let Some(node) = self.nodes.get_mut(to) {
            for (of, new) in theirs {
                if of == *to {
                    continue;
                }
                let old = node.gossip.entry(of.clone()).or_default();
                if Rc::ptr_eq(old, &new) {
                    continue;
                }
                if new.heartbeat > old.heartbeat {
                    node.beaten.insert(of.clone(), now);
                    events.push(Event::Heartbeat { of: of.clone() });
                }
                if new.version < old.version {
                    // What is known here is newer; a question alone may have brought a heartbeat there.
                    if new.heartbeat > old.heartbeat {
                        Rc::make_mut(old).heartbeat = new.heartbeat;
                    }
                    continue;
                }
                if new.version > old.version || old.record.is_none() {
                    events.extend(diff(&of, old, &new));
                }
                let heartbeat = old.heartbeat;
                *old = new;
                if heartbeat > old.heartbeat {
                    Rc::make_mut(old).heartbeat = heartbeat;
                }
            }
            events.push(Event::CaughtUp { of: from.clone() });
        }
        for event in events {
            self.give(to, event);
        }
    }

    // ---- links ----------------------------------------------------------------------------

    fn pair(a: &SessionId, b: &SessionId) -> (SessionId, SessionId) {
        if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }
    }

    fn linked(&self, a: &SessionId, b: &SessionId) -> bool {
        self.links.contains(&Self::pair(a, b))
    }

    fn unlink(&mut self, a: &SessionId, b: &SessionId) -> bool {
        self.links.remove(&Self::pair(a, b))
    }

    fn link_check(&mut self, a: &SessionId, b: &SessionId) {
        if !self.is_alive(a) || !self.is_alive(b) {
            return;
        }
        let open = !self.is_cut(a, b) && !self.is_cut(b, a);
        match (open, self.linked(a, b)) {
            (true, false) => {
                self.links.insert(Self::pair(a, b));
                self.at(
                    MS,
                    Due::Deliver { to: a.clone(), event: Event::LinkUp { with: b.clone() } },
                );
                self.at(
                    MS,
                    Due::Deliver { to: b.clone(), event: Event::LinkUp { with: a.clone() } },
                );
            }
            (false, true) => {
                self.unlink(a, b);
                for (to, with) in [(a, b), (b, a)] {
                    let event = Event::LinkDown { with: with.clone(), refused: false };
                    self.at(MS, Due::Deliver { to: to.clone(), event });
                }
            }
            _ => {}
        }
    }

    // ---- actions --------------------------------------------------------------------------

    fn perform(&mut self, session: &SessionId) {
        loop {
            let node = self.nodes.get_mut(session).filter(|node| node.alive);
            let Some(action) = node.and_then(|node| node.machine.poll()) else { break };
            self.trip(session, &action);
            if self.is_alive(session) {
                self.act(session, action);
            }
        }
        self.check_own_claims(session);
    }

    fn trip(&mut self, session: &SessionId, action: &Action) {
        let Some(trip) = &self.trip else { return };
        let name = match action {
            Action::Send { message, .. } => subject(message),
            Action::Publish(claim) => Some(&claim.name),
            Action::Start { spec, .. } => Some(&spec.name),
            Action::Stop { name, .. } => Some(name),
            _ => None,
        };
        let Some(name) = name.filter(|name| name.as_str() == trip.task) else { return };
        let runs = self.nodes[session].loops.contains_key(name);
        if (trip.at)(session, runs, action) {
            let victim = trip.victim.clone().unwrap_or_else(|| session.clone());
            self.trip = None;
            self.crash(&victim);
        }
    }

    /// No node runs a task without its own published claim of that very run and epoch (L6).
    fn check_own_claims(&mut self, session: &SessionId) {
        let Some(node) = self.nodes.get_mut(session) else { return };
        for name in std::mem::take(&mut node.changed) {
            let Some(task) = node.loops.get(&name) else { continue };
            let claim = node.gossip[session].claims.get(&name);
            assert!(
                claim.is_some_and(|claim| claim.phase == Phase::Running
                    && claim.run == task.spec.run
                    && claim.epoch == task.lease.epoch),
                "L6: {session} runs {name} under {:?} and publishes {claim:?}",
                task.lease
            );
        }
    }

    fn changed(&mut self, session: &SessionId, name: &Name) {
        if let Some(node) = self.nodes.get_mut(session) {
            node.changed.insert(name.clone());
        }
    }

    /// A session never lowers the epoch it advertises (L2); the record of an end is a copy.
    fn check_epoch(&mut self, session: &SessionId, claim: &Claim) {
        let Some(node) = self.nodes.get_mut(session) else { return };
        let highest = node.epochs.entry(claim.name.clone()).or_default();
        assert!(
            claim.epoch >= *highest || claim.phase.is_terminal(),
            "L2: {session} lowers {} from {highest} to {claim:?}",
            claim.name
        );
        *highest = (*highest).max(claim.epoch);
    }

    fn publish(&mut self, session: &SessionId, change: impl FnOnce(&mut Published)) {
        let Some(node) = self.nodes.get_mut(session) else { return };
        let Some(mine) = node.gossip.get_mut(session) else { return };
        let mine = Rc::make_mut(mine);
        mine.version += 1;
        change(mine);
        let peers: Vec<SessionId> =
            self.nodes.keys().filter(|peer| *peer != session).cloned().collect();
        for to in peers {
            if self.pushes.insert((session.clone(), to.clone())) {
                self.at(MS * 2, Due::Gossip { from: session.clone(), to });
            }
        }
    }

    fn act(&mut self, session: &SessionId, action: Action) {
        let now = self.now;
        match action {
            Action::Send { to, message } => {
                if let Some(at) = self.lose.iter().position(|rule| rule(&message)) {
                    self.lose.remove(at);
                    return;
                }
                if self.record_messages {
                    self.sent.push((now, session.clone(), to.clone(), message.clone()));
                }
                self.transmit(session, to, message);
            }
            Action::Probe(of) => {
                self.datagram(session, &of, true);
            }
            Action::Publish(claim) => {
                self.changed(session, &claim.name);
                self.check_epoch(session, &claim);
                self.publish(session, |mine| {
                    mine.claims.insert(claim.name.clone(), claim);
                });
            }
            Action::Retract(name) => {
                self.changed(session, &name);
                self.publish(session, |mine| {
                    mine.claims.remove(&name);
                });
            }
            Action::PublishSpec(spec) => self.publish(session, |mine| {
                mine.specs.insert(spec.name.clone(), spec);
            }),
            Action::RetractSpec(name) => self.publish(session, |mine| {
                mine.specs.remove(&name);
            }),
            Action::PublishDesired(desired) => self.publish(session, |mine| {
                mine.desires.insert(desired.name.clone(), desired);
            }),
            Action::RetractDesired(name) => self.publish(session, |mine| {
                mine.desires.remove(&name);
            }),
            Action::PublishLoad(load) => self.publish(session, |mine| mine.load = load),
            Action::Start { spec, lease, from, lineage, seq } => {
                self.changed(session, &spec.name);
                self.start_loop(session, spec, lease, from, lineage, seq);
            }
            Action::Store { spec, header, state, from } => {
                self.store(session, spec, header, state, from);
            }
            Action::StoreRun { spec, desired } => {
                if let Some(node) = self.nodes.get_mut(session).filter(|node| !node.disk_full) {
                    let new = Stored { spec, desired: None, checkpoints: Vec::new(), end: None };
                    let key = (new.spec.name.clone(), new.spec.run);
                    let stored = node.disk.runs.entry(key).or_insert(new);
                    if stored.end.is_none() {
                        stored.desired = desired;
                    }
                }
            }
            Action::StoreEnd { end, spec, output, from } => {
                let (name, run) = (spec.name.clone(), spec.run);
                let full = self.nodes[session].disk_full;
                let error = full.then(|| "no space left".to_owned());
                if let Some(node) = self.nodes.get_mut(session).filter(|_| !full) {
                    let end = Some((end, output));
                    let stored = Stored { spec, desired: None, checkpoints: Vec::new(), end };
                    node.disk.runs.insert((name.clone(), run), stored);
                }
                let event = Event::StoredEnd { name, run, from, error };
                self.at(MS / 10, Due::Deliver { to: session.clone(), event });
            }
            other => self.act_here(session, other),
        }
    }

    fn transmit(&mut self, session: &SessionId, to: SessionId, message: Message) {
        let inner = match &message {
            Message::Relay { message, .. } => message,
            other => other,
        };
        if self.blocked.is_some_and(|blocked| blocked(session, &to, inner)) {
            return;
        }
        let sending = self.sending.entry((session.clone(), to.clone())).or_default();
        *sending = if sending.0 == self.now { (self.now, sending.1 + 1) } else { (self.now, 1) };
        if sending.1 > self.outbox {
            self.overflowed += 1;
            return;
        }
        let mut delays = vec![MS / 5];
        if let Some(at) = self.faults.iter().position(|fault| (fault.hits)(inner)) {
            match self.faults[at].fate {
                Fate::Lost => delays.clear(),
                Fate::Twice => delays.push(MS * 300),
                Fate::Late(by) => delays = vec![by],
            }
            self.faults[at].times -= 1;
            if self.faults[at].times == 0 {
                self.faults.remove(at);
            }
        }
        let Noise { lose, twice, late } = self.noise;
        if lose > 0.0 && self.rng.random_bool(lose) {
            delays.clear();
        }
        if twice > 0.0 && self.rng.random_bool(twice) {
            delays.push(MS * self.rng.random_range(1..1_000));
        }
        if late > 0.0 && self.rng.random_bool(late) {
            let by = MS * self.rng.random_range(1..1_500);
            delays.iter_mut().for_each(|delay| *delay += by);
        }
        for delay in delays {
            let (from, to, message) = (session.clone(), to.clone(), message.clone());
            self.at(delay, Due::Frame { from, to, message });
        }
    }

    fn act_here(&mut self, session: &SessionId, action: Action) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(session) else { return };
        match action {
            Action::Header { state, version, watermark, released } => {
                node.header = (state, version, watermark, released);
            }
            Action::Reepoch { name, lease } => {
                node.changed.insert(name.clone());
                if let Some(task) = node.loops.get_mut(&name) {
                    task.lineage.push(Ancestor {
                        epoch: task.lease.epoch,
                        writer: task.lease.session.clone(),
                        seq: task.seq,
                    });
                    let stretch = task.stretch;
                    task.lease = lease.clone();
                    self.stretches[stretch].end = Some(now);
                    let (name, run, from_seq) = (name, task.spec.run, task.seq);
                    task.stretch = self.stretches.len();
                    self.stretches.push(Stretch {
                        name,
                        run,
                        epoch: lease.epoch,
                        session: session.clone(),
                        from_seq,
                        start: now,
                        end: None,
                        to_seq: from_seq,
                    });
                    self.stretches[stretch].to_seq = from_seq;
                }
            }
            Action::Stop { name, how } => {
                if let Some(task) = node.loops.get_mut(&name) {
                    task.stop = Some(how);
                    let generation = task.generation;
                    if let Stop::Boundary { grace } = how
                        && !task.stuck
                    {
                        let node = session.clone();
                        self.at(grace, Due::Grace { node, name, generation });
                    } else if task.stuck {
                        let epoch = task.lease.epoch;
                        let event = Event::Unstoppable { name, epoch };
                        self.at(MS * 100, Due::Deliver { to: session.clone(), event });
                    }
                }
            }
            Action::FreeSlot(name) => {
                node.slots.remove(&name);
            }
            Action::Permit { until } => node.permit = until,
            Action::Replicated { name, position, replicas, .. } if replicas > 0 => {
                if let Some(task) = node.loops.get(&name) {
                    let run = task.spec.run;
                    let known = self.acknowledged.entry(name).or_insert((run, 0));
                    *known = (*known).max((run, position.seq));
                }
            }
            Action::WriteVersion { kind, version } => {
                node.writes.insert(kind, version);
            }
            Action::Load { header } => {
                let key = (header.name.clone(), header.run);
                let state = node.disk.runs.get(&key).and_then(|run| {
                    run.checkpoints.iter().find(|(h, _)| *h == header).map(|(_, s)| s.clone())
                });
                let event = Event::Loaded { header, state };
                let take = self.reads_take;
                self.at(take, Due::Deliver { to: session.clone(), event });
            }
            Action::LoadEnd { name, run } => {
                let stored = node.disk.runs.get(&(name.clone(), run));
                let end = stored.and_then(|stored| stored.end.as_ref());
                let output = end.and_then(|(_, output)| output.clone());
                let event = Event::LoadedEnd { name, run, output };
                self.at(MS / 10, Due::Deliver { to: session.clone(), event });
            }
            Action::Discard { name, run, headers } => {
                if headers.is_empty() {
                    node.disk.runs.remove(&(name, run));
                } else if let Some(stored) = node.disk.runs.get_mut(&(name, run)) {
                    stored.checkpoints.retain(|(h, _)| !headers.contains(h));
                }
            }
            Action::DropOutput { name, run } => {
                if let Some(stored) = node.disk.runs.get_mut(&(name, run))
                    && let Some((_, output)) = &mut stored.end
                {
                    *output = None;
                }
            }
            Action::Found { name, best, .. } => {
                node.found.insert(name, best);
            }
            Action::Owner { name, claim } => {
                if let Some(claim) = claim.as_ref().filter(|claim| claim.phase.is_terminal())
                    && node.ended.get(&name).is_none_or(|(run, _)| *run < claim.run)
                {
                    node.ended.insert(name.clone(), (claim.run, now));
                }
                if let Some(claim) = &claim {
                    let shown = node.shown.entry(name.clone()).or_default();
                    let now = (now, claim.session.clone(), claim.phase.clone());
                    if shown.last().is_none_or(|(_, by, phase)| (by, phase) != (&now.1, &now.2)) {
                        shown.push(now);
                    }
                }
                match claim {
                    Some(claim) => node.owners.insert(name, claim),
                    None => node.owners.remove(&name),
                };
            }
            Action::Reply { call, result } => {
                node.replies.insert(call, result);
            }
            Action::Drained => node.drained = Some(now),
            Action::Left { .. } => node.left = Some(now),
            Action::Tell(notice) => {
                if let Notice::PeerUp(peer) = &notice {
                    node.disk.members.insert(peer.clone());
                }
                node.notices.push((now, notice));
            }
            _ => {}
        }
    }

    fn store(
        &mut self,
        session: &SessionId,
        spec: Spec,
        header: Header,
        state: Bytes,
        from: Option<SessionId>,
    ) {
        let Some(node) = self.nodes.get_mut(session) else { return };
        let error = node.disk_full.then(|| "no space left".to_owned());
        if error.is_none() {
            let key = (header.name.clone(), header.run);
            let stored = node.disk.runs.entry(key).or_insert(Stored {
                desired: None,
                spec,
                checkpoints: Vec::new(),
                end: None,
            });
            stored.checkpoints.retain(|(old, _)| {
                (old.position.epoch, &old.writer) != (header.position.epoch, &header.writer)
            });
            stored.checkpoints.push((header.clone(), state));
        }
        let event = Event::Stored { header, from, error };
        self.at(MS / 10, Due::Deliver { to: session.clone(), event });
    }

    // ---- task loops -----------------------------------------------------------------------

    fn start_loop(
        &mut self,
        session: &SessionId,
        spec: Spec,
        lease: Lease,
        from: From,
        lineage: Vec<Ancestor>,
        seq: u64,
    ) {
        if let From::Checkpoint { header, state } = &from {
            let before = header.position.epoch;
            let last = lease.epoch == Epoch(u64::MAX);
            assert!(before < lease.epoch || last, "L3: {lease:?} goes on from {before}");
            let state = state.get(..8);
            assert_eq!(
                state,
                Some(&seq.to_le_bytes()[..]),
                "the state is the one its header names"
            );
            let setup = &self.nodes[session].setup;
            let newest =
                setup.kinds.iter().find(|(kind, _)| *kind == spec.kind.as_str()).unwrap().1;
            let reads = setup.oldest..=newest;
            assert!(reads.contains(&header.state_version), "{session} reads {reads:?}: {header:?}");
        }
        if self.unreadable.contains(&spec.name) {
            *self.refused.entry(spec.name.clone()).or_default() += 1;
            let why = Stuck::Unreadable("it does not fit".to_owned());
            let event = Event::Stuck { name: spec.name, epoch: lease.epoch, sealed: None, why };
            return self.at(MS, Due::Deliver { to: session.clone(), event });
        }
        let started_before = self.stretches.iter().any(|s| {
            s.name == spec.name
                && s.run == spec.run
                && s.epoch == lease.epoch
                && s.session == *session
        });
        assert!(!started_before, "{} {} starts twice on {session}", spec.name, lease.epoch);
        let stretch = self.stretches.len();
        self.stretches.push(Stretch {
            name: spec.name.clone(),
            run: spec.run,
            epoch: lease.epoch,
            session: session.clone(),
            from_seq: seq,
            start: self.now,
            end: None,
            to_seq: seq,
        });
        let name = spec.name.clone();
        let generation = self.order;
        let task = Loop {
            stuck: self.stuck.contains(&name),
            spec,
            lease,
            lineage,
            seq,
            goal: self.goal,
            step: self.steps.get(&name).copied().unwrap_or(self.step),
            stop: None,
            generation,
            stretch,
            resumed_at: seq,
            committed: None,
        };
        if let Some(node) = self.nodes.get_mut(session) {
            let claim = node.gossip[session].claims.get(&name);
            assert!(claim.is_some_and(|c| c.epoch == task.lease.epoch), "L6: {name}");
            let replaced = node.loops.insert(name.clone(), task);
            assert!(replaced.is_none(), "{name} runs twice on {session}");
        }
        let step = self.steps.get(&name).copied().unwrap_or(self.step);
        self.at(step, Due::Step { node: session.clone(), name, generation });
    }

    fn step_done(&mut self, session: &SessionId, name: &Name, generation: u64) {
        let (now, paused) = (self.now, self.is_paused(session));
        let poisoned = self.poison.contains(name);
        let failing = self.failing.contains(&(name.clone(), session.clone()));
        let Some(node) = self.nodes.get_mut(session) else { return };
        let (permit, setup, writes) = (node.permit, &node.setup, &node.writes);
        let Some(task) = node.loops.get_mut(name).filter(|t| t.generation == generation) else {
            return;
        };
        let again = Due::Step { node: session.clone(), name: name.clone(), generation };
        let (step, kind) = (task.step, &task.spec.kind);
        let newest = setup.kinds.iter().find(|(known, _)| *known == kind.as_str()).unwrap().1;
        let wanted = writes.get(kind).filter(|_| setup.downgrades);
        let state_version = wanted.copied().unwrap_or(newest);
        if paused || task.stuck {
            return self.at(step, again);
        }
        if poisoned {
            let session = session.clone();
            return self.crash(&session);
        }
        // A step that began under a permit that has lapsed must not commit; none starts.
        let mut stopping = task.stop.is_some();
        // A slot is taken at the boundary, not while waiting for it: without one, another step.
        if task.stop == Some(Stop::WithSlot) && !node.slots.contains(name) {
            stopping = node.slots.len() < SLOTS;
            if stopping {
                node.slots.insert(name.clone());
            }
        }
        if now > permit && !stopping {
            return self.at(step, again);
        }
        if !stopping || task.seq == task.resumed_at {
            task.seq += 1;
            *self.steps_done.entry(name.clone()).or_default() += 1;
        }
        let mut state = task.seq.to_le_bytes().to_vec();
        state.resize(self.state_len, 0);
        let state = Bytes::from(state);
        let header = Header {
            name: name.clone(),
            run: task.spec.run,
            kind: task.spec.kind.clone(),
            position: Position { epoch: task.lease.epoch, seq: task.seq },
            writer: session.clone(),
            lineage: task.lineage.clone(),
            state_version,
            revision: "r1".to_owned(),
            wall_ms: 0,
            len: state.len() as u64,
            hash: Header::hash_of(&state),
            progress: Some(Progress { done: task.seq, total: task.goal, note: String::new() }),
        };
        if task.seq.is_multiple_of(self.commit_every) {
            task.committed = Some((header.clone(), state.clone()));
        }
        let epoch = task.lease.epoch;
        let (done, seq, run) = (task.seq >= task.goal, task.seq, task.spec.run);
        let event = if failing {
            let outcome = Outcome::Failed("the database is away".to_owned());
            Event::Ended { name: name.clone(), epoch, outcome }
        } else if done {
            self.finished.entry(name.clone()).or_default().push((run, seq));
            Event::Ended {
                name: name.clone(),
                epoch,
                outcome: Outcome::Done(Bytes::from_static(b"out")),
            }
        } else if stopping {
            let sealed = Some((header, state));
            Event::Stopped { name: name.clone(), epoch, sealed, dropped: false }
        } else {
            self.at(step, again);
            let forced = self.forced;
            if seq % self.commit_every == 0 {
                self.give(session, Event::Committed { header, state, forced });
            }
            return;
        };
        if let Some(task) = self.nodes.get_mut(session).and_then(|n| n.loops.remove(name)) {
            self.stretches[task.stretch].end = Some(now);
            self.stretches[task.stretch].to_seq = task.seq;
        }
        if self.ends_late > Duration::ZERO {
            let late = self.ends_late;
            return self.at(late, Due::Deliver { to: session.clone(), event });
        }
        self.give(session, event);
    }

    /// The step did not end in its grace: it is dropped, and the last commit stands.
    fn grace_over(&mut self, session: &SessionId, name: &Name, generation: u64) {
        if self.is_paused(session) {
            let again = Due::Grace { node: session.clone(), name: name.clone(), generation };
            return self.at(MS * 50, again);
        }
        let Some(node) = self.nodes.get_mut(session) else { return };
        if node.loops.get(name).is_none_or(|task| task.generation != generation || task.stuck) {
            return;
        }
        let Some(task) = node.loops.remove(name) else { return };
        self.stretches[task.stretch].end = Some(self.now);
        self.stretches[task.stretch].to_seq = task.seq;
        let (name, epoch) = (name.clone(), task.lease.epoch);
        self.give(session, Event::Stopped { name, epoch, sealed: task.committed, dropped: true });
    }

    // ---- the observer ---------------------------------------------------------------------

    /// Sessions that run a name now.
    pub(super) fn running(&self, task: &str) -> Vec<SessionId> {
        let task = name(task);
        self.nodes
            .values()
            .filter(|node| node.alive && node.loops.contains_key(&task))
            .map(|node| node.session.clone())
            .collect()
    }

    /// Pairs of stretches of one name on two sessions that overlap, and by how much.
    pub(super) fn overlaps(&self) -> Vec<(Stretch, Stretch, Duration)> {
        let mut overlaps = Vec::new();
        for (i, a) in self.stretches.iter().enumerate() {
            for b in &self.stretches[i + 1..] {
                if a.name != b.name || a.session == b.session {
                    continue;
                }
                let start = a.start.max(b.start);
                let end = a.end.unwrap_or(self.now).min(b.end.unwrap_or(self.now));
                if end > start {
                    overlaps.push((a.clone(), b.clone(), end.since(start)));
                }
            }
        }
        overlaps
    }

    pub(super) fn assert_no_overlap(&self) {
        let overlaps = self.overlaps();
        assert!(overlaps.is_empty(), "ran twice: {:#?}", overlaps.first());
    }

    /// The claim that one session publishes of a name.
    pub(super) fn claim_of(&self, session: &SessionId, task: &str) -> Option<&Claim> {
        self.nodes[session].gossip[session].claims.get(&name(task))
    }

    /// Who owns a name, as one node sees it.
    pub(super) fn owner(&self, at: &SessionId, task: &str) -> Option<&Claim> {
        self.nodes[at].owners.get(&name(task))
    }

    /// Stretches of a name that began after a point in time.
    pub(super) fn since(&self, task: &str, from: Time) -> Vec<&Stretch> {
        let task = name(task);
        self.stretches.iter().filter(|s| s.name == task && s.start > from).collect()
    }

    /// The one session that runs a name.
    pub(super) fn runner(&self, task: &str) -> SessionId {
        let running = self.running(task);
        assert_eq!(running.len(), 1, "{task} runs on {running:?}");
        running[0].clone()
    }

    pub(super) fn told(&self, at: &SessionId, test: impl Fn(&Notice) -> bool) -> usize {
        self.nodes[at].notices.iter().filter(|(_, notice)| test(notice)).count()
    }

    /// Time between the end of each stretch of a name and the start of the next.
    pub(super) fn gaps(&self, task: &str) -> Vec<Duration> {
        let task = name(task);
        let mut of: Vec<&Stretch> = self.stretches.iter().filter(|s| s.name == task).collect();
        of.sort_by_key(|s| s.start);
        of.windows(2).filter_map(|w| Some(w[1].start.since(w[0].end?))).collect()
    }
}

fn diff(of: &SessionId, old: &Published, new: &Published) -> Vec<Event> {
    let mut events = Vec::new();
    if new.record != old.record
        && let Some(record) = &new.record
    {
        events.push(Event::Record { of: of.clone(), record: record.clone() });
    }
    if new.load != old.load {
        events.push(Event::Load { of: of.clone(), load: new.load });
    }
    let specs: Vec<Spec> = new
        .specs
        .iter()
        .filter(|(name, spec)| old.specs.get(*name) != Some(*spec))
        .map(|(_, spec)| spec.clone())
        .collect();
    if !specs.is_empty() {
        events.push(Event::Specs { specs });
    }
    let desires: Vec<Desired> = new
        .desires
        .iter()
        .filter(|(name, desired)| old.desires.get(*name) != Some(*desired))
        .map(|(_, desired)| desired.clone())
        .collect();
    if !desires.is_empty() {
        events.push(Event::Desires { desires });
    }
    let mut changes: Vec<(Name, Option<Claim>)> = new
        .claims
        .iter()
        .filter(|(name, claim)| old.claims.get(*name) != Some(*claim))
        .map(|(name, claim)| (name.clone(), Some(claim.clone())))
        .collect();
    changes.extend(
        old.claims.keys().filter(|n| !new.claims.contains_key(*n)).map(|n| (n.clone(), None)),
    );
    if !changes.is_empty() {
        events.push(Event::Claims { of: of.clone(), changes });
    }
    events
}

/// The task a message is about.
fn subject(message: &Message) -> Option<&Name> {
    match message {
        Message::Relay { message, .. } => subject(message),
        Message::Offer { claim, .. } | Message::Checkpoint { claim, .. } => Some(&claim.name),
        Message::OfferReply { name, .. }
        | Message::CheckpointReply { name, .. }
        | Message::Transferred { name, .. }
        | Message::Taken { name, .. } => Some(name),
        _ => None,
    }
}
