//! Three or four real machines without faults, exhaustively: every order in which nodes begin to start a
//! name, become up, and get each other's messages and gossip.
//!
//! No time passes: what is asked and answered has to be enough by itself.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::{Debug, Write};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use super::world::name;
use crate::core::claim::{Claim, Mode, Spec};
use crate::core::ids::{Kind, NodeId, RunId, SessionId};
use crate::core::io::{Action, CallError, Cause, Event, Now};
use crate::core::machine::task::Purpose;
use crate::core::machine::{Machine, MachineConfig, OnLostState};
use crate::core::message::{Answer, Message, Verdict};
use crate::core::record::{NodeRecord, NodeState, Versions};
use crate::core::time::Time;
use crate::core::timing::Timing;

/// More than this in one case means that messages go on without end.
const MAX_STATES: usize = 1_000_000;

/// What one node knows of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Knows {
    /// Live, and linked.
    Live,
    /// Linked and heard, though not that it is up: it has only just become so.
    Joining,
    /// Linked; nothing else was heard yet.
    Linked,
    /// Not at all: only a third node can pass a message on.
    Nothing,
}

/// A row for each node: what it knows of each.
pub(super) type Views = Vec<Vec<Knows>>;

/// The nodes that messages or relays can reach from each other, lowest first, by the lowest of each.
pub(super) fn parts(views: &Views) -> Vec<usize> {
    let mut parts: Vec<usize> = (0..views.len()).collect();
    for (row, knows) in views.iter().enumerate() {
        for other in (0..views.len()).filter(|other| knows[*other] != Knows::Nothing) {
            let (keep, drop) = (parts[row].min(parts[other]), parts[row].max(parts[other]));
            parts.iter_mut().filter(|part| **part == drop).for_each(|part| *part = keep);
        }
    }
    parts
}

/// How a node begins to start the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// It claims it, for the run that all others claim it for, too.
    ClaimSame,
    /// It claims it, for a run of its own.
    ClaimOwn,
    /// `run` is called.
    Run,
}

/// When a node learns what another one publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gossip {
    /// Never.
    Never,
    /// Once nothing else happens any more.
    Last,
    /// At any time.
    Whenever,
}

/// What is explored.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub what: &'static str,
    pub views: Views,
    /// Who begins.
    pub claimants: Vec<usize>,
    pub begin: Begin,
    /// Who becomes up meanwhile; a claimant that does begins after that.
    pub rising: Vec<usize>,
    pub gossip: Gossip,
    /// Whether settling is what decides, or everybody says OK (the control).
    pub settling: bool,
}

/// One step and those before it.
struct Step {
    what: String,
    before: Option<Rc<Step>>,
}

#[derive(Clone)]
struct State {
    machines: Vec<Machine>,
    to_rise: BTreeSet<usize>,
    to_begin: BTreeSet<usize>,
    flying: Vec<(usize, usize, Message, u128)>,
    /// What each node publishes of the name, and which version of it each other has read.
    published: Vec<(u64, Option<Claim>)>,
    read: Vec<Vec<u64>>,
    started: BTreeSet<(usize, RunId)>,
    replies: BTreeMap<usize, Result<RunId, CallError>>,
    /// Of each machine; recomputed when it has changed.
    digests: Vec<u128>,
    /// How it came to this.
    path: Option<Rc<Step>>,
}

fn session(i: usize) -> SessionId {
    SessionId::new(NodeId::new(format!("n{i}")).unwrap(), Uuid::from_u128(i as u128 + 1))
}

fn index(of: &SessionId) -> usize {
    usize::try_from(of.nonce.as_u128() - 1).unwrap()
}

fn begun() -> Now {
    Now { at: Time::from_micros(1_000_000), unix: 1_700_000_000 }
}

fn now() -> Now {
    Now { at: Time::from_micros(2_000_000), unix: 1_700_000_000 }
}

fn record() -> NodeRecord {
    let versions = Versions { oldest: 1, newest: 1 };
    NodeRecord {
        address: "127.0.0.1:1".parse().unwrap(),
        revision: "r1".to_owned(),
        since_ms: 1,
        kinds: BTreeMap::from([(Kind::new("count").unwrap(), versions)]),
        max_running: 100,
        succeeds: None,
        rollout: None,
    }
}

/// A machine that is joining and knows what its row of the views says.
fn machine(me: usize, knows: &[Knows]) -> Machine {
    let start = begun();
    let config = MachineConfig {
        me: session(me),
        record: record(),
        timing: Timing::default(),
        mode: Mode::Available,
        replicas: 1,
        finish_here: BTreeSet::new(),
        seeds: true,
        members: Vec::new(),
        boot: Vec::new(),
        durable: false,
        known_dead: true,
        kind_limits: BTreeMap::new(),
        max_names: 100,
        on_lost_state: OnLostState::Park,
    };
    let mut machine = Machine::new(start, config);
    for (i, knows) in knows.iter().enumerate().filter(|(i, _)| *i != me) {
        let of = session(i);
        let state = match knows {
            Knows::Live => Some(NodeState::Up),
            Knows::Joining => Some(NodeState::Joining),
            Knows::Linked | Knows::Nothing => None,
        };
        if let Some(state) = state {
            machine.handle(start, Event::Record { of: of.clone(), record: record() });
            let heard = Event::Heard {
                from: of.clone(),
                state,
                version: 1,
                watermark: 0,
                released: Vec::new(),
                echoed: Some(start.at),
            };
            machine.handle(start, heard);
        }
        if *knows != Knows::Nothing {
            machine.handle(start, Event::LinkUp { with: of.clone() });
            machine.handle(start, Event::CaughtUp { of });
        }
    }
    while machine.poll().is_some() {}
    machine
}

fn rise(machine: &mut Machine) {
    machine.handle(Now { at: begun().at + Duration::from_millis(600), ..begun() }, Event::Tick);
    machine.handle(now(), Event::Tick);
    assert_eq!(machine.state(), NodeState::Up);
}

fn spec(uuid: u128, number: u64) -> Spec {
    Spec {
        name: name("a"),
        run: RunId { number, uuid: Uuid::from_u128(uuid) },
        kind: Kind::new("count").unwrap(),
        args: Bytes::new(),
    }
}

/// A hash of everything that can be seen of a value.
fn digest(of: &impl Debug) -> u128 {
    struct Hashed(Xxh3);
    impl Write for Hashed {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.update(text.as_bytes());
            Ok(())
        }
    }
    let mut hashed = Hashed(Xxh3::new());
    write!(hashed, "{of:?}").unwrap();
    hashed.0.digest128()
}

impl State {
    fn new(case: &Case) -> Self {
        let nodes = case.views.len();
        let machines = (0..nodes).map(|i| {
            let mut machine = machine(i, &case.views[i]);
            if !case.rising.contains(&i) {
                rise(&mut machine);
                // That it is up reaches nobody: whoever is to know it does.
                while machine.poll().is_some() {}
            }
            machine
        });
        Self {
            machines: machines.collect(),
            to_rise: case.rising.iter().copied().collect(),
            to_begin: case.claimants.iter().copied().collect(),
            flying: Vec::new(),
            published: vec![(0, None); nodes],
            read: vec![vec![0; nodes]; nodes],
            started: BTreeSet::new(),
            replies: BTreeMap::new(),
            digests: vec![0; nodes],
            path: None,
        }
    }

    fn rise(&mut self, at: usize) {
        self.to_rise.remove(&at);
        self.note(format!("n{at} is up"));
        rise(&mut self.machines[at]);
        self.collect(at);
    }

    fn begin(&mut self, at: usize, begin: Begin) {
        self.to_begin.remove(&at);
        self.note(format!("n{at} begins"));
        let machine = &mut self.machines[at];
        let own = at as u128 + 1;
        match begin {
            Begin::Run => {
                let spec = spec(own, 0);
                machine.handle(now(), Event::Run { call: own as u64, spec, again: false });
            }
            // Who has heard of a claim meanwhile joins it.
            _ if machine.view.owner(&name("a")).is_some() => {}
            Begin::ClaimSame | Begin::ClaimOwn => {
                let spec = spec(if begin == Begin::ClaimSame { 1 } else { own }, 1);
                machine.claim(spec, Cause::Start, Purpose::Run, Vec::new());
                machine.finish();
            }
        }
        self.collect(at);
    }

    fn deliver(&mut self, which: usize, settling: bool) {
        let (from, to, message, _) = self.flying.remove(which);
        self.note(format!("n{from} -> n{to}: {message:?}"));
        if let (false, Message::Ask { asks }) = (settling, &message) {
            let ok = |claim: &Claim| Answer {
                held: None,
                name: claim.name.clone(),
                epoch: claim.epoch,
                verdict: Verdict::Ok,
                askers: Vec::new(),
                known: Vec::new(),
            };
            let answers = asks.iter().map(|ask| ok(&ask.claim)).collect();
            return self.fly(to, from, Message::Answers { answers });
        }
        self.machines[to].handle(now(), Event::Message { from: session(from), message });
        self.collect(to);
    }

    fn gossip(&mut self, from: usize, to: usize) {
        let (version, claim) = self.published[from].clone();
        self.read[to][from] = version;
        self.note(format!("n{to} reads of n{from}: {claim:?}"));
        let event = Event::Claims { of: session(from), changes: vec![(name("a"), claim)] };
        self.machines[to].handle(now(), event);
        self.collect(to);
    }

    fn unread(&self) -> Vec<(usize, usize)> {
        let nodes = self.machines.len();
        let pairs = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to)));
        pairs
            .filter(|(from, to)| from != to && self.read[*to][*from] < self.published[*from].0)
            .collect()
    }

    fn collect(&mut self, at: usize) {
        while let Some(action) = self.machines[at].poll() {
            match action {
                Action::Send { to, message } => self.fly(at, index(&to), message),
                Action::Start { spec, .. } => {
                    self.started.insert((at, spec.run));
                }
                Action::Publish(claim) => {
                    let published = &mut self.published[at];
                    *published = (published.0 + 1, Some(claim));
                }
                Action::Retract(_) => {
                    let published = &mut self.published[at];
                    *published = (published.0 + 1, None);
                }
                Action::Reply { call, result } => {
                    let twice = self.replies.insert(call as usize - 1, result);
                    assert!(twice.is_none(), "n{at} is answered twice");
                }
                _ => {}
            }
        }
        let machine = &self.machines[at];
        self.digests[at] =
            digest(&(&machine.tasks, &machine.view, &machine.askers, &machine.starts));
    }

    fn fly(&mut self, from: usize, to: usize, message: Message) {
        // Nothing follows from it here: whoever is to know it does.
        if matches!(message, Message::State { .. }) {
            return;
        }
        let digest = digest(&(from, to, &message));
        self.flying.push((from, to, message, digest));
    }

    fn note(&mut self, what: String) {
        self.path = Some(Rc::new(Step { what, before: self.path.take() }));
    }

    fn story(&self) -> String {
        let mut steps = Vec::new();
        let mut step = self.path.as_ref();
        while let Some(this) = step {
            steps.push(this.what.as_str());
            step = this.before.as_ref();
        }
        steps.reverse();
        steps.join("\n")
    }

    fn digest(&self) -> u128 {
        let mut flying: Vec<u128> = self.flying.iter().map(|message| message.3).collect();
        flying.sort_unstable();
        let parts = (
            &self.digests,
            flying,
            (&self.to_rise, &self.to_begin),
            (&self.started, &self.replies),
            self.unread(),
        );
        digest(&parts)
    }

    /// All that can happen next.
    fn next(&self, case: &Case) -> Vec<Self> {
        let mut next = Vec::new();
        let mut step = |happens: &dyn Fn(&mut Self)| {
            let mut state = self.clone();
            happens(&mut state);
            next.push(state);
        };
        for at in &self.to_rise {
            step(&|state| state.rise(*at));
        }
        for at in self.to_begin.difference(&self.to_rise) {
            step(&|state| state.begin(*at, case.begin));
        }
        for which in 0..self.flying.len() {
            step(&|state| state.deliver(which, case.settling));
        }
        let quiet = self.to_rise.is_empty() && self.to_begin.is_empty() && self.flying.is_empty();
        let gossips = match case.gossip {
            Gossip::Never => false,
            Gossip::Last => quiet,
            Gossip::Whenever => true,
        };
        for (from, to) in self.unread().into_iter().filter(|_| gossips) {
            step(&|state| state.gossip(from, to));
        }
        next
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub states: usize,
    pub ends: usize,
    /// The most copies that ever were.
    pub most: usize,
    /// The fewest that there were at an end.
    pub fewest: Option<usize>,
    /// Ends at which a caller was told of another run than the one that started, or of none.
    pub misled: usize,
    /// How the first state with two copies came about, or the first misled caller.
    pub story: String,
}

pub(super) fn explore(case: &Case) -> Found {
    let initial = State::new(case);
    let mut found = Found::default();
    let mut seen = HashSet::from([initial.digest()]);
    let mut open = vec![initial];
    while let Some(state) = open.pop() {
        found.states += 1;
        assert!(found.states < MAX_STATES, "no end: {}", state.story());
        if state.started.len() > 1 && found.most <= 1 {
            found.story = state.story();
        }
        found.most = found.most.max(state.started.len());
        let next = state.next(case);
        if next.is_empty() {
            found.ends += 1;
            let fewest = found.fewest.unwrap_or(usize::MAX).min(state.started.len());
            found.fewest = Some(fewest);
            let told = |i: &usize| state.replies.get(i).and_then(|told| told.as_ref().ok());
            let right =
                |i: &usize| told(i).is_some_and(|r| state.started.iter().all(|s| s.1 == *r));
            if case.begin == Begin::Run && !case.claimants.iter().all(right) {
                found.misled += 1;
                if found.story.is_empty() {
                    found.story = format!("{}\n{:?}", state.story(), state.replies);
                }
            }
        }
        open.extend(next.into_iter().filter(|next| seen.insert(next.digest())));
    }
    found
}
