//! All tasks of a node: starts their loops on the user's runtime and passes orders on.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::Instrument;

use super::Cx;
use super::cx::Shared;
use super::kinds::Kinds;
use super::line::{Line, Throttle};
use super::orders::{Halt, Orders, Slots, Wires};
use super::reconcile;
use super::task_loop::{Manners, TaskLoop};
use crate::clock::SharedClock;
use crate::core::branch::{Ancestor, Header, Position, Progress};
use crate::core::claim::Spec;
use crate::core::ids::{Kind, Name};
use crate::core::io::{Event, From, Outcome, Stop, Stuck};
use crate::core::lease::Epoch;
use crate::core::lease::Lease;
use crate::core::time::Time;
use crate::error::Error;

/// What all tasks of a node have in common.
pub(crate) struct RunnerConfig {
    /// The user's runtime: needs its timers enabled.
    pub(crate) handle: Handle,
    pub(crate) clock: SharedClock,
    /// Of this program, for the headers of checkpoints.
    pub(crate) revision: String,
    pub(crate) kinds: Arc<Kinds>,
    pub(crate) throttle: Throttle,
    /// How many tasks may be between their stop and the decision about their transfer.
    pub(crate) slots: usize,
    /// A step that takes longer is warned about.
    pub(crate) drain_budget: Duration,
    /// How long closures may still run after their step was dropped, and a `run` after it was told
    /// that it has moved; then the task counts as unstoppable.
    pub(crate) closure_grace: Duration,
}

/// Runs the tasks of a node. Its methods never wait; dropping it cancels every task.
pub(crate) struct Runner {
    config: RunnerConfig,
    events: mpsc::Sender<Event>,
    tasks: BTreeMap<Name, Entry>,
    permit: watch::Sender<Time>,
    drain: watch::Sender<Option<Time>>,
    slots: Slots,
    /// Cancelled when the user's runtime drops its tasks.
    lost: CancellationToken,
    /// What notices that: it does nothing for as long as it lives.
    _sentinel: AbortOnDropHandle<()>,
}

struct Entry {
    shared: Arc<Shared>,
    orders: watch::Sender<Orders>,
    /// Set just before the last event is sent: nothing of the task runs any more.
    over: Arc<AtomicBool>,
    /// Set once it has been sent.
    told: Arc<AtomicBool>,
    /// Dropped with its entry: that ends the loop, and with it everything of the task but closures.
    _handle: AbortOnDropHandle<()>,
}

impl Entry {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

impl Runner {
    /// Without tasks, and without a permit: no step begins before the first [`Runner::permit`].
    pub(crate) fn new(config: RunnerConfig, events: mpsc::Sender<Event>) -> Self {
        let lost = CancellationToken::new();
        let guard = lost.clone().drop_guard();
        let sentinel = config.handle.spawn(async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        Self {
            slots: Slots::new(config.slots),
            config,
            events,
            lost,
            _sentinel: AbortOnDropHandle::new(sentinel),
            tasks: BTreeMap::new(),
            permit: watch::Sender::new(Time::ZERO),
            drain: watch::Sender::new(None),
        }
    }

    /// Runs a task. Its events end with `Stopped`, `Ended` or `Stuck`, after which it can be
    /// started again.
    pub(crate) fn start(
        &mut self,
        spec: Spec,
        lease: Lease,
        from: From,
        lineage: Vec<Ancestor>,
        seq: u64,
    ) {
        let name = spec.name.clone();
        if let Some(entry) = self.tasks.get(&name)
            && !entry.is_over()
        {
            // Two loops of one name would be the one thing never to happen.
            tracing::error!(target: "handover::task", %name, "already runs: not started again");
            return;
        }
        self.sweep();
        let Some(kind) = self.config.kinds.get(&spec.kind) else {
            self.refuse(&spec, &lease);
            return;
        };
        let (orders, ordered) = watch::channel(Orders {
            lease: lease.clone(),
            halt: None,
            commits: 0,
            acknowledged: None,
        });
        let reported = match &from {
            From::Initial => None,
            From::Checkpoint { header, .. } => header.progress.clone(),
        };
        let shared = Arc::new(Shared {
            spec: spec.clone(),
            handle: self.config.handle.clone(),
            clock: Arc::clone(&self.config.clock),
            drain: self.drain.subscribe(),
            progress: Mutex::new(reported),
            stopping: CancellationToken::new(),
            life: CancellationToken::new(),
            tracker: TaskTracker::new(),
        });
        let wires = Wires {
            orders: ordered,
            permit: self.permit.subscribe(),
            events: self.events.clone(),
            slots: self.slots.clone(),
            clock: Arc::clone(&self.config.clock),
        };
        let span = tracing::info_span!(
            target: "handover::task",
            "task",
            name = %spec.name,
            kind = %spec.kind,
            epoch = lease.epoch.0,
        );
        let cx = Cx::new(Arc::clone(&shared), lease.clone(), seq);
        let writing = (self.config.revision.clone(), self.config.throttle);
        let line = Line::new(spec.clone(), lease, from, lineage, seq, writing);
        let manners = Manners {
            limits: self.config.kinds.limits(),
            drain_budget: self.config.drain_budget,
            closure_grace: self.config.closure_grace,
        };
        let (over, told) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let task = TaskLoop::new(spec, kind, cx, line, wires, manners);
        let whole = supervised(
            task,
            Arc::clone(&shared),
            orders.subscribe(),
            self.events.clone(),
            (Arc::clone(&over), Arc::clone(&told)),
        );
        let handle = AbortOnDropHandle::new(self.config.handle.spawn(whole.instrument(span)));
        self.tasks.insert(name, Entry { shared, orders, over, told, _handle: handle });
    }

    /// Has a task's code choose what state goes on; it may take its time, and block.
    pub(crate) fn reconcile(&self, spec: Spec, epoch: Epoch, branches: Vec<(Header, Bytes)>) {
        let (kind, limits) = (self.config.kinds.get(&spec.kind), self.config.kinds.limits());
        let events = self.events.clone();
        self.config.handle.spawn_blocking(move || {
            let chosen = reconcile::choose(kind.as_ref(), &spec, branches, limits);
            let _ = events.blocking_send(Event::Reconciled { name: spec.name, epoch, chosen });
        });
    }

    /// Stops a task. A name that does not run is ignored: its last event is on its way.
    pub(crate) fn stop(&mut self, name: &Name, how: Stop) {
        let Some(entry) = self.tasks.get(name) else {
            return;
        };
        let halt = match how {
            Stop::WithSlot => Halt::WithSlot,
            Stop::Boundary { grace } => {
                entry.shared.stopping.cancel();
                Halt::By(self.config.clock.boot() + grace)
            }
        };
        entry.orders.send_modify(|orders| orders.stop(halt));
    }

    /// Goes on under a higher epoch, from the next step on.
    pub(crate) fn reepoch(&mut self, name: &Name, lease: Lease) {
        if let Some(entry) = self.tasks.get(name) {
            entry.orders.send_modify(|orders| orders.lease = lease);
        }
    }

    /// Commits every task's newest state, at its next boundary; what a task in a step has kept, now.
    pub(crate) fn commit_all(&mut self) {
        for entry in self.tasks.values() {
            entry.orders.send_modify(|orders| orders.commits += 1);
        }
    }

    /// From the next time on, states of a kind are written in this version, where its code can.
    pub(crate) fn write_version(&self, kind: &Kind, version: u32) {
        self.config.kinds.write_version(kind, version);
    }

    /// Lets steps begin until then (Rule 17); a time that has passed ends the permit.
    pub(crate) fn permit(&self, until: Time) {
        self.permit.send_replace(until);
    }

    /// A transfer is decided: the next task may stop for its own.
    pub(crate) fn free_slot(&mut self, name: &Name) {
        self.slots.free(name);
    }

    /// A commit of this task is held by `replicas` of the `wanted` replicas. One is enough for a
    /// forced checkpoint, none if there is no peer.
    pub(crate) fn replicated(
        &mut self,
        name: &Name,
        position: Position,
        replicas: usize,
        wanted: usize,
    ) {
        if let Some(entry) = self.tasks.get(name)
            && replicas >= wanted.min(1)
        {
            entry.orders.send_if_modified(|orders| {
                let newer = orders.acknowledged < Some(position);
                if newer {
                    orders.acknowledged = Some(position);
                }
                newer
            });
        }
    }

    /// What steps are told of a drain.
    pub(crate) fn draining(&self, deadline: Option<Time>) {
        self.drain.send_replace(deadline);
    }

    /// What a task that runs here last said of its progress.
    pub(crate) fn progress(&self, name: &Name) -> Option<Progress> {
        self.tasks.get(name).filter(|entry| !entry.is_over())?;
        self.last_progress(name)
    }

    /// The same of one that has stopped, as long as no other has taken its place.
    pub(crate) fn last_progress(&self, name: &Name) -> Option<Progress> {
        let entry = self.tasks.get(name)?;
        let progress = entry.shared.progress.lock();
        progress.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Completes when the user's runtime has been shut down, and all tasks with it.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// The user's runtime has dropped every task: their last events are sent for them, once what can
    /// still run of them, closures, has returned. To be called on another runtime.
    pub(crate) fn bury(&mut self) {
        let grace = self.config.closure_grace;
        for (name, entry) in std::mem::take(&mut self.tasks) {
            if entry.told.load(Ordering::Acquire) {
                continue;
            }
            let events = self.events.clone();
            tokio::spawn(async move {
                let epoch = entry.orders.borrow().lease.epoch;
                let tracker = entry.shared.tracker.clone();
                drop(entry);
                if timeout(grace, tracker.wait()).await.is_err() {
                    let _ = events.send(Event::Unstoppable { name: name.clone(), epoch }).await;
                    tracker.wait().await;
                }
                let stopped = Event::Stopped { name, epoch, sealed: None, dropped: true };
                let _ = events.send(stopped).await;
            });
        }
        self.slots.free_all();
    }

    /// How many tasks have not stopped.
    pub(crate) fn running(&self) -> usize {
        self.alive().count()
    }

    /// The tasks that have not stopped, with the epochs they run under.
    pub(crate) fn not_stopped(&self) -> Vec<(Name, Epoch)> {
        let alive = self.tasks.iter().filter(|(_, entry)| !entry.is_over());
        alive.map(|(name, entry)| (name.clone(), entry.orders.borrow().lease.epoch)).collect()
    }

    /// Drops every task where it stands, without an event. Closures cannot be dropped: the future
    /// completes when the last of them has returned.
    pub(crate) fn cancel_all(&mut self) -> impl Future<Output = ()> + use<> {
        self.slots.free_all();
        let trackers: Vec<_> = self.alive().map(|entry| entry.shared.tracker.clone()).collect();
        self.tasks.clear();
        async move {
            for tracker in trackers {
                tracker.wait().await;
            }
        }
    }

    fn alive(&self) -> impl Iterator<Item = &Entry> {
        self.tasks.values().filter(|entry| !entry.is_over())
    }

    /// Forgets tasks that are over, when they have become as many as the others.
    fn sweep(&mut self) {
        let over = self.tasks.len() - self.running();
        if over > self.tasks.len() / 2 {
            self.tasks.retain(|_, entry| !entry.is_over());
        }
    }

    fn refuse(&self, spec: &Spec, lease: &Lease) {
        let events = self.events.clone();
        let why =
            format!("this node does not register the kind {}: start one that does", spec.kind);
        let unreadable = Event::Stuck {
            name: spec.name.clone(),
            epoch: lease.epoch,
            sealed: None,
            why: Stuck::Unreadable(why),
        };
        self.config.handle.spawn(async move {
            let _ = events.send(unreadable).await;
        });
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
        self.shared.life.cancel();
    }
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.tasks.keys()).finish()
    }
}

/// A task's loop with its last event. Should anything panic outside of any attempt, that ends this task and
/// no other.
async fn supervised(
    task: Box<TaskLoop>,
    shared: Arc<Shared>,
    orders: watch::Receiver<Orders>,
    events: mpsc::Sender<Event>,
    (over, told): (Arc<AtomicBool>, Arc<AtomicBool>),
) {
    let last = match AssertUnwindSafe(task.run()).catch_unwind().await {
        Ok(last) => last,
        Err(panic) => {
            shared.life.cancel();
            shared.tracker.wait().await;
            Event::Ended {
                name: shared.spec.name.clone(),
                epoch: orders.borrow().lease.epoch,
                outcome: Outcome::Failed(Error::panicked("the task", &*panic).to_string()),
            }
        }
    };
    over.store(true, Ordering::Release);
    let _ = events.send(last).await;
    told.store(true, Ordering::Release);
}
