//! Nodes that come later learn who has gone before, and nobody who lives is taken for gone.

use std::time::Duration;

use uuid::Uuid;

use super::world::{Disk, MS, Setup, World, name};
use crate::core::claim::Phase;
use crate::core::ids::{NodeId, SessionId};
use crate::core::io::{Cause, Event, Gone, Notice};
use crate::core::members::Members;
use crate::core::message::Message;
use crate::core::record::NodeState;
use crate::core::time::Time;
use crate::core::timing::Timing;

const S: Duration = Duration::from_secs(1);
const START: Time = Time::from_micros(1_000_000_000);

fn session(node: &str) -> SessionId {
    SessionId::new(NodeId::new(node).unwrap(), Uuid::from_u128(1))
}

fn gone(world: &World, at: &SessionId, of: &SessionId) -> Option<Gone> {
    world.nodes[at].machine.members().get(of)?.gone.map(|(why, _)| why)
}

/// Drains a node and lets it say goodbye; then its process ends.
fn leave(world: &mut World, node: &SessionId) {
    world.drain(node, S);
    world.run_until(S * 3, "drained", |w| w.nodes[node].drained.is_some());
    world.give(node, Event::Leave);
    world.run_for(S);
    world.crash(node);
    world.run_for(S);
}

/// A joiner counts those that left as gone from the first moment, although gossip tells of them.
#[test]
fn a_joiner_learns_who_has_left() {
    let (mut world, nodes) = World::cluster(1, 3);
    world.goal = 100_000;
    for i in 0..9 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 2);
    leave(&mut world, &nodes[2]);
    let joiner = world.boot("n3", Setup::default(), Disk::default());
    world.run_for(S * 2);
    assert_eq!(world.nodes[&joiner].machine.state(), NodeState::Up, "it waits for the departed");
    assert!(world.nodes[&joiner].machine.view().names_of(&nodes[2]).len() > 1, "gossip told");
    assert_eq!(gone(&world, &joiner, &nodes[2]), Some(Gone::Left));
    world.run_for(S * 20);
    let gone = |why| move |notice: &Notice| matches!(notice, Notice::PeerGone(_, w) if *w == why);
    assert_eq!(world.told(&joiner, gone(Gone::Silent)), 0);
    assert_eq!(world.told(&joiner, gone(Gone::Dead)), 0);
    assert_eq!(world.told(&joiner, |n| *n == Notice::PeerUp(nodes[2].clone())), 0);
    world.assert_no_overlap();
    assert!((0..9).all(|i| world.running(&format!("t{i}")).len() == 1));
}

/// Also those that a later process of the same node has replaced, of which that one names only one.
#[test]
fn a_joiner_learns_who_was_superseded() {
    let durable = Setup { durable: true, known_dead: false, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(2, 3, &durable);
    let mut former = vec![nodes[2].clone()];
    for _ in 0..2 {
        let last = former.last().unwrap().clone();
        world.crash(&last);
        let disk = world.disk_of(&last);
        former.push(world.boot("n2", durable.clone(), disk));
        world.run_for(S * 3);
    }
    // Whose record says whom it replaced is not known any more.
    world.gossip_forgets(&former[1]);
    let joiner = world.boot("n3", durable, Disk::default());
    world.run_for(S * 2);
    assert_eq!(gone(&world, &joiner, &former[0]), Some(Gone::Superseded));
    assert_eq!(gone(&world, &joiner, &former[1]), Some(Gone::Superseded));
    assert_eq!(gone(&world, &joiner, &former[2]), None);
    assert_eq!(world.nodes[&joiner].machine.state(), NodeState::Up);
}

/// Each observer repeats what it saw itself; the verdict is the joiner's own (Rule 5).
#[test]
fn a_joiner_learns_who_has_died_from_those_who_saw_it() {
    let (mut world, nodes) = World::cluster(3, 3);
    world.crash(&nodes[2]);
    world.run_for(S);
    assert_eq!(gone(&world, &nodes[0], &nodes[2]), Some(Gone::Dead));
    let joiner = world.boot("n3", Setup::default(), Disk::default());
    world.run_for(S);
    assert_eq!(gone(&world, &joiner, &nodes[2]), Some(Gone::Dead));
}

/// A joiner that gossip has told of a buried session first buries it all the same (Rule 24).
#[test]
fn a_joiner_buries_whom_it_knows_by_gossip_alone() {
    let (mut world, nodes) = World::cluster(4, 2);
    let dead = session("dead");
    for at in &nodes {
        world.give(at, Event::Heartbeat { of: dead.clone() });
    }
    let buried = Message::Buried { sessions: vec![dead.clone()] };
    let (at, by) = (&nodes[0], nodes[1].clone());
    world.give(at, Event::Message { from: by, message: buried });
    assert!(world.nodes[at].machine.members().get(&dead).is_none());
    world.give(at, Event::Heartbeat { of: dead.clone() });
    assert!(world.nodes[at].machine.members().get(&dead).is_none(), "it came back");
}

/// Nobody is gone, or buried, because others say so, while it is heard.
#[test]
fn who_is_heard_is_not_gone_whatever_others_say() {
    let (mut world, nodes) = World::cluster(5, 3);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let (at, by, of) = (&nodes[0], &nodes[1], &nodes[2]);
    for message in [
        Message::Gone { sessions: vec![(of.clone(), Gone::Left)] },
        Message::Gone { sessions: vec![(of.clone(), Gone::Superseded)] },
        Message::Gone { sessions: vec![(by.clone(), Gone::Silent), (of.clone(), Gone::Dead)] },
        Message::Gone { sessions: vec![(at.clone(), Gone::Left)] },
        Message::Buried { sessions: vec![of.clone(), at.clone()] },
    ] {
        world.give(at, Event::Message { from: by.clone(), message });
    }
    assert_eq!(gone(&world, at, of), None);
    assert_eq!(gone(&world, at, by), None);
    assert!(world.nodes[at].machine.members().get(of).is_some());
    world.run_for(S * 5);
    assert_eq!(world.running("a").len(), 1);
    world.assert_no_overlap();
}

/// And an echo of its own, or a link, undoes what others said before it was heard.
#[test]
fn an_echo_refutes_a_rumour_and_a_recording_does_not() {
    let (a, b) = (session("a"), session("b"));
    let mut members = Members::new(START, session("me"), Timing::default(), true, &[]);
    assert!(members.told_gone(START, &a, Gone::Left));
    assert!(!members.told_gone(START, &a, Gone::Superseded), "it is gone already");
    members.heard(START, &a, (NodeState::Up, 1), None);
    assert!(members.is_gone(&a), "that may be a recording");
    members.heard(START, &a, (NodeState::Leaving, 3), Some(START));
    assert!(members.is_gone(&a), "it says so itself");
    assert!(members.told_gone(START, &b, Gone::Left));
    assert!(members.heard(START, &b, (NodeState::Up, 1), Some(START)), "it is back");
    assert!(!members.is_gone(&b));
    assert!(!members.told_gone(START + S, &b, Gone::Left), "it was heard just now");
    assert!(members.told_gone(START + S * 5, &b, Gone::Left));
    assert!(members.link_up(START + S * 5, &b));
    assert!(!members.is_gone(&b));
}

/// What a session itself has said stands, whatever comes later of it.
#[test]
fn a_goodbye_of_its_own_is_final() {
    let a = session("a");
    let mut members = Members::new(START, session("me"), Timing::default(), true, &[]);
    members.heard(START, &a, (NodeState::Up, 1), Some(START));
    members.mark_gone(START, &a, Gone::Left);
    assert!(!members.heard(START, &a, (NodeState::Up, 1), Some(START)));
    assert!(!members.link_up(START, &a));
    assert!(members.is_gone(&a));
}

/// A node that was cut off from a session when that left hears of it from others.
#[test]
fn a_goodbye_reaches_who_could_not_hear_it() {
    let (mut world, nodes) = World::cluster(6, 3);
    let (a, c) = (&nodes[0], &nodes[2]);
    world.cut_both(a, c);
    world.run_for(S * 7);
    world.blocked =
        Some(|_, to, message| matches!(message, Message::Leave) && to.node.as_str() == "n2");
    world.lose.push(|message| matches!(message, Message::Relay { message, .. } if matches!(**message, Message::Leave)));
    leave(&mut world, a);
    world.run_for(MS * 500);
    assert_eq!(gone(&world, c, a), Some(Gone::Left));
}

/// Its last word is in every datagram, too: nobody waits until alone_after for who has left.
#[test]
fn who_was_leaving_and_then_refuses_has_left_although_its_goodbye_was_lost() {
    for nodes in [2, 3] {
        let (mut world, nodes) = World::cluster(5, nodes);
        world.blocked = Some(|_, _, message| matches!(message, Message::Leave));
        world.drain(&nodes[0], S);
        world.run_until(S * 3, "drained", |w| w.nodes[&nodes[0]].drained.is_some());
        world.give(&nodes[0], Event::Leave);
        world.run_for(S * 2);
        assert!(nodes[1..].iter().all(|node| gone(&world, node, &nodes[0]).is_none()));
        world.crash(&nodes[0]);
        world.run_for(S);
        for node in &nodes[1..] {
            assert_eq!(gone(&world, node, &nodes[0]), Some(Gone::Left), "{node}");
        }
    }
}

/// Rule 5: silence and death are for every node to see for itself, also of those whose life it knows of
/// by gossip alone: what one peer says of them frees nothing that they run.
#[test]
fn one_that_is_heard_by_gossip_alone_is_not_dead_because_a_peer_says_so() {
    let (mut world, nodes) = World::cluster(7, 3);
    world.goal = 100_000;
    for i in 0..9 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 2);
    let (at, by, of) = (&nodes[0], &nodes[1], &nodes[2]);
    assert!((0..9).any(|i| world.running(&format!("t{i}")) == [of.clone()]));
    world.cut_both(at, of);
    world.run_for(S * 7);
    let told = world.now;
    for why in [Gone::Silent, Gone::Dead] {
        let message = Message::Gone { sessions: vec![(of.clone(), why)] };
        world.give(at, Event::Message { from: by.clone(), message });
        assert_eq!(gone(&world, at, of), None, "{why:?}");
    }
    world.run_for(S * 15);
    assert!(world.stretches.iter().all(|s| s.start < told), "what it runs was taken");
}

/// An answer that does not come is waited for, a second long and no longer.
#[test]
fn whoever_leaves_is_told_how_many_of_its_peers_have_heard_the_goodbye() {
    let lost = |from: &SessionId, _: &SessionId, message: &Message| {
        matches!(message, Message::LeaveHeard) && from.node.as_str() == "n2"
    };
    for (blocked, goodbye, within) in
        [(None, (2, 2), 0..100), (Some(lost as _), (1, 2), 1000..1100)]
    {
        let (mut world, nodes) = World::cluster(8, 3);
        let leaver = &nodes[0];
        world.blocked = blocked;
        world.drain(leaver, S);
        world.run_until(S * 3, "drained", |w| w.nodes[leaver].drained.is_some());
        let begun = world.now;
        world.give(leaver, Event::Leave);
        world.run_until(S * 2, "it has left", |w| w.nodes[leaver].left.is_some());
        assert_eq!(world.nodes[leaver].goodbye, Some(goodbye));
        let took = world.nodes[leaver].left.unwrap().since(begun);
        assert!(within.contains(&took.as_millis()), "{took:?}");
        assert_eq!(gone(&world, &nodes[2], leaver), Some(Gone::Left), "only the answer was lost");
    }
}

/// Rules 7 and 26: whoever says goodbye has stopped all that it had, in good order: what it had is taken over
/// as what was released, and its steps are not to blame for anything.
#[test]
fn what_a_leaver_had_counts_as_released_although_its_claim_is_not() {
    for leaves in [true, false] {
        let (mut world, nodes) = World::cluster(31, 3);
        world.goal = 100_000;
        // No step of it ever ends.
        world.step = S * 10_000;
        world.start(&nodes[0], "a");
        world.run_for(S);
        let owner = world.runner("a");
        world.crash(&owner);
        for other in nodes.iter().filter(|node| leaves && **node != owner) {
            let message = Message::Leave;
            world.give(other, Event::Message { from: owner.clone(), message });
            let known = world.nodes[other].machine.view().get(&name("a"), &owner);
            assert_eq!(known.map(|claim| &claim.phase), Some(&Phase::Running));
        }
        world.run_for(S * 2);
        let taker = world.runner("a");
        let expected = if leaves { Cause::Released } else { Cause::Crash };
        let started = |n: &Notice| matches!(n, Notice::Started { cause, .. } if *cause == expected);
        assert_eq!(world.told(&taker, started), 1, "leaves: {leaves}");
        let strikes = world.claim_of(&taker, "a").unwrap().strikes;
        assert_eq!(strikes, u8::from(!leaves), "leaves: {leaves}");
    }
}

/// Two that leave at once: the one that has gone first acknowledges nothing, and needs no word any more.
#[test]
fn who_leaves_as_well_is_not_waited_for() {
    let (mut world, nodes) = World::cluster(7, 4);
    world.blocked = Some(|from, to, message| {
        let between = (from.node.as_str(), to.node.as_str()) == ("n1", "n0");
        between && matches!(message, Message::LeaveHeard)
    });
    world.give(&nodes[0], Event::Leave);
    world.give(&nodes[1], Event::Leave);
    world.run_for(MS * 300);
    for leaves in &nodes[..2] {
        assert!(world.nodes[leaves].left.is_some(), "{leaves} waits for nobody");
    }
}
