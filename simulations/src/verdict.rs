//! What was observed against what was promised.

mod h4;
mod invariants;
mod l4;
mod l7;
mod r7;
mod reach;
mod s3;
#[cfg(test)]
mod tests;
mod v1;
mod v2;
mod v5;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use handover::{Pace, Timing};

pub(crate) use self::invariants::Invariant;
pub(crate) use self::reach::{Reach, Window};
use crate::fabric::{Nanos, nanos};
use crate::host::Told;
use crate::observer::{Record, Span};
use crate::task::Errand;

/// What a run is judged by, beside the record.
pub(crate) struct Circumstances<'a> {
    pub(crate) reach: &'a Reach,
    pub(crate) timing: &'a Timing,
    pub(crate) pace: Pace,
    /// Whether nobody had a reason to miss anybody.
    pub(crate) nobody_missed: bool,
    /// Whether processes ended without a goodbye.
    pub(crate) losses: bool,
    pub(crate) errands: &'a BTreeMap<String, (Nanos, Errand)>,
    pub(crate) told: &'a Told,
    /// The hosts on which a process ran at the end.
    pub(crate) running: &'a BTreeSet<String>,
}

impl Circumstances<'_> {
    /// Nobody was lost and nothing was cut: work moved in good order, if at all.
    fn orderly(&self) -> bool {
        !self.losses && self.reach.is_whole()
    }

    /// How long two copies may go on after a heal.
    fn after_heal(&self, window: &Window) -> Nanos {
        nanos(self.timing.overlap_after_heal(&self.pace(window)))
    }

    fn pace(&self, window: &Window) -> Pace {
        let mut pace = self.pace;
        pace.relayed = window.relayed;
        pace
    }

    /// The cut between the two nodes of a pair that explains why it is there, if one does: from the first of those
    /// that came before the copies of the one before had to end, to the last.
    fn explains(&self, pair: &Pair<'_>) -> Option<Window> {
        let over = |window: &Window| window.healed.map(|healed| healed + self.after_heal(window));
        let mut found: Option<Window> = None;
        for window in self.reach.windows(&pair.one.life.host, &pair.other.life.host) {
            let goes_on = found.filter(|f| over(f).is_none_or(|over| window.cut <= over));
            if window.cut > pair.start && goes_on.is_none() {
                break;
            }
            let cut = goes_on.map_or(window.cut, |before| before.cut);
            found = Some(Window { cut, ..window });
        }
        found.filter(|window| over(window).is_none_or(|over| pair.start < over))
    }

    /// For how long the copies of a pair may run together, given the cut that explains it.
    fn bound(&self, pair: &Pair<'_>, window: Window) -> Option<Nanos> {
        let cut = Duration::from_nanos(window.healed? - window.cut);
        let pace = self.pace(&window);
        // The other one can only have been started by who missed this one.
        let ran_on = pair.one.start < window.cut;
        Some(nanos(match ran_on {
            true => self.timing.overlap_of_cut(cut, &pace),
            false => self.timing.overlap_of_starts(cut, &pace),
        }))
    }
}

/// How long two copies ran at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overlap {
    pub(crate) lasted: Nanos,
    /// And may have, if anything explains it and has ended.
    pub(crate) bound: Option<Nanos>,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) overlaps: Vec<Overlap>,
    /// How long after a heal each pair that outlived it went on.
    pub(crate) after_heal: Vec<Nanos>,
    /// How long a task that had started and not ended ran nowhere.
    pub(crate) gaps: Vec<Nanos>,
    /// How often each invariant had something to hold of.
    pub(crate) checks: BTreeMap<Invariant, u64>,
    pub(crate) violations: Vec<String>,
}

impl Verdict {
    fn check(&mut self, what: Invariant, holds: bool, otherwise: impl FnOnce() -> String) {
        *self.checks.entry(what).or_default() += 1;
        if !holds {
            self.violations.push(format!("{what}: {}", otherwise()));
        }
    }

    /// It held so often.
    fn held(&mut self, what: Invariant, times: u64) {
        if times > 0 {
            *self.checks.entry(what).or_default() += times;
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
    for spans in by_task.values() {
        l4::judge(&mut verdict, spans, circumstances);
        s3::judge(&mut verdict, spans, circumstances);
        l7::judge(&mut verdict, spans, circumstances);
        verdict.overlaps.extend(pairs(spans).map(|pair| {
            let window = circumstances.explains(&pair);
            let bound = window.and_then(|window| circumstances.bound(&pair, window));
            Overlap { lasted: pair.stop - pair.start, bound }
        }));
        verdict.gaps.extend(gaps(spans));
    }
    h4::judge(&mut verdict, record, by_task.values().map(Vec::as_slice), circumstances);
    r7::judge(&mut verdict, record, circumstances);
    v1::judge(&mut verdict, record, circumstances);
    v2::judge(&mut verdict, circumstances);
    v5::judge(&mut verdict, circumstances);
    verdict
}

/// Two copies of a task that ran at once.
struct Pair<'a> {
    one: &'a Span,
    other: &'a Span,
    /// From when to when.
    start: Nanos,
    stop: Nanos,
}

impl std::fmt::Display for Pair<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { one, other, start, stop } = self;
        write!(
            f,
            "{} ran on {} (epoch {}) and on {} (epoch {}) from {} to {}",
            one.task,
            one.life,
            one.epoch,
            other.life,
            other.epoch,
            seconds(*start),
            seconds(*stop)
        )
    }
}

/// All that ran at once, of the spans of one task in the order of their starts. The same process under
/// another epoch is the same copy: the observer sees it run twice.
fn pairs(spans: &[Span]) -> impl Iterator<Item = Pair<'_>> {
    spans.iter().enumerate().flat_map(|(index, other)| {
        let before = spans.iter().take(index).filter(|one| one.life != other.life);
        before.filter_map(move |one| {
            let (start, stop) = (one.start.max(other.start), one.stop.min(other.stop));
            (start < stop).then_some(Pair { one, other, start, stop })
        })
    })
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

fn seconds(at: Nanos) -> String {
    format!("{}.{:03}s", at / 1_000_000_000, at / 1_000_000 % 1_000)
}
