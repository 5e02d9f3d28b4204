//! Random interleavings of everything that can happen to a small cluster.
//!
//! After every event: no task runs without its own published claim (L6), no session lowers an epoch
//! it advertised (L2), none starts one (task, epoch) twice; the world itself checks these. At the
//! end, once all is healed and has been quiet: what `run` has returned runs exactly once, and what
//! has ended stays ended. While nothing but processes fails, nothing ever runs twice either.
//!
//! A failing run prints the line that replays it.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::world::{Disk, MS, Noise, Setup, World, name};
use crate::core::claim::{Phase, Want};
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::io::Event;
use crate::core::machine::OnLostState;
use crate::core::record::NodeState;
use crate::core::time::Time;
use crate::core::timing::Timing;

const S: Duration = Duration::from_secs(1);
const TASKS: [&str; 4] = ["a", "b", "c", "d"];

/// What may go wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    /// Processes start, stop and die; the network works.
    Calm,
    /// Links and processes fail in every way.
    Storm,
}

fn timing() -> Timing {
    Timing {
        silence_floor: S * 4,
        alone_after: S * 8,
        solo_after: S * 2,
        boot_wait: S * 4,
        state_wait: S * 4,
        stop_grace: S * 2,
        dead_node_grace: S * 16,
        ..Timing::default()
    }
}

fn setup(lost: OnLostState) -> Setup {
    Setup { timing: timing(), durable: true, on_lost_state: lost, ..Setup::default() }
}

struct Run {
    world: World,
    rng: SmallRng,
    weather: Weather,
    setup: Setup,
    /// Those that have been told to drain, with when the budget ends.
    draining: BTreeMap<SessionId, Time>,
    dead: BTreeSet<SessionId>,
    calls: Vec<(SessionId, u64, Name)>,
    losses: usize,
    born: usize,
    log: Vec<String>,
}

impl Run {
    fn new(seed: u64, weather: Weather, (world, nodes): (World, Vec<SessionId>)) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let lost = match rng.random_range(0..3) {
            0 => OnLostState::Park,
            1 => OnLostState::UseOlder,
            _ => OnLostState::Restart,
        };
        let mut run = Self {
            world,
            weather,
            setup: setup(lost),
            draining: BTreeMap::new(),
            dead: BTreeSet::new(),
            calls: Vec::new(),
            losses: 0,
            born: nodes.len(),
            log: Vec::new(),
            rng,
        };
        run.world.rng = SmallRng::seed_from_u64(seed ^ 0x5eed);
        run.world.max_events = 5_000;
        run.world.step = MS * 200;
        run.world.goal = if run.rng.random_bool(0.3) { 40 } else { 10_000 };
        run
    }

    fn alive(&self) -> Vec<SessionId> {
        self.world.nodes.values().filter(|n| n.alive).map(|n| n.session.clone()).collect()
    }

    /// Alive and not told to go.
    fn staying(&self) -> Vec<SessionId> {
        self.alive().into_iter().filter(|s| !self.draining.contains_key(s)).collect()
    }

    fn any(&mut self, of: &[SessionId]) -> SessionId {
        of[self.rng.random_range(0..of.len())].clone()
    }

    fn task(&mut self) -> &'static str {
        TASKS[self.rng.random_range(0..TASKS.len())]
    }

    fn note(&mut self, what: String) {
        self.log.push(format!("{} {what}", self.world.now));
    }

    fn act(&mut self) {
        let (alive, staying) = (self.alive(), self.staying());
        let task = self.task();
        let at = self.any(&alive);
        let kinds = if self.weather == Weather::Calm { 11 } else { 19 };
        match self.rng.random_range(0..kinds) {
            0..=3 => {
                let again = self.rng.random_bool(0.3);
                self.note(format!("start {task} at {at} again={again}"));
                let call = self.world.start_kind(&at, task, "count", again);
                self.calls.push((at, call, name(task)));
            }
            4 => self.want(&at, task, Want::Pause),
            5 => self.want(&at, task, Want::Run),
            6 if self.rng.random_bool(0.5) => self.want(&at, task, Want::Cancel),
            7 if staying.len() > 2 => {
                let victim = self.any(&alive);
                let left = staying.iter().filter(|s| **s != victim).count();
                if left >= 2 {
                    self.crash(&victim);
                }
            }
            8 if self.born < 8 => {
                let node = format!("n{}", self.born);
                self.boot(&node, Disk::default());
            }
            9 if !self.dead.is_empty() => {
                let dead: Vec<SessionId> = self.dead.iter().cloned().collect();
                let old = self.any(&dead);
                self.dead.remove(&old);
                let disk = self.world.nodes[&old].disk.clone();
                self.boot(old.node.as_str(), disk);
            }
            10 if staying.len() > 2 => {
                let who = self.any(&staying);
                let budget = S * [0, 3, 10][self.rng.random_range(0..3)];
                self.note(format!("drain {who} within {budget:?}"));
                self.draining.insert(who.clone(), self.world.now + budget);
                self.world.drain(&who, budget);
            }
            kind @ 11.. => self.fail(kind, &alive),
            _ => {}
        }
    }

    fn fail(&mut self, kind: i32, alive: &[SessionId]) {
        let (a, b) = (self.any(alive), self.any(alive));
        self.note(format!("fault {kind} {a} {b}"));
        match kind {
            11 if a != b => self.world.cut(&a, &b),
            12 if a != b => self.world.cut_both(&a, &b),
            13 => {
                // A bridge: one node sees both sides.
                let middle = self.rng.random_range(0..alive.len());
                let (left, right) = alive.split_at(middle);
                let right = right.get(1..).unwrap_or_default().to_vec();
                self.world.split(left, &right);
            }
            14 => {
                let at = self.rng.random_range(0..alive.len());
                let (left, right) = alive.split_at(at);
                self.world.split(left, right);
            }
            15 | 16 => self.world.heal(),
            17 => {
                let how_long = MS * self.rng.random_range(100..9_000);
                self.world.pause(&a, how_long);
            }
            _ if self.rng.random_bool(0.3) => {
                let full = self.rng.random_bool(0.5);
                self.losses += usize::from(full);
                for node in self.world.nodes.values_mut().filter(|n| n.session == a) {
                    node.disk_full = full;
                }
            }
            _ => {
                self.world.noise = match self.rng.random_range(0..3) {
                    0 => Noise::default(),
                    1 => Noise { lose: 0.05, twice: 0.05, late: 0.1 },
                    _ => Noise { lose: 0.4, twice: 0.2, late: 0.4 },
                };
            }
        }
    }

    fn want(&mut self, at: &SessionId, task: &str, want: Want) {
        self.note(format!("want {want:?} of {task} at {at}"));
        self.world.want(at, task, want);
    }

    fn crash(&mut self, victim: &SessionId) {
        self.note(format!("crash {victim}"));
        self.losses += 1;
        self.draining.remove(victim);
        self.dead.insert(victim.clone());
        self.world.crash(victim);
    }

    fn boot(&mut self, node: &str, disk: Disk) {
        self.born += 1;
        let session = self.world.boot(node, self.setup.clone(), disk);
        self.note(format!("boot {session}"));
    }

    /// Time passes; who has drained leaves, who has left exits.
    fn pass(&mut self, time: Duration) {
        let end = self.world.now + time;
        while self.world.now < end {
            self.world.run_for((MS * 100).min(end.since(self.world.now)));
            for (who, deadline) in self.draining.clone() {
                let node = &self.world.nodes[&who];
                let late = self.world.now.since(deadline);
                if node.left.is_some() {
                    self.note(format!("exit {who}"));
                    // Who leaves behind a cut may take along what it could give to nobody.
                    let cut = self.alive().iter().any(|other| self.world.is_cut(&who, other));
                    self.losses += usize::from(cut);
                    self.draining.remove(&who);
                    self.world.crash(&who);
                } else if node.drained.is_some_and(|at| self.world.now.since(at) >= MS * 100) {
                    self.world.give(&who, Event::Leave);
                } else if self.weather == Weather::Calm && node.drained.is_none() {
                    assert!(late < S * 4, "{who} is not drained {late:?} after its budget (V5)");
                }
            }
        }
    }

    fn run(&mut self) {
        for _ in 0..self.rng.random_range(6..18) {
            self.act();
            let longest = if self.rng.random_bool(0.5) { 60 } else { 2_500 };
            let wait = MS * self.rng.random_range(0..longest);
            self.pass(wait);
            if self.weather == Weather::Calm {
                self.world.assert_no_overlap();
            }
        }
        self.note("heal".to_owned());
        self.world.noise = Noise::default();
        self.world.heal();
        for node in self.world.nodes.values_mut() {
            node.disk_full = false;
        }
        let limit = self.world.now + S * 60;
        loop {
            self.pass(S * 2);
            match self.unsettled() {
                None => break,
                Some(why) => assert!(self.world.now < limit, "{why}"),
            }
        }
        // And it stays so.
        self.pass(S * 6);
        if self.unsettled().is_some() {
            // One may just be ending.
            self.pass(S);
        }
        if let Some(why) = self.unsettled() {
            panic!("settled and then not: {why}");
        }
        if self.weather == Weather::Calm {
            self.world.assert_no_overlap();
            self.assert_epochs_start_once();
        }
    }

    fn assert_epochs_start_once(&self) {
        let mut seen: BTreeMap<(&Name, RunId, u64), &SessionId> = BTreeMap::new();
        for stretch in &self.world.stretches {
            let key = (&stretch.name, stretch.run, stretch.epoch.0);
            if let Some(before) = seen.insert(key, &stretch.session) {
                panic!("{key:?} started on {before} and {}", stretch.session);
            }
        }
    }

    /// What is not as it must be once the cluster has been left alone.
    fn unsettled(&self) -> Option<String> {
        if !self.draining.is_empty() {
            return Some(format!("still draining: {:?}", self.draining));
        }
        let alive = self.alive();
        for node in &alive {
            let state = self.world.nodes[node].machine.state();
            if state != NodeState::Up {
                return Some(format!("{node} is {state:?}"));
            }
        }
        TASKS.iter().find_map(|task| self.unsettled_task(task, &alive))
    }

    fn unsettled_task(&self, text: &str, alive: &[SessionId]) -> Option<String> {
        let task = name(text);
        let running = self.world.running(text);
        let owners: Vec<_> = alive.iter().map(|n| self.world.nodes[n].owners.get(&task)).collect();
        let what = || format!("{text}: runs on {running:?}, owners {owners:#?}");
        let Some(Some(owner)) = owners.first() else {
            return (!running.is_empty()
                || owners.iter().any(Option::is_some)
                || self.promised(&task, alive))
            .then(|| format!("unknown here or there: {}", what()));
        };
        if owners
            .iter()
            .any(|o| o.is_none_or(|o| o.lease() != owner.lease() || o.phase != owner.phase))
        {
            return Some(format!("no agreement: {}", what()));
        }
        for node in alive {
            if let Some((run, at)) = self.world.nodes[node].ended.get(&task)
                && (owner.run < *run || (owner.run == *run && !owner.phase.is_terminal()))
            {
                return Some(format!("{run} had ended at {at} for {node}: {}", what()));
            }
        }
        let right = match &owner.phase {
            Phase::Running => running == [owner.session.clone()],
            Phase::Finished | Phase::Failed | Phase::Cancelled | Phase::Paused => {
                running.is_empty()
            }
            // Both need losses: three takeovers, or a checkpoint and its replica.
            Phase::Quarantined => running.is_empty() && self.losses >= 3,
            Phase::Parked { until_resumed: true } => running.is_empty() && self.losses >= 1,
            _ => false,
        };
        (!right).then(what)
    }

    /// `run` has returned this name, and somebody who knows what to run has survived.
    fn promised(&self, task: &Name, alive: &[SessionId]) -> bool {
        self.calls.iter().any(|(at, call, of)| {
            of == task && matches!(self.world.nodes[at].replies.get(call), Some(Ok(_)))
        }) && alive.iter().any(|n| self.world.nodes[n].machine.spec(task).is_some())
    }
}

fn explore(test: &str, weather: Weather, seeds: std::ops::Range<u64>) {
    let one = std::env::var("HANDOVER_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let many = std::env::var("HANDOVER_RUNS").ok().and_then(|n| n.parse::<u64>().ok());
    let seeds = match (one, many) {
        (Some(seed), runs) => seed..seed + runs.unwrap_or(1),
        (None, Some(runs)) => seeds.start..seeds.start + runs,
        (None, None) => seeds,
    };
    let mut templates = BTreeMap::new();
    for seed in seeds {
        let n = 3 + usize::try_from(seed % 3).unwrap();
        let template = templates
            .entry(n)
            .or_insert_with(|| World::cluster_of(0, n, &setup(OnLostState::Park)))
            .clone();
        let mut run = Run::new(seed, weather, template);
        run.world.record_messages = std::env::var_os("HANDOVER_TRACE").is_some();
        let outcome = catch_unwind(AssertUnwindSafe(|| run.run()));
        if let Err(panic) = outcome {
            eprintln!("{}", run.log.join("\n"));
            for (at, from, to, message) in &run.world.sent {
                eprintln!("{at} {from} -> {to} {message:?}");
            }
            eprintln!(
                "replay: HANDOVER_SEED={seed} cargo test --lib interleavings::{test} -- --nocapture"
            );
            resume_unwind(panic);
        }
    }
}

#[test]
fn while_only_processes_fail_everything_runs_exactly_once() {
    explore("while_only_processes_fail_everything_runs_exactly_once", Weather::Calm, 0..60);
}

#[test]
fn after_any_storm_everything_runs_exactly_once() {
    explore("after_any_storm_everything_runs_exactly_once", Weather::Storm, 10_000..10_060);
}
