//! A world for the machine alone: virtual time, a network of directed cuts, task loops that count.
//!
//! Gossip, links, stores and loops are the simplest that keep their contracts, so that a failing
//! test points at a rule. The same seed gives the same run.

mod actions;
mod faults;
mod gossip;
mod links;
mod loops;
mod observer;
mod process;
mod time;
mod users;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::core::branch::Header;
use crate::core::claim::{Claim, Phase};
use crate::core::ids::{Kind, Name, NodeId, RunId, SessionId};
use crate::core::io::{CallError, Event, Notice};
use crate::core::lease::Epoch;
use crate::core::machine::Machine;
use crate::core::message::Message;
use crate::core::reconcile::{Choice, Side};
use crate::core::record::NodeState;
use crate::core::time::Time;
use gossip::{Published, Says};
use loops::Loop;
use time::Due;

pub(super) use faults::{Fate, Fault, Noise, Trip};
pub(super) use observer::Stretch;
pub(super) use process::{Disk, Setup, Stored};

pub(super) const MS: Duration = Duration::from_millis(1);

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub session: SessionId,
    pub machine: Machine,
    pub setup: Setup,
    pub alive: bool,
    pub disk: Disk,
    loops: BTreeMap<Name, Loop>,
    gossip: BTreeMap<SessionId, Rc<Published>>,
    pub header: Says,
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
    /// How many acknowledged its goodbye, of how many that were told.
    pub goodbye: Option<(usize, usize)>,
    /// Checkpoints written from now on fail.
    pub disk_full: bool,
    /// Paused by SIGSTOP until then.
    paused: Option<Time>,
    /// The newest commit of each task that whoever waits for it need wait for no longer.
    pub goes_on: BTreeMap<Name, u64>,
    /// Tasks that hold a transfer slot.
    slots: BTreeSet<Name>,
    /// The highest epoch published of each name (L2).
    epochs: BTreeMap<Name, Epoch>,
    /// Names whose claim or loop has changed since the last check (L6).
    changed: BTreeSet<Name>,
    inbox: VecDeque<Event>,
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
    /// How long it takes to write a checkpoint.
    pub writes_take: Duration,
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
    /// What the code of tasks chooses where copies meet, and how long that takes.
    pub chooses: fn(&Side, &Side) -> Choice,
    pub choosing_takes: Duration,
}

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
            writes_take: MS / 10,
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
            chooses: |_, _| Choice::MoreProgress,
            choosing_takes: MS,
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

    /// A node on which "a" runs, whose last commit is nowhere else, and a peer that can only keep it.
    pub(super) fn with_a_keeper(seed: u64) -> (Self, SessionId, SessionId) {
        let (mut world, mut nodes) = Self::cluster(seed, 1);
        let other = Setup { kinds: vec![("other", 1)], ..Setup::default() };
        let keeper = world.boot("n1", other, Disk::default());
        world.run_for(Duration::from_secs(2));
        world.goal = 100_000;
        world.commit_every = 1_000;
        world.start(&nodes[0], "a");
        world.run_for(Duration::from_secs(2));
        (world, nodes.remove(0), keeper)
    }

    /// A cluster in which "a" has run for two seconds, and will for long: its owner, and the others.
    pub(super) fn owned(seed: u64, n: usize, setup: &Setup) -> (Self, SessionId, Vec<SessionId>) {
        let (mut world, nodes) = Self::cluster_of(seed, n, setup);
        world.goal = 100_000;
        world.start(&nodes[0], "a");
        world.run_for(Duration::from_secs(2));
        let owner = world.runner("a");
        let others = nodes.into_iter().filter(|node| *node != owner).collect();
        (world, owner, others)
    }
}
