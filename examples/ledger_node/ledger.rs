//! The ledger: a task that counts its own losses and repetitions.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use handover::{Cx, Step, Task};
use serde::{Deserialize, Serialize};

use super::meter::StepLog;

/// Appends the numbers 1 to `last` to a file, one line each.
///
/// Appending is not idempotent, on purpose: a step done twice leaves a line twice, a step left out
/// leaves none, and `seq 1 LAST` is what the file should be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ledger {
    /// The file.
    pub path: PathBuf,
    /// The last number.
    pub last: u64,
    /// How long a step takes after its line is written, in milliseconds.
    pub delay_ms: u64,
    /// How many bytes of ballast the state carries.
    pub pad: usize,
    /// After how many steps a checkpoint is forced; zero leaves it to the library.
    pub force_every: u64,
}

/// The checkpoint.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Line {
    next: u64,
    pad: Bytes,
}

impl Default for Line {
    fn default() -> Self {
        Self { next: 1, pad: Bytes::new() }
    }
}

/// The code that runs ledgers.
#[derive(Debug)]
pub struct Clerk {
    /// Where its steps are noted.
    pub log: Arc<StepLog>,
}

impl Task for Clerk {
    const KIND: &'static str = "ledger";
    type Args = Ledger;
    type State = Line;
    type Output = u64;

    async fn step(
        &self,
        cx: &mut Cx,
        ledger: &Ledger,
        at: &mut Line,
    ) -> handover::Result<Step<u64>> {
        let running = self.log.begin(cx.name(), cx.fence().epoch.0, at.next, 1)?;
        let (path, line) = (ledger.path.clone(), at.next);
        let running = cx.blocking(move || append(&path, line).map(|()| running)).await??;
        tokio::time::sleep(Duration::from_millis(ledger.delay_ms)).await;
        drop(running);
        if at.pad.len() != ledger.pad {
            at.pad = vec![b'.'; ledger.pad].into();
        }
        cx.progress(at.next, ledger.last);
        if at.next >= ledger.last {
            return Ok(Step::Done(at.next));
        }
        if ledger.force_every > 0 && at.next.is_multiple_of(ledger.force_every) {
            cx.checkpoint_now();
        }
        at.next += 1;
        Ok(Step::More)
    }
}

/// One `write` in append mode: lines of several writers never mix.
fn append(path: &Path, line: u64) -> io::Result<()> {
    let mut file = File::options().create(true).append(true).open(path)?;
    file.write_all(format!("{line}\n").as_bytes())
}
