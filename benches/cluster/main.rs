//! How fast: four node processes on loopback, measured from outside.
//!
//! ```text
//! cargo bench --bench cluster -- [sigkill] [sigterm] [checkpoint] [idle] [--json PATH]
//! ```

#![allow(unreachable_pub, reason = "a program has no callers")]

mod cluster;
mod machine;
#[allow(dead_code, reason = "other programs use the rest of it")]
#[path = "../../examples/rolling_deploy/meter.rs"]
mod meter;
mod node;
#[allow(dead_code, reason = "other programs use the rest of it")]
#[path = "../../examples/rolling_deploy/process.rs"]
mod process;
mod scenarios;
#[path = "../../examples/rolling_deploy/stdio.rs"]
mod stdio;
mod tasks;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::{Map, Value, json};

use self::machine::{Machine, ProcessorTime};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// What to measure. Default: everything.
    #[arg(value_parser = ["sigkill", "sigkill-resident", "sigterm", "sigterm-64k", "checkpoint", "idle"])]
    names: Vec<String>,
    /// Where to write the figures.
    #[arg(long)]
    json: Option<PathBuf>,
    /// How often each figure is measured.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Given by `cargo bench`; without it nothing is measured, as in `cargo test --all-targets`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// A node process; the program starts these itself.
    #[command(hide = true)]
    Node(node::Options),
}

const EVERYTHING: [&str; 6] =
    ["sigkill", "sigkill-resident", "sigterm", "sigterm-64k", "checkpoint", "idle"];

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(Role::Node(options)) = arguments.role {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .init();
        return node::run(options).await;
    }
    if !arguments.bench {
        println!("Nothing is measured without --bench, which `cargo bench` gives.");
        return Ok(ExitCode::SUCCESS);
    }
    let machine = serde_json::to_value(Machine::here())?;
    println!("machine: {machine}");
    let mut names: Vec<_> = arguments.names.iter().map(String::as_str).collect();
    if names.is_empty() {
        names = EVERYTHING.to_vec();
    }
    let mut figures = Map::new();
    for name in names {
        let mut runs = Vec::new();
        for _ in 0..arguments.repeat {
            let before = ProcessorTime::now();
            let figures = measure(name).await?;
            let stolen_percent = ProcessorTime::now().stolen_percent_since(before);
            println!("{name} (stolen: {stolen_percent} %): {figures}");
            runs.push(json!({ "stolen_percent": stolen_percent, "figures": figures }));
        }
        figures.insert(name.to_owned(), Value::Array(runs));
    }
    if let Some(path) = arguments.json {
        let all = json!({ "machine": machine, "figures": figures });
        std::fs::write(path, serde_json::to_string_pretty(&all)? + "\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(name: &str) -> anyhow::Result<Value> {
    match name {
        "sigkill" => scenarios::sigkill(4000, 0).await,
        // The kernel frees memory before it closes sockets, so a large process is slow to be missed.
        "sigkill-resident" => {
            let mut runs = Vec::new();
            for ballast in [100, 300, 1000] {
                runs.push(scenarios::sigkill(4000, ballast).await?);
            }
            Ok(Value::Array(runs))
        }
        "sigterm" => scenarios::sigterm(1000, 10, 0).await,
        "sigterm-64k" => scenarios::sigterm(1000, 10, 64 << 10).await,
        "checkpoint" => scenarios::checkpoint().await,
        _ => scenarios::idle(10_000).await,
    }
}
