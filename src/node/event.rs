//! What a node tells its user.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

use crate::core::ids::{Name, SessionId};
use crate::core::io::{Cause, Gone};
use crate::core::lease::Epoch;
use crate::core::record::NodeState;
use crate::registry::TaskState;

/// Something that happened on or to this node.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[non_exhaustive]
pub enum NodeEvent {
    /// The node's own state changed.
    State {
        /// To this.
        state: NodeState,
    },
    /// A peer was seen for the first time.
    PeerUp {
        /// Which.
        peer: SessionId,
    },
    /// A peer is gone.
    PeerGone {
        /// Which.
        peer: SessionId,
        /// Why.
        why: Gone,
    },
    /// A task runs here now.
    Started {
        /// The task.
        name: Name,
        /// Under which epoch.
        epoch: Epoch,
        /// Why.
        cause: Cause,
        /// Who had it before.
        from: Option<SessionId>,
    },
    /// A task of this node runs elsewhere now.
    Moved {
        /// The task.
        name: Name,
        /// Where.
        to: SessionId,
        /// Under which epoch.
        epoch: Epoch,
    },
    /// A task of this node was released, to be taken by anybody.
    Released {
        /// The task.
        name: Name,
        /// How many replicas hold its last commit.
        replicas: usize,
    },
    /// A task cannot run anywhere now.
    Parked {
        /// The task.
        name: Name,
        /// Why.
        why: String,
    },
    /// Three takeovers in a row brought a task no further: it waits for `resume`.
    Quarantined {
        /// The task.
        name: Name,
    },
    /// A task cannot be stopped, and is therefore not released.
    Unstoppable {
        /// The task.
        name: Name,
    },
    /// A task ended here.
    Ended {
        /// The task.
        name: Name,
        /// How.
        state: TaskState,
    },
    /// Two nodes held a task at once, and this was one of them. Told once the loser has stopped.
    Conflict {
        /// The task.
        name: Name,
        /// Who goes on.
        kept: SessionId,
        /// Who has stopped.
        stopped: SessionId,
        /// For how long both ran it, as measured by the loser: from the later start to its stop. Zero if one of
        /// them only held it.
        overlap: Duration,
    },
    /// What copies of a task had done apart has become one state again, as its
    /// [`reconcile`](crate::Task::reconcile) says; it goes on here.
    Reconciled {
        /// The task.
        name: Name,
        /// How many there were.
        branches: usize,
    },
    /// A task's newest state could not be had.
    StateLost {
        /// The task.
        name: Name,
        /// What was done instead.
        what: String,
    },
    /// A finished run ended a copy of itself that had been born again.
    Reborn {
        /// The task.
        name: Name,
    },
    /// Too many nodes fell silent at once: takeover pauses (the brake).
    Brake {
        /// For how long.
        pause: Duration,
    },
    /// A file of the data directory was damaged; what was intact before it is used.
    Damaged {
        /// What was damaged, and what is used instead.
        what: String,
    },
    /// Datagrams come that this node cannot open: somebody has another key or cluster name, or knocks.
    /// Told once in ten seconds at most for each reason. Nothing was answered.
    Stranger {
        /// Where they seem to come from: nothing proves it.
        from: SocketAddr,
        /// What is wrong, and what to do.
        why: String,
    },
    /// No seed has answered so far; the node goes on trying. Check their addresses, the key and the
    /// cluster's name: who has others is not answered.
    SeedsUnreachable {
        /// Which were tried.
        tried: String,
    },
    /// A peer is heard by datagrams, and for longer than the silence floor no link to it has stood:
    /// checkpoints, tasks and calls go between the two by way of a third node at best.
    /// Open the port for TCP too, or mend `advertise` there or here. Told once, and again only if a
    /// link has stood in between.
    Unlinked {
        /// Which.
        peer: SessionId,
        /// Where it should be reached.
        address: SocketAddr,
    },
    /// Gossip ended unexpectedly and was started anew.
    GossipRestarted {
        /// Why it ended.
        why: String,
    },
    /// The runtime that this node was started on, where its tasks ran, has been shut down. What it ran
    /// is handed over from the last commits, and it takes nothing more: let it leave.
    RuntimeLost,
    /// Something a person should look at.
    Warning {
        /// What.
        text: String,
    },
    /// The reader was too slow and missed events.
    Lagged {
        /// How many.
        missed: u64,
    },
}

/// The stream behind `Node::events`: bounded; it ends when the node closes. Cancel-safe.
#[derive(Debug)]
pub struct Events {
    early: VecDeque<NodeEvent>,
    later: BroadcastStream<NodeEvent>,
}

impl Events {
    /// First what is `early`, then what is received.
    pub(crate) fn new(
        early: VecDeque<NodeEvent>,
        receiver: broadcast::Receiver<NodeEvent>,
    ) -> Self {
        Self { early, later: BroadcastStream::new(receiver) }
    }
}

impl Stream for Events {
    type Item = NodeEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<NodeEvent>> {
        if let Some(event) = self.early.pop_front() {
            return Poll::Ready(Some(event));
        }
        Poll::Ready(match ready!(Pin::new(&mut self.later).poll_next(cx)) {
            Some(Ok(event)) => Some(event),
            Some(Err(BroadcastStreamRecvError::Lagged(missed))) => {
                Some(NodeEvent::Lagged { missed })
            }
            None => None,
        })
    }
}
