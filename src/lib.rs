//! handover
#![forbid(unsafe_code)]

pub(crate) mod core;

pub use self::core::lease::{Epoch, Fence};
