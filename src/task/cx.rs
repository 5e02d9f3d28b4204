//! What a step is given: who it is, how to report, and how to do work that is tracked.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use crate::clock::SharedClock;
use crate::core::branch::Progress;
use crate::core::claim::Spec;
use crate::core::ids::RunId;
use crate::core::lease::{Fence, Lease};
use crate::core::limits;
use crate::core::time::Time;
use crate::error::{Error, Result};

/// What a step is given beside its args and state.
pub struct Cx {
    shared: Arc<Shared>,
    turn: Turn,
    /// Ends what the running attempt has spawned.
    scope: CancellationToken,
    force: bool,
}

/// What stays the same, or is shared, for as long as a task runs here.
pub(crate) struct Shared {
    pub(crate) spec: Spec,
    pub(crate) handle: Handle,
    pub(crate) clock: SharedClock,
    pub(crate) drain: watch::Receiver<Option<Time>>,
    pub(crate) progress: Mutex<Option<Progress>>,
    /// Cancelled when the task is told to stop at the next boundary.
    pub(crate) stopping: CancellationToken,
    /// Cancelled when the task's loop is gone, for whatever reason.
    pub(crate) life: CancellationToken,
    pub(crate) tracker: TaskTracker,
}

/// What one step runs under.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    pub(crate) lease: Lease,
    /// Number of the last successful step of the line.
    pub(crate) seq: u64,
    /// Failures in a row before this attempt, plus one.
    pub(crate) attempt: u32,
}

impl Cx {
    /// Longest note kept, in bytes.
    pub const MAX_NOTE: usize = 256;

    /// The name the task was started under.
    pub fn name(&self) -> &str {
        self.shared.spec.name.as_str()
    }

    /// Which run of the name this is. Stays the same wherever the task goes.
    pub fn run(&self) -> RunId {
        self.shared.spec.run
    }

    /// 1, or more if the attempts before this one failed without progress since.
    pub fn attempt(&self) -> u32 {
        self.turn.attempt
    }

    /// Says how far the task is, in units of its own; `total` is 0 when unknown. Readable from every
    /// node; it decides nothing.
    pub fn progress(&self, done: u64, total: u64) {
        let mut progress = self.lock();
        let progress = progress.get_or_insert_default();
        progress.done = done;
        progress.total = total;
    }

    /// A line for people beside the progress; cut to [`Cx::MAX_NOTE`] bytes.
    pub fn note(&self, text: impl Into<String>) {
        let text = limits::clipped(text.into(), Self::MAX_NOTE);
        self.lock().get_or_insert_default().note = text;
    }

    /// Whether this node hands its tasks over. A long step may end early then, with
    /// [`Step::More`](crate::Step::More).
    pub fn draining(&self) -> bool {
        self.shared.drain.borrow().is_some()
    }

    /// How much of the drain's budget is left; none while the node does not drain.
    pub fn drain_deadline(&self) -> Option<Duration> {
        let deadline = (*self.shared.drain.borrow())?;
        Some(deadline.since(self.shared.clock.boot()))
    }

    /// Cancelled when this task has been told to stop at its next boundary: its step is then
    /// dropped after a grace. A closure in [`Cx::blocking`] should look at it now and then, since
    /// nothing else can stop it.
    pub fn stopping(&self) -> CancellationToken {
        self.shared.stopping.clone()
    }

    /// The fencing token of the lease this step runs under, for stores and sinks that refuse what
    /// is older. Read it in every step: a task can go on under a higher epoch without stopping.
    pub fn fence(&self) -> Fence {
        Fence::from(&self.turn.lease)
    }

    /// A key for an effect that must not happen twice: the same on every attempt of this step, on
    /// whatever node and under whatever epoch; another for another step, label or run. 32
    /// hexadecimal digits. Effects of one step need different labels.
    pub fn idempotency_key(&self, label: &str) -> String {
        let spec = &self.shared.spec;
        let mut hash = Sha256::new();
        hash.update((spec.name.as_str().len() as u64).to_be_bytes());
        hash.update(spec.name.as_str());
        hash.update(spec.run.uuid);
        hash.update(self.turn.seq.to_be_bytes());
        hash.update(label);
        hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Marks this step: if it returns `Ok`, its state is committed whatever the throttle says, and
    /// the next step does not begin before a replica has acknowledged it (or there is no peer that
    /// could). Put the effect that cannot be undone into that next step.
    ///
    /// It does not wait here, and does nothing if the step fails.
    pub fn checkpoint_now(&mut self) {
        self.force = true;
    }

    /// Runs a closure that blocks or computes for long on the runtime's blocking threads.
    ///
    /// It starts at once. The step is over only when it has returned: a step that is dropped or
    /// fails, and a task that is told to stop, wait for it, so that nothing of the step runs on
    /// beside its repetition. It cannot be cancelled from outside once it runs; see
    /// [`Cx::stopping`].
    ///
    /// # Errors
    /// The future yields a retryable error if the closure panicked, or was not begun because its
    /// step had already been dropped. Dropping the future does not stop the closure.
    ///
    /// ```
    /// use handover::{Cx, Result};
    ///
    /// async fn checksum(cx: &Cx, path: String) -> Result<u64> {
    ///     let bytes = cx.blocking(move || std::fs::read(path)).await??;
    ///     Ok(bytes.iter().map(|byte| u64::from(*byte)).sum())
    /// }
    /// ```
    pub fn blocking<F, T>(&self, closure: F) -> Tracked<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (scope, span) = (self.scope.clone(), Span::current());
        let run = move || (!scope.is_cancelled()).then(|| span.in_scope(closure));
        let shared = &self.shared;
        Tracked(shared.tracker.spawn_blocking_on(run, &shared.handle))
    }

    /// Runs a future beside the step, on the same runtime.
    ///
    /// It starts at once. The step is over only when it has returned; if the step is dropped or
    /// fails, it is dropped too.
    ///
    /// # Errors
    /// The future yields a retryable error if the spawned one panicked, or was dropped with its
    /// step. Dropping the future does not stop the spawned one.
    pub fn spawn<F>(&self, future: F) -> Tracked<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let run = self.scope.clone().run_until_cancelled_owned(future);
        let shared = &self.shared;
        Tracked(shared.tracker.spawn_on(run.in_current_span(), &shared.handle))
    }

    pub(crate) fn new(shared: Arc<Shared>, lease: Lease, seq: u64) -> Self {
        // Closed from the start: waiting then means "until empty", which is what is wanted.
        shared.tracker.close();
        Self {
            scope: shared.life.child_token(),
            turn: Turn { lease, seq, attempt: 1 },
            force: false,
            shared,
        }
    }

    /// One more of the same attempt, for code that outlives a single step.
    pub(crate) fn share(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            turn: self.turn.clone(),
            scope: self.scope.clone(),
            force: false,
        }
    }

    pub(crate) fn turn(&self) -> &Turn {
        &self.turn
    }

    pub(crate) fn begin(&mut self, turn: Turn) {
        self.turn = turn;
        self.force = false;
    }

    pub(crate) fn takes_force(&mut self) -> bool {
        std::mem::take(&mut self.force)
    }

    /// Waits for everything tracked.
    pub(crate) async fn join(&self) {
        if !self.shared.tracker.is_empty() {
            self.shared.tracker.wait().await;
        }
    }

    /// Drops what was spawned and keeps closures from beginning. The next attempt has a new scope.
    pub(crate) fn abandon(&mut self) {
        self.scope.cancel();
        self.scope = self.shared.life.child_token();
    }

    pub(crate) fn reported(&self) -> Option<Progress> {
        self.lock().clone()
    }

    pub(crate) fn report(&self, progress: Option<Progress>) {
        *self.lock() = progress;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Progress>> {
        self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx")
            .field("name", &self.shared.spec.name)
            .field("run", &self.shared.spec.run)
            .field("turn", &self.turn)
            .finish_non_exhaustive()
    }
}

/// Work begun with [`Cx::blocking`] or [`Cx::spawn`]: yields its result. Cancel-safe; dropping it
/// stops nothing.
#[derive(Debug)]
#[must_use = "the work runs, but its result is lost"]
pub struct Tracked<T>(JoinHandle<Option<T>>);

impl<T> Future for Tracked<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        Poll::Ready(match ready!(Pin::new(&mut self.0).poll(cx)) {
            Ok(Some(value)) => Ok(value),
            Ok(None) => Err(Error::retry("the work was dropped with its step")),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => Err(Error::panicked("tracked work", &*panic)),
                Err(error) => Err(error.into()),
            },
        })
    }
}
