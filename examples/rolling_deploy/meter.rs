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
        Ok(Self {
            file,
            node: node.to_owned(),
        })
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
        let step = Step {
            end: None,
            ..self.step(name, epoch, seq, now(), units)
        };
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
        let key = (
            line.name.as_str(),
            line.start,
            line.seq,
            line.node.as_str(),
            line.epoch,
        );
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
            ends.iter()
                .find(|end| end.node == step.node && end.signalled >= step.start)
                .map_or(until, ProcessEnd::last_moment)
        };
        let end = step.end.unwrap_or_else(last_moment).max(step.start);
        let tenure = tenures
            .entry((step.epoch, &step.node))
            .or_insert_with(|| Tenure {
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
        Self {
            p50: rank(0.50),
            p99: rank(0.99),
            max: rank(1.0),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn step(node: &str, epoch: u64, seq: u64, start: u64, end: impl Into<Option<u64>>) -> Step {
        Step {
            name: "t".into(),
            epoch,
            seq,
            node: node.into(),
            start: start * MS,
            end: end.into().map(|end| end * MS),
            units: 10,
        }
    }

    fn end(node: &str, cause: Cause, signalled: u64, exited: u64) -> ProcessEnd {
        ProcessEnd {
            node: node.into(),
            cause,
            signalled: signalled * MS,
            exited: exited * MS,
        }
    }

    fn measure(steps: &[Step], ends: &[ProcessEnd]) -> Measured {
        Measured::new(steps, ends, 1_000_000 * MS)
    }

    #[test]
    fn the_gap_lies_between_the_last_end_and_the_first_start() {
        let steps = [
            step("b", 2, 3, 37, 45),
            step("a", 1, 1, 10, 20),
            step("a", 1, 2, 20, 30),
        ];
        let measured = measure(&steps, &[end("a", Cause::Sigterm, 25, 60)]);
        let [moved] = measured.moves.as_slice() else {
            panic!("one move, not {:?}", measured.moves);
        };
        assert_eq!((moved.from.as_str(), moved.to.as_str()), ("a", "b"));
        assert_eq!(moved.gap, 7 * MS);
        assert_eq!(moved.cause, Cause::Sigterm);
        assert!(!moved.unprompted);
        assert_eq!((moved.overlap, moved.redone, measured.overlap), (0, 0, 0));
        assert_eq!((measured.units_done, measured.units_needed), (30, 30));
    }

    #[test]
    fn two_owners_at_once_are_an_overlap_and_no_gap() {
        let steps = [step("a", 1, 1, 10, 30), step("b", 2, 2, 25, 40)];
        let measured = measure(&steps, &[]);
        assert_eq!(measured.overlap, 5 * MS);
        assert_eq!(measured.moves[0].overlap, 5 * MS);
        assert_eq!(measured.moves[0].gap, 0);
        assert!(measured.moves[0].unprompted);
    }

    #[test]
    fn owners_that_take_turns_without_touching_overlap_all_the_same() {
        let steps = [
            step("a", 1, 1, 10, 20),
            step("b", 2, 1, 22, 28),
            step("a", 1, 2, 30, 40),
        ];
        assert_eq!(measure(&steps, &[]).overlap, 6 * MS);
    }

    #[test]
    fn an_overlap_with_an_owner_before_the_last_is_seen() {
        let steps = [
            step("a", 1, 1, 10, 100),
            step("b", 2, 2, 20, 30),
            step("c", 3, 3, 90, 120),
        ];
        let measured = measure(&steps, &[]);
        assert_eq!(measured.moves[0].overlap, 10 * MS);
        assert_eq!(measured.moves[1].overlap, 10 * MS);
    }

    #[test]
    fn work_done_twice_is_counted_against_the_move_that_caused_it() {
        let steps = [
            step("a", 1, 1, 10, 20),
            step("a", 1, 2, 20, 30),
            step("a", 1, 3, 30, None),
            step("b", 2, 2, 50, 60),
            step("b", 2, 3, 60, 70),
            step("b", 2, 4, 70, 80),
        ];
        let measured = measure(&steps, &[end("a", Cause::Sigkill, 35, 36)]);
        assert_eq!(measured.moves[0].redone, 20);
        assert_eq!(measured.moves[0].cause, Cause::Sigkill);
        assert_eq!((measured.units_done, measured.units_needed), (60, 40));
    }

    #[test]
    fn a_step_cut_off_by_a_kill_ran_until_the_kill_and_its_time_counts_as_pause() {
        let cut = [
            step("a", 1, 1, 10, 20),
            step("a", 1, 2, 20, None),
            step("b", 2, 2, 40, 50),
        ];
        let late = measure(&cut, &[end("a", Cause::Sigkill, 35, 60)]);
        assert_eq!((late.overlap, late.moves[0].gap), (0, 20 * MS));
        let early = measure(&cut, &[end("a", Cause::Sigkill, 45, 60)]);
        assert_eq!(early.overlap, 5 * MS);
    }

    #[test]
    fn a_step_that_never_ends_overlaps_with_every_later_owner() {
        let steps = [step("a", 1, 1, 10, None), step("b", 2, 1, 40, 50)];
        assert_eq!(measure(&steps, &[]).overlap, 10 * MS);
        let stuck = measure(&steps, &[end("a", Cause::Sigterm, 20, 44)]);
        assert_eq!(stuck.overlap, 4 * MS);
    }

    #[test]
    fn a_task_can_move_twice_for_two_causes() {
        let steps = [
            step("a", 1, 1, 10, 20),
            step("b", 2, 2, 30, 40),
            step("c", 3, 3, 60, 70),
        ];
        let ends = [
            end("a", Cause::Sigterm, 15, 50),
            end("b", Cause::Sigkill, 42, 43),
        ];
        let measured = measure(&steps, &ends);
        assert_eq!(measured.moves_per_task(), BTreeMap::from([("t", 2)]));
        assert_eq!(measured.caused_by(Cause::Sigterm).count(), 1);
        let killed: Vec<_> = measured.caused_by(Cause::Sigkill).collect();
        assert_eq!((killed.len(), killed[0].gap), (1, 20 * MS));
    }

    #[test]
    fn a_move_that_nobody_asked_for_belongs_to_the_phase_in_which_it_happened() {
        let steps = [step("b", 1, 1, 10, 20), step("c", 2, 2, 60, 70)];
        let ends = [
            end("a", Cause::Sigterm, 15, 50),
            end("d", Cause::Sigkill, 55, 56),
        ];
        let measured = measure(&steps, &ends);
        assert!(measured.moves[0].unprompted);
        assert_eq!(measured.moves[0].cause, Cause::Sigkill);
    }

    #[test]
    fn a_new_epoch_on_the_same_node_is_no_move() {
        let steps = [step("a", 1, 1, 10, 20), step("a", 2, 2, 30, 40)];
        assert!(measure(&steps, &[]).moves.is_empty());
    }

    #[test]
    fn both_lines_of_a_step_are_one_step() {
        let lines = [step("a", 1, 1, 10, None), step("a", 1, 1, 10, 20)];
        let measured = measure(&lines, &[]);
        assert_eq!((measured.units_done, measured.units_needed), (10, 10));
        assert_eq!(measured.tenures["t"][0].end, 20 * MS);
    }

    #[test]
    fn what_is_logged_is_read_back_and_a_torn_tail_is_skipped() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(StepLog::open(directory.path(), "a").unwrap());
        drop(log.begin("t", 7, 1, 5).unwrap());
        std::mem::forget(log.begin("t", 7, 2, 5).unwrap());
        (&log.file).write_all(b"{\"name\":\"t\",\"ep").unwrap();
        let lines = read(directory.path()).unwrap();
        assert_eq!(lines.len(), 3);
        let measured = Measured::new(&lines, &[], now());
        assert_eq!(measured.units_done, 10);
        let tenure = &measured.tenures["t"][0];
        assert!(
            tenure.epoch == 7 && tenure.start <= tenure.last_end && tenure.last_end < tenure.end
        );
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a.steps.jsonl"), "{\n{}\n").unwrap();
        assert!(read(directory.path()).is_err());
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let hundred = Percentiles::of((1..=100).map(f64::from));
        assert_eq!((hundred.p50, hundred.p99, hundred.max), (50.0, 99.0, 100.0));
        let one = Percentiles::of([4.5]);
        assert_eq!((one.p50, one.p99, one.max), (4.5, 4.5, 4.5));
        assert_eq!(Percentiles::of([]), Percentiles::default());
    }
}
