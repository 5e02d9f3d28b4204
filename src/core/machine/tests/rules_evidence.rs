//! Who may be taken for silent, by whom, and who may act on it: Rules 4, 7 and 17.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

use super::super::task::Doing;
use super::rules_claims::short;
use super::world::{Disk, MS, Setup, Stretch, World, name};
use crate::core::claim::Phase;
use crate::core::ids::{NodeId, SessionId};
use crate::core::io::{Gone, Notice};
use crate::core::members::Members;
use crate::core::message::Message;
use crate::core::record::NodeState;
use crate::core::time::Time;
use crate::core::timing::Timing;

const S: Duration = Duration::from_secs(1);
const T: Duration = Duration::from_secs(10);
const START: Time = Time::from_micros(1_000_000_000);

fn session(node: &str) -> SessionId {
    SessionId::new(NodeId::new(node).unwrap(), Uuid::from_u128(1))
}

/// A cluster that has nine tasks of long steps.
fn busy(seed: u64, nodes: usize, setup: &Setup) -> (World, Vec<SessionId>) {
    busy_with(9, seed, nodes, setup)
}

fn busy_with(tasks: u32, seed: u64, nodes: usize, setup: &Setup) -> (World, Vec<SessionId>) {
    let (mut world, nodes) = World::cluster_of(seed, nodes, setup);
    world.goal = 100_000;
    world.step = MS * 200;
    for i in 0..tasks {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 3);
    (world, nodes)
}

/// The tasks that run on a node.
fn tasks_of(world: &World, node: &SessionId) -> Vec<String> {
    let all = (0..9).map(|i| format!("t{i}"));
    all.filter(|task| world.running(task) == [node.clone()]).collect()
}

/// Rule 4: whoever is not heard yet after an isolation is given the whole floor from its end.
#[test]
fn a_node_back_from_isolation_gives_those_it_does_not_hear_yet_the_floor() {
    let (mut world, nodes) = busy(1, 3, &Setup::default());
    assert!(!tasks_of(&world, &nodes[2]).is_empty());
    let cut = world.now;
    world.isolate(&nodes[0]);
    world.run_for(S * 40);
    // The first that it hears again does not hear the other at that moment, and so relays nothing of it.
    world.cut_both(&nodes[1], &nodes[2]);
    world.mend(&nodes[0], &nodes[1]);
    world.run_for(S * 5);
    world.heal();
    world.run_for(S * 5);
    let taken = world.stretches.iter().filter(|s| s.start > cut);
    assert_eq!(taken.filter(|s| s.session == nodes[0]).count(), 0, "it seized what others run");
    let silent = |n: &Notice| matches!(n, Notice::PeerGone(_, Gone::Silent));
    assert_eq!(world.told(&nodes[0], silent), 0);
}

/// The same of a third that nobody has heard meanwhile: not even by word of the first is it news.
#[test]
fn nodes_that_meet_again_give_a_third_that_neither_hears_the_floor() {
    let (mut world, nodes) = busy(1, 3, &Setup::default());
    nodes.iter().for_each(|node| world.isolate(node));
    world.run_for(S * 40);
    let met = world.now;
    world.mend(&nodes[0], &nodes[1]);
    let silent = |w: &World| {
        let silent =
            |n: &Notice| matches!(n, Notice::PeerGone(of, Gone::Silent) if *of == nodes[2]);
        w.told(&nodes[0], silent) + w.told(&nodes[1], silent)
    };
    world.run_for(T - S);
    assert_eq!(silent(&world), 0, "they hear nothing of it for as long as they hear anything");
    let seized = world.stretches.iter().filter(|s| s.start > met);
    assert_eq!(seized.count(), 0);
    world.run_for(S * 3);
    assert_eq!(silent(&world), 2);
}

/// S2: a node that nobody echoes may be the one that is cut off. What it hears to be free it leaves to
/// the others, whose claims it would not hear.
#[test]
fn a_node_that_nobody_hears_takes_nothing_that_is_released() {
    let (mut world, nodes) = busy(2, 3, &Setup::default());
    let moved = tasks_of(&world, &nodes[1]);
    assert!(!moved.is_empty());
    let cut = world.now;
    world.cut(&nodes[0], &nodes[1]);
    world.cut(&nodes[0], &nodes[2]);
    // Its last echo is out of date, and it is not silent for the others yet.
    world.run_for(S * 6);
    world.drain(&nodes[1], S);
    world.run_for(S * 20);
    for task in &moved {
        let heard = world.nodes[&nodes[0]].machine.view().get(&name(task), &nodes[1]);
        assert_eq!(heard.map(|claim| &claim.phase), Some(&Phase::Released), "its header told");
        assert_eq!(world.runner(task), nodes[2]);
    }
    assert!(world.stretches.iter().all(|s| s.start < cut || s.session != nodes[0]));
}

/// The same where the last echo is out of date only once it has claimed the name: that nobody answers is no consent.
/// It hears that the loser of a split has stopped, and cannot hear of the winner.
#[test]
fn a_claim_that_nobody_hears_settles_nothing() {
    let mut claimed = 0;
    for since_ms in [0, 1_000, 2_000, 3_000] {
        let (mut world, nodes) = busy_with(30, 1, 5, &Setup::default());
        let (winners, loser, deaf) = (&nodes[..3], &nodes[3], &nodes[4]);
        world.split(winners, &nodes[3..]);
        world.run_for(S * 15);
        let lost = |s: &&Stretch| s.session == *loser && s.end.is_none();
        let moved: BTreeSet<_> =
            world.stretches.iter().filter(lost).map(|s| s.name.to_string()).collect();
        // A stream passes nothing where one direction is cut.
        world.blocked = Some(|from, to, _| [from, to].iter().any(|of| of.node.as_str() == "n4"));
        let cut = world.now;
        world.cut(deaf, loser);
        world.run_for(MS * since_ms);
        for winner in winners {
            nodes[3..].iter().for_each(|node| world.mend(winner, node));
            world.cut(deaf, winner);
        }
        for _ in 0..80 {
            world.run_for(MS * 50);
            let claims = moved.iter().filter_map(|task| world.claim_of(deaf, task));
            claimed += claims.filter(|claim| claim.phase == Phase::Claimed).count();
        }
        world.run_for(S * 15);
        let tasks = &world.nodes[deaf].machine.tasks;
        let mut claims = moved.iter().filter_map(|task| tasks.get(&name(task)));
        assert!(claims.all(|task| matches!(task.doing, Doing::Settling(_))));
        let taken = world.stretches.iter().filter(|s| s.start > cut && s.session == *deaf);
        let taken: Vec<_> = taken.filter(|s| moved.contains(&s.name.to_string())).collect();
        assert!(taken.is_empty(), "{since_ms}: {taken:?}");
        world.blocked = None;
        world.heal();
        world.run_for(S * 10);
        for task in &moved {
            assert_eq!(world.running(task).len(), 1, "nothing is in the winner's way");
        }
    }
    assert!(claimed > 0, "it could know at once that nobody hears it");
}

/// Nor does a taker give a state up for lost that others may hold, while they do not hear it.
#[test]
fn a_taker_that_is_cut_off_goes_on_looking_for_the_state() {
    let (mut world, nodes) = World::cluster(5, 1);
    let owner = nodes[0].clone();
    let other = Setup { kinds: vec![("other", 1)], ..Setup::default() };
    let keeper = world.boot("n1", other, Disk::default());
    let taker = world.boot("n2", Setup::default(), Disk::default());
    world.run_for(S * 2);
    world.goal = 100_000;
    (0..9).for_each(|i| _ = world.start(&owner, &format!("t{i}")));
    world.run_for(S * 2);
    let kept = |task: &&String| {
        let claim = world.claim_of(&owner, task);
        claim.is_some_and(|c| c.phase == Phase::Running && c.replicas == [keeper.node.clone()])
    };
    let tasks: Vec<_> = (0..9).map(|i| format!("t{i}")).collect();
    let task = tasks.iter().find(kept).expect("one of nine").clone();
    world.blocked = Some(|_, _, m| matches!(m, Message::States { .. }));
    world.crash(&owner);
    let looks = |w: &World| {
        let task = w.nodes[&taker].machine.tasks.get(&name(&task));
        task.is_some_and(|task| matches!(task.doing, Doing::Finding(_)))
    };
    world.run_until(S * 5, "it looks for the state", looks);
    world.cut_both(&taker, &keeper);
    // Longer than it looks for a state where it is heard.
    world.run_for(S * 12);
    assert!(looks(&world), "{:?}", world.claim_of(&taker, &task));
    world.blocked = None;
    world.heal();
    world.run_for(S * 5);
    assert_eq!(world.runner(&task), taker);
}

/// Rule 7: the brake is for what looks like a crash. What its owner has let go of is free for certain.
#[test]
fn the_brake_does_not_hold_what_was_released() {
    let setup = Setup { known_dead: false, ..Setup::default() };
    let (mut world, nodes) = busy(3, 5, &setup);
    for node in &nodes[2..] {
        world.crash(node);
    }
    let braked = |w: &World| w.told(&nodes[1], |n| matches!(n, Notice::Brake { .. })) > 0;
    world.run_until(S * 15, "the brake is pulled", braked);
    let moved = tasks_of(&world, &nodes[0]);
    assert!(!moved.is_empty());
    // Offers are lost: it can only release them.
    world.blocked = Some(|_, _, m| matches!(m, Message::Offer { .. }));
    world.drain(&nodes[0], S);
    world.run_for(S * 8);
    for task in &moved {
        assert_eq!(world.running(task), [nodes[1].clone()], "{task}");
    }
}

/// Rule 17: after a visible gap no step starts before an echo of something that was sent after it:
/// what was sent before shows nothing of what has happened meanwhile.
#[test]
fn an_echo_of_what_was_sent_before_a_gap_does_not_end_it() {
    let (mut world, nodes) = busy(4, 3, &Setup::default());
    let mine = tasks_of(&world, &nodes[0]);
    assert!(!mine.is_empty());
    let seqs = |world: &World| -> Vec<u64> {
        mine.iter().map(|task| world.steps_done[&name(task)]).collect()
    };
    // It hears the others when it wakes, and they do not hear it.
    world.cut(&nodes[0], &nodes[1]);
    world.cut(&nodes[0], &nodes[2]);
    world.pause(&nodes[0], S * 6);
    world.run_for(S * 6 + MS * 300);
    let woken = seqs(&world);
    world.run_for(S * 3);
    assert_eq!(seqs(&world), woken, "steps started");
    assert!(mine.iter().all(|task| world.running(task) == [nodes[0].clone()]), "all still there");
}

/// Rule 17: and one of what was sent after it does.
#[test]
fn steps_go_on_after_a_gap_with_the_first_echo_sent_after_it() {
    let (mut world, nodes) = busy(5, 3, &Setup::default());
    let mine = tasks_of(&world, &nodes[0]);
    let before: Vec<u64> = mine.iter().map(|task| world.steps_done[&name(task)]).collect();
    world.pause(&nodes[0], S * 6);
    world.run_for(S * 8);
    for (task, before) in mine.iter().zip(before) {
        assert!(world.steps_done[&name(task)] > before + 2, "{task}");
    }
}

/// Rule 17: and one that nobody echoes any more does not stand still for ever: it goes on after `alone_after`.
#[test]
fn after_a_gap_an_isolated_node_goes_on_after_alone_after() {
    let setup = |kind| Setup { kinds: vec![(kind, 1)], timing: short(), ..Setup::default() };
    let mut world = World::new(6);
    world.goal = 100_000;
    // Nobody else can run it.
    let node = world.boot("n0", setup("special"), Disk::default());
    for other in ["n1", "n2"] {
        world.boot(other, setup("count"), Disk::default());
    }
    world.run_for(S * 3);
    world.start_kind(&node, "a", "special", false);
    world.run_for(S * 2);
    world.isolate(&node);
    world.pause(&node, S * 3);
    world.run_for(S * 3 + MS * 300);
    let (woken, alone_after) = (world.steps_done[&name("a")], short().alone_after);
    world.run_for(alone_after - S);
    assert_eq!(world.steps_done[&name("a")], woken, "steps started");
    world.run_for(S * 2);
    assert!(world.steps_done[&name("a")] > woken + 5);
}

/// Rule 4: an echo of what was sent long ago is no evidence, however fresh the datagram that carries it.
#[test]
fn an_old_echo_is_no_evidence() {
    let mut members = Members::new(START, session("me"), Timing::default(), true, &[]);
    let b = session("b");
    members.heard(START, &b, (NodeState::Up, 1), Some(START));
    assert!(members.may_take_over(START + S * 4));
    let mut now = START;
    for second in 1..30 {
        now = START + S * second;
        members.heard(now, &b, (NodeState::Up, 1), Some(START));
        members.tick(now);
        assert_eq!(members.may_take_over(now), second < 5, "after {second} s");
    }
    members.heard(now, &b, (NodeState::Up, 1), Some(now));
    assert!(members.may_take_over(now));
}

/// Rule 4: what a process says that has lost its right to run is no news of it, by datagram or by link:
/// what it has not released must not stay without an owner for as long as it lives.
#[test]
fn a_fenced_session_falls_silent_however_much_it_sends() {
    for state in [NodeState::Fencing, NodeState::Fenced] {
        let (fenced, other) = (session("fenced"), session("other"));
        let mut members = Members::new(START, session("me"), Timing::default(), true, &[]);
        members.heard(START, &fenced, (NodeState::Up, 1), Some(START));
        members.link_up(START, &fenced);
        members.suspicion(START, &fenced, true);
        let mut now = START;
        for _ in 0..20 {
            now = now + S / 2;
            members.heard(now, &other, (NodeState::Up, 1), Some(now));
            members.heard(now, &fenced, (state, 2), Some(now));
            assert!(!members.frame(now, &fenced));
            members.tick(now);
        }
        assert_eq!(now, START + T);
        assert!(members.is_gone(&fenced), "{state:?}");
        assert!(!members.frame(now, &fenced) && members.is_gone(&fenced), "nor is it back");
    }
}

/// Rule 17: an echo brings no claims. What others have claimed meanwhile comes within a gossip interval of it.
#[test]
fn steps_start_a_gossip_interval_after_the_first_echo_sent_after_a_gap() {
    let b = session("b");
    let mut members = Members::new(START, session("me"), Timing::default(), true, &[]);
    let interval = Timing::default().gossip_interval;
    members.heard(START, &b, (NodeState::Up, 1), Some(START));
    members.tick(START);
    assert!(members.may_step(START));
    let woken = START + S * 6;
    members.tick(woken);
    // What it had sent before comes back first.
    members.heard(woken + MS, &b, (NodeState::Up, 1), Some(START));
    assert!(!members.may_step(woken + interval * 2));
    let echoed = woken + interval * 3;
    members.heard(echoed, &b, (NodeState::Up, 1), Some(echoed.back(MS)));
    for wait in [Duration::ZERO, MS, interval / 2, interval - MS] {
        assert!(!members.may_step(echoed + wait), "after {wait:?}");
    }
    assert!(members.may_step(echoed + interval));
}
