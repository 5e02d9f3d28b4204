//! What is said in a handover counts only of what it speaks of, and only from whom it concerns (Rule 18).

use super::{
    S, assert_moved, in_a_long_step, incoming, is_offer, is_offer_reply, is_transferred, target_of,
};
use crate::core::branch::Position;
use crate::core::claim::{Claim, Phase, Want};
use crate::core::ids::SessionId;
use crate::core::io::{Cause, Event, Notice};
use crate::core::lease::Epoch;
use crate::core::machine::tests::rules_claims::claim;
use crate::core::machine::tests::world::{Fate, Fault, MS, Setup, World, name};
use crate::core::message::{Message, Question, Refusal, Verdict};

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

/// Rule 13: from the decision until the target runs or is gone, the source answers for it: whoever asks may not hear
/// the target. To the target itself the name is free.
#[test]
fn a_source_that_has_decided_answers_for_its_target() {
    let (mut world, owner, target, third) = offered(56);
    world.blocked = Some(|_, _, message| is_transferred(message));
    let decided = |w: &World| {
        matches!(w.claim_of(&owner, "a"), Some(Claim { phase: Phase::Transferred { .. }, .. }))
    };
    world.run_until(S * 10, "decided", decided);
    let mine = world.claim_of(&owner, "a").unwrap().clone();
    let spec = world.nodes[&owner].machine.spec(&name("a")).unwrap().clone();
    world.record_messages = true;
    for asker in [&third, &target] {
        let epoch = Epoch(mine.epoch.0 + 10);
        let claim = Claim { session: asker.clone(), epoch, phase: Phase::Claimed, ..mine.clone() };
        let asks = vec![Question { claim, spec: spec.clone(), from: None }];
        let message = Message::Ask { asks };
        world.give(&owner, Event::Message { from: asker.clone(), message });
    }
    let verdict_for = |asker: &SessionId| {
        let to_it = world.sent.iter().filter(|(_, from, to, _)| *from == owner && to == asker);
        let mut verdicts = to_it.filter_map(|(.., message)| match message {
            Message::Answers { answers } => Some(answers[0].verdict.clone()),
            _ => None,
        });
        verdicts.next().expect("an answer")
    };
    let Verdict::Held(held) = verdict_for(&third) else { panic!("{:?}", verdict_for(&third)) };
    assert_eq!(held.session, target);
    assert_eq!(verdict_for(&target), Verdict::Ok);
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
    let (mut world, owner, keeper) = World::with_a_keeper(55);
    world.nodes.get_mut(&keeper).unwrap().disk_full = true;
    world.drain(&owner, S * 10);
    world.run_until(S, "drained", |w| w.nodes[&owner].drained.is_some());
    assert!(world.running("a").is_empty());
    let released = |n: &Notice| matches!(n, Notice::Released { replicas: 0, .. });
    assert_eq!(world.told(&owner, released), 1);
}

/// Rule 18: what was accepted lapses when its target takes nothing any more.
#[test]
fn a_target_that_is_cordoned_lets_go_of_what_it_has_accepted() {
    let (mut world, owner, target, _) = offered(57);
    let epoch = world.claim_of(&target, "a").unwrap().epoch;
    world.give(&target, Event::Cordon(true));
    let claim = world.claim_of(&target, "a").unwrap();
    assert_eq!((claim.epoch, &claim.phase), (epoch, &Phase::Released));
    world.run_for(S * 20);
    let runner = world.runner("a");
    assert!(runner != target && runner != owner);
    world.assert_no_overlap();
}

/// A target that drains does not leave it to gossip to tell its source, and if that has decided meanwhile,
/// says it again: it is the next one's.
#[test]
fn a_target_that_drains_tells_its_source() {
    let (mut world, owner, target, _) = offered(56);
    let Claim { run, epoch, .. } = world.claim_of(&target, "a").unwrap().clone();
    let refusals = |world: &World| {
        let said = world.sent.iter().filter(|(_, from, to, _)| (from, to) == (&target, &owner));
        said.filter(|(.., m)| matches!(m, Message::OfferReply { result: Err(Refusal::NotUp), .. }))
            .count()
    };
    world.record_messages = true;
    world.drain(&target, S * 25);
    assert_eq!(refusals(&world), 1);
    let message = Message::Transferred { name: name("a"), run, epoch, sealed: None };
    world.give(&target, Event::Message { from: owner.clone(), message });
    assert_eq!(refusals(&world), 2);
}

/// A cluster in which the word of a decision does not arrive: the source, its target, another node.
fn decided(seed: u64) -> (World, SessionId, SessionId, SessionId) {
    let (mut world, owner, others) = World::owned(seed, 3, &Setup::default());
    world.blocked = Some(|_, _, message| is_transferred(message));
    world.drain(&owner, S * 25);
    world.run_until(S * 2, "it is decided", |w| is_decided(w, &owner));
    world.run_for(MS * 50);
    let target = incoming(&world).pop().expect("a target");
    let third = others.into_iter().find(|node| *node != target).unwrap();
    world.record_messages = true;
    (world, owner, target, third)
}

fn is_decided(world: &World, owner: &SessionId) -> bool {
    matches!(world.claim_of(owner, "a").unwrap().phase, Phase::Transferred { .. })
}

/// To whom a node has said something, in order.
fn told(world: &World, by: &SessionId, what: fn(&Message) -> bool) -> Vec<SessionId> {
    let said = world.sent.iter().filter(|(_, from, _, m)| from == by && what(m));
    said.map(|(_, _, to, _)| to.clone()).collect()
}

/// One node hears by gossip what another has published.
fn gossip(world: &mut World, at: &SessionId, claim: Claim) {
    let (of, name) = (claim.session.clone(), claim.name.clone());
    world.give(at, Event::Claims { of, changes: vec![(name, Some(claim))] });
}

/// Rule 18: a target that is seen to have let go of what it accepted has not taken it.
#[test]
fn what_a_target_has_let_go_of_goes_to_the_next_one() {
    let (mut world, owner, target, third) = decided(58);
    let theirs = world.claim_of(&target, "a").unwrap().clone();
    let released = Claim { version: theirs.version + 1, phase: Phase::Released, ..theirs };
    gossip(&mut world, &owner, released);
    assert_eq!(world.told(&owner, |n| matches!(n, Notice::Moved { .. })), 0);
    assert_eq!(told(&world, &owner, is_offer), std::slice::from_ref(&third));
    // Nor is the next one told of a decision before it has accepted.
    world.sent.clear();
    world.give(&owner, Event::LinkUp { with: third });
    assert_eq!(told(&world, &owner, is_transferred), []);
}

/// Rule 18: decided, and the target is gone: the task goes to the next one, unless somebody has it above the
/// target's claim.
#[test]
fn after_the_death_of_a_target_only_a_claim_above_its_own_counts() {
    for (above, offers) in [(true, 0), (false, 1)] {
        let (mut world, owner, target, third) = decided(59);
        let mine = world.claim_of(&owner, "a").unwrap().clone();
        let theirs = world.claim_of(&target, "a").unwrap().clone();
        let epoch = if above { theirs.epoch.0 + 1 } else { mine.epoch.0 - 1 };
        let running = claim("a", mine.run, epoch, "any", Phase::Running);
        gossip(&mut world, &owner, Claim { session: third, number: 90, ..running });
        assert_eq!(told(&world, &owner, is_offer), []);
        world.give(&owner, Event::Message { from: target, message: Message::Leave });
        assert_eq!(told(&world, &owner, is_offer).len(), offers, "{above}");
    }
}

/// A decision that was lost with a link is told again as soon as there is one, to whom it concerns.
#[test]
fn a_decision_is_told_again_on_a_new_link_to_its_target() {
    let (mut world, owner, target, third) = decided(60);
    world.sent.clear();
    world.give(&owner, Event::LinkUp { with: third });
    assert_eq!(told(&world, &owner, is_transferred), []);
    world.give(&owner, Event::LinkUp { with: target.clone() });
    assert_eq!(told(&world, &owner, is_transferred), [target]);
}

/// The sealed state is at the target, which counts as one holder however often it was one.
#[test]
fn a_target_that_was_a_replica_is_named_as_one_holder() {
    let (mut world, owner, others) = World::owned(61, 2, &Setup::default());
    assert_eq!(world.claim_of(&owner, "a").unwrap().replicas, [others[0].node.clone()]);
    world.blocked = Some(|_, _, message| is_transferred(message));
    world.drain(&owner, S * 25);
    world.run_until(S * 2, "it is decided", |w| is_decided(w, &owner));
    assert_eq!(world.claim_of(&owner, "a").unwrap().replicas, [others[0].node.clone()]);
}

/// An offer of what is claimed by `claim`.
fn offer(world: &World, claim: &Claim, epoch: Epoch) -> Message {
    Message::Offer {
        claim: claim.clone(),
        epoch,
        spec: world.nodes[&claim.session].machine.spec(&name("a")).unwrap().clone(),
        desired: None,
        idle: false,
        version: None,
        cause: Cause::Drain,
    }
}

/// A session speaks for its own claims alone.
#[test]
fn nobody_offers_what_another_has() {
    let (mut world, owner, others) = World::owned(62, 3, &Setup::default());
    let mine = world.claim_of(&owner, "a").unwrap().clone();
    let message = offer(&world, &mine, mine.epoch.next());
    world.record_messages = true;
    world.give(&others[0], Event::Message { from: others[1].clone(), message });
    assert_eq!(told(&world, &others[0], is_offer_reply), []);
    assert_eq!(incoming(&world), []);
}

/// L2: what a target would have is above every epoch that it has seen, whoever had that.
#[test]
fn an_offer_below_an_epoch_that_was_seen_is_refused() {
    let (mut world, owner, others) = World::owned(63, 3, &Setup::default());
    let mine = world.claim_of(&owner, "a").unwrap().clone();
    let seen = claim("a", mine.run, mine.epoch.0 + 10, "ghost", Phase::Released);
    let (target, above) = (&others[0], seen.epoch);
    gossip(&mut world, target, seen);
    let message = offer(&world, &mine, mine.epoch.next());
    world.record_messages = true;
    world.give(target, Event::Message { from: owner, message });
    let refused = Err(Refusal::Held(above));
    let said = world.sent.iter().filter(|(_, from, ..)| from == target);
    let is_refusal =
        |m: &Message| matches!(m, Message::OfferReply { result, .. } if *result == refused);
    assert_eq!(said.filter(|(.., m)| is_refusal(m)).count(), 1);
    assert_eq!(incoming(&world), []);
}

/// H1: what was decided stands, whatever comes later of the time before.
#[test]
fn a_decision_cannot_be_withdrawn() {
    let (mut world, owner, _) = World::owned(64, 3, &Setup::default());
    world.reads_take = S * 2;
    world.drain(&owner, S * 25);
    world.run_until(S * 8, "it is decided", |w| is_decided(w, &owner));
    world.run_for(MS * 50);
    let target = incoming(&world).pop().expect("it reads the state");
    let epoch = world.claim_of(&target, "a").unwrap().epoch;
    let message = Message::Withdraw { name: name("a"), epoch };
    world.give(&target, Event::Message { from: owner, message });
    world.run_for(S * 6);
    assert_eq!(world.runner("a"), target);
    assert_eq!(world.claim_of(&target, "a").unwrap().epoch, epoch);
}

/// Rules 2 and 18: a header is faster than links and gossip under load. What is decided is not released,
/// or the target would let go of it before it hears of the decision.
#[test]
fn a_header_that_overtakes_a_decision_does_not_undo_it() {
    let (mut world, owner, target, _) = offered(65);
    let number = world.claim_of(&owner, "a").unwrap().number;
    let mut late = world.nodes[&target].machine.clone();
    world.blocked = Some(|_, _, message| is_transferred(message));
    world.run_until(S * 20, "it is decided", |w| is_decided(w, &owner));
    let (state, version, watermark, released) = world.nodes[&owner].header.clone();
    assert!(watermark < number && !released.contains(&number));
    let echoed = None;
    let heard = Event::Heard { from: owner.clone(), state, version, watermark, released, echoed };
    late.handle(world.clock(), heard);
    let theirs = late.view().get(&name("a"), &target).unwrap();
    assert!(matches!(theirs.phase, Phase::Incoming { .. }), "{:?}", theirs.phase);
    // Once it is taken, nothing is left of it here.
    world.blocked = None;
    world.run_for(S * 2);
    assert!(world.nodes[&owner].header.2 >= number);
    assert_moved(&world);
}

/// What has stopped is not kept waiting for an answer as what runs is: whoever can may have it.
#[test]
fn what_has_stopped_waits_for_no_answer() {
    let (mut world, owner, others) = in_a_long_step(43);
    world.drain(&owner, S * 60);
    world.run_for(MS * 500);
    let target = incoming(&world).pop().unwrap();
    let third = others.into_iter().find(|node| *node != target).unwrap();
    world.blocked = Some(|_, _, message| is_offer(message));
    world.crash(&target);
    world.run_until(S * 10, "it has stopped", |w| w.running("a").is_empty());
    let stopped = world.now;
    world.run_until(S * 60, "it goes on", |w| w.running("a") == [third.clone()]);
    let gap = world.now.since(stopped);
    assert!(gap < S * 5, "{gap:?} without a copy, and the third one was there all the time");
}

/// An offer that is late is repeated once a second, whatever happens meanwhile to its name.
#[test]
fn an_offer_is_not_repeated_at_every_step() {
    let (mut world, owner, _) = World::owned(3, 2, &Setup::default());
    world.blocked = Some(|_, _, message| is_offer(message));
    world.record_messages = true;
    world.forced = true;
    world.drain(&owner, S * 25);
    world.run_for(S * 12);
    let offers = world.sent.iter().filter(|(_, from, _, m)| *from == owner && is_offer(m)).count();
    assert!(offers <= 14, "{offers} offers in 12 seconds");
}

/// A target that has let go of a name, and forgotten it, says so: its source would tell it for ever.
#[test]
fn a_decision_that_means_nothing_to_its_target_is_refused() {
    let (mut world, owner, others) = World::owned(67, 3, &Setup::default());
    let run = world.claim_of(&owner, "a").unwrap().run;
    let (name, epoch) = (name("forgotten"), Epoch(7));
    world.record_messages = true;
    let message = Message::Transferred { name: name.clone(), run, epoch, sealed: None };
    world.give(&others[0], Event::Message { from: owner.clone(), message });
    let refused = Message::OfferReply { name, epoch, result: Err(Refusal::NotUp) };
    let said = (others[0].clone(), owner, refused);
    assert!(world.sent.iter().any(|(_, from, to, m)| (from, to, m) == (&said.0, &said.1, &said.2)));
}

/// A withdrawal of an earlier offer may come after a newer one was accepted: it takes back nothing but its own.
#[test]
fn a_withdrawal_takes_back_its_own_offer_alone() {
    let (mut world, owner, _) = in_a_long_step(18);
    world.drain(&owner, S * 25);
    world.run_for(MS * 100);
    let target = incoming(&world).remove(0);
    let epoch = world.claim_of(&target, "a").unwrap().epoch;
    let withdraw = |epoch| Event::Message {
        from: owner.clone(),
        message: Message::Withdraw { name: name("a"), epoch },
    };
    world.give(&target, withdraw(Epoch(epoch.0 - 1)));
    assert_eq!(incoming(&world), std::slice::from_ref(&target));
    world.give(&target, withdraw(epoch));
    assert_eq!(incoming(&world), []);
}

/// Rule 23: what is cancelled or paused while its state is on the way is not run where it arrives.
#[test]
fn what_is_cancelled_or_paused_on_the_way_does_not_start_where_it_arrives() {
    for (seed, want) in [(70, Want::Cancel), (71, Want::Pause)] {
        let (mut world, owner, _) = World::owned(seed, 3, &Setup::default());
        let target = target_of(&world, &owner);
        let drained = world.now;
        world.record_messages = true;
        world.drain(&owner, S * 25);
        while !world.sent.iter().any(|(_, from, _, m)| *from == owner && is_transferred(m)) {
            world.run_for(MS / 20);
            assert!(world.now.since(drained) < S * 2, "it has stopped for its target");
        }
        world.want(&target, "a", want);
        world.run_for(S * 3);
        assert!(world.since("a", drained).is_empty(), "{want:?}: {:?}", world.since("a", drained));
        let phase = &world.owner(&target, "a").unwrap().phase;
        match want {
            Want::Cancel => assert_eq!(*phase, Phase::Cancelled),
            _ => assert_eq!(*phase, Phase::Paused),
        }
    }
}
