//! The seam to time: the only place where a clock is read.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::core::io::Now;
use crate::core::time::Time;

/// Where a node takes its time from. The simulation brings its own.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Monotonic time that counts suspend (CLOCK_BOOTTIME): every deadline is in it.
    fn boot(&self) -> Time;

    /// Unix time in milliseconds: for people and for the floor of a first epoch, for no deadline.
    fn wall_ms(&self) -> u64;
}

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// Both clocks at once, as the core wants them.
pub(crate) fn now(clock: &dyn Clock) -> Now {
    Now { at: clock.boot(), unix: clock.wall_ms() / 1000 }
}

/// The machine's clocks. Elsewhere than on Linux the monotonic clock may stand still in suspend.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn boot(&self) -> Time {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let id = rustix::time::ClockId::Boottime;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let id = rustix::time::ClockId::Monotonic;
        let time = rustix::time::clock_gettime(id);
        Time::from_micros(time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000)
    }

    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }
}
