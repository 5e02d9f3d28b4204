//! What came of it: a table for people, a summary for programs.

use std::collections::BTreeMap;
use std::process::ExitStatus;

use serde::Serialize;

use super::compress::Job;
use super::corpus::mebibytes;
use super::meter::{Cause, Measured, Move, Percentiles, ProcessEnd, millis};
use super::verify::Verdict;

/// Everything that was found out about a run.
#[derive(Debug)]
pub struct Report<'a> {
    /// What was to be done.
    pub jobs: &'a BTreeMap<String, Job>,
    /// The tasks that gave an output, with its length.
    pub outputs: &'a BTreeMap<String, u64>,
    /// What the check of each output found.
    pub verdicts: &'a BTreeMap<String, Verdict>,
    /// What the meter found.
    pub measured: &'a Measured,
    /// The processes that were signalled during the deploy.
    pub ends: &'a [ProcessEnd],
    /// The processes that were told to stop, then or in the end, and what they exited with.
    pub exits: &'a BTreeMap<String, ExitStatus>,
}

/// The figures of a run.
#[derive(Debug, PartialEq, Serialize)]
pub struct Summary {
    tasks: usize,
    completed: usize,
    lost: usize,
    verified: usize,
    moves_total: usize,
    moves_max_per_task: usize,
    sigterm: Drains,
    sigkill: Kills,
}

#[derive(Debug, PartialEq, Serialize)]
struct Drains {
    gap_ms: Percentiles,
    overlap_ms_max: f64,
    /// Units done by units needed, counting what was redone after these moves.
    redone_ratio: f64,
    /// The longest time from the signal to the end of the process.
    drain_s_max: f64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Kills {
    gap_ms: Percentiles,
    overlap_ms_max: f64,
    /// A unit is a byte of input.
    redone_units_max_per_task: u64,
}

impl Report<'_> {
    /// The figures.
    pub fn summary(&self) -> Summary {
        let by = |cause| self.measured.caused_by(cause).collect::<Vec<_>>();
        let (drained, killed) = (by(Cause::Sigterm), by(Cause::Sigkill));
        let gaps = |moves: &[&Move]| Percentiles::millis(moves.iter().map(|m| m.gap));
        let overlap = |moves: &[&Move]| millis(moves.iter().map(|m| m.overlap).max().unwrap_or(0));
        let redone: u64 = drained.iter().map(|moved| moved.redone).sum();
        let mut redone_by_kill: BTreeMap<&str, u64> = BTreeMap::new();
        for moved in &killed {
            *redone_by_kill.entry(&moved.name).or_default() += moved.redone;
        }
        let drains = self.ends.iter().filter(|end| end.cause == Cause::Sigterm);
        let longest = drains.map(|end| end.exited - end.signalled).max();
        let needed = self.measured.units_needed.max(1);
        Summary {
            tasks: self.jobs.len(),
            completed: self.outputs.len(),
            lost: self.jobs.len() - self.outputs.len(),
            verified: self.verdicts.values().filter(|verdict| verdict.is_intact()).count(),
            moves_total: self.measured.moves.len(),
            moves_max_per_task: self.measured.moves_per_task().into_values().max().unwrap_or(0),
            sigterm: Drains {
                gap_ms: gaps(&drained),
                overlap_ms_max: overlap(&drained),
                redone_ratio: (needed + redone) as f64 / needed as f64,
                drain_s_max: millis(longest.unwrap_or(0)).round() / 1e3,
            },
            sigkill: Kills {
                gap_ms: gaps(&killed),
                overlap_ms_max: overlap(&killed),
                redone_units_max_per_task: redone_by_kill.into_values().max().unwrap_or(0),
            },
        }
    }

    /// Nothing is lost, everything is verified, nothing ran twice at once, and every node that was told
    /// to stop said that all it had is in other hands.
    pub fn is_good(&self) -> bool {
        self.faults().is_empty()
    }

    /// What is not as it should be, and what was not put to the test.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for name in self.jobs.keys() {
            if !self.outputs.contains_key(name) {
                faults.push(format!("{name} is lost: it gave no output"));
            }
            match self.verdicts.get(name) {
                Some(Verdict::Intact { .. }) => {}
                Some(Verdict::Damaged(why)) => faults.push(format!("{name} is damaged: {why}")),
                None => faults.push(format!("{name} was not verified")),
            }
        }
        for moved in self.measured.moves.iter().filter(|moved| moved.overlap > 0) {
            let Move { name, from, to, .. } = moved;
            let overlap = millis(moved.overlap);
            faults.push(format!("{name} ran on {from} and {to} at once for {overlap} ms"));
        }
        if self.measured.overlap > 0 && self.measured.moves.iter().all(|m| m.overlap == 0) {
            faults.push("a task ran twice at once on one node".into());
        }
        for (node, status) in self.exits.iter().filter(|(_, status)| !status.success()) {
            let why = "75 says that it kept tasks that no other node was given";
            faults.push(format!("{node} was told to stop and ended with {status}, not 0 ({why})"));
        }
        for (cause, what) in [(Cause::Sigterm, "SIGTERM"), (Cause::Sigkill, "SIGKILL")] {
            if self.measured.caused_by(cause).next().is_none() {
                faults.push(format!("no task ran on a node that got {what}: it was not put to the test; give the tasks more to do, with more --input or without --quick"));
            }
        }
        faults
    }

    /// Prints the table and what it comes to.
    pub fn print(&self) {
        println!();
        println!(
            "{:<18} {:>10} {:>10}  {:<22} {:>9} {:>10}  verified",
            "task", "input", "output", "ran on", "gaps, ms", "redone"
        );
        for (name, job) in self.jobs {
            self.print_task(name, job);
        }
        let summary = self.summary();
        println!();
        println!(
            "{} tasks, {} completed, {} lost, {} verified; {} moves, at most {} per task",
            summary.tasks,
            summary.completed,
            summary.lost,
            summary.verified,
            summary.moves_total,
            summary.moves_max_per_task
        );
        let Percentiles { p50, p99, max } = summary.sigterm.gap_ms;
        println!(
            "SIGTERM: gap p50 {p50} ms, p99 {p99} ms, max {max} ms; overlap {} ms; \
             work done / needed {:.4}; longest drain {} s",
            summary.sigterm.overlap_ms_max,
            summary.sigterm.redone_ratio,
            summary.sigterm.drain_s_max
        );
        let Percentiles { p50, p99, max } = summary.sigkill.gap_ms;
        let after = self.after_the_kill();
        println!(
            "SIGKILL: gap p50 {p50} ms, p99 {p99} ms, max {max} ms, of which after the kill itself \
             p50 {} ms, max {} ms (the rest is the step it cut off); overlap {} ms; \
             redone at most {} per task",
            after.p50,
            after.max,
            summary.sigkill.overlap_ms_max,
            mebibytes(summary.sigkill.redone_units_max_per_task)
        );
        let unprompted = self.measured.moves.iter().filter(|m| m.unprompted).count();
        if unprompted > 0 {
            println!("{unprompted} moves from nodes that had got no signal");
        }
        for fault in self.faults() {
            println!("FAULT: {fault}");
        }
        println!();
        if self.is_good() {
            println!(
                "Nothing is lost, everything is verified, nothing ran twice at once, and every node that \
                 was told to stop exited with 0."
            );
        }
    }

    /// From the signal to the first step of the new owner. The gap begins earlier, since a step that
    /// was cut off is work lost.
    fn after_the_kill(&self) -> Percentiles {
        let times = self.measured.caused_by(Cause::Sigkill).filter_map(|moved| {
            let end = self.ends.iter().find(|end| end.node == moved.from)?;
            Some(moved.start.saturating_sub(end.signalled))
        });
        Percentiles::millis(times)
    }

    fn print_task(&self, name: &str, job: &Job) {
        let owners = self.measured.tenures.get(name).into_iter().flatten();
        let path: Vec<_> = owners.map(|tenure| tenure.node.as_str()).collect();
        let moves: Vec<_> = self.measured.moves.iter().filter(|m| m.name == name).collect();
        let gaps: Vec<_> = moves.iter().map(|moved| format!("{:.0}", millis(moved.gap))).collect();
        let redone = moves.iter().map(|moved| moved.redone).sum();
        let (output, verdict) = match self.verdicts.get(name) {
            Some(Verdict::Intact { compressed, sha256 }) => {
                (mebibytes(*compressed), format!("sha256 {}…", sha256.get(..12).unwrap_or(sha256)))
            }
            Some(Verdict::Damaged(_)) => ("-".into(), "DAMAGED".into()),
            None => ("-".into(), "NO".into()),
        };
        println!(
            "{name:<18} {:>10} {output:>10}  {:<22} {:>9} {:>10}  {verdict}",
            mebibytes(job.source.len),
            path.join(" > "),
            gaps.join(" "),
            mebibytes(redone),
        );
    }
}
