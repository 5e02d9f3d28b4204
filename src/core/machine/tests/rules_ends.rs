//! Ends and their outputs: what is left of a task that has finished (Rule 12).

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::rules_claims::{publish, run, short};
use super::world::{Disk, MS, Setup, World, name};
use crate::core::claim::{Claim, Phase};
use crate::core::ids::{NodeId, SessionId};
use crate::core::io::{Event, Notice};
use crate::core::lease::Epoch;
use crate::core::message::Message;
use crate::core::record::NodeState;
use crate::core::stored::StoredEnd;
use crate::core::timing::Timing;

const S: Duration = Duration::from_secs(1);

/// The living that can still say what a task brought.
pub(super) fn holders(world: &World, task: &str) -> Vec<SessionId> {
    let task = name(task);
    let has_output = |disk: &Disk| {
        disk.runs
            .iter()
            .filter(|((of, _), _)| *of == task)
            .any(|(_, run)| run.end.as_ref().is_some_and(|(_, output)| output.is_some()))
    };
    let living = world.nodes.values().filter(|node| node.alive);
    living.filter(|node| has_output(&node.disk)).map(|node| node.session.clone()).collect()
}

/// A node with a disk, and short durations.
fn durable() -> Setup {
    Setup { durable: true, timing: short(), ..Setup::default() }
}

/// A durable cluster whose first owner of "a" is cut off for long enough that another one has it too; the first.
fn cut_off(seed: u64) -> (World, SessionId) {
    let (mut world, owner, _) = World::owned(seed, 3, &durable());
    world.isolate(&owner);
    world.run_for(S * 4);
    (world, owner)
}

/// A cluster in which `count` tasks have finished.
fn finished(seed: u64, nodes: usize, setup: &Setup, count: usize) -> (World, Vec<SessionId>) {
    let (mut world, nodes) = World::cluster_of(seed, nodes, setup);
    world.goal = 5;
    for i in 0..count {
        world.start(&nodes[i % nodes.len()], &format!("t{i}"));
    }
    world.run_for(S * 3);
    (world, nodes)
}

/// Whoever of those that hold an output is told to stop, the other one may die as soon as it has gone.
#[test]
fn an_output_outlives_a_drain_and_the_loss_of_its_other_holder_right_after() {
    for publisher_drains in [true, false] {
        let (mut world, _) = finished(3, 4, &Setup::default(), 4);
        let held = |world: &World, i: usize| holders(world, &format!("t{i}"));
        let publisher = world.owner(&held(&world, 0)[0], "t0").unwrap().session.clone();
        let other = held(&world, 0).into_iter().find(|node| *node != publisher).unwrap();
        let (drains, dies) = if publisher_drains { (publisher, other) } else { (other, publisher) };
        world.drain(&drains, S * 25);
        world.run_until(S * 3, "drained", |w| w.nodes[&drains].drained.is_some());
        world.crash(&drains);
        world.crash(&dies);
        world.run_for(S * 30);
        for i in 0..4 {
            assert_eq!(held(&world, i).len(), 2, "t{i}, publisher drains: {publisher_drains}");
        }
    }
}

/// The other holder may also die just after it has shown that it lives, before it could see to another copy.
#[test]
fn an_output_outlives_a_drain_and_the_loss_of_its_publisher_early_in_it() {
    let (mut world, nodes) = finished(3, 4, &Setup::default(), 4);
    let publisher = world.owner(&nodes[0], "t0").unwrap().session.clone();
    let holds = |world: &World| holders(world, "t0");
    let drains = holds(&world).into_iter().find(|node| *node != publisher).unwrap();
    world.drain(&drains, S * 25);
    world.run_for(MS * 60);
    // Without a word, as a machine that loses its power.
    world.isolate(&publisher);
    world.run_until(S * 20, "drained", |w| w.nodes[&drains].drained.is_some());
    world.crash(&drains);
    world.crash(&publisher);
    assert!(!holds(&world).is_empty());
}

/// A run of the same number that stepped back ranks above the one that finished where it is the older one. It takes
/// neither the end nor the output away, also when who had published it goes.
#[test]
fn an_end_outlives_a_run_above_it_that_stepped_back() {
    let timing = Timing { dead_node_grace: S * 25, ..Timing::default() };
    let (mut world, nodes) = finished(7, 4, &Setup { timing, ..Setup::default() }, 1);
    let name = name("t0");
    let end = world.owner(&nodes[0], "t0").unwrap().clone();
    assert_eq!(end.phase, Phase::Finished);
    let (publisher, others): (Vec<_>, Vec<_>) =
        nodes.into_iter().partition(|node| *node == end.session);
    let stepped_back = Claim {
        session: others[0].clone(),
        number: 1_000,
        run: run(end.run.number, 0),
        epoch: Epoch(end.epoch.0 + 9),
        phase: Phase::Superseded,
        ..end.clone()
    };
    assert!(stepped_back.beats(&end));
    publish(&mut world, &[&publisher[..], &others[1..]].concat(), &stepped_back);
    world.run_for(S * 20);
    assert_eq!(world.owner(&others[1], "t0"), Some(&end), "its writer publishes it still");
    world.crash(&publisher[0]);
    world.run_for(S * 60);
    for node in &others[1..] {
        let owner = world.owner(node, "t0").unwrap();
        assert_eq!((owner.run, &owner.phase), (end.run, &Phase::Finished));
        assert_ne!(owner.session, publisher[0]);
    }
    assert_eq!(holders(&world, "t0").len(), 2);
    assert_eq!(world.finished[&name].len(), 1);
}

/// As many nodes hold an output as hold a checkpoint, whoever dies: one after the other can.
#[test]
fn an_output_outlives_its_holders_one_after_another() {
    for seed in 0..3 {
        let (mut world, _) = finished(seed, 5, &Setup::default(), 12);
        for _ in 0..3 {
            let victim = holders(&world, "t0")[0].clone();
            world.crash(&victim);
            world.run_for(S * 3);
            for i in 0..12 {
                let task = format!("t{i}");
                assert_eq!(holders(&world, &task).len(), 2, "seed {seed}: {task}");
            }
        }
        assert_eq!(world.stretches.len(), 12, "nothing ran again");
    }
}

/// Nodes that leave in good order take no output with them either.
#[test]
fn an_output_outlives_a_rolling_restart() {
    let (mut world, nodes) = finished(7, 3, &Setup::default(), 9);
    for (i, old) in nodes.iter().enumerate() {
        world.boot(&format!("m{i}"), Setup::default(), Disk::default());
        world.run_for(S * 2);
        world.drain(old, S * 5);
        world.run_for(S);
        world.give(old, Event::Leave);
        world.run_for(S);
        assert!(world.nodes[old].left.is_some());
        world.crash(old);
        world.run_for(S * 3);
    }
    for i in 0..9 {
        assert_eq!(holders(&world, &format!("t{i}")).len(), 2, "t{i}");
    }
}

/// The same of nodes that come back under their names with nothing, long after one another: what claims of former
/// lives say of copies is of no use then.
#[test]
fn an_output_outlives_nodes_that_come_back_empty() {
    for seed in 0..5 {
        let (mut world, nodes) = finished(seed, 4, &Setup::default(), 12);
        for i in 0..16 {
            let node = nodes[(i * 3 + seed as usize * 7 + i / 5) % 4].node.clone();
            let session = world.living().into_iter().find(|session| session.node == node).unwrap();
            if (i + seed as usize).is_multiple_of(3) {
                world.crash(&session);
            } else {
                world.drain(&session, S * 25);
                world.run_until(S * 30, "drained", |w| w.nodes[&session].drained.is_some());
                world.give(&session, Event::Leave);
                world.run_for(S);
                world.crash(&session);
            }
            world.run_for(S * 13);
            world.boot(node.as_str(), Setup::default(), Disk::default());
            world.run_for(S * 7);
            for task in (0..12).map(|i| format!("t{i}")) {
                let holders = holders(&world, &task);
                assert!(holders.len() >= 2, "seed {seed}, fault {i}: {task} with {holders:?}");
            }
        }
        assert_eq!(world.stretches.len(), 12, "nothing ran again");
    }
}

/// Rule 9: a copy that ran on until it heard of the end leaves a last checkpoint beside the output that its node was
/// given. The output stays when its publisher dies, and nobody but this node has it.
#[test]
fn an_output_outlives_its_publisher_on_a_node_that_ran_the_task_too() {
    for seed in 0..8 {
        let timing = Timing { retention: S * 600, ..short() };
        let setup = Setup { timing, ..Setup::default() };
        let (mut world, nodes) = World::cluster_of(seed, 2, &setup);
        world.goal = 14;
        let task = &format!("t{seed}");
        world.steps.insert(name(task), S);
        world.start(&nodes[0], task);
        world.run_for(S * 4);
        let first = world.runner(task);
        world.isolate(&first);
        world.run_until(S * 20, "it ends where it was", |w| holders(w, task).contains(&first));
        let [second] = world.running(task).try_into().expect("another one runs it, too");
        world.heal();
        world.run_for(S * 5);
        assert!(world.running(task).is_empty());
        assert_eq!(holders(&world, task).len(), 2, "seed {seed}");
        world.crash(&first);
        world.run_for(S * 10);
        assert_eq!(holders(&world, task), [second], "seed {seed}");
    }
}

/// A copy that was lost on its way is sent again.
#[test]
fn a_copy_that_was_lost_is_sent_again() {
    let (mut world, _) = finished(8, 4, &Setup::default(), 4);
    world.blocked = Some(|_, _, m| matches!(m, Message::Ended { .. }));
    let victim = holders(&world, "t0")[0].clone();
    world.crash(&victim);
    world.run_for(S * 5);
    assert_eq!(holders(&world, "t0").len(), 1);
    world.blocked = None;
    world.run_for(S * 5);
    for i in 0..4 {
        assert_eq!(holders(&world, &format!("t{i}")).len(), 2, "t{i}");
    }
}

/// Where there was no other node, the first that comes is given a copy.
#[test]
fn a_lonely_end_is_copied_to_the_first_node_that_comes() {
    let setup = Setup::default();
    let (mut world, _) = finished(9, 1, &setup, 3);
    assert_eq!(holders(&world, "t1").len(), 1);
    world.boot("late", setup, Disk::default());
    world.run_for(S * 4);
    for i in 0..3 {
        assert_eq!(holders(&world, &format!("t{i}")).len(), 2, "t{i}");
    }
}

/// Copying an end makes it no younger: what is read no more is not passed on for ever.
#[test]
fn a_copy_is_as_old_as_its_original() {
    let timing = Timing { retention: S * 60, ..Timing::default() };
    let setup = Setup { timing, ..Setup::default() };
    let (mut world, _) = finished(10, 4, &setup, 1);
    let ended = world.now;
    for _ in 0..2 {
        world.run_for(S * 20);
        let victim = holders(&world, "t0")[0].clone();
        world.crash(&victim);
        world.run_for(S * 3);
        assert_eq!(holders(&world, "t0").len(), 2);
    }
    world.run_for(S * 65 - world.now.since(ended));
    assert!(holders(&world, "t0").is_empty(), "{:?}", world.now.since(ended));
    world.record_messages = true;
    world.sent.clear();
    let living = world.nodes.values().find(|node| node.alive).unwrap().session.clone();
    world.crash(&living);
    world.run_for(S * 5);
    let copied = world.sent.iter().any(|(.., m)| matches!(m, Message::Ended { .. }));
    assert!(!copied);
}

/// Each run's output is kept for the retention and dropped then, also that of a name's second run.
#[test]
fn the_output_of_a_second_run_is_kept_and_dropped_in_its_turn() {
    let timing = Timing { retention: S * 60, ..Timing::default() };
    let setup = Setup { timing, ..Setup::default() };
    let (mut world, nodes) = finished(11, 3, &setup, 1);
    world.run_for(S * 70);
    assert!(holders(&world, "t0").is_empty(), "the first is dropped");
    world.start_kind(&nodes[0], "t0", "count", true);
    world.run_for(S * 5);
    assert_eq!(holders(&world, "t0").len(), 2, "the second is kept");
    world.run_for(S * 70);
    assert!(holders(&world, "t0").is_empty(), "the second is dropped");
}

/// A side of a cut that only heard of an end publishes it on, without its output. When both meet, the
/// publisher is given the output, whoever wins: there is where it is looked for.
#[test]
fn whoever_publishes_an_end_after_a_cut_has_its_output() {
    let mut passed_on = 0;
    for seed in 0..6 {
        let (mut world, nodes) = finished(seed, 5, &Setup::default(), 10);
        let published: Vec<SessionId> = (0..10)
            .map(|i| world.owner(&nodes[0], &format!("t{i}")).unwrap().session.clone())
            .collect();
        let (some, others) = nodes.split_at(2 + seed as usize % 2);
        world.split(some, others);
        world.run_for(S * 50);
        world.heal();
        if seed % 2 == 1 {
            // Whoever can give it keeps it until it has arrived.
            world.blocked = Some(|_, _, message| matches!(message, Message::Ended { .. }));
            world.run_for(S * 5);
            world.blocked = None;
        }
        world.run_for(S * 8);
        for (i, before) in published.iter().enumerate() {
            let task = format!("t{i}");
            let publisher = world.owner(&nodes[0], &task).unwrap().session.clone();
            passed_on += usize::from(publisher != *before);
            assert!(holders(&world, &task).contains(&publisher), "seed {seed}: {task}");
        }
    }
    assert!(passed_on > 0, "no end was ever published by another node");
}

/// Nodes that have an end from different publishers, one of them without its output: it comes to where it is missing,
/// and nobody takes itself for a holder who is none.
#[test]
fn an_output_comes_to_who_knows_its_end_by_a_later_publisher() {
    let mut passed_on = 0;
    for seed in 0..10 {
        let (mut world, mut nodes) = finished(seed, 5, &Setup::default(), 10);
        // Replicas publish now what the dead one had.
        let dead = nodes.remove(seed as usize % 5);
        world.crash(&dead);
        world.run_for(S * 20);
        let published: Vec<SessionId> = (0..10)
            .map(|i| world.owner(&nodes[0], &format!("t{i}")).unwrap().session.clone())
            .collect();
        nodes[1..].rotate_left(seed as usize / 5);
        world.split(&nodes[..2], &nodes[2..]);
        world.run_for(S * 50);
        world.heal();
        world.run_for(S * 13);
        for (i, before) in published.iter().enumerate() {
            let task = format!("t{i}");
            let publisher = world.owner(&nodes[0], &task).unwrap().session.clone();
            passed_on += usize::from(publisher != *before);
            let holders = holders(&world, &task);
            let lives = publisher != dead;
            assert!(!lives || holders.contains(&publisher), "seed {seed}: {task}");
            assert!(holders.len() > 1, "seed {seed}: {task} is held by {holders:?}");
            for node in &nodes {
                let has = world.nodes[node].machine.copied_run(&name(&task)).is_some();
                assert!(!has || holders.contains(node), "seed {seed}: {node} has no {task}");
            }
        }
    }
    assert!(passed_on > 0, "no end was ever published by another node");
}

/// The same, told by hand: a higher record of an end without its output neither keeps it out nor takes it away.
#[test]
fn an_output_and_a_higher_record_of_its_end_are_kept_together() {
    let (mut world, nodes) = finished(3, 4, &Setup::default(), 1);
    let end = world.owner(&nodes[0], "t0").unwrap().clone();
    let later = SessionId::new(NodeId::new("n9").unwrap(), Uuid::from_u128(9));
    let later = Claim { session: later, ..end.clone() };
    assert!(later.beats(&end));
    let has_it = holders(&world, "t0");
    let lacks = nodes.iter().find(|node| !has_it.contains(node)).unwrap().clone();
    let spec = world.nodes[&has_it[0]].machine.spec_of(&name("t0"), end.run).unwrap().clone();
    let output = world.nodes[&has_it[0]].disk.runs.values().find_map(|run| run.end.clone()?.1);
    let tell = |world: &mut World, to: &SessionId, claim: &Claim, output: Option<Bytes>| {
        let (claim, spec) = (claim.clone(), spec.clone());
        let message = Message::Ended { claim, spec, output, age: Duration::ZERO };
        world.give(to, Event::Message { from: nodes[0].clone(), message });
        world.run_for(MS * 10);
    };
    tell(&mut world, &lacks, &later, None);
    assert!(!holders(&world, "t0").contains(&lacks));
    tell(&mut world, &lacks, &end, output);
    tell(&mut world, &has_it[1], &later, None);
    for node in [&lacks, &has_it[1]] {
        assert!(holders(&world, "t0").contains(node), "{node}");
        let machine = &world.nodes[node].machine;
        assert_eq!(machine.ends[&name("t0")].0.session, later.session, "{node}");
        assert!(machine.copied_run(&name("t0")).is_some(), "{node} gives it to others");
    }
}

/// Rule 2: a node that hears nobody can tell nobody how a task has ended, only that nothing of it runs any more.
/// That is not taken for a release: it would be done again.
#[test]
fn an_end_that_nobody_could_be_told_of_is_no_release() {
    let (mut world, nodes) = World::cluster(9, 3);
    world.goal = 400;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let owner = world.runner("a");
    let others: Vec<_> = nodes.into_iter().filter(|node| *node != owner).collect();
    let began = world.now;
    for other in &others {
        world.cut(other, &owner);
    }
    world.run_for(S * 15);
    assert_eq!(world.runner("a"), owner, "it goes on");
    world.run_for(S * 60);
    assert_eq!(world.claim_of(&owner, "a").unwrap().phase, Phase::Finished);
    assert!(world.since("a", began).is_empty(), "{:?}", world.since("a", began));
    world.heal();
    world.run_for(S * 5);
    for other in &others {
        let end = world.owner(other, "a").unwrap();
        assert_eq!((&end.phase, &end.session), (&Phase::Finished, &owner));
    }
    // Now that they know, nothing keeps what else ends from being told.
    let number = world.claim_of(&owner, "a").unwrap().number;
    let machine = &world.nodes[&owner].machine;
    assert!(machine.header.as_ref().is_some_and(|(_, watermark, _)| *watermark >= number));
}

/// Rule 12, C5: an end that is told again is acknowledged no sooner than it is stored: what was reported as
/// finished is not born again.
#[test]
fn an_end_that_nobody_has_stored_is_reported_by_nobody() {
    let setup = Setup { durable: true, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(31, 2, &setup);
    world.goal = 60;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    for node in world.nodes.values_mut() {
        node.disk_full = true;
    }
    world.run_for(S * 30);
    assert_eq!(world.finished[&name("a")].len(), 1);
    let ended = |n: &Notice| matches!(n, Notice::Ended { phase: Phase::Finished, .. });
    let told = |world: &World| nodes.iter().map(|node| world.told(node, ended)).sum::<usize>();
    assert_eq!(told(&world), 0);
    for node in world.nodes.values_mut() {
        node.disk_full = false;
    }
    world.run_for(S * 5);
    assert_eq!(told(&world), 1);
    assert!(nodes.iter().all(|node| world.disk_of(node).runs.values().all(|r| r.end.is_some())));
}

/// Rule 12: an end that neither a disk nor a peer has is not reported; it is tried again.
#[test]
fn an_end_that_nobody_has_stored_is_not_told() {
    let setup = Setup { durable: true, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(31, 1, &setup);
    world.goal = 5;
    world.nodes.get_mut(&nodes[0]).unwrap().disk_full = true;
    world.start(&nodes[0], "a");
    world.run_for(Duration::from_secs(20));
    let ended = |notice: &Notice| matches!(notice, Notice::Ended { .. });
    assert_eq!(world.told(&nodes[0], ended), 0);
    world.nodes.get_mut(&nodes[0]).unwrap().disk_full = false;
    world.run_for(Duration::from_secs(5));
    assert_eq!(world.told(&nodes[0], ended), 1);
}

/// Rule 12: the time that an end is kept goes on while its node is away, and does not begin anew with
/// every start of it.
#[test]
fn an_end_keeps_its_age_through_restarts() {
    let setup = durable();
    let (mut world, nodes) = finished(9, 1, &setup, 3);
    let mut node = nodes[0].clone();
    assert_eq!(holders(&world, "t0"), nodes);
    // Retention and tombstone take 25 s together.
    for round in 0..4 {
        let disk = world.disk_of(&node);
        assert_eq!(disk.runs.len(), 3, "round {round}");
        world.crash(&node);
        world.run_for(S * 2);
        node = world.boot("n0", setup.clone(), disk);
        world.run_for(S * 3);
    }
    assert_eq!(holders(&world, "t0"), [], "outputs go first");
    let disk = world.disk_of(&node);
    world.crash(&node);
    world.run_for(S * 15);
    node = world.boot("n0", setup, disk);
    world.run_for(S * 15);
    assert!(world.disk_of(&node).runs.is_empty(), "nothing is kept for ever");
    assert!(world.owner(&node, "t0").is_none());
}

/// An end whose output is gone is not taken for one that has it after a restart.
#[test]
fn an_output_that_is_gone_is_fetched_again_from_a_peer_after_a_restart() {
    let setup = Setup { durable: true, ..Setup::default() };
    let (mut world, _) = finished(10, 2, &setup, 1);
    let [first, second] = &holders(&world, "t0")[..] else { panic!("two hold it") };
    let (first, second) = (first.clone(), second.clone());
    let mut disk = world.disk_of(&first);
    world.crash(&first);
    for run in disk.runs.values_mut() {
        if let Some((_, output)) = &mut run.end {
            *output = None;
        }
    }
    let again = world.boot(first.node.as_str(), setup, disk);
    world.run_for(S * 5);
    assert_eq!(holders(&world, "t0").len(), 2, "{again} has it again, {second} still");
}

/// Rules 12 and 14: a booting node buries no end before `boot_wait` has passed, however old: whoever
/// comes with it may bring a copy of the run from before it ended.
#[test]
fn an_old_end_is_kept_until_those_who_missed_it_are_back() {
    for apart in [Duration::ZERO, Duration::from_millis(700)] {
        let setup = durable();
        let (mut world, nodes) = World::cluster_of(11, 2, &setup);
        world.goal = 100;
        world.start(&nodes[0], "a");
        world.run_for(S * 3);
        let owner = world.runner("a");
        let replica = nodes.iter().find(|n| **n != owner).unwrap().clone();
        let behind = world.disk_of(&replica);
        assert!(behind.runs.values().any(|run| !run.checkpoints.is_empty()));
        world.crash(&replica);
        world.run_for(S * 6);
        assert_eq!(world.finished[&name("a")].len(), 1);
        let ahead = world.disk_of(&owner);
        world.crash(&owner);
        // Longer than anything of an end is kept.
        world.run_for(S * 40);
        let away = world.now;
        world.boot(owner.node.as_str(), setup.clone(), ahead);
        world.run_for(apart);
        world.boot(replica.node.as_str(), setup, behind);
        world.run_for(S * 20);
        assert!(world.since("a", away).is_empty(), "born again, {apart:?} apart");
    }
}

/// Rules 9 and 14: a failure that a live claim has risen above is no end, on no disk: a restart of all
/// nodes goes on with what ran. Whether the node that failed it gets its checkpoints next or not, and
/// whether others may still be given copies of the failure.
#[test]
fn a_revoked_failure_is_no_end_after_a_restart_of_all_nodes() {
    for seed in 0..3 {
        for (cordoned, ago) in [(false, 5), (false, 2), (true, 5), (true, 2)] {
            let case = format!("seed {seed}, cordoned {cordoned}, failed {ago} s before the heal");
            let (mut world, minority) = cut_off(seed);
            let nodes = world.living();
            world.failing.insert((name("a"), minority.clone()));
            world.run_for(S * ago);
            assert_eq!(world.claim_of(&minority, "a").unwrap().phase, Phase::Failed, "{case}");
            world.give(&minority, Event::Cordon(cordoned));
            world.heal();
            world.run_for(S * 3);
            world.failing.clear();
            let (_, done) = world.acknowledged[&name("a")];
            let disks: Vec<Disk> = nodes.iter().map(|node| world.disk_of(node)).collect();
            nodes.iter().for_each(|node| world.crash(node));
            let before = world.now;
            let again: Vec<SessionId> = nodes
                .iter()
                .zip(disks)
                .map(|(node, disk)| world.boot(node.node.as_str(), durable(), disk))
                .collect();
            world.run_for(S * 15);
            let went_on = world.since("a", before);
            assert!(went_on.iter().all(|s| s.from_seq >= done), "{case}: {went_on:?}, {done}");
            let running = world.running("a");
            assert_eq!(running.len(), 1, "{case}: {:?}", world.owner(&again[0], "a"));
            for node in &again {
                assert_eq!(world.owner(node, "a").unwrap().session, running[0], "{case}");
            }
        }
    }
}

/// Rules 9 and 12: who is told of a failure below a live claim keeps the checkpoints of the run that goes
/// on, and gives up none for it.
#[test]
fn a_failure_below_a_live_claim_costs_no_checkpoint() {
    for seed in 0..3 {
        let (mut world, ..) = World::owned(seed, 3, &Setup::default());
        world.run_for(S);
        // The next commit is far away.
        world.commit_every = 10_000;
        world.run_for(Duration::from_millis(200));
        let (owner, _, third) = world.roles("a");
        let mine = world.claim_of(&owner, "a").unwrap().clone();
        let spec = world.nodes[&owner].machine.spec(&name("a")).unwrap().clone();
        let (_, done) = world.acknowledged[&name("a")];
        let claim = Claim {
            session: third.clone(),
            number: 77,
            epoch: Epoch(mine.epoch.0 - 1),
            phase: Phase::Failed,
            ..mine.clone()
        };
        for node in world.living().iter().filter(|node| **node != third) {
            let (claim, spec) = (claim.clone(), spec.clone());
            let message = Message::Ended { claim, spec, output: None, age: Duration::ZERO };
            world.give(node, Event::Message { from: third.clone(), message });
        }
        world.run_for(Duration::from_millis(100));
        let died = world.now;
        world.crash(&owner);
        world.run_for(S * 20);
        let taken = world.since("a", died);
        assert!(taken.iter().all(|s| s.from_seq >= done), "seed {seed}: {taken:?}, {done}");
        assert_eq!(world.running("a").len(), 1, "seed {seed}");
    }
}

/// Rule 9: nor is a failure an end where it is found on disk beside checkpoints of a later epoch.
#[test]
fn a_failure_on_disk_below_a_checkpoint_is_no_end() {
    let (mut world, owner, _) = World::owned(13, 2, &durable());
    let nodes = world.living();
    world.run_for(S);
    let mine = world.claim_of(&owner, "a").unwrap().clone();
    let (_, done) = world.acknowledged[&name("a")];
    let mut disks: Vec<Disk> = nodes.iter().map(|node| world.disk_of(node)).collect();
    for run in disks.iter_mut().flat_map(|disk| disk.runs.values_mut()) {
        assert!(run.checkpoints.iter().all(|(header, _)| header.position.epoch == mine.epoch));
        let epoch = Epoch(mine.epoch.0 - 1);
        let claim = Claim { epoch, phase: Phase::Failed, ..mine.clone() };
        run.end = Some((StoredEnd { claim, at: world.clock().unix }, None));
    }
    nodes.iter().for_each(|node| world.crash(node));
    let before = world.now;
    for (node, disk) in nodes.iter().zip(disks) {
        world.boot(node.node.as_str(), durable(), disk);
    }
    world.run_for(S * 15);
    assert_eq!(world.running("a").len(), 1);
    let went_on = world.since("a", before);
    assert!(went_on.iter().all(|s| s.from_seq >= done), "{went_on:?}, {done}");
}

/// A durable cluster whose first owner of "a", cut off, fails it at the moment of the heal, and is made a
/// replica of the copy that goes on while it still ends its own; that one, and the owner.
fn failing_at_the_heal(seed: u64) -> (World, SessionId, SessionId) {
    let (mut world, minority) = cut_off(seed);
    world.failing.insert((name("a"), minority.clone()));
    world.heal();
    world.run_for(Duration::from_millis(500));
    let owner = world.runner("a");
    let claim = world.claim_of(&owner, "a").unwrap();
    assert_eq!(claim.replicas, vec![minority.node.clone()]);
    world.failing.clear();
    (world, minority, owner)
}

/// Rules 9 and 20: such a node keeps what it has acknowledged when it forgets the failure.
#[test]
fn a_revoked_failure_takes_nothing_with_it_that_was_acknowledged() {
    let (mut world, minority, owner) = failing_at_the_heal(14);
    // The next commit is far away.
    world.commit_every = 10_000;
    world.run_for(S * 2);
    let (_, done) = world.acknowledged[&name("a")];
    let died = world.now;
    world.crash(&owner);
    world.run_for(S * 15);
    assert_eq!(world.running("a").len(), 1, "{:?}", world.owner(&minority, "a"));
    let taken = world.since("a", died);
    assert!(taken.iter().all(|s| s.from_seq >= done), "{taken:?}, {done}");
}

/// Rules 9 and 14: nor does the failure come to light again on its disk when its checkpoints go elsewhere.
#[test]
fn a_revoked_failure_goes_with_the_last_checkpoint_beside_it() {
    let (mut world, minority, _) = failing_at_the_heal(14);
    let nodes = world.living();
    world.run_for(S * 2);
    world.give(&minority, Event::Cordon(true));
    world.run_for(S * 3);
    let mut held = world.nodes[&minority].disk.runs.values();
    assert!(held.all(|run| run.checkpoints.is_empty()), "others are its replicas now");
    let (_, done) = world.acknowledged[&name("a")];
    let disks: Vec<Disk> = nodes.iter().map(|node| world.disk_of(node)).collect();
    nodes.iter().for_each(|node| world.crash(node));
    let before = world.now;
    for (node, disk) in nodes.iter().zip(disks) {
        let setup = world.nodes[node].setup.clone();
        world.boot(node.node.as_str(), setup, disk);
    }
    world.run_for(S * 15);
    assert_eq!(world.running("a").len(), 1);
    let went_on = world.since("a", before);
    assert!(went_on.iter().all(|s| s.from_seq >= done), "{went_on:?}, {done}");
}

/// Rule 12: of a name that is run again and again nothing of the earlier runs is kept for ever.
#[test]
fn reruns_leave_nothing_behind_in_the_store() {
    for (n, durable) in [(1, true), (3, true), (3, false)] {
        let setup = Setup { durable, timing: short(), ..Setup::default() };
        let (mut world, nodes) = World::cluster_of(31, n, &setup);
        world.goal = 3;
        for _ in 0..8 {
            world.start_kind(&nodes[0], "a", "count", true);
            world.run_for(S * 2);
        }
        assert_eq!(world.finished[&name("a")].len(), 8);
        // Retention and tombstones are over after 25 s.
        world.run_for(S * 100);
        let kept: usize = world.nodes.values().map(|node| node.disk.runs.len()).sum();
        assert_eq!(kept, 0, "{n} nodes, durable: {durable}");
    }
}

/// Rule 12: whoever keeps a copy of an end publishes nothing of it while its writer lives.
#[test]
fn an_end_is_published_by_its_writer_alone() {
    for seed in 0..4 {
        let (mut world, nodes) = World::cluster(seed, 3);
        world.goal = 5;
        world.start(&nodes[0], "a");
        world.run_for(MS * 100);
        let writer = world.runner("a");
        let begun = world.now;
        while world.now < begun + S * 5 {
            world.run_for(MS);
            let speaks = |node: &&SessionId| {
                world.claim_of(node, "a").is_some_and(|claim| claim.phase.is_terminal())
            };
            let others = nodes.iter().filter(|node| **node != writer).filter(speaks);
            assert_eq!(others.count(), 0, "seed {seed}");
        }
        assert_eq!(world.claim_of(&writer, "a").unwrap().phase, Phase::Finished);
        assert_eq!(holders(&world, "a").len(), 2, "seed {seed}");
    }
}

/// The header that says that a failed task has stopped may come before the page that says how: whoever keeps the end
/// does not take the name for free, and nobody runs it again.
#[test]
fn a_failure_whose_claim_is_heard_late_is_taken_up_by_nobody() {
    for seed in 0..4 {
        let (mut world, owner, others) = World::owned(seed, 3, &Setup::default());
        let claim = world.claim_of(&owner, "a").unwrap().clone();
        world.failing.insert((name("a"), owner.clone()));
        let keeps =
            |w: &World, node: &SessionId| w.nodes[node].disk.runs.values().any(|r| r.end.is_some());
        while !others.iter().any(|node| keeps(&world, node)) {
            world.run_for(MS / 10);
        }
        let keeper = others.iter().find(|node| keeps(&world, node)).unwrap();
        let said = world.nodes[keeper].machine.members().get(&owner).unwrap().version;
        let heard = Event::Heard {
            from: owner.clone(),
            state: NodeState::Up,
            version: said + 1,
            watermark: claim.number,
            released: Vec::new(),
            echoed: None,
        };
        world.give(keeper, heard);
        world.run_for(S * 3);
        assert_eq!(
            world.stretches.iter().filter(|s| s.name == name("a")).count(),
            1,
            "seed {seed}"
        );
        for node in &world.living() {
            assert_eq!(world.owner(node, "a").unwrap().phase, Phase::Failed, "seed {seed}: {node}");
        }
    }
}
