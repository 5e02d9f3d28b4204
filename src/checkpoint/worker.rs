//! Runs a store beside the control loop, which must never wait for a disk.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{CheckpointStore, Damage, StoreError, Write};
use crate::core::branch::{Header, Position};
use crate::core::ids::{Name, RunId, SessionId};

/// Something for the store to do.
#[derive(Debug)]
pub(crate) enum Request {
    /// Change something.
    Write(Box<Write>),
    /// Read a checkpoint.
    Load {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
        /// Which checkpoint.
        position: Position,
        /// Its writer.
        writer: SessionId,
    },
    /// Read the output of a run.
    Output {
        /// The task.
        name: Name,
        /// Its run.
        run: RunId,
    },
}

/// The answer to a [`Request`].
#[derive(Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "reads are as common as writes")]
pub(crate) enum Reply {
    /// To [`Request::Write`].
    Written(Result<(), StoreError>),
    /// To [`Request::Load`].
    Loaded(Result<Option<(Header, Bytes)>, StoreError>),
    /// To [`Request::Output`].
    Output(Result<Option<Bytes>, StoreError>),
}

/// A reply, with what was submitted beside the request.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    /// As submitted.
    pub(crate) tag: T,
    /// The reply.
    pub(crate) reply: Reply,
    /// Damage that the store came upon since it was last asked.
    pub(crate) damage: Vec<Damage>,
    /// What was read counts against the bound until the answer is dropped.
    _room: Option<OwnedSemaphorePermit>,
}

/// The queue is full: the store cannot keep up. What was to be submitted is given back.
#[derive(Debug, thiserror::Error)]
#[error("the queue of the checkpoint store is full: its disk cannot keep up")]
pub(crate) struct QueueFull<T>(pub(crate) T, pub(crate) Request);

/// Where the store's calls run.
#[derive(Clone, Debug)]
pub(crate) enum Execution {
    /// In [`StoreWorker::submit`]: for a store in memory, and under simulation.
    Inline,
    /// On the blocking threads of this runtime, one batch at a time.
    Blocking(Handle),
}

/// Bounds on what is submitted and not yet answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How many requests.
    pub(crate) requests: usize,
    /// How many bytes to be written, and how many that were read. A single larger one passes when it
    /// is alone.
    pub(crate) bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests: 4096, bytes: 256 << 20 }
    }
}

/// A transaction is cut when it carries as many bytes: a large one delays those behind it.
const BATCH_BYTES: usize = 32 << 20;
const BATCH_REQUESTS: usize = 512;

/// Feeds a store through a bounded queue. Requests are done in the order they were submitted;
/// writes that wait together share one transaction. Each is answered on the channel that came with
/// the worker, with the tag it was submitted under, in the same order. When the worker is dropped,
/// what was submitted is still done and answered; then the channel ends.
#[derive(Debug)]
pub(crate) struct StoreWorker<T> {
    way: Way<T>,
}

#[derive(Debug)]
enum Way<T> {
    Inline { store: Arc<dyn CheckpointStore>, replies: mpsc::Sender<Answer<T>> },
    Queued { jobs: mpsc::Sender<Job<T>>, bytes: Arc<Semaphore>, limit: usize },
}

#[derive(Debug)]
struct Job<T> {
    tag: T,
    request: Request,
    /// Held until the request is done.
    room: OwnedSemaphorePermit,
}

impl<T: Send + 'static> StoreWorker<T> {
    /// A worker and the channel of its answers, which must be read: nothing more is taken when
    /// `limits.requests` answers wait in it.
    pub(crate) fn new(
        store: Arc<dyn CheckpointStore>,
        execution: Execution,
        limits: Limits,
    ) -> (Self, mpsc::Receiver<Answer<T>>) {
        let requests = limits.requests.max(1);
        let (replies, answers) = mpsc::channel(requests);
        let way = match execution {
            Execution::Inline => Way::Inline { store, replies },
            Execution::Blocking(handle) => {
                let (jobs, queue) = mpsc::channel(requests);
                let limit = limits.bytes.clamp(1, u32::MAX as usize);
                handle.spawn(drive(store, handle.clone(), queue, replies, limit));
                Way::Queued { jobs, bytes: Arc::new(Semaphore::new(limit)), limit }
            }
        };
        (Self { way }, answers)
    }

    /// Submits a request. Never waits, except for the store itself under [`Execution::Inline`].
    ///
    /// # Errors
    /// [`QueueFull`], also after the worker's runtime has ended; nothing was done then.
    pub(crate) fn submit(&self, tag: T, request: Request) -> Result<(), QueueFull<T>> {
        match &self.way {
            Way::Inline { store, replies } => {
                let Ok(slot) = replies.try_reserve() else {
                    return Err(QueueFull(tag, request));
                };
                let (mut replies, damage) = run(store.as_ref(), vec![request]);
                let reply = replies.pop();
                slot.send(Answer {
                    tag,
                    reply: reply.unwrap_or(Reply::Written(Err(StoreError::Stopped))),
                    damage,
                    _room: None,
                });
                Ok(())
            }
            Way::Queued { jobs, bytes, limit } => {
                let weight = weight(&request).min(*limit) as u32;
                let (Ok(slot), Ok(room)) =
                    (jobs.try_reserve(), bytes.clone().try_acquire_many_owned(weight))
                else {
                    return Err(QueueFull(tag, request));
                };
                slot.send(Job { tag, request, room });
                Ok(())
            }
        }
    }
}

fn weight(request: &Request) -> usize {
    match request {
        Request::Write(write) => write.weight(),
        Request::Load { .. } | Request::Output { .. } => 0,
    }
}

async fn drive<T: Send + 'static>(
    store: Arc<dyn CheckpointStore>,
    handle: Handle,
    mut queue: mpsc::Receiver<Job<T>>,
    replies: mpsc::Sender<Answer<T>>,
    limit: usize,
) {
    let reading = Arc::new(Semaphore::new(limit));
    let mut received = Vec::new();
    while queue.recv_many(&mut received, BATCH_REQUESTS).await > 0 {
        let mut waiting: VecDeque<Job<T>> = received.drain(..).collect();
        while !waiting.is_empty() {
            let group = next_group(&mut waiting);
            let mut tags = Vec::with_capacity(group.len());
            let mut rooms = Vec::with_capacity(group.len());
            let mut requests = Vec::with_capacity(group.len());
            for job in group {
                tags.push(job.tag);
                rooms.push(job.room);
                requests.push(job.request);
            }
            let stopped: Vec<Reply> = requests.iter().map(stopped).collect();
            let store = store.clone();
            let (done, mut damage) = handle
                .spawn_blocking(move || run(store.as_ref(), requests))
                .await
                .unwrap_or((stopped, Vec::new()));
            drop(rooms);
            for (tag, reply) in tags.into_iter().zip(done) {
                let size = match &reply {
                    Reply::Loaded(Ok(Some((_, bytes)))) | Reply::Output(Ok(Some(bytes))) => {
                        bytes.len()
                    }
                    _ => 0,
                };
                let size = size.min(limit) as u32;
                let room = reading.clone().acquire_many_owned(size).await.ok();
                // Nobody listens any more: what was submitted is done all the same.
                let _ = replies
                    .send(Answer { tag, reply, damage: std::mem::take(&mut damage), _room: room })
                    .await;
            }
        }
    }
}

/// What is done together: one read, or the writes up to the next read.
fn next_group<T>(waiting: &mut VecDeque<Job<T>>) -> Vec<Job<T>> {
    let mut group: Vec<Job<T>> = Vec::new();
    let mut bytes = 0;
    while let Some(next) = waiting.front() {
        let is_write = matches!(next.request, Request::Write(_));
        bytes += weight(&next.request);
        if !group.is_empty() && (!is_write || bytes > BATCH_BYTES) {
            break;
        }
        group.extend(waiting.pop_front());
        if !is_write {
            break;
        }
    }
    group
}

/// Does one group: either one read, or writes in one transaction.
fn run(store: &dyn CheckpointStore, requests: Vec<Request>) -> (Vec<Reply>, Vec<Damage>) {
    let mut done = Vec::with_capacity(requests.len());
    let mut writes = Vec::new();
    for request in requests {
        match request {
            Request::Write(write) => writes.push(*write),
            Request::Load { name, run, position, writer } => {
                done.push(Reply::Loaded(store.get(&name, run, position, &writer)));
            }
            Request::Output { name, run } => {
                done.push(Reply::Output(store.get_output(&name, run)));
            }
        }
    }
    if !writes.is_empty() {
        done.extend(store.apply(writes).into_iter().map(Reply::Written));
    }
    (done, store.take_damage())
}

/// The answer to what was lost with the runtime.
fn stopped(request: &Request) -> Reply {
    match request {
        Request::Write(_) => Reply::Written(Err(StoreError::Stopped)),
        Request::Load { .. } => Reply::Loaded(Err(StoreError::Stopped)),
        Request::Output { .. } => Reply::Output(Err(StoreError::Stopped)),
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
