//! The neutral meter of the examples, tested on logs made up for the purpose.

#[allow(dead_code, unreachable_pub, reason = "each program uses a part of it")]
#[allow(clippy::unwrap_used, reason = "its tests unwrap")]
#[path = "../examples/rolling_deploy/meter.rs"]
mod meter;
