//! A task by name, from any node.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use futures_core::Stream;
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{sleep, timeout};

use super::Node;
use super::command::Command;
use super::error::{HandleError, NodeClosed, OutputError};
use super::wire::{Answer, Query};
use crate::core::branch::Progress;
use crate::core::claim::Want;
use crate::core::ids::{InvalidName, Kind, Name, RunId};
use crate::core::io::CallError;
use crate::registry::{Entry, TaskState};
use crate::task::Job;

/// How long one node is given to answer a question about a task.
const ASK_DEADLINE: Duration = Duration::from_secs(1);
/// How often a question is asked before "nobody knows" is believed.
const ATTEMPTS: usize = 6;
/// How often the kind of a task is asked for before its order or its output: its holder, then a replica.
const KNOW_THE_KIND: usize = 2;
/// Between attempts: a task that is moving has arrived by then.
const RETRY: Duration = Duration::from_millis(100);
/// How often a progress stream asks.
const POLL: Duration = Duration::from_millis(250);

/// A task by name: its progress, its state, its output, and the means to pause or end it.
///
/// A handle from `run` speaks of that run; one from `get` of whatever run the name has at the time.
/// It holds nothing of the task: dropping it changes nothing. Every method can be cancelled by
/// dropping its future; a request that was sent may still take effect.
pub struct Handle<T> {
    node: Node,
    name: Result<Name, InvalidName>,
    run: Option<RunId>,
    task: PhantomData<fn() -> T>,
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        Self { node: self.node.clone(), name: self.name.clone(), run: self.run, task: PhantomData }
    }
}

impl<T> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("name", &self.name)
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}

impl<T: Job> Handle<T> {
    pub(crate) const fn new(
        node: Node,
        name: Result<Name, InvalidName>,
        run: Option<RunId>,
    ) -> Self {
        Self { node, name, run, task: PhantomData }
    }

    /// Which run this handle speaks of; none for whatever run the name has.
    pub const fn run(&self) -> Option<RunId> {
        self.run
    }

    /// Who holds the task, as far as this node knows. Answered from memory.
    pub fn entry(&self) -> Option<Entry> {
        let name = self.name.as_ref().ok()?;
        let entry = self.node.registry().get(name)?;
        match self.run {
            // Gossip of our own run has not come round yet.
            Some(run) if entry.run < run => None,
            _ => Some(entry),
        }
    }

    /// What is being done with the task, as far as this node knows; none if the name is unknown.
    pub fn state(&self) -> Option<TaskState> {
        let entry = self.entry()?;
        Some(match self.run {
            Some(run) if entry.run != run => TaskState::Superseded,
            _ => entry.state,
        })
    }

    /// How far the task is, asked of the node that runs it; as of the last commit while it moves. After
    /// it has ended, what its last step said, asked of the node where it did, or as of the last commit
    /// where that node is no more. All zero for a task that reports no progress. None if the name is unknown,
    /// or its node did not answer within a few seconds.
    pub async fn progress(&self) -> Option<Progress> {
        let name = self.name.as_ref().ok()?;
        for attempt in 0..ATTEMPTS {
            // A run of our own is known to exist, though its claim may still be on its way.
            if self.entry().is_none() && self.run.is_none() {
                return None;
            }
            let query = Query::Progress { name: name.clone() };
            match self.ask(query, attempt).await.ok()? {
                Some(Answer::Progress(progress)) => return Some(progress),
                _ => sleep(RETRY).await,
            }
        }
        None
    }

    /// Progress each time it has changed, looked at four times a second; ends with the run, after its
    /// last progress.
    pub fn progress_stream(&self) -> impl Stream<Item = Progress> + Send + Unpin + use<T> {
        let state = (self.clone(), None::<Progress>, false);
        Box::pin(stream::unfold(state, |(handle, last, ended)| async move {
            if ended {
                return None;
            }
            loop {
                // Looked at first: what is read after the end is the last word.
                let ended = handle.state().is_none_or(TaskState::is_ended);
                let progress = handle.progress().await;
                match progress {
                    Some(progress) if last.as_ref() != Some(&progress) => {
                        return Some((progress.clone(), (handle, Some(progress), ended)));
                    }
                    _ if ended => return None,
                    _ => sleep(POLL).await,
                }
            }
        }))
    }

    /// The task's state now and each time it changes; ends with the run or when its record is gone.
    /// A slow reader skips states in between.
    pub fn state_changes(&self) -> impl Stream<Item = TaskState> + Send + Unpin + use<T> {
        let changes = self.node.registry().subscribe();
        let state = (self.clone(), changes, None::<TaskState>);
        Box::pin(stream::unfold(state, |(handle, mut changes, last)| async move {
            if last.is_some_and(TaskState::is_ended) {
                return None;
            }
            loop {
                match handle.state() {
                    Some(state) if Some(state) != last => {
                        return Some((state, (handle, changes, Some(state))));
                    }
                    None if last.is_some() => return None,
                    _ => {}
                }
                if let Err(RecvError::Closed) = changes.recv().await {
                    return None;
                }
            }
        }))
    }

    /// Waits for the end of the run and returns what it brought.
    ///
    /// A name that is unknown is given the time in which gossip brings it, or in which a node that has
    /// just started reads it from its disk.
    ///
    /// # Errors
    /// It failed, was cancelled or replaced; it is unknown, or of another kind; or its output is kept no longer.
    pub async fn output(&self) -> Result<T::Output, OutputError> {
        let name = self.name.clone()?;
        let (state, run, note) = self.ended(&name).await?;
        match state {
            TaskState::Finished => {}
            TaskState::Failed => return Err(OutputError::Failed(note)),
            TaskState::Cancelled => return Err(OutputError::Cancelled),
            _ => return Err(OutputError::Superseded),
        }
        if let Some(running) = self.other_kind(&name).await? {
            let asked = asked::<T>().map_err(|error| OutputError::Unreadable(error.to_string()))?;
            return Err(OutputError::OtherKind { name, running, asked });
        }
        // A link to those who have it may only just have broken, or not be up yet.
        let attempts = self.node.hearsay().as_millis().div_ceil(RETRY.as_millis());
        for attempt in 0..ATTEMPTS.max(usize::try_from(attempts).unwrap_or(ATTEMPTS)) {
            if self.node.registry().get(&name).is_some_and(|e| e.run == run && e.expired) {
                break;
            }
            let query = Query::Output { name: name.clone(), run };
            match self.ask(query, attempt).await? {
                Some(Answer::Output(bytes)) => {
                    return self
                        .node
                        .kinds()
                        .decode_output(&bytes)
                        .map_err(|error| OutputError::Unreadable(error.to_string()));
                }
                _ => sleep(RETRY).await,
            }
        }
        Err(OutputError::Gone)
    }

    /// Waits until the run has ended.
    async fn ended(&self, name: &Name) -> Result<(TaskState, RunId, String), OutputError> {
        let mut changes = self.node.registry().subscribe();
        let unknown = sleep(self.node.hearsay());
        tokio::pin!(unknown);
        let mut seen = false;
        loop {
            match (self.node.registry().get(name), self.run) {
                (Some(entry), Some(run)) if entry.run > run => {
                    return Err(OutputError::Superseded);
                }
                // Gossip of our own run has not come round yet.
                (Some(entry), Some(run)) if entry.run < run => {}
                (Some(entry), _) if entry.state.is_ended() => {
                    return Ok((entry.state, entry.run, entry.note));
                }
                (Some(_), _) => seen = true,
                (None, _) if seen => return Err(OutputError::Gone),
                (None, _) => {}
            }
            tokio::select! {
                biased;
                change = changes.recv() => {
                    if let Err(RecvError::Closed) = change {
                        return Err(NodeClosed.into());
                    }
                }
                () = &mut unknown, if !seen && self.run.is_none() => {
                    return Err(OutputError::Unknown);
                }
            }
        }
    }

    /// Stops the task at its next step boundary and keeps its state, until [`Handle::resume`].
    ///
    /// # Errors
    /// The name is unknown or of another kind, the run has ended, was replaced or cancelled, or the node was
    /// closed. An owner that cannot be reached obeys when it can be again; where nobody else knows the task's
    /// kind, it is not compared then. A cancel that is not known here yet wins all the same, over a pause or a
    /// resume that was answered with `Ok`.
    pub async fn pause(&self) -> Result<(), HandleError> {
        self.want(Want::Pause).await
    }

    /// Runs it again, after a pause, a quarantine, or parking for lost state.
    ///
    /// # Errors
    /// As for [`Handle::pause`].
    pub async fn resume(&self) -> Result<(), HandleError> {
        self.want(Want::Run).await
    }

    /// Ends the run for good at its next step boundary. Nothing revives it: `pause` and `resume` are
    /// refused from then on with [`HandleError::Cancelled`], and to cancel again changes nothing.
    ///
    /// # Errors
    /// As for [`Handle::pause`], but that the run was cancelled before is none.
    pub async fn cancel(&self) -> Result<(), HandleError> {
        self.want(Want::Cancel).await
    }

    async fn want(&self, want: Want) -> Result<(), HandleError> {
        let name = self.name.clone()?;
        if let Some(running) = self.other_kind(&name).await? {
            let asked = asked::<T>().map_err(|error| HandleError::Refused(error.to_string()))?;
            return Err(HandleError::OtherKind { name, running, asked });
        }
        let run = self.run;
        let answer = self.node.call(|reply| Command::Want { name, run, want, reply }).await?;
        match answer {
            None => Err(HandleError::TimedOut),
            Some(Ok(_)) => Ok(()),
            Some(Err(CallError::Unknown)) => Err(HandleError::Unknown),
            Some(Err(CallError::Ended)) => Err(HandleError::Ended),
            Some(Err(CallError::Superseded)) => Err(HandleError::Superseded),
            Some(Err(CallError::Cancelled)) => Err(HandleError::Cancelled),
            Some(Err(CallError::NotReady)) => Err(HandleError::NotReady),
            Some(Err(other)) => Err(HandleError::Refused(other.to_string())),
        }
    }

    /// The kind of the task, if it is known to be another one than this handle's. What `run` has returned is
    /// of the right kind; a handle made from a name alone may not be.
    async fn other_kind(&self, name: &Name) -> Result<Option<Kind>, NodeClosed> {
        let Some(run) = self.entry().map(|entry| entry.run).filter(|_| self.run.is_none()) else {
            return Ok(None);
        };
        for attempt in 0..KNOW_THE_KIND {
            let query = Query::Kind { name: name.clone(), run };
            if let Some(Answer::Kind(running)) = self.ask(query, attempt).await? {
                return Ok(Some(running).filter(|running| running.as_str() != T::kind()));
            }
        }
        Ok(None)
    }

    async fn ask(&self, query: Query, attempt: usize) -> Result<Option<Answer>, NodeClosed> {
        let asked = self.node.request(|reply| Command::Ask { query, attempt, reply });
        match timeout(ASK_DEADLINE, asked).await {
            Ok(answer) => answer,
            Err(_) => Ok(None),
        }
    }
}

/// The kind that a handle is for.
fn asked<T: Job>() -> Result<Kind, InvalidName> {
    Kind::new(T::kind())
}
