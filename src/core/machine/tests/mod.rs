//! The rules, one by one, in a world of virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod interleavings;
mod spine;
mod world;
