//! A node that drains hands over or releases all it has, in time, and is heard until then (Rules 15 to 18).

use std::time::Duration;

use super::{S, assert_moved, is_offer_reply, is_transferred};
use crate::core::claim::Phase;
use crate::core::ids::{Kind, SessionId};
use crate::core::io::{Action, Event, Notice};
use crate::core::machine::tests::world::{Disk, MS, Setup, World, name};
use crate::core::message::Message;
use crate::core::record::NodeState;

#[test]
fn with_no_peer_a_drain_ends_at_once_and_loses_no_name() {
    let (mut world, owner, _) = World::owned(5, 1, &Setup { durable: true, ..Setup::default() });
    world.drain(&owner, S * 25);
    world.run_until(S * 2, "drained", |w| w.nodes[&owner].drained.is_some());
    assert!(world.running("a").is_empty());
    assert_eq!(world.nodes[&owner].owners[&name("a")].phase, Phase::Released);
    world.crash(&owner);
    let (disk, setup) = (world.nodes[&owner].disk.clone(), world.nodes[&owner].setup.clone());
    let seq = world.stretches[0].to_seq;
    world.boot("n0", setup, disk);
    world.run_for(S * 40);
    assert_eq!(world.running("a").len(), 1);
    assert!(world.stretches[1].from_seq >= seq, "{:?}", world.stretches);
}

/// C4: what only its own disk is to have is on it before a drain is over; and is not said to be where it could not
/// be written.
#[test]
fn a_drain_ends_when_the_disk_has_or_refuses_what_nobody_else_has() {
    for full in [false, true] {
        let (mut world, owner, _) =
            World::owned(5, 1, &Setup { durable: true, ..Setup::default() });
        world.writes_take = S;
        world.nodes.get_mut(&owner).unwrap().disk_full = full;
        world.run_for(S / 5);
        world.drain(&owner, S * 25);
        world.run_for(S / 2);
        assert!(world.running("a").is_empty());
        assert!(world.nodes[&owner].drained.is_none(), "it is not written yet");
        world.run_until(S * 3, "drained", |w| w.nodes[&owner].drained.is_some());
        assert_eq!(world.nodes[&owner].machine.is_on_disk(&name("a")), !full);
        let seq = world.stretches[0].to_seq;
        let runs = world.disk_of(&owner).runs;
        let stored = runs.values().flat_map(|run| &run.checkpoints).map(|(header, _)| header);
        let last = stored.map(|header| header.position.seq).max().unwrap();
        assert_eq!(last >= seq, !full, "{last} {seq}");
    }
}

/// Rule 14: of what has committed nothing yet the disk has the run, which begins again from there.
#[test]
fn a_run_without_a_commit_is_on_the_disk_of_the_last_node() {
    let setup = Setup { durable: true, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(5, 1, &setup);
    world.steps.insert(name("a"), S * 60);
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    world.drain(&nodes[0], S * 2);
    world.run_until(S * 10, "drained", |w| w.nodes[&nodes[0]].drained.is_some());
    assert!(world.nodes[&nodes[0]].machine.is_on_disk(&name("a")));
    assert!(!world.nodes[&nodes[0]].machine.is_on_disk(&name("b")));
    let disk = world.disk_of(&nodes[0]);
    assert!(disk.runs.values().all(|run| run.checkpoints.is_empty()));
    world.crash(&nodes[0]);
    let setup = world.nodes[&nodes[0]].setup.clone();
    world.boot("n0", setup, disk);
    world.run_for(S * 40);
    assert_eq!(world.running("a").len(), 1);
}

#[test]
fn two_nodes_that_drain_at_once_hand_all_to_the_third() {
    for seed in 0..10 {
        let (mut world, nodes) = World::cluster(seed, 3);
        world.goal = 100_000;
        for i in 0..20 {
            world.start(&nodes[0], &format!("t{i}"));
        }
        world.run_for(S * 3);
        world.drain(&nodes[0], S * 25);
        world.run_for(MS * (seed * 7 % 60) as u32);
        world.drain(&nodes[1], S * 25);
        world.run_until(S * 25, "both drained", |w| {
            w.nodes[&nodes[0]].drained.is_some() && w.nodes[&nodes[1]].drained.is_some()
        });
        world.run_for(S * 3);
        world.assert_no_overlap();
        for i in 0..20 {
            assert_eq!(world.running(&format!("t{i}")), [nodes[2].clone()], "seed {seed} t{i}");
        }
    }
}

#[test]
fn all_nodes_that_drain_at_once_release_all_and_a_newcomer_takes_it_with_its_state() {
    let (mut world, nodes) = World::cluster(7, 3);
    world.goal = 100_000;
    for i in 0..10 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 3);
    let before = world.steps_done.clone();
    for node in &nodes {
        world.drain(node, S * 5);
    }
    world.run_until(S * 10, "all drained", |w| nodes.iter().all(|n| w.nodes[n].drained.is_some()));
    let newcomer = world.boot("n9", Setup::default(), Disk::default());
    world.run_for(S * 10);
    for node in &nodes {
        world.give(node, Event::Leave);
    }
    world.run_for(S * 20);
    world.assert_no_overlap();
    for i in 0..10 {
        let task = format!("t{i}");
        assert_eq!(world.running(&task), std::slice::from_ref(&newcomer), "{task}");
        let last = world.stretches.iter().rfind(|s| s.name == name(&task)).unwrap();
        assert!(last.from_seq >= before[&name(&task)], "{last:?}");
    }
}

/// Every node is told to stop while its replacement is still joining: the budget is there to be used.
#[test]
fn a_service_that_is_replaced_at_once_hands_all_to_those_that_are_joining() {
    for seed in 0..6 {
        let (mut world, nodes) = World::cluster(seed, 3);
        world.goal = 100_000;
        for i in 0..10 {
            world.start(&nodes[0], &format!("t{i}"));
        }
        world.run_for(S * 3);
        for i in 0..3 {
            world.boot(&format!("m{i}"), Setup::default(), Disk::default());
        }
        let joining = |w: &World, node: &SessionId| {
            let members = w.nodes[node].machine.members();
            members.iter().any(|(_, peer)| peer.met && peer.state == NodeState::Joining)
        };
        world.run_until(S, "their replacements are heard", |w| nodes.iter().all(|n| joining(w, n)));
        let before = world.clone();
        let begun = world.now;
        nodes.iter().for_each(|node| world.drain(node, S * 25));
        world.run_until(S * 10, "drained", |w| nodes.iter().all(|n| w.nodes[n].drained.is_some()));
        for node in &nodes {
            assert_eq!(
                world.told(node, |n| matches!(n, Notice::Released { .. })),
                0,
                "seed {seed}"
            );
            world.give(node, Event::Leave);
        }
        world.run_for(S * 3);
        world.assert_no_overlap();
        for i in 0..10 {
            let task = format!("t{i}");
            let running = world.running(&task);
            assert!(running.len() == 1 && !nodes.contains(&running[0]), "seed {seed}: {task}");
            let after = world.since(&task, begun);
            assert!(after[0].from_seq >= before.steps_done[&name(&task)], "seed {seed}: {after:?}");
        }
    }
}

/// The same, told just before the replacements are heard, and where a node only keeps another's copy: neither what
/// has stopped meanwhile nor a copy is given up while somebody is about to be up.
#[test]
fn a_replacement_that_is_heard_after_the_drain_began_is_waited_for_too() {
    for seed in 0..6 {
        let setup = Setup { durable: true, ..Setup::default() };
        let (mut world, owner, others) = World::owned(seed, 3, &setup);
        world.steps.insert(name("a"), MS * 300);
        world.run_for(S * 3);
        let done = world.steps_done[&name("a")];
        world.run_until(S * 2, "a step begins", |w| w.steps_done[&name("a")] > done);
        let acknowledged = world.acknowledged[&name("a")].1;
        (0..3).for_each(|i| drop(world.boot(&format!("m{i}"), setup.clone(), Disk::default())));
        let begun = world.now;
        for node in others.iter().chain([&owner]) {
            world.drain(node, S * 25);
        }
        for _ in 0..100 {
            world.run_for(MS * 20);
            for node in others.iter().chain([&owner]) {
                match (world.nodes[node].drained, world.nodes[node].left) {
                    (Some(_), None) => world.give(node, Event::Leave),
                    (_, Some(_)) => world.crash(node),
                    _ => {}
                }
            }
        }
        let lost = world.told(&owner, |n| matches!(n, Notice::Released { replicas: 0, .. }));
        assert_eq!(lost, 0, "seed {seed}");
        world.runner("a");
        let after = world.since("a", begun);
        assert!(after[0].from_seq >= acknowledged, "seed {seed}: {after:?}");
    }
}

#[test]
fn a_replica_whose_owner_waits_for_a_replacement_keeps_its_copy_for_it() {
    for seed in 0..6 {
        let setup = Setup { durable: true, ..Setup::default() };
        let (mut world, owner, others) = World::owned(seed, 3, &setup);
        world.steps.insert(name("a"), S);
        world.run_for(S * 3);
        let acknowledged = world.acknowledged[&name("a")].1;
        (0..3).for_each(|i| drop(world.boot(&format!("m{i}"), setup.clone(), Disk::default())));
        world.run_for(MS * 150);
        let begun = world.now;
        for node in others.iter().chain([&owner]) {
            world.drain(node, S * 25);
        }
        world.run_for(MS * 100);
        let drained: Vec<_> =
            others.iter().filter(|node| world.nodes[*node].drained.is_some()).collect();
        for node in drained {
            world.give(node, Event::Leave);
            world.crash(node);
        }
        world.crash(&owner);
        world.run_for(S * 40);
        let after = world.since("a", begun);
        let goes_on = after.first().is_some_and(|s| s.from_seq >= acknowledged);
        assert!(goes_on, "seed {seed}: {acknowledged} was acknowledged: {after:?}");
    }
}

/// Every node is told to stop a moment before anything is heard of its replacement.
#[test]
fn a_whole_service_that_is_told_to_stop_waits_a_moment_for_replacements_to_show_themselves() {
    for seed in 0..6 {
        let (mut world, nodes) = World::cluster(seed, 3);
        world.goal = 100_000;
        for i in 0..10 {
            world.start(&nodes[0], &format!("t{i}"));
        }
        world.run_for(S * 3);
        let before = world.clone();
        let begun = world.now;
        nodes.iter().for_each(|node| world.drain(node, S * 25));
        world.run_for(MS * 200);
        (0..3).for_each(|i| drop(world.boot(&format!("m{i}"), Setup::default(), Disk::default())));
        world.run_until(S * 20, "drained", |w| nodes.iter().all(|n| w.nodes[n].drained.is_some()));
        for node in &nodes {
            world.give(node, Event::Leave);
            world.crash(node);
        }
        world.run_for(S * 3);
        world.assert_no_overlap();
        for i in 0..10 {
            let task = format!("t{i}");
            let after = world.since(&task, begun);
            assert_eq!(after.len(), 1, "seed {seed}: {after:?}");
            assert!(after[0].from_seq >= before.steps_done[&name(&task)], "seed {seed}: {after:?}");
        }
    }
}

/// Where none shows itself in that moment, all is given up: nothing else would come of it.
#[test]
fn a_whole_service_that_is_told_to_stop_for_good_waits_for_that_moment_only() {
    let (mut world, nodes) = World::cluster(3, 3);
    world.goal = 100_000;
    for i in 0..10 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 3);
    nodes.iter().for_each(|node| world.drain(node, S * 25));
    let within = S * 3;
    world.run_until(within, "drained", |w| nodes.iter().all(|n| w.nodes[n].drained.is_some()));
}

/// A name that a node has just been given, and still looks for, waits like what runs.
#[test]
fn a_name_on_its_way_into_a_node_that_drains_waits_for_a_replacement() {
    let mut met = 0;
    for seed in 0..30 {
        let setup = Setup { durable: true, ..Setup::default() };
        let (mut world, owner, others) = World::owned(seed, 3, &setup);
        let acknowledged = world.acknowledged[&name("a")].1;
        world.reads_take = MS * 300;
        (0..3).for_each(|i| drop(world.boot(&format!("m{i}"), setup.clone(), Disk::default())));
        world.run_for(MS * (seed * 10) as u32);
        world.crash(&owner);
        let begun = world.now;
        world.run_for(MS * (seed * 7 % 60) as u32);
        others.iter().for_each(|node| world.drain(node, S * 25));
        let starting = |node: &&SessionId| {
            let claim = world.claim_of(node, "a");
            claim.is_some_and(|c| matches!(c.phase, Phase::Claimed | Phase::Recovering))
        };
        met += others.iter().filter(starting).count();
        for _ in 0..900 {
            world.run_for(MS * 20);
            for node in &others {
                match (world.nodes[node].drained, world.nodes[node].left) {
                    (Some(_), None) => world.give(node, Event::Leave),
                    (_, Some(_)) => world.crash(node),
                    _ => {}
                }
            }
        }
        for node in &others {
            let released = world.told(node, |n| matches!(n, Notice::Released { .. }));
            assert_eq!(released, 0, "seed {seed}: {node}");
        }
        world.runner("a");
        let after = world.since("a", begun);
        assert!(after[0].from_seq >= acknowledged, "seed {seed}: {after:?}");
        world.assert_no_overlap();
    }
    assert!(met > 5, "{met} were on their way");
}

/// A node on which "a" runs, with nobody else that is up, and one that is joining and does not get on: it hears
/// nobody. Of that one only its datagrams are known, and its record if there is one.
fn with_a_joiner(seed: u64, kinds: Option<&'static str>) -> (World, SessionId) {
    let (mut world, owner, _) = World::owned(seed, 1, &Setup::default());
    let joiner = world.boot("m0", Setup::default(), Disk::default());
    world.cut(&owner, &joiner);
    world.run_for(S);
    if let Some(kind) = kinds {
        let mut record = world.nodes[&joiner].machine.config.record.clone();
        record.kinds = record.kinds.into_values().map(|v| (Kind::new(kind).unwrap(), v)).collect();
        world.give(&owner, Event::Record { of: joiner.clone(), record });
    }
    let peer = world.nodes[&owner].machine.members().get(&joiner).unwrap();
    assert!(peer.joins() && peer.record.is_some() == kinds.is_some());
    (world, owner)
}

/// Whoever joins is waited for as long as what is stopped afterwards can still move, and no longer.
#[test]
fn a_joiner_that_does_not_get_on_is_waited_for_within_the_budget() {
    for kinds in [None, Some("count")] {
        let (mut world, owner) = with_a_joiner(9, kinds);
        world.drain(&owner, S * 6);
        world.run_for(S * 2 + MS * 900);
        assert_eq!(world.running("a"), std::slice::from_ref(&owner), "it is waited for: {kinds:?}");
        world.run_for(S);
        assert!(world.running("a").is_empty(), "half the budget is left to move it: {kinds:?}");
        world.run_for(S * 2 + MS * 100);
        assert!(world.nodes[&owner].drained.is_some(), "{kinds:?}");
        assert_eq!(world.told(&owner, |n| matches!(n, Notice::Released { .. })), 1, "{kinds:?}");
    }
}

/// Who is joining and cannot run a task is not waited for on its account.
#[test]
fn a_joiner_that_does_not_know_the_kind_is_not_waited_for() {
    let (mut world, owner) = with_a_joiner(10, Some("other"));
    world.drain(&owner, S * 6);
    world.run_for(MS * 300);
    assert!(world.running("a").is_empty());
    assert_eq!(world.claim_of(&owner, "a").unwrap().phase, Phase::Released);
}

#[test]
fn a_second_signal_waits_for_no_step_boundary() {
    let (mut world, nodes) = World::cluster(8, 3);
    world.goal = 100_000;
    world.steps.insert(name("a"), S * 20);
    world.start(&nodes[0], "a");
    world.run_for(S * 22);
    let owner = world.running("a")[0].clone();
    world.drain(&owner, S * 60);
    world.run_for(S * 2);
    assert_eq!(world.running("a"), std::slice::from_ref(&owner), "it waits for the step");
    let signalled = world.now;
    world.give(&owner, Event::DrainNow);
    world.run_until(S, "drained", |w| w.nodes[&owner].drained.is_some());
    assert!(world.now.since(signalled) < MS * 500);
    world.run_for(S * 2);
    world.assert_no_overlap();
    assert_eq!(world.running("a").len(), 1);
    assert_eq!(world.stretches.last().unwrap().from_seq, 1, "the committed step is not redone");
}

/// A decision that is not acknowledged is safe: its target has the state.
#[test]
fn a_second_signal_waits_for_no_acknowledgement_either() {
    let (mut world, owner, _) = World::owned(8, 3, &Setup::default());
    world.blocked = Some(|_, _, message| is_transferred(message));
    world.drain(&owner, S * 60);
    world.run_for(S * 3);
    let moving =
        |w: &World| matches!(w.claim_of(&owner, "a").unwrap().phase, Phase::Transferred { .. });
    assert!(moving(&world) && world.nodes[&owner].drained.is_none());
    world.give(&owner, Event::DrainNow);
    world.run_until(S * 2, "drained", |w| w.nodes[&owner].drained.is_some());
    world.blocked = None;
    world.run_for(S * 3);
    assert_moved(&world);
}

/// A loop that has ended with its runtime leaves its last commit: an offer that stands goes through.
#[test]
fn a_task_that_stops_unbidden_goes_to_whom_it_is_offered() {
    let (mut world, owner, _) = World::owned(44, 3, &Setup::default());
    world.drain(&owner, S * 60);
    let claim = world.claim_of(&owner, "a").unwrap().clone();
    world.end_loop(&owner, "a");
    let (name, epoch) = (claim.name, claim.epoch);
    world.give(&owner, Event::Stopped { name, epoch, sealed: None, dropped: true });
    world.run_for(S);
    assert_eq!(world.told(&owner, |n| matches!(n, Notice::Moved { .. })), 1);
    assert_eq!(world.told(&owner, |n| matches!(n, Notice::Released { .. })), 0);
    world.assert_no_overlap();
    assert!(world.stretches.last().unwrap().from_seq > 10);
}

#[test]
fn a_budget_of_zero_costs_a_pause_and_nothing_else() {
    let (mut world, nodes) = World::cluster(9, 3);
    world.goal = 100_000;
    for i in 0..20 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 3);
    let tasks: Vec<String> = (0..20).map(|i| format!("t{i}")).collect();
    let here: Vec<&String> =
        tasks.iter().filter(|task| world.running(task) == [nodes[0].clone()]).collect();
    assert!(here.len() >= 4, "placement spreads: {here:?}");
    let runs: Vec<_> = here.iter().map(|task| world.owner(&nodes[1], task).unwrap().run).collect();
    world.drain(&nodes[0], Duration::ZERO);
    world.run_until(S * 2, "drained", |w| w.nodes[&nodes[0]].drained.is_some());
    world.crash(&nodes[0]);
    let acknowledged = world.acknowledged.clone();
    let crashed = world.now;
    world.run_for(S * 5);
    world.assert_no_overlap();
    for task in &tasks {
        assert_eq!(world.running(task).len(), 1, "{task}");
    }
    // Nothing is lost: neither the name and its run, nor a checkpoint that a replica had acknowledged.
    for (task, run) in here.into_iter().zip(runs) {
        let (of, seq) = acknowledged[&name(task)];
        assert!(of == run && seq > 10, "{task}: {seq} steps are acknowledged of {of}");
        let moved = world.stretches.iter().rfind(|s| s.name == name(task)).unwrap();
        assert_eq!((moved.run, moved.session == nodes[0]), (run, false), "{moved:?}");
        assert!(moved.from_seq >= seq, "{task} went on from {moved:?}, {seq} was acknowledged");
        assert!(moved.start.since(crashed) < S * 3, "{moved:?}");
    }
}

#[test]
fn an_unstoppable_task_is_never_released_and_goes_on_elsewhere_when_its_process_is_gone() {
    let (mut world, nodes) = World::cluster(10, 3);
    world.goal = 100_000;
    world.stuck.insert(name("a"));
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let owner = world.running("a")[0].clone();
    world.drain(&owner, S * 3);
    world.run_until(S * 10, "the drain says so", |w| w.nodes[&owner].drained.is_some());
    assert_eq!(world.told(&owner, |n| matches!(n, Notice::Unstoppable { .. })), 1);
    world.stuck.clear();
    world.run_for(S * 30);
    assert_eq!(world.running("a"), std::slice::from_ref(&owner), "nobody takes it while it runs");
    world.give(&owner, Event::Leave);
    world.run_for(S * 5);
    assert_eq!(world.nodes[&nodes[0]].owners[&name("a")].phase, Phase::Running);
    world.crash(&owner);
    world.run_for(S * 13);
    world.assert_no_overlap();
    assert_eq!(world.running("a").len(), 1);
}

#[test]
fn long_steps_hold_no_transfer_slot() {
    const TASKS: usize = 1_000;
    let (mut world, nodes) = World::cluster(16, 1);
    world.goal = 1_000_000;
    world.step = S * 5;
    for i in 0..10 {
        world.steps.insert(name(&format!("t{i}")), S * 20);
    }
    for i in 0..TASKS {
        world.start(&nodes[0], &format!("t{i}"));
        world.run_for(MS * 5);
    }
    let target = world.boot("n1", Setup::default(), Disk::default());
    world.run_for(S * 3);
    world.drain(&nodes[0], S * 25);
    world.run_until(S * 25, "all are moved", |w| w.nodes[&nodes[0]].drained.is_some());
    world.run_for(S);
    world.assert_no_overlap();
    for i in 0..TASKS {
        assert_eq!(world.running(&format!("t{i}")), std::slice::from_ref(&target), "t{i}");
    }
    assert_eq!(world.told(&nodes[0], |n| matches!(n, Notice::Released { .. })), 0);
}

#[test]
fn a_draining_node_answers_asks_and_is_heard_until_its_last_task_is_gone() {
    let (mut world, owner, others) = World::owned(17, 3, &Setup::default());
    world.steps.insert(name("long"), S * 10);
    let mut long = String::new();
    for i in 0..20 {
        let task = format!("long{i}");
        world.steps.insert(name(&task), S * 10);
        world.start(&others[0], &task);
        world.run_for(S);
        if world.running(&task) == std::slice::from_ref(&owner) {
            long = task;
            break;
        }
    }
    assert!(!long.is_empty());
    world.drain(&owner, S * 20);
    world.run_for(S);
    assert_eq!(world.running(&long), std::slice::from_ref(&owner));
    world.record_messages = true;
    world.start(&others[0], "new");
    world.run_for(S);
    assert!(
        world
            .sent
            .iter()
            .any(|(_, from, _, m)| { *from == owner && matches!(m, Message::Answers { .. }) })
    );
    assert_ne!(world.running("new"), std::slice::from_ref(&owner));
    while world.running(&long) == std::slice::from_ref(&owner) {
        world.run_for(MS * 200);
        for other in &others {
            let peer = world.nodes[other].machine.members().get(&owner).unwrap();
            assert!(world.now.since(peer.news) < S, "its heartbeat goes on");
            assert_eq!(peer.state, NodeState::Draining);
            assert!(peer.gone.is_none());
        }
    }
    world.run_for(S);
    world.assert_no_overlap();
    assert_eq!(world.running(&long).len(), 1);
}

/// A session that was superseded has nothing to move: its drain ends when all has stopped, and it
/// does not come to life again by leaving.
#[test]
fn a_fenced_node_drains_at_once_and_stays_fenced() {
    let setup = Setup { durable: true, ..Setup::default() };
    let (mut world, owner, _) = World::owned(3, 3, &setup);
    let disk = Disk { nonce: Some(owner.nonce), ..Disk::default() };
    world.boot(owner.node.as_str(), setup, disk);
    world.run_until(S * 5, "it is fenced", |w| w.nodes[&owner].machine.state().is_fenced());
    world.drain(&owner, S * 25);
    world.run_for(S);
    assert!(world.nodes[&owner].drained.is_some(), "nothing is left to wait for");
    world.give(&owner, Event::Leave);
    world.run_for(S);
    assert!(world.nodes[&owner].left.is_some());
    assert!(world.nodes[&owner].machine.state().is_fenced());
}

/// What is lost if the node is killed in the middle of its drain is no more than a step.
#[test]
fn a_drain_begins_with_a_commit_of_everything() {
    let (world, owner, _) = World::owned(45, 3, &Setup::default());
    let mut machine = world.nodes[&owner].machine.clone();
    machine.handle(world.clock(), Event::Drain { deadline: world.now + S * 25 });
    let actions = std::iter::from_fn(|| machine.poll());
    assert_eq!(actions.filter(|action| matches!(action, Action::CommitAll)).count(), 1);
}

/// Rule 12: an end that only the draining node knows of is in other hands before it goes.
#[test]
fn a_drain_waits_for_an_end_to_be_replicated() {
    let (mut world, nodes) = World::cluster(46, 3);
    world.goal = 20;
    world.start(&nodes[0], "a");
    world.run_for(MS * 500);
    let owner = world.runner("a");
    world.blocked = Some(|_, _, m| matches!(m, Message::Ended { .. } | Message::EndedReply { .. }));
    world.run_until(S * 2, "its code has ended", |w| w.running("a").is_empty());
    world.drain(&owner, S * 25);
    world.run_for(MS * 20);
    assert!(!world.claim_of(&owner, "a").unwrap().phase.is_terminal(), "it is not told yet");
    assert!(world.nodes[&owner].drained.is_none());
    world.blocked = None;
    world.run_until(S * 10, "drained", |w| w.nodes[&owner].drained.is_some());
    assert_eq!(world.claim_of(&owner, "a").unwrap().phase, Phase::Finished);
}

/// A node that drains with one commit that is nowhere else, and a peer that does not get it.
fn unacknowledged(seed: u64) -> (World, SessionId, SessionId) {
    let (mut world, owner, keeper) = World::with_a_keeper(seed);
    world.blocked = Some(|_, _, m| matches!(m, Message::Checkpoint { .. }));
    world.drain(&owner, S * 60);
    world.run_for(MS * 200);
    assert!(world.running("a").is_empty());
    assert_ne!(world.claim_of(&owner, "a").unwrap().phase, Phase::Released);
    (world, owner, keeper)
}

/// DEPLOYS 2: what is released waits for a replica no longer than its state takes to get there.
#[test]
fn what_no_replica_acknowledges_in_time_is_released() {
    let (mut world, owner, _) = unacknowledged(47);
    world.run_until(S * 30, "released", |w| {
        w.claim_of(&owner, "a").unwrap().phase == Phase::Released
    });
    assert_eq!(world.told(&owner, |n| matches!(n, Notice::Released { replicas: 0, .. })), 1);
}

/// Nor does it wait for one that is gone.
#[test]
fn what_was_to_go_to_a_replica_that_has_died_is_released_at_once() {
    let (mut world, owner, keeper) = unacknowledged(48);
    world.crash(&keeper);
    world.run_for(MS * 1_000);
    assert_eq!(world.claim_of(&owner, "a").unwrap().phase, Phase::Released);
}

/// Nobody sends it anything for want of a round of gossip.
#[test]
fn a_drain_is_told_to_every_peer_at_once_over_its_link() {
    let (mut world, owner, others) = World::owned(46, 4, &Setup::default());
    world.record_messages = true;
    let begun = world.now;
    world.drain(&owner, S * 25);
    let told = |(at, from, _, message): &&(_, _, _, _)| {
        let draining = matches!(message, Message::State { state: NodeState::Draining, .. });
        *at == begun && *from == owner && draining
    };
    let told: Vec<&SessionId> = world.sent.iter().filter(told).map(|(_, _, to, _)| to).collect();
    assert_eq!(told, others.iter().collect::<Vec<_>>());
    // Less than any datagram takes.
    world.run_for(MS / 2);
    for other in &others {
        let peer = world.nodes[other].machine.members().get(&owner).unwrap();
        assert_eq!(peer.state, NodeState::Draining, "{other}");
    }
}

/// Whoever refuses an offer is no reason to let go of what a node that is joining may have.
#[test]
fn what_is_refused_while_somebody_joins_runs_on() {
    let (mut world, owner) = with_a_joiner(12, Some("count"));
    let full = Setup { kind_limit: Some(0), ..Setup::default() };
    let refuses = world.boot("n1", full, Disk::default());
    world.run_for(S);
    world.record_messages = true;
    world.drain(&owner, S * 10);
    world.run_for(S * 2);
    let refused = world.sent.iter().filter(|(_, from, _, m)| *from == refuses && is_offer_reply(m));
    assert!(refused.count() > 0);
    assert_eq!(world.running("a"), std::slice::from_ref(&owner));
    let released = |n: &Notice| matches!(n, Notice::Released { .. });
    assert_eq!(world.told(&owner, released), 0);
    world.heal();
    world.run_until(S * 2, "drained", |w| w.nodes[&owner].drained.is_some());
    assert_eq!(world.told(&owner, released), 0);
    assert_moved(&world);
}

/// A copy is kept for a node that is joining as long as that can still be given it, and no longer.
#[test]
fn a_keeper_waits_for_a_joiner_that_does_not_get_on_within_its_budget() {
    let (mut world, owner, keeper) = World::with_a_keeper(13);
    world.commit_every = 1;
    world.run_for(S);
    let joiner = world.boot("m0", Setup::default(), Disk::default());
    for node in [&owner, &keeper] {
        world.cut(node, &joiner);
    }
    world.run_for(S);
    world.drain(&keeper, S * 6);
    world.run_for(S * 2 + MS * 900);
    assert!(world.nodes[&keeper].drained.is_none(), "it is waited for");
    world.run_for(MS * 300);
    assert!(world.nodes[&keeper].drained.is_some(), "there is no time left to give it anything");
    assert_eq!(world.runner("a"), owner);
}

/// Nor is that moment waited for when there is no time left in which anybody could be given anything.
#[test]
fn with_a_short_budget_no_replacement_is_waited_for_beyond_half_of_it() {
    for seed in 0..4 {
        let (mut world, nodes) = World::cluster(seed, 2);
        world.goal = 100_000;
        for i in 0..10 {
            world.start(&nodes[0], &format!("t{i}"));
        }
        world.run_for(S * 3);
        nodes.iter().for_each(|node| world.drain(node, S));
        world.run_for(MS * 400);
        assert!(nodes.iter().all(|n| world.nodes[n].drained.is_none()), "seed {seed}");
        world.run_for(MS * 400);
        assert!(nodes.iter().all(|n| world.nodes[n].drained.is_some()), "seed {seed}");
    }
}
