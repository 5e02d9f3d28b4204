//! Thousands of names at once, and outboxes that are full: a message that finds no room is lost.

use std::time::Duration;

use super::world::{MS, Setup, World, name};
use crate::core::ids::SessionId;

const S: Duration = Duration::from_secs(1);

fn cluster(seed: u64) -> (World, Vec<SessionId>) {
    let setup = Setup { max_running: 10_000, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(seed, 3, &setup);
    world.goal = 1_000_000;
    world.step = S;
    world.max_events = 10_000_000;
    (world, nodes)
}

fn text(i: usize) -> String {
    format!("t{i}")
}

/// Each runs on one node, of those given.
fn assert_run_once(world: &World, names: usize, on: &[SessionId]) {
    for i in 0..names {
        let running = world.running(&text(i));
        assert!(running.len() == 1 && on.contains(&running[0]), "t{i} runs on {running:?}");
    }
    world.assert_no_overlap();
}

/// What has moved since has begun at or above what a replica had acknowledged before.
fn assert_kept(world: &World, before: &World) {
    let mut moved = 0;
    for (name, (run, seq)) in &before.acknowledged {
        let last = world.stretches.iter().rfind(|s| s.name == *name).unwrap();
        assert_eq!(last.run, *run, "{name}");
        if last.start > before.now {
            moved += 1;
            assert!(last.from_seq >= *seq, "{seq} steps were acknowledged: {last:?}");
        }
    }
    assert!(moved > 10, "{moved} have moved");
}

#[test]
fn more_than_four_thousand_names_are_started_taken_over_and_handed_over_at_once() {
    const NAMES: usize = 4_500;
    let (mut world, nodes) = cluster(70);
    let calls: Vec<_> =
        (0..NAMES).map(|i| (nodes[i % 3].clone(), world.start(&nodes[i % 3], &text(i)))).collect();
    world.run_for(S * 5);
    for (at, call) in calls {
        assert!(matches!(world.nodes[&at].replies.get(&call), Some(Ok(_))), "{call} at {at}");
    }
    assert_run_once(&world, NAMES, &nodes);
    assert_eq!(world.acknowledged.len(), NAMES);

    let before = world.clone();
    let crashed = world.now;
    world.crash(&nodes[0]);
    world.run_for(S * 3);
    assert_run_once(&world, NAMES, &nodes[1..]);
    assert_kept(&world, &before);
    assert!(world.since("t0", crashed).iter().all(|s| s.start.since(crashed) < S * 2));

    let before = world.clone();
    world.drain(&nodes[1], S * 25);
    world.run_until(S * 25, "drained", |w| w.nodes[&nodes[1]].drained.is_some());
    world.run_for(S);
    assert_run_once(&world, NAMES, &nodes[2..]);
    assert_kept(&world, &before);
}

#[test]
fn full_outboxes_cost_time_and_nothing_else() {
    const NAMES: usize = 300;
    let (mut world, nodes) = cluster(71);
    world.outbox = 10;
    // Their commits fall on different instants; starts, a crash and a drain make many messages at once.
    for i in 0..NAMES {
        let step = S + MS * u32::try_from(i).unwrap() * 7;
        world.steps.insert(name(&text(i)), step);
    }
    let mut calls: Vec<_> = (0..NAMES).map(|i| (i, world.start(&nodes[0], &text(i)))).collect();
    for _ in 0..6 {
        world.run_for(S * 20);
        // Who is told that nobody answered calls again, as the error says.
        for (i, call) in &mut calls {
            match world.nodes[&nodes[0]].replies.get(call) {
                Some(Ok(_)) => {}
                Some(Err(_)) => *call = world.start(&nodes[0], &text(*i)),
                None => panic!("t{i} has no answer"),
            }
        }
    }
    let lost = world.overflowed;
    assert!(lost > 100, "the outboxes were full: {lost}");
    assert_run_once(&world, NAMES, &nodes);
    assert_eq!(world.acknowledged.len(), NAMES);

    let before = world.clone();
    world.crash(&nodes[1]);
    world.run_for(S * 30);
    assert_run_once(&world, NAMES, &[nodes[0].clone(), nodes[2].clone()]);
    assert_kept(&world, &before);
    assert!(world.overflowed > lost);

    let (before, lost) = (world.clone(), world.overflowed);
    world.drain(&nodes[0], S * 25);
    world.run_until(S * 30, "drained", |w| w.nodes[&nodes[0]].drained.is_some());
    world.run_for(MS * 500);
    world.crash(&nodes[0]);
    world.run_for(S * 30);
    assert_run_once(&world, NAMES, &nodes[2..]);
    assert_kept(&world, &before);
    assert!(world.overflowed > lost);
}
