//! A node that leaves in good order takes no copy with it that its owner relies on: whoever dies right
//! after it has left costs no acknowledged checkpoint and no output (DEPLOYS 2, Rule 12).

use std::time::Duration;

use super::rules_ends::holders;
use super::world::{Disk, Fate, Fault, MS, Setup, World, name};
use crate::core::claim::{Phase, Want};
use crate::core::ids::SessionId;
use crate::core::io::{Event, Notice};
use crate::core::message::Message;
use crate::core::record::NodeState;
use crate::core::time::Time;

const S: Duration = Duration::from_secs(1);
const NAMES: usize = 40;

fn text(i: usize) -> String {
    format!("t{i}")
}

/// Names that run for long, with commits far between: none is replicated by chance.
fn busy(seed: u64, nodes: usize) -> (World, Vec<SessionId>) {
    let (mut world, nodes) = World::cluster(seed, nodes);
    world.goal = 1_000_000;
    for i in 0..NAMES {
        world.steps.insert(name(&text(i)), MS * 700 + MS * u32::try_from(i).unwrap() * 13);
        world.start(&nodes[i % nodes.len()], &text(i));
    }
    world.run_for(S * 5);
    assert_eq!(world.acknowledged.len(), NAMES);
    (world, nodes)
}

/// Drains a node; at the very moment at which it is done its process ends.
fn drain_and_exit(world: &mut World, node: &SessionId) {
    world.drain(node, S * 25);
    world.run_until(S * 20, "drained", |w| w.nodes[node].drained.is_some());
    world.give(node, Event::Leave);
    world.crash(node);
}

/// Each name goes on, once, from what was acknowledged, or from later.
fn assert_nothing_lost(world: &World, before: &World, context: &str) {
    for (name, (run, seq)) in &before.acknowledged {
        let text = name.as_str();
        assert_eq!(world.running(text).len(), 1, "{context}: {text}");
        let last = world.stretches.iter().rfind(|s| s.name == *name).unwrap();
        assert_eq!(last.run, *run, "{context}: {text}");
        if last.start > before.now {
            assert!(last.from_seq >= *seq, "{context}: {seq} steps were acknowledged: {last:?}");
        }
    }
    world.assert_no_overlap();
}

#[test]
fn an_owner_that_dies_right_after_its_replica_has_left_costs_no_acknowledged_checkpoint() {
    for seed in 0..4 {
        for victim in 1..4 {
            let (mut world, nodes) = busy(seed, 4);
            // It runs nothing itself: no step holds it up.
            let keeper = world.boot("m0", Setup::default(), Disk::default());
            world.run_for(S * 3);
            drain_and_exit(&mut world, &keeper);
            let before = world.clone();
            world.crash(&nodes[victim]);
            world.run_for(S * 15);
            assert_nothing_lost(&world, &before, &format!("seed {seed}, victim {victim}"));
            for node in &nodes {
                assert_eq!(world.told(node, |n| matches!(n, Notice::StateLost { .. })), 0);
            }
        }
    }
}

/// A deploy in which the process that was just given everything dies.
#[test]
fn a_target_that_dies_right_after_its_source_has_left_costs_no_acknowledged_checkpoint() {
    for seed in 0..4 {
        let (mut world, nodes) = busy(seed, 4);
        let newcomer = world.boot("m0", Setup::default(), Disk::default());
        world.run_for(S);
        for old in &nodes[..2] {
            drain_and_exit(&mut world, old);
        }
        let before = world.clone();
        world.crash(&newcomer);
        world.run_for(S * 15);
        assert_nothing_lost(&world, &before, &format!("seed {seed}"));
    }
}

#[test]
fn the_last_holder_of_an_output_gives_it_away_before_it_leaves() {
    for seed in 0..4 {
        let (mut world, nodes) = World::cluster(seed, 4);
        world.goal = 5;
        for i in 0..NAMES {
            world.start(&nodes[i % nodes.len()], &text(i));
        }
        world.run_for(S * 3);
        let ran = world.stretches.len();
        world.blocked = Some(|_, _, message| matches!(message, Message::Ended { .. }));
        world.crash(&nodes[1]);
        world.run_for(MS * 500);
        world.drain(&nodes[0], S * 25);
        world.run_for(MS * 500);
        assert!(world.nodes[&nodes[0]].drained.is_none(), "it holds what nobody else does");
        world.blocked = None;
        drain_and_exit(&mut world, &nodes[0]);
        for i in 0..NAMES {
            assert!(!holders(&world, &text(i)).is_empty(), "seed {seed}: {}", text(i));
        }
        assert_eq!(world.stretches.len(), ran, "nothing ran again");
    }
}

/// Nobody is waited for who could not help.
#[test]
fn the_keeper_of_the_only_copy_leaves_at_once_where_nobody_else_is() {
    let (mut world, nodes) = World::cluster(1, 2);
    world.goal = 1_000_000;
    for i in 0..NAMES {
        world.start(&nodes[0], &text(i));
    }
    world.run_for(S * 3);
    let keeper = &nodes[1];
    let held = world.nodes[keeper].disk.runs.len();
    assert_eq!(held, NAMES, "it holds a copy of each");
    let begun = world.now;
    drain_and_exit(&mut world, keeper);
    assert!(world.now.since(begun) < MS * 500, "{:?}", world.now.since(begun));
}

/// An owner that cannot give its copy to anybody costs the budget, not more.
#[test]
fn a_copy_that_nobody_takes_over_holds_a_drain_up_to_its_budget() {
    let (mut world, ..) = World::owned(2, 3, &Setup::default());
    world.run_for(S);
    let (_, keeper, _) = world.roles("a");
    world.blocked = Some(|_, _, message| matches!(message, Message::Checkpoint { .. }));
    world.drain(&keeper, S * 5);
    world.run_for(MS * 4_900);
    assert!(world.nodes[&keeper].drained.is_none(), "it holds the only copy");
    world.run_for(MS * 1_400);
    assert!(world.nodes[&keeper].drained.is_some());
}

/// Whoever takes a task over may hold the last copy of its state: if it drains before it has started, that
/// goes to another node first.
#[test]
fn a_taker_that_drains_before_it_starts_leaves_its_state_to_another() {
    for seed in 60..63 {
        let (mut world, ..) = World::owned(seed, 3, &Setup::default());
        let (owner, taker, third) = world.roles("a");
        world.reads_take = S;
        let before = world.clone();
        world.crash(&owner);
        world.run_until(S, "it is taken over", |w| {
            w.owner(&third, "a").is_some_and(|claim| claim.session == taker)
        });
        assert!(world.running("a").is_empty(), "and still looked for");
        drain_and_exit(&mut world, &taker);
        world.run_for(S * 15);
        assert_nothing_lost(&world, &before, &format!("seed {seed}"));
    }
}

/// A taker has a state once it runs, and not while it asks for it: who gives it stays until then.
#[test]
fn the_last_holder_of_a_state_stays_until_a_taker_has_it() {
    for seed in 63..66 {
        let (mut world, ..) = World::owned(seed, 3, &Setup::default());
        let (owner, holder, _) = world.roles("a");
        let before = world.clone();
        // It is on its way for a while.
        world.faults.push(Fault {
            hits: |m| matches!(m, Message::StateData { .. }),
            fate: Fate::Late(S),
            times: 1,
        });
        world.crash(&owner);
        drain_and_exit(&mut world, &holder);
        world.run_for(S * 15);
        assert!(world.faults.is_empty());
        assert_nothing_lost(&world, &before, &format!("seed {seed}"));
    }
}

/// What was released has no owner who sees to its copies: the node that it was sealed to takes it up before
/// it leaves in its turn.
#[test]
fn the_last_holder_of_what_was_released_gives_it_away_before_it_leaves() {
    for seed in 80..83 {
        for replicas in [1, 2] {
            let able = Setup { replicas, ..Setup::default() };
            let unable = Setup { kinds: vec![("other", 1)], ..able.clone() };
            let (mut world, nodes) = World::cluster_of(seed, 1, &able);
            let keepers: Vec<_> = (1..4)
                .map(|i| world.boot(&format!("m{i}"), unable.clone(), Disk::default()))
                .collect();
            world.run_for(S * 3);
            world.goal = 1_000_000;
            world.start(&nodes[0], "a");
            world.run_for(S * 2);
            let claim = world.claim_of(&nodes[0], "a").unwrap().clone();
            assert_eq!(claim.replicas.len(), replicas);
            let before = world.clone();
            drain_and_exit(&mut world, &nodes[0]);
            world.run_for(MS * 200);
            assert_eq!(world.owner(&keepers[0], "a").unwrap().phase, Phase::Released);
            let begun = world.now;
            for keeper in keepers.iter().filter(|keeper| claim.replicas.contains(&keeper.node)) {
                drain_and_exit(&mut world, keeper);
                world.run_for(MS * 300);
            }
            let took = world.now.since(begun);
            // The goodbye of the first one was lost, and it is asked.
            assert!(took < S * 5, "seed {seed}, {replicas}: no budget is used up: {took:?}");
            world.run_for(S * 15);
            world.boot("n9", able, Disk::default());
            world.run_for(S * 25);
            assert_nothing_lost(&world, &before, &format!("seed {seed}, {replicas}"));
        }
    }
}

/// What nobody has any more when the last node leaves is lost with it, or waits on its disk: it says so, whoever
/// had it before.
#[test]
fn the_last_node_answers_for_what_those_before_it_have_left() {
    for (seed, crashes, commits) in [(90, false, true), (91, true, true), (92, false, false)] {
        let able = Setup::default();
        let unable = Setup { kinds: vec![("other", 1)], ..able.clone() };
        let (mut world, nodes) = World::cluster_of(seed, 1, &able);
        let others: Vec<_> =
            (1..3).map(|i| world.boot(&format!("m{i}"), unable.clone(), Disk::default())).collect();
        world.run_for(S * 3);
        world.goal = 1_000_000;
        if !commits {
            world.step = S * 60;
        }
        for i in 0..NAMES {
            world.start(&nodes[0], &text(i));
        }
        world.run_for(S * 2);
        if crashes {
            world.crash(&nodes[0]);
            world.run_for(MS * 20);
        }
        for node in nodes.iter().skip(usize::from(crashes)).chain(&others) {
            world.drain(node, S * 20);
            world.run_until(S * 21, "drained", |w| w.nodes[node].drained.is_some());
            world.give(node, Event::Leave);
            world.run_until(S * 2, "it has left", |w| w.nodes[node].left.is_some());
            world.crash(node);
        }
        let last = others.last().unwrap();
        let lost = world.told(last, |n| matches!(n, Notice::Released { replicas: 0, .. }));
        assert_eq!(lost, NAMES, "seed {seed}");
    }
}

/// Nodes that go one right after another, as when a whole service is shut down: each is relieved at once
/// of an end that it holds, also where it has itself stepped back for the run that ended; and the last
/// one waits for nobody.
#[test]
fn nodes_that_leave_one_after_another_keep_no_other_waiting_for_an_end() {
    let mut stepped_back = 0;
    for seed in 0..40 {
        let mut world = World::new(seed);
        world.goal = 5;
        // All at once, so that some claim the name before they know of one another.
        let setup = Setup { seeds: true, ..Setup::default() };
        let nodes = ["n0", "n1", "n2"].map(|n| world.boot(n, setup.clone(), Disk::default()));
        let is_up = |w: &World, node: &SessionId| w.nodes[node].machine.state() == NodeState::Up;
        let mut waiting: Vec<&SessionId> = nodes.iter().collect();
        while !waiting.is_empty() {
            world.run_until(S * 10, "one is up", |w| waiting.iter().any(|node| is_up(w, node)));
            for node in waiting.extract_if(.., |node| is_up(&world, node)).collect::<Vec<_>>() {
                world.start(node, "a");
            }
        }
        world.run_until(S * 3, "it has ended", |w| {
            nodes.iter().all(|n| w.owner(n, "a").is_some_and(|o| o.phase == Phase::Finished))
        });
        stepped_back += nodes
            .iter()
            .filter(|n| world.claim_of(n, "a").is_some_and(|c| c.phase == Phase::Superseded))
            .count();
        for node in &nodes {
            world.drain(node, S * 25);
            world.run_until(S, "it is drained", |w| w.nodes[node].drained.is_some());
            world.give(node, Event::Leave);
            world.run_until(S, "it has left", |w| w.nodes[node].left.is_some());
        }
    }
    assert!(stepped_back > 0);
}

/// A cluster of five in which "a" has been acknowledged, and whose step lasts longer than a drain: its owner, its
/// replica, and the step that was acknowledged.
fn in_a_long_step(seed: u64, budget: u32, reads_take: Duration) -> (World, [SessionId; 2], u64) {
    let setup = Setup { durable: true, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(seed, 5, &setup);
    world.goal = 100_000;
    world.reads_take = reads_take;
    world.step = S * (budget + 2);
    world.start(&nodes[0], "a");
    world.run_until(S * 60, "acknowledged", |w| w.acknowledged.contains_key(&name("a")));
    world.run_for(MS * 100);
    let (owner, replica, _) = world.roles("a");
    let (_, acknowledged) = world.acknowledged[&name("a")];
    (world, [owner, replica], acknowledged)
}

/// Who of those that live holds anything of "a".
fn keepers(world: &World) -> Vec<SessionId> {
    let mut living = world.living();
    living.retain(|node| world.nodes[node].disk.runs.values().any(|r| !r.checkpoints.is_empty()));
    living
}

/// Owner and replica drain at once while a step lasts longer than the budget: what the replica alone has
/// acknowledged goes to a node that stays, however slow the disks are.
#[test]
fn an_owner_and_its_replica_that_drain_at_once_lose_nothing() {
    for (budget, reads) in [(1, 1), (1, 900), (5, 100), (5, 300), (25, 900)] {
        let (mut world, both, acknowledged) = in_a_long_step(0, budget, MS * reads);
        let begun = world.now;
        both.iter().for_each(|node| world.drain(node, S * budget));
        for _ in 0..budget * 50 + 500 {
            world.run_for(MS * 20);
            for node in &both {
                let (drained, left) = (world.nodes[node].drained, world.nodes[node].left);
                match (drained, left) {
                    (Some(_), None) => world.give(node, Event::Leave),
                    (_, Some(_)) => world.crash(node),
                    (None, None) => {}
                }
            }
        }
        world.run_for(S * 60);
        let after = world.since("a", begun);
        let goes_on = after.first().is_some_and(|s| s.from_seq >= acknowledged);
        assert!(goes_on, "{budget} s, {reads} ms: {acknowledged} was acknowledged: {after:?}");
    }
}

/// Replicas are moved when membership changes, also while the owner drains and waits for a long step.
#[test]
fn a_draining_owner_that_waits_for_its_step_replaces_a_replica_that_goes() {
    for dies in [true, false] {
        let (mut world, [owner, replica], _) = in_a_long_step(2, 25, MS);
        world.drain(&owner, S * 25);
        world.run_for(MS * 100);
        if dies {
            world.crash(&replica);
        } else {
            world.drain(&replica, S * 25);
        }
        world.run_for(S * 2);
        let staying = keepers(&world).into_iter().filter(|n| ![&owner, &replica].contains(&n));
        assert!(staying.count() > 0, "dies: {dies}");
    }
}

/// The owner's host has lost its power and its replica leaves before that is known: the one copy goes to a
/// node that stays, at any budget.
#[test]
fn a_replica_whose_owner_is_dead_and_not_yet_known_to_be_gives_its_copy_away() {
    for (seed, budget) in [(0, 5), (1, 5), (2, 25), (3, 0)] {
        let setup = Setup { known_dead: false, ..Setup::default() };
        let (mut world, nodes) = World::cluster_of(seed, 4, &setup);
        world.goal = 1_000_000;
        for i in 0..NAMES {
            world.start(&nodes[i % nodes.len()], &text(i));
        }
        world.run_for(S * 5);
        let (owner, replica, _) = world.roles("t0");
        world.crash(&owner);
        world.run_for(S);
        let before = world.clone();
        world.drain(&replica, S * budget);
        let done = S * budget + MS * 1_200;
        world.run_until(done, "drained", |w| w.nodes[&replica].drained.is_some());
        let told = world.told(&replica, |n| matches!(n, Notice::Warning(_)));
        assert_eq!(told, 0, "seed {seed}: it left a copy that others rely on");
        world.give(&replica, Event::Leave);
        world.run_for(S);
        world.crash(&replica);
        world.run_for(S * 60);
        assert_nothing_lost(&world, &before, &format!("seed {seed}"));
    }
}

/// A node that alone can run "a", which has run for a while, and three that can only keep it, whose kernels say nothing
/// when they die: the runner, the keepers, and the one of them that has a copy.
fn with_keepers(seed: u64) -> (World, SessionId, Vec<SessionId>, SessionId) {
    let able = Setup { known_dead: false, ..Setup::default() };
    let unable = Setup { kinds: vec![("other", 1)], ..able.clone() };
    let (mut world, mut nodes) = World::cluster_of(seed, 1, &able);
    let boot = |i| world.boot(&format!("m{i}"), unable.clone(), Disk::default());
    let keepers: Vec<_> = (1..4).map(boot).collect();
    world.run_for(S * 3);
    world.goal = 1_000_000;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let replicas = world.claim_of(&nodes[0], "a").unwrap().replicas.clone();
    let replica = keepers.iter().find(|keeper| replicas.contains(&keeper.node)).unwrap().clone();
    (world, nodes.remove(0), keepers, replica)
}

/// The replica's host has lost its power, and that is not known yet when its owner drains: what is released, whether
/// it ran or had stopped before, is in other living hands first.
#[test]
fn what_is_released_is_not_left_to_a_replica_that_is_silently_dead() {
    for seed in 0..4 {
        for paused in [false, true] {
            for (dead_for, budget) in [(0, 25), (300, 25), (1_000, 25), (1_000, 5), (3_000, 0)] {
                let (mut world, owner, keepers, replica) = with_keepers(seed);
                if paused {
                    world.want(&owner, "a", Want::Pause);
                    world.run_for(S);
                }
                world.crash(&replica);
                world.run_for(MS * dead_for);
                let done = world.steps_done[&name("a")];
                world.drain(&owner, S * budget);
                let within = S * 4.min(budget) + MS * 1_200;
                world.run_until(within, "drained", |w| w.nodes[&owner].drained.is_some());
                let context = format!("seed {seed}, paused {paused}, {dead_for} ms, {budget} s");
                let alone =
                    world.told(&owner, |n| matches!(n, Notice::Released { replicas: 0, .. }));
                assert_eq!(alone, 0, "{context}");
                world.crash(&owner);
                let newest =
                    keepers.iter().filter(|keeper| **keeper != replica).flat_map(|keeper| {
                        let runs = world.nodes[keeper].disk.runs.values();
                        runs.flat_map(|run| run.checkpoints.iter().map(|(h, _)| h.position.seq))
                    });
                assert!(newest.max().is_some_and(|seq| seq >= done), "{context}: {done} steps");
            }
        }
    }
}

/// A replica that has shown that it lives is not sent again what it has.
#[test]
fn what_had_stopped_before_a_drain_is_released_as_soon_as_its_replica_is_known_to_live() {
    for seed in 0..4 {
        let (mut world, owner, _, _) = with_keepers(seed);
        world.want(&owner, "a", Want::Pause);
        world.run_for(S);
        world.record_messages = true;
        let begun = world.now;
        world.drain(&owner, S * 25);
        world.run_until(S, "drained", |w| w.nodes[&owner].drained.is_some());
        assert!(world.now.since(begun) < MS * 500, "seed {seed}: {:?}", world.now.since(begun));
        let again = |m: &&(_, _, _, Message)| matches!(m.3, Message::Checkpoint { .. });
        assert_eq!(world.sent.iter().filter(again).count(), 0, "seed {seed}");
    }
}

/// Whoever only looks for a state keeps nothing of it: the last holder stays until it has begun.
#[test]
fn an_owner_that_only_looks_for_a_state_keeps_no_copy_of_it() {
    for seed in 66..69 {
        let (mut world, owner, holder) = World::with_a_keeper(seed);
        world.commit_every = 1;
        world.run_for(S);
        let before = world.clone();
        let lost = |m: &Message| matches!(m, Message::States { .. });
        let late = |m: &Message| matches!(m, Message::StateData { .. });
        world.faults.push(Fault { hits: lost, fate: Fate::Lost, times: 1 });
        world.faults.push(Fault { hits: late, fate: Fate::Late(S), times: 1 });
        world.crash(&owner);
        let taker = world.boot("n2", Setup::default(), Disk::default());
        world.run_until(S * 15, "it is looked for", |w| {
            let claim = w.nodes[&holder].machine.view().get(&name("a"), &taker);
            claim.is_some_and(|claim| claim.phase == Phase::Recovering)
        });
        assert!(world.running("a").is_empty());
        drain_and_exit(&mut world, &holder);
        assert_eq!(world.running("a"), std::slice::from_ref(&taker), "seed {seed}");
        world.run_for(S * 5);
        assert!(world.faults.is_empty());
        assert_nothing_lost(&world, &before, &format!("seed {seed}"));
    }
}

/// The checkpoints that a node gave away: when, and to whom.
fn given_away(world: &World, by: &SessionId) -> Vec<(Time, SessionId)> {
    let given = world.sent.iter().filter(|(_, from, _, message)| {
        from == by && matches!(message, Message::Checkpoint { claim, .. } if claim.session != *by)
    });
    given.map(|(at, _, to, _)| (*at, to.clone())).collect()
}

/// An owner sees to its copies itself, and has had the time for that when a replica gives any away; who
/// refuses one is asked no more.
#[test]
fn relief_waits_for_the_owner_and_passes_over_who_refuses() {
    for seed in 10..14 {
        let setup = Setup { known_dead: false, ..Setup::default() };
        let (mut world, ..) = World::owned(seed, 5, &setup);
        let (owner, replica, _) = world.roles("a");
        world.record_messages = true;
        world.steps.insert(name("a"), S * 100);
        world.run_for(S);
        let patience = setup.timing.convergence();
        let mut lives = world.clone();
        lives.drain(&replica, S * 25);
        lives.run_for(patience * 2);
        assert!(lives.nodes[&replica].drained.is_some());
        assert_eq!(given_away(&lives, &replica), [], "its owner lives");

        world.crash(&owner);
        let begun = world.now;
        let mut accepts = world.clone();
        accepts.drain(&replica, S * 25);
        accepts.run_until(patience * 2, "drained", |w| w.nodes[&replica].drained.is_some());
        let given = given_away(&accepts, &replica);
        assert_eq!(given.len(), 1, "seed {seed}");
        let (at, first) = &given[0];
        assert!(at.since(begun) >= patience, "{:?}", at.since(begun));

        world.nodes.get_mut(first).unwrap().disk_full = true;
        world.drain(&replica, S * 25);
        world.run_until(patience * 2, "drained", |w| w.nodes[&replica].drained.is_some());
        let given = given_away(&world, &replica);
        let to: Vec<_> = given.iter().map(|(_, to)| to).collect();
        assert_eq!(to.iter().filter(|to| **to == first).count(), 1, "seed {seed}: {to:?}");
        assert_eq!(to.len(), 2, "seed {seed}: {to:?}");
    }
}

/// With nobody up, whoever is joining keeps what is released: it may not be up before the budget ends, as when it
/// waits for somebody who has just died.
#[test]
fn what_is_released_while_nobody_but_joiners_is_there_is_kept_by_them() {
    for seed in 0..4 {
        for (paused, budget) in [(false, 5), (false, 25), (true, 5), (false, 1)] {
            let (mut world, owner, others) = World::owned(seed, 2, &Setup::default());
            if paused {
                world.want(&owner, "a", Want::Pause);
                world.run_for(S);
            }
            world.crash(&others[0]);
            let joiner = world.boot("n9", Setup::default(), Disk::default());
            world.run_for(MS * 300);
            let joins = |w: &World| w.nodes[&joiner].machine.state() == NodeState::Joining;
            assert!(joins(&world));
            let done = world.steps_done[&name("a")];
            world.drain(&owner, S * budget);
            let within = S * budget + MS * 1_500;
            world.run_until(within, "drained", |w| w.nodes[&owner].drained.is_some());
            world.give(&owner, Event::Leave);
            world.crash(&owner);
            world.run_for(S * 90);
            let context = format!("seed {seed}, paused {paused}, {budget} s");
            if paused {
                world.want(&joiner, "a", Want::Run);
                world.run_for(S * 3);
            }
            assert_eq!(world.runner("a"), joiner, "{context}");
            let last = world.stretches.last().unwrap();
            assert!(last.from_seq >= done, "{context}: {done} steps, and then {last:?}");
        }
    }
}

/// A name that a draining node takes up for want of an owner is settled as fast as its budget wants it, whoever is
/// silently dead and does not answer.
#[test]
fn what_a_node_takes_up_as_it_leaves_costs_it_no_more_than_its_budget_and_a_moment() {
    for seed in 0..4 {
        for budget in [0, 1, 5] {
            let (mut world, owner, keepers, replica) = with_keepers(seed);
            drain_and_exit(&mut world, &owner);
            world.run_for(S);
            for other in keepers.iter().filter(|keeper| **keeper != replica) {
                world.crash(other);
            }
            let begun = world.now;
            world.drain(&replica, S * budget);
            world.run_until(S * 30, "drained", |w| w.nodes[&replica].drained.is_some());
            let took = world.now.since(begun);
            assert!(took < S * budget + MS * 1_500, "seed {seed}, {budget} s: {took:?}");
        }
    }
}

/// The publisher of an output has lost its power, and that is not known yet when the only other one that keeps it leaves:
/// it is given to a third, also where it had not even been published.
#[test]
fn an_output_is_not_left_to_a_publisher_that_is_silently_dead() {
    for seed in 0..4 {
        for published in [true, false] {
            let setup = Setup { known_dead: false, ..Setup::default() };
            let (mut world, nodes) = World::cluster_of(seed, 4, &setup);
            world.goal = 20;
            if !published {
                world.blocked = Some(|_, _, m| matches!(m, Message::EndedReply { .. }));
            }
            world.start(&nodes[0], "a");
            world.run_until(S * 3, "it has ended", |w| w.finished.contains_key(&name("a")));
            world.run_for(MS * if published { 900 } else { 50 });
            let publisher = world.stretches.last().unwrap().session.clone();
            let kept = holders(&world, "a");
            let keeper = kept.iter().find(|node| **node != publisher).unwrap().clone();
            world.crash(&publisher);
            world.blocked = None;
            world.run_for(MS * 700);
            drain_and_exit(&mut world, &keeper);
            world.run_for(S * 30);
            let context = format!("seed {seed}, published {published}");
            assert!(!holders(&world, "a").is_empty(), "{context}: nobody has it");
            assert_eq!(world.stretches.len(), 1, "{context}: it has ended");
            for node in world.living() {
                assert_eq!(world.owner(&node, "a").unwrap().phase, Phase::Finished, "{context}");
            }
        }
    }
}
