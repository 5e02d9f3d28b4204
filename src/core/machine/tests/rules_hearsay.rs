//! Peers republish what they hear: Rule 2, and Rule 13 where a path is cut.

use std::time::Duration;

use uuid::Uuid;

use super::world::{Disk, MS, Setup, World, name};
use crate::core::claim::Phase;
use crate::core::ids::{NodeId, SessionId};
use crate::core::io::{Event, Notice};
use crate::core::members::Members;
use crate::core::message::{Message, Said};
use crate::core::record::NodeState;
use crate::core::time::Time;
use crate::core::timing::Timing;

const S: Duration = Duration::from_secs(1);
const START: Time = Time::from_micros(1_000_000_000);

fn session(node: &str) -> SessionId {
    SessionId::new(NodeId::new(node).unwrap(), Uuid::from_u128(1))
}

/// The state of `of`, as `at` knows it.
fn state(world: &World, at: &SessionId, of: &SessionId) -> Option<NodeState> {
    world.nodes[at].machine.members().get(of).map(|peer| peer.state)
}

fn is_inquiry(message: &Message) -> bool {
    matches!(message, Message::Unheard { .. } | Message::Hearsay { .. })
}

#[test]
fn an_overtaken_header_takes_nothing_back() {
    let mut members = Members::new(START, session("me"), Timing::default(), true, &[]);
    let (a, b) = (session("a"), session("b"));
    members.heard(START, &a, (NodeState::Up, 1), None);
    members.heard(START, &a, (NodeState::Draining, 3), None);
    members.heard(START, &a, (NodeState::Up, 2), None);
    assert_eq!(members.get(&a).unwrap().state, NodeState::Draining);
    assert!(!members.hearsay(START, &a, (NodeState::Up, 2), &b, true), "old news");
    assert_eq!(members.get(&a).unwrap().state, NodeState::Draining);
    assert!(members.hearsay(START, &a, (NodeState::Leaving, 4), &b, true));
    assert_eq!(members.get(&a).unwrap().state, NodeState::Leaving);
    assert!(!members.hearsay(START, &b, (NodeState::Up, 1), &a, true), "unknown");
    assert!(members.get(&b).is_none());
}

/// Rule 4: what somebody else has heard says nothing of whether it still lives.
#[test]
fn hearsay_is_no_news_of_life() {
    let mut members = Members::new(START, session("me"), Timing::default(), true, &[]);
    let (a, b) = (session("a"), session("b"));
    members.heard(START, &a, (NodeState::Up, 1), None);
    members.suspicion(START, &a, true);
    let mut now = START;
    for version in 2..14 {
        now = now + S;
        members.heard(now, &b, (NodeState::Up, 1), Some(now));
        members.hearsay(now, &a, (NodeState::Up, version), &b, true);
        members.tick(now);
    }
    assert!(members.is_gone(&a));
}

/// A fenced header is no news even if an earlier one that is not overtakes it.
#[test]
fn an_overtaken_header_is_no_life_of_a_fenced_session() {
    let mut members = Members::new(START, session("me"), Timing::default(), true, &[]);
    let a = session("a");
    members.heard(START, &a, (NodeState::Fenced, 5), None);
    let news = members.get(&a).unwrap().news;
    members.heard(START + S, &a, (NodeState::Up, 4), None);
    assert_eq!(members.get(&a).unwrap().news, news);
}

#[test]
fn nobody_asks_while_everybody_hears_everybody() {
    let (mut world, _) = World::cluster(1, 5);
    world.record_messages = true;
    world.run_for(S * 20);
    assert!(world.sent.iter().all(|(.., message)| !is_inquiry(message)));
}

/// Rule 2: the header reaches who cannot hear it, and excludes what it is to exclude.
#[test]
fn a_state_reaches_who_cannot_hear_it() {
    let (mut world, nodes) = World::cluster(2, 3);
    let (a, c) = (&nodes[0], &nodes[2]);
    world.cut(a, c);
    world.run_for(S * 7);
    assert_eq!(state(&world, c, a), Some(NodeState::Up));
    world.give(a, Event::Cordon(true));
    world.run_for(MS * 1500);
    assert_eq!(state(&world, c, a), Some(NodeState::Cordoned));
    // C places nothing there.
    world.goal = 100_000;
    for i in 0..20 {
        world.start(c, &format!("t{i}"));
    }
    world.run_for(S * 3);
    assert!(world.stretches.iter().all(|stretch| stretch.session != *a));
    world.give(a, Event::Cordon(false));
    world.run_for(MS * 1500);
    assert_eq!(state(&world, c, a), Some(NodeState::Up));
}

/// By two hops, too: whoever has it by hearsay passes it on.
#[test]
fn a_state_travels_along_a_chain() {
    let (mut world, nodes) = World::cluster(3, 4);
    let (a, b, c, d) = (&nodes[0], &nodes[1], &nodes[2], &nodes[3]);
    for (x, y) in [(a, c), (a, d), (b, d)] {
        world.cut_both(x, y);
    }
    world.run_for(S * 7);
    world.give(a, Event::Cordon(true));
    world.run_for(MS * 2500);
    for node in [b, c, d] {
        assert_eq!(state(&world, node, a), Some(NodeState::Cordoned), "{node}");
    }
}

/// Rule 2: what a header that does not come here says to have stopped counts as released.
#[test]
fn a_watermark_passed_on_releases() {
    let (mut world, runner, others) = World::owned(4, 3, &Setup::default());
    world.run_for(S);
    let (at, by) = (&others[0], &others[1]);
    let claim = world.claim_of(&runner, "a").unwrap().clone();
    let said = |watermark, version| Said {
        session: runner.clone(),
        version,
        state: NodeState::Up,
        watermark,
        released: Vec::new(),
        linked: true,
    };
    let phase = |world: &World| {
        world.nodes[at].machine.view().get(&name("a"), &runner).unwrap().phase.clone()
    };
    let hear = |world: &mut World, said| {
        let message = Message::Hearsay { said: vec![said] };
        world.give(at, Event::Message { from: by.clone(), message });
    };
    hear(&mut world, said(claim.number - 1, 9));
    assert_eq!(phase(&world), Phase::Running);
    hear(&mut world, said(claim.number, 10));
    assert_eq!(phase(&world), Phase::Released);
}

/// Rule 13: a node to which there is no direct path, in either direction, is asked by relay, also if
/// nobody has hinted at it.
#[test]
fn a_node_known_only_by_hearsay_is_asked_by_relay() {
    let (mut world, nodes) = World::cluster(5, 2);
    let (a, b) = (&nodes[0], &nodes[1]);
    world.cut_both(a, &session("n2"));
    let c = world.boot("n2", Setup::default(), Disk::default());
    world.run_for(S * 14);
    assert_eq!(world.nodes[&c].machine.state(), NodeState::Up);
    for (at, of) in [(&c, a), (a, &c)] {
        assert_eq!(state(&world, at, of), Some(NodeState::Up), "{of} at {at}");
        assert!(!world.nodes[at].machine.members().get(of).unwrap().met);
        assert_eq!(world.told(at, |n| *n == Notice::PeerUp(of.clone())), 1);
    }
    world.record_messages = true;
    world.goal = 100_000;
    let called = world.now;
    for i in 0..10 {
        world.start(a, &format!("t{i}"));
        world.start(&c, &format!("t{i}"));
    }
    world.run_for(S);
    let asks = |message: &Message| matches!(message, Message::Ask { .. });
    for (from, to) in [(&c, a), (a, &c)] {
        let first = world.sent.iter().find(|(_, by, _, message)| by == from && asks(message));
        let relayed = world.sent.iter().find(|(_, by, via, message)| {
            by == from
                && via == b
                && matches!(message, Message::Relay { to: end, message, .. } if end == to && asks(message))
        });
        let relayed = relayed.unwrap_or_else(|| panic!("{from} never asks {to}"));
        assert_eq!(relayed.0, first.unwrap().0, "only at a hint");
    }
    for i in 0..10 {
        let started = world.since(&format!("t{i}"), called);
        assert_eq!(started.len(), 1, "t{i}: {started:?}");
        assert!(started[0].start.since(called) < MS * 500, "it was waited for in vain");
    }
    world.run_for(S * 20);
    world.assert_no_overlap();
}

/// The one who relays can die: others are asked then, and relay.
#[test]
fn another_peer_takes_over_the_relaying() {
    let (mut world, nodes) = World::cluster(6, 4);
    let (a, c) = (&nodes[0], &nodes[2]);
    world.cut_both(a, c);
    world.run_for(S * 8);
    let (via, _) = world.nodes[c].machine.members().get(a).unwrap().via.clone().unwrap();
    world.crash(&via);
    world.run_for(S * 2);
    world.give(a, Event::Cordon(true));
    world.run_for(MS * 1500);
    assert_eq!(state(&world, c, a), Some(NodeState::Cordoned));
    let (next, _) = world.nodes[c].machine.members().get(a).unwrap().via.clone().unwrap();
    assert_ne!(next, via);
}
