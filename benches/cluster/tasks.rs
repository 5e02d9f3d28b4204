//! The tasks that are measured.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use handover::{Cx, Step, Task};
use serde::{Deserialize, Serialize};

use crate::meter::{self, StepLog};

/// Notes the first step of every tenure at once, and the last one when the process ends in order:
/// thousands of tasks at hundreds of steps a second would otherwise measure the log.
#[derive(Debug)]
pub struct Recorder {
    log: Arc<StepLog>,
    last: Mutex<BTreeMap<String, meter::Step>>,
}

impl Recorder {
    /// Writes to this log.
    pub const fn new(log: Arc<StepLog>) -> Self {
        Self { log, last: Mutex::new(BTreeMap::new()) }
    }

    fn note(&self, cx: &Cx, seq: u64, start: u64) -> std::io::Result<()> {
        let step = self.log.step(cx.name(), cx.fence().epoch.0, seq, start, 1);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.get_mut(cx.name()) {
            Some(last) if last.epoch == step.epoch => *last = step,
            before => {
                self.log.append(&step)?;
                if let Some(before) = before {
                    // It ran here before, under another epoch.
                    self.log.append(before)?;
                }
                last.insert(step.name.clone(), step);
            }
        }
        Ok(())
    }

    /// Writes the last steps.
    pub fn flush(&self) -> std::io::Result<()> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.values().try_for_each(|step| self.log.append(step))
    }
}

/// What a task does, again and again.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Rhythm {
    /// A step takes so long, in milliseconds, without using the processor.
    pub step_ms: u64,
    /// After each step it waits so long, in milliseconds.
    pub wait_ms: u64,
    /// The size of its state in bytes.
    pub pad: usize,
}

/// The checkpoint of both tasks.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Count {
    steps: u64,
    pad: Bytes,
}

impl Count {
    fn advance(&mut self, pad: usize) {
        self.steps += 1;
        if self.pad.len() != pad {
            self.pad = vec![b'.'; pad].into();
        }
    }
}

/// Steps in a rhythm, for ever.
#[derive(Debug)]
pub struct Beat(pub Arc<Recorder>);

impl Task for Beat {
    const KIND: &'static str = "beat";
    type Args = Rhythm;
    type State = Count;
    type Output = ();

    async fn step(
        &self,
        cx: &mut Cx,
        rhythm: &Rhythm,
        count: &mut Count,
    ) -> handover::Result<Step<()>> {
        let start = meter::now();
        if rhythm.step_ms > 0 {
            tokio::time::sleep(Duration::from_millis(rhythm.step_ms)).await;
        }
        self.0.note(cx, count.steps, start)?;
        count.advance(rhythm.pad);
        Ok(match rhythm.wait_ms {
            0 => Step::More,
            wait => Step::Wait(Duration::from_millis(wait)),
        })
    }
}

/// How long forced checkpoints took, in nanoseconds.
pub type Latencies = Arc<Mutex<Vec<u64>>>;

/// Forces a checkpoint in each step and does nothing else. From the end of one step to the begin of
/// the next lies the time in which a replica has acknowledged it.
#[derive(Debug)]
pub struct Forced {
    /// What was measured.
    pub latencies: Latencies,
    /// When the last step of each task ended.
    pub ended: Mutex<BTreeMap<String, u64>>,
}

impl Task for Forced {
    const KIND: &'static str = "forced";
    type Args = Rhythm;
    type State = Count;
    type Output = ();

    async fn step(
        &self,
        cx: &mut Cx,
        rhythm: &Rhythm,
        count: &mut Count,
    ) -> handover::Result<Step<()>> {
        let begun = meter::now();
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ended) = ended.get(cx.name()) {
            let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
            latencies.push(begun - ended);
        }
        count.advance(rhythm.pad);
        cx.checkpoint_now();
        ended.insert(cx.name().to_owned(), meter::now());
        Ok(Step::More)
    }
}
