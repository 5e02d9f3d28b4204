//! What a user implements, and the loop that runs it.

use std::future::Future;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Result;

mod codec;
mod cx;
mod erased;
mod kinds;
mod line;
mod orders;
mod reconcile;
mod resumable;
mod retry;
mod run;
mod runner;
mod task_loop;
#[cfg(test)]
mod tests;

pub use self::codec::{DecodeError, EncodeError, Value};
pub use self::cx::{Cx, Tracked};
pub use self::erased::Job;
pub(crate) use self::kinds::Kinds;
pub use self::kinds::RegisterError;
pub(crate) use self::line::Throttle;
pub use self::reconcile::{Branch, Reconciled};
pub use self::resumable::assert_resumable;
pub use self::retry::Retry;
pub use self::run::{Run, RunCx, Running};
pub(crate) use self::runner::{Runner, RunnerConfig};

/// A kind of task, as a step that is repeated until it is done.
///
/// The library owns the loop. After a step has returned `Ok`, the state is what goes on: it is
/// committed from time to time, handed over when the node is told to stop, and taken up from the
/// last replicated commit when the node dies. A step that fails, panics or is dropped leaves no
/// trace in the state: the last kept state is decoded again. Between a crash and the commit before
/// it, and in a step that is repeated, effects on the outside can happen again; give them
/// positions, [`Cx::idempotency_key`] or [`Cx::fence`].
///
/// States of up to 4 KiB are kept after every step, so that a failed step repeats only itself.
/// Larger ones are kept when a commit is due and, once a step has failed, after every step: what a
/// failure repeats is bounded by the throttle's interval.
///
/// ```
/// use handover::{Cx, Result, Step, Task};
/// use serde::{Deserialize, Serialize};
///
/// /// Adds up the numbers below a bound, a thousand at a time.
/// struct Sum;
///
/// #[derive(Default, Serialize, Deserialize)]
/// #[serde(default)] // a field added later is no obstacle, in either direction
/// struct Position {
///     next: u64,
///     sum: u64,
/// }
///
/// impl Task for Sum {
///     const KIND: &'static str = "sum";
///     type Args = u64;
///     type State = Position;
///     type Output = u64;
///
///     async fn step(&self, cx: &mut Cx, bound: &u64, at: &mut Position) -> Result<Step<u64>> {
///         let end = (at.next + 1000).min(*bound);
///         at.sum += (at.next..end).sum::<u64>();
///         at.next = end;
///         cx.progress(end, *bound);
///         Ok(if end == *bound { Step::Done(at.sum) } else { Step::More })
///     }
/// }
/// ```
pub trait Task: Send + Sync + 'static {
    /// The kind's name, unique among a node's kinds and the same on all nodes: at most 64 bytes, no
    /// control characters.
    const KIND: &'static str;

    /// The version of the state's format that this code writes. Raise it when older code can no
    /// longer read it; fields with a default need no new version.
    const STATE_VERSION: u32 = 1;

    /// The oldest version that [`Task::upgrade`] accepts.
    const OLDEST_STATE_VERSION: u32 = Self::STATE_VERSION;

    /// What a run is started with. Gossiped to every node, so at most 4 KiB when encoded.
    type Args: Serialize + DeserializeOwned + Send + Sync;

    /// What one step leaves to the next: the checkpoint. At most 64 MiB when encoded; a task whose
    /// state grows over that is parked with its last kept state, for a build that stores less, or a
    /// higher limit, and a `resume`. Needs a format that describes itself (what `derive` makes): MessagePack with field names is used.
    type State: Default + Serialize + DeserializeOwned + Send;

    /// What the run yields. At most 64 KiB when encoded; a longer one parks the task as too long a
    /// state does.
    type Output: Serialize + DeserializeOwned + Send;

    /// Does one piece of the work. Handover happens between steps, so let one take seconds rather
    /// than minutes; a step that takes longer than the stop's grace is dropped at an `await`.
    ///
    /// # Errors
    /// A retryable error discards the step and repeats it after a delay, a fatal one ends the run
    /// as failed. A panic counts as a retryable error.
    fn step(
        &self,
        cx: &mut Cx,
        args: &Self::Args,
        state: &mut Self::State,
    ) -> impl Future<Output = Result<Step<Self::Output>>> + Send;

    /// When a failed step is tried again.
    fn retry(&self) -> Retry {
        Retry::default()
    }

    /// Reads a state that older code wrote, of a version from [`Task::OLDEST_STATE_VERSION`] up to
    /// but not including [`Task::STATE_VERSION`]. The default expects that it fits the present type.
    ///
    /// # Errors
    /// The task is then parked for a node that can read the state; nothing is lost.
    ///
    /// ```
    /// # use handover::{Cx, Result, Step, Task};
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Deserialize)]
    /// struct Megabytes { read_mb: u64 }
    ///
    /// #[derive(Default, Serialize, Deserialize)]
    /// struct Bytes { read: u64 }
    ///
    /// # struct Copy;
    /// impl Task for Copy {
    ///     const KIND: &'static str = "copy";
    ///     const STATE_VERSION: u32 = 2;
    ///     const OLDEST_STATE_VERSION: u32 = 1;
    ///     # type Args = ();
    ///     # type Output = ();
    ///     type State = Bytes;
    ///
    ///     fn upgrade(&self, _from: u32, state: &[u8]) -> Result<Bytes> {
    ///         let old: Megabytes = handover::decode(state)?;
    ///         Ok(Bytes { read: old.read_mb << 20 })
    ///     }
    ///     # async fn step(&self, _: &mut Cx, _: &(), _: &mut Bytes) -> Result<Step<()>> { Ok(Step::Done(())) }
    /// }
    /// ```
    fn upgrade(&self, from: u32, state: &[u8]) -> Result<Self::State> {
        let _ = from;
        decode(state)
    }

    /// Writes a state for older code, in a version from [`Task::OLDEST_STATE_VERSION`] up to but not
    /// including [`Task::STATE_VERSION`]; [`encode`](fn@encode) makes the bytes. None, which is the
    /// default, where that cannot be done.
    ///
    /// During a deploy, states are written in the newest version that all nodes read, so that a
    /// rollback loses nothing. Where this returns none they are written in the newest version at
    /// once, and the last checkpoint of the older one is kept until no node that needs it has been
    /// seen for [`Timing::finalize_after`](crate::Timing::finalize_after): a rollback goes on from
    /// there. `Status::kinds` shows both.
    ///
    /// # Errors
    /// As an error of the step, which is then repeated.
    ///
    /// ```
    /// # use handover::{Cx, Result, Step, Task};
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Serialize, Deserialize)]
    /// struct Megabytes { read_mb: u64 }
    ///
    /// #[derive(Default, Serialize, Deserialize)]
    /// struct Bytes { read: u64 }
    ///
    /// # struct Copy;
    /// impl Task for Copy {
    ///     const KIND: &'static str = "copy";
    ///     const STATE_VERSION: u32 = 2;
    ///     const OLDEST_STATE_VERSION: u32 = 1;
    ///     # type Args = ();
    ///     # type Output = ();
    ///     type State = Bytes;
    ///
    ///     fn upgrade(&self, _from: u32, state: &[u8]) -> Result<Bytes> {
    ///         let old: Megabytes = handover::decode(state)?;
    ///         Ok(Bytes { read: old.read_mb << 20 })
    ///     }
    ///
    ///     fn downgrade(&self, _to: u32, state: &Bytes) -> Result<Option<Vec<u8>>> {
    ///         // What was read beyond the last megabyte is read again after a rollback.
    ///         handover::encode(&Megabytes { read_mb: state.read >> 20 }).map(Some)
    ///     }
    ///     # async fn step(&self, _: &mut Cx, _: &(), _: &mut Bytes) -> Result<Step<()>> { Ok(Step::Done(())) }
    /// }
    /// ```
    fn downgrade(&self, to: u32, state: &Self::State) -> Result<Option<Vec<u8>>> {
        let _ = (to, state);
        Ok(None)
    }

    /// Chooses what state goes on after two copies of a task have run at once, as on both sides of a cut that has
    /// healed, or after its newest checkpoint had been out of reach for a while. Which copy goes on is
    /// decided by the order of their claims alone, and that one calls this, between two steps; `mine` is its own.
    /// Of more than two copies it is called for two at a time. It should not take longer than the stop's grace:
    /// the task stands still, and after that goes on as by default.
    ///
    /// Default: [`Reconciled::MoreProgress`]. The work of the other copy is lost then; its effects are not. For
    /// work on both sides that must not be lost, merge.
    ///
    /// # Errors
    /// More progress decides then, as after a panic. Nothing is lost that would not be without this.
    ///
    /// ```
    /// # use handover::{Branch, Cx, Reconciled, Result, Step, Task};
    /// # use std::collections::BTreeSet;
    /// # struct Index;
    /// impl Task for Index {
    ///     # const KIND: &'static str = "index";
    ///     # type Args = ();
    ///     # type Output = ();
    ///     type State = BTreeSet<u64>; // which documents are done
    ///
    ///     fn reconcile(
    ///         &self,
    ///         _: &(),
    ///         mut mine: Branch<BTreeSet<u64>>,
    ///         theirs: Branch<BTreeSet<u64>>,
    ///     ) -> Result<Reconciled<BTreeSet<u64>>> {
    ///         mine.state.extend(theirs.state);
    ///         Ok(Reconciled::Merged(mine.state))
    ///     }
    ///     # async fn step(&self, _: &mut Cx, _: &(), _: &mut Self::State) -> Result<Step<()>> { Ok(Step::Done(())) }
    /// }
    /// ```
    fn reconcile(
        &self,
        args: &Self::Args,
        mine: Branch<Self::State>,
        theirs: Branch<Self::State>,
    ) -> Result<Reconciled<Self::State>> {
        let _ = (args, mine, theirs);
        Ok(Reconciled::MoreProgress)
    }

    /// Whether a node that is told to stop should finish tasks of this kind itself if it can. They
    /// go on until they end, or the drain's budget leaves just enough time to move them; then they
    /// move. Default: they move at once.
    fn pin(&self) -> bool {
        false
    }

    /// How many tasks of this kind one node runs at most; none for no limit but the node's.
    fn max_running(&self) -> Option<usize> {
        None
    }
}

/// What follows a step that went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<O> {
    /// Another step.
    More,
    /// Nothing: the run has ended with this output.
    Done(O),
    /// Another step after a while. A handover cuts the wait short: the next node calls the step at
    /// once, so look at the time if it matters.
    Wait(Duration),
}

/// Encodes a state as the library does (MessagePack with field names), for [`Task::downgrade`].
///
/// # Errors
/// The type refuses to be encoded, or the state is over its limit.
pub fn encode<T: Serialize>(state: &T) -> Result<Vec<u8>> {
    Ok(codec::encode(state, Value::State, &codec::Limits::default())?.into())
}

/// Decodes a state as the library does (MessagePack with field names), for [`Task::upgrade`].
///
/// # Errors
/// The bytes do not fit the type.
pub fn decode<T: DeserializeOwned>(state: &[u8]) -> Result<T> {
    Ok(codec::decode(state, Value::State, &codec::Limits::default())?)
}
