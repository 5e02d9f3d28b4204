//! The trace that a person reads: the world's time, and which node.

use std::fmt;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Prints what nodes and observer say, filtered by `RUST_LOG`.
pub(crate) fn to_stdout() {
    let given = std::env::var("RUST_LOG");
    let given = given.as_deref().unwrap_or("warn,handover=debug,simulations=debug");
    // Its spans say which node speaks.
    let filter = EnvFilter::new(format!("{given},turmoil=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(WorldTime)
        .with_ansi(false)
        .with_writer(std::io::stdout)
        .init();
}

/// The time of the host that speaks.
struct WorldTime;

impl FormatTime for WorldTime {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        match turmoil::sim_elapsed() {
            Some(elapsed) => write!(w, "{:>11.6}", elapsed.as_secs_f64()),
            // The world itself speaks, between two ticks.
            None => write!(w, "{:>11}", "world"),
        }
    }
}
