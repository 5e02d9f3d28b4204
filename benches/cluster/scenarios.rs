//! What is measured, one function for each figure.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{Cluster, NODES, id};
use crate::machine;
use crate::meter::{Cause, Measured, Percentiles, millis};
use crate::tasks::Rhythm;

/// Long enough for every task to have been checkpointed by the throttle of one second.
const CHECKPOINTED: Duration = Duration::from_secs(3);

/// Long enough for what is measured to be over.
const SETTLED: Duration = Duration::from_secs(2);

/// SIGKILL of one of four nodes that run `tasks` in all.
///
/// The tasks step once a second and wait in between; a takeover calls the step at once. So the time
/// from the signal to the first step elsewhere is the time in which nobody had the task.
pub async fn sigkill(tasks: u64, ballast_mib: usize) -> anyhow::Result<Value> {
    let ballast = ballast_mib.to_string();
    let mut cluster = Cluster::of_four(&["--ballast", &ballast]).await?;
    let rhythm = Rhythm { wait_ms: 1000, ..Rhythm::default() };
    cluster.submit(1, "beat", tasks, rhythm).await?;
    let running = cluster.all_run(tasks).await?;
    tokio::time::sleep(CHECKPOINTED).await;
    let resident = machine::resident_mib(cluster.pid(1)?)?;
    let killed = cluster.kill(1).await?;
    // Asking the nodes how they do takes processor time that they need for what is measured.
    tokio::time::sleep(SETTLED).await;
    cluster.all_run(tasks).await?;
    let measured = cluster.finish().await?;

    let moves: Vec<_> = measured.caused_by(Cause::Sigkill).collect();
    let from_start = measured
        .tenures
        .values()
        .filter(|tenures| {
            tenures.len() > 1 && tenures.last().is_some_and(|last| last.first_seq == 0)
        })
        .count();
    Ok(json!({
        "tasks": tasks,
        "tasks_on_the_killed": running.get(&id(1)),
        "resident_mib": resident,
        "gap_ms": Percentiles::millis(moves.iter().map(|moved| moved.start.saturating_sub(killed))),
        "moved": moves.len(),
        "lost": tasks as usize - measured.tenures.len(),
        "started_from_nothing": from_start,
        "doubled": doubled(&measured),
    }))
}

/// SIGTERM to a node that runs all of `tasks`, with steps of `step_ms`, while three others are idle.
pub async fn sigterm(tasks: u64, step_ms: u64, pad: usize) -> anyhow::Result<Value> {
    let mut cluster = Cluster::new()?;
    cluster.launch(1, &[]).await?;
    cluster.ready(1).await?;
    let rhythm = Rhythm { step_ms, wait_ms: 0, pad };
    cluster.submit(1, "beat", tasks, rhythm).await?;
    for number in 2..=NODES {
        cluster.launch(number, &[]).await?;
        cluster.ready(number).await?;
    }
    let running = cluster.all_run(tasks).await?;
    tokio::time::sleep(CHECKPOINTED).await;
    let (process_took, report) = cluster.stop(1).await?;
    tokio::time::sleep(SETTLED).await;
    cluster.all_run(tasks).await?;
    let measured = cluster.finish().await?;

    let moves: Vec<_> = measured.moves.iter().filter(|moved| moved.from == id(1)).collect();
    let distinct: BTreeSet<_> = moves.iter().map(|moved| &moved.name).collect();
    Ok(json!({
        "tasks_on_the_stopped": running.get(&id(1)),
        "step_ms": step_ms,
        "state_bytes": pad,
        "gap_ms": Percentiles::millis(moves.iter().map(|moved| moved.gap)),
        "drain_ms": report.get("elapsed").map(seconds).map(|s| s * 1e3),
        "signal_to_exit_ms": millis(process_took),
        "lost": tasks as usize - distinct.len(),
        "doubled": doubled(&measured),
        "report": report,
    }))
}

/// A checkpoint of 64 KiB that one replica acknowledges: first one task at a time, then many.
pub async fn checkpoint() -> anyhow::Result<Value> {
    let mut cluster = Cluster::of_four(&["--forces"]).await?;
    let rhythm = Rhythm { pad: 64 << 10, ..Rhythm::default() };
    let window = Duration::from_secs(10);
    let mut results = Vec::new();
    let mut running = 0;
    for concurrent in [1, 4, 16, 64] {
        let more = concurrent - running;
        running = concurrent;
        cluster.submit_forced(&format!("forced{concurrent}"), more, rhythm).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.checkpoints().await?;
        let begun = Instant::now();
        tokio::time::sleep(window).await;
        let (count, latency) = cluster.checkpoints().await?;
        results.push(json!({
            "concurrent": concurrent,
            "acknowledged_ms": latency,
            "per_second": (count as f64 / begun.elapsed().as_secs_f64()).round(),
        }));
    }
    Ok(json!({ "state_bytes": rhythm.pad, "replicas": 1, "runs": results }))
}

/// A node in a cluster that has `tasks` which all wait.
pub async fn idle(tasks: u64) -> anyhow::Result<Value> {
    let mut cluster = Cluster::of_four(&[]).await?;
    let rhythm = Rhythm { wait_ms: 3_600_000, ..Rhythm::default() };
    let submitted = cluster.submit(1, "idle", tasks, rhythm).await?;
    let running = cluster.all_run(tasks).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let begun = Instant::now();
    let before = (1..=NODES).map(|n| machine::cpu_seconds(cluster.pid(n)?));
    let before = before.collect::<anyhow::Result<Vec<_>>>()?;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let elapsed = begun.elapsed().as_secs_f64();
    let mut nodes = Vec::new();
    for (number, before) in (1..=NODES).zip(before) {
        let pid = cluster.pid(number)?;
        let used = machine::cpu_seconds(pid)? - before;
        nodes.push(json!({
            "tasks": running.get(&id(number)),
            "percent_of_a_core": (used / elapsed * 1e4).round() / 100.0,
            "resident_mib": machine::resident_mib(pid)?,
        }));
    }
    cluster.finish().await?;
    Ok(json!({
        "tasks": tasks,
        "started_per_second": (tasks as f64 / submitted.as_secs_f64()).round(),
        "nodes": nodes,
    }))
}

/// How many tasks ever ran twice at once.
fn doubled(measured: &Measured) -> usize {
    let twice = measured.moves.iter().filter(|moved| moved.overlap > 0);
    twice.map(|moved| &moved.name).collect::<BTreeSet<_>>().len()
}

/// A duration as serde writes it.
fn seconds(duration: &Value) -> f64 {
    let part = |name| duration.get(name).and_then(Value::as_f64).unwrap_or_default();
    part("secs") + part("nanos") / 1e9
}
