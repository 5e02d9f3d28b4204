//! One node process of the benchmark.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures_util::{StreamExt, stream};
use handover::{Node, Seeds, signal};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::meter::{Percentiles, StepLog};
use crate::stdio::{commands, say};
use crate::tasks::{Beat, Forced, Latencies, Recorder, Rhythm};

/// How many tasks are submitted at once.
const SUBMITTED_AT_ONCE: usize = 64;

/// What a node process is told at its start.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[arg(long)]
    pub id: String,
    #[arg(long)]
    pub logs: PathBuf,
    #[arg(long)]
    pub seed: Vec<SocketAddr>,
    /// Memory to occupy, in MiB.
    #[arg(long, default_value_t = 0)]
    pub ballast: usize,
    /// Whether it runs the tasks that force checkpoints.
    #[arg(long)]
    pub forces: bool,
}

/// To a node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Start tasks named `PREFIX/0`, `PREFIX/1` …
    Run { prefix: String, count: u64, forced: bool, rhythm: Rhythm },
    /// How many names are known and run?
    Known,
    /// How long did the forced checkpoints take since this was last asked?
    Checkpoints,
    /// Write the last steps to the log.
    Flush,
}

/// From a node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Listening {
        address: SocketAddr,
    },
    Ready,
    /// The tasks are started.
    Submitted,
    /// Some could not be started.
    Refused {
        why: String,
    },
    /// How many tasks run, by node, as this node knows.
    Known {
        running: BTreeMap<String, usize>,
    },
    /// Latencies in milliseconds.
    Checkpoints {
        count: usize,
        ms: Percentiles,
    },
    /// The last steps are in the log.
    Flushed,
    /// What the drain came to.
    Drained {
        report: serde_json::Value,
    },
}

/// Runs until SIGTERM.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let ballast = vec![1_u8; options.ballast << 20];
    let log = Arc::new(StepLog::open(&options.logs, &options.id)?);
    let recorder = Arc::new(Recorder::new(log));
    let latencies = Latencies::default();
    let mut builder = Node::builder("bench")
        .node_id(&options.id)
        .listen("127.0.0.1:0")
        .seeds(Seeds::Addresses(options.seed))
        .revision("bench")
        .drain_budget(Duration::from_secs(25))
        .task(Beat(Arc::clone(&recorder)));
    if options.forces {
        builder =
            builder.task(Forced { latencies: Arc::clone(&latencies), ended: Mutex::default() });
    }
    let node = builder.start().await?;
    say(&Event::Listening { address: node.address() });
    let waiting = node.clone();
    tokio::spawn(async move {
        if waiting.wait_ready().await.is_ok() {
            say(&Event::Ready);
        }
    });
    tokio::spawn(obey(node.clone(), latencies, Arc::clone(&recorder), commands()));

    let report = node.drain_on(signal::term_or_int()).await;
    say(&Event::Drained { report: serde_json::to_value(&report)? });
    node.leave().await?;
    recorder.flush().context("the step log could not be written")?;
    drop(std::hint::black_box(ballast));
    Ok(report.exit_code())
}

async fn obey(
    node: Node,
    latencies: Latencies,
    recorder: Arc<Recorder>,
    mut commands: mpsc::Receiver<Command>,
) {
    while let Some(command) = commands.recv().await {
        say(&match command {
            Command::Run { prefix, count, forced, rhythm } => {
                submit(&node, &prefix, count, forced, rhythm).await
            }
            Command::Known => {
                let mut running: BTreeMap<String, usize> = BTreeMap::new();
                for entry in node.list("") {
                    if entry.state == handover::TaskState::Running {
                        *running.entry(entry.node.to_string()).or_default() += 1;
                    }
                }
                Event::Known { running }
            }
            Command::Flush => {
                if let Err(error) = recorder.flush() {
                    eprintln!("the step log could not be written: {error}");
                    continue;
                }
                Event::Flushed
            }
            Command::Checkpoints => {
                let mut latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
                let latencies = std::mem::take(&mut *latencies);
                Event::Checkpoints { count: latencies.len(), ms: Percentiles::millis(latencies) }
            }
        });
    }
}

async fn submit(node: &Node, prefix: &str, count: u64, forced: bool, rhythm: Rhythm) -> Event {
    let submissions = (0..count).map(|number| async move {
        let name = format!("{prefix}/{number}");
        if forced {
            node.run::<Forced>(&name, rhythm).await.map(|_| ())
        } else {
            node.run::<Beat>(&name, rhythm).await.map(|_| ())
        }
    });
    let mut submissions = stream::iter(submissions).buffer_unordered(SUBMITTED_AT_ONCE);
    while let Some(submitted) = submissions.next().await {
        if let Err(error) = submitted {
            return Event::Refused { why: error.to_string() };
        }
    }
    Event::Submitted
}
