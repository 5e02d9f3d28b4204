//! Rule 10 where there is no higher epoch: nobody steps over anybody, the order of sessions decides,
//! and the cluster can go on claiming. No cluster gets there by itself; one wrong record does.

use std::time::Duration;

use super::rules_claims::{claim, publish, short};
use super::world::{Setup, World, name};
use crate::core::claim::{Phase, Want};
use crate::core::ids::SessionId;
use crate::core::io::Event;
use crate::core::message::Message;

const S: Duration = Duration::from_secs(1);

/// A cluster that runs "a" at the highest epoch there is, because of a claim of `ghost`.
fn saturated(seed: u64, ghost: &str) -> (World, Vec<SessionId>) {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(seed, 3, &setup);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let run = world.claim_of(&world.runner("a"), "a").unwrap().run;
    publish(&mut world, &nodes, &claim("a", run, u64::MAX, ghost, Phase::Released));
    world.run_for(S * 2);
    (world, nodes)
}

fn numbers(world: &World, nodes: &[SessionId]) -> u64 {
    nodes.iter().filter_map(|node| world.claim_of(node, "a")).map(|claim| claim.number).sum()
}

/// V6: the world ends a livelock.
#[test]
fn an_owner_at_the_highest_epoch_runs_on_and_claims_no_more() {
    for ghost in ["a-ghost", "z-ghost"] {
        let (mut world, nodes) = saturated(1, ghost);
        let owner = world.runner("a");
        assert_eq!(world.claim_of(&owner, "a").unwrap().epoch.0, u64::MAX);
        let before = numbers(&world, &nodes);
        world.run_for(S * 30);
        assert_eq!(world.runner("a"), owner);
        assert_eq!(numbers(&world, &nodes), before, "{ghost}");
    }
}

#[test]
fn of_two_owners_at_the_highest_epoch_one_goes_on() {
    for isolated in 0..3 {
        let (mut world, nodes) = saturated(2, "z-ghost");
        world.isolate(&nodes[isolated]);
        world.run_for(S * 12);
        assert!(world.running("a").len() <= 2);
        world.heal();
        world.run_for(S * 10);
        let winner = world.runner("a");
        let before = numbers(&world, &nodes);
        world.run_for(S * 20);
        assert_eq!(world.runner("a"), winner);
        assert_eq!(numbers(&world, &nodes), before);
    }
}

/// Whoever takes over cannot rise above the dead owner's claim.
#[test]
fn at_the_highest_epoch_a_dead_owners_task_is_taken_over_by_whoever_is_left() {
    for ghost in ["a-ghost", "z-ghost"] {
        let (mut world, mut left) = saturated(3, ghost);
        while left.len() > 1 {
            let owner = world.runner("a");
            world.crash(&owner);
            left.retain(|node| *node != owner);
            world.run_for(S * 12);
            assert!(left.contains(&world.runner("a")), "{ghost}");
        }
        world.assert_no_overlap();
    }
}

#[test]
fn at_the_highest_epoch_a_drain_releases_what_it_cannot_hand_over() {
    let (mut world, _) = saturated(4, "z-ghost");
    let owner = world.runner("a");
    world.record_messages = true;
    world.drain(&owner, S * 10);
    world.run_for(S * 12);
    assert!(!world.sent.iter().any(|(.., m)| matches!(m, Message::Offer { .. })));
    assert_ne!(world.runner("a"), owner);
    assert!(world.nodes[&owner].drained.is_some());
    world.assert_no_overlap();
}

/// Another run of the name is above all claims of this one, whatever their epochs.
#[test]
fn a_name_that_has_used_up_its_epochs_ends_and_is_run_again() {
    let (mut world, nodes) = saturated(5, "z-ghost");
    let end = Event::Want { call: 99, name: name("a"), run: None, want: Want::Cancel };
    world.give(&nodes[0], end);
    world.run_for(S * 3);
    assert_eq!(world.owner(&nodes[1], "a").unwrap().phase, Phase::Cancelled);
    assert!(world.running("a").is_empty());
    let call = world.start_kind(&nodes[1], "a", "count", true);
    world.run_for(S * 3);
    let again = world.nodes[&nodes[1]].replies[&call].clone().unwrap();
    assert_eq!(again.number, 2);
    assert_eq!(world.claim_of(&world.runner("a"), "a").unwrap().run, again);
}
