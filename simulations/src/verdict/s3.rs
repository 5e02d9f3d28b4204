//! An owner whose heartbeat arrives at a node, by whatever path, is not taken over by it.

use super::{Circumstances, Invariant, Pair, Verdict, pairs, seconds};
use crate::fabric::{Nanos, nanos};
use crate::observer::Span;

/// Looks at every pair of copies, and where nobody is missed at every copy that something came in the way of.
pub(super) fn judge(verdict: &mut Verdict, spans: &[Span], around: &Circumstances<'_>) {
    for pair in pairs(spans) {
        if around.nobody_missed {
            verdict.check(Invariant::S3, false, || format!("{pair}, and nobody could be missed"));
            continue;
        }
        let Some((heard, silent)) = missed(&pair, around) else { continue };
        verdict.check(Invariant::S3, heard + silent <= pair.other.start, || {
            format!("{pair}, whose first was heard until {}", seconds(heard))
        });
    }
    if around.nobody_missed {
        let in_the_way = |s: &&Span| around.reach.obstructed(&s.life.host, s.start, s.stop);
        verdict.held(Invariant::S3, spans.iter().filter(in_the_way).count() as u64);
    }
}

/// Until when the later of two heard the earlier one after it had started, and how long it then had to miss it: the
/// silence floor without the rounds of gossip that the last news of it may have been under way. None if it had no
/// time to hear of it, for then it cannot have missed it.
fn missed(pair: &Pair<'_>, around: &Circumstances<'_>) -> Option<(Nanos, Nanos)> {
    let (one, other) = (pair.one, pair.other);
    let heard = around.reach.heard(&one.life.host, &other.life.host, other.start);
    heard.into_iter().rev().find_map(|heard| {
        let rounds = if heard.relayed { 7 } else { 3 };
        let round = around.timing.gossip_interval;
        let spell = heard.until.saturating_sub(heard.from.max(one.start));
        (spell > nanos(round * rounds)).then(|| {
            (heard.until, nanos(around.timing.silence_floor.saturating_sub(round * rounds)))
        })
    })
}
