//! Every invariant notices the fault that breaks it, and the program says so.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::ExitCode;
use std::thread;

use clap::Parser;

use super::Planted;
use crate::scenario::Scenario;
use crate::verdict::Invariant;
use crate::{Arguments, start, world};

/// A minute of three nodes, quicker than by default.
const BASE: &str = "
about = 'a minute'
nodes = 3
minutes = 1
finish_minutes = 1
[tasks]
count = 6
steps = [100, 100]
arrive_s = 2
[timing]
silence_floor_ms = 5000
";

const CUT: &str = "
[[fault]]
kind = 'cut'
at = 8
a = ['n1']
lasts = 40
";

const CRASH: &str = "
[[fault]]
kind = 'crash'
at = 8
node = 'n1'
";

const DRAIN: &str = "
[[fault]]
kind = 'drain'
at = 8
node = 'n1'
";

/// What the run under seed 1 violates, each once.
fn violated(text: &str, planted: Option<Planted>) -> Vec<Invariant> {
    let mut scenario = Scenario::parse("planted", text).unwrap();
    scenario.planted = planted;
    let verdict = world::run(&scenario, 1).verdict;
    let broken = |what: &Invariant| {
        let label = what.to_string();
        verdict.violations.iter().any(|violation| violation.starts_with(&label))
    };
    let found: Vec<Invariant> = Invariant::ALL.into_iter().filter(broken).collect();
    assert_eq!(found.is_empty(), verdict.violations.is_empty(), "{:?}", verdict.violations);
    found
}

#[test]
fn every_invariant_notices_the_fault_that_breaks_it() {
    use Invariant::{
        H4Repeats, H4Skips, L4, L7, R7, S3, V1End, V1Output, V1Start, V2, V5Drain, V5Start,
    };
    let with = |faults: &str| format!("{BASE}{faults}");
    // A copy that is still at work when the cut ends.
    let long = with(CUT).replace("[100, 100]", "[300, 300]");
    // Alone, it has nobody to hand over to.
    let nobody = with(DRAIN)
        .replace("nodes = 3", "nodes = 1")
        .replace("[timing]", "[timing]\nalone_after_ms = 5000");
    let cases = [
        (with(CUT), Some(Planted::SecretCut), vec![L4, S3, R7]),
        (format!("nobody_missed = true\n{BASE}{CUT}"), None, vec![S3]),
        (long.clone(), Some(Planted::LateHeal), vec![L7]),
        (long, Some(Planted::NoHeal), vec![V2]),
        (with(CRASH), Some(Planted::SecretCrash), vec![H4Repeats]),
        (with(DRAIN), Some(Planted::LeftOutStep), vec![H4Skips]),
        (with(""), Some(Planted::EndlessTask), vec![V1End]),
        (with(""), Some(Planted::WrongResult), vec![V1Output]),
        (with(""), Some(Planted::DeafNodes), vec![V1Start]),
        (with(""), Some(Planted::SharedAddress), vec![V5Start]),
        (nobody, None, vec![V5Drain]),
        // The control: without a planted fault nothing is broken.
        (with(DRAIN), None, vec![]),
    ];
    let found: Vec<Vec<Invariant>> = thread::scope(|scope| {
        let run = |(text, planted, _): &(String, Option<Planted>, _)| violated(text, *planted);
        let runs: Vec<_> = cases.iter().map(|case| scope.spawn(move || run(case))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    let mut noticed: Vec<Invariant> = Vec::new();
    for ((_, planted, expected), found) in cases.into_iter().zip(found) {
        println!("{planted:?}: {found:?}");
        assert_eq!(expected.is_empty(), found.is_empty(), "{planted:?}: {found:?}");
        for invariant in expected {
            assert!(found.contains(&invariant), "{planted:?} breaks {invariant}: {found:?}");
            noticed.push(invariant);
        }
    }
    noticed.sort();
    noticed.dedup();
    assert_eq!(noticed, Invariant::ALL, "one was never put to the test");
}

/// Runs the program, and returns what it prints and exits with.
pub(crate) fn program(arguments: &[&str]) -> (String, ExitCode) {
    let mut out = Vec::new();
    let arguments = ["simulations"].iter().chain(arguments);
    let code = start(Arguments::parse_from(arguments), &mut out);
    (String::from_utf8(out).unwrap(), code)
}

#[test]
fn a_run_that_finds_something_exits_with_1_and_says_how_to_replay_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret.toml");
    let text = format!("planted = 'secret-cut'\n{BASE}{CUT}");
    std::fs::write(&path, &text).unwrap();
    let path = path.to_str().unwrap();

    let (said, code) = program(&["run", path, "--seeds", "3..4", "--jobs", "2"]);
    assert_eq!(code, ExitCode::FAILURE, "{said}");
    let again = "cargo run --release -p simulations -- ";
    for seed in ["3", "4"] {
        let replay = format!("{again}replay {path} --seed {seed} --trace");
        assert!(said.lines().any(|line| line.trim() == replay), "{replay} is not in\n{said}");
    }
    assert!(said.contains("L4 one copy at a time: task-"), "{said}");

    // What it says can be said to it.
    let (said, code) = program(&["replay", path, "--seed", "3"]);
    assert_eq!(code, ExitCode::FAILURE, "{said}");

    let short = text.replace("planted = 'secret-cut'\n", "").replace("lasts = 40", "lasts = 4");
    std::fs::write(path, short).unwrap();
    let (said, code) = program(&["run", path, "--seeds", "3..3"]);
    assert!(!said.contains("FAILED"), "{said}");
    // The cut is over before anybody is missed.
    assert!(said.contains("NEVER CHECKED: L7"), "{said}");
    assert_eq!(code, ExitCode::FAILURE, "what was never checked was not shown to hold");
    let (said, code) = program(&["replay", path, "--seed", "3"]);
    assert_eq!(code, ExitCode::SUCCESS, "one seed need not show everything: {said}");
}
