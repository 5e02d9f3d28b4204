//! Two copies of a task run for no longer than the cut that allowed them lets them: from when its owner can have been
//! missed, until a heal is noticed and the loser has reached a step boundary.

use super::{Circumstances, Invariant, Verdict, pairs, seconds};
use crate::observer::Span;

/// Looks at every pair of copies.
pub(super) fn judge(verdict: &mut Verdict, spans: &[Span], around: &Circumstances<'_>) {
    for pair in pairs(spans) {
        // What nothing explains is another invariant's.
        let Some(window) = around.explains(&pair) else { continue };
        let Some((healed, bound)) = window.healed.zip(around.bound(&pair, window)) else {
            continue;
        };
        let lasted = pair.stop - pair.start;
        verdict.check(Invariant::L7, lasted <= bound, || {
            let (lasted, bound) = (seconds(lasted), seconds(bound));
            format!("{pair}, which is {lasted}, over the bound of {bound}")
        });
        if pair.stop > healed {
            verdict.after_heal.push(pair.stop - healed);
            verdict.check(Invariant::L7, pair.stop <= healed + around.after_heal(&window), || {
                format!("{pair}, healed at {}", seconds(healed))
            });
        }
    }
}
