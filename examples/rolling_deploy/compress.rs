//! The task: compresses a range of a file, one frame of zstd per step.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use handover::{Cx, Step, Task};
use serde::{Deserialize, Serialize};

use super::corpus::Source;
use super::meter::StepLog;

/// What to compress.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// From where.
    pub source: Source,
    /// To where.
    pub output: PathBuf,
    /// How much of the source goes into one frame, in bytes.
    pub frame: u64,
    /// How hard zstd tries.
    pub level: i32,
    /// How long a step takes at least, in milliseconds: on a fast machine the tasks would
    /// otherwise be finished before the deploy is.
    pub pace_ms: u64,
}

/// How far it is: the checkpoint.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)] // this revision reads what the next one writes, and the other way round
pub struct Position {
    /// Bytes of the source that are done.
    pub read: u64,
    /// Bytes of the output that are in place.
    pub written: u64,
    /// Frames written.
    pub frames: u64,
}

/// The code that runs it.
#[derive(Debug)]
pub struct Compress {
    /// Where its steps are noted.
    pub log: Arc<StepLog>,
}

impl Task for Compress {
    const KIND: &'static str = "compress";
    type Args = Job;
    type State = Position;
    type Output = u64;

    async fn step(&self, cx: &mut Cx, job: &Job, at: &mut Position) -> handover::Result<Step<u64>> {
        let len = job.frame.min(job.source.len - at.read);
        let last = at.read + len == job.source.len;
        let earliest_end = tokio::time::Instant::now() + Duration::from_millis(job.pace_ms);
        let running = self.log.begin(cx.name(), cx.fence().epoch.0, at.frames, len)?;

        let (job_, read, written) = (job.clone(), at.read, at.written);
        let (frame, running) = cx
            .blocking(move || {
                // `running` goes where the work is, and ends no earlier.
                write_frame(&job_, read, len, written, last).map(|frame| (frame, running))
            })
            .await??;
        tokio::time::sleep_until(earliest_end).await;
        drop(running);

        at.read += len;
        at.written += frame;
        at.frames += 1;
        cx.progress(at.read, job.source.len);
        Ok(if last { Step::Done(at.written) } else { Step::More })
    }
}

/// Compresses one frame into its place and returns its length.
///
/// The same input gives the same bytes at the same offset, whoever writes them and however often.
/// So a frame that was written and not checkpointed is written again without harm, and a process
/// that is slow to die cannot damage what its successor writes.
fn write_frame(job: &Job, read: u64, len: u64, written: u64, last: bool) -> io::Result<u64> {
    let mut input = vec![0; len as usize];
    File::open(&job.source.path)?.read_exact_at(&mut input, job.source.offset + read)?;
    let frame = zstd::encode_all(input.as_slice(), job.level)?;
    let output = File::options().create(true).truncate(false).write(true).open(&job.output)?;
    output.write_all_at(&frame, written)?;
    let end = written + frame.len() as u64;
    if last {
        output.set_len(end)?;
    }
    // On the disk before the checkpoint says so.
    output.sync_data()?;
    Ok(frame.len() as u64)
}
