//! The rules. Pure: no I/O, no async, no clock, no randomness; events come in, actions go out.

pub mod branch;
pub mod claim;
pub mod ids;
pub mod io;
#[cfg(test)]
mod laws;
pub mod lease;
pub mod machine;
pub mod members;
pub mod message;
pub mod placement;
pub mod record;
pub mod time;
pub mod timing;
pub mod view;
