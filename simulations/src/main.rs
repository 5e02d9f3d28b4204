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
mod runs;
mod scenario;
mod task;
#[cfg(test)]
mod tests;
mod trace;
mod verdict;
mod world;

use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};

use crate::report::Report;
use crate::scenario::Scenario;

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
        #[command(flatten)]
        size: Size,
        /// How many run at once. Default: one on each core.
        #[arg(long)]
        jobs: Option<usize>,
        /// Writes what came of it there, for programs and for `compare`.
        #[arg(long, value_name = "PATH")]
        json: Option<PathBuf>,
    },
    /// Lists the scenarios that come with the program.
    List,
    /// Runs one scenario under one seed.
    Replay {
        /// A name, or the path of a TOML file.
        scenario: String,
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        size: Size,
        /// Prints what happened, with the world's time and the node. `RUST_LOG` filters it.
        #[arg(long)]
        trace: bool,
    },
    /// Runs what a report is about again, and says what has changed; fails if something takes longer now.
    Compare {
        /// What `run --json` wrote.
        baseline: PathBuf,
        /// How much longer than before is none the worse, as a part.
        #[arg(long, default_value_t = 0.1)]
        tolerance: f64,
        /// How many run at once. Default: one on each core.
        #[arg(long)]
        jobs: Option<usize>,
    },
}

/// What differs from the scenarios' files.
#[derive(Clone, Copy, Debug, Args)]
struct Size {
    /// How many nodes there are at the start.
    #[arg(long)]
    nodes: Option<u32>,
    /// How long faults go on.
    #[arg(long)]
    minutes: Option<u32>,
}

impl Size {
    fn of(self, wanted: &[String]) -> Result<Vec<Scenario>> {
        let found = scenario::find(wanted)?;
        found.into_iter().map(|scenario| scenario.resized(self.nodes, self.minutes)).collect()
    }
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
        Command::Run { scenarios, seeds, size, jobs, json } => {
            let mut reports = Vec::new();
            for scenario in size.of(&scenarios)? {
                let report = runs::report(&scenario, seeds.clone(), jobs);
                write!(out, "{}", report::describe(&report, true))?;
                reports.push(report);
            }
            if let Some(path) = json {
                report::save(&reports, &path)?;
            }
            Ok(reports.iter().all(|report| report.is_well(true)))
        }
        Command::Replay { scenario, seed, size, trace } => {
            if trace {
                log::to_stdout();
            }
            let mut well = true;
            for scenario in size.of(&[scenario])? {
                let outcome = world::run(&scenario, seed);
                let (fingerprint, events) = (outcome.fingerprint, outcome.events);
                writeln!(out, "fingerprint {fingerprint:016x} of {events} events")?;
                let wall = outcome.wall;
                let report = Report::new(&scenario, &[outcome], wall);
                write!(out, "{}", report::describe(&report, false))?;
                well &= report.is_well(false);
            }
            Ok(well)
        }
        Command::Compare { baseline, tolerance, jobs } => {
            let mut well = true;
            for before in report::load(&baseline)? {
                let size = Size { nodes: Some(before.nodes), minutes: Some(before.minutes) };
                for scenario in size.of(std::slice::from_ref(&before.found_as))? {
                    let [first, last] = before.seeds;
                    let now = runs::report(&scenario, first..=last, jobs);
                    let (text, none_longer) = report::compare(&before, &now, tolerance);
                    write!(out, "{text}")?;
                    if !now.is_well(true) {
                        write!(out, "{}", report::describe(&now, true))?;
                    }
                    well &= none_longer && now.is_well(true);
                }
            }
            Ok(well)
        }
    }
}
