//! What came of a scenario's runs: for people to read, and for the next run to be compared with.

mod compare;
mod spread;
mod text;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub(crate) use self::compare::compare;
pub(crate) use self::spread::Spread;
pub(crate) use self::text::describe;
use crate::fabric::Nanos;
use crate::scenario::Scenario;
use crate::verdict::{Invariant, Overlap};
use crate::world::Outcome;

/// Of one scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) scenario: String,
    /// What to say to find it again.
    pub(crate) found_as: String,
    pub(crate) about: String,
    pub(crate) nodes: u32,
    pub(crate) minutes: u32,
    pub(crate) tasks: u32,
    /// The first and the last.
    pub(crate) seeds: [u64; 2],
    pub(crate) runs: u64,
    /// In the world's time, all runs together.
    pub(crate) simulated_s: f64,
    /// How long that took, and how long all cores were at it.
    pub(crate) wall_s: f64,
    pub(crate) busy_s: f64,
    pub(crate) faults: BTreeMap<String, u64>,
    /// What nodes said happened.
    pub(crate) events: BTreeMap<String, u64>,
    /// Why `run` was refused.
    pub(crate) refusals: BTreeMap<String, u64>,
    /// Completed, and of those how many had been completed before.
    pub(crate) steps: u64,
    pub(crate) repeated: u64,
    pub(crate) datagrams: u64,
    pub(crate) datagrams_lost: u64,
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
    /// How long two copies ran at once, and may have.
    pub(crate) overlaps: Spread,
    pub(crate) bounds: Spread,
    /// The largest part of its bound that an overlap took.
    pub(crate) closest: f64,
    /// How long two copies went on after a heal, and may.
    pub(crate) after_heal: Spread,
    pub(crate) after_heal_bound_ms: f64,
    /// How long a task that had started and not ended ran nowhere.
    pub(crate) gaps: Spread,
    /// How often each invariant that the faults can break had something to hold of.
    pub(crate) checks: BTreeMap<Invariant, u64>,
    pub(crate) failures: Vec<Failure>,
}

/// A seed under which something was violated.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) seed: u64,
    pub(crate) violations: Vec<String>,
    /// The command that shows it again.
    pub(crate) replay: String,
}

impl Report {
    pub(crate) fn new(scenario: &Scenario, outcomes: &[Outcome], wall: Duration) -> Self {
        let seeds = outcomes.iter().map(|run| run.seed);
        let total = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
        let seconds =
            |of: fn(&Outcome) -> Duration| outcomes.iter().map(of).sum::<Duration>().as_secs_f64();
        let spread =
            |of: fn(&Outcome) -> &Vec<Nanos>| Spread::of(outcomes.iter().flat_map(of).copied());
        let overlaps = outcomes.iter().flat_map(|run| &run.verdict.overlaps);
        let part = |overlap: &Overlap| Some(overlap.lasted as f64 / overlap.bound? as f64);
        let after_heal = scenario.timing.timing().overlap_after_heal(&scenario.pace());
        let applies = Invariant::ALL.into_iter().filter(|what| what.applies(scenario));
        let checks = applies.map(|what| {
            let times = outcomes.iter().filter_map(|run| run.verdict.checks.get(&what));
            (what, times.sum())
        });
        let failed = outcomes.iter().filter(|run| !run.verdict.violations.is_empty());
        Self {
            scenario: scenario.name.clone(),
            found_as: scenario.found_as.clone(),
            about: scenario.about.clone(),
            nodes: scenario.nodes,
            minutes: scenario.minutes,
            tasks: scenario.tasks.count,
            seeds: [seeds.clone().min().unwrap_or_default(), seeds.max().unwrap_or_default()],
            runs: outcomes.len() as u64,
            simulated_s: seconds(|run| run.simulated),
            wall_s: wall.as_secs_f64(),
            busy_s: seconds(|run| run.wall),
            faults: sum(outcomes, |run| {
                run.faults.iter().map(|(kind, times)| (kind.label().to_owned(), *times)).collect()
            }),
            events: sum(outcomes, |run| run.node_events.clone()),
            refusals: sum(outcomes, |run| {
                run.refusals.iter().map(|(why, times)| (why.clone(), u64::from(*times))).collect()
            }),
            steps: total(|run| run.steps),
            repeated: total(|run| run.repeated),
            datagrams: total(|run| run.traffic.datagrams),
            datagrams_lost: total(|run| run.traffic.datagrams_lost),
            segments: total(|run| run.traffic.segments),
            bytes: total(|run| run.traffic.bytes),
            overlaps: Spread::of(overlaps.clone().map(|overlap| overlap.lasted)),
            bounds: Spread::of(overlaps.clone().filter_map(|overlap| overlap.bound)),
            closest: overlaps.filter_map(part).fold(0.0, f64::max),
            after_heal: spread(|run| &run.verdict.after_heal),
            after_heal_bound_ms: after_heal.as_secs_f64() * 1e3,
            gaps: spread(|run| &run.verdict.gaps),
            checks: checks.collect(),
            failures: failed
                .map(|run| Failure {
                    seed: run.seed,
                    violations: run.verdict.violations.clone(),
                    replay: scenario.replay(run.seed),
                })
                .collect(),
        }
    }

    /// Invariants that the scenario's faults can break, and that were never put to the test: they were not shown
    /// to hold.
    pub(crate) fn never_checked(&self) -> impl Iterator<Item = Invariant> {
        self.checks.iter().filter(|(_, times)| **times == 0).map(|(what, _)| *what)
    }

    /// Whether nothing was violated; where `thorough`, and everything was put to the test.
    pub(crate) fn is_well(&self, thorough: bool) -> bool {
        self.failures.is_empty() && !(thorough && self.never_checked().next().is_some())
    }
}

fn sum(
    outcomes: &[Outcome],
    of: impl Fn(&Outcome) -> BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (what, times) in outcomes.iter().flat_map(of) {
        *sums.entry(what).or_default() += times;
    }
    sums
}

/// Writes reports to where [`load`] finds them.
pub(crate) fn save(reports: &[Report], path: &Path) -> Result<()> {
    let written = || -> Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        serde_json::to_writer_pretty(&mut file, reports)?;
        Ok(file.flush()?)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

/// Reads what [`save`] wrote.
pub(crate) fn load(path: &Path) -> Result<Vec<Report>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_reader(BufReader::new(file))
        .with_context(|| format!("{} is no report of `run --json`", path.display()))
}
