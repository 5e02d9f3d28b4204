//! The parent's side: starts node processes, watches them, and does to them what a deploy does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;

use super::board::{Board, NodeLine};
use super::child;
use super::compress::Job;
use super::control::{self, Event, TaskStatus};
use super::meter::{self, Cause, ProcessEnd};
use super::process::Process;

const STATUS_EVERY: Duration = Duration::from_millis(250);
const POLL_EVERY: Duration = Duration::from_millis(5);

/// The tasks of a run, by name.
pub type Jobs = BTreeMap<String, Job>;

/// The node processes and what is known of the tasks.
#[derive(Debug)]
pub struct Deploy {
    jobs: Jobs,
    logs: PathBuf,
    key: String,
    board: Board,
    nodes: Vec<Member>,
    last_status: Instant,
    /// What the nodes say of the tasks.
    tasks: BTreeMap<String, TaskStatus>,
    accepted: BTreeSet<String>,
    /// The tasks that have finished, with the length of their outputs.
    pub outputs: BTreeMap<String, u64>,
    failed: BTreeSet<String>,
    /// The processes that were signalled.
    pub ends: Vec<ProcessEnd>,
    /// Those that were told to stop, and what they exited with.
    pub exits: BTreeMap<String, ExitStatus>,
}

/// One node process.
#[derive(Debug)]
struct Member {
    process: Process<Event>,
    revision: String,
    address: Option<SocketAddr>,
    ready: bool,
    signalled: Option<u64>,
    exited: Option<ExitStatus>,
}

impl Member {
    fn state(&self) -> &'static str {
        match self {
            Self { exited: Some(_), .. } => "gone",
            Self { signalled: Some(_), .. } => "draining",
            Self { ready: true, .. } => "up",
            _ => "joining",
        }
    }

    const fn serves(&self) -> bool {
        self.ready && self.signalled.is_none() && self.exited.is_none()
    }
}

impl Deploy {
    /// Of these tasks; the step logs go to `logs`.
    pub fn new(jobs: Jobs, logs: &Path) -> Self {
        let sizes = jobs.iter().map(|(name, job)| (name.clone(), job.source.len));
        let board = Board::new(&sizes.collect::<Vec<_>>());
        let key: [u8; 32] = rand::random();
        Self {
            jobs,
            logs: logs.to_owned(),
            key: key.iter().map(|byte| format!("{byte:02x}")).collect(),
            board,
            nodes: Vec::new(),
            last_status: Instant::now(),
            tasks: BTreeMap::new(),
            accepted: BTreeSet::new(),
            outputs: BTreeMap::new(),
            failed: BTreeSet::new(),
            ends: Vec::new(),
            exits: BTreeMap::new(),
        }
    }

    /// Starts a node process and waits until its sockets are open.
    pub async fn start(&mut self, id: &str, revision: &str) -> anyhow::Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("node")
            .args(["--id", id, "--revision", revision, "--logs"])
            .arg(&self.logs)
            .env(child::KEY, &self.key);
        for peer in self.nodes.iter().filter(|node| node.exited.is_none()) {
            if let Some(address) = peer.address {
                command.args(["--seed", &address.to_string()]);
            }
        }
        self.nodes.push(Member {
            process: Process::spawn(id, command)?,
            revision: revision.to_owned(),
            address: None,
            ready: false,
            signalled: None,
            exited: None,
        });
        self.board.say(&format!("{id} ({revision}) starts"));
        let listening = |deploy: &Self| deploy.member(id).is_some_and(|n| n.address.is_some());
        self.until(Duration::from_secs(20), &format!("{id} listens"), listening).await
    }

    /// Waits until every process that lives takes part.
    pub async fn all_ready(&mut self) -> anyhow::Result<()> {
        let ready = |deploy: &Self| {
            let mut living = deploy.nodes.iter().filter(|node| node.exited.is_none());
            living.all(|node| node.ready)
        };
        self.until(Duration::from_secs(60), "all nodes are up", ready).await
    }

    /// Submits every task, to each node in turn.
    pub async fn submit(&mut self) -> anyhow::Result<()> {
        for (turn, (name, job)) in self.jobs.clone().into_iter().enumerate() {
            let command = control::Command::Run { name, job };
            let node = turn % self.nodes.len();
            if let Some(node) = self.nodes.get_mut(node) {
                node.process.send(&command).await?;
            }
        }
        let all = self.jobs.len();
        let accepted = |deploy: &Self| deploy.accepted.len() == all;
        self.until(Duration::from_secs(30), "all tasks are accepted", accepted).await?;
        let ids: Vec<_> = self.living().map(str::to_owned).collect();
        for id in ids {
            self.await_outputs(&id).await?;
        }
        self.board.say(&format!("{all} tasks accepted"));
        Ok(())
    }

    /// Waits until this share of all work is done, in percent.
    pub async fn progress(&mut self, percent: u64) -> anyhow::Result<()> {
        let enough = |deploy: &Self| {
            let sum = |of: fn(&TaskStatus) -> u64| deploy.tasks.values().map(of).sum::<u64>();
            let all = deploy.jobs.values().map(|job| job.source.len).sum::<u64>();
            sum(|task| task.done) * 100 >= all * percent || deploy.is_finished()
        };
        self.until(Duration::from_secs(120), "the tasks get on", enough).await
    }

    /// Replaces one process by a new one: the new one up, then the old one down.
    pub async fn replace(&mut self, old: &str, new: &str, revision: &str) -> anyhow::Result<()> {
        self.start(new, revision).await?;
        self.all_ready().await?;
        self.await_outputs(new).await?;
        self.board.say(&format!("{new} is up; SIGTERM to {old}"));
        let member = self.member_mut(old)?;
        member.signalled = Some(member.process.signal(Signal::TERM)?);
        let gone = |deploy: &Self| deploy.member(old).is_none_or(|n| n.exited.is_some());
        self.until(Duration::from_secs(60), &format!("{old} exits"), gone).await
    }

    /// Kills the process that runs most tasks, and says which it was. With nothing left to run there is
    /// nothing to be seen of it.
    pub async fn kill_the_busiest(&mut self) -> anyhow::Result<String> {
        if self.is_finished() {
            bail!(
                "all tasks ended before the SIGKILL, which so was not tried: give the tasks more to \
                 do, with more --input or without --quick"
            );
        }
        let victim = self
            .living()
            .max_by_key(|id| self.unfinished_on(id))
            .context("no node is left to be killed")?
            .to_owned();
        let running = self.unfinished_on(&victim);
        self.board.say(&format!("SIGKILL to {victim}, which runs {running} tasks"));
        let member = self.member_mut(&victim)?;
        let end = member.process.kill().await?;
        member.signalled = Some(end.signalled);
        self.ends.push(end);
        Ok(victim)
    }

    /// Starts one more process and waits until it takes part.
    pub async fn add(&mut self, id: &str, revision: &str) -> anyhow::Result<()> {
        self.start(id, revision).await?;
        self.all_ready().await?;
        self.await_outputs(id).await
    }

    /// Waits until all tasks have finished, or nothing has moved for `patience`.
    pub async fn finish(&mut self, patience: Duration) -> anyhow::Result<()> {
        let mut seen = (0, 0, Instant::now());
        let over = |deploy: &Self| {
            let sum: u64 = deploy.tasks.values().map(|task| task.done).sum();
            if (sum, deploy.outputs.len()) != (seen.0, seen.1) {
                seen = (sum, deploy.outputs.len(), Instant::now());
            }
            deploy.is_finished() || seen.2.elapsed() > patience
        };
        self.until(Duration::from_secs(3600), "all tasks are done", over).await
    }

    /// Stops all processes that still run.
    pub async fn stop_all(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if node.exited.is_none() {
                node.signalled = Some(node.process.signal(Signal::TERM)?);
            }
        }
        let gone = |deploy: &Self| deploy.nodes.iter().all(|node| node.exited.is_some());
        self.until(Duration::from_secs(60), "all nodes exit", gone).await?;
        self.board.close();
        Ok(())
    }

    /// Whether every task has ended.
    pub fn is_finished(&self) -> bool {
        self.outputs.len() + self.failed.len() >= self.jobs.len()
    }

    fn unfinished_on(&self, id: &str) -> usize {
        self.tasks
            .values()
            .filter(|task| task.node.as_deref() == Some(id))
            .filter(|task| !self.outputs.contains_key(&task.name))
            .count()
    }

    fn living(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(|node| node.serves()).map(|node| node.process.name())
    }

    fn member(&self, id: &str) -> Option<&Member> {
        self.nodes.iter().find(|node| node.process.name() == id)
    }

    fn member_mut(&mut self, id: &str) -> anyhow::Result<&mut Member> {
        let found = self.nodes.iter_mut().find(|node| node.process.name() == id);
        found.with_context(|| format!("there is no node {id}"))
    }

    async fn await_outputs(&mut self, id: &str) -> anyhow::Result<()> {
        let names = self.jobs.keys().cloned().collect();
        let member = self.member_mut(id)?;
        member.process.send(&control::Command::Await { names }).await
    }

    /// Takes in what the processes say until `condition` holds.
    async fn until(
        &mut self,
        within: Duration,
        what: &str,
        mut condition: impl FnMut(&Self) -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        loop {
            self.take_in()?;
            if condition(self) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("waited {within:?} in vain for this: {what}");
            }
            if self.last_status.elapsed() >= STATUS_EVERY {
                self.last_status = Instant::now();
                self.ask_status().await?;
                self.show();
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    fn take_in(&mut self) -> anyhow::Result<()> {
        for index in 0..self.nodes.len() {
            while let Some(event) = self.nodes.get_mut(index).and_then(|n| n.process.try_event()) {
                self.hear(index, event)?;
            }
            let Some(node) = self.nodes.get_mut(index) else {
                continue;
            };
            if node.exited.is_some() {
                continue;
            }
            node.exited = node.process.try_exited()?;
            let Some(status) = node.exited else { continue };
            let id = node.process.name().to_owned();
            match node.signalled {
                None => bail!("{id} ended unasked: {status}"),
                Some(_) if self.ends.iter().any(|end| end.node == id) => {}
                Some(signalled) => {
                    let exited = meter::now();
                    let took = meter::millis(exited - signalled);
                    self.board.say(&format!("{id} is gone after {took:.0} ms: {status}"));
                    self.exits.insert(id.clone(), status);
                    self.ends.push(ProcessEnd {
                        node: id,
                        cause: Cause::Sigterm,
                        signalled,
                        exited,
                    });
                }
            }
        }
        Ok(())
    }

    fn hear(&mut self, index: usize, event: Event) -> anyhow::Result<()> {
        let Some(node) = self.nodes.get_mut(index) else {
            return Ok(());
        };
        match event {
            Event::Listening { address } => node.address = Some(address),
            Event::Ready => node.ready = true,
            Event::Accepted { name } => {
                self.accepted.insert(name);
            }
            Event::Refused { name, why } => bail!("{name} was not started: {why}"),
            Event::Status { tasks } => {
                for mut task in tasks {
                    let before = self.tasks.get(&task.name).map_or(0, |task| task.done);
                    task.done = task.done.max(before);
                    self.tasks.insert(task.name.clone(), task);
                }
            }
            Event::Output { name, written } => {
                self.outputs.insert(name, written);
            }
            // A node on its way out can wait for outputs no longer; that says nothing of the task.
            Event::Failed { .. } if !node.serves() => {}
            Event::Failed { name, why } => {
                self.board.say(&format!("{name} failed: {why}"));
                self.failed.insert(name);
            }
            Event::Drained { report } => {
                let id = node.process.name();
                let count = |what| report.get(what).and_then(Value::as_u64).unwrap_or_default();
                self.board.say(&format!(
                    "{id} has drained: {} moved, {} parked, {} released, {} ended",
                    count("moved"),
                    count("parked"),
                    count("released"),
                    count("ended")
                ));
            }
        }
        Ok(())
    }

    async fn ask_status(&mut self) -> anyhow::Result<()> {
        let names = self.accepted.iter().cloned().collect();
        let serving = self.nodes.iter_mut().find(|node| node.serves());
        match serving {
            Some(node) => node.process.send(&control::Command::Status { names }).await,
            None => Ok(()),
        }
    }

    fn show(&mut self) {
        let here = self.nodes.iter().filter(|node| node.exited.is_none());
        let lines: Vec<_> = here
            .map(|node| NodeLine {
                id: node.process.name().to_owned(),
                label: format!("{} ({})", node.process.name(), node.revision),
                state: node.state(),
            })
            .collect();
        let done = self.outputs.keys().map(String::as_str).collect();
        self.board.show(&lines, &self.tasks, &done);
    }
}
