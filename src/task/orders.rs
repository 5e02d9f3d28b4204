//! What the control loop tells a task's loop: orders, the permit, transfer slots.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::clock::SharedClock;
use crate::core::branch::Position;
use crate::core::ids::Name;
use crate::core::io::Event;
use crate::core::lease::Lease;
use crate::core::time::Time;

/// What a task's loop is to do. Only the newest counts, so nothing can queue up.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    /// Under which lease to go on.
    pub(crate) lease: Lease,
    /// How to stop.
    pub(crate) halt: Option<Halt>,
    /// How often a commit at the next boundary has been ordered.
    pub(crate) commits: u64,
    /// The newest commit that as many replicas hold as can be asked for.
    pub(crate) acknowledged: Option<Position>,
}

impl Orders {
    /// Adds an order to stop: a boundary overrides a slot, the earlier deadline the later.
    pub(crate) fn stop(&mut self, halt: Halt) {
        self.halt = Some(match (self.halt, halt) {
            (Some(Halt::By(old)), Halt::By(new)) => Halt::By(old.min(new)),
            (Some(Halt::By(old)), Halt::WithSlot) => Halt::By(old),
            (_, new) => new,
        });
    }
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Halt {
    /// At a boundary at which a slot is free.
    WithSlot,
    /// At the next boundary; the step is dropped at this time.
    By(Time),
}

/// A task loop's connections to the control loop.
#[derive(Debug)]
pub(crate) struct Wires {
    pub(crate) orders: watch::Receiver<Orders>,
    pub(crate) permit: watch::Receiver<Time>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) slots: Slots,
    pub(crate) clock: SharedClock,
}

impl Wires {
    pub(crate) fn now(&self) -> Time {
        self.clock.boot()
    }

    /// How long until `time`; zero when it has come.
    pub(crate) fn until(&self, time: Time) -> Duration {
        time.since(self.now())
    }

    /// Whether steps and commits are permitted now (Rule 17).
    pub(crate) fn is_permitted(&self) -> bool {
        self.now() < *self.permit.borrow()
    }

    /// Sends an event, waiting for room. Never returns once nobody receives: the loop is about to
    /// be cancelled then, and must do nothing more.
    pub(crate) async fn send(&self, event: Event) {
        if self.events.send(event).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Waits for a new value. Never returns once the sender is gone, for the same reason.
pub(crate) async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The transfer slots of a node, and who holds them. A task takes one when it stops; the control
/// loop frees it when the transfer is decided.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    held: Arc<Mutex<BTreeMap<Name, OwnedSemaphorePermit>>>,
}

impl Slots {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(slots.clamp(1, Semaphore::MAX_PERMITS))),
            held: Arc::default(),
        }
    }

    /// Takes a slot if one is free.
    pub(crate) fn try_take(&self, name: &Name) -> bool {
        let slot = Arc::clone(&self.free).try_acquire_owned();
        slot.map(|slot| self.hold(name, slot)).is_ok()
    }

    /// Waits for a slot, first come, first served. Cancel-safe.
    pub(crate) async fn take(&self, name: &Name) {
        match Arc::clone(&self.free).acquire_owned().await {
            Ok(slot) => self.hold(name, slot),
            // Never closed.
            Err(_) => std::future::pending().await,
        }
    }

    pub(crate) fn free(&self, name: &Name) {
        self.lock().remove(name);
    }

    pub(crate) fn free_all(&self) {
        self.lock().clear();
    }

    fn hold(&self, name: &Name, slot: OwnedSemaphorePermit) {
        self.lock().insert(name.clone(), slot);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Name, OwnedSemaphorePermit>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
