//! Once all is well again, every task runs and ends, and what it brought can be read.

use super::{Circumstances, Invariant, Verdict};
use crate::observer::Record;

pub(super) fn judge(verdict: &mut Verdict, record: &Record, around: &Circumstances<'_>) {
    let told = around.told;
    for (task, (_, errand)) in around.errands {
        verdict.check(Invariant::V1Start, told.taken_on.contains(task), || {
            format!("{task}: {:?}", told.refusals)
        });
        verdict.check(Invariant::V1End, record.done.contains_key(task), || {
            format!("{task} was never carried out to its end")
        });
        let output = told.outputs.get(task);
        verdict.check(Invariant::V1Output, output == Some(&Ok(errand.steps)), || {
            format!("{task} was to count to {}, and brought {output:?}", errand.steps)
        });
    }
}
