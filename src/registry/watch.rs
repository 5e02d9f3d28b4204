//! Watching names: a bounded stream of what happens to them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use serde::Serialize;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

use super::{Entry, Registry, TaskState};
use crate::core::branch::Progress;
use crate::core::ids::{Name, NodeId};
use crate::core::lease::Epoch;

/// Something that happened to a name, as this node saw it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[non_exhaustive]
pub enum TaskEvent {
    /// It runs, for the first time in this run or after a pause.
    Started {
        /// The task.
        name: Name,
        /// Where.
        node: NodeId,
        /// Under which epoch.
        epoch: Epoch,
    },
    /// It runs on another node, or in another process of the same one.
    Moved {
        /// The task.
        name: Name,
        /// Where it ran before.
        from: NodeId,
        /// Where it runs now.
        to: NodeId,
        /// Under which epoch.
        epoch: Epoch,
    },
    /// It moved, and this is how far it had come.
    Progress {
        /// The task.
        name: Name,
        /// How far.
        progress: Progress,
    },
    /// It was paused.
    Paused {
        /// The task.
        name: Name,
    },
    /// It waits: no node can run it, or it is in quarantine.
    Parked {
        /// The task.
        name: Name,
        /// What it waits for, for people.
        needs: String,
    },
    /// Its run ended.
    Finished {
        /// The task.
        name: Name,
        /// How: finished, failed, cancelled or superseded.
        state: TaskState,
    },
    /// Two nodes held it at once, and one of them has stopped. Every node that the loser has a link to is told.
    Conflict {
        /// The task.
        name: Name,
        /// Who goes on.
        kept: NodeId,
        /// Who stopped.
        stopped: NodeId,
        /// For how long both ran it. Zero if one of them only held it.
        overlap: Duration,
    },
    /// Its record is gone: the retention is over.
    Forgotten {
        /// The task.
        name: Name,
    },
    /// The watcher was too slow and missed events; this is how things stand now.
    Lagged {
        /// How many changes were missed, of any name.
        missed: u64,
        /// Everything under the prefix.
        entries: Vec<Entry>,
    },
}

/// One change in the registry; without an event if it is a step between.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) name: Name,
    pub(crate) event: Option<TaskEvent>,
}

/// What to tell watchers of a change of ownership; nothing of the steps between.
pub(super) fn describe(old: Option<&Entry>, new: Option<&Entry>) -> Option<TaskEvent> {
    let Some(new) = new else {
        return old.map(|old| TaskEvent::Forgotten { name: old.name.clone() });
    };
    let name = new.name.clone();
    let same_run = old.filter(|old| old.run == new.run);
    if same_run.is_some_and(|old| old.state == new.state && old.session == new.session) {
        return None;
    }
    match new.state {
        TaskState::Running => match same_run.and_then(|old| old.ran_on.as_ref()) {
            None => Some(TaskEvent::Started { name, node: new.node.clone(), epoch: new.epoch }),
            // An offer that came to nothing: it never stopped.
            Some(from) if *from == new.session => None,
            Some(from) => Some(TaskEvent::Moved {
                name,
                from: from.node.clone(),
                to: new.node.clone(),
                epoch: new.epoch,
            }),
        },
        TaskState::Paused => Some(TaskEvent::Paused { name }),
        TaskState::Parked | TaskState::Quarantined => {
            Some(TaskEvent::Parked { name, needs: new.note.clone() })
        }
        state if state.is_ended() => Some(TaskEvent::Finished { name, state }),
        _ => None,
    }
}

/// The stream behind `Node::watch`: endless, bounded, never in the way of the node. Cancel-safe.
#[derive(Debug)]
pub struct Watch {
    registry: Arc<Registry>,
    prefix: String,
    changes: BroadcastStream<Change>,
}

impl Watch {
    pub(crate) fn new(registry: Arc<Registry>, prefix: String) -> Self {
        let changes = BroadcastStream::new(registry.subscribe());
        Self { registry, prefix, changes }
    }
}

impl Stream for Watch {
    type Item = TaskEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<TaskEvent>> {
        loop {
            let next = ready!(Pin::new(&mut self.changes).poll_next(cx));
            match next {
                None => return Poll::Ready(None),
                Some(Err(BroadcastStreamRecvError::Lagged(missed))) => {
                    return Poll::Ready(Some(TaskEvent::Lagged {
                        missed,
                        entries: self.registry.list(&self.prefix),
                    }));
                }
                Some(Ok(change)) if change.name.as_str().starts_with(&self.prefix) => {
                    if let Some(event) = change.event {
                        return Poll::Ready(Some(event));
                    }
                }
                Some(Ok(_)) => {}
            }
        }
    }
}
