//! Starts of one name on all nodes at once, while the node that would have it goes: it runs once, and
//! whoever is answered is told of that run.

use std::collections::BTreeSet;
use std::time::Duration;

use super::world::{MS, World, name};
use crate::core::ids::SessionId;
use crate::core::placement::rendezvous;

const S: Duration = Duration::from_secs(1);
const TASK: &str = "a";

/// Something happens so many half milliseconds after the starts: from before the first message has
/// arrived until long after the task runs.
const MOMENTS: u32 = 40;

fn home(nodes: &[SessionId]) -> SessionId {
    rendezvous(&name(TASK), nodes)[0].clone()
}

/// All nodes start the name, then `fault` befalls the home, and time passes. How often the calls of
/// the others were answered before it did.
fn starts_while(moment: u32, fault: impl Fn(&mut World, &SessionId)) -> usize {
    let (mut world, nodes) = World::cluster(u64::from(moment), 4);
    let home = home(&nodes);
    let calls: Vec<_> = nodes.iter().map(|n| (n.clone(), world.start(n, TASK))).collect();
    world.run_for(MS / 2 * moment);
    let others = || calls.iter().filter(|(node, _)| *node != home);
    let before = others().filter(|(n, c)| world.nodes[n].replies.contains_key(c)).count();
    fault(&mut world, &home);
    world.run_for(S * 20);
    world.assert_no_overlap();
    assert_eq!(world.running(TASK).len(), 1, "{moment}");
    let runner = world.runner(TASK);
    let running = world.owner(&runner, TASK).unwrap().run;
    for (node, call) in others() {
        let reply = world.nodes[node].replies.get(call).cloned();
        assert_eq!(reply, Some(Ok(running)), "{moment}: {node}");
    }
    let runs: BTreeSet<_> = world.stretches.iter().map(|stretch| stretch.run).collect();
    assert_eq!(runs.len(), 1, "{moment}: {runs:?}");
    before
}

/// The fault came before anybody was answered, and after all were.
fn assert_swept(answered: &[usize]) {
    assert!(answered.contains(&0) && answered.contains(&3), "{answered:?}");
}

#[test]
fn a_home_that_dies_at_any_moment_of_the_starts_makes_no_second_run() {
    let die = |world: &mut World, home: &SessionId| world.crash(home);
    let answered: Vec<usize> = (0..MOMENTS).map(|moment| starts_while(moment, die)).collect();
    assert_swept(&answered);
}

#[test]
fn a_home_that_leaves_at_any_moment_of_the_starts_makes_no_second_run() {
    for budget in [Duration::ZERO, S * 5] {
        let drain = |world: &mut World, home: &SessionId| world.drain(home, budget);
        let answered: Vec<usize> = (0..MOMENTS).map(|moment| starts_while(moment, drain)).collect();
        assert_swept(&answered);
    }
}
