//! The node: everything joined, and the library's public face.

mod actions;
mod backlog;
mod board;
mod boot;
mod builder;
mod command;
mod conflicts;
mod control;
mod disk;
mod drain;
mod draining;
mod error;
mod event;
mod executor;
mod handle;
mod intake;
mod metrics;
mod notices;
mod peers;
mod pending;
mod queries;
mod records;
mod requests;
mod revision;
mod seeds;
mod status;
mod tally;
mod wire;

pub use builder::NodeBuilder;
pub use drain::{DrainReport, Trigger};
pub use error::{HandleError, LeaveError, NodeClosed, OutputError, RunError, StartError};
pub use event::{Events, NodeEvent};
pub use executor::Executor;
pub use handle::Handle;
pub use seeds::Seeds;
pub use status::{KindStatus, PeerStatus, RunningTask, Status};

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use uuid::{NoContext, Timestamp, Uuid};

use crate::clock::SharedClock;
use crate::core::claim::Spec;
use crate::core::ids::{Kind, Name, RunId, SessionId};
use crate::core::io::CallError;
use crate::core::message::Refusal;
use crate::core::record::NodeState;
use crate::registry::{Entry, Registry, Watch};
use crate::task::{Job, Kinds};
use board::Board;
use command::Command;
use executor::Running;

/// Process groups deliver a signal twice: a second one this soon is the same one.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// A node of the cluster: starts, finds and watches tasks, and hands its own over when told to.
///
/// Cheap to clone; all clones are the same node. When the last one is dropped the node ends as if its
/// process had been killed: call [`Node::leave`] instead.
///
/// Every method can be cancelled by dropping its future, and none panics. What had been asked for by then
/// may still happen.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    cluster: String,
    session: SessionId,
    address: SocketAddr,
    clock: SharedClock,
    commands: mpsc::Sender<Command>,
    board: Arc<Board>,
    drain_budget: Duration,
    accept_delay: Duration,
    call_timeout: Duration,
    started: Instant,
    /// How long after its start a node may find names on its disk.
    booting: Duration,
    convergence: Duration,
    kinds: Arc<Kinds>,
    running: Running,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("cluster", &self.0.cluster)
            .field("session", &self.0.session)
            .field("address", &self.0.address)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Begins to describe a node of the named cluster. Nodes of different clusters never talk.
    pub fn builder(cluster: impl Into<String>) -> NodeBuilder {
        NodeBuilder::new(cluster.into())
    }

    /// Starts a task, or joins the run that the name has already, ended ones included while they are
    /// retained. Where it runs is the cluster's choice. Returns once the task is known to another
    /// node, where there is one; [`Node::whereis`] of this node knows it by then.
    ///
    /// The name alone says which task is meant: a call that joins a run changes nothing of it, and its
    /// `args` are not used, whether or not they are those that the run was started with. A task of
    /// another kind is not joined, which is an error. As everything about a name it is decided by
    /// what this node knows: the error is certain once the run is known here, and calls that are
    /// made at the same time on several nodes can all be answered with the one run that is started.
    ///
    /// # Errors
    /// See [`RunError`]. Except for `TimedOut`, `Superseded` and `Closed`, nothing was started. If the future is
    /// dropped the task may start all the same; calling again joins it.
    pub async fn run<T: Job>(
        &self,
        name: impl AsRef<str>,
        args: T::Args,
    ) -> Result<Handle<T>, RunError> {
        self.start::<T>(name.as_ref(), &args, false).await
    }

    /// As [`Node::run`], but starts another run if the name's last one has ended, with these `args` and
    /// of whatever kind. A run that goes on is joined, also while it is being cancelled: wait for its end first.
    ///
    /// # Errors
    /// As for [`Node::run`].
    pub async fn rerun<T: Job>(
        &self,
        name: impl AsRef<str>,
        args: T::Args,
    ) -> Result<Handle<T>, RunError> {
        self.start::<T>(name.as_ref(), &args, true).await
    }

    async fn start<T: Job>(
        &self,
        name: &str,
        args: &T::Args,
        again: bool,
    ) -> Result<Handle<T>, RunError> {
        let name = Name::new(name)?;
        let kind = Kind::new(T::kind())?;
        let args = self.0.kinds.encode_args(args)?;
        let spec = Spec {
            name: name.clone(),
            run: RunId { number: 0, uuid: self.fresh_uuid() },
            kind: kind.clone(),
            args,
        };
        let answer = self.call(|reply| Command::Run { spec, again, reply }).await?;
        match answer {
            None => Err(RunError::TimedOut),
            Some(Ok(run)) => Ok(Handle::new(self.clone(), Ok(name), Some(run))),
            Some(Err(CallError::NoNode(Refusal::Incompatible))) => Err(RunError::UnknownKind(kind)),
            Some(Err(CallError::NoNode(Refusal::Full))) => Err(RunError::Full),
            Some(Err(CallError::NoNode(Refusal::TooManyNames))) => Err(RunError::TooManyNames),
            Some(Err(CallError::NoNode(Refusal::NotUp))) => Err(RunError::NotUp(kind)),
            Some(Err(CallError::NoNode(other))) => Err(RunError::Refused(other.to_string())),
            Some(Err(CallError::OtherKind(running))) => {
                Err(RunError::OtherKind { name, running, asked: kind })
            }
            Some(Err(CallError::NotReady)) => Err(RunError::NotReady),
            Some(Err(CallError::Superseded)) => Err(RunError::Superseded),
            Some(Err(other)) => Err(RunError::Refused(other.to_string())),
        }
    }

    /// A handle to whatever run the name has, or will have. Asks nobody: of a name that cannot exist,
    /// and of a task of another kind, the handle's methods tell.
    pub fn get<T: Job>(&self, name: &str) -> Handle<T> {
        Handle::new(self.clone(), Name::new(name), None)
    }

    /// Who holds a name, as far as this node knows. Answered from memory, never waits.
    ///
    /// None says that the name is unknown *here*, not that there is no such task: gossip may not have
    /// brought it yet, in particular to a node that is not ready. What a node finds on its own disk
    /// is known from the start, as [`TaskState::Stored`](crate::TaskState::Stored), until the others
    /// have been heard. To be sure that something runs, [`Node::run`] it: the name makes it one task.
    pub fn whereis(&self, name: &str) -> Option<Entry> {
        self.registry().get(&Name::new(name).ok()?)
    }

    /// Everything known under a prefix, in the order of names. Copies: meant for people and tools.
    pub fn list(&self, prefix: &str) -> Vec<Entry> {
        self.registry().list(prefix)
    }

    /// What happens from now on to names under a prefix. Bounded: a reader that is too slow gets
    /// [`TaskEvent::Lagged`](crate::TaskEvent::Lagged) with everything as it stands. Ends when the node closes.
    pub fn watch(&self, prefix: impl Into<String>) -> Watch {
        Watch::new(self.0.board.registry.clone(), prefix.into())
    }

    /// What happens from now on to this node. The first that this is called for also gets what has
    /// happened since the start, such as damage found in the data directory. Bounded; ends when the node
    /// closes.
    pub fn events(&self) -> Events {
        self.0.board.events()
    }

    /// This node's session.
    pub fn session(&self) -> &SessionId {
        &self.0.session
    }

    /// The address others reach this node by.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Where this node stands in its life.
    pub fn state(&self) -> NodeState {
        self.0.board.view().state
    }

    /// Whether traffic may come: joined, knowing its peers' records or alone on purpose, and not
    /// draining. For a readiness probe; liveness must not depend on it.
    pub fn is_ready(&self) -> bool {
        self.0.board.view().ready
    }

    /// Waits until [`Node::is_ready`], or the node closes. Cancel-safe.
    ///
    /// # Errors
    /// The node was closed.
    pub async fn wait_ready(&self) -> Result<(), NodeClosed> {
        let mut views = self.0.board.views();
        match views.wait_for(|view| view.ready || view.closed).await {
            Ok(view) if view.ready => Ok(()),
            _ => Err(NodeClosed),
        }
    }

    /// The other nodes, as last heard: those that are there, and those that were, which say so
    /// ([`PeerStatus::gone`]).
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.0.board.view().peers.to_vec()
    }

    /// Everything this node knows of itself, ready to be served as JSON.
    ///
    /// # Errors
    /// The node was closed.
    pub async fn status(&self) -> Result<Status, NodeClosed> {
        self.request(|reply| Command::Status { reply }).await
    }

    /// Takes no new tasks and keeps what runs, and the checkpoints of others where no node that is up
    /// could: useful at the start of a deploy. `run` goes on
    /// working and places tasks elsewhere. Returns when this node has been told; the others hear of it
    /// within a round of gossip.
    ///
    /// # Errors
    /// The node was closed.
    pub async fn cordon(&self) -> Result<(), NodeClosed> {
        self.send(Command::Cordon(true)).await
    }

    /// Takes tasks again. Changes nothing once the node drains.
    ///
    /// # Errors
    /// The node was closed.
    pub async fn uncordon(&self) -> Result<(), NodeClosed> {
        self.send(Command::Cordon(false)).await
    }

    /// Completes some seconds (`accept_delay`, default 5 s) after a drain has begun, or when the node
    /// closes: when a server should stop accepting. Load balancers go on sending for that long.
    ///
    /// Made for `axum::serve(..).with_graceful_shutdown(node.stop_accepting())`. Holds nothing of the
    /// node.
    pub fn stop_accepting(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut views = self.0.board.views();
        let delay = self.0.accept_delay;
        async move {
            let ended = match views.wait_for(|view| view.draining || view.closed).await {
                Ok(view) => view.closed,
                Err(_) => true,
            };
            if !ended {
                // A node that closes meanwhile has nothing left to accept for.
                let closed = views.wait_for(|view| view.closed);
                let _ = timeout(delay, closed).await;
            }
        }
    }

    /// Waits for the trigger, then hands every task over, within the drain budget. The node goes on
    /// serving lookups and gossip until [`Node::leave`].
    ///
    /// The trigger is any future, or [`signal::term_or_int()`](crate::signal::term_or_int), whose
    /// second and third signals cut the drain short (see [`Trigger`]). Dropping the future before
    /// the trigger has fired changes nothing; after that the drain goes on without a report.
    pub async fn drain_on(&self, trigger: impl Trigger) -> DrainReport {
        let mut signals = trigger.signals();
        if signals.next().await.is_none() {
            // No trigger can fire any more, which is not the same as one that has.
            std::future::pending::<()>().await;
        }
        let begun = Instant::now();
        let budget = self.0.drain_budget;
        let drained = self.request(|reply| Command::Drain { budget, reply });
        tokio::pin!(drained);
        let mut hurried = false;
        loop {
            tokio::select! {
                biased;
                report = &mut drained => return report.unwrap_or_else(|_| self.0.board.report()),
                Some(signal) = signals.next() => {
                    let command = if hurried {
                        Command::Abort { signal }
                    } else if begun.elapsed() < SAME_SIGNAL {
                        continue;
                    } else {
                        hurried = true;
                        Command::Hurry { signal }
                    };
                    if self.send(command).await.is_err() {
                        return self.0.board.report();
                    }
                }
            }
        }
    }

    /// Hands every task over now, within the drain budget. Called again it waits for the same drain,
    /// or returns its report.
    pub async fn drain(&self) -> DrainReport {
        self.drain_on(std::future::ready(())).await
    }

    /// Ends the waiting for step boundaries of a drain that is under way: steps are dropped, their
    /// tasks' last commits are handed over.
    ///
    /// # Errors
    /// The node was closed.
    pub async fn hurry(&self) -> Result<(), NodeClosed> {
        self.send(Command::Hurry { signal: None }).await
    }

    /// Says goodbye to the peers and ends the node: whatever still runs here is handed over first,
    /// as by [`Node::drain`]. The address is free when it returns. Beyond the drain it takes a second
    /// at most for the goodbye, and up to five for a busy disk. It does not end the process.
    ///
    /// # Errors
    /// [`LeaveError::Unstoppable`]: the node goes on, since a goodbye would have others run what still
    /// runs here. Otherwise the node is closed: not every peer acknowledged, or it was closed before.
    pub async fn leave(&self) -> Result<(), LeaveError> {
        // One that is under way, or over, gives its report.
        self.drain().await;
        let goodbye = match self.request(|reply| Command::Leave { reply }).await {
            Ok(Err(running)) => return Err(LeaveError::Unstoppable(running)),
            Ok(Ok(goodbye)) => Ok(goodbye),
            Err(closed) => Err(closed),
        };
        self.0.running.join().await;
        // Another call of this may have been the first.
        let goodbye = goodbye.or_else(|closed| self.0.board.goodbye().ok_or(closed))?;
        if goodbye.heard < goodbye.told {
            return Err(LeaveError::Unheard { heard: goodbye.heard, told: goodbye.told });
        }
        Ok(())
    }

    /// Ends the node at once, without a goodbye, as a crash would: for tests. Its peers take its tasks
    /// over when they find out.
    pub async fn close(&self) {
        // Closed already: nothing to ask for.
        let _ = self.send(Command::Close).await;
        self.0.running.join().await;
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.0.board.registry
    }

    /// How long a name that exists may be unknown here: until gossip has brought it, or, in a young
    /// node, until what was found on disk has been compared with what others have.
    pub(crate) fn hearsay(&self) -> Duration {
        let young = (self.0.booting).saturating_sub(self.0.started.elapsed());
        self.0.convergence + young
    }

    pub(crate) fn kinds(&self) -> &Kinds {
        &self.0.kinds
    }

    /// Asks the control loop and waits for its answer.
    async fn request<R>(
        &self,
        command: impl FnOnce(oneshot::Sender<R>) -> Command,
    ) -> Result<R, NodeClosed> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| NodeClosed)
    }

    /// As [`Self::request`], for calls that depend on other nodes; none when no answer came in time.
    async fn call<R>(
        &self,
        command: impl FnOnce(oneshot::Sender<R>) -> Command,
    ) -> Result<Option<R>, NodeClosed> {
        match timeout(self.0.call_timeout, self.request(command)).await {
            Ok(answer) => answer.map(Some),
            Err(_) => Ok(None),
        }
    }

    async fn send(&self, command: Command) -> Result<(), NodeClosed> {
        self.0.commands.send(command).await.map_err(|_| NodeClosed)
    }

    fn fresh_uuid(&self) -> Uuid {
        fresh_uuid(self.0.clock.wall_ms())
    }
}

/// A version 7 uuid of that time, from the clock seam so that a simulation replays.
pub(crate) fn fresh_uuid(wall_ms: u64) -> Uuid {
    let (seconds, millis) = (wall_ms / 1000, wall_ms % 1000);
    Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, millis as u32 * 1_000_000))
}

#[cfg(test)]
mod tests;
