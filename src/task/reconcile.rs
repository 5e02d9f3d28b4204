//! What the code of a task says where copies of it meet again (Rule 22).

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use super::erased::Writing;
use super::kinds::Registered;
use crate::core::branch::{Header, Progress};
use crate::core::claim::Spec;
use crate::core::ids::NodeId;
use crate::core::lease::Epoch;
use crate::core::reconcile::{Choice, Side, reconcile};
use crate::error::{Error, Result};

/// One of two copies of a task that ran at the same time, as it stood when it stopped.
#[derive(Debug)]
#[non_exhaustive]
pub struct Branch<S> {
    /// Its state, upgraded to the present version.
    pub state: S,
    /// How far it said that it was; none if it never said, or if it is merged already.
    pub progress: Option<Progress>,
    /// The steps that went well since the run began, on whatever node. What both copies have in common is counted
    /// in both.
    pub steps: u64,
    /// Where it ran last.
    pub node: NodeId,
    /// Under which epoch: effects fenced with a lower one than the other's were refused since that one came.
    pub epoch: Epoch,
}

/// What state a task goes on from, of two.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reconciled<S> {
    /// The one that is further: by the `done` of their progress if both tell any, else by their steps; that of the
    /// copy that goes on if they are equal.
    MoreProgress,
    /// That of the copy that goes on.
    Mine,
    /// The other.
    Theirs,
    /// Something new, made of both. It counts one step more than either.
    Merged(S),
}

impl<S> Branch<S> {
    pub(super) fn new(side: &Side, state: S) -> Self {
        Self {
            state,
            progress: side.progress.clone(),
            steps: side.seq,
            node: side.header.writer.node.clone(),
            epoch: side.header.position.epoch,
        }
    }
}

impl<S> Reconciled<S> {
    pub(super) fn encode(self, encode: impl FnOnce(S) -> Result<(u32, Bytes)>) -> Result<Choice> {
        Ok(match self {
            Self::MoreProgress => Choice::MoreProgress,
            Self::Mine => Choice::Mine,
            Self::Theirs => Choice::Theirs,
            Self::Merged(state) => {
                let (version, state) = encode(state)?;
                Choice::Merged(version, state)
            }
        })
    }
}

/// Has a kind's code choose between branches, two at a time. Where it fails or panics, or there is none, more
/// progress decides.
pub(super) fn choose(
    kind: Option<&Registered>,
    spec: &Spec,
    branches: Vec<(Header, Bytes)>,
    limits: super::codec::Limits,
) -> Option<Side> {
    reconcile(branches, |mine, theirs| {
        let Some(kind) = kind else {
            return Choice::MoreProgress;
        };
        let writing = Writing { limits, version: kind.writes.clone() };
        let ask = || kind.erased.reconcile(&spec.args, mine, theirs, writing);
        let choice = catch_unwind(AssertUnwindSafe(ask))
            .unwrap_or_else(|panic| Err(Error::panicked("reconciling", &*panic)));
        choice.unwrap_or_else(|error| {
            tracing::error!(
                target: "handover::conflict", name = %spec.name, %error,
                "the task's code does not say what state goes on: more progress decides",
            );
            Choice::MoreProgress
        })
    })
}
