//! Four node processes on loopback.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use tempfile::TempDir;
use tokio::process;

use crate::meter::{self, Measured, ProcessEnd};
use crate::node::{Command, Event};
use crate::process::Process;
use crate::tasks::Rhythm;

/// How many nodes every figure is measured with.
pub const NODES: usize = 4;

const PATIENCE: Duration = Duration::from_secs(120);

/// The processes, by id.
#[derive(Debug)]
pub struct Cluster {
    logs: TempDir,
    nodes: BTreeMap<String, Process<Event>>,
    addresses: BTreeMap<String, SocketAddr>,
    ends: Vec<ProcessEnd>,
}

/// The id of a node.
pub fn id(number: usize) -> String {
    format!("n{number}")
}

impl Cluster {
    /// Without nodes.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            logs: tempfile::Builder::new().prefix("handover-bench-").tempdir()?,
            nodes: BTreeMap::new(),
            addresses: BTreeMap::new(),
            ends: Vec::new(),
        })
    }

    /// Of four nodes that are all up. The first gets `first` as further arguments.
    pub async fn of_four(first: &[&str]) -> anyhow::Result<Self> {
        let mut cluster = Self::new()?;
        cluster.launch(1, first).await?;
        for number in 2..=NODES {
            cluster.launch(number, &[]).await?;
        }
        for number in 1..=NODES {
            cluster.ready(number).await?;
        }
        Ok(cluster)
    }

    /// Starts a node.
    pub async fn launch(&mut self, number: usize, more: &[&str]) -> anyhow::Result<()> {
        let id = id(number);
        let mut command = process::Command::new(std::env::current_exe()?);
        command.args(["node", "--id", &id, "--logs"]).arg(self.logs.path());
        for seed in self.addresses.values() {
            command.args(["--seed", &seed.to_string()]);
        }
        command.args(more);
        let mut process = Process::spawn(&id, command)?;
        let listening = |event| match event {
            Event::Listening { address } => Some(address),
            _ => None,
        };
        let address = process.expect(PATIENCE, "where it listens", listening).await?;
        self.addresses.insert(id.clone(), address);
        self.nodes.insert(id, process);
        Ok(())
    }

    /// Waits until a node takes part.
    pub async fn ready(&mut self, number: usize) -> anyhow::Result<()> {
        let ready = |event| matches!(event, Event::Ready).then_some(());
        self.node(number)?.expect(PATIENCE, "that it is up", ready).await
    }

    fn node(&mut self, number: usize) -> anyhow::Result<&mut Process<Event>> {
        let found = self.nodes.get_mut(&id(number));
        found.ok_or_else(|| anyhow!("there is no node {number}"))
    }

    /// The process id of a node.
    pub fn pid(&self, number: usize) -> anyhow::Result<u32> {
        let node = self.nodes.get(&id(number));
        node.and_then(Process::pid).ok_or_else(|| anyhow!("there is no node {number}"))
    }

    /// Submits tasks through one node; how long that took.
    pub async fn submit(
        &mut self,
        via: usize,
        prefix: &str,
        count: u64,
        rhythm: Rhythm,
    ) -> anyhow::Result<Duration> {
        self.submit_kind(via, prefix, count, rhythm, false).await
    }

    /// Submits tasks that force checkpoints.
    pub async fn submit_forced(
        &mut self,
        prefix: &str,
        count: u64,
        rhythm: Rhythm,
    ) -> anyhow::Result<Duration> {
        self.submit_kind(1, prefix, count, rhythm, true).await
    }

    async fn submit_kind(
        &mut self,
        via: usize,
        prefix: &str,
        count: u64,
        rhythm: Rhythm,
        forced: bool,
    ) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let node = self.node(via)?;
        let prefix = prefix.to_owned();
        let command = Command::Run { prefix, count, forced, rhythm };
        node.send(&command).await?;
        let submitted = node.expect(PATIENCE, "that all tasks are started", |event| match event {
            Event::Submitted => Some(Ok(())),
            Event::Refused { why } => Some(Err(anyhow!("a task was refused: {why}"))),
            _ => None,
        });
        submitted.await??;
        Ok(begun.elapsed())
    }

    /// How many tasks run, by node, as one of them knows.
    pub async fn known(&mut self, via: usize) -> anyhow::Result<BTreeMap<String, usize>> {
        let node = self.node(via)?;
        node.send(&Command::Known).await?;
        let known = |event| match event {
            Event::Known { running } => Some(running),
            _ => None,
        };
        node.expect(PATIENCE, "what it knows", known).await
    }

    /// Waits until all of `count` tasks run on nodes that are there, as every node knows.
    pub async fn all_run(&mut self, count: u64) -> anyhow::Result<BTreeMap<String, usize>> {
        let begun = Instant::now();
        loop {
            let mut agreed = true;
            let mut last = BTreeMap::new();
            for number in 1..=NODES {
                if self.nodes.contains_key(&id(number)) {
                    last = self.known(number).await?;
                    let here = last.iter().filter(|(id, _)| self.nodes.contains_key(*id));
                    agreed &= here.map(|(_, tasks)| tasks).sum::<usize>() as u64 == count;
                }
            }
            if agreed {
                return Ok(last);
            }
            if begun.elapsed() > PATIENCE {
                bail!("not all of {count} tasks run: {last:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Asks for the latencies of forced checkpoints since this was last asked.
    pub async fn checkpoints(&mut self) -> anyhow::Result<(usize, meter::Percentiles)> {
        let node = self.node(1)?;
        node.send(&Command::Checkpoints).await?;
        let checkpoints = |event| match event {
            Event::Checkpoints { count, ms } => Some((count, ms)),
            _ => None,
        };
        node.expect(PATIENCE, "its checkpoints", checkpoints).await
    }

    /// Kills a node; when the signal was sent.
    pub async fn kill(&mut self, number: usize) -> anyhow::Result<u64> {
        let end = self.node(number)?.kill().await?;
        self.nodes.remove(&id(number));
        let at = end.signalled;
        self.ends.push(end);
        Ok(at)
    }

    /// Tells a node to stop; how long its process took, and its report.
    pub async fn stop(&mut self, number: usize) -> anyhow::Result<(u64, serde_json::Value)> {
        let id = id(number);
        let Some(mut node) = self.nodes.remove(&id) else {
            bail!("there is no node {number}");
        };
        let (end, status) = node.stop(PATIENCE).await?;
        let mut report = serde_json::Value::Null;
        while let Some(event) = node.event().await {
            if let Event::Drained { report: said } = event {
                report = said;
            }
        }
        if !status.success() {
            bail!("{id} ended with {status}: {report}");
        }
        let took = end.exited - end.signalled;
        self.ends.push(end);
        Ok((took, report))
    }

    /// Reads the step logs, and ends the cluster: the figures are in, its goodbye is none of them.
    pub async fn finish(mut self) -> anyhow::Result<Measured> {
        for node in self.nodes.values_mut() {
            node.send(&Command::Flush).await?;
            let flushed = |event| matches!(event, Event::Flushed).then_some(());
            node.expect(PATIENCE, "that its log is written", flushed).await?;
        }
        let steps = meter::read(self.logs.path())?;
        let measured = Measured::new(&steps, &self.ends, meter::now());
        for node in self.nodes.values_mut() {
            node.kill().await?;
        }
        Ok(measured)
    }
}
