//! The task that all scenarios run: it counts, and tells the observer.

use std::sync::Arc;
use std::time::Duration;

use handover::{Cx, Result, Step, Task};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::observer::{Life, Observer};
use crate::planted::Planted;

/// Counts its steps up to a number, under the observer's eyes.
pub(crate) struct Count {
    pub(crate) observer: Arc<Observer>,
    pub(crate) life: Life,
    pub(crate) planted: Option<Planted>,
}

/// How far to count, and how slowly.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Errand {
    pub(crate) steps: u64,
    pub(crate) step_ms: u64,
}

/// How far it has come.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Counted {
    steps: u64,
}

impl Task for Count {
    const KIND: &'static str = "count";
    type Args = Errand;
    type State = Counted;
    type Output = u64;

    async fn step(&self, cx: &mut Cx, errand: &Errand, counted: &mut Counted) -> Result<Step<u64>> {
        let _under_way = self.observer.enter(cx.name(), &self.life, cx.fence().epoch.0);
        sleep(Duration::from_millis(errand.step_ms)).await;
        if self.planted == Some(Planted::LeftOutStep) && counted.steps == 5 {
            counted.steps += 1;
        }
        self.observer.completed(cx.name(), &self.life, counted.steps);
        counted.steps += 1;
        cx.progress(counted.steps, errand.steps);
        if counted.steps < errand.steps || self.planted == Some(Planted::EndlessTask) {
            return Ok(Step::More);
        }
        self.observer.done(cx.name(), &self.life);
        let more = u64::from(self.planted == Some(Planted::WrongResult));
        Ok(Step::Done(counted.steps + more))
    }
}
