//! What a person reads in a terminal.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Report;

/// How many violations of one seed are shown; a broken rule is usually broken often.
const SHOWN: usize = 5;

/// A scenario's runs, as text.
pub(crate) fn describe(report: &Report, thorough: bool) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}: {} seeds, {:.2} simulated hours of {} nodes and {} tasks in {:.1} s \
         ({:.0} x real time, {:.0} x per core)",
        report.scenario,
        report.runs,
        report.simulated_s / 3600.0,
        report.nodes,
        report.tasks,
        report.wall_s,
        report.simulated_s / report.wall_s.max(1e-9),
        report.simulated_s / report.busy_s.max(1e-9),
    );
    line(&mut text, "faults", &listed(&report.faults));
    line(&mut text, "nodes said", &listed(&report.events));
    line(&mut text, "run refused", &listed(&report.refusals));
    line(&mut text, "work", &format!("{} steps, {} of them again", report.steps, report.repeated));
    let traffic = format!(
        "{} datagrams ({} lost), {} stream segments, {:.1} MB",
        report.datagrams,
        report.datagrams_lost,
        report.segments,
        report.bytes as f64 / 1e6,
    );
    line(&mut text, "traffic", &traffic);
    line(&mut text, "overlaps", &report.overlaps.to_string());
    if report.bounds.count > 0 {
        let closest = 100.0 * report.closest;
        let text_of = format!("{}; none took more than {closest:.0} % of its own", report.bounds);
        line(&mut text, "  bounds", &text_of);
    }
    let mut after_heal = report.after_heal.to_string();
    if report.after_heal.count > 0 {
        let _ = write!(after_heal, "; bound {:.0} ms", report.after_heal_bound_ms);
    }
    line(&mut text, "  after heal", &after_heal);
    line(&mut text, "gaps", &report.gaps.to_string());
    for (invariant, times) in &report.checks {
        line(&mut text, "checked", &format!("{invariant:<40} {times:>9} times"));
    }
    if thorough {
        for invariant in report.never_checked() {
            let _ = writeln!(text, "  NEVER CHECKED: {invariant}. Other seeds, or more of them?");
        }
    }
    for failure in &report.failures {
        let _ = writeln!(text, "  seed {} FAILED:", failure.seed);
        for violation in failure.violations.iter().take(SHOWN) {
            let _ = writeln!(text, "    {violation}");
        }
        if failure.violations.len() > SHOWN {
            let _ = writeln!(text, "    and {} more", failure.violations.len() - SHOWN);
        }
        let _ = writeln!(text, "    {}", failure.replay);
    }
    text
}

fn line(text: &mut String, label: &str, value: &str) {
    if !value.is_empty() {
        let _ = writeln!(text, "  {label:<13} {value}");
    }
}

fn listed(counts: &BTreeMap<String, u64>) -> String {
    let parts: Vec<String> = counts.iter().map(|(what, times)| format!("{what} {times}")).collect();
    parts.join(", ")
}
