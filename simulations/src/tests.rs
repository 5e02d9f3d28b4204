//! The harness itself: what it runs replays, and what it simulates behaves as a kernel does.

#![allow(clippy::unwrap_used, clippy::expect_used)]

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
    assert!(once.events > 10_000, "{} events", once.events);
    assert_eq!((once.fingerprint, once.events), (again.fingerprint, again.events));
    let other = world::run(&scenario, 8);
    assert_ne!(once.fingerprint, other.fingerprint);
}
