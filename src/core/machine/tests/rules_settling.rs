//! Nothing starts without settling: Rule 13.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::rules_claims::{claim, publish};
use super::world::{Disk, MS, Setup, World, name};
use crate::core::claim::{Claim, Phase, Spec};
use crate::core::ids::{Kind, NodeId, RunId, SessionId};
use crate::core::io::{Action, Cause, Event};
use crate::core::lease::Epoch;
use crate::core::message::{Answer, Message, Question, Refusal, Verdict};
use crate::core::record::NodeState;

const S: Duration = Duration::from_secs(1);

/// Starts of one name on two nodes within a few milliseconds of each other.
fn race(world: &mut World, a: &SessionId, b: &SessionId, apart: u32) -> [(SessionId, u64); 2] {
    let first = world.start(a, "a");
    world.run_for(MS / 5 * apart);
    let second = world.start(b, "a");
    [(a.clone(), first), (b.clone(), second)]
}

fn assert_one_run(world: &World, calls: &[(SessionId, u64)], seed: u64) {
    assert_eq!(world.running("a").len(), 1, "seed {seed}");
    world.assert_no_overlap();
    let runs: Vec<_> = calls.iter().map(|(n, c)| world.nodes[n].replies.get(c).cloned()).collect();
    assert!(runs[0].is_some() && runs.windows(2).all(|w| w[0] == w[1]), "seed {seed}: {runs:?}");
}

/// Asks are relayed one hop where a link is cut.
#[test]
fn a_cut_link_does_not_hide_a_claimant() {
    for seed in 0..15 {
        let (mut world, nodes) = World::cluster(seed, 3);
        world.cut_both(&nodes[0], &nodes[2]);
        world.run_for(S * 6);
        let calls = race(&mut world, &nodes[0], &nodes[2], seed as u32);
        world.run_for(S * 5);
        assert_one_run(&world, &calls, seed);
    }
}

/// A peer names any other asker it knows: two claimants that have never met find each other.
#[test]
fn a_third_node_names_the_other_asker() {
    for seed in 0..10 {
        let mut world = World::new(seed);
        let a = world.boot("n0", Setup::default(), Disk::default());
        world.boot("n1", Setup::default(), Disk::default());
        world.run_for(S * 4);
        world.cut_both(&a, &SessionId::new(NodeId::new("n2").unwrap(), a.nonce));
        let c = world.boot("n2", Setup::default(), Disk::default());
        world.run_for(S * 15);
        let calls = race(&mut world, &a, &c, seed as u32);
        world.run_for(S * 5);
        assert_one_run(&world, &calls, seed);
    }
}

/// *Held* carries the holder's claim, and `run` returns the holder's run.
#[test]
fn a_late_start_returns_the_holders_run() {
    let (mut world, nodes) = World::cluster(1, 3);
    let first = world.start(&nodes[0], "a");
    world.run_for(S);
    let run = world.nodes[&nodes[0]].replies[&first].clone();
    for node in &nodes {
        let call = world.start(node, "a");
        world.run_for(S);
        assert_eq!(world.nodes[node].replies[&call], run);
    }
    world.assert_no_overlap();
}

/// Where answers are lost, R_eta lets two start: Rule 21 ends that.
#[test]
fn lost_answers_delay_a_start_and_a_double_start_ends() {
    let setup = Setup { kinds: vec![("count", 1)], ..Setup::default() };
    for seed in 0..5 {
        let (mut world, nodes) = World::cluster_of(seed, 3, &setup);
        world.goal = 100_000;
        world.blocked = Some(|_, _, m| matches!(m, Message::Ask { .. } | Message::Answers { .. }));
        let began = world.now;
        world.start(&nodes[0], "a");
        world.start(&nodes[1], "a");
        world.run_for(S * 15);
        let first = world.stretches.iter().find(|s| s.name == name("a")).unwrap();
        assert!(first.start.since(began) >= S * 2, "not before R_eta");
        assert_eq!(world.running("a").len(), 1, "seed {seed}");
        let longest = world.overlaps().into_iter().map(|(.., by)| by).max().unwrap_or_default();
        assert!(longest < S * 4, "{longest:?}");
    }
}

/// A node that answered OK refuses offers at or below that claim.
#[test]
fn who_said_ok_refuses_lower_offers() {
    let (mut world, nodes) = World::cluster(2, 3);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S);
    let owner = world.runner("a");
    let others: Vec<_> = nodes.iter().filter(|n| **n != owner).cloned().collect();
    let mine = world.claim_of(&owner, "a").unwrap().clone();
    let spec = world.nodes[&owner].machine.spec(&name("a")).unwrap().clone();
    // Another node claims far above, and everybody has said OK to it.
    let epoch = Epoch(mine.epoch.0 + 10);
    let asked = Claim {
        session: others[0].clone(),
        number: 99,
        epoch,
        phase: Phase::Claimed,
        ..mine.clone()
    };
    let ask =
        Message::Ask { asks: vec![Question { claim: asked, spec: spec.clone(), from: None }] };
    world.record_messages = true;
    world.give(&others[1], Event::Message { from: others[0].clone(), message: ask });
    for offered in [mine.epoch.next(), epoch] {
        let offer = Message::Offer {
            claim: mine.clone(),
            epoch: offered,
            spec: spec.clone(),
            desired: None,
            idle: false,
            version: None,
            cause: Cause::Drain,
        };
        world.give(&others[1], Event::Message { from: owner.clone(), message: offer });
    }
    let ok = |m: &Message| match m {
        Message::Answers { answers } => answers.iter().any(|a| a.verdict == Verdict::Ok),
        _ => false,
    };
    assert!(world.sent.iter().any(|(_, from, _, m)| *from == others[1] && ok(m)));
    let refused = world.sent.iter().filter(|(_, from, _, m)| {
        *from == others[1]
            && matches!(m, Message::OfferReply { result: Err(Refusal::Held(held)), .. } if *held == epoch)
    });
    assert_eq!(refused.count(), 2);
}

/// Released records are no reason for *Held*: the answer names them, the asker claims above.
#[test]
fn a_released_name_is_claimed_above_its_release() {
    let (mut world, nodes) = World::cluster(3, 3);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S);
    let owner = world.runner("a");
    let before = world.claim_of(&owner, "a").unwrap().epoch;
    world.drain(&owner, Duration::ZERO);
    world.run_for(S * 3);
    let taker = world.runner("a");
    assert_ne!(taker, owner);
    assert!(world.claim_of(&taker, "a").unwrap().epoch > before);
    world.assert_no_overlap();
}

/// Whoever answers keeps claim and spec as if gossiped: a claimant that dies is taken over from.
#[test]
fn an_asked_name_survives_its_claimant() {
    let (mut world, nodes) = World::cluster(4, 3);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world
        .run_until(S, "somebody claims it", |w| nodes.iter().any(|n| w.claim_of(n, "a").is_some()));
    world.run_for(MS);
    let claimant = nodes.iter().find(|n| world.claim_of(n, "a").is_some()).unwrap().clone();
    world.crash(&claimant);
    world.run_for(S * 15);
    assert_eq!(world.running("a").len(), 1);
}

/// A joining node is asked too, since it may be up by now, and answers at once.
#[test]
fn a_joining_node_is_asked_and_answers() {
    let (mut world, nodes) = World::cluster(5, 2);
    world.goal = 100_000;
    let joining = world.boot("n2", Setup::default(), Disk::default());
    world.run_for(MS * 300);
    assert_eq!(world.nodes[&joining].machine.state(), NodeState::Joining);
    world.record_messages = true;
    let began = world.now;
    world.start(&nodes[0], "a");
    world.run_for(MS * 10);
    assert_eq!(world.running("a").len(), 1, "at once: {:?}", world.now.since(began));
    let asked = |m: &Message| matches!(m, Message::Ask { .. });
    assert!(world.sent.iter().any(|(_, _, to, m)| *to == joining && asked(m)));
}

/// One that joins and does not answer holds nobody up for longer than R_eta.
#[test]
fn a_joining_node_that_does_not_answer_is_not_waited_for() {
    let (mut world, nodes) = World::cluster(5, 2);
    world.goal = 100_000;
    let joining = world.boot("n2", Setup::default(), Disk::default());
    world.run_for(MS * 300);
    world.pause(&joining, S * 60);
    let began = world.now;
    world.start(&nodes[0], "a");
    world.run_until(S * 3, "it runs", |world| !world.running("a").is_empty());
    let waited = world.now.since(began);
    assert!((S * 2..MS * 2_200).contains(&waited), "{waited:?}");
}

/// Nodes that have just become up, and have not heard that of each other, start no second copy, and
/// `run` returns the same run on all of them.
#[test]
fn nodes_that_are_up_at_the_same_time_start_a_name_once() {
    for seed in 0..40 {
        let mut world = World::new(seed);
        world.goal = 100_000;
        // Whoever becomes up tells nobody but in the header of its next datagram.
        world.blocked = Some(|_, _, m| matches!(m, Message::State { .. }));
        let nodes: Vec<SessionId> = (0..3)
            .map(|i| world.boot(&format!("n{i}"), Setup::default(), Disk::default()))
            .collect();
        let mut calls = Vec::new();
        while calls.len() < nodes.len() {
            world.run_for(MS);
            for node in &nodes {
                let up = world.nodes[node].machine.state() == NodeState::Up;
                if up && calls.iter().all(|(at, _)| at != node) {
                    calls.push((node.clone(), world.start(node, "a")));
                }
            }
        }
        world.run_for(S * 5);
        assert_one_run(&world, &calls, seed);
    }
}

/// Rules 2 and 13: a header can say that a claim has stopped before anybody has read that its run has
/// ended. Whoever waits for what comes of the claim starts no other run meanwhile.
#[test]
fn a_claim_whose_end_is_overtaken_by_a_header_is_not_taken_for_nothing() {
    let (mut world, nodes) = World::cluster(6, 3);
    let (at, claimant) = (&nodes[0], nodes[1].clone());
    let run = RunId { number: 1, uuid: Uuid::from_u128(7) };
    let spec = Spec { name: name("a"), run, kind: Kind::new("count").unwrap(), args: Bytes::new() };
    let claimed = Claim { session: claimant.clone(), ..claim("a", run, 5, "n1", Phase::Claimed) };
    let ask = Message::Ask { asks: vec![Question { claim: claimed.clone(), spec, from: None }] };
    world.give(at, Event::Message { from: claimant.clone(), message: ask });
    let call = world.start(at, "a");
    world.run_for(MS * 100);
    assert_eq!(world.nodes[at].replies.get(&call), None, "it is not settled");
    let heard = Event::Heard {
        from: claimant.clone(),
        state: NodeState::Up,
        version: 1_000,
        watermark: 1,
        released: Vec::new(),
        echoed: None,
    };
    world.give(at, heard);
    world.run_for(MS * 100);
    assert_eq!(world.nodes[at].replies.get(&call), None, "it has only stopped");
    let finished = Claim { version: 9, phase: Phase::Finished, ..claimed };
    let changes = vec![(name("a"), Some(finished))];
    world.give(at, Event::Claims { of: claimant, changes });
    assert_eq!(world.nodes[at].replies.get(&call), Some(&Ok(run)));
    world.run_for(S * 3);
    assert!(world.stretches.is_empty());
}

/// Rule 8: of two that start another run at once, both get the same one.
#[test]
fn two_reruns_at_once_are_one_run() {
    for apart in 0..25 {
        let (mut world, nodes) = World::cluster(apart, 3);
        world.goal = 10;
        world.start(&nodes[0], "a");
        world.run_for(S * 3);
        let calls: Vec<_> = nodes
            .iter()
            .map(|node| {
                let call = world.start_kind(node, "a", "count", true);
                world.run_for(MS / 5 * apart as u32);
                (node.clone(), call)
            })
            .collect();
        world.run_for(S * 5);
        let runs: Vec<_> = calls.iter().map(|(n, c)| world.nodes[n].replies[c].clone()).collect();
        assert!(runs.windows(2).all(|w| w[0] == w[1]), "{apart}: {runs:?}");
        assert_eq!(runs[0].as_ref().unwrap().number, 2, "{apart}");
        let ended: Vec<u64> = world.finished[&name("a")].iter().map(|end| end.0.number).collect();
        assert_eq!(ended, [1, 2], "{apart}");
    }
}

/// Rules 8 and 13: a run that stepped back for another one is over: it is not born when that ends.
#[test]
fn a_run_that_stepped_back_never_starts() {
    for apart in 0..25 {
        let (mut world, nodes) = World::cluster(apart, 3);
        world.goal = 10;
        world.start(&nodes[0], "a");
        world.run_for(MS / 5 * apart as u32);
        // Its clock is behind: of the two, the later run is the older one.
        let spec = Spec {
            name: name("a"),
            run: RunId { number: 0, uuid: Uuid::from_u128(1) },
            kind: Kind::new("count").unwrap(),
            args: Bytes::new(),
        };
        world.give(&nodes[1], Event::Run { call: 1_000, spec, again: false });
        world.run_for(S * 20);
        assert_eq!(world.finished[&name("a")].len(), 1, "{apart}");
        assert!(world.running("a").is_empty());
        for node in &nodes {
            assert_eq!(world.owner(node, "a").unwrap().phase, Phase::Finished, "{apart}");
        }
    }
}

/// Rule 13: it starts when all have answered what it asks now. What was answered to a claim that it has
/// stepped over was said before others may have claimed above that.
#[test]
fn an_answer_to_an_earlier_claim_does_not_settle_a_later_one() {
    let (mut world, nodes) = World::cluster(8, 2);
    world.goal = 100_000;
    world.blocked = Some(|_, _, m| matches!(m, Message::Answers { .. }));
    world.start(&nodes[0], "a");
    world.run_for(MS);
    let claimant = nodes.iter().find(|n| world.claim_of(n, "a").is_some()).unwrap().clone();
    let peer = nodes.iter().find(|n| **n != claimant).unwrap().clone();
    let first = world.claim_of(&claimant, "a").unwrap().clone();
    let above = claim("a", first.run, first.epoch.0 + 10, "ghost", Phase::Released);
    publish(&mut world, std::slice::from_ref(&claimant), &above);
    let begun = world.now;
    assert!(world.claim_of(&claimant, "a").unwrap().epoch > above.epoch, "it asks anew");
    let late = Answer {
        held: None,
        name: name("a"),
        epoch: first.epoch,
        verdict: Verdict::Ok,
        askers: Vec::new(),
        known: Vec::new(),
    };
    let message = Message::Answers { answers: vec![late] };
    world.give(&claimant, Event::Message { from: peer, message });
    world.run_until(S * 5, "it runs unanswered", |w| !w.running("a").is_empty());
    let waited = world.now.since(begun);
    assert!(waited >= S * 2, "it started on an answer to another question, after {waited:?}");
}

/// Rule 13: whoever has asked is asked, listed as live or not. Gossip that is older than the question
/// makes nobody forget it.
#[test]
fn a_claimant_asks_whoever_has_asked_it() {
    let (world, nodes) = World::cluster(7, 2);
    let (me, peer, now) = (&nodes[0], &nodes[1], world.clock());
    let mut machine = world.nodes[me].machine.clone();
    let stranger = SessionId::new(NodeId::new("stranger").unwrap(), Uuid::from_u128(9));
    let spec = |uuid| Spec {
        name: name("a"),
        run: RunId { number: 1, uuid: Uuid::from_u128(uuid) },
        kind: Kind::new("count").unwrap(),
        args: Bytes::new(),
    };
    let relayed = |message| Message::Relay {
        from: stranger.clone(),
        to: me.clone(),
        message: Box::new(message),
    };
    let theirs = Claim {
        session: stranger.clone(),
        number: 2,
        ..claim("a", spec(7).run, 5, "stranger", Phase::Claimed)
    };
    let question = Question { claim: theirs.clone(), spec: spec(7), from: None };
    let message = relayed(Message::Ask { asks: vec![question] });
    machine.handle(now, Event::Message { from: peer.clone(), message });
    // It had retracted an earlier record of the name.
    let changes = vec![(name("a"), None)];
    machine.handle(now, Event::Claims { of: stranger.clone(), changes });
    assert!(machine.members().asked().all(|session| *session != stranger), "it is not listed");
    let start = Message::Start { call: 1, spec: spec(8) };
    machine.handle(now, Event::Message { from: peer.clone(), message: start });
    let mine = machine.view().get(&name("a"), me).unwrap().clone();
    assert_eq!(mine.phase, Phase::Claimed);
    let answer = |verdict| Message::Answers {
        answers: vec![Answer {
            held: None,
            name: name("a"),
            epoch: mine.epoch,
            verdict,
            askers: Vec::new(),
            known: Vec::new(),
        }],
    };
    let message = answer(Verdict::Ok);
    machine.handle(now, Event::Message { from: peer.clone(), message });
    assert_eq!(machine.view().get(&name("a"), me).unwrap().phase, Phase::Claimed, "not settled");
    let message = relayed(answer(Verdict::Held(Box::new(theirs))));
    machine.handle(now, Event::Message { from: peer.clone(), message });
    let asks = |m: &Message| matches!(m, Message::Ask { .. });
    let (mut asked, mut started) = (false, false);
    while let Some(action) = machine.poll() {
        match action {
            Action::Send { message: Message::Relay { to, message, .. }, .. } => {
                asked |= to == stranger && asks(&message);
            }
            Action::Start { .. } => started = true,
            _ => {}
        }
    }
    assert!(asked && !started);
}

/// Rule 13: `run` returns when a peer knows what is to run, where one lives: else it would be told of a
/// run that is gone with the node that has begun it.
#[test]
fn run_does_not_return_before_a_peer_knows_the_spec() {
    let (mut world, nodes) = World::cluster(9, 3);
    world.goal = 100_000;
    world.blocked = Some(|_, _, m| matches!(m, Message::Answers { .. }));
    let call = world.start(&nodes[0], "a");
    world.run_until(S * 4, "it runs unanswered", |w| !w.running("a").is_empty());
    world.run_for(S);
    assert_eq!(world.nodes[&nodes[0]].replies.get(&call), None);
    world.blocked = None;
    world.run_for(S * 3);
    assert!(world.nodes[&nodes[0]].replies[&call].is_ok());
    world.assert_no_overlap();
}

/// A cluster in which "a" is claimed and no answer arrives: its claimant, another node, the claim.
fn unanswered(seed: u64, n: usize) -> (World, SessionId, SessionId, Claim) {
    let (mut world, nodes) = World::cluster(seed, n);
    world.goal = 100_000;
    world.blocked = Some(|_, _, m| matches!(m, Message::Answers { .. }));
    world.start(&nodes[0], "a");
    world.run_for(MS * 10);
    let claimant = nodes.iter().find(|n| world.claim_of(n, "a").is_some()).unwrap().clone();
    let other = nodes.into_iter().find(|node| *node != claimant).unwrap();
    let claim = world.claim_of(&claimant, "a").unwrap().clone();
    assert_eq!(claim.phase, Phase::Claimed);
    (world, claimant, other, claim)
}

/// What one peer answers to a claim.
fn answered(claim: &Claim, verdict: Verdict, askers: Vec<SessionId>) -> Message {
    let (name, epoch) = (claim.name.clone(), claim.epoch);
    Message::Answers {
        answers: vec![Answer { held: None, name, epoch, verdict, askers, known: Vec::new() }],
    }
}

/// Rule 13: whoever an answer names as another asker is waited for too.
#[test]
fn whoever_an_answer_names_is_waited_for_too() {
    for named in [true, false] {
        let (mut world, claimant, peer, claim) = unanswered(10, 2);
        let stranger = SessionId::new(NodeId::new("stranger").unwrap(), Uuid::from_u128(9));
        let askers = if named { vec![stranger, claimant.clone()] } else { vec![claimant.clone()] };
        let message = answered(&claim, Verdict::Ok, askers);
        world.give(&claimant, Event::Message { from: peer, message });
        world.run_for(MS * 10);
        let settled = !world.running("a").is_empty();
        assert_eq!(settled, !named);
    }
}

/// Rule 13: an end of the run, heard of while nobody answers, is stepped back for.
#[test]
fn a_claimant_steps_back_for_an_end_of_its_run() {
    let (mut world, claimant, _, mine) = unanswered(12, 3);
    let end = claim("a", mine.run, mine.epoch.0 - 1, "ghost", Phase::Finished);
    publish(&mut world, std::slice::from_ref(&claimant), &end);
    assert_eq!(world.claim_of(&claimant, "a").unwrap().phase, Phase::Released);
}

/// Rule 8: the claim of a run that steps back for another run says that its own is over, or somebody would
/// take it up when that one ends.
#[test]
fn a_claim_that_steps_back_for_another_run_is_superseded() {
    let (mut world, claimant, peer, mine) = unanswered(13, 3);
    let older = RunId { uuid: Uuid::from_u128(1), ..mine.run };
    for (run, phase) in [(mine.run, Phase::Released), (older, Phase::Superseded)] {
        let mut world = world.clone();
        let theirs = Claim {
            session: peer.clone(),
            ..claim("a", run, mine.epoch.0 + 1, "any", Phase::Running)
        };
        let message = answered(&mine, Verdict::Held(Box::new(theirs)), Vec::new());
        world.give(&claimant, Event::Message { from: peer.clone(), message });
        assert_eq!(world.claim_of(&claimant, "a").unwrap().phase, phase);
    }
    world.run_for(MS);
}
