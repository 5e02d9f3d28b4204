//! What is said in a handover counts only of what it speaks of, and only from whom it concerns (Rule 18).

use super::{S, assert_moved, in_a_long_step, incoming, target_of};
use crate::core::branch::Position;
use crate::core::claim::{Claim, Phase};
use crate::core::ids::SessionId;
use crate::core::io::{Cause, Event, Notice};
use crate::core::machine::tests::world::{Disk, Fate, Fault, MS, Setup, World, name};
use crate::core::message::{Message, Refusal};

/// H4: the decision waits for the sealed state, whatever else of the task its target has.
#[test]
fn a_late_acknowledgement_of_an_older_checkpoint_decides_nothing() {
    let (mut world, ..) = World::owned(51, 3, &Setup::default());
    world.commit_every = 7;
    world.run_for(S);
    let (owner, target, other) = world.roles("a");
    world.give(&other, Event::Cordon(true));
    world.run_for(MS * 20);
    world.blocked = Some(|_, _, message| matches!(message, Message::Checkpoint { .. }));
    world.drain(&owner, S * 25);
    world.run_until(S, "it has stopped", |w| w.running("a").is_empty());
    let stopped = world.stretches.last().unwrap().clone();
    let (run, seq) = world.acknowledged[&name("a")];
    assert!(seq < stopped.to_seq);
    let position = Position { epoch: stopped.epoch, seq };
    let message = Message::CheckpointReply { name: name("a"), run, position, result: Ok(()) };
    world.give(&owner, Event::Message { from: target.clone(), message });
    let phase = world.claim_of(&owner, "a").unwrap().phase.clone();
    assert!(!matches!(phase, Phase::Transferred { .. }), "the sealed state is nowhere else yet");
    world.blocked = None;
    world.run_for(S * 10);
    world.assert_no_overlap();
    assert_eq!(world.runner("a"), target);
    assert_eq!(world.stretches.last().unwrap().from_seq, stopped.to_seq);
}

/// A cluster whose "a" is in a long step that one more node waits for: its owner, that node, another one.
fn offered(seed: u64) -> (World, SessionId, SessionId, SessionId) {
    let (mut world, owner, others) = in_a_long_step(seed);
    world.drain(&owner, S * 30);
    world.run_for(MS * 500);
    let target = incoming(&world).pop().expect("a target");
    let third = others.into_iter().find(|node| *node != target).unwrap();
    (world, owner, target, third)
}

/// H1: only the source decides that its target may run.
#[test]
fn nobody_but_the_source_decides_a_handover() {
    let (mut world, owner, target, third) = offered(52);
    let Claim { run, epoch, .. } = world.claim_of(&target, "a").unwrap().clone();
    let message = Message::Transferred { name: name("a"), run, epoch, sealed: None };
    world.give(&target, Event::Message { from: third, message });
    world.run_for(S * 2);
    assert_eq!(world.runner("a"), owner, "its step has not ended");
    world.run_for(S * 10);
    assert_eq!(world.runner("a"), target);
    assert_moved(&world);
}

/// H3: one epoch is one owner's: an offer of the epoch under which the source has the name is none.
#[test]
fn an_offer_of_the_sources_own_epoch_is_refused() {
    let (mut world, owner, others) = World::owned(53, 3, &Setup::default());
    let target = others[0].clone();
    let claim = world.claim_of(&owner, "a").unwrap().clone();
    let spec = world.nodes[&owner].machine.spec(&name("a")).unwrap().clone();
    let (run, epoch) = (claim.run, claim.epoch);
    let offer = Message::Offer {
        claim,
        epoch,
        spec,
        desired: None,
        idle: false,
        version: None,
        cause: Cause::Drain,
    };
    let decision = Message::Transferred { name: name("a"), run, epoch, sealed: None };
    world.record_messages = true;
    for message in [offer, decision] {
        world.give(&target, Event::Message { from: owner.clone(), message });
    }
    world.run_for(S * 3);
    assert_eq!(world.runner("a"), owner);
    assert!(world.stretches.iter().all(|stretch| stretch.session == owner));
    let refused = Err(Refusal::Held(epoch));
    let replies = world.sent.iter().filter(|(_, from, ..)| *from == target);
    let is_refusal =
        |m: &Message| matches!(m, Message::OfferReply { result, .. } if *result == refused);
    assert_eq!(replies.filter(|(.., message)| is_refusal(message)).count(), 1);
}

/// Rule 18: who accepts what is no longer offered is told so, or it stands by for as long as the source
/// lives, and refuses the name to everybody.
#[test]
fn who_accepts_too_late_is_told_so() {
    let (mut world, owner, _) = World::owned(54, 3, &Setup::default());
    let target = target_of(&world, &owner);
    world.steps.insert(name("a"), S * 6);
    let fault = |hits, fate| Fault { hits, fate, times: 1 };
    world.faults = vec![
        fault(|m| matches!(m, Message::OfferReply { .. }), Fate::Late(MS * 1_500)),
        fault(|m| matches!(m, Message::Withdraw { .. }), Fate::Lost),
    ];
    world.drain(&owner, S * 25);
    world.run_for(S * 10);
    assert!(world.faults.is_empty());
    assert_moved(&world);
    assert_ne!(world.runner("a"), target);
    assert_eq!(incoming(&world), []);
}

/// DEPLOYS 2: a drain does not wait for a replica that has said that it keeps nothing.
#[test]
fn what_every_replica_refuses_is_released_at_once() {
    let (mut world, nodes) = World::cluster(55, 1);
    let other = Setup { kinds: vec![("other", 1)], ..Setup::default() };
    let keeper = world.boot("n1", other, Disk::default());
    world.run_for(S * 2);
    world.goal = 100_000;
    world.commit_every = 1_000;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    world.nodes.get_mut(&keeper).unwrap().disk_full = true;
    world.drain(&nodes[0], S * 10);
    world.run_until(S, "drained", |w| w.nodes[&nodes[0]].drained.is_some());
    assert!(world.running("a").is_empty());
    let released = |n: &Notice| matches!(n, Notice::Released { replicas: 0, .. });
    assert_eq!(world.told(&nodes[0], released), 1);
}
