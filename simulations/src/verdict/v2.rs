//! Once all is well again, all nodes agree.

use handover::TaskState;

use super::{Circumstances, Invariant, Verdict};

pub(super) fn judge(verdict: &mut Verdict, around: &Circumstances<'_>) {
    for (task, host) in
        around.errands.keys().flat_map(|t| around.running.iter().map(move |h| (t, h)))
    {
        let known = around.told.known.iter().rfind(|(life, _)| life.host == *host);
        let state = known.and_then(|(_, tasks)| tasks.get(task)).copied();
        verdict.check(Invariant::V2, state == Some(TaskState::Finished), || {
            format!("{host} holds {task} for {state:?}")
        });
    }
}
