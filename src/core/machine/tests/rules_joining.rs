//! Joining and booting: Rule 14.

use std::collections::BTreeSet;
use std::time::Duration;

use super::rules_claims::{session, short};
use super::world::{Disk, MS, Setup, World, name};
use crate::core::claim::{Phase, Want};
use crate::core::ids::SessionId;
use crate::core::io::{CallError, Event, Notice};
use crate::core::message::{Message, Refusal};
use crate::core::record::NodeState;

const S: Duration = Duration::from_secs(1);

fn durable() -> Setup {
    Setup { durable: true, ..Setup::default() }
}

/// A joining node owns nothing and settles nothing.
#[test]
fn a_joining_node_owns_nothing() {
    let (mut world, nodes) = World::cluster(1, 2);
    world.goal = 100_000;
    let joining = world.boot("n2", Setup::default(), Disk::default());
    let call = world.start(&joining, "a");
    assert_eq!(world.nodes[&joining].replies[&call], Err(CallError::NotReady));
    world.isolate(&joining);
    for i in 0..20 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.crash(&nodes[1]);
    world.run_for(S * 8);
    assert_eq!(world.nodes[&joining].machine.state(), NodeState::Joining);
    assert!(world.stretches.iter().all(|s| s.session != joining));
}

/// Two joining nodes that know only each other count as caught up.
#[test]
fn two_nodes_that_join_together_are_up_at_once() {
    let mut world = World::new(2);
    let nodes = [
        world.boot("n0", Setup::default(), Disk::default()),
        world.boot("n1", Setup::default(), Disk::default()),
    ];
    world.run_for(S * 2);
    for node in &nodes {
        assert_eq!(world.nodes[node].machine.state(), NodeState::Up);
    }
}

/// Without seeds a first node waits `solo_after`; with seeds that do not answer, `alone_after`.
#[test]
fn a_first_node_waits_for_others() {
    for (seeds, after) in [(false, S * 5), (true, S * 60)] {
        let mut world = World::new(3);
        let node = world.boot("n0", Setup { seeds, ..Setup::default() }, Disk::default());
        world.run_for(after - S);
        assert_eq!(world.nodes[&node].machine.state(), NodeState::Joining);
        world.run_for(S * 2);
        assert_eq!(world.nodes[&node].machine.state(), NodeState::Up);
    }
}

/// A session without a path to the joiner does not keep it out for ever.
#[test]
fn a_node_joins_across_a_bridge() {
    let mut world = World::new(4);
    let a = world.boot("n0", Setup::default(), Disk::default());
    let b = world.boot("n1", Setup::default(), Disk::default());
    world.run_for(S * 5);
    let far = SessionId::new(crate::core::ids::NodeId::new("n2").unwrap(), a.nonce);
    world.cut_both(&a, &far);
    let c = world.boot("n2", Setup::default(), Disk::default());
    world.run_for(S * 15);
    for node in [&a, &b, &c] {
        assert_eq!(world.nodes[node].machine.state(), NodeState::Up, "{node}");
    }
}

/// Rule 14 and the whole of it: a cluster stopped and started again on its directories, in any
/// order and with one of them stale, resumes every task once and revives no finished one.
#[test]
fn a_whole_cluster_resumes_from_its_directories() {
    for (seed, order) in
        [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]].iter().enumerate()
    {
        let (mut world, nodes) = World::cluster_of(seed as u64, 3, &durable());
        world.step = MS * 200;
        world.goal = 10;
        for i in 0..6 {
            world.start(&nodes[0], &format!("f{i}"));
        }
        world.run_for(S);
        world.goal = 100_000;
        for i in 0..9 {
            world.start(&nodes[0], &format!("t{i}"));
        }
        world.run_for(MS * 500);
        let stale = world.disk_of(&nodes[2]);
        world.run_for(S * 4);
        let mut disks: Vec<Disk> = nodes.iter().map(|n| world.disk_of(n)).collect();
        disks[2] = Disk { nonce: disks[2].nonce, ..stale };
        nodes.iter().for_each(|n| world.crash(n));
        let stopped = world.now;
        assert!((0..6).all(|i| world.finished.contains_key(&name(&format!("f{i}")))));
        let at_stop: Vec<u64> = (0..9).map(|i| world.steps_done[&name(&format!("t{i}"))]).collect();
        for i in order {
            world.boot(&format!("n{i}"), durable(), disks[*i].clone());
            world.run_for(S);
        }
        world.run_for(S * 25);
        for (i, before) in at_stop.iter().enumerate() {
            let task = format!("t{i}");
            assert_eq!(world.running(&task).len(), 1, "{task}, order {order:?}");
            let again = world.since(&task, stopped);
            assert_eq!(again.len(), 1, "once: {again:?}");
            let behind = before.saturating_sub(again[0].from_seq);
            assert!(behind <= 1, "{task} lost {behind} commits, order {order:?}");
        }
        for i in 0..6 {
            let task = format!("f{i}");
            assert!(world.since(&task, stopped).is_empty(), "{task}, order {order:?}");
        }
    }
}

/// Rule 14: a run of which no step has ended yet, and one that is paused, are on disk, too.
#[test]
fn a_restart_of_all_nodes_forgets_no_run_and_no_order() {
    for seed in 0..3 {
        let (mut world, nodes) = World::cluster_of(seed, 3, &durable());
        world.goal = 100_000;
        for i in 0..3 {
            world.start(&nodes[0], &format!("paused{i}"));
        }
        world.run_for(S);
        // Longer than anybody lives.
        world.step = S * 1_000;
        for i in 0..3 {
            world.start(&nodes[0], &format!("slow{i}"));
            world.want(&nodes[1], &format!("paused{i}"), Want::Pause);
        }
        world.run_for(S);
        let stopped = world.now;
        nodes.iter().for_each(|node| world.crash(node));
        for (i, node) in nodes.iter().enumerate() {
            let disk = world.disk_of(node);
            world.boot(&format!("n{i}"), durable(), disk);
        }
        world.run_for(S * 25);
        for i in 0..3 {
            let slow = world.since(&format!("slow{i}"), stopped);
            assert_eq!(slow.len(), 1, "seed {seed}: {slow:?}");
            let paused = format!("paused{i}");
            assert!(world.since(&paused, stopped).is_empty(), "seed {seed}");
            let at = world.nodes.values().find(|node| node.alive).unwrap().session.clone();
            assert_eq!(world.owner(&at, &paused).unwrap().phase, Phase::Paused, "seed {seed}");
            world.want(&at, &paused, Want::Run);
        }
        world.run_for(S * 2);
        for i in 0..3 {
            assert_eq!(world.since(&format!("paused{i}"), stopped).len(), 1, "seed {seed}");
        }
    }
}

/// L3: a node whose directory is stale has seen lower epochs than others, and nobody's directory tells
/// under which epochs a task ran after its last checkpoint. Whoever goes on does so above all of them.
#[test]
fn a_cluster_started_again_goes_on_above_all_epochs_before() {
    for seed in 0..12 {
        let (mut world, nodes) = World::cluster_of(seed, 3, &durable());
        world.goal = 100_000;
        for i in 0..6 {
            world.start(&nodes[0], &format!("t{i}"));
        }
        world.run_for(S);
        let stale = world.disk_of(&nodes[2]);
        // Owners die one after the other, and epochs rise.
        for node in &nodes {
            world.crash(node);
            world.run_for(S * 2);
        }
        let stopped = world.now;
        world.blocked = Some(|_, _, m| matches!(m, Message::Found { .. }));
        let late = world.disk_of(&nodes[2]);
        let first = Disk { nonce: late.nonce, ..stale };
        world.boot("n2", durable(), first);
        for (i, node) in nodes.iter().enumerate().take(2) {
            let disk = world.disk_of(node);
            world.boot(&format!("n{i}"), durable(), disk);
        }
        world.run_for(S * 25);
        for i in 0..6 {
            let task = format!("t{i}");
            let again = world.since(&task, stopped);
            assert_eq!(again.len(), 1, "seed {seed}: {again:?}");
            let before = world.stretches.iter().filter(|s| s.name == name(&task));
            let before = before.filter(|s| s.start <= stopped).map(|s| s.epoch).max();
            assert!(Some(again[0].epoch) > before, "seed {seed}: {again:?} after {before:?}");
        }
    }
}

/// Rule 14: whoever is missing may know better, and may also never come back.
#[test]
fn a_node_that_comes_back_alone_waits_for_the_others_until_alone_after() {
    let setup = Setup { durable: true, timing: short(), ..Setup::default() };
    let (mut world, owner, others) = World::owned(12, 3, &setup);
    world.run_for(S);
    let seq = world.acknowledged[&name("a")].1;
    others.iter().chain([&owner]).for_each(|node| world.crash(node));
    let disk = world.nodes[&owner].disk.clone();
    let node = world.boot(owner.node.as_str(), setup, disk);
    let is_up = |w: &World| w.nodes[&node].machine.state() == NodeState::Up;
    world.run_until(S * 10, "it is up", is_up);
    world.run_for(short().alone_after - S);
    assert!(world.running("a").is_empty(), "somebody may know better");
    world.run_for(S * 3);
    assert_eq!(world.runner("a"), node);
    assert!(world.stretches.last().unwrap().from_seq >= seq);
}

/// L3, C4: a node that died before the others comes back with its old directory, and a clock that is
/// behind. Where it is the one to go on, it does so above the checkpoint that others give it.
#[test]
fn a_stale_directory_goes_on_above_the_checkpoint_it_is_given() {
    let setup = Setup { replicas: 2, ..durable() };
    let mut given = 0;
    for seed in 0..4 {
        let (mut world, nodes) = World::cluster_of(seed, 3, &setup);
        world.goal = 100_000;
        for i in 0..6 {
            world.start(&nodes[0], &format!("t{i}"));
        }
        world.run_for(S);
        world.crash(&nodes[2]);
        world.run_for(S * 4);
        world.crash(&nodes[0]);
        world.crash(&nodes[1]);
        let stopped = world.now;
        world.unix -= 3_600;
        world.blocked = Some(|_, _, m| matches!(m, Message::Found { .. }));
        // Whoever has more runs no such tasks, and leaves them to the other.
        let other = Setup { kinds: vec![("other", 1)], ..setup.clone() };
        world.boot("n1", other, world.disk_of(&nodes[1]));
        let stale = world.disk_of(&nodes[2]);
        let had = |of: &str| -> Option<u64> {
            let runs = stale.runs.iter().filter(|((name, _), _)| name.as_str() == of);
            runs.flat_map(|(_, run)| run.checkpoints.iter().map(|(h, _)| h.position.seq)).max()
        };
        let back = world.boot("n2", setup.clone(), stale.clone());
        world.run_for(S * 25);
        for i in 0..6 {
            let task = format!("t{i}");
            let again = world.since(&task, stopped);
            assert!(again.iter().all(|s| s.session == back), "{again:?}");
            given += again.iter().filter(|s| Some(s.from_seq) > had(&task)).count();
        }
    }
    assert!(given > 10, "{given} checkpoints were given");
}

/// Rule 14: a directory that comes after `boot_wait` ends the copy that was born again (Rule 9).
#[test]
fn a_late_directory_ends_the_reborn_copy_with_an_event() {
    let setup = Setup { timing: short(), ..durable() };
    let (mut world, nodes) = World::cluster_of(10, 3, &setup);
    world.goal = 60;
    world.step = MS * 50;
    world.start(&nodes[0], "a");
    world.run_for(S);
    let holders: Vec<SessionId> =
        nodes.iter().filter(|n| !world.disk_of(n).runs.is_empty()).cloned().collect();
    let stale = world.disk_of(&holders[0]);
    world.run_for(S * 4);
    assert_eq!(world.finished[&name("a")].len(), 1);
    let late = world.disk_of(&holders[1]);
    assert!(late.runs.values().any(|run| run.end.is_some()));
    nodes.iter().for_each(|n| world.crash(n));
    let stopped = world.now;
    world.goal = 100_000;
    let early = world.boot(holders[0].node.as_str(), setup.clone(), stale);
    let other = nodes.iter().find(|n| !holders.contains(n)).unwrap();
    let disk = world.disk_of(other);
    world.boot(other.node.as_str(), setup.clone(), disk);
    world.run_for(S * 15);
    assert_eq!(world.since("a", stopped).len(), 1, "born again");
    let reborn = world.runner("a");
    world.boot(holders[1].node.as_str(), setup, late);
    // Not as long as the end is kept.
    world.run_for(S * 4);
    assert!(world.running("a").is_empty());
    assert_eq!(world.told(&reborn, |n| matches!(n, Notice::Reborn { .. })), 1);
    assert_eq!(world.owner(&early, "a").unwrap().phase, Phase::Finished);
}

/// Rule 14: files are offers: where the owner lives they are a replica.
#[test]
fn files_of_a_task_that_runs_start_nothing() {
    let (mut world, nodes) = World::cluster_of(11, 3, &durable());
    world.goal = 100_000;
    for i in 0..12 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 3);
    let disk = world.disk_of(&nodes[1]);
    world.crash(&nodes[1]);
    world.run_for(S * 2);
    let rebooted = world.now;
    world.boot("n1", durable(), disk);
    world.run_for(S * 20);
    for i in 0..12 {
        let task = format!("t{i}");
        assert_eq!(world.running(&task).len(), 1);
        assert!(world.since(&task, rebooted).is_empty());
    }
}

/// Rules 14 and 24: files of a kind their node does not run reach one that does.
#[test]
fn files_that_their_node_cannot_run_are_kept_for_one_that_can() {
    let able = Setup { kinds: vec![("special", 1)], timing: short(), seeds: false, ..durable() };
    let unable = Setup { kinds: vec![("count", 1)], ..able.clone() };
    let mut world = World::new(12);
    let first = world.boot("n0", able.clone(), Disk::default());
    world.run_for(S * 2);
    world.goal = 100_000;
    world.start_kind(&first, "a", "special", false);
    world.run_for(S * 3);
    let disk = world.disk_of(&first);
    world.crash(&first);
    let stopped = world.now;
    let keeper = world.boot("n0", unable, disk);
    world.run_for(S * 20);
    assert_eq!(world.owner(&keeper, "a").unwrap().phase, Phase::Parked { until_resumed: false });
    let runner = world.boot("n1", able, Disk::default());
    world.run_for(S * 5);
    assert_eq!(world.runner("a"), runner);
    assert!(world.since("a", stopped)[0].from_seq > 0);
}

/// "Nobody can" is another answer than "not now", and than "no room".
#[test]
fn whoever_cannot_start_a_task_is_told_why() {
    let unable = Setup { seeds: true, timing: short(), ..Setup::default() };
    let able = Setup { kinds: vec![("special", 1)], max_running: 1, ..unable.clone() };
    let mut world = World::new(41);
    let asker = world.boot("n0", unable.clone(), Disk::default());
    world.boot("n1", unable, Disk::default());
    world.run_for(S * 4);
    world.goal = 100_000;
    let refused = |world: &mut World, task: &str, kind: &str| {
        let call = world.start_kind(&asker, task, kind, false);
        world.run_for(S);
        match world.nodes[&asker].replies[&call].clone() {
            Err(CallError::NoNode(refusal)) => Some(refusal),
            _ => None,
        }
    };
    assert_eq!(refused(&mut world, "a", "special"), Some(Refusal::Incompatible));
    let able = world.boot("able", able, Disk::default());
    world.run_for(MS * 20);
    assert_eq!(world.nodes[&able].machine.state(), NodeState::Joining);
    let call = world.start_kind(&asker, "a", "special", false);
    let joining = world.nodes[&asker].replies[&call].clone();
    assert_eq!(joining, Err(CallError::NoNode(Refusal::NotUp)));
    world.run_for(S * 4);
    world.give(&able, Event::Cordon(true));
    world.run_for(S);
    assert_eq!(refused(&mut world, "a", "special"), Some(Refusal::NotUp));
    world.give(&able, Event::Cordon(false));
    world.run_for(S);
    assert_eq!(refused(&mut world, "a", "special"), None, "it runs");
    assert_eq!(refused(&mut world, "b", "special"), Some(Refusal::Full));
    world.give(&asker, Event::Cordon(true));
    let other = world.nodes.keys().find(|s| s.node.as_str() == "n1").unwrap().clone();
    world.give(&other, Event::Cordon(true));
    world.run_for(S);
    assert_eq!(refused(&mut world, "c", "count"), Some(Refusal::NotUp), "the asker itself, too");
}

/// Unknown is not absent: what is on disk is shown, and can be given orders, before it is settled.
#[test]
fn what_a_booting_node_finds_is_known_and_obeys_before_it_is_settled() {
    let setup = Setup { seeds: false, timing: short(), ..durable() };
    let mut world = World::new(42);
    let node = world.boot("n0", setup.clone(), Disk::default());
    world.run_for(S * 2);
    world.goal = 100_000;
    world.start(&node, "a");
    world.run_for(S * 2);
    world.goal = 5;
    world.start(&node, "ended");
    world.run_for(S);
    world.goal = 100_000;
    let disk = world.disk_of(&node);
    world.crash(&node);
    let node = world.boot("n0", setup, disk);
    let found = &world.nodes[&node].found;
    assert_eq!(found.keys().collect::<Vec<_>>(), [&name("a")], "what has ended is no offer");
    assert!(found[&name("a")].as_ref().unwrap().position.seq > 10);
    assert_eq!(world.owner(&node, "a"), None);
    let call = world.want(&node, "a", Want::Pause);
    assert!(world.nodes[&node].replies[&call].is_ok());
    world.run_for(S * 6);
    assert!(world.running("a").is_empty());
    assert_eq!(world.owner(&node, "a").unwrap().phase, Phase::Paused);
    world.want(&node, "a", Want::Run);
    world.run_for(S);
    assert_eq!(world.running("a").len(), 1);
}

/// Rule 14: best branch first. Who has a worse one waits, also for a node that is still joining: nobody
/// asks that one for its state.
#[test]
fn a_stale_directory_waits_for_a_better_one_that_joins() {
    for seed in 50..53 {
        let (mut world, nodes) = World::cluster_of(seed, 3, &durable());
        world.goal = 100_000;
        world.start(&nodes[0], "a");
        world.run_for(S);
        let owner = world.runner("a");
        let has = |node: &&SessionId| !world.nodes[*node].disk.runs.is_empty();
        let replica = nodes.iter().filter(|n| **n != owner).find(has).unwrap().clone();
        // Its list of members is as old.
        let stale = Disk { members: BTreeSet::new(), ..world.disk_of(&replica) };
        let third = nodes.iter().find(|n| **n != owner && **n != replica).unwrap();
        world.run_for(S * 4);
        let better = world.disk_of(&owner);
        let kept = better.runs.values().flat_map(|run| &run.checkpoints);
        let newest = kept.map(|(header, _)| header.position.seq).max().unwrap();
        nodes.iter().for_each(|node| world.crash(node));
        let stopped = world.now;
        let behind = world.boot(replica.node.as_str(), durable(), stale);
        world.boot(third.node.as_str(), durable(), Disk::default());
        let up = |w: &World| w.nodes[&behind].machine.state() == NodeState::Up;
        world.run_until(S * 3, "it is up", up);
        world.run_for(MS * 800);
        assert!(world.since("a", stopped).is_empty());
        world.boot(owner.node.as_str(), durable(), better);
        world.run_for(S * 25);
        let again = world.since("a", stopped);
        assert_eq!(again.len(), 1, "seed {seed}: {again:?}");
        assert!(again[0].from_seq >= newest, "seed {seed}: {again:?}, and {newest} was there");
    }
}

/// Rule 14: who hears a cluster that does not hear it is not up, however long it waits: it could settle nothing.
#[test]
fn a_joiner_that_nobody_echoes_does_not_come_up() {
    let (mut world, nodes) = World::cluster(9, 3);
    let unheard = session("unheard");
    for node in &nodes {
        world.cut(&unheard, node);
    }
    let joiner = world.boot("unheard", Setup::default(), Disk::default());
    world.run_for(S);
    // What it was told of their records is of no use while nobody hears it.
    for of in nodes {
        world.give(&joiner, Event::CaughtUp { of });
    }
    world.run_for(S * 30);
    assert!(world.nodes[&joiner].machine.members.iter().count() > 0, "it hears them");
    assert_eq!(world.nodes[&joiner].machine.state(), NodeState::Joining);
    world.heal();
    world.run_until(S * 20, "up", |w| w.nodes[&joiner].machine.state() == NodeState::Up);
}
