//! A neutral meter: who ran what, and when. It knows nothing of the library that is measured.
//!
//! The tasks' own code writes one JSON line when a step begins and one when it ends, into an
//! append-only file per process. The lines survive `SIGKILL`, since each is one `write` to the page
//! cache. All times are nanoseconds of `CLOCK_BOOTTIME`, which all processes of a host share.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Nanoseconds of `CLOCK_BOOTTIME`.
pub fn now() -> u64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The task.
    pub name: String,
    /// The epoch of the lease under which it ran.
    pub epoch: u64,
    /// Which part of the task's work this is: the same part done again has the same number.
    pub seq: u64,
    /// Where.
    pub node: String,
    /// Begin.
    pub start: u64,
    /// End; none in the line that was written at the beginning.
    pub end: Option<u64>,
    /// How much work the step is, in units of the task.
    pub units: u64,
}

/// The log of one process.
#[derive(Debug)]
pub struct StepLog {
    file: File,
    node: String,
}

impl StepLog {
    /// Opens `DIRECTORY/NODE.steps.jsonl` for appending.
    pub fn open(directory: &Path, node: &str) -> io::Result<Self> {
        let path = directory.join(format!("{node}.steps.jsonl"));
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Self { file, node: node.to_owned() })
    }

    /// Notes that a step begins. Dropping what is returned notes the end, so that a step that fails
    /// or panics has one too; only the death of the process leaves a step without an end.
    pub fn begin(
        self: &Arc<Self>,
        name: &str,
        epoch: u64,
        seq: u64,
        units: u64,
    ) -> io::Result<Running> {
        let step = Step { end: None, ..self.step(name, epoch, seq, now(), units) };
        self.append(&step)?;
        let log = Arc::clone(self);
        Ok(Running { log, step })
    }

    /// Describes a step on this node that has just ended.
    pub fn step(&self, name: &str, epoch: u64, seq: u64, start: u64, units: u64) -> Step {
        Step {
            name: name.to_owned(),
            epoch,
            seq,
            node: self.node.clone(),
            start,
            end: Some(now()),
            units,
        }
    }

    /// Writes one line. A single `write` in append mode: lines of different threads never mix.
    pub fn append(&self, step: &Step) -> io::Result<()> {
        let mut line = serde_json::to_vec(step)?;
        line.push(b'\n');
        (&self.file).write_all(&line)
    }
}

/// A step under way.
#[derive(Debug)]
pub struct Running {
    log: Arc<StepLog>,
    step: Step,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.step.end = Some(now());
        if let Err(error) = self.log.append(&self.step) {
            // Without the line the step counts as running until the process ends.
            eprintln!("the step log could not be written: {error}");
        }
    }
}

/// Reads all logs of a directory. A torn last line, as a kill may leave it, is skipped.
pub fn read(directory: &Path) -> io::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if !path.to_string_lossy().ends_with(".steps.jsonl") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        for line in text.split_inclusive('\n') {
            match serde_json::from_str(line) {
                Ok(step) => steps.push(step),
                Err(_) if !line.ends_with('\n') => {}
                Err(error) => {
                    let what = format!("{}: {error} in {line:?}", path.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
            }
        }
    }
    Ok(steps)
}

/// What ended a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// It was told to stop.
    Sigterm,
    /// It was killed.
    Sigkill,
}

/// The end of a process, as seen by whoever sent the signal.
#[derive(Clone, Debug)]
pub struct ProcessEnd {
    /// Whose.
    pub node: String,
    /// Why.
    pub cause: Cause,
    /// Just before the signal was sent.
    pub signalled: u64,
    /// When the process was seen to be gone.
    pub exited: u64,
}

impl ProcessEnd {
    /// Until when a step counts as running that has a beginning and no end. A killed process runs
    /// no code of its own once the signal is delivered, and its sockets close only after that.
    fn last_moment(&self) -> u64 {
        match self.cause {
            Cause::Sigterm => self.exited,
            Cause::Sigkill => self.signalled,
        }
    }
}

/// One owner's stretch of a task: all steps under one epoch on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// Where.
    pub node: String,
    /// Under which epoch.
    pub epoch: u64,
    /// When its first step began.
    pub start: u64,
    /// Which part of the work that was.
    pub first_seq: u64,
    /// When its last step ended, or was cut off.
    pub end: u64,
    /// When the last step ended that was not cut off; the start if none was.
    pub last_end: u64,
}

/// One change of the node that runs a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The task.
    pub name: String,
    /// The old owner.
    pub from: String,
    /// The new owner.
    pub to: String,
    /// What made the task leave: the end of the old owner's process if it had been signalled
    /// before the new owner began, else the phase of the run in which it happened.
    pub cause: Cause,
    /// The old owner's process had not been signalled: nobody asked for this move.
    pub unprompted: bool,
    /// When the new owner's first step began.
    pub start: u64,
    /// From the end of the old owner's last whole step to the start of the new owner's first, in
    /// nanoseconds. What a killed owner had begun counts as a pause.
    pub gap: u64,
    /// For how long two owners' tenures overlapped, in nanoseconds.
    pub overlap: u64,
    /// Units the old owner had begun and the new one did again.
    pub redone: u64,
}

/// What the merged logs say.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// All moves, task by task in order.
    pub moves: Vec<Move>,
    /// Units of all distinct parts of work.
    pub units_needed: u64,
    /// Units of all steps ever begun.
    pub units_done: u64,
    /// The longest time for which any task ran twice at once, in nanoseconds.
    pub overlap: u64,
    /// Who ran each task, in order.
    pub tenures: BTreeMap<String, Vec<Tenure>>,
}

impl Measured {
    /// Merges the logs. `ends` are the processes that were signalled, `until` is when the logs were
    /// read: the end of steps of processes that are still alive.
    pub fn new(steps: &[Step], ends: &[ProcessEnd], until: u64) -> Self {
        let mut measured = Self::default();
        for (name, steps) in by_task(steps) {
            measured.add_task(&name, &steps, ends, until);
        }
        measured
    }

    fn add_task(&mut self, name: &str, steps: &[Step], ends: &[ProcessEnd], until: u64) {
        let mut parts: BTreeMap<u64, u64> = BTreeMap::new();
        for step in steps {
            self.units_done += step.units;
            let needed = parts.entry(step.seq).or_default();
            *needed = step.units.max(*needed);
        }
        self.units_needed += parts.values().sum::<u64>();

        let tenures = tenures(steps, ends, until);
        let mut done: BTreeSet<u64> = BTreeSet::new();
        let mut running_until = 0;
        for (index, tenure) in tenures.iter().enumerate() {
            let overlap = running_until.min(tenure.end).saturating_sub(tenure.start);
            running_until = running_until.max(tenure.end);
            self.overlap = self.overlap.max(overlap);

            let redone = steps
                .iter()
                .filter(|step| step.node == tenure.node && step.epoch == tenure.epoch)
                .filter(|step| !done.insert(step.seq))
                .map(|step| step.units)
                .sum();
            let Some(old) = index.checked_sub(1).and_then(|old| tenures.get(old)) else {
                continue;
            };
            if old.node == tenure.node {
                continue; // a new epoch on the same node is no move
            }
            let ended = ends
                .iter()
                .filter(|end| end.node == old.node && end.exited >= old.start)
                .find(|end| end.signalled <= tenure.start);
            self.moves.push(Move {
                name: name.to_owned(),
                from: old.node.clone(),
                to: tenure.node.clone(),
                cause: ended.map_or_else(|| phase(ends, tenure.start), |end| end.cause),
                unprompted: ended.is_none(),
                start: tenure.start,
                gap: tenure.start.saturating_sub(old.last_end),
                overlap,
                redone,
            });
        }
        self.tenures.insert(name.to_owned(), tenures);
    }

    /// How often each task moved.
    pub fn moves_per_task(&self) -> BTreeMap<&str, usize> {
        let mut count = BTreeMap::new();
        for moved in &self.moves {
            *count.entry(moved.name.as_str()).or_default() += 1;
        }
        count
    }

    /// The moves with one cause.
    pub fn caused_by(&self, cause: Cause) -> impl Iterator<Item = &Move> {
        self.moves.iter().filter(move |moved| moved.cause == cause)
    }
}

/// What was going on at `at`: the last signal before it.
fn phase(ends: &[ProcessEnd], at: u64) -> Cause {
    ends.iter()
        .filter(|end| end.signalled <= at)
        .max_by_key(|end| end.signalled)
        .map_or(Cause::Sigterm, |end| end.cause)
}

/// Joins the two lines of each step, and sorts the steps of each task by time.
fn by_task(lines: &[Step]) -> BTreeMap<String, Vec<Step>> {
    let mut steps: BTreeMap<(&str, u64, u64, &str, u64), Step> = BTreeMap::new();
    for line in lines {
        let key = (line.name.as_str(), line.start, line.seq, line.node.as_str(), line.epoch);
        let step = steps.entry(key).or_insert_with(|| line.clone());
        step.end = step.end.max(line.end);
    }
    let mut tasks: BTreeMap<String, Vec<Step>> = BTreeMap::new();
    for step in steps.into_values() {
        tasks.entry(step.name.clone()).or_default().push(step);
    }
    tasks
}

/// The tenures of one task's steps, by their start.
fn tenures(steps: &[Step], ends: &[ProcessEnd], until: u64) -> Vec<Tenure> {
    let mut tenures: BTreeMap<(u64, &str), Tenure> = BTreeMap::new();
    for step in steps {
        let last_moment = || {
            // A step can begin after the signal was noted and before it was delivered.
            ends.iter()
                .filter(|end| end.node == step.node && end.exited >= step.start)
                .min_by_key(|end| end.exited)
                .map_or(until, ProcessEnd::last_moment)
        };
        let end = step.end.unwrap_or_else(last_moment).max(step.start);
        let tenure = tenures.entry((step.epoch, &step.node)).or_insert_with(|| Tenure {
            node: step.node.clone(),
            epoch: step.epoch,
            start: step.start,
            first_seq: step.seq,
            end,
            last_end: step.start,
        });
        if step.start < tenure.start {
            tenure.start = step.start;
            tenure.first_seq = step.seq;
        }
        tenure.end = tenure.end.max(end);
        tenure.last_end = tenure.last_end.max(step.end.unwrap_or(0));
    }
    let mut tenures: Vec<_> = tenures.into_values().collect();
    tenures.sort_by_key(|tenure| (tenure.start, tenure.epoch));
    tenures
}

/// Nearest-rank percentiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Percentiles {
    /// Of any numbers; zeros if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let rank = |p: f64| {
            let nearest = (p * values.len() as f64).ceil() as usize;
            let index = nearest.saturating_sub(1);
            values.get(index).copied().unwrap_or_default()
        };
        Self { p50: rank(0.50), p99: rank(0.99), max: rank(1.0) }
    }

    /// Of nanoseconds, in milliseconds rounded to microseconds.
    pub fn millis(nanos: impl IntoIterator<Item = u64>) -> Self {
        Self::of(nanos.into_iter().map(millis))
    }
}

/// Nanoseconds as milliseconds, rounded to microseconds.
pub fn millis(nanos: u64) -> f64 {
    (nanos as f64 / 1e3).round() / 1e3
}
