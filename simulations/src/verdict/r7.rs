//! No finished run is born anew.

use super::{Circumstances, Invariant, Verdict};
use crate::observer::Record;

pub(super) fn judge(verdict: &mut Verdict, record: &Record, around: &Circumstances<'_>) {
    if !around.orderly() {
        return;
    }
    for (task, done) in &record.done {
        verdict.check(Invariant::R7, done.len() == 1, || {
            format!("{task} was carried out to its end {} times: {done:?}", done.len())
        });
    }
}
