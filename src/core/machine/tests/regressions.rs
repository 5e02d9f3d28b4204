//! What random interleavings broke once, each in its smallest form.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::world::{MS, World, name};
use crate::core::claim::{Phase, Spec, Want};
use crate::core::ids::{Kind, RunId};
use crate::core::io::Event;
use crate::core::message::Message;

const S: Duration = Duration::from_secs(1);

#[test]
fn a_late_start_of_an_older_run_joins_the_one_that_runs() {
    let (mut world, nodes) = World::cluster(1, 3);
    world.start(&nodes[0], "a");
    world.run_for(S);
    let owner = world.running("a")[0].clone();
    let from = nodes.iter().find(|node| **node != owner).unwrap().clone();
    let older = RunId { number: 1, uuid: Uuid::nil() };
    let kind = Kind::new("count").unwrap();
    let spec = Spec { name: name("a"), run: older, kind, args: Bytes::new() };
    world.record_messages = true;
    world.give(&owner, Event::Message { from, message: Message::Start { call: 9, spec } });
    world.run_for(S * 3);
    let running = world.nodes[&owner].owners[&name("a")].run;
    assert_ne!(running, older);
    assert!(world.sent.iter().any(|(_, _, _, m)| {
        matches!(m, Message::StartReply { call: 9, result: Ok(run) } if *run == running)
    }));
    assert_eq!(world.running("a"), [owner]);
}

#[test]
fn two_sessions_that_both_keep_a_paused_name_end_as_one_after_a_heal() {
    let (mut world, nodes) = World::cluster(2, 4);
    world.max_events = 5_000;
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let owner = world.running("a")[0].clone();
    let others: Vec<_> = nodes.iter().filter(|node| **node != owner).cloned().collect();
    let side = [owner.clone(), others[0].clone()];
    world.split(&side, &others[1..]);
    world.run_until(S * 20, "runs on both sides", |w| w.running("a").len() == 2);
    world.want(&owner, "a", Want::Pause);
    world.want(&others[1], "a", Want::Pause);
    world.run_for(S);
    assert!(world.running("a").is_empty());
    world.heal();
    world.run_for(S * 20);
    let keepers = nodes.iter().filter(|node| {
        let claim = world.nodes[*node].machine.view().get(&name("a"), node);
        claim.is_some_and(|claim| claim.phase.is_held())
    });
    assert_eq!(keepers.count(), 1);
    for node in &nodes {
        assert_eq!(world.nodes[node].owners[&name("a")].phase, Phase::Paused);
    }
}

#[test]
fn a_task_that_stops_for_a_pause_when_the_budget_ends_does_not_keep_the_drain_open() {
    let (mut world, nodes) = World::cluster(3, 3);
    world.steps.insert(name("a"), S);
    world.start(&nodes[0], "a");
    world.run_for(S * 3);
    let owner = world.running("a")[0].clone();
    world.want(&owner, "a", Want::Pause);
    world.drain(&owner, Duration::ZERO);
    world.run_until(S * 3, "drained", |w| w.nodes[&owner].drained.is_some());
    world.run_for(S * 3);
    assert!(world.running("a").is_empty());
    let other = nodes.iter().find(|node| **node != owner).unwrap();
    let claim = &world.nodes[other].owners[&name("a")];
    assert!(claim.phase == Phase::Paused && claim.session != owner, "{claim:?}");
}

#[test]
fn two_that_hold_each_other_for_silent_do_not_claim_over_each_other_without_end() {
    let (mut world, nodes) = World::cluster(4, 2);
    world.max_events = 5_000;
    world.cut_both(&nodes[0], &nodes[1]);
    world.run_for(S * 70);
    world.start(&nodes[0], "a");
    world.start(&nodes[1], "a");
    world.heal();
    world.run_for(MS * 300);
    world.run_for(S * 20);
    assert_eq!(world.running("a").len(), 1);
}
