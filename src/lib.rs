//! handover
#![forbid(unsafe_code)]

pub(crate) mod checkpoint;
pub(crate) mod clock;
pub(crate) mod core;
pub(crate) mod key;
pub(crate) mod net;

pub use self::core::lease::{Epoch, Fence};
