//! What has changed since another run of the same seeds.

use std::fmt::Write;

use super::{Report, Spread};

/// Less is within what the ticks of the world hide.
const TICKS_MS: f64 = 20.0;

/// What has become longer or shorter since `before`, as text, and whether nothing has become longer by more than
/// `tolerance`, a part of what it was.
pub(crate) fn compare(before: &Report, now: &Report, tolerance: f64) -> (String, bool) {
    let mut text = format!("{}: {} seeds\n", now.scenario, now.runs);
    let mut well = true;
    let spreads = |report: &Report| {
        let Report { overlaps, after_heal, gaps, .. } = report;
        [("overlap", *overlaps), ("after heal", *after_heal), ("gap", *gaps)]
    };
    for ((what, was), (_, is)) in spreads(before).into_iter().zip(spreads(now)) {
        if (was.count, is.count) == (0, 0) {
            continue;
        }
        let values = |of: Spread| [("p50", of.p50_ms), ("p99", of.p99_ms), ("max", of.max_ms)];
        let _ = write!(text, "  {what:<11} {:>6} -> {:<6}", was.count, is.count);
        for ((rank, was), (_, is)) in values(was).into_iter().zip(values(is)) {
            let worse = is > was * (1.0 + tolerance) + TICKS_MS;
            well &= !worse;
            let mark = if worse { " LONGER" } else { "" };
            let _ = write!(text, "  {rank} {was:.0} -> {is:.0} ms{mark}");
        }
        text.push('\n');
    }
    let again = |report: &Report| 100.0 * report.repeated as f64 / report.steps.max(1) as f64;
    let _ = writeln!(text, "  steps again {:.2} % -> {:.2} %", again(before), again(now));
    let speed = |report: &Report| report.simulated_s / report.busy_s.max(1e-9);
    let _ = writeln!(
        text,
        "  speed       {:.0} -> {:.0} x real time per core, on whatever machines these were",
        speed(before),
        speed(now)
    );
    (text, well)
}
