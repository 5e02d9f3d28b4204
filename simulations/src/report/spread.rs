//! How many durations there are, and how long they are.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::fabric::Nanos;

/// In milliseconds, by nearest rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) count: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

impl Spread {
    pub(crate) fn of(durations: impl Iterator<Item = Nanos>) -> Self {
        let mut durations: Vec<Nanos> = durations.collect();
        durations.sort_unstable();
        let at = |part: f64| {
            let index = (durations.len() as f64 * part).ceil() as usize;
            durations.get(index.saturating_sub(1)).copied().unwrap_or_default() as f64 / 1e6
        };
        let count = durations.len() as u64;
        Self { count, p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, p50_ms, p99_ms, max_ms } = self;
        match count {
            0 => f.write_str("none"),
            _ => write!(f, "{count}: p50 {p50_ms:.0} ms, p99 {p99_ms:.0} ms, max {max_ms:.0} ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_names_the_middle_and_the_ends() {
        let text = |durations: &[u64]| Spread::of(durations.iter().copied()).to_string();
        let hundred: Vec<u64> = (1..=100).map(|ms| ms * 1_000_000).collect();
        assert_eq!(text(&hundred), "100: p50 50 ms, p99 99 ms, max 100 ms");
        assert_eq!(text(&[7_000_000]), "1: p50 7 ms, p99 7 ms, max 7 ms");
        assert_eq!(text(&[]), "none");
    }
}
