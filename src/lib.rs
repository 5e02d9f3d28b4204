//! handover
#![forbid(unsafe_code)]

pub(crate) mod clock;
pub(crate) mod core;
pub(crate) mod gossip;
pub(crate) mod key;
#[allow(dead_code)] // until the node drives it
pub(crate) mod link;
pub(crate) mod net;

pub use self::core::lease::{Epoch, Fence};
