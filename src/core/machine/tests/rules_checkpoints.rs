//! Checkpoints at their replicas and in their stores: Rules 19 and 20.

use std::time::Duration;

use bytes::Bytes;

use super::rules_claims::short;
use super::world::{Disk, Fate, Fault, MS, Setup, World, name};
use crate::core::branch::{Header, Position};
use crate::core::claim::{Claim, Want};
use crate::core::ids::SessionId;
use crate::core::io::{Action, Event, Notice};
use crate::core::lease::Epoch;
use crate::core::message::{Message, Rejection};

const S: Duration = Duration::from_secs(1);

/// A cluster whose task "a" runs and has been acknowledged; its owner, its replica, the third.
pub(super) fn acknowledged(seed: u64, setup: &Setup) -> (World, SessionId, SessionId, SessionId) {
    let (mut world, nodes) = World::cluster_of(seed, 3, setup);
    world.goal = 100_000;
    world.forced = true;
    world.start(&nodes[0], "a");
    world.run_for(S * 3);
    let (owner, replica, third) = world.roles("a");
    let claim = world.claim_of(&owner, "a").unwrap();
    assert!(claim.checkpointed && claim.floor.is_some(), "{claim:?}");
    (world, owner, replica, third)
}

/// Rule 20: whoever waits for a forced checkpoint does not wait for a peer that keeps nothing: as where there is
/// none, this node's own store has to do.
#[test]
fn a_forced_checkpoint_does_not_wait_for_a_peer_that_refuses_it() {
    for durable in [true, false] {
        let setup = Setup { durable, ..Setup::default() };
        let (mut world, owner, others) = World::owned(12, 2, &setup);
        world.forced = true;
        world.nodes.get_mut(&others[0]).unwrap().disk_full = true;
        world.run_for(S);
        let before = world.nodes[&owner].goes_on[&name("a")];
        world.run_for(S);
        assert!(world.nodes[&owner].goes_on[&name("a")] > before + 10);
        assert_eq!(world.claim_of(&owner, "a").unwrap().floor.is_some(), durable);
        // And is kept again as soon as that can be.
        world.nodes.get_mut(&others[0]).unwrap().disk_full = false;
        world.run_for(S * 11);
        assert!(world.acknowledged[&name("a")].1 > before);
    }
}

/// C5: nor does it return before this node's own store has it, nor when that has failed too, whichever is
/// heard of first.
#[test]
fn a_forced_checkpoint_that_no_peer_keeps_waits_for_its_own_store() {
    let setup = Setup { durable: true, ..Setup::default() };
    let (world, owner, others) = World::owned(13, 2, &setup);
    let stored = world.nodes[&owner].disk.runs.values().next().unwrap();
    let mut header = stored.checkpoints.last().unwrap().0.clone();
    header.position.seq += 1;
    let (name, run, position) = (header.name.clone(), header.run, header.position);
    let state = Bytes::copy_from_slice(&position.seq.to_le_bytes());
    header.hash = Header::hash_of(&state);
    let result = Err(Rejection::Unavailable("no space left".to_owned()));
    let message = Message::CheckpointReply { name, run, position, result };
    let refused = Event::Message { from: others[0].clone(), message };
    for fails in [false, true] {
        let error = fails.then(|| "no space left".to_owned());
        let stored = Event::Stored { header: header.clone(), from: None, error };
        for answers in [[&refused, &stored], [&stored, &refused]] {
            let mut machine = world.nodes[&owner].machine.clone();
            let (header, state) = (header.clone(), state.clone());
            machine.handle(world.clock(), Event::Committed { header, state, forced: true });
            let goes_on = answers.map(|answer| {
                machine.handle(world.clock(), answer.clone());
                let mut actions = std::iter::from_fn(|| machine.poll());
                actions.any(|action| matches!(action, Action::Replicated { .. }))
            });
            assert_eq!(goes_on, [false, !fails], "{answers:?}");
        }
    }
}

/// C5: it is tried again where nobody could keep it, here and there, until somebody does.
#[test]
fn a_forced_checkpoint_that_nobody_could_keep_is_tried_again() {
    for (leaves, heals) in [(false, 0), (false, 1), (true, 0)] {
        let setup = Setup { durable: true, ..Setup::default() };
        let (mut world, owner, others) = World::owned(14, 2, &setup);
        let both = [&owner, &others[0]];
        world.forced = true;
        world.steps.insert(name("a"), S * 100);
        for node in both {
            world.nodes.get_mut(node).unwrap().disk_full = true;
        }
        let before = world.claim_of(&owner, "a").unwrap().floor.clone();
        world.run_for(S * 6);
        if leaves {
            world.crash(&others[0]);
        }
        world.run_for(S * 3);
        let waits = world.steps_done[&name("a")];
        assert!(world.nodes[&owner].goes_on[&name("a")] < waits, "it is kept by nobody");
        assert_eq!(world.claim_of(&owner, "a").unwrap().floor, before);
        world.nodes.get_mut(both[heals]).unwrap().disk_full = false;
        world.run_for(S * 12);
        assert_eq!(world.steps_done[&name("a")], waits);
        assert_eq!(world.nodes[&owner].goes_on[&name("a")], waits, "{leaves} {heals}");
        let task = &world.nodes[&owner].machine.tasks[&name("a")];
        assert!(task.bytes.is_none() && task.forced.is_none(), "it is in memory no longer");
        let floor = world.claim_of(&owner, "a").unwrap().floor.as_ref();
        assert_eq!(floor.map(|point| point.seq), Some(waits));
    }
}

/// Rule 20: a replica answers a lower epoch `Superseded`, and keeps what came as a branch.
#[test]
fn a_zombie_is_told_that_it_is_superseded() {
    let (mut world, owner, replica, third) = acknowledged(7, &Setup::default());
    let claim = world.claim_of(&owner, "a").unwrap().clone();
    let spec = world.nodes[&owner].machine.spec(&name("a")).unwrap().clone();
    let stored = world.nodes[&replica].disk.runs[&(name("a"), spec.run)].checkpoints[0].0.clone();
    let epoch = Epoch(claim.epoch.0 - 1);
    let header = Header {
        position: Position { epoch, seq: 900 },
        writer: third.clone(),
        hash: 900,
        ..stored
    };
    let lower = Claim { session: third.clone(), number: 77, epoch, ..claim.clone() };
    let state = Bytes::copy_from_slice(&900u64.to_le_bytes());
    world.record_messages = true;
    let message = Message::Checkpoint { claim: lower, spec: spec.clone(), header, state };
    world.give(&replica, Event::Message { from: third.clone(), message });
    world.run_for(MS * 100);
    let told = world.sent.iter().any(|(_, from, to, m)| {
        *from == replica
            && *to == third
            && matches!(m, Message::CheckpointReply { result: Err(Rejection::Superseded(by)), .. }
                if by.session == owner)
    });
    assert!(told);
    let branches = &world.nodes[&replica].disk.runs[&(name("a"), spec.run)].checkpoints;
    assert_eq!(branches.len(), 2, "Rule 19: (e - 1, 900) beside what the owner wrote since");
}

/// Replicas are moved when membership changes, and old ones are told to forget.
#[test]
fn a_dead_replica_is_replaced() {
    let (mut world, ..) = World::owned(8, 4, &Setup::default());
    let (owner, replica, _) = world.roles("a");
    let old = world.claim_of(&owner, "a").unwrap().replicas.clone();
    world.crash(&replica);
    world.run_for(S);
    let new = world.claim_of(&owner, "a").unwrap().replicas.clone();
    assert_eq!(new.len(), 1);
    assert_ne!(new, old);
    let died = world.now;
    world.crash(&owner);
    world.run_for(S);
    assert!(world.since("a", died)[0].from_seq > 40);
}

/// Cordoned nodes take no tasks, and at the start of a deploy every old node may be one. They go on
/// keeping what others commit: else a crash or a drain costs everything since the cordon.
#[test]
fn cordoned_nodes_keep_checkpoints_where_nobody_else_is_there() {
    for drains in [false, true] {
        for n in [2, 3] {
            let (mut world, owner, others) = World::owned(8, n, &Setup::default());
            others.iter().for_each(|node| world.give(node, Event::Cordon(true)));
            world.run_for(S * 10);
            let begun = world.stretches.iter().rfind(|s| s.name == name("a")).unwrap().start;
            let done = world.now.since(begun).as_micros() / world.step.as_micros();
            if drains {
                world.drain(&owner, S * 5);
                world.run_until(S * 8, "drained", |w| w.nodes[&owner].drained.is_some());
                world.give(&owner, Event::Leave);
                world.run_for(S);
            }
            world.crash(&owner);
            world.run_for(S);
            others.iter().for_each(|node| world.give(node, Event::Cordon(false)));
            world.run_until(S * 8, "runs again", |w| w.running("a").len() == 1);
            world.assert_no_overlap();
            let again = world.stretches.iter().rfind(|s| s.name == name("a")).unwrap();
            // What a second brings at most is not committed yet.
            let second = S.as_micros() / world.step.as_micros();
            let from = u128::from(again.from_seq);
            assert!(from + second + 5 >= done, "{drains} {n}: {done} steps, and on from {from}");
        }
    }
}

/// A node that is cordoned is likely to be the next to go.
#[test]
fn a_node_that_takes_tasks_keeps_checkpoints_before_one_that_does_not() {
    let (mut world, ..) = World::owned(8, 3, &Setup::default());
    let (owner, replica, third) = world.roles("a");
    world.give(&replica, Event::Cordon(true));
    world.run_for(S * 2);
    assert_eq!(world.claim_of(&owner, "a").unwrap().replicas, std::slice::from_ref(&third.node));
    world.give(&third, Event::Cordon(true));
    world.give(&replica, Event::Cordon(false));
    world.run_for(S * 2);
    assert_eq!(world.claim_of(&owner, "a").unwrap().replicas, [replica.node]);
}

/// A commit that was lost with its link goes out again when the link is back.
#[test]
fn a_lost_checkpoint_is_sent_again() {
    let (mut world, nodes) = World::cluster(9, 2);
    world.goal = 100_000;
    world.step = S * 5;
    world.start(&nodes[0], "a");
    world.run_for(S * 4);
    let owner = world.runner("a");
    let other = nodes.iter().find(|n| **n != owner).unwrap().clone();
    let hits: fn(&Message) -> bool = |m| matches!(m, Message::Checkpoint { .. });
    world.faults.push(Fault { hits, fate: Fate::Lost, times: 1 });
    world.run_for(S * 2);
    assert!(world.nodes[&other].disk.runs.is_empty());
    world.cut_both(&owner, &other);
    world.run_for(MS * 5100);
    world.mend(&owner, &other);
    world.run_for(S);
    assert!(!world.nodes[&other].disk.runs.is_empty());
}

/// A failed write is not acknowledged, and another node gets the checkpoints.
#[test]
fn a_replica_whose_disk_is_full_is_passed_over() {
    let (mut world, owner, replica, third) = acknowledged(10, &Setup::default());
    world.nodes.get_mut(&replica).unwrap().disk_full = true;
    world.run_for(S);
    assert_eq!(world.claim_of(&owner, "a").unwrap().replicas, vec![third.node.clone()]);
    assert!(world.told(&owner, |n| matches!(n, Notice::Unstored { elsewhere: true, .. })) > 0);
}

/// C5: a write that fails costs nothing of what was stored before it, however many of them are under way.
#[test]
fn a_write_that_fails_costs_nothing_that_was_acknowledged_before() {
    for (seed, step) in (40..44).flat_map(|seed| [MS / 20, MS * 50].map(|step| (seed, step))) {
        let (mut world, nodes) = World::cluster(seed, 2);
        world.goal = 1_000_000;
        world.start(&nodes[0], "a");
        world.run_for(S * 2);
        let owner = world.runner("a");
        let replica = nodes.iter().find(|node| **node != owner).unwrap().clone();
        world.step = step;
        world.steps.insert(name("a"), step);
        world.run_for(MS * 200);
        world.nodes.get_mut(&replica).unwrap().disk_full = true;
        let (_, acknowledged) = world.acknowledged[&name("a")];
        world.run_for(MS * 200);
        world.steps.clear();
        world.step = MS * 50;
        let died = world.now;
        world.crash(&owner);
        world.run_for(S * 2);
        let taken = world.since("a", died);
        assert!(taken.first().is_some_and(|s| s.from_seq >= acknowledged), "{seed}: {taken:?}");
        // Its own writes fail too.
        world.run_for(S);
        assert_eq!(world.running("a"), [replica]);
    }
}

pub(super) fn is_checkpoint(message: &Message) -> bool {
    matches!(message, Message::Checkpoint { .. })
}

fn newest(world: &World, at: &SessionId) -> Option<Position> {
    let runs = world.nodes[at].disk.runs.values();
    runs.flat_map(|run| &run.checkpoints).map(|(header, _)| header.position).max()
}

/// A commit that a full queue or a broken link has swallowed goes out again.
#[test]
fn a_commit_that_is_lost_on_its_way_is_sent_again() {
    let (mut world, owner, replica, _) = acknowledged(21, &Setup::default());
    world.faults.push(Fault { hits: is_checkpoint, fate: Fate::Lost, times: 1_000 });
    world.run_for(MS * 500);
    world.want(&owner, "a", Want::Pause);
    world.run_for(S);
    assert!(newest(&world, &owner) > newest(&world, &replica), "it was lost");
    world.faults.clear();
    world.run_for(S * 11);
    assert_eq!(newest(&world, &owner), newest(&world, &replica));
}

/// C5: without a replica only what the disk has taken is acknowledged.
#[test]
fn a_commit_that_nobody_has_stored_is_not_acknowledged() {
    let setup = Setup { durable: true, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(22, 1, &setup);
    world.goal = 100_000;
    world.forced = true;
    world.nodes.get_mut(&nodes[0]).unwrap().disk_full = true;
    world.start(&nodes[0], "a");
    world.run_for(S * 3);
    let claim = world.claim_of(&nodes[0], "a").unwrap();
    assert!(!claim.checkpointed && claim.floor.is_none(), "{claim:?}");
    world.nodes.get_mut(&nodes[0]).unwrap().disk_full = false;
    world.run_for(S * 3);
    let claim = world.claim_of(&nodes[0], "a").unwrap();
    assert!(claim.checkpointed && claim.floor.is_some(), "{claim:?}");
}

/// C5: a checkpoint that comes again while it is being written is not held yet.
#[test]
fn a_checkpoint_is_acknowledged_once_it_is_written_and_not_before() {
    let (mut world, owner, replica, _) = acknowledged(23, &Setup::default());
    world.record_messages = true;
    world.run_for(S);
    let sent = world.sent.iter().rev().find_map(|(_, from, to, message)| match message {
        Message::Checkpoint { .. } if *from == owner && *to == replica => Some(message.clone()),
        _ => None,
    });
    let Some(Message::Checkpoint { claim, spec, mut header, state }) = sent else {
        panic!("checkpoints are sent");
    };
    header.position.seq += 1_000_000;
    let position = header.position;
    let again = Message::Checkpoint { claim, spec, header, state };
    world.nodes.get_mut(&replica).unwrap().disk_full = true;
    for _ in 0..2 {
        let message = again.clone();
        world.give(&replica, Event::Message { from: owner.clone(), message });
    }
    world.run_for(S);
    let replies: Vec<bool> = world
        .sent
        .iter()
        .filter_map(|(_, from, _, message)| match message {
            Message::CheckpointReply { position: of, result, .. }
                if *from == replica && *of == position =>
            {
                Some(result.is_ok())
            }
            _ => None,
        })
        .collect();
    assert_eq!(replies, [false]);
}

/// C5: what a replica could not store it does not have, however often it is given it.
#[test]
fn a_replica_with_a_full_disk_acknowledges_nothing() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(22, 2, &setup);
    world.goal = 100_000;
    world.steps.insert(name("a"), S * 20);
    world.start(&nodes[0], "a");
    world.run_for(S);
    let owner = world.runner("a");
    let replica = nodes.iter().find(|node| **node != owner).unwrap();
    world.nodes.get_mut(replica).unwrap().disk_full = true;
    world.record_messages = true;
    world.run_for(S * 32);
    let given = |(.., m): &&(_, _, _, Message)| matches!(m, Message::Checkpoint { .. });
    assert!(world.sent.iter().filter(given).count() > 2, "it is given it again and again");
    assert_eq!(world.acknowledged.get(&name("a")), None);
    assert!(!world.claim_of(&owner, "a").unwrap().checkpointed);
    world.nodes.get_mut(replica).unwrap().disk_full = false;
    world.run_for(S * 5);
    assert_eq!(world.acknowledged[&name("a")].1, 1);
    assert!(world.disk_of(replica).runs.values().any(|run| !run.checkpoints.is_empty()));
}

/// C1: a read that fails once (EIO, too many open files) is not the loss of what is on the disk.
#[test]
fn a_read_that_fails_once_does_not_make_a_replica_forget() {
    let setup = Setup { durable: true, ..Setup::default() };
    let (mut world, owner, others) = World::owned(3, 2, &setup);
    let (_, acknowledged) = world.acknowledged[&name("a")];
    let runs = world.nodes[&others[0]].disk.runs.values();
    let held = runs.flat_map(|run| &run.checkpoints).map(|(header, _)| header.clone());
    let header = held.max_by_key(|header| header.position).unwrap();
    assert!(header.position.seq >= acknowledged);
    world.give(&others[0], Event::Loaded { header, state: None, failed: true });
    // Before the next step has been committed.
    let died = world.now;
    world.crash(&owner);
    world.run_for(S * 5);
    let after = world.since("a", died);
    assert!(after.first().is_some_and(|s| s.from_seq >= acknowledged), "{after:?}");
}

/// A replica that was told to keep its copy no longer has none, whatever it acknowledged before: when the one that took
/// its place has gone too, it gets another, and a drain to it does not take it for sealed.
#[test]
fn a_replica_that_was_told_to_forget_counts_as_a_holder_no_more() {
    let mut seen = 0;
    for (seed, dies, drains) in (0..40)
        .flat_map(|seed| [(true, true), (true, false), (false, true)].map(|(a, b)| (seed, a, b)))
    {
        let (mut world, nodes) = World::cluster(seed, 2);
        world.goal = 1_000_000;
        let task = format!("t{seed}");
        world.start(&nodes[0], &task);
        world.run_for(S * 2);
        let owner = world.runner(&task);
        let old = nodes.iter().find(|node| **node != owner).unwrap();
        world.want(&owner, &task, Want::Pause);
        world.run_for(S);
        let newcomer = world.boot("x", Setup::default(), Disk::default());
        world.run_for(S * 5);
        if world.claim_of(&owner, &task).unwrap().replicas != [newcomer.node.clone()] {
            continue;
        }
        seen += 1;
        let (_, acknowledged) = world.acknowledged[&name(&task)];
        if !dies {
            world.drain(&newcomer, S * 25);
            world.run_until(S * 30, "drained", |w| w.nodes[&newcomer].drained.is_some());
            world.give(&newcomer, Event::Leave);
            world.run_for(S);
        }
        world.crash(&newcomer);
        world.run_for(S * 15);
        if drains {
            world.drain(&owner, S * 25);
            world.run_until(S * 30, "drained", |w| w.nodes[&owner].drained.is_some());
            world.give(&owner, Event::Leave);
            world.run_for(S);
        }
        world.crash(&owner);
        world.run_for(S * 80);
        world.want(old, &task, Want::Run);
        world.run_for(S * 5);
        assert_eq!(world.runner(&task), *old, "seed {seed}");
        let last = world.stretches.last().unwrap();
        assert!(last.from_seq >= acknowledged, "{acknowledged} steps were acknowledged: {last:?}");
    }
    assert!(seen >= 9, "{seen}");
}
