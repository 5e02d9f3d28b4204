//! Real work survives a rolling deploy and a crash of real processes.
//!
//! Three node processes, which are this same program, compress a corpus in 24 tasks. Each process
//! is replaced by one of a new revision: the new one up, then SIGTERM to the old one. Then one is
//! killed with SIGKILL. In the end every output is decoded and compared with its source, and a
//! meter that knows nothing of the library says how long each task stood still, whether one ever
//! ran twice at once, and how much work was done again.
//!
//! ```text
//! cargo run --release --example rolling_deploy -- [--quick] [--tasks N] [--input PATH] [--json PATH]
//! ```

#![allow(unreachable_pub, reason = "a program has no callers")]

mod board;
mod child;
mod compress;
mod control;
mod corpus;
mod deploy;
#[allow(dead_code, reason = "other programs use the rest of it")]
mod meter;
#[allow(dead_code, reason = "other programs use the rest of it")]
mod process;
mod report;
mod stdio;
mod verify;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, Subcommand};

use self::compress::Job;
use self::corpus::{Corpus, mebibytes};
use self::deploy::{Deploy, Jobs};
use self::meter::Measured;
use self::report::Report;
use self::verify::{Verdict, verify};

/// How much input to find on the machine, in bytes.
const CORPUS: u64 = 256 << 20;

/// How much of the input goes into one step.
const FRAME: u64 = 256 << 10;

#[derive(Debug, Parser)]
#[command(about = "A rolling deploy and a crash, survived by real work in real processes")]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// What to compress, a file or a directory. Default: files of this machine.
    #[arg(long)]
    input: Option<PathBuf>,
    /// Where to write the figures.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Compress less hard, so that it ends within a minute on two cores.
    #[arg(long)]
    quick: bool,
    /// How many tasks.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=1000))]
    tasks: u64,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// A node process; the program starts these itself.
    #[command(hide = true)]
    Node(child::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(Role::Node(options)) = arguments.role {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .init();
        return child::run(options).await;
    }
    let directory = tempfile::Builder::new().prefix("rolling_deploy-").tempdir()?;
    let run = run(&arguments, directory.path());
    let good = tokio::select! {
        good = run => good,
        _ = handover::signal::term_or_int() => Err(anyhow::anyhow!("interrupted")),
    };
    if matches!(good, Ok(true)) {
        return Ok(ExitCode::SUCCESS);
    }
    let kept = directory.keep();
    eprintln!("Input, outputs and step logs are kept in {}", kept.display());
    good.map(|_| ExitCode::FAILURE)
}

/// The whole deploy; whether all was as it should be.
async fn run(arguments: &Arguments, directory: &Path) -> anyhow::Result<bool> {
    let plan = if arguments.quick { &QUICK } else { &FULL };
    let (logs, outputs) = (directory.join("logs"), directory.join("outputs"));
    fs::create_dir(&logs)?;
    fs::create_dir(&outputs)?;
    let corpus = match &arguments.input {
        Some(input) => Corpus::of(input, directory)?,
        None => Corpus::of_this_machine(CORPUS, directory)?,
    };
    let jobs = jobs(&corpus, arguments.tasks, plan, &outputs);
    introduce(&corpus, &jobs, plan);

    let mut deploy = Deploy::new(jobs.clone(), &logs);
    for id in ["n1", "n2", "n3"] {
        deploy.start(id, "r1").await?;
    }
    deploy.all_ready().await?;
    deploy.submit().await?;
    deploy.progress(5).await?;
    for (old, new) in [("n1", "n4"), ("n2", "n5"), ("n3", "n6")] {
        deploy.replace(old, new, "r2").await?;
    }
    deploy.kill_the_busiest().await?;
    deploy.add("n7", "r2").await?;
    deploy.finish(Duration::from_secs(60)).await?;
    // The figures are about the deploy and the crash; the end of the demonstration is neither.
    let ends = deploy.ends.clone();
    let steps = meter::read(&logs)?;
    let measured = Measured::new(&steps, &ends, meter::now());
    deploy.stop_all().await?;

    println!();
    println!("Decoding {} outputs …", jobs.len());
    let verdicts = verify_all(&jobs).await?;
    let report = Report {
        jobs: &jobs,
        outputs: &deploy.outputs,
        verdicts: &verdicts,
        measured: &measured,
        ends: &ends,
        exits: &deploy.exits,
    };
    report.print();
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(&report.summary())?;
        fs::write(path, json + "\n").with_context(|| format!("{}", path.display()))?;
    }
    Ok(report.is_good())
}

/// How hard it is to be, and how long it is to take.
struct Plan {
    /// zstd's level: so high that two cores are busy while the deploy goes on.
    level: i32,
    /// How long the tasks take at least, all running at once, in milliseconds.
    at_least_ms: u64,
}

const FULL: Plan = Plan { level: 15, at_least_ms: 40_000 };

const QUICK: Plan = Plan { level: 12, at_least_ms: 20_000 };

fn jobs(corpus: &Corpus, tasks: u64, plan: &Plan, outputs: &Path) -> Jobs {
    let share = corpus.len.div_ceil(tasks);
    // Small inputs get small frames: a task of one step has nothing to hand over.
    let frame = FRAME.min(share.div_ceil(32)).max(1);
    let steps = share.div_ceil(frame);
    let sources = corpus.split(tasks).into_iter().enumerate();
    sources
        .map(|(part, source)| {
            let name = format!("compress/part-{part:02}");
            let job = Job {
                source,
                output: outputs.join(format!("part-{part:02}.zst")),
                frame,
                level: plan.level,
                pace_ms: (plan.at_least_ms / steps).min(1000),
            };
            (name, job)
        })
        .collect()
}

fn introduce(corpus: &Corpus, jobs: &Jobs, plan: &Plan) {
    println!("input      {}, {}", mebibytes(corpus.len), corpus.origin);
    let Some(job) = jobs.values().next() else {
        return;
    };
    println!(
        "tasks      {} of {}, one step per {} KiB frame (zstd level {})",
        jobs.len(),
        mebibytes(job.source.len),
        job.frame as f64 / 1024.0,
        job.level
    );
    println!(
        "pace       a step takes {} ms or more, so that a fast machine needs {} s too",
        job.pace_ms,
        plan.at_least_ms / 1000
    );
    println!();
}

async fn verify_all(jobs: &Jobs) -> anyhow::Result<BTreeMap<String, Verdict>> {
    let started = Instant::now();
    let jobs = jobs.clone();
    let verdicts = tokio::task::spawn_blocking(move || {
        let verdict = |(name, job): (String, Job)| (name, verify(&job.source, &job.output));
        jobs.into_iter().map(verdict).collect::<BTreeMap<_, _>>()
    })
    .await?;
    println!("{:.1} s", started.elapsed().as_secs_f64());
    Ok(verdicts)
}
