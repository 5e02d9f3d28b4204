//! The advanced form: one long `run` that says itself where its checkpoints are.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use super::codec::Value;
use super::cx::Turn;
use super::erased::{AnyKind, Erased, Instance, Job, Unreadable, Writing, decode, encode};
use super::{Cx, Retry, Step};
use crate::core::record::Versions;
use crate::error::{Error, Result};

/// A kind of task as one long future, for work that holds something between its checkpoints: an
/// open connection, a warm cache, a stream. Registered and started as [`Running`]. Prefer
/// [`Task`](super::Task) where nothing is held: with it, no checkpoint can be forgotten or placed
/// a line too early.
///
/// Between two checkpoints the same holds as within one step of a task. `run` is called anew after
/// every failure and on every node, and begins where [`RunCx::state`] says.
///
/// ```
/// use handover::{Result, Run, RunCx};
///
/// struct Import;
///
/// impl Run for Import {
///     const KIND: &'static str = "import";
///     type Args = u64;
///     type State = u64;
///     type Output = u64;
///
///     async fn run(&self, cx: &mut RunCx<u64>, rows: &u64) -> Result<u64> {
///         let mut next = cx.state()?; // 0 at first
///         while next < *rows {
///             next += 1; // import row `next`, then say that it is done
///             cx.progress(next, *rows);
///             cx.checkpoint(&next).await?; // the hand-over point
///         }
///         Ok(next)
///     }
/// }
/// ```
pub trait Run: Send + Sync + 'static {
    /// As [`Task::KIND`](super::Task::KIND).
    const KIND: &'static str;

    /// As [`Task::STATE_VERSION`](super::Task::STATE_VERSION).
    const STATE_VERSION: u32 = 1;

    /// As [`Task::OLDEST_STATE_VERSION`](super::Task::OLDEST_STATE_VERSION).
    const OLDEST_STATE_VERSION: u32 = Self::STATE_VERSION;

    /// As [`Task::Args`](super::Task::Args).
    type Args: Serialize + DeserializeOwned + Send + Sync;

    /// As [`Task::State`](super::Task::State).
    type State: Default + Serialize + DeserializeOwned + Send;

    /// As [`Task::Output`](super::Task::Output).
    type Output: Serialize + DeserializeOwned + Send;

    /// Does the work from [`RunCx::state`] on to the end.
    ///
    /// # Errors
    /// As [`Task::step`](super::Task::step); the error of [`RunCx::checkpoint`] is to be passed on.
    fn run(
        &self,
        cx: &mut RunCx<Self::State>,
        args: &Self::Args,
    ) -> impl Future<Output = Result<Self::Output>> + Send;

    /// As [`Task::retry`](super::Task::retry). A checkpoint counts as progress.
    fn retry(&self) -> Retry {
        Retry::default()
    }

    /// As [`Task::upgrade`](super::Task::upgrade).
    ///
    /// # Errors
    /// As there.
    fn upgrade(&self, from: u32, state: &[u8]) -> Result<Self::State> {
        let _ = from;
        super::decode(state)
    }

    /// As [`Task::downgrade`](super::Task::downgrade).
    ///
    /// # Errors
    /// As there, of the checkpoint.
    fn downgrade(&self, to: u32, state: &Self::State) -> Result<Option<Vec<u8>>> {
        let _ = (to, state);
        Ok(None)
    }

    /// As [`Task::pin`](super::Task::pin).
    fn pin(&self) -> bool {
        false
    }

    /// As [`Task::max_running`](super::Task::max_running).
    fn max_running(&self) -> Option<usize> {
        None
    }
}

/// Makes a [`Run`] something a node can run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Running<R>(pub R);

impl<R: Run> Job for Running<R> {
    type Args = R::Args;
    type Output = R::Output;

    fn kind() -> &'static str {
        R::KIND
    }

    fn erase(self) -> Erased {
        Erased(Arc::new(RunKind(Arc::new(self.0))))
    }
}

/// What a run is given: everything of [`Cx`], and its checkpoints.
pub struct RunCx<S> {
    cx: Cx,
    /// Reads the newest state as bytes.
    read: Box<Read<S>>,
    /// Writes a state, and says in which version.
    write: Box<Write<S>>,
    /// The state the run begins with, until it is first asked for.
    opened: Mutex<Option<S>>,
    newest: Option<(u32, Bytes)>,
    posts: mpsc::Sender<Post>,
    /// Number of the last one.
    posted: u64,
    turns: watch::Receiver<Answer>,
}

type Read<S> = dyn Fn(Option<(u32, &Bytes)>) -> Result<S> + Send + Sync;
type Write<S> = dyn Fn(&S) -> Result<(u32, Bytes)> + Send + Sync;

/// A checkpoint on its way to the loop.
struct Post {
    number: u64,
    state: (u32, Bytes),
    forced: bool,
}

/// Which checkpoint has been dealt with, and what goes on after it. The number keeps an answer to a
/// checkpoint whose future was dropped from being taken for one to the next.
struct Answer {
    number: u64,
    turn: Turn,
}

impl<S: Serialize + Send> RunCx<S> {
    /// The state of the last checkpoint: at first, the one to begin with.
    ///
    /// # Errors
    /// Its `Deserialize` does not read what its `Serialize` wrote.
    pub fn state(&self) -> Result<S> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        match opened.take() {
            Some(state) => Ok(state),
            None => {
                let newest = self.newest.as_ref();
                (self.read)(newest.map(|(version, state)| (*version, state)))
            }
        }
    }

    /// Declares everything up to here as done: from now on the run goes on from this state,
    /// wherever it does. Commits it if the throttle lets it through. The state is encoded by the
    /// call itself, before the future is polled.
    ///
    /// Cancel-safe: a checkpoint whose future is dropped may or may not count.
    ///
    /// # Errors
    /// An error for which [`Error::is_moved`] holds when the task is handed over: pass it on with
    /// `?`, after putting things in order if need be (for a second or so; then the future is
    /// dropped). A fatal error if the state is too large; returned from the run,
    /// it parks the task with its last kept state.
    pub fn checkpoint<'a>(
        &'a mut self,
        state: &S,
    ) -> impl Future<Output = Result<()>> + Send + use<'a, S> {
        let state = (self.write)(state);
        async move { self.post(state?, false).await }
    }

    /// Like [`RunCx::checkpoint`], but commits whatever the throttle says, and returns only when a
    /// replica has acknowledged it (or there is no peer that could): for the moment before an
    /// effect that cannot be undone.
    ///
    /// # Errors
    /// As there.
    pub fn checkpoint_now<'a>(
        &'a mut self,
        state: &S,
    ) -> impl Future<Output = Result<()>> + Send + use<'a, S> {
        let state = (self.write)(state);
        async move { self.post(state?, true).await }
    }

    async fn post(&mut self, state: (u32, Bytes), forced: bool) -> Result<()> {
        self.posted += 1;
        let number = self.posted;
        self.opened = Mutex::new(None);
        self.newest = Some(state.clone());
        let post = Post { number, state, forced };
        if self.posts.send(post).await.is_err() {
            return Err(Error::moved());
        }
        let answered = |answer: &Answer| answer.number == number;
        let turn = match self.turns.wait_for(answered).await {
            Ok(answer) => answer.turn.clone(),
            Err(_) => return Err(Error::moved()),
        };
        self.cx.begin(turn);
        Ok(())
    }
}

impl<S> Deref for RunCx<S> {
    type Target = Cx;

    fn deref(&self) -> &Cx {
        &self.cx
    }
}

impl<S> fmt::Debug for RunCx<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RunCx").field(&self.cx).finish()
    }
}

struct RunKind<R>(Arc<R>);

impl<R: Run> AnyKind for RunKind<R> {
    fn versions(&self) -> Versions {
        Versions { oldest: R::OLDEST_STATE_VERSION, newest: R::STATE_VERSION }
    }

    fn retry(&self) -> Retry {
        self.0.retry()
    }

    fn max_running(&self) -> Option<usize> {
        self.0.max_running()
    }

    fn pin(&self) -> bool {
        self.0.pin()
    }

    fn open(
        &self,
        args: &[u8],
        state: Option<(u32, &Bytes)>,
        writing: Writing,
    ) -> Result<Box<dyn Instance>, Unreadable> {
        let (run, reads) = (Arc::clone(&self.0), self.versions());
        let upgrade = |from, bytes: &[u8]| run.upgrade(from, bytes);
        let (args, opened) = decode::<R::Args, _>(args, state, &writing.limits, reads, upgrade)?;
        Ok(Box::new(Suspended {
            stage: Stage::New {
                run,
                args,
                opened,
                state: state.map(|(version, bytes)| (version, bytes.clone())),
            },
            newest: (R::STATE_VERSION, Bytes::new()),
            writing,
        }))
    }
}

/// A run between or within two of its checkpoints: each stretch is one step to the loop.
struct Suspended<R: Run> {
    stage: Stage<R>,
    newest: (u32, Bytes),
    writing: Writing,
}

enum Stage<R: Run> {
    New {
        run: Arc<R>,
        args: R::Args,
        opened: R::State,
        state: Option<(u32, Bytes)>,
    },
    Begun {
        future: BoxFuture<'static, Result<R::Output>>,
        posts: mpsc::Receiver<Post>,
        /// Number of the last one received.
        received: u64,
        turns: watch::Sender<Answer>,
    },
    Over,
}

impl<R: Run> Stage<R> {
    /// Calls `run`, or lets its pending checkpoint return.
    fn advance(self, cx: &Cx, writing: &Writing) -> Self {
        match self {
            Self::New { run, args, opened, state } => {
                let (posted, posts) = mpsc::channel(1);
                let (turns, answers) =
                    watch::channel(Answer { number: 0, turn: cx.turn().clone() });
                let (reader, writer) = (Arc::clone(&run), Arc::clone(&run));
                let writing = writing.clone();
                let mut cx = RunCx {
                    cx: cx.share(),
                    read: Box::new(move |state| match state {
                        None => Ok(R::State::default()),
                        Some((version, bytes)) if version == R::STATE_VERSION => {
                            super::decode(bytes)
                        }
                        Some((version, bytes)) => reader.upgrade(version, bytes),
                    }),
                    write: Box::new(move |state| {
                        let reads =
                            Versions { oldest: R::OLDEST_STATE_VERSION, newest: R::STATE_VERSION };
                        let downgrade = |to| writer.downgrade(to, state);
                        if let Some(older) = writing.downgraded(reads, downgrade)? {
                            return Ok(older);
                        }
                        Ok((R::STATE_VERSION, encode(state, Value::State, &writing.limits)?))
                    }),
                    opened: Mutex::new(Some(opened)),
                    newest: state,
                    posts: posted,
                    posted: 0,
                    turns: answers,
                };
                Self::Begun {
                    future: Box::pin(async move { run.run(&mut cx, &args).await }),
                    posts,
                    received: 0,
                    turns,
                }
            }
            Self::Begun { received, ref turns, .. } => {
                turns.send_replace(Answer { number: received, turn: cx.turn().clone() });
                self
            }
            Self::Over => self,
        }
    }
}

impl<R: Run> Instance for Suspended<R> {
    fn step<'a>(&'a mut self, cx: &'a mut Cx) -> BoxFuture<'a, Result<Step<Bytes>>> {
        Box::pin(async move {
            self.stage = std::mem::replace(&mut self.stage, Stage::Over).advance(cx, &self.writing);
            let Stage::Begun { future, posts, received, .. } = &mut self.stage else {
                return Err(Error::fatal("the run has already returned"));
            };
            tokio::select! {
                biased;
                output = future => {
                    self.stage = Stage::Over;
                    let output = output?;
                    cx.join().await;
                    Ok(Step::Done(encode(&output, Value::Output, &self.writing.limits)?))
                }
                Some(post) = posts.recv() => {
                    *received = post.number;
                    self.newest = post.state;
                    if post.forced {
                        cx.checkpoint_now();
                    }
                    Ok(Step::More)
                }
            }
        })
    }

    fn encode(&mut self) -> Result<(u32, Bytes)> {
        Ok(self.newest.clone())
    }

    fn hand_over(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Stage::Begun { future, turns, .. } =
                std::mem::replace(&mut self.stage, Stage::Over)
            {
                drop(turns);
                // Whatever it returns: it goes on elsewhere from its last checkpoint.
                let _ = future.await;
            }
        })
    }
}
