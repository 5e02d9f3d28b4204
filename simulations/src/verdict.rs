//! What was observed against what was promised.

use std::collections::{BTreeMap, BTreeSet};

use handover::TaskState;

use crate::fabric::Nanos;
use crate::host::Told;
use crate::observer::{Record, Span};
use crate::task::Errand;

/// A time in which the network was cut somewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) cut: Nanos,
    /// None if it still was at the end.
    pub(crate) healed: Option<Nanos>,
}

/// What a run is judged by, beside the record.
pub(crate) struct Circumstances<'a> {
    pub(crate) windows: &'a [Window],
    /// How long two copies may go on after a heal.
    pub(crate) after_heal: Nanos,
    /// Whether processes ended without a goodbye.
    pub(crate) losses: bool,
    pub(crate) errands: &'a BTreeMap<String, (Nanos, Errand)>,
    pub(crate) told: &'a Told,
    /// The hosts on which a process ran at the end.
    pub(crate) running: &'a BTreeSet<String>,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// How long each pair of copies ran at once.
    pub(crate) overlaps: Vec<Nanos>,
    /// How long after a heal each pair that outlived it went on.
    pub(crate) after_heal: Vec<Nanos>,
    /// How long a task that had started and not ended ran nowhere.
    pub(crate) gaps: Vec<Nanos>,
    /// How often each check had something to check.
    pub(crate) checks: BTreeMap<&'static str, u64>,
    pub(crate) violations: Vec<String>,
}

impl Verdict {
    fn check(&mut self, what: &'static str, holds: bool, otherwise: impl FnOnce() -> String) {
        *self.checks.entry(what).or_default() += 1;
        if !holds {
            self.violations.push(format!("{what}: {}", otherwise()));
        }
    }
}

/// Judges a run.
pub(crate) fn judge(record: &Record, circumstances: &Circumstances<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    let mut by_task: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for span in record.spans() {
        by_task.entry(span.task.clone()).or_default().push(span);
    }
    for (task, spans) in &by_task {
        judge_overlaps(&mut verdict, task, spans, circumstances);
        verdict.gaps.extend(gaps(spans));
    }
    judge_work(&mut verdict, record, circumstances);
    judge_ends(&mut verdict, record, circumstances);
    verdict
}

/// At most one copy runs, except while the network is cut and shortly after.
fn judge_overlaps(verdict: &mut Verdict, task: &str, spans: &[Span], around: &Circumstances<'_>) {
    for (index, one) in spans.iter().enumerate() {
        for other in spans.iter().skip(index + 1) {
            // The same process under another epoch is the same copy: the observer sees it run twice.
            if one.life == other.life {
                continue;
            }
            let (start, stop) = (one.start.max(other.start), one.stop.min(other.stop));
            let overlaps = start < stop;
            if overlaps {
                verdict.overlaps.push(stop - start);
            }
            let window =
                around.windows.iter().rfind(|window| window.cut <= start).filter(|window| {
                    window.healed.is_none_or(|healed| start < healed + around.after_heal)
                });
            let healed = window.and_then(|window| window.healed);
            if let Some(healed) = healed.filter(|healed| overlaps && stop > *healed) {
                verdict.after_heal.push(stop - healed);
            }
            let allowed =
                window.is_some() && healed.is_none_or(|healed| stop <= healed + around.after_heal);
            verdict.check("one copy at a time", !overlaps || allowed, || {
                format!(
                    "{task} ran on {} (epoch {}) and on {} (epoch {}) from {} to {}, {}",
                    one.life,
                    one.epoch,
                    other.life,
                    other.epoch,
                    seconds(start),
                    seconds(stop),
                    healed.map_or_else(
                        || "with no cut that explains it".to_owned(),
                        |healed| format!("healed at {}", seconds(healed)),
                    ),
                )
            });
        }
    }
}

/// The times between the first start and the last stop in which no copy ran and one had before elsewhere.
fn gaps(spans: &[Span]) -> Vec<Nanos> {
    let mut gaps = Vec::new();
    let mut covered: Option<&Span> = None;
    for span in spans {
        if let Some(last) = covered
            && last.stop < span.start
        {
            gaps.push(span.start - last.stop);
        }
        if covered.is_none_or(|last| last.stop < span.stop) {
            covered = Some(span);
        }
    }
    gaps
}

/// A handover loses and repeats nothing; a crash repeats what was not saved.
fn judge_work(verdict: &mut Verdict, record: &Record, around: &Circumstances<'_>) {
    verdict.check("no step without the one before it", record.impossible.is_empty(), || {
        record.impossible.join("; ")
    });
    if !around.losses && around.windows.is_empty() {
        verdict.check("a handover repeats nothing", record.repeated() == 0, || {
            format!("{} steps were carried out again", record.repeated())
        });
        for (task, done) in &record.done {
            verdict.check("a task ends once", done.len() == 1, || {
                format!("{task} was carried out to its end {} times: {done:?}", done.len())
            });
        }
    }
}

/// Every task finishes, everywhere, with the right result.
fn judge_ends(verdict: &mut Verdict, record: &Record, around: &Circumstances<'_>) {
    let told = around.told;
    for failure in told.failures.iter().chain(&told.unclean) {
        verdict.check("nodes start, and drains leave nothing behind", false, || failure.clone());
    }
    for (task, (_, errand)) in around.errands {
        verdict.check("a task is taken on", told.taken_on.contains(task), || {
            format!("{task}: {:?}", told.refusals)
        });
        verdict.check("a task finishes", record.done.contains_key(task), || {
            format!("{task} was never carried out to its end")
        });
        let output = told.outputs.get(task);
        verdict.check("a result is right", output == Some(&Ok(errand.steps)), || {
            format!("{task} was to count to {}, and brought {output:?}", errand.steps)
        });
        for host in around.running {
            let known = told.known.iter().rfind(|(life, _)| life.host == *host);
            let state = known.and_then(|(_, tasks)| tasks.get(task)).copied();
            verdict.check("all nodes know the end", state == Some(TaskState::Finished), || {
                format!("{host} holds {task} for {state:?}")
            });
        }
    }
}

fn seconds(at: Nanos) -> String {
    format!("{}.{:03}s", at / 1_000_000_000, at / 1_000_000 % 1_000)
}

#[cfg(test)]
mod tests;
