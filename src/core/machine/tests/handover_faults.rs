//! Handing over when something fails (Rules 15 to 18, H1 to H6).

use std::time::Duration;

use bytes::Bytes;

use super::world::{Disk, Fate, Fault, MS, Setup, Trip, World, name};
use crate::core::branch::{Header, Position};
use crate::core::claim::{Phase, Want};
use crate::core::ids::{Kind, SessionId};
use crate::core::io::{Action, CallError, Event, Notice};
use crate::core::message::{Message, Refusal};
use crate::core::record::{NodeRecord, NodeState, Versions};
use crate::core::time::Time;

const S: Duration = Duration::from_secs(1);

/// The target of the offer that a drain of `owner` makes, told by a rehearsal.
pub(super) fn target_of(world: &World, owner: &SessionId) -> SessionId {
    let mut rehearsal = world.clone();
    rehearsal.drain(owner, S * 25);
    rehearsal.run_for(S);
    rehearsal.running("a")[0].clone()
}

/// A cluster in which the second step of "a" takes another four seconds: its owner, and the others.
pub(super) fn in_a_long_step(seed: u64) -> (World, SessionId, Vec<SessionId>) {
    let (mut world, nodes) = World::cluster(seed, 3);
    world.goal = 100_000;
    world.steps.insert(name("a"), S * 6);
    world.start(&nodes[0], "a");
    world.run_for(S * 8);
    let owner = world.runner("a");
    let others = nodes.into_iter().filter(|node| *node != owner).collect();
    (world, owner, others)
}

/// One copy, nowhere two, no step lost that a replica had acknowledged (H1, H3, H4).
pub(super) fn assert_moved(world: &World) {
    world.assert_no_overlap();
    assert_eq!(world.running("a").len(), 1, "exactly one copy");
    let mut of: Vec<_> = world.stretches.iter().filter(|s| s.name == name("a")).collect();
    of.sort_by_key(|s| s.start);
    for pair in of.windows(2) {
        assert!(pair[0].epoch < pair[1].epoch, "H2: {pair:?}");
        assert!(pair[1].from_seq + 1 >= pair[0].to_seq, "H4: {pair:?}");
    }
}

fn is_offer_reply(message: &Message) -> bool {
    matches!(message, Message::OfferReply { .. })
}
fn is_checkpoint_reply(message: &Message) -> bool {
    matches!(message, Message::CheckpointReply { .. })
}
fn is_transferred(message: &Message) -> bool {
    matches!(message, Message::Transferred { .. })
}
fn is_taken(message: &Message) -> bool {
    matches!(message, Message::Taken { .. })
}
fn is_offer(message: &Message) -> bool {
    matches!(message, Message::Offer { .. })
}

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
    ("tell", |_, _, a| matches!(a, Action::Send { message: Message::Transferred { .. }, .. })),
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
fn an_offer_that_is_refused_goes_to_the_next_node() {
    let small = Setup { max_running: 1, ..Setup::default() };
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
    let _ = small;
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

#[test]
fn with_no_peer_a_drain_ends_at_once_and_loses_no_name() {
    let (mut world, owner, _) = World::owned(5, 1, &Setup { durable: true, ..Setup::default() });
    world.drain(&owner, S * 25);
    world.run_until(S * 2, "drained", |w| w.nodes[&owner].drained.is_some());
    assert!(world.running("a").is_empty());
    assert_eq!(world.nodes[&owner].owners[&name("a")].phase, Phase::Released);
    world.crash(&owner);
    let (disk, setup) = (world.nodes[&owner].disk.clone(), world.nodes[&owner].setup.clone());
    let seq = world.stretches[0].to_seq;
    world.boot("n0", setup, disk);
    world.run_for(S * 40);
    assert_eq!(world.running("a").len(), 1);
    assert!(world.stretches[1].from_seq >= seq, "{:?}", world.stretches);
}

#[test]
fn two_nodes_that_drain_at_once_hand_all_to_the_third() {
    for seed in 0..10 {
        let (mut world, nodes) = World::cluster(seed, 3);
        world.goal = 100_000;
        for i in 0..20 {
            world.start(&nodes[0], &format!("t{i}"));
        }
        world.run_for(S * 3);
        world.drain(&nodes[0], S * 25);
        world.run_for(MS * (seed * 7 % 60) as u32);
        world.drain(&nodes[1], S * 25);
        world.run_until(S * 25, "both drained", |w| {
            w.nodes[&nodes[0]].drained.is_some() && w.nodes[&nodes[1]].drained.is_some()
        });
        world.run_for(S * 3);
        world.assert_no_overlap();
        for i in 0..20 {
            assert_eq!(world.running(&format!("t{i}")), [nodes[2].clone()], "seed {seed} t{i}");
        }
    }
}

#[test]
fn all_nodes_that_drain_at_once_release_all_and_a_newcomer_takes_it_with_its_state() {
    let (mut world, nodes) = World::cluster(7, 3);
    world.goal = 100_000;
    for i in 0..10 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 3);
    let before = world.steps_done.clone();
    for node in &nodes {
        world.drain(node, S * 5);
    }
    world.run_until(S * 10, "all drained", |w| nodes.iter().all(|n| w.nodes[n].drained.is_some()));
    let newcomer = world.boot("n9", Setup::default(), Disk::default());
    world.run_for(S * 10);
    for node in &nodes {
        world.give(node, Event::Leave);
    }
    world.run_for(S * 20);
    world.assert_no_overlap();
    for i in 0..10 {
        let task = format!("t{i}");
        assert_eq!(world.running(&task), std::slice::from_ref(&newcomer), "{task}");
        let last = world.stretches.iter().rfind(|s| s.name == name(&task)).unwrap();
        assert!(last.from_seq >= before[&name(&task)], "{last:?}");
    }
}

#[test]
fn a_second_signal_waits_for_no_step_boundary() {
    let (mut world, nodes) = World::cluster(8, 3);
    world.goal = 100_000;
    world.steps.insert(name("a"), S * 20);
    world.start(&nodes[0], "a");
    world.run_for(S * 22);
    let owner = world.running("a")[0].clone();
    world.drain(&owner, S * 60);
    world.run_for(S * 2);
    assert_eq!(world.running("a"), std::slice::from_ref(&owner), "it waits for the step");
    let signalled = world.now;
    world.give(&owner, Event::DrainNow);
    world.run_until(S, "drained", |w| w.nodes[&owner].drained.is_some());
    assert!(world.now.since(signalled) < MS * 500);
    world.run_for(S * 2);
    world.assert_no_overlap();
    assert_eq!(world.running("a").len(), 1);
    assert_eq!(world.stretches.last().unwrap().from_seq, 1, "the committed step is not redone");
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

/// A loop that has ended with its runtime leaves its last commit: an offer that stands goes through.
#[test]
fn a_task_that_stops_unbidden_goes_to_whom_it_is_offered() {
    let (mut world, owner, _) = World::owned(44, 3, &Setup::default());
    world.drain(&owner, S * 60);
    let claim = world.claim_of(&owner, "a").unwrap().clone();
    world.end_loop(&owner, "a");
    let (name, epoch) = (claim.name, claim.epoch);
    world.give(&owner, Event::Stopped { name, epoch, sealed: None, dropped: true });
    world.run_for(S);
    assert_eq!(world.told(&owner, |n| matches!(n, Notice::Moved { .. })), 1);
    assert_eq!(world.told(&owner, |n| matches!(n, Notice::Released { .. })), 0);
    world.assert_no_overlap();
    assert!(world.stretches.last().unwrap().from_seq > 10);
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

/// A decision that is not acknowledged is safe: its target has the state.
#[test]
fn a_second_signal_waits_for_no_acknowledgement_either() {
    let (mut world, owner, _) = World::owned(8, 3, &Setup::default());
    world.blocked = Some(|_, _, message| is_transferred(message));
    world.drain(&owner, S * 60);
    world.run_for(S * 3);
    let moving =
        |w: &World| matches!(w.claim_of(&owner, "a").unwrap().phase, Phase::Transferred { .. });
    assert!(moving(&world) && world.nodes[&owner].drained.is_none());
    world.give(&owner, Event::DrainNow);
    world.run_until(S * 2, "drained", |w| w.nodes[&owner].drained.is_some());
    world.blocked = None;
    world.run_for(S * 3);
    assert_moved(&world);
}

#[test]
fn a_budget_of_zero_costs_a_pause_and_nothing_else() {
    let (mut world, nodes) = World::cluster(9, 3);
    world.goal = 100_000;
    for i in 0..20 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 3);
    let tasks: Vec<String> = (0..20).map(|i| format!("t{i}")).collect();
    let here: Vec<&String> =
        tasks.iter().filter(|task| world.running(task) == [nodes[0].clone()]).collect();
    assert!(here.len() >= 4, "placement spreads: {here:?}");
    let runs: Vec<_> = here.iter().map(|task| world.owner(&nodes[1], task).unwrap().run).collect();
    world.drain(&nodes[0], Duration::ZERO);
    world.run_until(S * 2, "drained", |w| w.nodes[&nodes[0]].drained.is_some());
    world.crash(&nodes[0]);
    let acknowledged = world.acknowledged.clone();
    let crashed = world.now;
    world.run_for(S * 5);
    world.assert_no_overlap();
    for task in &tasks {
        assert_eq!(world.running(task).len(), 1, "{task}");
    }
    // Nothing is lost: neither the name and its run, nor a checkpoint that a replica had acknowledged.
    for (task, run) in here.into_iter().zip(runs) {
        let (of, seq) = acknowledged[&name(task)];
        assert!(of == run && seq > 10, "{task}: {seq} steps are acknowledged of {of}");
        let moved = world.stretches.iter().rfind(|s| s.name == name(task)).unwrap();
        assert_eq!((moved.run, moved.session == nodes[0]), (run, false), "{moved:?}");
        assert!(moved.from_seq >= seq, "{task} went on from {moved:?}, {seq} was acknowledged");
        assert!(moved.start.since(crashed) < S * 3, "{moved:?}");
    }
}

#[test]
fn an_unstoppable_task_is_never_released_and_goes_on_elsewhere_when_its_process_is_gone() {
    let (mut world, nodes) = World::cluster(10, 3);
    world.goal = 100_000;
    world.stuck.insert(name("a"));
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let owner = world.running("a")[0].clone();
    world.drain(&owner, S * 3);
    world.run_until(S * 10, "the drain says so", |w| w.nodes[&owner].drained.is_some());
    assert_eq!(world.told(&owner, |n| matches!(n, Notice::Unstoppable { .. })), 1);
    world.stuck.clear();
    world.run_for(S * 30);
    assert_eq!(world.running("a"), std::slice::from_ref(&owner), "nobody takes it while it runs");
    world.give(&owner, Event::Leave);
    world.run_for(S * 5);
    assert_eq!(world.nodes[&nodes[0]].owners[&name("a")].phase, Phase::Running);
    world.crash(&owner);
    world.run_for(S * 13);
    world.assert_no_overlap();
    assert_eq!(world.running("a").len(), 1);
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

#[test]
fn long_steps_hold_no_transfer_slot() {
    const TASKS: usize = 1_000;
    let (mut world, nodes) = World::cluster(16, 1);
    world.goal = 1_000_000;
    world.step = S * 5;
    for i in 0..10 {
        world.steps.insert(name(&format!("t{i}")), S * 20);
    }
    for i in 0..TASKS {
        world.start(&nodes[0], &format!("t{i}"));
        world.run_for(MS * 5);
    }
    let target = world.boot("n1", Setup::default(), Disk::default());
    world.run_for(S * 3);
    world.drain(&nodes[0], S * 25);
    world.run_until(S * 25, "all are moved", |w| w.nodes[&nodes[0]].drained.is_some());
    world.run_for(S);
    world.assert_no_overlap();
    for i in 0..TASKS {
        assert_eq!(world.running(&format!("t{i}")), std::slice::from_ref(&target), "t{i}");
    }
    assert_eq!(world.told(&nodes[0], |n| matches!(n, Notice::Released { .. })), 0);
}

#[test]
fn a_draining_node_answers_asks_and_is_heard_until_its_last_task_is_gone() {
    let (mut world, owner, others) = World::owned(17, 3, &Setup::default());
    world.steps.insert(name("long"), S * 10);
    let mut long = String::new();
    for i in 0..20 {
        let task = format!("long{i}");
        world.steps.insert(name(&task), S * 10);
        world.start(&others[0], &task);
        world.run_for(S);
        if world.running(&task) == std::slice::from_ref(&owner) {
            long = task;
            break;
        }
    }
    assert!(!long.is_empty());
    world.drain(&owner, S * 20);
    world.run_for(S);
    assert_eq!(world.running(&long), std::slice::from_ref(&owner));
    world.record_messages = true;
    world.start(&others[0], "new");
    world.run_for(S);
    assert!(
        world
            .sent
            .iter()
            .any(|(_, from, _, m)| { *from == owner && matches!(m, Message::Answers { .. }) })
    );
    assert_ne!(world.running("new"), std::slice::from_ref(&owner));
    while world.running(&long) == std::slice::from_ref(&owner) {
        world.run_for(MS * 200);
        for other in &others {
            let peer = world.nodes[other].machine.members().get(&owner).unwrap();
            assert!(world.now.since(peer.news) < S, "its heartbeat goes on");
            assert_eq!(peer.state, NodeState::Draining);
            assert!(peer.gone.is_none());
        }
    }
    world.run_for(S);
    world.assert_no_overlap();
    assert_eq!(world.running(&long).len(), 1);
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

/// Who has accepted "a" and does not have it yet.
pub(super) fn incoming(world: &World) -> Vec<SessionId> {
    let accepted = |node: &&SessionId| {
        let claim = world.claim_of(node, "a");
        claim.is_some_and(|claim| matches!(claim.phase, Phase::Incoming { .. }))
    };
    world.nodes.keys().filter(accepted).cloned().collect()
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

/// A session that was superseded has nothing to move: its drain ends when all has stopped, and it
/// does not come to life again by leaving.
#[test]
fn a_fenced_node_drains_at_once_and_stays_fenced() {
    let setup = Setup { durable: true, ..Setup::default() };
    let (mut world, owner, _) = World::owned(3, 3, &setup);
    let disk = Disk { nonce: Some(owner.nonce), ..Disk::default() };
    world.boot(owner.node.as_str(), setup, disk);
    world.run_until(S * 5, "it is fenced", |w| w.nodes[&owner].machine.state().is_fenced());
    world.drain(&owner, S * 25);
    world.run_for(S);
    assert!(world.nodes[&owner].drained.is_some(), "nothing is left to wait for");
    world.give(&owner, Event::Leave);
    world.run_for(S);
    assert!(world.nodes[&owner].left.is_some());
    assert!(world.nodes[&owner].machine.state().is_fenced());
}
