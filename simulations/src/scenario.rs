//! Scenarios: what a cluster is, what it does, and what happens to it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use handover::{Pace, Timing};
use serde::Deserialize;

use crate::planted::Planted;

/// A scenario, as in its file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// The file's name.
    #[serde(skip)]
    pub(crate) name: String,
    /// What to say to find it again: its name, or its path.
    #[serde(skip)]
    pub(crate) found_as: String,
    /// How its size differs from the file's, as the program is told.
    #[serde(skip)]
    options: String,
    /// What it is about, in a line.
    pub(crate) about: String,
    /// How many nodes there are at the start: `n1`, `n2` and so on.
    pub(crate) nodes: u32,
    /// How long faults go on; then everything is mended and the cluster has to finish.
    pub(crate) minutes: u32,
    /// How long the cluster has to finish, in minutes.
    #[serde(default = "default_finish_minutes")]
    pub(crate) finish_minutes: u32,
    #[serde(default)]
    pub(crate) tasks: Tasks,
    #[serde(default)]
    pub(crate) network: Weather,
    #[serde(default)]
    pub(crate) timing: Symbols,
    #[serde(default, rename = "fault")]
    pub(crate) faults: Vec<Fault>,
    /// Its faults give no node a reason to miss one that runs: no copy may run beside another.
    #[serde(default)]
    pub(crate) nobody_missed: bool,
    /// Only tests can set it.
    #[cfg_attr(test, serde(default))]
    #[cfg_attr(not(test), serde(skip))]
    pub(crate) planted: Option<Planted>,
}

const fn default_finish_minutes() -> u32 {
    10
}

/// The work.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tasks {
    /// How many.
    pub(crate) count: u32,
    /// How long a step takes, in milliseconds.
    pub(crate) step_ms: u64,
    /// How many steps a task has, at least and at most; drawn for each task.
    pub(crate) steps: [u64; 2],
    /// Over how many seconds their starts are spread.
    pub(crate) arrive_s: u64,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { count: 20, step_ms: 200, steps: [300, 1200], arrive_s: 60 }
    }
}

/// What the network is like without faults.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Weather {
    /// One way, at least and at most, in milliseconds.
    pub(crate) latency_ms: [f64; 2],
    /// Which part of the datagrams is lost.
    pub(crate) loss: f64,
    /// Which part of the datagrams arrives twice.
    pub(crate) duplicate: f64,
    /// Datagrams longer than so many bytes are lost: a tunnel on the way carries no more, and says nothing.
    pub(crate) lose_over: Option<usize>,
    /// How far hosts advance in turn: nothing arrives sooner than in the next one.
    pub(crate) tick_ms: u64,
}

impl Default for Weather {
    fn default() -> Self {
        Self { latency_ms: [0.3, 2.0], loss: 0.0, duplicate: 0.0, lose_over: None, tick_ms: 5 }
    }
}

impl Weather {
    /// What it is like with a change.
    pub(crate) fn changed(&self, change: &Change) -> Self {
        Self {
            latency_ms: change.latency_ms.unwrap_or(self.latency_ms),
            loss: change.loss.unwrap_or(self.loss),
            duplicate: change.duplicate.unwrap_or(self.duplicate),
            lose_over: change.lose_over.or(self.lose_over),
            tick_ms: self.tick_ms,
        }
    }

    /// Whether the bounds take it as it is; what is worse counts as if nobody could reach anybody.
    pub(crate) fn is_fair(&self, timing: &Timing) -> bool {
        self.loss <= 0.2 && self.latency().1 <= timing.gossip_interval / 2
    }

    fn check(&self) -> Result<()> {
        let [least, most] = self.latency_ms;
        ensure!(
            (0.0..=600_000.0).contains(&least) && (least..=600_000.0).contains(&most),
            "latency_ms: the lower bound first, at most ten minutes"
        );
        for part in [self.loss, self.duplicate] {
            ensure!((0.0..1.0).contains(&part), "a part is at least 0 and below 1");
        }
        ensure!((1..=100).contains(&self.tick_ms), "tick_ms: 1 to 100");
        Ok(())
    }

    pub(crate) fn latency(&self) -> (Duration, Duration) {
        let [least, most] = self.latency_ms;
        (Duration::from_secs_f64(least / 1e3), Duration::from_secs_f64(most / 1e3))
    }
}

/// What a fault makes of the network, where it is of that kind.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Change {
    pub(crate) latency_ms: Option<[f64; 2]>,
    pub(crate) loss: Option<f64>,
    pub(crate) duplicate: Option<f64>,
    pub(crate) lose_over: Option<usize>,
}

/// Durations that differ from [`Timing::default`], in milliseconds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Symbols {
    pub(crate) gossip_interval_ms: Option<u64>,
    pub(crate) silence_floor_ms: Option<u64>,
    pub(crate) takeover_delay_ms: Option<u64>,
    pub(crate) stop_grace_ms: Option<u64>,
    pub(crate) alone_after_ms: Option<u64>,
    pub(crate) solo_after_ms: Option<u64>,
    pub(crate) boot_wait_ms: Option<u64>,
    pub(crate) state_wait_ms: Option<u64>,
}

impl Symbols {
    pub(crate) fn timing(&self) -> Timing {
        let mut timing = Timing::default();
        for (symbol, given) in [
            (&mut timing.gossip_interval, self.gossip_interval_ms),
            (&mut timing.silence_floor, self.silence_floor_ms),
            (&mut timing.takeover_delay, self.takeover_delay_ms),
            (&mut timing.stop_grace, self.stop_grace_ms),
            (&mut timing.alone_after, self.alone_after_ms),
            (&mut timing.solo_after, self.solo_after_ms),
            (&mut timing.boot_wait, self.boot_wait_ms),
            (&mut timing.state_wait, self.state_wait_ms),
        ] {
            if let Some(given) = given {
                *symbol = Duration::from_millis(given);
            }
        }
        timing
    }
}

/// Something that happens to the cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// When, in seconds.
    pub(crate) at: f64,
    /// Up to so many seconds later, drawn from the seed.
    #[serde(default)]
    pub(crate) jitter: f64,
    /// Again after so many seconds, as long as faults go on.
    pub(crate) every: Option<f64>,
    /// Undone after so many seconds: restarted, or healed.
    pub(crate) lasts: Option<f64>,
    /// Whom it happens to; `any` is drawn among the nodes that run.
    pub(crate) node: Option<String>,
    /// One side of a cut, or where it comes from; `any` is drawn among the nodes that run.
    #[serde(default)]
    pub(crate) a: Vec<String>,
    /// The other side; none for all others.
    #[serde(default)]
    pub(crate) b: Vec<String>,
    /// What becomes of the network.
    #[serde(default)]
    pub(crate) network: Change,
}

/// What can happen.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FaultKind {
    /// A process is killed.
    Crash,
    /// A machine loses its power: nothing refuses in its name.
    PowerOff,
    /// A process starts again under its former name and address.
    Restart,
    /// A process that was not there before.
    Start,
    /// A node hands everything over, says goodbye and exits.
    Drain,
    /// Nothing passes between `a` and `b`.
    Cut,
    /// Nothing passes from `a` to `b`.
    CutOneWay,
    /// All cuts end.
    Heal,
    /// The network as a whole gets worse, or better.
    Weather,
}

impl FaultKind {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::PowerOff => "power-off",
            Self::Restart => "restart",
            Self::Start => "start",
            Self::Drain => "drain",
            Self::Cut => "cut",
            Self::CutOneWay => "cut-one-way",
            Self::Heal => "heal",
            Self::Weather => "weather",
        }
    }

    const fn is_of_a_node(self) -> bool {
        !matches!(self, Self::Cut | Self::CutOneWay | Self::Heal | Self::Weather)
    }
}

impl Scenario {
    /// Reads and checks a file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let mut scenario =
            Self::parse(&name, &text).with_context(|| format!("in {}", path.display()))?;
        if path.parent() != Some(folder().as_path()) {
            scenario.found_as = path.display().to_string();
        }
        Ok(scenario)
    }

    pub(crate) fn parse(name: &str, text: &str) -> Result<Self> {
        let mut scenario: Self = toml::from_str(text)?;
        name.clone_into(&mut scenario.name);
        name.clone_into(&mut scenario.found_as);
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<()> {
        ensure!((1..=200).contains(&self.nodes), "nodes: 1 to 200 are possible");
        ensure!(self.minutes > 0 && self.finish_minutes > 0, "a phase without time shows nothing");
        let [least, most] = self.tasks.steps;
        ensure!(least > 0 && least <= most, "tasks.steps: at least 1, the lower bound first");
        ensure!(self.tasks.step_ms > 0, "tasks.step_ms: a step takes time");
        for fault in &self.faults {
            let network = self.network.changed(&fault.network);
            network.check().with_context(|| format!("{}: network", fault.kind.label()))?;
        }
        self.network.check().context("network")?;
        self.timing.timing().check()?;
        let known = self.names();
        for fault in &self.faults {
            fault.check(&known)?;
        }
        Ok(())
    }

    pub(crate) fn plants(&self, planted: Planted) -> bool {
        self.planted == Some(planted)
    }

    /// All nodes that there ever are, those of the start first.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = (1..=self.nodes).map(|number| format!("n{number}")).collect();
        let mut seen: BTreeSet<String> = names.iter().cloned().collect();
        for fault in self.faults.iter().filter(|fault| fault.kind == FaultKind::Start) {
            if let Some(name) = &fault.node
                && seen.insert(name.clone())
            {
                names.push(name.clone());
            }
        }
        names
    }

    /// The same with other sizes.
    pub(crate) fn resized(mut self, nodes: Option<u32>, minutes: Option<u32>) -> Result<Self> {
        for (option, size, wanted) in
            [("nodes", &mut self.nodes, nodes), ("minutes", &mut self.minutes, minutes)]
        {
            if let Some(wanted) = wanted {
                *size = wanted;
                self.options += &format!(" --{option} {wanted}");
            }
        }
        self.check().with_context(|| format!("{} with that size", self.name))?;
        Ok(self)
    }

    /// The command that runs it under one seed and shows what happens.
    pub(crate) fn replay(&self, seed: u64) -> String {
        let Self { found_as, options, .. } = self;
        format!(
            "cargo run --release -p simulations -- replay {found_as} --seed {seed}{options} --trace"
        )
    }

    /// What of the tasks and the network enters the bounds: nothing arrives before its host's next turn.
    pub(crate) fn pace(&self) -> Pace {
        let timing = self.timing.timing();
        let changes = self.faults.iter().map(|fault| self.network.changed(&fault.network));
        let fair = changes.filter(|network| network.is_fair(&timing));
        let latency = fair.chain([self.network.clone()]).map(|network| network.latency().1).max();
        let latency = latency.unwrap_or_default();
        Pace {
            step: Duration::from_millis(self.tasks.step_ms),
            delay: latency + Duration::from_millis(self.network.tick_ms),
            ..Pace::default()
        }
    }

    /// How long faults go on.
    pub(crate) const fn unsafe_phase(&self) -> Duration {
        Duration::from_secs(self.minutes as u64 * 60)
    }

    /// How long the cluster has to finish after that.
    pub(crate) const fn finish_phase(&self) -> Duration {
        Duration::from_secs(self.finish_minutes as u64 * 60)
    }
}

impl Fault {
    fn check(&self, known: &[String]) -> Result<()> {
        let kind = self.kind.label();
        let seconds = [Some(self.at), Some(self.jitter), self.every, self.lasts];
        for value in seconds.into_iter().flatten() {
            ensure!((0.0..=1e6).contains(&value), "{kind}: {value} is no number of seconds");
        }
        ensure!(self.every != Some(0.0), "{kind}: every 0 seconds would never end");
        ensure!(
            self.kind.is_of_a_node() == self.node.is_some(),
            "{kind}: `node` says whom it happens to, unless it is a cut or its end, or the weather"
        );
        let cut = matches!(self.kind, FaultKind::Cut | FaultKind::CutOneWay);
        ensure!(cut != self.a.is_empty(), "{kind}: `a` says which side is cut off");
        ensure!(
            (self.kind == FaultKind::Weather) == (self.network != Change::default()),
            "{kind}: `network` says what becomes of it, with the weather"
        );
        for name in self.node.iter().chain(&self.a).chain(&self.b) {
            if name != ANY && !known.contains(name) {
                bail!("{kind}: there is no node {name}");
            }
        }
        ensure!(
            self.kind != FaultKind::Start || self.node.as_deref() != Some(ANY),
            "start: a new node needs a name"
        );
        Ok(())
    }
}

/// Stands for a node that is drawn.
pub(crate) const ANY: &str = "any";

/// The folder of the scenarios that come with the program.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

/// The given scenarios, by name or by path; all that come with the program if none is given.
pub(crate) fn find(wanted: &[String]) -> Result<Vec<Scenario>> {
    if wanted.is_empty() {
        let mut paths: Vec<PathBuf> = fs::read_dir(folder())
            .with_context(|| format!("cannot read {}", folder().display()))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
            .collect();
        paths.sort();
        return paths.iter().map(|path| Scenario::read(path)).collect();
    }
    wanted
        .iter()
        .map(|name| match Path::new(name).extension() {
            Some(_) => Scenario::read(Path::new(name)),
            None => Scenario::read(&folder().join(format!("{name}.toml"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn those_that_come_with_the_program_can_be_read() {
        assert!(find(&[]).unwrap().len() >= 5);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let base = "about = ''\nnodes = 2\nminutes = 1\n";
        assert!(Scenario::parse("s", base).is_ok());
        for fault in [
            "[[fault]]\nkind = 'crash'\nat = 1",
            "[[fault]]\nkind = 'crash'\nat = 1\nnode = 'n3'",
            "[[fault]]\nkind = 'cut'\nat = 1",
            "[[fault]]\nkind = 'cut'\nat = -1\na = ['n1']",
            "[[fault]]\nkind = 'start'\nat = 1\nnode = 'any'",
            "[[fault]]\nkind = 'heal'\nat = 1\nnode = 'n1'",
            "[timing]\nsilence_floor_ms = 100",
            "[tasks]\nsteps = [5, 3]",
            "[network]\nloss = 1.0",
            "[[fault]]\nkind = 'weather'\nat = 1",
            "[[fault]]\nkind = 'weather'\nat = 1\nnetwork = { loss = 1.0 }",
            "[[fault]]\nkind = 'heal'\nat = 1\nnetwork = { loss = 0.1 }",
        ] {
            assert!(Scenario::parse("s", &format!("{base}{fault}")).is_err(), "{fault}");
        }
    }
}
