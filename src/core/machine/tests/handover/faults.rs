//! A message is lost, a process dies, a path is cut: one copy goes on, with its state (Rule 18, H1 to H6).

use super::{
    S, assert_moved, incoming, is_checkpoint_reply, is_offer, is_offer_reply, is_taken,
    is_transferred, target_of,
};
use crate::core::claim::Phase;
use crate::core::ids::SessionId;
use crate::core::io::{Action, Event, Notice};
use crate::core::machine::tests::world::{Disk, Fate, Fault, MS, Setup, Trip, World, name};
use crate::core::message::Message;
use crate::core::record::NodeState;

#[test]
fn any_message_of_a_handover_may_be_lost_doubled_or_late() {
    type Rule = fn(&Message) -> bool;
    let messages: [(&str, Rule); 5] = [
        ("Offer", is_offer),
        ("OfferReply", is_offer_reply),
        ("CheckpointReply", is_checkpoint_reply),
        ("Transferred", is_transferred),
        ("Taken", is_taken),
    ];
    let (world, owner, _) = World::owned(1, 3, &Setup::default());
    for (what, hits) in messages {
        for fate in [Fate::Lost, Fate::Twice, Fate::Late(MS * 700), Fate::Late(S * 3)] {
            for times in [1, 3] {
                let mut world = world.clone();
                world.faults.push(Fault { hits, fate, times });
                if what == "Taken" {
                    // Said only to who asks again.
                    let (hits, fate) = (is_transferred as Rule, Fate::Twice);
                    world.faults.push(Fault { hits, fate, times: 1 });
                }
                world.drain(&owner, S * 25);
                world.run_until(S * 25, &format!("drained; {what} {fate:?}"), |w| {
                    w.nodes[&owner].drained.is_some()
                });
                world.run_for(S * 5);
                assert_moved(&world);
                assert_ne!(world.running("a")[0], owner, "{what} {fate:?} x{times}");
                let struck = world.faults.iter().all(|fault| fault.times < times);
                assert!(struck, "no {what} was there to be {fate:?}");
            }
        }
    }
}

/// The points of a handover, as (the acting session, whether it runs the task, its action).
type Point = fn(&SessionId, bool, &Action) -> bool;

/// The target is told of the decision.
fn tells(_: &SessionId, _: bool, action: &Action) -> bool {
    matches!(action, Action::Send { message: Message::Transferred { .. }, .. })
}

const POINTS: [(&str, Point); 8] = [
    ("offer", |_, _, a| matches!(a, Action::Send { message: Message::Offer { .. }, .. })),
    ("accept", |_, _, a| matches!(a, Action::Send { message: Message::OfferReply { .. }, .. })),
    ("stop", |_, _, a| matches!(a, Action::Stop { .. })),
    ("seal", |_, runs, a| {
        !runs && matches!(a, Action::Send { message: Message::Checkpoint { .. }, .. })
    }),
    ("sealed", |_, _, a| {
        matches!(a, Action::Send { message: Message::CheckpointReply { .. }, .. })
    }),
    (
        "decide",
        |_, _, a| matches!(a, Action::Publish(claim) if matches!(claim.phase, Phase::Transferred { .. })),
    ),
    ("tell", tells),
    ("run", |_, _, a| matches!(a, Action::Start { .. })),
];

#[test]
fn killed_at_any_point_of_a_handover_at_either_end_one_copy_goes_on() {
    let mut reached = std::collections::BTreeSet::new();
    for seed in 0..3 {
        for known_dead in [true, false] {
            let setup = Setup { known_dead, ..Setup::default() };
            let (mut world, owner, others) = World::owned(seed, 4, &setup);
            // Other load makes the target another node than the replica.
            for i in 0..seed * 2 {
                world.start(&others[0], &format!("other{i}"));
                world.run_for(MS * 100);
            }
            let target = target_of(&world, &owner);
            for (point, at) in POINTS {
                for victim in [&owner, &target] {
                    let mut world = world.clone();
                    world.trip = Some(Trip { task: "a", at, victim: Some(victim.clone()) });
                    world.drain(&owner, S * 25);
                    world.run_for(S);
                    if world.trip.is_none() {
                        reached.insert(point);
                    } else {
                        // The target was its replica: there is nothing left to seal.
                        assert!(matches!(point, "seal" | "sealed"), "{point} is reached");
                    }
                    let what = format!("seed {seed}: {victim} killed at {point}");
                    // Known dead is void for a session that drains (Rule 5): T + K + sigma (H5), and a
                    // round for the evidence.
                    let fast = known_dead && *victim == target;
                    let limit = if fast { S * 2 } else { S * 13 };
                    world.run_until(limit, &what, |w| w.running("a").len() == 1);
                    world.run_for(S * 4);
                    world.assert_no_overlap();
                    assert_eq!(world.running("a").len(), 1, "{what}");
                    let of: Vec<_> =
                        world.stretches.iter().filter(|s| s.name == name("a")).collect();
                    let mut epochs: Vec<_> = of.iter().map(|s| s.epoch).collect();
                    epochs.sort();
                    epochs.dedup();
                    assert_eq!(epochs.len(), of.len(), "{what}: H3");
                    let before = of[0];
                    for taken in &of[1..] {
                        assert!(taken.from_seq + 2 >= before.to_seq, "{what}: {taken:?}");
                    }
                    assert!(
                        of[1..].iter().all(|s| s.session != owner),
                        "{what}: a draining source runs it again (H2)"
                    );
                }
            }
        }
    }
    assert_eq!(reached.len(), POINTS.len(), "{reached:?}");
}

#[test]
fn the_target_of_a_dead_source_takes_over_first_and_keeps_the_state() {
    let decide = POINTS.iter().find(|(point, _)| *point == "decide").unwrap().1;
    for decided in [true, false] {
        let (mut world, owner, _) = World::owned(13, 4, &Setup::default());
        let target = target_of(&world, &owner);
        if decided {
            // The decision was gossiped, its message lost with the source.
            world.faults.push(Fault { hits: is_transferred, fate: Fate::Lost, times: 100 });
        } else {
            world.trip = Some(Trip { task: "a", at: decide, victim: Some(owner.clone()) });
        }
        world.drain(&owner, S * 25);
        world.run_until(S * 2, "stopped", |w| w.running("a").is_empty());
        world.run_for(MS * 20);
        assert!(world.faults.iter().all(|fault| fault.times < 100), "no decision was lost");
        assert!(world.trip.is_none(), "the source did not die deciding");
        world.crash(&owner);
        world.faults.clear();
        world.run_for(S * 13);
        assert_moved(&world);
        assert_eq!(world.running("a"), [target]);
    }
}

/// Decided, and the target is gone: so is the next one, before it has said a word or after. The task goes
/// to the third, and where there is none it is released, at once.
#[test]
fn after_a_decision_any_number_of_targets_may_die() {
    for (n, answers) in [(3, false), (3, true), (4, false), (4, true)] {
        let (mut world, owner, _) = World::owned(14, n, &Setup::default());
        let first = target_of(&world, &owner);
        world.record_messages = true;
        world.trip = Some(Trip { task: "a", at: tells, victim: Some(first.clone()) });
        world.drain(&owner, S * 25);
        let offered_again = |w: &World| {
            let offers = w.sent.iter().filter(|(_, from, _, m)| *from == owner && is_offer(m));
            offers.map(|(_, _, to, _)| to).find(|to| **to != first).cloned()
        };
        let answered = |w: &World, second: &SessionId| {
            let mut sent = w.sent.iter();
            sent.any(|(_, from, _, m)| from == second && is_offer_reply(m))
        };
        // The steps of the world are longer than a message takes.
        while !offered_again(&world).is_some_and(|second| !answers || answered(&world, &second)) {
            world.run_for(MS / 10);
        }
        let second = offered_again(&world).unwrap();
        assert_eq!(answered(&world, &second), answers);
        world.crash(&second);
        world.run_until(S * 3, "drained", |w| w.nodes[&owner].drained.is_some());
        world.run_for(S * 5);
        world.assert_no_overlap();
        let running = world.running("a");
        assert_eq!(running.len(), n - 3, "{answers}: {running:?}");
        assert!(!running.contains(&owner), "H2");
        if n == 3 {
            let released = world.claim_of(&owner, "a").unwrap().phase.clone();
            assert_eq!(released, Phase::Released, "{answers}");
        }
    }
}

/// The only one who could have it has died with the decision, and its replacement is joining: the source keeps the
/// name for that one, and does not go.
#[test]
fn after_a_decision_for_the_dead_the_name_waits_for_one_that_joins() {
    for seed in 0..4 {
        let (mut world, owner, others) = World::owned(seed, 2, &Setup::default());
        let (first, begun) = (&others[0], world.now);
        world.trip = Some(Trip { task: "a", at: tells, victim: Some(first.clone()) });
        let newcomer = world.boot("n9", Setup::default(), Disk::default());
        world.run_for(MS * 20);
        assert_eq!(world.nodes[&newcomer].machine.state(), NodeState::Joining);
        world.drain(&owner, S * 60);
        world.run_until(S * 50, "drained", |w| w.nodes[&owner].drained.is_some());
        assert!(world.trip.is_none(), "seed {seed}: it was decided");
        world.give(&owner, Event::Leave);
        world.crash(&owner);
        world.run_for(S * 3);
        assert_eq!(world.runner("a"), newcomer, "seed {seed}");
        assert_moved(&world);
        let said = world.told(&owner, |n| matches!(n, Notice::Released { .. }));
        assert_eq!(said, 0, "seed {seed}: {:?}", world.since("a", begun));
    }
}

/// Decided, the target is gone, and nobody else can keep the state: it is free for whoever can, later.
#[test]
fn after_a_decision_a_state_that_nobody_can_keep_is_released() {
    let (mut world, owner, others) = World::owned(14, 4, &Setup::default());
    let first = target_of(&world, &owner);
    world.trip = Some(Trip { task: "a", at: tells, victim: Some(first.clone()) });
    world.drain(&owner, S * 25);
    while world.trip.is_some() {
        world.run_for(MS / 10);
    }
    for node in others.iter().filter(|node| **node != first) {
        world.nodes.get_mut(node).unwrap().disk_full = true;
    }
    world.run_until(S * 5, "drained", |w| w.nodes[&owner].drained.is_some());
    assert_eq!(world.claim_of(&owner, "a").unwrap().phase, Phase::Released);
    for node in world.nodes.values_mut() {
        node.disk_full = false;
    }
    world.run_until(S * 20, "runs again", |w| w.running("a").len() == 1);
    assert_moved(&world);
}

#[test]
fn a_second_offer_settles_like_any_claim() {
    let (mut world, owner, _) = World::owned(14, 4, &Setup::default());
    let target = target_of(&world, &owner);
    world.record_messages = true;
    world.trip = Some(Trip {
        task: "a",
        at: |_, _, a| matches!(a, Action::Send { message: Message::Transferred { .. }, .. }),
        victim: Some(target.clone()),
    });
    world.drain(&owner, S * 25);
    world.run_for(S * 5);
    assert!(world.trip.is_none(), "the first target is dead");
    assert_moved(&world);
    let second = world.running("a")[0].clone();
    assert_ne!(second, target);
    let asked = world
        .sent
        .iter()
        .any(|(_, from, _, m)| *from == second && matches!(m, Message::Ask { .. }));
    assert!(asked, "settling is waived for a first offer only");
    assert!(world.nodes[&owner].drained.is_some());
}

#[test]
fn a_cut_target_aborts_before_the_task_stops() {
    let (mut world, owner, others) = World::owned(15, 4, &Setup::default());
    let target = target_of(&world, &owner);
    world.cut_both(&owner, &target);
    for other in others.iter().filter(|other| **other != target) {
        world.cut_both(other, &target);
    }
    let drained = world.now;
    world.drain(&owner, S * 25);
    world.run_for(S * 5);
    assert_moved(&world);
    assert_ne!(world.running("a")[0], target);
    let moved = world.stretches.last().unwrap();
    assert!(moved.start.since(drained) < S * 3, "{moved:?}");
    assert!(world.gaps("a").iter().all(|gap| *gap < MS * 50), "H6: {:?}", world.gaps("a"));
}

/// Rule 18: a target that was given up, and does not hear of it, does not stand by for ever.
#[test]
fn an_accepted_offer_whose_withdrawal_is_lost_is_let_go() {
    let mut lost = 0;
    for seed in 0..4 {
        let (mut world, owner, others) = World::owned(seed, 4, &Setup::default());
        // Other load makes the target another node than the replica.
        for i in 0..seed * 2 {
            world.start(&others[0], &format!("other{i}"));
            world.run_for(MS * 100);
        }
        let target = target_of(&world, &owner);
        world.faults.push(Fault {
            hits: |m| matches!(m, Message::Withdraw { .. }),
            fate: Fate::Lost,
            times: 1,
        });
        // The sealed state never gets there, so the owner tries another.
        world.nodes.get_mut(&target).unwrap().disk_full = true;
        world.blocked =
            Some(|_, _, m| matches!(m, Message::CheckpointReply { result: Err(_), .. }));
        world.drain(&owner, S * 25);
        world.run_for(S * 10);
        assert_moved(&world);
        lost += usize::from(world.faults.is_empty());
        assert_eq!(incoming(&world), [], "seed {seed}");
    }
    assert!(lost > 0, "no withdrawal was lost");
}

#[test]
fn after_a_visible_gap_no_step_starts_before_an_echo_sent_after_it() {
    let (paused, owner, others) = World::owned(18, 3, &Setup::default());
    // A short pause is no gap: the control.
    for (pause, goes_on) in [(S * 2, true), (S * 8, false)] {
        let mut world = paused.clone();
        world.split(std::slice::from_ref(&owner), &others);
        world.pause(&owner, pause);
        world.run_for(pause + MS * 300);
        let before = world.steps_done[&name("a")];
        world.run_for(S + MS * 500);
        // T is not over: nobody else has taken it.
        assert_eq!(world.running("a"), std::slice::from_ref(&owner));
        let during = world.steps_done[&name("a")] - before;
        assert_eq!(during > 0, goes_on, "{during} steps without an echo after {pause:?}");
        world.heal();
        world.run_for(S * 20);
        assert_eq!(world.running("a").len(), 1);
        assert!(world.steps_done[&name("a")] > before + during);
    }
}

/// Rule 18: decided, and the target is gone: as long as its source lives, only that gives the task away.
#[test]
fn while_the_source_lives_nobody_else_takes_what_its_target_has_lost() {
    let (mut world, owner, _) = World::owned(15, 4, &Setup::default());
    let first = target_of(&world, &owner);
    world.trip = Some(Trip { task: "a", at: tells, victim: Some(first.clone()) });
    world.drain(&owner, S * 25);
    while world.trip.is_some() {
        world.run_for(MS / 10);
    }
    world.blocked = Some(|_, _, message| is_offer(message));
    world.record_messages = true;
    world.run_for(MS * 300);
    let others = world.living().into_iter().filter(|node| *node != owner);
    for node in others {
        assert!(world.nodes[&node].machine.members().is_gone(&first));
        assert_eq!(world.claim_of(&node, "a"), None);
    }
    world.blocked = None;
    world.run_for(S * 5);
    assert_moved(&world);
}
