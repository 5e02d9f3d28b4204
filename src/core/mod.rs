//! The rules. Pure: no I/O, no async, no clock, no randomness; events come in, actions go out.

// A library of its own inside the crate: its items are `pub`, and the root chooses what users see.
#![allow(unreachable_pub)]

pub mod branch;
pub mod claim;
pub mod ids;
pub mod io;
#[cfg(test)]
mod laws;
pub mod lease;
pub mod limits;
pub mod machine;
pub mod members;
pub mod message;
pub mod placement;
pub mod reconcile;
pub mod record;
pub mod stored;
pub mod time;
pub mod timing;
pub mod view;
