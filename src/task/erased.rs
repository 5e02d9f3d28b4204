//! A kind of task without its types: what the loop runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{self, Limits, Value};
use super::reconcile::Branch;
use super::{Cx, Retry, Step, Task};
use crate::core::reconcile::{Choice, Side};
use crate::core::record::Versions;
use crate::error::{Error, Result};

/// Whatever a node can run: every [`Task`], and every [`Run`](super::Run) inside
/// [`Running`](super::Running). Implemented by the library alone.
pub trait Job: Sized + Send + Sync + 'static {
    /// What a run is started with.
    type Args: Serialize + DeserializeOwned + Send + Sync;
    /// What a run yields.
    type Output: Serialize + DeserializeOwned + Send;

    /// The kind's name.
    fn kind() -> &'static str;

    #[doc(hidden)]
    fn erase(self) -> Erased;
}

impl<T: Task> Job for T {
    type Args = T::Args;
    type Output = T::Output;

    fn kind() -> &'static str {
        T::KIND
    }

    fn erase(self) -> Erased {
        Erased(Arc::new(Stepped(Arc::new(self))))
    }
}

/// A kind without its types. Cannot be named outside the crate, which seals [`Job`].
#[allow(missing_debug_implementations)]
pub struct Erased(pub(crate) Arc<dyn AnyKind>);

/// A registered kind.
pub(crate) trait AnyKind: Send + Sync {
    fn versions(&self) -> Versions;
    fn retry(&self) -> Retry;
    fn max_running(&self) -> Option<usize>;
    fn pin(&self) -> bool;

    /// Makes a task ready to run from a state (of a version), or from the initial one.
    fn open(
        &self,
        args: &[u8],
        state: Option<(u32, &Bytes)>,
        writing: Writing,
    ) -> Result<Box<dyn Instance>, Unreadable>;

    /// What state goes on of two. More progress decides where the code has no say.
    fn reconcile(
        &self,
        args: &[u8],
        mine: &Side,
        theirs: &Side,
        writing: Writing,
    ) -> Result<Choice> {
        let _ = (args, mine, theirs, writing);
        Ok(Choice::MoreProgress)
    }
}

/// How states are written.
#[derive(Clone, Debug)]
pub(crate) struct Writing {
    pub(crate) limits: Limits,
    /// The version that all nodes read; the newest where the task cannot write that one.
    pub(crate) version: Arc<AtomicU32>,
}

impl Writing {
    /// The state in the version wanted, if that is not the newest and the task can write it.
    pub(crate) fn downgraded(
        &self,
        reads: Versions,
        downgrade: impl FnOnce(u32) -> Result<Option<Vec<u8>>>,
    ) -> Result<Option<(u32, Bytes)>> {
        let version = self.version.load(Ordering::Relaxed);
        if version >= reads.newest || !reads.reads(version) {
            return Ok(None);
        }
        let Some(state) = downgrade(version)? else {
            return Ok(None);
        };
        codec::check_len(state.len(), Value::State, &self.limits).map_err(Error::stuck)?;
        Ok(Some((version, state.into())))
    }
}

/// One task, between or within two of its steps. Dropping it drops everything of it but closures.
pub(crate) trait Instance: Send {
    /// One attempt at the next step. After an error, or when it is dropped, the instance is not to
    /// be used again.
    fn step<'a>(&'a mut self, cx: &'a mut Cx) -> BoxFuture<'a, Result<Step<Bytes>>>;

    /// The state after the last step that went well, with its version.
    fn encode(&mut self) -> Result<(u32, Bytes)>;

    /// No step will follow: lets suspended code return.
    fn hand_over(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Why a task cannot be run by this build, for people.
#[derive(Debug)]
pub(crate) struct Unreadable(pub(crate) String);

/// Opens a task; a panic in the user's decoding is an attempt that failed.
pub(crate) fn open(
    kind: &dyn AnyKind,
    args: &[u8],
    state: Option<(u32, &Bytes)>,
    writing: Writing,
) -> Result<Result<Box<dyn Instance>, Unreadable>> {
    catch_unwind(AssertUnwindSafe(|| kind.open(args, state, writing)))
        .map_err(|panic| Error::panicked("decoding", &*panic))
}

/// Decodes what a task is opened with.
pub(crate) fn decode<A: DeserializeOwned, S: Default + DeserializeOwned>(
    args: &[u8],
    state: Option<(u32, &Bytes)>,
    limits: &Limits,
    reads: Versions,
    upgrade: impl FnOnce(u32, &[u8]) -> Result<S>,
) -> Result<(A, S), Unreadable> {
    let why = |error: Error| Unreadable(error.to_string());
    let args = codec::decode(args, Value::Args, limits).map_err(|error| why(error.into()))?;
    let Some((version, bytes)) = state else {
        return Ok((args, S::default()));
    };
    if !reads.reads(version) {
        return Err(Unreadable(format!(
            "its state is of version {version}, this build reads {} to {}: \
             start a node whose build reads it",
            reads.oldest, reads.newest
        )));
    }
    let state = if version == reads.newest {
        codec::decode(bytes, Value::State, limits).map_err(Error::from)
    } else {
        upgrade(version, bytes)
    };
    Ok((args, state.map_err(why)?))
}

struct Stepped<T>(Arc<T>);

impl<T: Task> AnyKind for Stepped<T> {
    fn versions(&self) -> Versions {
        Versions { oldest: T::OLDEST_STATE_VERSION, newest: T::STATE_VERSION }
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
        let upgrade = |from, bytes: &[u8]| self.0.upgrade(from, bytes);
        let (args, state) = decode(args, state, &writing.limits, self.versions(), upgrade)?;
        Ok(Box::new(Stepping { task: Arc::clone(&self.0), args, state, writing }))
    }

    fn reconcile(
        &self,
        args: &[u8],
        mine: &Side,
        theirs: &Side,
        writing: Writing,
    ) -> Result<Choice> {
        let branch = |side: &Side| {
            let state = Some((side.version, &side.state));
            let upgrade = |from, bytes: &[u8]| self.0.upgrade(from, bytes);
            let (args, state) = decode(args, state, &writing.limits, self.versions(), upgrade)
                .map_err(|Unreadable(why)| Error::fatal(why))?;
            Ok::<_, Error>((args, Branch::new(side, state)))
        };
        let ((args, mine), (_, theirs)) = (branch(mine)?, branch(theirs)?);
        let chosen = self.0.reconcile(&args, mine, theirs)?;
        chosen.encode(|state| write(&*self.0, &state, &writing))
    }
}

struct Stepping<T: Task> {
    task: Arc<T>,
    args: T::Args,
    state: T::State,
    writing: Writing,
}

impl<T: Task> Instance for Stepping<T> {
    fn step<'a>(&'a mut self, cx: &'a mut Cx) -> BoxFuture<'a, Result<Step<Bytes>>> {
        Box::pin(async move {
            let step = self.task.step(cx, &self.args, &mut self.state).await?;
            cx.join().await;
            Ok(match step {
                Step::More => Step::More,
                Step::Wait(duration) => Step::Wait(duration),
                Step::Done(output) => {
                    Step::Done(encode(&output, Value::Output, &self.writing.limits)?)
                }
            })
        })
    }

    fn encode(&mut self) -> Result<(u32, Bytes)> {
        write(&*self.task, &self.state, &self.writing)
    }
}

/// A state in the version that is written now.
fn write<T: Task>(task: &T, state: &T::State, writing: &Writing) -> Result<(u32, Bytes)> {
    let reads = Versions { oldest: T::OLDEST_STATE_VERSION, newest: T::STATE_VERSION };
    let downgrade = |to| task.downgrade(to, state);
    if let Some(older) = writing.downgraded(reads, downgrade)? {
        return Ok(older);
    }
    Ok((T::STATE_VERSION, encode(state, Value::State, &writing.limits)?))
}

/// Encodes what the user's code made. No later attempt would make it smaller; another build may.
pub(crate) fn encode<V: Serialize>(value: &V, what: Value, limits: &Limits) -> Result<Bytes> {
    codec::encode(value, what, limits).map_err(Error::stuck)
}
