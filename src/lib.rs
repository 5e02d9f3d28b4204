//! handover
#![forbid(unsafe_code)]

pub(crate) mod checkpoint;
pub(crate) mod clock;
pub(crate) mod core;
mod error;
pub(crate) mod gossip;
pub(crate) mod key;
pub(crate) mod link;
pub(crate) mod net;
mod node;
mod registry;
pub mod signal;
mod task;

pub use self::checkpoint::directory::DirectoryError;
pub use self::clock::{Clock, SharedClock, SystemClock};
pub use self::core::branch::Progress;
pub use self::core::ids::{InvalidName, Kind, Name, NodeId, RunId, SessionId};
pub use self::core::io::{Cause, Gone};
pub use self::core::lease::{Epoch, Fence};
pub use self::core::machine::OnLostState;
pub use self::core::record::NodeState;
pub use self::core::time::Time;
pub use self::core::timing::{InvalidTiming, Timing};
pub use self::error::{Classify, Error, Result};
pub use self::key::{Key, Keyring};
pub use self::net::{Datagrams, Listener, Network, Stream, SystemNetwork};
pub use self::node::{
    DrainReport, Events, Executor, Handle, HandleError, LeaveError, Node, NodeBuilder, NodeClosed,
    NodeEvent, OutputError, PeerStatus, RunError, RunningTask, Seeds, StartError, Status, Trigger,
};
pub use self::registry::{Entry, TaskEvent, TaskState, Watch};
pub use self::task::{
    Cx, DecodeError, EncodeError, Job, RegisterError, Retry, Run, RunCx, Running, Step, Task,
    Tracked, Value, decode,
};
