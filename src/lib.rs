//! Long-running tasks that outlive deploys and crashes, in a cluster that needs no database.
//!
//! A service embeds a [`Node`]. Its nodes find each other by gossip, agree eventually on who runs
//! which named task, and pass tasks on: with their state when a node is told to stop, from the last
//! replicated checkpoint when one dies.
//!
//! What a user writes is a [`Task`]: one step of the work, and the state that goes from step to
//! step. The library owns the loop: it commits the state, replicates it, retries what fails, and
//! moves the task between steps.
//!
//! ```
//! use std::time::Duration;
//!
//! use handover::{Cx, Node, Step, Task};
//! use serde::{Deserialize, Serialize};
//!
//! /// Adds up the numbers below a bound.
//! struct Sum;
//!
//! #[derive(Default, Serialize, Deserialize)]
//! #[serde(default)] // an older build reads what a newer one wrote, and the other way round
//! struct Position {
//!     next: u64,
//!     sum: u64,
//! }
//!
//! impl Task for Sum {
//!     const KIND: &'static str = "sum";
//!     type Args = u64;
//!     type State = Position; // the checkpoint
//!     type Output = u64;
//!
//!     async fn step(&self, cx: &mut Cx, bound: &u64, at: &mut Position) -> handover::Result<Step<u64>> {
//!         let end = (at.next + 1000).min(*bound);
//!         at.sum += (at.next..end).sum::<u64>();
//!         at.next = end;
//!         cx.progress(end, *bound);
//!         Ok(if end == *bound { Step::Done(at.sum) } else { Step::More })
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> handover::Result<()> {
//!     // Without seeds this node is a cluster of its own. With a key it may listen beyond loopback.
//!     let node = Node::builder("shop")
//!         .node_id("shop-0")
//!         .task(Sum)
//!         .drain_budget(Duration::from_secs(25))
//!         # .timing({
//!         #     let mut timing = handover::Timing::default();
//!         #     timing.solo_after = Duration::from_millis(100);
//!         #     timing
//!         # })
//!         .start()
//!         .await?;
//!     node.wait_ready().await?;
//!
//!     // From any node: starts the task somewhere, or joins the run the name has already.
//!     let sum = node.run::<Sum>("sum/1", 10_000).await?;
//!     assert_eq!(sum.output().await?, 49_995_000);
//!
//!     // A service would wait for SIGTERM here: node.drain_on(handover::signal::term_or_int()).await
//!     let report = node.drain().await;
//!     node.leave().await?;
//!     assert!(report.is_clean());
//!     Ok(())
//! }
//! ```
//!
//! # What is promised, and what is not
//!
//! Among nodes that hear each other, and have done so for some seconds, a task runs on at most one
//! at a time, and a node dies or drains without its tasks being lost, as long as another node lives.
//! The registry is eventually consistent: while the network is cut, or so slow that answers are late,
//! and for some seconds after, a task can run on both sides; a process that stood still can finish a
//! step that another node has begun again; and after a crash the steps since the last replicated
//! checkpoint run again. Give effects on the outside a position, [`Cx::idempotency_key`], or
//! [`Cx::fence`]. How long each of these windows is stands, as formulas, in section 2.3 of
//! `docs/semantics.md`.
//!
//! # Where to look
//!
//! - [`Node`]: starting, finding and watching tasks; draining and leaving.
//! - [`NodeBuilder`]: every setting with its default.
//! - [`Task`] and [`Cx`]: what a task does and is given. [`Run`] is the form with a loop of one's own.
//! - [`Handle`]: a task by name, from any node.
//! - [`signal`]: SIGTERM and SIGINT. The library installs no handler unless asked, and never exits.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg_attr(
    not(feature = "redb"),
    allow(dead_code, reason = "what is on disk needs the rest of it")
)]
pub(crate) mod checkpoint;
pub(crate) mod clock;
mod codec;
pub(crate) mod core;
mod error;
pub(crate) mod gossip;
pub(crate) mod key;
pub(crate) mod link;
pub(crate) mod net;
mod node;
mod rate;
mod registry;
pub mod signal;
mod task;
#[cfg(test)]
mod test_log;

pub use self::checkpoint::directory::DirectoryError;
pub use self::clock::{Clock, SharedClock, SystemClock};
pub use self::core::branch::Progress;
pub use self::core::ids::{InvalidName, Kind, Name, NodeId, RunId, SessionId};
pub use self::core::io::{Cause, Gone};
pub use self::core::lease::{Epoch, Fence};
pub use self::core::machine::OnLostState;
pub use self::core::record::NodeState;
pub use self::core::time::Time;
pub use self::core::timing::{InvalidTiming, Pace, Timing};
pub use self::error::{Classify, Error, Result};
pub use self::key::{Key, Keyring, SecretTooShort};
pub use self::net::{
    Datagrams, InvalidLimit, Listener, Network, NetworkLimits, Stream, SystemNetwork,
};
pub use self::node::{
    DrainReport, Events, Executor, Handle, HandleError, KindStatus, LeaveError, Node, NodeBuilder,
    NodeClosed, NodeEvent, OutputError, PeerStatus, RunError, RunningTask, Seeds, StartError,
    Status, Trigger,
};
pub use self::registry::{Entry, TaskEvent, TaskState, Watch};
pub use self::task::{
    Branch, Cx, DecodeError, EncodeError, Job, Reconciled, RegisterError, Retry, Run, RunCx,
    Running, Step, Task, Tracked, Value, assert_resumable, decode, encode,
};
