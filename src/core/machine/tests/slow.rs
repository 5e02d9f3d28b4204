//! Disks, loops and peers that take their time: what is late is not lost.

use std::time::Duration;

use bytes::Bytes;

use super::rules_claims::short;
use super::world::{Disk, Fate, Fault, MS, Setup, World, name};
use crate::core::claim::{Claim, Phase, Want};
use crate::core::ids::SessionId;
use crate::core::io::{Event, Notice};
use crate::core::message::Message;
use crate::core::record::NodeState;

const S: Duration = Duration::from_secs(1);

/// A claim of another session that makes the owner mint above it: it had the name, and let go of it.
fn released_above(world: &World, owner: &SessionId, other: &SessionId) -> Event {
    let mine = world.claim_of(owner, "a").unwrap().clone();
    let claim = Claim {
        session: other.clone(),
        number: 1,
        version: 1,
        epoch: mine.epoch.next(),
        phase: Phase::Released,
        ..mine
    };
    Event::Claims { of: other.clone(), changes: vec![(name("a"), Some(claim))] }
}

/// What a loop says when it ends is about the epoch it knows: a re-mint that it has not heard of does
/// not make its end unsaid.
#[test]
fn an_end_that_a_remint_overtakes_still_counts() {
    for seed in 0..3 {
        let (mut world, nodes) = World::cluster(seed, 3);
        world.goal = 50;
        world.ends_late = MS * 20;
        world.start(&nodes[0], "a");
        world.run_until(S * 5, "its loop has ended", |w| {
            w.stretches.first().is_some_and(|stretch| stretch.end.is_some())
        });
        let owner = world.stretches[0].session.clone();
        let other = nodes.iter().find(|node| **node != owner).unwrap().clone();
        let before = world.claim_of(&owner, "a").unwrap().epoch;
        world.give(&owner, released_above(&world, &owner, &other));
        assert!(world.claim_of(&owner, "a").unwrap().epoch > before, "it has been minted above");
        world.run_for(S * 3);
        for node in &nodes {
            assert_eq!(world.owner(node, "a").unwrap().phase, Phase::Finished, "seed {seed}");
        }
        assert_eq!(world.stretches.len(), 1, "and nothing runs again");
    }
}

#[test]
fn a_stop_that_a_remint_overtakes_still_moves_the_task() {
    for seed in 0..3 {
        let (mut world, owner, others) = World::owned(seed, 3, &Setup::default());
        world.ends_late = MS * 20;
        world.drain(&owner, S * 10);
        world.run_until(S * 5, "its loop has ended", |w| w.running("a").is_empty());
        world.give(&owner, released_above(&world, &owner, &others[0]));
        world.run_for(S * 3);
        assert_ne!(world.runner("a"), owner, "seed {seed}");
        assert!(world.nodes[&owner].drained.is_some());
        world.assert_no_overlap();
    }
}

/// C4: the store answers in the end, and what it holds is not given up before.
#[test]
fn a_slow_disk_loses_no_checkpoint() {
    for seed in 0..3 {
        let (mut world, nodes) = World::cluster(seed, 3);
        world.goal = 100_000;
        for i in 0..6 {
            world.start(&nodes[0], &format!("t{i}"));
        }
        world.run_for(S * 2);
        world.reads_take = S * 12;
        let dead = nodes[0].clone();
        let lost: Vec<String> = (0..6)
            .map(|i| format!("t{i}"))
            .filter(|task| world.running(task) == [dead.clone()])
            .collect();
        assert!(!lost.is_empty());
        let before = world.now;
        world.crash(&dead);
        world.run_for(S * 40);
        for task in &lost {
            let again = world.since(task, before);
            assert_eq!(again.len(), 1, "seed {seed}: {again:?}");
            assert!(again[0].from_seq > 0, "seed {seed}: from its checkpoint");
        }
        for node in &nodes[1..] {
            assert_eq!(world.told(node, |n| matches!(n, Notice::StateLost { .. })), 0);
        }
    }
}

/// Rule 24: names that no node may take for its limits are kept by one, and not forgotten with their
/// dead owner.
#[test]
fn orphans_beyond_every_limit_are_kept_until_there_is_room() {
    let setup = Setup { kind_limit: Some(2), timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(5, 3, &setup);
    world.goal = 1_000_000;
    for i in 0..6 {
        world.start(&nodes[i % 3], &format!("t{i}"));
        world.run_for(MS * 200);
    }
    let running =
        |world: &World| (0..6).filter(|i| !world.running(&format!("t{i}")).is_empty()).count();
    assert_eq!(running(&world), 6);
    world.crash(&nodes[0]);
    // Longer than anything is said of the dead.
    world.run_for(S * 30);
    assert_eq!(running(&world), 4);
    let roomy = Setup { kind_limit: None, ..setup };
    for i in 0..2 {
        world.boot(&format!("m{i}"), roomy.clone(), Disk::default());
        world.run_for(S * 2);
    }
    for old in &nodes[1..] {
        world.drain(old, S * 5);
        world.run_for(S * 2);
        world.give(old, Event::Leave);
        world.run_for(S);
        world.crash(old);
        world.run_for(S * 3);
    }
    assert_eq!(running(&world), 6);
    world.assert_no_overlap();
}

/// DEPLOYS 2: where nobody can run a task, its last state still goes to a node that keeps it.
#[test]
fn what_is_released_is_sealed_to_a_replica_first() {
    let (mut world, owner, keeper) = World::with_a_keeper(6);
    world.drain(&owner, S * 5);
    world.run_until(S * 8, "drained", |w| w.nodes[&owner].drained.is_some());
    let stopped = world.stretches.last().unwrap();
    assert!(stopped.end.is_some() && stopped.to_seq % 1_000 != 0);
    let disk = world.disk_of(&keeper);
    let kept = disk.runs.values().flat_map(|run| &run.checkpoints);
    let newest = kept.map(|(header, _)| header.position.seq).max();
    assert_eq!(newest, Some(stopped.to_seq));
    let released = |n: &Notice| matches!(n, Notice::Released { replicas: 1, .. });
    assert_eq!(world.told(&owner, released), 1);
}

/// A cluster in which a drain has decided who gets "a", and the word of that meets a fault; the source, the
/// target, the third.
fn decided(seed: u64, fate: Fate) -> (World, SessionId, SessionId, SessionId) {
    let (mut world, owner, others) = World::owned(seed, 3, &Setup::default());
    let hits: fn(&Message) -> bool = |m| matches!(m, Message::Transferred { .. });
    world.faults.push(Fault { hits, fate, times: 1 });
    world.drain(&owner, S * 10);
    let target = |w: &World| match &w.claim_of(&owner, "a")?.phase {
        Phase::Transferred { to, .. } => Some(to.clone()),
        _ => None,
    };
    world.run_until(S * 5, "it has been decided", |w| target(w).is_some());
    let to = target(&world).unwrap();
    let third = others.into_iter().find(|node| *node != to).unwrap();
    (world, owner, to, third)
}

/// Rule 18: a target that lets go before it hears of the decision has not taken the task; the source
/// gives it to the next one.
#[test]
fn a_target_that_lets_go_before_it_hears_of_the_decision_has_not_taken_it() {
    let mut late = 0;
    for seed in 0..4 {
        let (mut world, owner, to, _) = decided(seed, Fate::Late(MS * 900));
        late += usize::from(world.faults.is_empty());
        world.drain(&to, S * 10);
        world.run_for(MS * 300);
        world.give(&to, Event::Leave);
        world.run_for(MS * 300);
        world.crash(&to);
        world.run_for(S * 5);
        let now = world.runner("a");
        assert!(now != owner && now != to, "seed {seed}");
        assert!(world.nodes[&owner].drained.is_some(), "seed {seed}");
        world.assert_no_overlap();
    }
    assert!(late > 0);
}

/// Rule 18: a source that dies once it has decided is not waited for, nor is a target that lives and has
/// let go of the task: whoever is left has it.
#[test]
fn a_task_whose_source_died_and_whose_target_let_go_is_taken_by_a_third() {
    let mut lost = 0;
    for seed in 0..4 {
        let (mut world, owner, to, third) = decided(seed, Fate::Lost);
        lost += usize::from(world.faults.is_empty());
        world.run_for(MS * 5);
        let decided = world.now;
        world.drain(&to, S * 60);
        world.crash(&owner);
        // Who drains is not dead before the silence floor has passed.
        world.run_for(S * 15);
        assert_eq!(world.runner("a"), third, "seed {seed}");
        assert!(world.nodes[&to].alive);
        assert!(world.since("a", decided).iter().all(|s| s.session == third), "seed {seed}");
        world.assert_no_overlap();
    }
    assert!(lost > 0);
}

/// Rule 23: who has a paused task says so to whoever comes, when the caller and the home are gone.
#[test]
fn a_paused_task_stays_paused_when_only_its_keeper_is_left_of_those_who_knew() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, _, others) = World::owned(7, 3, &setup);
    world.want(&others[0], "a", Want::Pause);
    world.run_for(S * 2);
    let paused = world.now;
    for (i, old) in others.iter().enumerate() {
        world.boot(&format!("m{i}"), setup.clone(), Disk::default());
        world.run_for(S * 2);
        world.crash(old);
        world.run_for(S * 15);
    }
    let last = world.boot("last", setup, Disk::default());
    world.run_for(S * 3);
    let keeper = world.owner(&last, "a").unwrap().session.clone();
    world.crash(&keeper);
    world.run_for(S * 15);
    assert!(world.since("a", paused).is_empty(), "nobody said that it may run");
    assert_eq!(world.owner(&last, "a").unwrap().phase, Phase::Paused);
}

/// Whoever waits for `run` is answered by the node that hands the task over.
#[test]
fn callers_are_answered_although_the_task_moves_on() {
    let (mut world, nodes) = World::cluster(8, 3);
    world.goal = 100_000;
    world.blocked = Some(|_, _, m| matches!(m, Message::Answers { .. }));
    let call = world.start(&nodes[0], "a");
    world.run_until(S * 10, "it runs unanswered", |w| !w.running("a").is_empty());
    let owner = world.runner("a");
    world.drain(&owner, S * 10);
    world.run_for(S * 3);
    assert_ne!(world.runner("a"), owner);
    assert!(world.nodes[&nodes[0]].replies[&call].is_ok());
}

/// A cluster in which "a" commits every two seconds a state of some length; its owner, its replica, the third.
fn long_steps(seed: u64, state_len: usize) -> (World, SessionId, SessionId, SessionId) {
    let (mut world, nodes) = World::cluster(seed, 3);
    world.goal = 100_000;
    world.state_len = state_len;
    world.step = S * 2;
    world.start(&nodes[0], "a");
    world.run_for(S * 5);
    assert!(world.acknowledged.contains_key(&name("a")));
    let (owner, replica, third) = world.roles("a");
    (world, owner, replica, third)
}

/// So long that it takes five seconds over a link.
const LARGE: usize = 8 << 20;

/// DEPLOYS 2: whoever is offered a large state is given the time that it takes.
#[test]
fn a_large_state_is_sealed_for_as_long_as_it_takes() {
    let (mut world, owner, replica, third) = long_steps(11, LARGE);
    let state = |message: &Message| matches!(message, Message::Checkpoint { .. });
    world.faults.push(Fault { hits: state, fate: Fate::Late(S * 5), times: usize::MAX });
    world.record_messages = true;
    // Who has it already is not given it.
    world.give(&replica, Event::Cordon(true));
    world.run_for(MS * 20);
    let seq = world.acknowledged[&name("a")].1;
    world.drain(&owner, S * 25);
    world.run_for(S * 12);
    let moved = world.stretches.last().unwrap();
    assert!(moved.session == third && moved.from_seq >= seq, "{moved:?}");
    let withdrawn = |m: &Message| matches!(m, Message::Withdraw { .. });
    assert!(!world.sent.iter().any(|(.., m)| withdrawn(m)), "no offer was taken back");
    assert_eq!(world.told(&owner, |n| matches!(n, Notice::Moved { .. })), 1);
}

/// Rule 20: nor does a taker give up a state that is on its way.
#[test]
fn a_large_state_is_fetched_for_as_long_as_it_takes() {
    let (mut world, owner, replica, third) = long_steps(12, LARGE);
    let state = |message: &Message| matches!(message, Message::StateData { .. });
    world.faults.push(Fault { hits: state, fate: Fate::Late(S * 5), times: usize::MAX });
    world.record_messages = true;
    // Who holds it takes nothing.
    world.give(&replica, Event::Cordon(true));
    world.run_for(MS * 20);
    let seq = world.acknowledged[&name("a")].1;
    world.crash(&owner);
    world.run_for(S * 8);
    let taken = world.stretches.last().unwrap();
    assert!(taken.session == third && taken.from_seq >= seq, "{taken:?}");
    let asked = world.sent.iter().filter(|(.., m)| matches!(m, Message::GetState { .. }));
    assert_eq!(asked.count(), 1, "it is asked for once");
}

/// H4: bytes that are not what their header says are as good as none.
#[test]
fn a_state_that_does_not_fit_its_header_is_not_started_from() {
    for wrong in [Bytes::from_static(b"anything"), Bytes::new(), Bytes::from(vec![0; 9])] {
        let (mut world, owner, replica, third) = long_steps(13, 8);
        world.give(&replica, Event::Cordon(true));
        world.run_for(MS * 20);
        world.record_messages = true;
        world.blocked = Some(|_, _, message| matches!(message, Message::StateData { .. }));
        world.crash(&owner);
        let asks = |w: &World| w.sent.iter().any(|(.., m)| matches!(m, Message::GetState { .. }));
        world.run_until(S * 5, "it is asked for", asks);
        let newest = world.nodes[&replica].disk.runs.values().flat_map(|run| &run.checkpoints);
        let header = newest.map(|(header, _)| header).max_by_key(|h| h.position).unwrap().clone();
        let message = Message::StateData { header: header.clone(), state: Some(wrong) };
        world.give(&third, Event::Message { from: replica.clone(), message });
        assert!(world.running("a").is_empty(), "it was started from what is not its state");
        world.blocked = None;
        world.run_for(S * 10);
        assert_eq!(world.stretches.last().unwrap().from_seq, header.position.seq);
    }
}

/// Rule 14: who holds a data directory has outlived all that held it, and waits for none of them.
#[test]
fn a_restarted_node_does_not_wait_for_its_own_predecessor() {
    let setup = Setup { durable: true, known_dead: false, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(14, 3, &setup);
    world.run_for(S * 2);
    world.crash(&nodes[0]);
    let disk = world.disk_of(&nodes[0]);
    let begun = world.now;
    let back = world.boot(nodes[0].node.as_str(), setup, disk);
    world.run_until(S * 3, "it is up", |w| w.nodes[&back].machine.state() == NodeState::Up);
    assert!(world.now.since(begun) < S * 2, "{:?}", world.now.since(begun));
}
