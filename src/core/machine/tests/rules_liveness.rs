//! Who is there: Rules 1 to 7 and 11.

use std::time::Duration;

use uuid::Uuid;

use super::world::{Disk, MS, Setup, World, name};
use crate::core::claim::{Claim, Mode, Phase, Spec, Terms};
use crate::core::ids::{NodeId, RunId, SessionId};
use crate::core::io::{Event, Gone, Notice};
use crate::core::lease::Epoch;
use crate::core::members::Members;
use crate::core::message::Message;
use crate::core::record::NodeState;
use crate::core::time::Time;
use crate::core::timing::Timing;
use crate::core::view::View;

const S: Duration = Duration::from_secs(1);
const T: Duration = Duration::from_secs(10);
const START: Time = Time::from_micros(1_000_000_000);

fn session(node: &str) -> SessionId {
    SessionId::new(NodeId::new(node).unwrap(), Uuid::from_u128(1))
}

/// What one node knows of `peers`, all up and echoing it just now.
fn members(peers: &[&str], known_dead: bool, persisted: &[&str]) -> Members {
    let persisted: Vec<SessionId> = persisted.iter().map(|node| session(node)).collect();
    let mut members = Members::new(START, session("me"), Timing::default(), known_dead, &persisted);
    for peer in peers {
        members.heard(START, &session(peer), (NodeState::Up, 1), Some(START));
        members.suspicion(START, &session(peer), true);
        members.link_up(START, &session(peer));
        members.link_broke(START, &session(peer));
    }
    members
}

fn ticks(members: &mut Members, from: Time, seconds: u64) -> Time {
    let mut now = from;
    for _ in 0..seconds * 10 {
        now = now + MS * 100;
        members.tick(now);
    }
    now
}

fn tasks(world: &mut World, nodes: &[SessionId], n: usize) {
    world.goal = 100_000;
    world.step = MS * 200;
    for i in 0..n {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 3);
}

/// Sessions that began to run anything after `from`.
fn takers(world: &World, from: Time) -> Vec<SessionId> {
    world.stretches.iter().filter(|s| s.start > from).map(|s| s.session.clone()).collect()
}

/// Rule 1: what stands still for less than T, gossip's restart included, moves nothing.
#[test]
fn a_session_outlives_a_short_silence() {
    let (mut world, nodes) = World::cluster(1, 3);
    tasks(&mut world, &nodes, 9);
    let cut = world.now;
    world.isolate(&nodes[1]);
    world.run_for(S * 4);
    world.heal();
    world.run_for(S * 15);
    assert!(takers(&world, cut).is_empty());
}

/// Every peer that is heard is told of once: the member list on disk is made of these.
#[test]
fn every_peer_that_is_heard_is_told_of() {
    let (world, nodes) = World::cluster(20, 4);
    for node in &nodes {
        for peer in nodes.iter().filter(|peer| *peer != node) {
            assert_eq!(world.told(node, |n| *n == Notice::PeerUp(peer.clone())), 1);
        }
    }
}

/// Rule 2: the watermark counts for a claim that it has overtaken, and never goes back.
#[test]
fn a_watermark_releases_every_claim_up_to_it() {
    let claim = |task: &str, number, phase| Claim {
        name: name(task),
        session: session("a"),
        number,
        version: 1,
        run: RunId { number: 1, uuid: Uuid::from_u128(7) },
        epoch: Epoch(5),
        phase,
        terms: Terms { mode: Mode::Available, silence_floor: T },
        replicas: Vec::new(),
        floor: None,
        checkpointed: false,
        strikes: 0,
        note: String::new(),
        heeded: 0,
        expired: false,
        resting: false,
    };
    let mut view = View::default();
    view.merge(claim("one", 1, Phase::Running));
    view.merge(claim("two", 2, Phase::Running));
    view.merge(claim("three", 3, Phase::Running));
    assert_eq!(view.release(&session("a"), 1, &[3]), vec![name("one"), name("three")]);
    assert_eq!(view.release(&session("a"), 0, &[]), vec![], "an older header says nothing new");
    let phase = |view: &View, task| view.get(&name(task), &session("a")).unwrap().phase.clone();
    assert_eq!(phase(&view, "two"), Phase::Running);
    view.release(&session("a"), 4, &[]);
    assert_eq!(phase(&view, "two"), Phase::Released);
    view.merge(claim("late", 4, Phase::Running));
    assert_eq!(phase(&view, "late"), Phase::Released, "its header came first");
    view.merge(claim("next", 5, Phase::Running));
    assert_eq!(phase(&view, "next"), Phase::Running);
    let mut again = claim("one", 6, Phase::Running);
    again.epoch = Epoch(9);
    view.merge(again);
    assert_eq!(phase(&view, "one"), Phase::Running, "a later claim is another claim");
    assert_eq!(view.release(&session("a"), 6, &[]), vec![name("next"), name("one")]);
}

/// Rule 2: a record that says Finished or Transferred has not merely been released.
#[test]
fn a_watermark_leaves_ends_alone() {
    let (mut world, nodes) = World::cluster(2, 2);
    world.goal = 5;
    world.start(&nodes[0], "a");
    world.run_for(S * 3);
    for node in &nodes {
        assert_eq!(world.owner(node, "a").unwrap().phase, Phase::Finished);
    }
}

/// Rule 4 and its "Else": the first echo after an isolation makes nobody look silent.
#[test]
fn a_node_back_from_isolation_seizes_nothing() {
    let (mut world, nodes) = World::cluster(3, 3);
    tasks(&mut world, &nodes, 12);
    let cut = world.now;
    world.isolate(&nodes[0]);
    world.run_for(S * 40);
    world.heal();
    world.run_for(S * 5);
    assert!(!takers(&world, cut).contains(&nodes[0]));
    let silent = |notice: &Notice| matches!(notice, Notice::PeerGone(_, Gone::Silent));
    assert_eq!(world.told(&nodes[0], silent), 0);
}

/// Rule 4: a visible gap in the node's own clock ends the spell, and is no loneliness either.
#[test]
fn a_node_that_slept_for_long_takes_nothing_when_it_wakes() {
    let (mut world, nodes) = World::cluster(4, 3);
    tasks(&mut world, &nodes, 12);
    world.pause(&nodes[0], S * 90);
    world.run_for(S * 90 - MS);
    let woken = world.now;
    world.run_for(S * 9);
    assert!(!takers(&world, woken).contains(&nodes[0]));
    for i in 0..12 {
        assert_eq!(world.running(&format!("t{i}")).len(), 1);
    }
}

/// Rule 4, case (b): with * -> n0 cut, n0 believes everyone dead and must not act on it.
#[test]
fn a_node_that_hears_nobody_takes_nothing() {
    let (mut world, nodes) = World::cluster(5, 3);
    tasks(&mut world, &nodes, 12);
    let cut = world.now;
    world.cut(&nodes[1], &nodes[0]);
    world.cut(&nodes[2], &nodes[0]);
    world.run_for(S * 40);
    assert!(takers(&world, cut).is_empty(), "n0 is heard by the others, and hears nobody");
}

/// Rule 4, case (a): with n0 -> * cut, the others take over after T, and n0 nothing.
#[test]
fn a_node_that_nobody_hears_is_taken_over_after_the_floor() {
    let (mut world, nodes) = World::cluster(6, 3);
    tasks(&mut world, &nodes, 12);
    let cut = world.now;
    world.cut(&nodes[0], &nodes[1]);
    world.cut(&nodes[0], &nodes[2]);
    world.run_for(S * 30);
    let taken: Vec<_> = world.stretches.iter().filter(|s| s.start > cut).collect();
    assert!(!taken.is_empty());
    assert!(taken.iter().all(|s| s.session != nodes[0] && s.start.since(cut) >= T - MS * 500));
}

/// Rule 4: news by any path counts (S3).
#[test]
fn a_bridge_keeps_both_of_its_ends_alive() {
    let (mut world, nodes) = World::cluster(7, 3);
    tasks(&mut world, &nodes, 9);
    let cut = world.now;
    world.cut_both(&nodes[0], &nodes[2]);
    world.run_for(S * 40);
    assert!(takers(&world, cut).is_empty());
}

/// Rule 4: news of a session first heard of second-hand counts from then.
#[test]
fn a_session_heard_of_second_hand_is_silent_from_then_on() {
    let mut members = members(&["b"], true, &[]);
    let mut now = START;
    for second in 0..30 {
        now = now + S;
        members.heard(now, &session("b"), (NodeState::Up, 1), Some(now));
        if second == 14 {
            members.entry(&session("c"), now);
            members.suspicion(now, &session("c"), true);
        }
        let silent = members.tick(now).silent;
        assert_eq!(silent.contains(&session("c")), second == 24, "after {second} s");
    }
}

/// Rule 5: one observer is not enough where two live; two are.
#[test]
fn known_dead_takes_two_observers_where_two_live() {
    let mut members = members(&["b", "c"], true, &[]);
    assert!(!members.observed_dead(START, &session("b"), &session("me")));
    assert!(!members.observed_dead(START, &session("b"), &session("me")), "the same one twice");
    assert!(!members.observed_dead(START, &session("b"), &session("x")), "a stranger");
    assert!(members.observed_dead(START, &session("b"), &session("c")));
    assert!(members.is_gone(&session("b")));
}

/// Rule 5: one is, where only one lives.
#[test]
fn known_dead_takes_one_observer_where_only_one_lives() {
    let mut members = members(&["b"], true, &[]);
    assert!(members.observed_dead(START, &session("b"), &session("me")));
}

/// Rule 5: whatever two others report is between them and the suspect while the own link stands.
#[test]
fn a_standing_link_outweighs_reports_of_death() {
    let mut members = members(&["b", "c", "d"], true, &[]);
    members.entry(&session("b"), START).unwrap().linked = true;
    assert!(!members.observed_dead(START, &session("b"), &session("c")));
    assert!(!members.observed_dead(START, &session("b"), &session("d")));
    assert!(members.link_broke(START, &session("b")));
}

/// Rule 5: a dead node is redialled for long, and refuses each time.
#[test]
fn a_refusal_is_told_once_until_the_session_is_heard_again() {
    let (mut world, nodes) = World::cluster(7, 3);
    let [suspect, witness, other] = [&nodes[0], &nodes[1], &nodes[2]];
    let refused = Event::LinkDown { with: suspect.clone(), refused: true };
    let told = |world: &World| {
        let dead = |m: &Message| matches!(m, Message::Dead { session } if session == suspect);
        world.sent.iter().filter(|(_, from, _, m)| from == witness && dead(m)).count()
    };
    world.record_messages = true;
    world.isolate(suspect);
    for _ in 0..20 {
        world.give(witness, refused.clone());
        world.run_for(MS * 50);
    }
    assert_eq!(told(&world), 1, "to the one other node");
    // Who was not there gets to know when it is.
    world.give(witness, Event::LinkUp { with: other.clone() });
    assert_eq!(told(&world), 2);
    // It was there again: what was seen before says nothing.
    world.heal();
    world.run_for(S * 2);
    world.give(witness, Event::LinkUp { with: suspect.clone() });
    world.give(witness, refused);
    world.run_for(MS * 50);
    assert_eq!(told(&world), 3);
}

/// Rule 5: a process that is closing has closed its listener, not died.
#[test]
fn known_dead_is_void_for_who_drains_or_leaves() {
    for state in [NodeState::Draining, NodeState::Leaving] {
        let mut members = members(&["b"], true, &[]);
        members.heard(START, &session("b"), (state, 1), None);
        assert!(!members.observed_dead(START, &session("b"), &session("me")));
    }
}

/// Rule 5: any later datagram of the session voids it, that of a fencing one too.
#[test]
fn a_later_datagram_voids_known_death() {
    for state in [NodeState::Up, NodeState::Fencing] {
        let mut members = members(&["b", "c"], true, &[]);
        members.observed_dead(START, &session("b"), &session("me"));
        members.heard(START, &session("b"), (state, 1), None);
        assert!(!members.observed_dead(START, &session("b"), &session("c")), "counted anew");
        assert!(members.observed_dead(START, &session("b"), &session("me")));
        assert!(members.heard(START, &session("b"), (state, 1), None), "it is back");
        assert!(!members.is_gone(&session("b")));
    }
}

/// Rule 5: what refuses is not the session, if the session has answered since its link broke, or has
/// never had one.
#[test]
fn a_refusal_by_something_else_is_no_death() {
    let (b, me) = (session("b"), session("me"));
    let mut members = members(&["b"], true, &[]);
    assert!(members.observed_dead(START, &b, &me));
    // Sent before its end, and read after it.
    assert!(members.heard(START + MS, &b, (NodeState::Up, 1), Some(START)));
    assert!(members.observed_dead(START + MS, &b, &me));
    assert!(members.heard(START + MS * 3, &b, (NodeState::Up, 1), Some(START + MS * 2)));
    assert!(!members.observed_dead(START + MS * 4, &b, &me), "it has answered since");
    members.link_up(START + S, &b);
    members.link_broke(START + S * 2, &b);
    assert!(members.observed_dead(START + S * 2, &b, &me));

    let c = session("c");
    members.heard(START, &c, (NodeState::Up, 1), Some(START));
    assert!(!members.observed_dead(START, &c, &me), "no link of it has ever been up");
}

/// S4, V6: two nodes between which TCP is rejected from some moment on, and datagrams pass.
#[test]
fn a_firewall_that_begins_to_reject_streams_costs_one_takeover_at_most() {
    let (mut world, nodes) = World::cluster(9, 2);
    tasks(&mut world, &nodes, 8);
    let pairs = [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])];
    let begun = world.now;
    for _ in 0..200 {
        for (at, with) in pairs {
            world.give(at, Event::LinkDown { with: with.clone(), refused: true });
        }
        world.run_for(MS * 50);
    }
    for (at, with) in pairs {
        let died = world.told(at, |n| matches!(n, Notice::PeerGone(of, _) if of == with));
        assert!(died <= 1, "{with} died {died} times for {at}");
    }
    for i in 0..8 {
        let task = format!("t{i}");
        assert_eq!(world.running(&task).len(), 1);
        assert_eq!(world.since(&task, begun + S).len(), 0, "{task} has settled down");
    }
    assert_eq!(world.told(&nodes[0], |n| matches!(n, Notice::Quarantined { .. })), 0);
}

/// Rules 5 and 21: gossip relays the heartbeats of the dead.
#[test]
fn a_corpses_heartbeat_does_not_revive_it() {
    let mut members = members(&["b"], true, &[]);
    assert!(members.observed_dead(START, &session("b"), &session("me")));
    assert!(!members.heartbeat(START + S, &session("b")));
    assert!(members.is_gone(&session("b")));
}

/// Rule 5: it is itself evidence, so being alone does not delay it.
#[test]
fn of_two_nodes_the_survivor_takes_over_at_once() {
    let (mut world, nodes) = World::cluster(8, 2);
    tasks(&mut world, &nodes, 8);
    let died = world.now;
    world.crash(&nodes[1]);
    world.run_for(S);
    for i in 0..8 {
        assert_eq!(world.runner(&format!("t{i}")), nodes[0]);
    }
    assert!(takers(&world, died).len() > 1);
}

/// Rule 5: behind a firewall that REJECTs it is a partition, and is switched off.
#[test]
fn a_rejecting_firewall_is_no_death_where_known_dead_is_off() {
    for (known_dead, at_once) in [(true, true), (false, false)] {
        let setup = Setup { known_dead, ..Setup::default() };
        let (mut world, nodes) = World::cluster_of(9, 3, &setup);
        tasks(&mut world, &nodes, 9);
        let cut = world.now;
        world.reject(&nodes[0], &nodes[1]);
        world.reject(&nodes[0], &nodes[2]);
        world.run_for(S * 5);
        assert_eq!(!takers(&world, cut).is_empty(), at_once, "known_dead {known_dead}");
    }
}

/// Rule 6: with proof at once; and the old process stops when it sees its successor.
#[test]
fn a_proven_successor_ends_the_old_session_at_once() {
    let setup = Setup { durable: true, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(10, 3, &setup);
    tasks(&mut world, &nodes, 9);
    let old = world.runner("t0");
    let lost: Vec<_> = (0..9).map(|i| format!("t{i}")).filter(|t| world.runner(t) == old).collect();
    world.pause(&old, S * 8);
    let disk = world.disk_of(&old);
    world.boot(old.node.as_str(), setup, disk);
    world.run_for(S * 2);
    for task in &lost {
        assert!(world.running(task).iter().any(|session| *session != old), "{task} was taken");
    }
    world.run_for(S * 10);
    assert!(world.nodes[&old].machine.state().is_fenced());
    for task in &lost {
        assert_ne!(world.runner(task), old);
    }
}

/// Rule 6: a force-deleted pod may still run: without proof T applies.
#[test]
fn without_proof_the_old_session_keeps_its_tasks_for_the_floor() {
    let (mut world, nodes) = World::cluster(11, 3);
    tasks(&mut world, &nodes, 9);
    let old = world.runner("t0");
    let paused = world.now;
    world.pause(&old, S * 30);
    world.boot(old.node.as_str(), Setup::default(), Disk::default());
    world.run_for(S * 20);
    let taken: Vec<_> = world.stretches.iter().filter(|s| s.start > paused).collect();
    assert!(!taken.is_empty());
    assert!(taken.iter().all(|s| s.start.since(paused) >= T - MS * 500), "{taken:?}");
}

/// Rule 7: a node that nobody echoes waits for `alone_after`.
#[test]
fn an_isolated_node_takes_over_after_alone_after() {
    let (mut world, nodes) = World::cluster(12, 3);
    tasks(&mut world, &nodes, 9);
    let cut = world.now;
    world.isolate(&nodes[0]);
    world.run_for(S * 75);
    let mine: Vec<_> =
        world.stretches.iter().filter(|s| s.start > cut && s.session == nodes[0]).collect();
    assert!(!mine.is_empty());
    assert!(mine.iter().all(|s| s.start.since(cut) >= S * 58), "{mine:?}");
}

/// Rule 7: T suffices where the member list proves that there only ever were two nodes.
#[test]
fn a_proven_pair_waits_for_the_floor_only() {
    let silent = |persisted: &[&str], third: bool, seconds| {
        let mut members = members(&["b"], true, persisted);
        if third {
            members.entry(&session("c"), START);
        }
        ticks(&mut members, START, seconds);
        members.is_gone(&session("b"))
    };
    assert!(!silent(&["b"], false, 9));
    assert!(silent(&["b"], false, 16));
    assert!(silent(&["b", "me"], false, 16));
    assert!(!silent(&[], false, 50), "nothing is proven");
    assert!(!silent(&["b", "c"], false, 50), "there were three");
    assert!(!silent(&["b"], true, 50), "there are three");
    assert!(silent(&["b", "c"], false, 70));
}

/// Rule 7: a third node ends the exception even if the second was not heard yet.
#[test]
fn a_stranger_in_the_place_of_the_second_node_is_no_pair() {
    let mut members = Members::new(START, session("me"), Timing::default(), true, &[session("b")]);
    members.heard(START, &session("c"), (NodeState::Up, 1), Some(START));
    ticks(&mut members, START, 50);
    assert!(!members.is_gone(&session("c")));
}

/// Rule 7, the brake: more than half of the known nodes, and at least three.
#[test]
fn many_silent_at_once_look_like_a_fault_of_ones_own() {
    let braked = |silent: usize, lively: usize, left: usize| {
        let names: Vec<String> = (0..silent + lively + left).map(|i| format!("n{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut members = members(&names, true, &[]);
        for gone in &names[silent + lively..] {
            members.mark_gone(START, &session(gone), Gone::Left);
        }
        let (mut now, mut brake) = (START, false);
        for _ in 0..12 {
            now = now + S;
            for peer in &names[silent..silent + lively] {
                members.heard(now, &session(peer), (NodeState::Up, 1), Some(now));
            }
            brake |= members.tick(now).braked.is_some();
        }
        brake
    };
    assert!(braked(3, 1, 0), "three of five");
    assert!(!braked(3, 2, 0), "half of six is not more than half");
    assert!(!braked(2, 1, 0), "two are not three");
    assert!(!braked(2, 1, 6), "who said goodbye never counts");
    assert!(braked(3, 1, 6));
}

/// A node that starts where several have died is told of the dead by gossip. It never heard them, so that for it
/// none has fallen silent.
#[test]
fn the_dead_that_gossip_tells_a_newcomer_of_pull_no_brake() {
    let mut members = members(&["a"], true, &[]);
    let dead: Vec<SessionId> = (0..9).map(|i| session(&format!("x{i}"))).collect();
    for corpse in &dead {
        members.gossiped(corpse, START);
        members.suspicion(START, corpse, true);
    }
    let mut now = START;
    for _ in 0..12 {
        now = now + S;
        members.heard(now, &session("a"), (NodeState::Up, 1), Some(now));
        assert_eq!(members.tick(now).braked, None);
    }
    assert!(dead.iter().all(|corpse| members.is_gone(corpse)));
}

/// And it says no goodbye to them, whose acknowledgement it would wait for.
#[test]
fn a_goodbye_is_said_to_nobody_that_was_never_met() {
    let (mut world, nodes) = World::cluster(5, 3);
    for i in 0..9 {
        world.give(&nodes[0], Event::Heartbeat { of: session(&format!("x{i}")) });
    }
    world.give(&nodes[0], Event::Leave);
    world.run_for(MS * 500);
    assert!(world.nodes[&nodes[0]].left.is_some(), "all that are there have acknowledged it");
}

/// Rule 7: takeover pauses for 3 T, then goes on.
#[test]
fn takeover_goes_on_when_the_brake_lapses() {
    let setup = Setup { known_dead: false, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(13, 5, &setup);
    tasks(&mut world, &nodes, 10);
    let died = world.now;
    for node in &nodes[2..] {
        world.crash(node);
    }
    world.run_for(S * 50);
    let taken: Vec<_> = world.stretches.iter().filter(|s| s.start > died).collect();
    assert!(taken.iter().all(|s| s.start.since(died) >= T * 4 - S), "{taken:?}");
    assert!(world.told(&nodes[0], |n| matches!(n, Notice::Brake { .. })) > 0);
    for i in 0..10 {
        let task = format!("t{i}");
        let parked =
            world.owner(&nodes[0], &task).unwrap().phase == Phase::Parked { until_resumed: true };
        assert!(parked || world.running(&task).len() == 1, "{task}");
    }
}

/// S2: what has been released is not taken by a node that may be the one that is cut off.
#[test]
fn a_node_without_evidence_does_not_take_what_was_released() {
    let mut members = members(&["b", "c"], true, &[]);
    assert!(members.may_take_over(START + S));
    let now = ticks(&mut members, START, 30);
    assert!(!members.may_take_over(now));
    let now = ticks(&mut members, now, 40);
    assert!(members.may_take_over(now));
}

/// Rule 7: who has left cannot be asked, and need not be waited for.
#[test]
fn the_last_of_a_cluster_may_take_over_at_once() {
    let mut members = members(&["b", "c"], true, &[]);
    members.mark_gone(START, &session("b"), Gone::Left);
    members.mark_gone(START, &session("c"), Gone::Dead);
    let now = ticks(&mut members, START, 20);
    assert!(members.may_take_over(now));
}

/// Rule 11: a taker obeys the owner's T.
#[test]
fn a_taker_obeys_a_longer_floor_of_the_owner() {
    let patient = Setup {
        known_dead: false,
        timing: Timing { silence_floor: S * 20, boot_wait: S * 20, ..Timing::default() },
        ..Setup::default()
    };
    let setup = Setup { known_dead: false, ..Setup::default() };
    let mut world = World::new(14);
    let owner = world.boot("n0", patient, Disk::default());
    for node in ["n1", "n2"] {
        world.boot(node, Setup { max_running: 1000, ..setup.clone() }, Disk::default());
    }
    world.run_for(S * 7);
    let call = world.nodes.keys().cloned().collect::<Vec<_>>();
    tasks(&mut world, &call, 12);
    let died = world.now;
    let mine = world.stretches.iter().filter(|s| s.session == owner).count();
    assert!(mine > 0);
    world.crash(&owner);
    world.run_for(S * 30);
    let taken: Vec<_> = world.stretches.iter().filter(|s| s.start > died).collect();
    assert_eq!(taken.len(), mine);
    assert!(taken.iter().all(|s| s.start.since(died) >= S * 19), "{taken:?}");
}

/// Rule 11: a taker obeys the owner's mode, or does not take.
#[test]
fn what_is_held_in_a_mode_of_a_later_build_is_left_to_that_build() {
    let (mut world, nodes) = World::cluster(51, 2);
    tasks(&mut world, &nodes, 1);
    let live = world.owner(&nodes[0], "t0").unwrap().clone();
    let newer = SessionId::new(NodeId::new("newer").unwrap(), Uuid::from_u128(7));
    let claim = |task: &str, number, phase| Claim {
        name: name(task),
        session: newer.clone(),
        number,
        phase,
        terms: Terms { mode: Mode::Unknown, silence_floor: T },
        checkpointed: false,
        replicas: Vec::new(),
        ..live.clone()
    };
    let spec = world.nodes[&nodes[0]].machine.spec(&name("t0")).unwrap().clone();
    for node in &nodes {
        let specs = ["held", "released"].map(|task| Spec { name: name(task), ..spec.clone() });
        world.give(node, Event::Specs { specs: specs.into() });
        let changes = vec![
            (name("held"), Some(claim("held", 1, Phase::Running))),
            (name("released"), Some(claim("released", 2, Phase::Released))),
        ];
        world.give(node, Event::Claims { of: newer.clone(), changes });
        world.give(node, Event::Suspicion { of: newer.clone(), suspected: true });
    }
    world.run_for(T * 4);
    assert!(world.nodes[&nodes[0]].machine.members().is_gone(&newer));
    assert!(world.running("held").is_empty());
    assert_eq!(world.running("released").len(), 1, "its owner has let go");
    let warned = |n: &Notice| matches!(n, Notice::Warning(text) if text.contains("newer build"));
    assert_eq!(world.told(&nodes[0], warned), 1, "once");
    assert_eq!(world.owner(&nodes[0], "held").unwrap().session, newer, "and it is known");
}

/// Rule 6: nothing shows which of two processes with one id is to go; a person must be told.
#[test]
fn a_second_living_process_of_the_same_name_is_warned_about_once_by_both() {
    let (mut world, nodes) = World::cluster(31, 3);
    let twin = world.boot(nodes[0].node.as_str(), Setup::default(), Disk::default());
    world.run_for(S * 20);
    let warned = |n: &Notice| matches!(n, Notice::Warning(text) if text.contains("also node"));
    assert_eq!(world.told(&nodes[0], warned), 1);
    assert_eq!(world.told(&twin, warned), 1);
    assert_eq!(world.told(&nodes[1], warned), 0);
    world.crash(&twin);
    world.run_for(S * 20);
    let back = world.boot(nodes[0].node.as_str(), Setup::default(), Disk::default());
    world.crash(&nodes[0]);
    world.run_for(S * 20);
    assert_eq!(world.told(&back, warned), 0, "the other one is dead");
}

/// Rule 13: takers are ranked, replicas first, and each waits for those before it: only one claims.
#[test]
fn whoever_is_first_in_line_takes_over_before_the_others_try() {
    for seed in 0..5 {
        let (mut world, ..) = World::owned(seed, 5, &Setup::default());
        let (owner, replica, _) = world.roles("a");
        let before = world.claim_of(&owner, "a").unwrap().epoch;
        world.crash(&owner);
        world.run_for(S * 30);
        assert_eq!(world.runner("a"), replica);
        let others = world.living().into_iter().filter(|node| *node != replica);
        for other in others {
            let theirs = world.claim_of(&other, "a");
            assert!(theirs.is_none_or(|claim| claim.epoch < before), "{seed}: {theirs:?}");
        }
    }
}
