//! For how long an end, a record, a name is remembered. Rules 12 and 26.

use std::time::Duration;

use super::rules_claims::{claim, publish, run, short};
use super::world::{MS, Setup, World, name};
use crate::core::claim::Phase;
use crate::core::ids::SessionId;
use crate::core::io::{CallError, Event, Notice};
use crate::core::message::Refusal;

const S: Duration = Duration::from_secs(1);

/// Rule 12 and its "Else": an old `Released`, however high its epoch, revives no finished task.
#[test]
fn a_finished_task_is_not_born_anew_by_an_old_release() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(11, 3, &setup);
    world.goal = 5;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let end = world.owner(&nodes[0], "a").unwrap().clone();
    let old = claim("a", end.run, end.epoch.0 + 5, "ghost", Phase::Released);
    publish(&mut world, &nodes, &old);
    let ended = world.now;
    // Past the retention, past the tombstone's own time: the release is still visible.
    world.run_for(S * 40);
    assert!(world.since("a", ended).is_empty());
    assert!(
        nodes.iter().any(|n| world.claim_of(n, "a").is_some_and(|c| c.phase == Phase::Finished))
    );
}

/// Rule 12: output for the retention, the tombstone for longer, then nothing.
#[test]
fn an_end_is_forgotten_in_two_stages() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(12, 3, &setup);
    world.goal = 5;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let output = |world: &World| {
        nodes.iter().any(|n| {
            world.nodes[n].disk.runs.values().any(|run| matches!(&run.end, Some((_, Some(_)))))
        })
    };
    assert!(output(&world));
    world.run_for(S * 10);
    assert!(!output(&world));
    assert_eq!(world.owner(&nodes[1], "a").unwrap().phase, Phase::Finished);
    world.run_for(S * 40);
    for node in &nodes {
        assert!(world.owner(node, "a").is_none());
        assert!(world.nodes[node].disk.runs.is_empty());
        assert!(world.nodes[node].machine.spec(&name("a")).is_none());
    }
}

/// Rule 12: the tombstone of an old run goes without the run that lives.
#[test]
fn a_tombstones_end_leaves_the_next_run_alone() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(13, 3, &setup);
    world.goal = 5;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    world.goal = 100_000;
    world.start_kind(&nodes[0], "a", "count", true);
    world.run_for(S * 45);
    let owner = world.runner("a");
    for node in &nodes {
        assert_eq!(world.owner(node, "a").unwrap().session, owner);
    }
    world.crash(&owner);
    world.run_for(S * 3);
    assert_eq!(world.running("a").len(), 1);
}

/// Rule 12: a node removes its own record once another has dominated it for R_eta.
#[test]
fn a_dominated_record_is_removed() {
    let (mut world, nodes) = World::cluster(17, 3);
    world.goal = 100_000;
    for i in 0..9 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 2);
    world.drain(&nodes[0], S * 20);
    world.run_until(S * 10, "drained", |w| w.nodes[&nodes[0]].drained.is_some());
    world.run_for(S * 5);
    for i in 0..9 {
        assert!(world.claim_of(&nodes[0], &format!("t{i}")).is_none());
    }
}

/// Bounds: names asked about by a peer that is gone leave nothing behind.
#[test]
fn what_is_known_of_a_name_is_forgotten_with_it() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(18, 2, &setup);
    for i in 0..50u64 {
        let ghost = claim(&format!("g{i}"), run(1, 5), 7, "ghost", Phase::Superseded);
        publish(&mut world, &nodes, &ghost);
        let changes = vec![(ghost.name.clone(), None)];
        world.give(&nodes[0], Event::Claims { of: ghost.session.clone(), changes });
    }
    let epoch = |world: &World| world.nodes[&nodes[0]].machine.view().epoch(&name("g7"));
    assert!(epoch(&world).is_some(), "an epoch outlives the claim that carried it");
    world.run_for(S * 25);
    assert!(epoch(&world).is_none());
}

/// Rules 8 and 12: once the retention is over a name is free, wherever it is asked for.
#[test]
fn an_end_that_is_retained_no_longer_is_known_to_be_so_everywhere() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(31, 5, &setup);
    world.goal = 5;
    world.start(&nodes[0], "a");
    world.run_for(S * 3);
    let ended = world.owner(&nodes[0], "a").unwrap().clone();
    assert_eq!(ended.phase, Phase::Finished);
    let joined =
        nodes.iter().map(|node| (node.clone(), world.start(node, "a"))).collect::<Vec<_>>();
    world.run_for(S);
    for (node, call) in joined {
        assert_eq!(world.nodes[&node].replies[&call], Ok(ended.run), "retained");
    }
    world.run_for(S * 5);
    let keeps = |node: &SessionId| world.nodes[node].disk.runs.keys().any(|(n, _)| *n == name("a"));
    let stranger =
        nodes.iter().find(|node| !keeps(node)).expect("two nodes keep the record").clone();
    assert!(world.owner(&stranger, "a").unwrap().expired);
    let call = world.start(&stranger, "a");
    world.run_for(S);
    let again = world.nodes[&stranger].replies[&call].clone().unwrap();
    assert_eq!(again.number, ended.run.number + 1);
    world.run_for(S);
    assert_eq!(world.finished[&name("a")].len(), 2);
}

/// Rule 26: names are bounded; whoever asks for one more is told why, and a person is told once.
#[test]
fn a_name_too_many_is_refused_with_the_reason() {
    let setup = Setup { max_names: 10, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(61, 2, &setup);
    world.goal = 100_000;
    let mut refused = 0;
    for i in 0..20 {
        let call = world.start(&nodes[0], &format!("t{i}"));
        world.run_for(MS * 300);
        match &world.nodes[&nodes[0]].replies[&call] {
            Ok(_) => assert_eq!(world.running(&format!("t{i}")).len(), 1),
            Err(CallError::NoNode(Refusal::TooManyNames)) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 10);
    for node in &nodes {
        let full =
            |notice: &Notice| matches!(notice, Notice::Warning(why) if why.contains("max_names"));
        assert_eq!(world.told(node, full), 1, "{node}");
    }
    // What is known already is not refused.
    let call = world.start(&nodes[1], "t0");
    assert!(world.nodes[&nodes[1]].replies[&call].is_ok());
}
