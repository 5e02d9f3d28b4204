//! The harness itself: what it runs replays, and what it simulates behaves as a kernel does.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::{Arc, Mutex};
use std::thread;

use std::fs;
use std::process::ExitCode;

use crate::entropy;
use crate::planted::tests::program;
use crate::scenario::Scenario;
use crate::world;

/// Everything that can differ in a minute: gossip, links, takeovers, a cut and a heal.
const EVENTFUL: &str = "
about = 'a little of everything'
nodes = 3
minutes = 1
finish_minutes = 5
[tasks]
count = 6
steps = [50, 200]
arrive_s = 10
[network]
loss = 0.02
duplicate = 0.01
[timing]
silence_floor_ms = 5000
[[fault]]
kind = 'crash'
at = 15
jitter = 2
node = 'any'
lasts = 10
[[fault]]
kind = 'cut'
at = 35
a = ['any']
lasts = 12
";

#[test]
fn the_same_seed_replays_to_the_byte() {
    let scenario = Scenario::parse("eventful", EVENTFUL).unwrap();
    let (once, again) = (world::run(&scenario, 7), world::run(&scenario, 7));
    assert!(once.verdict.violations.is_empty(), "{:?}", once.verdict.violations);
    assert!(once.events > 3_000, "{} events", once.events);
    assert_eq!((once.fingerprint, once.events), (again.fingerprint, again.events));
    let other = world::run(&scenario, 8);
    assert_ne!(once.fingerprint, other.fingerprint);
}

const CUT: &str = "
about = 'a cut and nothing else'
nodes = 3
minutes = 1
[tasks]
count = 9
steps = [250, 350]
arrive_s = 5
[timing]
silence_floor_ms = 5000
[[fault]]
kind = 'cut'
at = 30
a = ['n1']
lasts = 20
";

#[test]
fn a_cut_is_silence_and_no_death() {
    let scenario = Scenario::parse("cut", CUT).unwrap();
    let outcome = world::run(&scenario, 1);
    assert!(outcome.verdict.violations.is_empty(), "{:?}", outcome.verdict.violations);
    assert!(!outcome.node_events.contains_key("peer gone: dead"), "{:?}", outcome.node_events);
    assert!(outcome.node_events.contains_key("peer gone: silent"), "{:?}", outcome.node_events);
    assert!(!outcome.verdict.overlaps.is_empty(), "both sides run what the other had");
}

#[test]
fn a_killed_process_is_known_to_be_dead_at_once() {
    let crash = CUT.replace("'cut'", "'crash'").replace("a = ['n1']", "node = 'n1'");
    let outcome = world::run(&Scenario::parse("crash", &crash).unwrap(), 1);
    assert!(outcome.verdict.violations.is_empty(), "{:?}", outcome.verdict.violations);
    assert_eq!(outcome.node_events.get("peer gone: dead"), Some(&2), "both others know");
    let gap = outcome.verdict.gaps.iter().max().copied().unwrap_or_default();
    assert!((1..2_000_000_000).contains(&gap), "taken over at once, not after {gap} ns");
}

#[test]
fn a_machine_without_power_refuses_nothing() {
    let power = CUT.replace("'cut'", "'power-off'").replace("a = ['n1']", "node = 'n1'");
    let outcome = world::run(&Scenario::parse("power", &power).unwrap(), 1);
    assert!(outcome.verdict.violations.is_empty(), "{:?}", outcome.verdict.violations);
    assert!(!outcome.node_events.contains_key("peer gone: dead"), "{:?}", outcome.node_events);
    assert!(outcome.node_events.contains_key("peer gone: silent"), "{:?}", outcome.node_events);
}

/// Which branch of a `select!` was taken, again and again, in a world of its own.
fn branches(seed: u64) -> Vec<bool> {
    let drawn = Arc::new(Mutex::new(Vec::new()));
    let drawing = drawn.clone();
    thread::spawn(move || {
        entropy::seed_this_thread(seed);
        let mut sim = turmoil::Builder::new().rng_seed(seed).build();
        sim.client("chooser", async move {
            for _ in 0..64 {
                let first = tokio::select! {
                    () = std::future::ready(()) => true,
                    () = std::future::ready(()) => false,
                };
                drawing.lock().unwrap().push(first);
            }
            Ok(())
        });
        sim.run().unwrap();
    })
    .join()
    .unwrap();
    Arc::into_inner(drawn).unwrap().into_inner().unwrap()
}

/// The order of branches comes from a counter of the whole process unless the runtime is seeded, so
/// that a second run in the same process would differ.
#[test]
fn the_order_of_a_select_follows_from_the_seed() {
    assert_eq!(branches(1), branches(1));
    assert_ne!(branches(1), branches(2));
}

#[test]
fn a_run_is_compared_with_an_earlier_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (cut, json) = (path("cut.toml"), path("before.json"));
    fs::write(&cut, CUT).unwrap();
    let arguments = ["run", &cut, "--seeds", "1..1", "--nodes", "4", "--json", &json];
    let (said, code) = program(&arguments);
    assert_eq!(code, ExitCode::SUCCESS, "{said}");
    assert!(said.contains("of 4 nodes"), "{said}");
    let (said, code) = program(&["compare", &json]);
    assert_eq!(code, ExitCode::SUCCESS, "the same again: {said}");
    assert!(said.contains("overlap"), "{said}");

    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let mut shorter = report.clone();
    let max = &mut shorter[0]["overlaps"]["max_ms"];
    *max = (max.as_f64().unwrap() / 2.0).into();
    fs::write(&json, shorter.to_string()).unwrap();
    let (said, code) = program(&["compare", &json]);
    assert_eq!(code, ExitCode::FAILURE, "it was shorter: {said}");
    assert_eq!(said.matches("LONGER").count(), 1, "{said}");
    let (said, code) = program(&["compare", &json, "--tolerance", "1.5"]);
    assert_eq!(code, ExitCode::SUCCESS, "{said}");
}

#[test]
fn a_size_that_makes_no_sense_is_refused() {
    let (_, code) = program(&["run", "split-heal", "--nodes", "0"]);
    assert_eq!(code, ExitCode::from(2));
}
