//! The rules, one by one, in a world of virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod handover_faults;
mod hostile;
mod interleavings;
mod regressions;
mod settling_exhaustive;
mod spine;
mod world;
