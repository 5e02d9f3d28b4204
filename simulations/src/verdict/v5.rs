//! Processes come and go as they are told, and leave nothing behind.

use super::{Circumstances, Invariant, Verdict};

pub(super) fn judge(verdict: &mut Verdict, around: &Circumstances<'_>) {
    let told = around.told;
    verdict.held(Invariant::V5Start, told.started);
    for failure in &told.failures {
        verdict.check(Invariant::V5Start, false, || failure.clone());
    }
    verdict.held(Invariant::V5Drain, told.clean);
    for unclean in &told.unclean {
        verdict.check(Invariant::V5Drain, false, || unclean.clone());
    }
}
