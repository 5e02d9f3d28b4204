//! Late in a handover: the target dies after the decision, lets go, or has not begun; what is released is
//! on its way to a replica. Nothing acknowledged is lost, and somebody runs it (Rule 18, H5).

use super::{S, assert_moved, incoming, is_offer, target_of};
use crate::core::claim::{Claim, Phase};
use crate::core::ids::SessionId;
use crate::core::io::{Action, Event, Notice};
use crate::core::machine::tests::world::{Disk, MS, Setup, Trip, World, name};
use crate::core::message::Message;

/// The target is told of the decision.
fn tells(_: &SessionId, _: bool, action: &Action) -> bool {
    matches!(action, Action::Send { message: Message::Transferred { .. }, .. })
}

fn phase(world: &World, of: &SessionId) -> Option<Phase> {
    world.claim_of(of, "a").map(|claim| claim.phase.clone())
}

/// Where "a" ran last, and from which step.
fn last(world: &World) -> (SessionId, u64) {
    let stretch = world.stretches.iter().rfind(|s| s.name == name("a")).unwrap();
    (stretch.session.clone(), stretch.from_seq)
}

/// H5. The next target settles, and finds the state, under a claim that is `Claimed`. Its source takes that for
/// taken and forgets the name; everybody else waits for the source, as long as it lives.
#[test]
fn a_next_target_that_dies_before_it_has_begun_is_not_the_last_one() {
    let (mut world, owner, _) = World::owned(14, 5, &Setup::default());
    // Something else keeps the source there.
    let mut kept = false;
    for i in 0..30 {
        let task = format!("b{i}");
        world.steps.insert(name(&task), S * 600);
        world.start(&owner, &task);
        world.run_for(MS * 200);
        kept |= world.running(&task) == [owner.clone()];
    }
    assert!(kept);
    let first = target_of(&world, &owner);
    world.trip = Some(Trip { task: "a", at: tells, victim: Some(first.clone()) });
    world.reads_take = S;
    world.drain(&owner, S * 300);
    world.run_until(S * 5, "the first is dead", |w| w.trip.is_none());
    let claims = |w: &World| {
        let mut living = w.living().into_iter();
        living.find(|node| *node != owner && phase(w, node) == Some(Phase::Claimed))
    };
    world.run_until(S * 10, "another claims it", |w| claims(w).is_some());
    let second = claims(&world).unwrap();
    world.run_for(MS * 100);
    assert_eq!(phase(&world, &second), Some(Phase::Claimed), "it is still looking for the state");
    world.crash(&second);
    world.reads_take = MS / 10;
    world.run_until(S * 60, "it goes on elsewhere", |w| w.running("a").len() == 1);
    assert_moved(&world);
}

/// A source, whose only replica is the only node that could run its "a", and a node that can only keep it.
fn with_one_target(replica: bool) -> (World, SessionId, SessionId, SessionId) {
    for seed in 0..50 {
        let (mut world, nodes) = World::cluster(seed, 2);
        let other = Setup { kinds: vec![("other", 1)], ..Setup::default() };
        let keeper = world.boot("k", other, Disk::default());
        world.run_for(S * 3);
        world.goal = 100_000;
        world.start(&nodes[0], "a");
        world.run_for(S * 2);
        let owner = world.runner("a");
        let target = nodes.into_iter().find(|node| *node != owner).unwrap();
        let replicas = &world.claim_of(&owner, "a").unwrap().replicas;
        if (*replicas == [target.node.clone()]) == replica {
            return (world, owner, target, keeper);
        }
    }
    panic!("no seed");
}

/// Rule 18: "what is released is sealed to a replica first, where one is up". Nor is what was decided for
/// somebody who has died.
#[test]
fn what_was_decided_for_a_dead_target_is_on_a_replica_before_it_is_released() {
    let (mut world, owner, target, keeper) = with_one_target(true);
    world.trip = Some(Trip { task: "a", at: tells, victim: Some(target.clone()) });
    world.drain(&owner, S * 25);
    world.run_until(S * 20, "drained", |w| w.nodes[&owner].drained.is_some());
    assert!(world.trip.is_none(), "the target died");
    let (_, acknowledged) = world.acknowledged[&name("a")];
    assert!(acknowledged > 10);
    let holds = world.nodes[&keeper].disk.runs.values().any(|run| !run.checkpoints.is_empty());
    let bare = world.told(&owner, |n| matches!(n, Notice::Released { replicas: 0, .. }));
    world.give(&owner, Event::Leave);
    world.run_for(S);
    world.crash(&owner);
    let newcomer = world.boot("n9", Setup::default(), Disk::default());
    world.run_for(S * 60);
    assert_eq!(
        (holds, bare, world.running("a")),
        (true, 0, vec![newcomer]),
        "one node has failed, one has left, and {acknowledged} acknowledged steps are gone"
    );
    assert!(last(&world).1 >= acknowledged);
}

/// A second signal, or a spent budget: "a decision that its target has not acknowledged is safe: the target
/// has the state" is not so of a target that is gone.
#[test]
fn a_second_signal_loses_nothing_that_was_decided_for_a_dead_target() {
    for seed in 0..20 {
        let (mut world, owner, others) = World::owned(seed, 3, &Setup::default());
        let target = target_of(&world, &owner);
        if world.claim_of(&owner, "a").unwrap().replicas != [target.node.clone()] {
            continue;
        }
        let third = others.into_iter().find(|node| *node != target).unwrap();
        world.trip = Some(Trip { task: "a", at: tells, victim: Some(target.clone()) });
        world.drain(&owner, S * 25);
        while world.trip.is_some() {
            world.run_for(MS / 10);
        }
        // Offers to the third are lost, or late; nothing else is.
        world.blocked = Some(|_, _, message| is_offer(message));
        world.run_for(MS * 300);
        assert!(world.nodes[&owner].machine.members().is_gone(&target));
        world.give(&owner, Event::DrainNow);
        while world.nodes[&owner].drained.is_none() {
            world.run_for(MS / 10);
        }
        let (_, acknowledged) = world.acknowledged[&name("a")];
        world.give(&owner, Event::Leave);
        while world.nodes[&owner].left.is_none() {
            world.run_for(MS / 10);
        }
        world.crash(&owner);
        world.blocked = None;
        world.run_for(S * 60);
        assert_eq!(world.running("a"), [third], "{:?}", phase(&world, &owner));
        assert!(last(&world).1 >= acknowledged, "{:?}, {acknowledged}", last(&world));
        return;
    }
    panic!("no seed");
}

/// Rule 18. The replica that was to have it dies; another one is up.
#[test]
fn what_was_to_go_to_a_replica_that_has_died_goes_to_another_one() {
    let (mut world, nodes) = World::cluster(48, 1);
    let owner = nodes[0].clone();
    let other = Setup { kinds: vec![("other", 1)], ..Setup::default() };
    for node in ["n1", "n2"] {
        world.boot(node, other.clone(), Disk::default());
    }
    world.run_for(S * 4);
    world.goal = 100_000;
    world.start(&owner, "a");
    world.run_for(S * 2);
    let (_, replica, third) = world.roles("a");
    let (_, acknowledged) = world.acknowledged[&name("a")];
    world.blocked = Some(|_, _, m| matches!(m, Message::CheckpointReply { .. }));
    world.run_for(MS * 200);
    world.drain(&owner, S * 60);
    world.run_for(MS * 200);
    assert!(world.running("a").is_empty());
    assert_ne!(phase(&world, &owner), Some(Phase::Released), "it waits for its replica");
    world.crash(&replica);
    world.blocked = None;
    world.run_until(S * 30, "drained", |w| w.nodes[&owner].drained.is_some());
    let holds = world.nodes[&third].disk.runs.values().any(|run| !run.checkpoints.is_empty());
    let bare = world.told(&owner, |n| matches!(n, Notice::Released { replicas: 0, .. }));
    assert_eq!((holds, bare), (true, 0), "{acknowledged} acknowledged steps are gone");
}

/// Rule 18: who gives a task stays until its taker has begun. A taker that drains first, and is still giving the
/// state away, has not.
#[test]
fn a_taker_that_lets_go_of_what_it_has_not_begun_has_not_taken_it() {
    let (mut world, owner, others) = World::owned(12, 4, &Setup::default());
    let target = target_of(&world, &owner);
    world.reads_take = S * 2;
    world.drain(&owner, S * 60);
    world.run_until(S * 10, "it is decided", |w| {
        matches!(phase(w, &owner), Some(Phase::Transferred { .. }))
    });
    world.run_for(MS * 50);
    assert_eq!(incoming(&world), std::slice::from_ref(&target));
    // Its state is long, or the link is slow: it takes a while to get to the next one.
    world.blocked = Some(|_, _, m| matches!(m, Message::Checkpoint { .. }));
    world.drain(&target, S * 60);
    world.run_for(MS * 1_200);
    let moved = world.told(&owner, |n| matches!(n, Notice::Moved { .. }));
    let drained = world.nodes[&owner].drained.is_some();
    assert!(!world.stretches.iter().any(|s| s.session == target), "it has not begun");
    world.blocked = None;
    world.reads_take = MS / 10;
    world.run_for(S * 20);
    assert_moved(&world);
    assert!(others.contains(&world.runner("a")));
    assert_eq!((moved, drained), (0, false), "its source is done with it");
}

/// Rules 2 and 18: the header of a next target, which settles under a claim of its own, overtakes that claim. It
/// has not let go of anything, and its source does not give up on it.
#[test]
fn a_header_that_overtakes_the_claim_of_a_next_target_does_not_undo_the_decision() {
    let (mut world, owner, _) = World::owned(14, 4, &Setup::default());
    let first = target_of(&world, &owner);
    world.trip = Some(Trip { task: "a", at: tells, victim: Some(first.clone()) });
    world.drain(&owner, S * 25);
    let claims = |w: &World| {
        let mut living = w.living().into_iter();
        living.find(|node| *node != owner && phase(w, node) == Some(Phase::Claimed))
    };
    // The steps of the world are longer than a message takes.
    for _ in 0..100_000 {
        if claims(&world).is_some() {
            break;
        }
        world.run_for(MS / 20);
    }
    assert!(world.trip.is_none(), "the first is dead");
    let second = claims(&world).unwrap();
    let mut source = world.nodes[&owner].machine.clone();
    let is_decided =
        |phase: &Phase| matches!(phase, Phase::Transferred { to, .. } if *to == second);
    assert!(phase(&world, &owner).as_ref().is_some_and(is_decided));
    let (state, version, watermark, released) = world.nodes[&second].header.clone();
    let heard =
        Event::Heard { from: second.clone(), state, version, watermark, released, echoed: None };
    source.handle(world.clock(), heard);
    let mine = source.view().get(&name("a"), &owner).unwrap();
    assert!(is_decided(&mine.phase), "released, and its report says so");
    let offers = std::iter::from_fn(|| source.poll())
        .filter(|a| matches!(a, Action::Send { message: Message::Offer { .. }, .. }));
    assert_eq!(offers.count(), 0, "offered to another, while the second settles");
}

/// Rule 18: as long as the target of a decision lives nobody else takes the name over, although its own claim
/// has not been heard of and the source is dead.
#[test]
fn what_a_dead_source_has_decided_is_its_targets_as_long_as_that_lives() {
    let (mut world, owner, others) = World::owned(21, 3, &Setup::default());
    let (target, third) = (&others[0], &others[1]);
    let claim = world.claim_of(&owner, "a").unwrap().clone();
    let next = claim.epoch.next();
    let phase = Phase::Transferred { to: target.clone(), epoch: next };
    let decided = Claim { phase, number: 1_000, ..claim };
    let changes = vec![(name("a"), Some(decided))];
    // The target knows nothing of it, and takes nothing over.
    world.give(target, Event::Cordon(true));
    world.run_for(MS * 100);
    world.crash(&owner);
    world.give(third, Event::Claims { of: owner, changes });
    let died = world.now;
    world.run_for(S * 15);
    assert!(world.since("a", died).is_empty(), "its target lives");
    world.crash(target);
    world.run_for(S * 15);
    let after = world.since("a", died);
    assert!(after.len() == 1 && after[0].session == *third, "{after:?}");
    assert!(after[0].epoch > next, "{after:?}");
}
