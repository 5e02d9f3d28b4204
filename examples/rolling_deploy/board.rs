//! What one sees while it runs: bars on a terminal, lines of text elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::control::TaskStatus;
use super::corpus::mebibytes;

/// Between two lines of text where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Status comes in four times a second.
const REDRAWS_PER_SECOND: u8 = 4;

/// What a node process is doing, for people.
#[derive(Clone, Debug)]
pub struct NodeLine {
    /// Its id and revision.
    pub label: String,
    /// Its id.
    pub id: String,
    /// "up", "draining", …
    pub state: &'static str,
}

/// The display.
#[derive(Debug)]
pub struct Board {
    started: Instant,
    last_line: Instant,
    bars: Option<Bars>,
}

#[derive(Debug)]
struct Bars {
    all: MultiProgress,
    nodes: ProgressBar,
    tasks: BTreeMap<String, ProgressBar>,
}

impl Board {
    /// Bars if standard output is a terminal.
    pub fn new(tasks: &[(String, u64)]) -> Self {
        let bars = std::io::stdout().is_terminal().then(|| Bars::new(tasks));
        Self { started: Instant::now(), last_line: Instant::now(), bars }
    }

    /// Something happened.
    pub fn say(&self, what: &str) {
        let line = format!("{:6.1} s  {what}", self.started.elapsed().as_secs_f64());
        match &self.bars {
            Some(bars) => {
                let _ = bars.all.println(line);
            }
            None => println!("{line}"),
        }
    }

    /// Shows how things stand.
    pub fn show(
        &mut self,
        nodes: &[NodeLine],
        tasks: &BTreeMap<String, TaskStatus>,
        done: &BTreeSet<&str>,
    ) {
        let lines: Vec<_> = nodes.iter().map(|node| node.text(tasks, done)).collect();
        if let Some(bars) = &self.bars {
            bars.nodes.set_message(lines.join("\n"));
            for (name, bar) in &bars.tasks {
                let status = tasks.get(name);
                if done.contains(name.as_str()) {
                    bar.set_position(bar.length().unwrap_or_default());
                    bar.set_message("done");
                } else if let Some(status) = status {
                    bar.set_position(status.done.max(bar.position()));
                    bar.set_message(status.node.clone().unwrap_or_else(|| "-".into()));
                }
            }
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let so_far: u64 = tasks.values().map(|task| task.done).sum();
            let finished = done.len();
            self.say(&format!(
                "{} done, {finished} tasks finished | {}",
                mebibytes(so_far),
                lines.join(" | ")
            ));
        }
    }

    /// Takes the bars away, leaving the lines.
    pub fn close(&self) {
        if let Some(bars) = &self.bars {
            let _ = bars.all.clear();
            // Bars draw themselves once more when they are dropped.
            bars.all.set_draw_target(ProgressDrawTarget::hidden());
        }
    }
}

impl NodeLine {
    fn text(&self, tasks: &BTreeMap<String, TaskStatus>, done: &BTreeSet<&str>) -> String {
        let mine: Vec<_> = tasks
            .values()
            .filter(|task| task.node.as_deref() == Some(&self.id))
            .filter(|task| !done.contains(task.name.as_str()))
            .filter_map(|task| task.name.rsplit('-').next())
            .collect();
        let Self { label, state, .. } = self;
        format!("{label} {state}, runs {}: {}", mine.len(), mine.join(" "))
    }
}

impl Bars {
    fn new(tasks: &[(String, u64)]) -> Self {
        let target = ProgressDrawTarget::stdout_with_hz(REDRAWS_PER_SECOND);
        let all = MultiProgress::with_draw_target(target);
        let plain = ProgressStyle::with_template("{msg}");
        let style =
            ProgressStyle::with_template("{prefix:16} {bar:32} {percent:>3} %  {bytes:>10}  {msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bars = tasks.iter().map(|(name, len)| {
            let bar = all.add(ProgressBar::new(*len).with_style(style.clone()));
            (name.clone(), bar.with_prefix(name.clone()))
        });
        let tasks = bars.collect();
        let nodes = ProgressBar::new(0)
            .with_style(plain.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Self { nodes: all.add(nodes), all, tasks }
    }
}
