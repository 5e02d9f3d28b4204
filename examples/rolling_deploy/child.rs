//! One node process: a service that embeds the library.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use handover::{Key, Node, Seeds, signal};
use tokio::sync::mpsc;

use super::compress::Compress;
use super::control::{Command, Event, TaskStatus};
use super::meter::StepLog;
use super::stdio::{commands, say};

/// The environment variable that holds the cluster's secret: arguments are visible to all users.
pub const KEY: &str = "ROLLING_DEPLOY_KEY";

/// What a node process is told at its start.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The node's id.
    #[arg(long)]
    pub id: String,
    /// The label of the program's revision.
    #[arg(long)]
    pub revision: String,
    /// Where the step log goes.
    #[arg(long)]
    pub logs: PathBuf,
    /// Addresses of nodes that are there already.
    #[arg(long)]
    pub seed: Vec<SocketAddr>,
}

/// Runs until SIGTERM, hands everything over, and returns what the process is to exit with.
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let key = std::env::var(KEY).with_context(|| format!("{KEY} is not set"))?;
    let log = Arc::new(StepLog::open(&options.logs, &options.id)?);
    let node = Node::builder("rolling-deploy")
        .node_id(&options.id)
        .key(Key::from_secret(&key)?)
        .listen("127.0.0.1:0")
        .seeds(Seeds::Addresses(options.seed))
        .revision(&options.revision)
        .task(Compress { log })
        .drain_budget(Duration::from_secs(25))
        .start()
        .await?;
    say(&Event::Listening { address: node.address() });
    tokio::spawn(say_when_ready(node.clone()));
    tokio::spawn(obey(node.clone(), commands()));

    let report = node.drain_on(signal::term_or_int()).await;
    say(&Event::Drained { report: serde_json::to_value(&report)? });
    if let Err(error) = node.leave().await {
        // Nothing is lost by it, and the tasks are in other hands or not, as the report says.
        eprintln!("{}: {error}", options.id);
    }
    Ok(report.exit_code())
}

async fn say_when_ready(node: Node) {
    while !node.is_ready() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    say(&Event::Ready);
}

async fn obey(node: Node, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        let node = node.clone();
        tokio::spawn(async move {
            match command {
                Command::Run { name, job } => {
                    say(&match node.run::<Compress>(&name, job).await {
                        Ok(_) => Event::Accepted { name },
                        Err(error) => Event::Refused { name, why: error.to_string() },
                    });
                }
                Command::Status { names } => say(&status(&node, names).await),
                Command::Await { names } => {
                    for name in names {
                        tokio::spawn(say_output(node.clone(), name));
                    }
                }
            }
        });
    }
}

async fn status(node: &Node, names: Vec<String>) -> Event {
    let mut tasks = Vec::new();
    for name in names {
        let progress = node.get::<Compress>(&name).progress().await;
        let progress = progress.unwrap_or_default();
        tasks.push(TaskStatus {
            node: node.whereis(&name).map(|entry| entry.node.to_string()),
            name,
            done: progress.done,
            total: progress.total,
        });
    }
    Event::Status { tasks }
}

async fn say_output(node: Node, name: String) {
    say(&match node.get::<Compress>(&name).output().await {
        Ok(written) => Event::Output { name, written },
        Err(error) => Event::Failed { name, why: error.to_string() },
    });
}
