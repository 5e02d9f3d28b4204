//! Who is offered a task may refuse it, drain, or fail to keep its state: the next one gets it (Rule 18).

use bytes::Bytes;

use super::{
    S, assert_moved, in_a_long_step, incoming, is_offer, is_offer_reply, is_transferred, target_of,
};
use crate::core::branch::{Header, Position};
use crate::core::claim::{Phase, Want};
use crate::core::ids::{Kind, SessionId};
use crate::core::io::{CallError, Event, Notice};
use crate::core::machine::tests::world::{Disk, Fate, Fault, MS, Setup, World, name};
use crate::core::message::{Message, Refusal};
use crate::core::record::{NodeRecord, Versions};
use crate::core::time::Time;

#[test]
fn an_offer_that_is_refused_goes_to_the_next_node() {
    let (mut world, owner, others) = World::owned(3, 4, &Setup::default());
    let target = target_of(&world, &owner);
    // The first choice is cordoned so late that the source does not know yet.
    world.give(&target, Event::Cordon(true));
    world.faults.clear();
    world.drain(&owner, S * 25);
    world.run_for(S * 3);
    assert_moved(&world);
    assert!(!world.running("a").contains(&target));
    assert!(others.contains(&world.running("a")[0]));
}

/// The refusals of one node to take what it was offered.
fn refusals(world: &World, by: &SessionId) -> Vec<Refusal> {
    let said = world.sent.iter().filter(|(_, from, ..)| from == by);
    let refused = |message: &Message| match message {
        Message::OfferReply { result: Err(refusal), .. } => Some(refusal.clone()),
        _ => None,
    };
    said.filter_map(|(.., message)| refused(message)).collect()
}

/// H6: what gossip says of a receiver can be wrong or old; the receiver checks for itself, and the
/// task has not stopped for it.
#[test]
fn a_receiver_that_is_full_after_all_refuses_and_the_next_one_takes_it() {
    // Limits per kind are not gossiped.
    let limited = Setup { kind_limit: Some(1), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(45, 2, &limited);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.start(&nodes[0], "b");
    world.run_for(S * 2);
    let (owner, full) = (world.runner("a"), world.runner("b"));
    assert_ne!(owner, full);
    // Busier, as far as gossip tells: the full one is asked first.
    let busy =
        Setup { max_running: 2, kinds: vec![("count", 1), ("special", 1)], ..Setup::default() };
    let third = world.boot("n9", busy, Disk::default());
    world.run_for(S * 7);
    world.start_kind(&third, "c", "special", false);
    world.run_for(S);
    world.record_messages = true;
    world.steps.insert(name("a"), S * 3);
    world.drain(&owner, S * 25);
    world.run_for(MS * 10);
    assert_eq!(refusals(&world, &full), [Refusal::Full]);
    world.run_for(S * 12);
    assert_eq!(world.runner("a"), third);
    assert_moved(&world);
    assert!(world.gaps("a").iter().all(|gap| *gap < MS * 50), "nothing stops for a refusal");
}

#[test]
fn a_receiver_that_cannot_run_it_after_all_refuses_before_the_task_stops() {
    let (mut world, owner, others) = World::owned(46, 3, &Setup::default());
    // Gossip says of both that they read whatever there may be.
    let versions = |kind: &str, newest| (Kind::new(kind).unwrap(), Versions { oldest: 1, newest });
    let record = |kinds: Vec<_>| NodeRecord {
        address: "127.0.0.1:1".parse().unwrap(),
        revision: "r1".to_owned(),
        since_ms: 1,
        rollout: None,
        kinds: kinds.into_iter().collect(),
        max_running: 1000,
        succeeds: None,
    };
    for other in &others {
        let record = record(vec![versions("count", 9), versions("special", 9)]);
        world.give(&owner, Event::Record { of: other.clone(), record });
    }
    world.record_messages = true;
    // The owner's state is of a version that they do not read.
    let spec = world.nodes[&owner].machine.spec(&name("a")).unwrap().clone();
    let claim = world.claim_of(&owner, "a").unwrap().clone();
    let header = Header {
        name: name("a"),
        run: claim.run,
        kind: spec.kind.clone(),
        position: Position { epoch: claim.epoch, seq: 1_000_000 },
        writer: owner.clone(),
        lineage: Vec::new(),
        state_version: 5,
        revision: "r1".to_owned(),
        wall_ms: 0,
        len: 1,
        hash: 0,
        progress: None,
    };
    world.steps.insert(name("a"), S * 60);
    let state = Bytes::from_static(b"5");
    world.give(&owner, Event::Committed { header, state, forced: false });
    let ran = world.stretches.iter().position(|s| s.name == name("a")).unwrap();
    world.drain(&owner, S * 25);
    world.run_for(MS * 5);
    for other in &others {
        assert_eq!(refusals(&world, other), [Refusal::Incompatible], "{other}");
    }
    assert!(world.stretches[ran].end.is_none(), "nothing stops for an offer");

    // The same for a start: the caller is told, and nothing runs.
    let call = world.start_kind(&owner, "b", "special", false);
    world.run_for(S);
    let reply = world.nodes[&owner].replies[&call].clone();
    assert_eq!(reply, Err(CallError::NoNode(Refusal::Incompatible)));
}

#[test]
fn a_target_that_cannot_run_the_kind_is_never_offered_and_the_task_is_released_parked() {
    let (mut world, nodes) = World::cluster_of(4, 1, &Setup::default());
    let setup = Setup { kinds: vec![("other", 1)], ..Setup::default() };
    let other = world.boot("x1", setup, Disk::default());
    world.run_for(S * 8);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let before = world.steps_done[&name("a")];
    world.drain(&nodes[0], S * 25);
    world.run_until(S * 5, "drained at once", |w| w.nodes[&nodes[0]].drained.is_some());
    assert!(world.running("a").is_empty());
    world.give(&nodes[0], Event::Leave);
    world.run_for(S);
    world.crash(&nodes[0]);
    // Custody: nobody can run it, so the other keeps it until somebody can.
    world.run_for(S * 30);
    assert!(matches!(world.nodes[&other].owners[&name("a")].phase, Phase::Parked { .. }));
    world.boot("n9", Setup::default(), Disk::default());
    world.run_for(S * 20);
    assert_eq!(world.running("a").len(), 1, "{:#?}", world.nodes[&other].owners);
    let last = world.stretches.last().unwrap();
    assert!(last.from_seq >= before, "the state was kept: {last:?}");
}

/// What a node shows of "a" from a point in time on.
fn shown(world: &World, at: &SessionId, from: Time) -> Vec<(SessionId, Phase)> {
    let of = &world.nodes[at].shown[&name("a")];
    let since = of.iter().filter(|(at, ..)| *at >= from);
    since.map(|(_, by, phase)| (by.clone(), phase.clone())).collect()
}

/// An offer stands as long as a step may take, and may come to nothing.
#[test]
fn as_long_as_a_name_is_only_offered_everybody_sees_it_where_it_runs() {
    let (mut world, owner, _) = in_a_long_step(41);
    let nodes = world.living();
    let drained = world.now;
    world.drain(&owner, S * 30);
    world.run_for(S * 3);
    let incoming = Phase::Incoming { from: owner.clone() };
    let accepted =
        |node: &&SessionId| world.claim_of(node, "a").is_some_and(|c| c.phase == incoming);
    let target = nodes.iter().find(accepted).expect("a target").clone();
    for node in &nodes {
        assert_eq!(shown(&world, node, drained), [], "{node}: it runs where it ran");
        assert_eq!(world.owner(node, "a").unwrap().session, owner);
    }
    // An order goes to where it runs.
    world.record_messages = true;
    world.want(&nodes[1], "a", Want::Run);
    let ordered =
        |(_, _, to, m): &(_, _, SessionId, _)| *to == owner && matches!(m, Message::Desire { .. });
    assert!(owner == nodes[1] || world.sent.iter().any(ordered));

    // The target drains in its turn: the offer has come to nothing, and the next one is made.
    world.drain(&target, S * 30);
    world.run_for(MS * 500);
    for node in &nodes {
        assert_eq!(shown(&world, node, drained), [], "{node}: nothing has happened to it");
    }
    world.run_for(S * 8);
    let last = world.runner("a");
    assert!(last != owner && last != target);
    for node in &nodes {
        let shown = shown(&world, node, drained);
        let runs = |(_, phase): &&(SessionId, Phase)| *phase == Phase::Running;
        let of: Vec<_> = shown.iter().filter(runs).map(|(by, _)| by.clone()).collect();
        assert_eq!(of, std::slice::from_ref(&last), "{node}: {shown:?}");
    }
    assert_moved(&world);
}

/// Whoever accepted a name must not hold it for a source that has let go of it.
#[test]
fn an_offer_that_was_withdrawn_unheard_lapses_with_the_release() {
    let (mut world, owner, others) = in_a_long_step(43);
    world.blocked = Some(|_, _, message| matches!(message, Message::Withdraw { .. }));
    world.drain(&owner, S * 60);
    world.run_for(MS * 20);
    let incoming = Phase::Incoming { from: owner.clone() };
    let accepted =
        |node: &&SessionId| world.claim_of(node, "a").is_some_and(|c| c.phase == incoming);
    assert!(others.iter().any(|node| accepted(&node)));
    world.give(&owner, Event::DrainNow);
    world.run_for(S * 3);
    assert_eq!(world.running("a").len(), 1, "{:?}", world.owner(&others[0], "a"));
    world.assert_no_overlap();
}

#[test]
fn a_target_that_drains_before_the_decision_lapses_and_the_next_one_gets_it() {
    let (mut world, owner, others) = World::owned(11, 4, &Setup::default());
    world.steps.insert(name("a"), S);
    let target = target_of(&world, &owner);
    world.record_messages = true;
    world.drain(&owner, S * 25);
    world.run_until(S, "accepted", |w| w.sent.iter().any(|(_, _, _, m)| is_offer_reply(m)));
    world.drain(&target, S * 25);
    world.run_until(S * 10, "both drained", |w| {
        [&owner, &target].iter().all(|n| w.nodes[n].drained.is_some())
    });
    world.run_for(S * 2);
    assert_moved(&world);
    let now = world.running("a")[0].clone();
    assert!(others.contains(&now) && now != target);
}

#[test]
fn a_decision_that_reaches_a_draining_target_is_passed_on() {
    let mut passed_on = 0;
    for when in 0..20 {
        let (mut world, owner, others) = World::owned(12, 4, &Setup::default());
        let target = target_of(&world, &owner);
        world.faults.push(Fault { hits: is_transferred, fate: Fate::Late(MS * 100), times: 1 });
        world.drain(&owner, S * 25);
        world.run_for(MS * 10 * when);
        // Decided, and not yet there.
        let decided = world.faults.is_empty() && world.running("a").is_empty();
        passed_on += usize::from(decided);
        let ran = |world: &World| world.stretches.iter().filter(|s| s.session == target).count();
        let before = ran(&world);
        world.drain(&target, S * 25);
        world.run_until(S * 10, "both drained", |w| {
            [&owner, &target].iter().all(|n| w.nodes[n].drained.is_some())
        });
        world.run_for(S * 3);
        assert_moved(&world);
        let now = world.running("a")[0].clone();
        assert!(others.contains(&now) && now != target, "{when}");
        assert!(world.faults.is_empty(), "{when}: no decision was late");
        assert_eq!(ran(&world), before, "{when}: who drains runs nothing that it is given");
    }
    assert!(passed_on >= 5, "the target began to drain {passed_on} times between the two");
}

/// Rule 18. Thousands of offers at once take their time, or are lost in part. There is no other node, it
/// is heard, and there is time: releasing the task would only make a gap of its move.
#[test]
fn a_target_that_is_slow_to_answer_is_waited_for_where_there_is_no_other() {
    for hits in [is_offer, is_offer_reply] {
        let (mut world, owner, others) = World::owned(3, 2, &Setup::default());
        world.faults.push(Fault { hits, fate: Fate::Lost, times: 4 });
        world.drain(&owner, S * 25);
        world.run_until(S * 12, "drained", |w| w.nodes[&owner].drained.is_some());
        assert!(world.faults.is_empty(), "none was lost");
        assert_moved(&world);
        assert_eq!(world.running("a"), others);
        assert_eq!(world.told(&owner, |n| matches!(n, Notice::Released { .. })), 0);
    }
}

/// Nor is it waited for beyond the time that a step may take to end.
#[test]
fn a_target_that_never_answers_costs_no_step() {
    let (mut world, owner, _) = World::owned(3, 2, &Setup::default());
    world.faults.push(Fault { hits: is_offer, fate: Fate::Lost, times: 1_000 });
    let begun = world.now;
    world.drain(&owner, S * 25);
    world.run_until(S * 25, "drained", |w| w.nodes[&owner].drained.is_some());
    let took = world.now.since(begun);
    assert!(took > S * 14 && took < S * 17, "{took:?}");
    assert_eq!(world.told(&owner, |n| matches!(n, Notice::Released { .. })), 1);
    world.run_for(S * 2);
    assert_moved(&world);
}

#[test]
fn a_target_that_is_not_heard_is_not_waited_for() {
    let (mut world, owner, others) = World::owned(3, 2, &Setup::default());
    world.cut_both(&owner, &others[0]);
    world.run_for(S);
    world.drain(&owner, S * 25);
    world.run_until(S * 4, "drained", |w| w.nodes[&owner].drained.is_some());
}

/// A target that refuses the sealed state itself is not left with an accepted offer either.
#[test]
fn a_target_that_cannot_keep_the_sealed_state_lets_the_name_go() {
    let mut refused = 0;
    for seed in 0..4 {
        let (mut world, owner, others) = World::owned(seed, 4, &Setup::default());
        for i in 0..seed * 2 {
            world.start(&others[0], &format!("other{i}"));
            world.run_for(MS * 100);
        }
        let target = target_of(&world, &owner);
        world.nodes.get_mut(&target).unwrap().disk_full = true;
        world.record_messages = true;
        world.drain(&owner, S * 25);
        world.run_for(S * 10);
        assert_moved(&world);
        let refusal = |m: &Message| matches!(m, Message::CheckpointReply { result: Err(_), .. });
        refused += usize::from(world.sent.iter().any(|(_, _, _, m)| refusal(m)));
        assert_eq!(incoming(&world), [], "seed {seed}");
    }
    assert!(refused > 0, "no sealed state was refused");
}
