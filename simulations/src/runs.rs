//! Many runs at once, and how far they are.

use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use crate::report::Report;
use crate::scenario::Scenario;
use crate::world::{self, Outcome};

/// Runs a scenario under every seed, on all cores unless `jobs` says otherwise. A terminal shows how far it is, and
/// how long the rest may take.
pub(crate) fn report(
    scenario: &Scenario,
    seeds: RangeInclusive<u64>,
    jobs: Option<usize>,
) -> Report {
    let begun = Instant::now();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let bar = bar(scenario, &seeds);
    let next = AtomicU64::new(*seeds.start());
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs.unwrap_or(cores).max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        return;
                    }
                    let outcome = world::run(scenario, seed);
                    if !outcome.verdict.violations.is_empty() {
                        bar.println(format!("{}: seed {seed} FAILED", scenario.name));
                    }
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|outcome: &Outcome| outcome.seed);
    Report::new(scenario, &outcomes, begun.elapsed())
}

fn bar(scenario: &Scenario, seeds: &RangeInclusive<u64>) -> ProgressBar {
    let bar = ProgressBar::new(seeds.end() - seeds.start() + 1);
    let style = "{prefix:<12} {wide_bar} {pos}/{len} seeds, {elapsed} so far, {eta} to go";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_prefix(scenario.name.clone());
    bar.tick();
    bar
}
