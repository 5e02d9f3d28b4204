//! What a person reads of a scenario's runs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use crate::fabric::Nanos;
use crate::scenario::Scenario;
use crate::verdict::Invariant;
use crate::world::Outcome;

/// How many violations of one seed are shown; a broken rule is usually broken often.
const SHOWN: usize = 5;

/// A scenario's runs, as text, and whether all went well.
///
/// Where `thorough`, an invariant that the scenario should exercise, and did not, is a failure too: it
/// was not shown to hold.
pub(crate) fn describe(
    scenario: &Scenario,
    outcomes: &[Outcome],
    wall: Duration,
    thorough: bool,
) -> (String, bool) {
    let mut text = String::new();
    let simulated: Duration = outcomes.iter().map(|outcome| outcome.simulated).sum();
    let busy: Duration = outcomes.iter().map(|outcome| outcome.wall).sum();
    let _ = writeln!(
        text,
        "{}: {} seeds, {:.2} simulated hours of {} nodes and {} tasks in {:.1} s \
         ({:.0} x real time, {:.0} x per core)",
        scenario.name,
        outcomes.len(),
        simulated.as_secs_f64() / 3600.0,
        scenario.nodes,
        scenario.tasks.count,
        wall.as_secs_f64(),
        ratio(simulated, wall),
        ratio(simulated, busy),
    );
    let faults = sum(outcomes, |outcome| {
        outcome.faults.iter().map(|(kind, times)| (kind.label().to_owned(), *times)).collect()
    });
    line(&mut text, "faults", &listed(&faults));
    let events = sum(outcomes, |outcome| outcome.node_events.clone());
    line(&mut text, "nodes said", &listed(&events));
    let total = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let refusals = sum(outcomes, |outcome| {
        outcome.refusals.iter().map(|(why, times)| (why.clone(), u64::from(*times))).collect()
    });
    line(&mut text, "run refused", &listed(&refusals));
    let work =
        format!("{} steps, {} of them again", total(|run| run.steps), total(|run| run.repeated));
    line(&mut text, "work", &work);
    let traffic = format!(
        "{} datagrams ({} lost), {} stream segments, {:.1} MB",
        total(|run| run.traffic.datagrams),
        total(|run| run.traffic.datagrams_lost),
        total(|run| run.traffic.segments),
        total(|run| run.traffic.bytes) as f64 / 1e6,
    );
    line(&mut text, "traffic", &traffic);
    let spread =
        |of: fn(&Outcome) -> &Vec<Nanos>| spread(outcomes.iter().flat_map(of).copied().collect());
    line(&mut text, "overlaps", &spread(|run| &run.verdict.overlaps));
    line(&mut text, "  after heal", &spread(|run| &run.verdict.after_heal));
    line(&mut text, "gaps", &spread(|run| &run.verdict.gaps));
    let mut well = true;
    for invariant in Invariant::ALL.into_iter().filter(|what| what.applies(scenario)) {
        let of = |outcome: &Outcome| outcome.verdict.checks.get(&invariant).copied();
        let times: u64 = outcomes.iter().filter_map(of).sum();
        line(&mut text, "checked", &format!("{invariant:<40} {times:>9} times"));
        if times == 0 && thorough {
            well = false;
            let _ = writeln!(text, "  NEVER CHECKED: {invariant}. Other seeds, or more of them?");
        }
    }
    for outcome in outcomes.iter().filter(|outcome| !outcome.verdict.violations.is_empty()) {
        well = false;
        let violations = &outcome.verdict.violations;
        let _ = writeln!(text, "  seed {} FAILED:", outcome.seed);
        for violation in violations.iter().take(SHOWN) {
            let _ = writeln!(text, "    {violation}");
        }
        if violations.len() > SHOWN {
            let _ = writeln!(text, "    and {} more", violations.len() - SHOWN);
        }
        let _ = writeln!(
            text,
            "    cargo run --release -p simulations -- replay {} --seed {} --trace",
            scenario.found_as, outcome.seed
        );
    }
    (text, well)
}

fn line(text: &mut String, label: &str, value: &str) {
    if !value.is_empty() {
        let _ = writeln!(text, "  {label:<13} {value}");
    }
}

fn ratio(simulated: Duration, real: Duration) -> f64 {
    simulated.as_secs_f64() / real.as_secs_f64().max(1e-9)
}

fn sum(
    outcomes: &[Outcome],
    of: impl Fn(&Outcome) -> BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (what, times) in outcomes.iter().flat_map(of) {
        *sums.entry(what).or_default() += times;
    }
    sums
}

fn listed(counts: &BTreeMap<String, u64>) -> String {
    let parts: Vec<String> = counts.iter().map(|(what, times)| format!("{what} {times}")).collect();
    parts.join(", ")
}

/// How many there are, and how long.
fn spread(mut durations: Vec<Nanos>) -> String {
    durations.sort_unstable();
    let at = |part: f64| {
        let index = (durations.len() as f64 * part).ceil() as usize;
        durations.get(index.saturating_sub(1)).copied().unwrap_or_default() as f64 / 1e6
    };
    match durations.len() {
        0 => "none".into(),
        count => {
            format!("{count}: p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms", at(0.5), at(0.99), at(1.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_names_the_middle_and_the_ends() {
        let durations = (1..=100).map(|ms| ms * 1_000_000).collect();
        assert_eq!(spread(durations), "100: p50 50 ms, p99 99 ms, max 100 ms");
        assert_eq!(spread(vec![7_000_000]), "1: p50 7 ms, p99 7 ms, max 7 ms");
        assert_eq!(spread(Vec::new()), "none");
    }
}
