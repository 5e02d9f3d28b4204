//! Where the control loop runs.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Where a node's own work runs: gossip, links and the control loop. Tasks always run on the
/// runtime that `start` was called on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Executor {
    /// On a thread of its own, so that a task that blocks its runtime cannot stop the heartbeat.
    #[default]
    OwnThread,
    /// On the runtime that `start` was called on: for simulations, and for services that never block.
    Current,
}

/// How long the node's own runtime waits for its blocking work (disk) when it ends.
const LINGER: Duration = Duration::from_secs(1);

/// A control loop that was started.
#[derive(Debug)]
pub(crate) struct Running {
    ended: CancellationToken,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Running {
    /// Runs `work` to its end.
    pub(crate) fn spawn<F>(executor: Executor, work: F) -> io::Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let ended = CancellationToken::new();
        // Dropped last of all, also when the work panics.
        let guard = ended.clone().drop_guard();
        let thread = match executor {
            Executor::Current => {
                tokio::spawn(async move {
                    let _guard = guard;
                    work.await;
                });
                None
            }
            Executor::OwnThread => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                Some(thread::Builder::new().name("handover".into()).spawn(move || {
                    let _guard = guard;
                    runtime.block_on(work);
                    runtime.shutdown_timeout(LINGER);
                })?)
            }
        };
        Ok(Self { ended, thread: Mutex::new(thread) })
    }

    /// Waits for its end. Whoever drops a node instead leaves the thread to end by itself: a drop must not block.
    pub(crate) async fn join(&self) {
        self.ended.cancelled().await;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!(target: "handover::node", "the node's own thread panicked");
        }
    }
}
