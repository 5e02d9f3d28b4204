//! Two copies of a task run for no longer than the cut that allowed them, and until a heal is noticed
//! and the loser has reached a step boundary.

use super::{Circumstances, Invariant, Verdict, pairs, seconds};
use crate::observer::Span;

/// Looks at every pair of copies that outlived a heal.
pub(super) fn judge(verdict: &mut Verdict, spans: &[Span], around: &Circumstances<'_>) {
    for pair in pairs(spans) {
        let Some(healed) = around.explains(pair.start).and_then(|window| window.healed) else {
            continue;
        };
        if pair.stop > healed {
            verdict.after_heal.push(pair.stop - healed);
            verdict.check(Invariant::L7, pair.stop <= healed + around.after_heal, || {
                format!("{pair}, healed at {}", seconds(healed))
            });
        }
    }
}
