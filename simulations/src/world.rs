//! One run: a scenario under a seed, from the first start to the verdict.

mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use handover::TaskState;
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use turmoil::Sim;

use self::faults::Act;
use crate::entropy;
use crate::fabric::{Fabric, Nanos, Traffic, nanos};
use crate::host::{Order, Site};
use crate::observer::{Observer, Record};
use crate::scenario::{FaultKind, Scenario};
use crate::task::Errand;
use crate::trace::Fingerprint;
use crate::verdict::{self, Reach, Verdict};

/// How often the console looks after tasks that nobody has taken on, and whether all have ended.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Debug builds nest futures deeply.
const STACK: usize = 8 << 20;

/// What came of a run.
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) fingerprint: u64,
    /// How many events the fingerprint is over.
    pub(crate) events: u64,
    pub(crate) simulated: Duration,
    pub(crate) wall: Duration,
    pub(crate) faults: BTreeMap<FaultKind, u64>,
    pub(crate) node_events: BTreeMap<String, u64>,
    pub(crate) refusals: BTreeMap<String, u32>,
    pub(crate) traffic: Traffic,
    pub(crate) steps: u64,
    pub(crate) repeated: u64,
    pub(crate) verdict: Verdict,
}

/// Runs a scenario on a thread of its own: what a thread has drawn at random once it keeps.
pub(crate) fn run(scenario: &Scenario, seed: u64) -> Outcome {
    let begun = Instant::now();
    let ended = thread::scope(|scope| {
        let work = || {
            entropy::seed_this_thread(seed);
            World::new(scenario, seed).run()
        };
        thread::Builder::new()
            .name(format!("{}-{seed}", scenario.name))
            .stack_size(STACK)
            .spawn_scoped(scope, move || panic::catch_unwind(AssertUnwindSafe(work)))
            .map(|thread| thread.join())
    });
    let mut outcome = match ended {
        Ok(Ok(Ok(outcome))) => outcome,
        Ok(Ok(Err(panic)) | Err(panic)) => broken(seed, &format!("panic: {}", said(&*panic))),
        Err(error) => broken(seed, &format!("no thread: {error}")),
    };
    outcome.wall = begun.elapsed();
    outcome
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".into())
}

fn broken(seed: u64, why: &str) -> Outcome {
    Outcome {
        seed,
        fingerprint: 0,
        events: 0,
        simulated: Duration::ZERO,
        wall: Duration::ZERO,
        faults: BTreeMap::new(),
        node_events: BTreeMap::new(),
        refusals: BTreeMap::new(),
        traffic: Traffic::default(),
        steps: 0,
        repeated: 0,
        verdict: Verdict { violations: vec![why.to_owned()], ..Verdict::default() },
    }
}

struct World<'a> {
    scenario: &'a Scenario,
    seed: u64,
    /// Draws what the scenario leaves open.
    rng: SmallRng,
    sim: Sim<'a>,
    site: Arc<Site>,
    fabric: Arc<Fabric>,
    observer: Arc<Observer>,
    fingerprint: Arc<Fingerprint>,
    addresses: BTreeMap<String, Ipv4Addr>,
    /// Hosts that turmoil knows, and whether a process runs there.
    hosts: BTreeMap<String, bool>,
    /// To be done, by time and then in order.
    agenda: BTreeMap<(Nanos, u64), Act>,
    errands: BTreeMap<String, (Nanos, Errand)>,
    /// Directions in which nothing passes, and how many faults see to that.
    cuts: BTreeMap<(String, String), u32>,
    reach: Reach,
    /// The bounds count on the weather.
    is_fair: bool,
    faults: BTreeMap<FaultKind, u64>,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let fingerprint = Arc::new(Fingerprint::default());
        let fabric =
            Arc::new(Fabric::new(rng.random(), scenario.network.clone(), fingerprint.clone()));
        let observer = Arc::new(Observer::new(fabric.clone(), fingerprint.clone()));
        let addresses: BTreeMap<String, Ipv4Addr> = scenario
            .names()
            .into_iter()
            .zip(1u32..)
            .map(|(name, number)| (name, Ipv4Addr::from_bits(0x0a00_0000 + number)))
            .collect();
        let seeds = (1..=scenario.nodes)
            .filter_map(|number| addresses.get(&format!("n{number}")).copied())
            .collect();
        let site = Arc::new(Site::new(
            fabric.clone(),
            observer.clone(),
            scenario.timing.timing(),
            seeds,
            scenario.planted,
        ));
        let sim = turmoil::Builder::new()
            .rng_seed(rng.random())
            .tick_duration(Duration::from_millis(scenario.network.tick_ms))
            .simulation_duration(Duration::MAX)
            .build();
        Self {
            scenario,
            seed,
            rng,
            sim,
            site,
            fabric,
            observer,
            fingerprint,
            addresses,
            hosts: BTreeMap::new(),
            agenda: BTreeMap::new(),
            errands: BTreeMap::new(),
            cuts: BTreeMap::new(),
            reach: Reach::default(),
            is_fair: scenario.network.is_fair(&scenario.timing.timing()),
            faults: BTreeMap::new(),
        }
    }

    fn run(mut self) -> Outcome {
        self.plan();
        for number in 1..=self.scenario.nodes {
            self.start(&format!("n{number}"));
        }
        let unsafe_until = self.scenario.unsafe_phase();
        while self.sim.elapsed() < unsafe_until && self.step() {}
        self.mend();
        let until = unsafe_until + self.scenario.finish_phase();
        while self.sim.elapsed() < until && !self.all_told() && self.step() {}
        self.conclude()
    }

    /// Draws the tasks and the times of the faults.
    fn plan(&mut self) {
        let tasks = &self.scenario.tasks;
        for number in 0..tasks.count {
            let [least, most] = tasks.steps;
            let errand =
                Errand { steps: self.rng.random_range(least..=most), step_ms: tasks.step_ms };
            let spread = tasks.arrive_s * 1_000_000_000;
            let at = spread * u64::from(number) / u64::from(tasks.count.max(1));
            self.errands.insert(format!("task-{number:03}"), (at, errand));
        }
        for fault in self.scenario.faults.clone() {
            self.schedule(fault.at, Act::Fault(fault.clone()), fault.jitter);
        }
    }

    fn schedule(&mut self, at: f64, act: Act, jitter: f64) {
        let late = if jitter > 0.0 { self.rng.random_range(0.0..jitter) } else { 0.0 };
        let mut key = (nanos(Duration::from_secs_f64(at + late)), 0);
        while self.agenda.contains_key(&key) {
            key.1 += 1;
        }
        self.agenda.insert(key, act);
    }

    fn now(&self) -> Nanos {
        nanos(self.sim.elapsed())
    }

    /// Advances all hosts by a tick. False if the world cannot go on.
    fn step(&mut self) -> bool {
        let now = self.now();
        self.fabric.set_now(now);
        while let Some(next) = self.agenda.first_entry()
            && next.key().0 <= now
        {
            let act = next.remove();
            self.act(act);
        }
        let exited = std::mem::take(&mut self.site.told().exited);
        for life in exited {
            self.kill(&life.host);
        }
        if self.every(LOOK_EVERY) {
            self.hand_out();
        }
        if let Err(error) = self.sim.step() {
            self.site.told().failures.push(error.to_string());
            return false;
        }
        true
    }

    /// Whether such a period has just begun.
    fn every(&self, period: Duration) -> bool {
        let tick = nanos(Duration::from_millis(self.scenario.network.tick_ms));
        self.now() % nanos(period) < tick
    }

    /// Asks for every task that is due and has not been taken on.
    fn hand_out(&mut self) {
        let now = self.now();
        let taken_on = self.site.told().taken_on.clone();
        let waiting: Vec<(String, Errand)> = self
            .errands
            .iter()
            .filter(|(task, (at, _))| *at <= now && !taken_on.contains(*task))
            .map(|(task, (_, errand))| (task.clone(), errand.clone()))
            .collect();
        for (task, errand) in waiting {
            if let Some(host) = self.running().into_iter().choose(&mut self.rng) {
                self.site.order(&host, Order::Run { task, errand });
            }
        }
    }

    /// Whether all running nodes know that all tasks have finished, and what they brought.
    fn all_told(&mut self) -> bool {
        if !self.every(LOOK_EVERY) {
            return false;
        }
        let running = self.running();
        let mut told = self.site.told();
        let all_finished = running.iter().all(|host| {
            self.site.life(host).and_then(|life| told.known.get(&life)).is_some_and(|known| {
                self.errands.keys().all(|task| known.get(task) == Some(&TaskState::Finished))
            })
        });
        if !all_finished {
            return false;
        }
        let missing: Vec<String> = self
            .errands
            .keys()
            .filter(|task| !matches!(told.outputs.get(*task), Some(Ok(_))))
            .cloned()
            .collect();
        told.outputs.retain(|_, output| output.is_ok());
        drop(told);
        for task in &missing {
            if let Some(host) = running.iter().choose(&mut self.rng) {
                self.site.order(host, Order::Output { task: task.clone() });
            }
        }
        missing.is_empty()
    }

    fn conclude(self) -> Outcome {
        let simulated = self.sim.elapsed();
        let record: Record = self.observer.take();
        let (fingerprint, events) = self.fingerprint.value();
        let running: BTreeSet<String> = self.running().into_iter().collect();
        let mut told = self.site.told();
        let verdict = verdict::judge(
            &record,
            &verdict::Circumstances {
                reach: &self.reach,
                timing: &self.scenario.timing.timing(),
                pace: self.scenario.pace(),
                nobody_missed: self.scenario.nobody_missed,
                losses: [FaultKind::Crash, FaultKind::PowerOff]
                    .iter()
                    .any(|kind| self.faults.contains_key(kind)),
                errands: &self.errands,
                told: &told,
                running: &running,
            },
        );
        Outcome {
            seed: self.seed,
            fingerprint,
            events,
            simulated,
            wall: Duration::ZERO,
            faults: self.faults.clone(),
            node_events: std::mem::take(&mut told.events),
            refusals: std::mem::take(&mut told.refusals),
            traffic: self.fabric.traffic(),
            steps: record.completed(),
            repeated: record.repeated(),
            verdict,
        }
    }
}
