//! Settling (Rule 13), exhaustively: three real machines, every order in which claims begin and
//! messages arrive, for every kind of membership view, without faults. Never two copies, never zero.
//!
//! Nothing is gossiped and no time passes: settling has to be enough by itself.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use super::world::name;
use crate::core::claim::{Mode, Spec};
use crate::core::ids::{Kind, NodeId, RunId, SessionId};
use crate::core::io::{Action, Cause, Event, Now};
use crate::core::machine::task::Purpose;
use crate::core::machine::{Machine, MachineConfig, OnLostState};
use crate::core::message::{Answer, Message, Verdict};
use crate::core::record::{NodeRecord, NodeState, Versions};
use crate::core::time::Time;
use crate::core::timing::Timing;

const NODES: usize = 3;
/// More than this in one case means that messages go on without end.
const MAX_STATES: usize = 20_000;

/// What one node knows of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knows {
    /// Live, and linked.
    Live,
    /// Linked; nothing else was heard yet, so it is not asked.
    Linked,
    /// Not at all: only a third node can pass a message on.
    Nothing,
}

type Views = [[Knows; NODES]; NODES];

/// Whether settling is what decides, or everybody says OK (the control).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settling {
    On,
    Off,
}

/// One step and those before it.
struct Step {
    what: String,
    before: Option<Rc<Step>>,
}

#[derive(Clone)]
struct State {
    machines: Vec<Machine>,
    to_begin: BTreeSet<usize>,
    flying: Vec<(usize, usize, Message, u128)>,
    started: BTreeSet<usize>,
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

fn now() -> Now {
    Now { at: Time::from_micros(2_000_000), unix: 1_700_000_000 }
}

fn record() -> NodeRecord {
    let versions = Versions { oldest: 1, newest: 1 };
    NodeRecord {
        address: "127.0.0.1:1".parse().unwrap(),
        revision: "r1".to_owned(),
        since_ms: 1,
        rollout: None,
        kinds: BTreeMap::from([(Kind::new("count").unwrap(), versions)]),
        max_running: 100,
        succeeds: None,
    }
}

/// A machine that is up and knows what its row of the views says.
fn machine(me: usize, knows: &[Knows; NODES]) -> Machine {
    let start = Now { at: Time::from_micros(1_000_000), unix: 1_700_000_000 };
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
        if *knows == Knows::Live {
            machine.handle(start, Event::Record { of: of.clone(), record: record() });
            let heard = Event::Heard {
                from: of.clone(),
                state: NodeState::Up,
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
    machine.handle(Now { at: start.at + Duration::from_millis(600), ..start }, Event::Tick);
    machine.handle(now(), Event::Tick);
    assert_eq!(machine.state(), NodeState::Up, "n{me} {knows:?}");
    while machine.poll().is_some() {}
    machine
}

fn spec(uuid: u128) -> Spec {
    Spec {
        name: name("a"),
        run: RunId { number: 1, uuid: Uuid::from_u128(uuid) },
        kind: Kind::new("count").unwrap(),
        args: Bytes::new(),
    }
}

impl State {
    fn begin(&mut self, at: usize, same_run: bool) {
        self.to_begin.remove(&at);
        self.note(format!("n{at} begins"));
        let machine = &mut self.machines[at];
        // Who has heard of a claim meanwhile joins it.
        if machine.view.owner(&name("a")).is_none() {
            let spec = spec(if same_run { 1 } else { at as u128 + 1 });
            machine.claim(spec, Cause::Start, Purpose::Run, Vec::new());
            machine.finish();
        }
        self.collect(at);
    }

    fn deliver(&mut self, which: usize, settling: Settling) {
        let (from, to, message, _) = self.flying.remove(which);
        self.note(format!("n{from} -> n{to}: {message:?}"));
        if let (Settling::Off, Message::Ask { asks }) = (settling, &message) {
            let ok = |claim: &crate::core::claim::Claim| Answer {
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

    fn collect(&mut self, at: usize) {
        while let Some(action) = self.machines[at].poll() {
            match action {
                Action::Send { to, message } => self.fly(at, index(&to), message),
                Action::Start { .. } => {
                    self.started.insert(at);
                }
                _ => {}
            }
        }
        let machine = &self.machines[at];
        let all = format!("{:?}{:?}{:?}", machine.tasks, machine.view, machine.askers);
        self.digests[at] = xxh3_128(all.as_bytes());
    }

    fn fly(&mut self, from: usize, to: usize, message: Message) {
        let digest = xxh3_128(format!("{from} {to} {message:?}").as_bytes());
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
        let parts = (&self.digests, flying, &self.to_begin, &self.started);
        xxh3_128(format!("{parts:?}").as_bytes())
    }
}

#[derive(Debug, Default)]
struct Found {
    states: usize,
    ends: usize,
    most: usize,
    fewest: Option<usize>,
    /// How the first state with two copies came about.
    story: String,
}

fn explore(views: &Views, claimants: &[usize], same_run: bool, settling: Settling) -> Found {
    let initial = State {
        machines: (0..NODES).map(|i| machine(i, &views[i])).collect(),
        to_begin: claimants.iter().copied().collect(),
        flying: Vec::new(),
        started: BTreeSet::new(),
        digests: vec![0; NODES],
        path: None,
    };
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
        if state.to_begin.is_empty() && state.flying.is_empty() {
            found.ends += 1;
            let fewest = found.fewest.unwrap_or(NODES).min(state.started.len());
            found.fewest = Some(fewest);
        }
        let mut visit = |next: State| {
            if seen.insert(next.digest()) {
                open.push(next);
            }
        };
        for at in &state.to_begin {
            let mut next = state.clone();
            next.begin(*at, same_run);
            visit(next);
        }
        for which in 0..state.flying.len() {
            let mut next = state.clone();
            next.deliver(which, settling);
            visit(next);
        }
    }
    found
}

fn views() -> Vec<(&'static str, Views)> {
    use Knows::{Linked, Live, Nothing};
    let equal = [[Live; NODES]; NODES];
    let (mut one_sided, mut bridged) = (equal, equal);
    one_sided[2][0] = Linked;
    bridged[0][2] = Nothing;
    bridged[2][0] = Nothing;
    let mut ring = equal;
    for i in 0..NODES {
        ring[i][(i + 1) % NODES] = Linked;
    }
    vec![("equal", equal), ("one-sided", one_sided), ("bridged", bridged), ("ring", ring)]
}

fn cases() -> Vec<(&'static str, Views, Vec<usize>, bool)> {
    let claimants = [vec![0, 1], vec![0, 2], vec![1, 2], vec![0, 1, 2]];
    let mut cases = Vec::new();
    for (what, views) in views() {
        for claimants in &claimants {
            for same_run in [true, false] {
                cases.push((what, views, claimants.clone(), same_run));
            }
        }
    }
    cases
}

#[test]
fn settling_lets_exactly_one_start_in_every_interleaving() {
    let mut states = 0;
    for (what, views, claimants, same_run) in cases() {
        let found = explore(&views, &claimants, same_run, Settling::On);
        println!("{what} {claimants:?} same run {same_run}: {found:?}");
        assert!(found.ends > 0 && found.states > 10);
        assert!(found.most <= 1, "two copies: {what} {claimants:?} {same_run}\n{}", found.story);
        assert_eq!(found.fewest, Some(1), "none: {what} {claimants:?} {same_run} {found:?}");
        states += found.states;
    }
    println!("{states} states in all");
}

/// The control: the explorer does find two copies where nothing prevents them.
#[test]
fn without_settling_every_case_has_two_copies() {
    for (what, views, claimants, same_run) in cases() {
        if claimants.len() == 2 {
            let found = explore(&views, &claimants, same_run, Settling::Off);
            assert!(found.most >= 2, "{what} {claimants:?} {same_run} {found:?}");
        }
    }
}
