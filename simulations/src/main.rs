//! Whole clusters of the shipped node code in a deterministic world. See `README.md`.

#[cfg(not(tokio_unstable))]
compile_error!(
    "simulations replay only with `--cfg tokio_unstable`, which .cargo/config.toml sets: \
     do not override RUSTFLAGS, or add the flag"
);

mod clock;
mod entropy;
mod fabric;
mod host;
mod log;
mod observer;
mod planted;
mod report;
mod scenario;
mod task;
#[cfg(test)]
mod tests;
mod trace;
mod verdict;
mod world;

use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

use crate::scenario::Scenario;
use crate::world::Outcome;

/// Runs whole clusters of handover nodes in a deterministic world.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs scenarios under many seeds; all that come with the program if none is named.
    Run {
        /// Names, or paths of TOML files.
        scenarios: Vec<String>,
        /// From the first to the last, both included.
        #[arg(long, value_name = "A..B", default_value = "1..10", value_parser = parse_seeds)]
        seeds: RangeInclusive<u64>,
        /// How many run at once. Default: one on each core.
        #[arg(long)]
        jobs: Option<usize>,
    },
    /// Lists the scenarios that come with the program.
    List,
    /// Runs one scenario under one seed.
    Replay {
        /// A name, or the path of a TOML file.
        scenario: String,
        #[arg(long)]
        seed: u64,
        /// Prints what happened, with the world's time and the node. `RUST_LOG` filters it.
        #[arg(long)]
        trace: bool,
    },
}

fn parse_seeds(text: &str) -> Result<RangeInclusive<u64>> {
    let (first, last) = text.split_once("..").context("two numbers, as in 1..50")?;
    let (first, last) = (first.parse()?, last.trim_start_matches('=').parse()?);
    ensure!(first <= last, "the first comes first");
    Ok(first..=last)
}

fn main() -> ExitCode {
    start(Arguments::parse(), &mut io::stdout())
}

fn start(arguments: Arguments, out: &mut impl Write) -> ExitCode {
    match obey(arguments.command, out) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all went well.
fn obey(command: Command, out: &mut impl Write) -> Result<bool> {
    match command {
        Command::List => {
            for scenario in scenario::find(&[])? {
                writeln!(out, "{:<12} {}", scenario.name, scenario.about)?;
            }
            Ok(true)
        }
        Command::Run { scenarios, seeds, jobs } => {
            let mut all_well = true;
            for scenario in scenario::find(&scenarios)? {
                let begun = Instant::now();
                let outcomes = run_all(&scenario, seeds.clone(), jobs);
                let (text, well) = report::describe(&scenario, &outcomes, begun.elapsed(), true);
                write!(out, "{text}")?;
                all_well &= well;
            }
            Ok(all_well)
        }
        Command::Replay { scenario, seed, trace } => {
            if trace {
                log::to_stdout();
            }
            let mut well = true;
            for scenario in scenario::find(&[scenario])? {
                let outcome = world::run(&scenario, seed);
                let (fingerprint, events) = (outcome.fingerprint, outcome.events);
                writeln!(out, "fingerprint {fingerprint:016x} of {events} events")?;
                let wall = outcome.wall;
                let (text, good) = report::describe(&scenario, &[outcome], wall, false);
                write!(out, "{text}")?;
                well &= good;
            }
            Ok(well)
        }
    }
}

/// Every seed, on all cores; the outcomes in the order of seeds.
fn run_all(scenario: &Scenario, seeds: RangeInclusive<u64>, jobs: Option<usize>) -> Vec<Outcome> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
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
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}
