//! Sessions that peers speak of and nobody has met: they are bounded, push nobody out, and pass.

use std::time::Duration;

use uuid::Uuid;

use super::rules_claims::short;
use super::world::{Setup, World, name};
use crate::core::claim::{Claim, Phase};
use crate::core::ids::{NodeId, SessionId};
use crate::core::io::{Event, Gone};
use crate::core::members::Members;
use crate::core::message::{Answer, Message, Verdict};
use crate::core::record::NodeState;
use crate::core::time::Time;
use crate::core::timing::Timing;

const S: Duration = Duration::from_secs(1);
const START: Time = Time::from_micros(1_000_000_000);

fn of(node: &str, number: u128) -> SessionId {
    SessionId::new(NodeId::new(node).unwrap(), Uuid::from_u128(number))
}

fn members() -> Members {
    Members::new(START, of("me", 1), Timing::default(), true, &[])
}

/// Peers cannot make a node's memory grow without bound.
#[test]
fn sessions_known_are_bounded() {
    let mut members = members();
    for i in 0..10_100 {
        members.entry(&of("b", i), START);
    }
    assert_eq!(members.iter().count(), Members::MAX_HEARSAY);
}

/// Sessions that somebody invents keep nobody out who is there, and push nobody out.
#[test]
fn hearsay_makes_room_for_who_shows_itself_and_never_the_other_way_round() {
    let mut members = members();
    for i in 0..5_000 {
        members.entry(&of("invented", i), START);
    }
    for i in 0..1_000 {
        members.heartbeat(START, &of("gossiped", i));
        members.heard(START, &of("heard", i), (NodeState::Up, 1), None);
        members.link_up(START, &of("linked", i));
    }
    assert!(!members.take_displaced().is_empty());
    for i in 5_000..10_000 {
        members.entry(&of("invented", i), START);
        members.told_gone(START, &of("invented", i + 5_000), Gone::Left);
    }
    let real = |session: &SessionId| session.node.as_str() != "invented";
    assert_eq!(members.iter().filter(|(session, _)| real(session)).count(), 3_000);
    assert!(members.iter().count() <= Members::MAX);
    assert!(members.iter().filter(|(_, peer)| peer.is_hearsay()).count() <= Members::MAX_HEARSAY);
}

/// Rule 4: it counts from the first word of it; and gossip's failure detector will never speak.
#[test]
fn a_session_that_nothing_shows_but_words_becomes_silent_and_is_forgotten_with_its_claims() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(61, 3, &setup);
    world.goal = 100_000;
    world.start(&nodes[0], "t0");
    world.run_for(S * 3);
    let live = world.owner(&nodes[0], "t0").unwrap().clone();
    let of = |number| of("invented", number);
    let known = |i: u128| Claim {
        name: name("invented"),
        session: of(i),
        phase: Phase::Running,
        ..live.clone()
    };
    let answer = Answer {
        held: None,
        name: name("invented"),
        epoch: live.epoch,
        verdict: Verdict::Ok,
        askers: Vec::new(),
        known: (0..10).map(known).collect(),
    };
    let said = [
        Message::Answers { answers: vec![answer] },
        Message::Dead { session: of(10) },
        Message::Gone { sessions: vec![(of(11), Gone::Left)] },
        Message::Relay {
            from: of(12),
            to: nodes[0].clone(),
            message: Box::new(Message::FindState { name: name("t0"), run: live.run }),
        },
    ];
    for message in said {
        world.give(&nodes[0], Event::Message { from: nodes[1].clone(), message });
    }
    let machine = |world: &World| world.nodes[&nodes[0]].machine.clone();
    assert_eq!(machine(&world).members().iter().count(), 2 + 13);
    assert_eq!(machine(&world).view().claims(&name("invented")).count(), 10);
    world.run_for(S * 4);
    let gone = |i: u128| machine(&world).members().is_gone(&of(i));
    assert!((0..13).all(gone));
    world.run_for(S * 12);
    assert_eq!(machine(&world).members().iter().count(), 2);
    assert_eq!(machine(&world).view().claims(&name("invented")).count(), 0);
    assert_eq!(world.running("t0").len(), 1);
}
