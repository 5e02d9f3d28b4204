//! What the control loop shows to handles: written by it alone, read without waiting.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::{broadcast, watch};

use super::command::Goodbye;
use super::drain::DrainReport;
use super::event::{Events, NodeEvent};
use super::status::PeerStatus;
use crate::core::record::NodeState;
use crate::registry::Registry;

/// The node at a glance.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// The machine's state.
    pub(crate) state: NodeState,
    /// Joined, with peers or alone on purpose, and not on the way out.
    pub(crate) ready: bool,
    /// A drain has begun; it never ends otherwise than with the node.
    pub(crate) draining: bool,
    /// The control loop has ended.
    pub(crate) closed: bool,
    /// The other nodes.
    pub(crate) peers: Arc<[PeerStatus]>,
}

/// Shared by the control loop, the node and its handles.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) registry: Arc<Registry>,
    view: watch::Sender<View>,
    /// None once the node has closed, which ends the readers' streams.
    events: Mutex<Option<Told>>,
    /// How the drain went, also when the loop has ended.
    report: OnceLock<DrainReport>,
    /// How the goodbye went, likewise.
    goodbye: OnceLock<Goodbye>,
}

/// Where events go.
#[derive(Debug)]
struct Told {
    sender: broadcast::Sender<NodeEvent>,
    /// What was told before anybody could listen, for the first who does.
    early: Option<VecDeque<NodeEvent>>,
    /// How many more there were.
    missed: u64,
    backlog: usize,
}

impl Board {
    /// With room for `backlog` events and changes that a reader has not read yet.
    pub(crate) fn new(backlog: usize) -> Self {
        Self {
            registry: Arc::new(Registry::new(backlog)),
            view: watch::Sender::new(View {
                state: NodeState::Joining,
                ready: false,
                draining: false,
                closed: false,
                peers: Arc::new([]),
            }),
            events: Mutex::new(Some(Told {
                sender: broadcast::channel(backlog.max(1)).0,
                early: Some(VecDeque::new()),
                missed: 0,
                backlog,
            })),
            report: OnceLock::new(),
            goodbye: OnceLock::new(),
        }
    }

    /// There is one drain in a node's life.
    pub(crate) fn drained(&self, report: DrainReport) {
        let _ = self.report.set(report);
    }

    /// How the drain went; that nothing is known of it, where there was none.
    pub(crate) fn report(&self) -> DrainReport {
        let unknown = || DrainReport { unknown: true, ..DrainReport::default() };
        self.report.get().cloned().unwrap_or_else(unknown)
    }

    /// There is one goodbye that is heard.
    pub(crate) fn left(&self, goodbye: Goodbye) {
        let _ = self.goodbye.set(goodbye);
    }

    /// How the goodbye went, where there was one.
    pub(crate) fn goodbye(&self) -> Option<Goodbye> {
        self.goodbye.get().copied()
    }

    pub(crate) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    pub(crate) fn views(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Changes the view; wakes those who wait for it only if `change` says that it did.
    pub(crate) fn update(&self, change: impl FnOnce(&mut View) -> bool) {
        self.view.send_if_modified(change);
    }

    pub(crate) fn tell(&self, event: NodeEvent) {
        if let Some(told) = &mut *self.events.lock().unwrap_or_else(PoisonError::into_inner) {
            match &mut told.early {
                Some(early) if early.len() < told.backlog => early.push_back(event.clone()),
                Some(_) => told.missed += 1,
                None => {}
            }
            // Nobody listens: nothing to tell.
            let _ = told.sender.send(event);
        }
    }

    pub(crate) fn events(&self) -> Events {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *events {
            Some(told) => {
                let mut early = told.early.take().unwrap_or_default();
                if told.missed > 0 {
                    early.push_back(NodeEvent::Lagged { missed: told.missed });
                }
                Events::new(early, told.sender.subscribe())
            }
            None => Events::new(VecDeque::new(), broadcast::channel(1).1),
        }
    }

    /// Ends every stream and every wait.
    pub(crate) fn close(&self) {
        self.registry.close();
        self.events.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.update(|view| {
            view.closed = true;
            view.ready = false;
            true
        });
    }
}
