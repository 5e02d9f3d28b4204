//! A node that keeps ledgers: the process under test in `tests/processes.rs`.

#![allow(unreachable_pub, reason = "a program has no callers")]

mod ledger;
#[allow(dead_code, reason = "other programs use the rest of it")]
#[path = "../rolling_deploy/meter.rs"]
mod meter;
mod protocol;
#[path = "../rolling_deploy/stdio.rs"]
mod stdio;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use futures_util::StreamExt;
use handover::{Node, Seeds, Timing, signal};
use tokio::sync::mpsc;

use self::ledger::Clerk;
use self::meter::StepLog;
use self::protocol::{Command, Event};
use self::stdio::{commands, say};

#[derive(Debug, Parser)]
struct Options {
    /// The node's id.
    #[arg(long)]
    id: String,
    /// Where the step log goes.
    #[arg(long)]
    logs: PathBuf,
    /// Addresses of nodes that are there already.
    #[arg(long)]
    seed: Vec<SocketAddr>,
    /// Where checkpoints are kept; in memory without it.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// The label of the program's revision.
    #[arg(long, default_value = "r1")]
    revision: String,
    /// How long a drain may take.
    #[arg(long, default_value_t = 25_000)]
    budget_ms: u64,
    /// How long a step may take to end when it is to stop.
    #[arg(long, default_value_t = 10_000)]
    stop_grace_ms: u64,
    /// For how long a node must be silent before its tasks are taken over.
    #[arg(long, default_value_t = 10_000)]
    silence_floor_ms: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let log = Arc::new(StepLog::open(&options.logs, &options.id)?);
    let mut builder = Node::builder("ledgers")
        .node_id(&options.id)
        .listen("127.0.0.1:0")
        .seeds(Seeds::Addresses(options.seed.clone()))
        .revision(&options.revision)
        .timing(timing(&options))
        .drain_budget(Duration::from_millis(options.budget_ms))
        .task(Clerk { log });
    if let Some(directory) = &options.data_dir {
        builder = builder.data_dir(directory);
    }
    let node = builder.start().await?;
    say(&Event::Listening { address: node.address() });
    tokio::spawn(notice(node.clone()));
    tokio::spawn(obey(node.clone(), commands()));
    tokio::spawn(say_when_ready(node.clone()));

    let report = node.drain_on(signal::term_or_int()).await;
    say(&Event::Drained { report: serde_json::to_value(&report)? });
    node.leave().await?;
    Ok(report.exit_code())
}

/// Quicker than by default, so that a test sees within seconds what comes of it. The silence floor is
/// not, unless asked for: on a machine that is busy with other tests, a process may stand still.
fn timing(options: &Options) -> Timing {
    let mut timing = Timing::default();
    timing.gossip_interval = Duration::from_millis(250);
    timing.takeover_delay = Duration::from_millis(250);
    timing.silence_floor = Duration::from_millis(options.silence_floor_ms);
    timing.stop_grace = Duration::from_millis(options.stop_grace_ms);
    timing.alone_after = timing.silence_floor.max(Duration::from_secs(6));
    timing.solo_after = Duration::from_millis(500);
    timing.boot_wait = Duration::from_secs(5);
    timing.state_wait = Duration::from_millis(2500);
    timing
}

async fn say_when_ready(node: Node) {
    while !node.is_ready() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    say(&Event::Ready);
}

async fn notice(node: Node) {
    let mut events = std::pin::pin!(node.events());
    while let Some(event) = events.next().await {
        say(&Event::Noticed { what: format!("{event:?}") });
    }
}

async fn obey(node: Node, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        let node = node.clone();
        tokio::spawn(async move { say(&answer(&node, command).await) });
    }
}

async fn answer(node: &Node, command: Command) -> Event {
    let noted = |name: String, result: Result<(), String>| match result {
        Ok(()) => Event::Noted { name },
        Err(why) => Event::Refused { name, why },
    };
    match command {
        Command::Run { name, ledger } => match node.run::<Clerk>(&name, ledger).await {
            Ok(handle) => Event::Accepted {
                name,
                run: handle.run().map_or_else(String::new, |run| run.to_string()),
            },
            Err(error) => Event::Refused { name, why: error.to_string() },
        },
        Command::Whereis { name } => {
            let entry = node.whereis(&name);
            let progress = node.get::<Clerk>(&name).progress().await;
            Event::Place {
                name,
                node: entry.as_ref().map(|entry| entry.node.to_string()),
                state: entry.map(|entry| entry.state.to_string()),
                done: progress.unwrap_or_default().done,
            }
        }
        Command::Await { name } => {
            let output = node.get::<Clerk>(&name).output().await;
            Event::Ended { name, output: output.map_err(|error| error.to_string()) }
        }
        Command::Pause { name } => {
            let paused = node.get::<Clerk>(&name).pause().await;
            noted(name, paused.map_err(|error| error.to_string()))
        }
        Command::Resume { name } => {
            let resumed = node.get::<Clerk>(&name).resume().await;
            noted(name, resumed.map_err(|error| error.to_string()))
        }
        Command::Cancel { name } => {
            let cancelled = node.get::<Clerk>(&name).cancel().await;
            noted(name, cancelled.map_err(|error| error.to_string()))
        }
    }
}
