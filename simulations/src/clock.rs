//! The library's seam to time.

use std::sync::Arc;

use handover::{Clock, Time};

use crate::fabric::Fabric;

/// When the world begins, in milliseconds of Unix time: 2026-01-01.
const EPOCH_MS: u64 = 1_767_225_600_000;
/// How long the machines have been up by then: the boot clock never starts at zero.
const UPTIME_US: u64 = 3_600_000_000;

/// The world's time, the same on every host.
pub(crate) struct SimClock(pub(crate) Arc<Fabric>);

impl std::fmt::Debug for SimClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimClock")
    }
}

impl Clock for SimClock {
    fn boot(&self) -> Time {
        Time::from_micros(UPTIME_US + self.0.now() / 1_000)
    }

    fn wall_ms(&self) -> u64 {
        EPOCH_MS + self.0.now() / 1_000_000
    }
}
