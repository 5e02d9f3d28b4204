//! The main paths: start, join, hand over, take over, end.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::world::{MS, Setup, World, name};
use crate::core::claim::{Phase, Spec, Want};
use crate::core::ids::{Kind, RunId, SessionId};
use crate::core::io::{Action, CallError, Event};

const S: Duration = Duration::from_secs(1);

#[test]
fn a_task_starts_and_run_returns_once_a_peer_knows_it() {
    let (mut world, nodes) = World::cluster(1, 3);
    let call = world.start(&nodes[0], "a");
    world.run_for(S);
    assert!(matches!(world.nodes[&nodes[0]].replies.get(&call), Some(Ok(_))));
    assert_eq!(world.running("a").len(), 1);
    for node in &nodes {
        assert_eq!(world.nodes[node].owners[&name("a")].phase, Phase::Running);
        assert!(world.nodes[node].machine.spec(&name("a")).is_some());
    }
}

#[test]
fn concurrent_starts_of_one_name_run_once_and_return_the_same_run() {
    for seed in 0..50 {
        let (mut world, nodes) = World::cluster(seed, 3);
        let calls: Vec<_> = nodes.iter().map(|n| (n.clone(), world.start(n, "a"))).collect();
        world.run_for(S * 5);
        assert_eq!(world.running("a").len(), 1, "seed {seed}");
        world.assert_no_overlap();
        let runs: Vec<_> = calls
            .iter()
            .map(|(n, call)| world.nodes[n].replies.get(call).cloned().unwrap().unwrap())
            .collect();
        assert!(runs.iter().all(|run| *run == runs[0]), "seed {seed}: {runs:?}");
    }
}

#[test]
fn a_killed_nodes_tasks_go_on_from_the_last_replicated_checkpoint() {
    let (mut world, nodes) = World::cluster(2, 4);
    for i in 0..40 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 5);
    let victim = world.running("t0")[0].clone();
    let died = world.now;
    world.crash(&victim);
    world.run_for(S);
    world.assert_no_overlap();
    for i in 0..40 {
        assert_eq!(world.running(&format!("t{i}")).len(), 1, "t{i}");
    }
    let taken: Vec<_> = world.stretches.iter().filter(|s| s.start >= died).collect();
    assert!(!taken.is_empty());
    for stretch in taken {
        assert!(stretch.from_seq > 90, "resumed at {}", stretch.from_seq);
        assert!(stretch.start.since(died) < MS * 20, "{:?}", stretch.start.since(died));
    }
}

/// Who has been told that a task runs, asks where.
#[test]
fn a_lookup_knows_the_name_before_the_call_is_answered() {
    let (mut world, nodes) = World::cluster(21, 1);
    let run = RunId { number: 0, uuid: Uuid::from_u128(7) };
    let kind = Kind::new("count").unwrap();
    let spec = Spec { name: name("a"), run, kind, args: Bytes::new() };
    let clock = world.clock();
    let machine = &mut world.nodes.get_mut(&nodes[0]).unwrap().machine;
    machine.handle(clock, Event::Run { call: 1, spec, again: false });
    let actions: Vec<Action> = std::iter::from_fn(|| machine.poll()).collect();
    let of = |test: fn(&Action) -> bool| actions.iter().position(test).expect("it is done at once");
    let shown = of(|action| matches!(action, Action::Owner { claim: Some(_), .. }));
    let answered = of(|action| matches!(action, Action::Reply { result: Ok(_), .. }));
    assert!(shown < answered, "{actions:?}");

    for seed in 22..27 {
        let (mut world, nodes) = World::cluster(seed, 4);
        let calls: Vec<(&SessionId, u64)> =
            nodes.iter().map(|node| (node, world.start(node, "a"))).collect();
        for (node, call) in calls {
            while !world.nodes[node].replies.contains_key(&call) {
                world.run_for(MS / 10);
            }
            assert!(world.owner(node, "a").is_some(), "{seed}: {node}");
        }
    }
}

#[test]
fn a_drained_node_hands_its_tasks_over_with_their_state() {
    let (mut world, nodes) = World::cluster(3, 3);
    for i in 0..30 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 5);
    let begun = world.now;
    world.drain(&nodes[1], S * 25);
    world.run_until(S * 10, "drained", |w| w.nodes[&nodes[1]].drained.is_some());
    world.give(&nodes[1], Event::Leave);
    world.run_until(S, "left", |w| w.nodes[&nodes[1]].left.is_some());
    world.crash(&nodes[1]);
    world.run_for(S);
    world.assert_no_overlap();
    for i in 0..30 {
        let task = format!("t{i}");
        assert_eq!(world.running(&task).len(), 1, "{task}");
        assert!(world.gaps(&task).iter().all(|gap| *gap < MS * 10), "{:?}", world.gaps(&task));
        let before = world.stretches.iter().filter(|s| s.name == name(&task) && s.start < begun);
        let sealed = before.map(|s| s.to_seq).max();
        let after = world.since(&task, begun);
        assert!(after.iter().all(|s| Some(s.from_seq) >= sealed), "{after:?} after {sealed:?}");
    }
}

#[test]
fn a_finished_task_stays_finished_when_its_node_is_gone() {
    let (mut world, nodes) = World::cluster(4, 3);
    world.goal = 20;
    world.start(&nodes[0], "a");
    world.run_for(S * 3);
    assert_eq!(world.finished[&name("a")].len(), 1);
    let owner = world.nodes[&nodes[0]].owners[&name("a")].session.clone();
    world.crash(&owner);
    world.run_for(S * 60);
    assert_eq!(world.finished[&name("a")].len(), 1);
    assert!(world.running("a").is_empty());
    for node in nodes.iter().filter(|n| **n != owner) {
        assert_eq!(world.nodes[node].owners[&name("a")].phase, Phase::Finished);
    }
}

#[test]
fn pause_resume_and_cancel_work_from_any_node() {
    let (mut world, nodes) = World::cluster(5, 3);
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    for node in &nodes {
        world.want(node, "a", Want::Pause);
        world.run_for(S);
        assert!(world.running("a").is_empty());
        world.want(node, "a", Want::Run);
        world.run_for(S);
        assert_eq!(world.running("a").len(), 1);
    }
    world.want(&nodes[2], "a", Want::Cancel);
    world.run_for(S);
    assert!(world.running("a").is_empty());
    for node in &nodes {
        assert_eq!(world.nodes[node].owners[&name("a")].phase, Phase::Cancelled);
    }
}

#[test]
fn a_silent_node_keeps_its_tasks_for_the_silence_floor() {
    let (mut world, nodes) = World::cluster(6, 3);
    world.goal = 10_000;
    for i in 0..10 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 5);
    let victim = world.running("t0")[0].clone();
    let others: Vec<_> = nodes.iter().filter(|n| **n != victim).cloned().collect();
    let cut = world.now;
    world.split(std::slice::from_ref(&victim), &others);
    world.run_for(S * 30);
    for stretch in world.stretches.iter().filter(|s| s.start > cut) {
        assert!(stretch.start.since(cut) >= Duration::from_millis(9_500), "{stretch:?}");
        assert_ne!(stretch.session, victim, "an isolated node takes nothing");
    }
    world.heal();
    world.run_for(S * 25);
    for i in 0..10 {
        assert_eq!(world.running(&format!("t{i}")).len(), 1);
    }
}

#[test]
fn a_node_takes_no_more_tasks_of_a_kind_than_its_limit() {
    let setup = Setup { kind_limit: Some(2), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(7, 3, &setup);
    let calls: Vec<_> = (0..8).map(|i| world.start(&nodes[i % 3], &format!("t{i}"))).collect();
    world.run_for(S * 3);
    for node in &nodes {
        let here = (0..8).filter(|i| world.running(&format!("t{i}")).contains(node)).count();
        assert_eq!(here, 2, "{node}");
    }
    let refused = calls
        .iter()
        .enumerate()
        .filter(|(i, call)| {
            matches!(world.nodes[&nodes[i % 3]].replies.get(*call), Some(Err(CallError::NoNode(_))))
        })
        .count();
    assert_eq!(refused, 2, "those for which there is no room are refused, with a reason");
}

#[test]
fn a_name_that_was_free_for_want_of_room_is_taken_when_there_is_room() {
    let setup = Setup { kind_limit: Some(2), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(8, 2, &setup);
    for i in 0..4 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 3);
    world.crash(&nodes[0]);
    world.run_for(S * 5);
    let running =
        |world: &World| (0..4).filter(|i| !world.running(&format!("t{i}")).is_empty()).count();
    assert_eq!(running(&world), 2);
    let ours =
        (0..4).map(|i| format!("t{i}")).find(|task| !world.running(task).is_empty()).unwrap();
    world.want(&nodes[1], &ours, Want::Cancel);
    world.run_for(S * 3);
    assert_eq!(running(&world), 2, "one more has room now");
    assert!(world.running(&ours).is_empty());
}
