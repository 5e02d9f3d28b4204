//! handover
#![forbid(unsafe_code)]

pub(crate) mod clock;
pub(crate) mod core;
pub(crate) mod error;
pub(crate) mod key;
pub(crate) mod net;
pub mod signal;
pub(crate) mod task;

pub use self::core::ids::RunId;
pub use self::core::lease::{Epoch, Fence};
pub use self::error::{Classify, Error, Result};
pub use self::task::{
    Cx, DecodeError, EncodeError, Job, RegisterError, Retry, Run, RunCx, Running, Step, Task,
    Tracked, Value, decode,
};
