//! A task goes on from the state at which it stopped: no step is left out, and none is repeated where
//! everybody could say goodbye.

use super::{Circumstances, Invariant, Verdict};
use crate::observer::{Record, Span};

pub(super) fn judge<'a>(
    verdict: &mut Verdict,
    record: &Record,
    tasks: impl Iterator<Item = &'a [Span]>,
    around: &Circumstances<'_>,
) {
    verdict.held(Invariant::H4Skips, record.completed());
    for impossible in &record.impossible {
        verdict.check(Invariant::H4Skips, false, || impossible.clone());
    }
    if !around.orderly() {
        return;
    }
    let moves = |spans: &[Span]| spans.windows(2).filter(|two| two[0].life != two[1].life).count();
    verdict.held(Invariant::H4Repeats, tasks.map(moves).sum::<usize>() as u64);
    let repeated = record.repeated();
    if repeated > 0 {
        verdict.check(Invariant::H4Repeats, false, || {
            format!("{repeated} steps were carried out again")
        });
    }
}
