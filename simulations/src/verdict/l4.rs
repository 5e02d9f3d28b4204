//! At most one copy of a task runs in a component of the network: where nothing is cut, one.

use super::{Circumstances, Invariant, Verdict, pairs};
use crate::observer::Span;

/// Looks at every start of a task, whose spans these are in order.
pub(super) fn judge(verdict: &mut Verdict, spans: &[Span], around: &Circumstances<'_>) {
    verdict.held(Invariant::L4, spans.len() as u64);
    for pair in pairs(spans).filter(|pair| around.explains(pair).is_none()) {
        verdict.check(Invariant::L4, false, || {
            format!("{pair}, with no cut between them that explains it")
        });
    }
}
