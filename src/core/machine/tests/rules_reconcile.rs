//! What state goes on where copies meet again: Rules 21 and 22.

use std::time::Duration;

use bytes::Bytes;

use super::rules_meeting::{setup, split};
use super::world::{Disk, MS, Setup, World, name};
use crate::core::claim::{Phase, Want};
use crate::core::ids::SessionId;
use crate::core::io::{Event, Notice};
use crate::core::message::Message;
use crate::core::reconcile::{Choice, Side};

const S: Duration = Duration::from_secs(1);

/// How far a session's last copy of "a" has come.
fn reached(world: &World, of: &SessionId) -> u64 {
    world.stretches.iter().rfind(|s| s.name == name("a") && s.session == *of).unwrap().to_seq
}

/// The last stretch of "a", which runs.
fn goes_on(world: &World) -> (SessionId, u64) {
    let last = world.stretches.iter().rfind(|s| s.name == name("a")).unwrap();
    assert!(last.end.is_none(), "{last:?}");
    (last.session.clone(), last.from_seq)
}

fn reconciled(world: &World) -> usize {
    let nodes = world.nodes.keys();
    nodes.map(|node| world.told(node, |n| matches!(n, Notice::Reconciled { .. }))).sum()
}

/// How many branches of "a" a node's disk holds.
fn branches(world: &World, at: &SessionId) -> usize {
    world.nodes[at].disk.runs.values().map(|run| run.checkpoints.len()).sum()
}

fn merge(mine: &Side, theirs: &Side) -> Choice {
    let seq = mine.seq.max(theirs.seq) + 1;
    Choice::Merged(mine.version, Bytes::copy_from_slice(&seq.to_le_bytes()))
}

/// Default: who has done more. Here the loser, which had a head start: the winner goes on with its state.
#[test]
fn the_winner_goes_on_with_the_state_that_is_further() {
    for seed in 0..6 {
        let (mut world, _, old, new) = split(seed, 3);
        world.heal();
        world.run_for(S * 3);
        assert_eq!(world.runner("a"), new, "seed {seed}");
        let (of_old, (by, from)) = (reached(&world, &old), goes_on(&world));
        assert_eq!(by, new);
        let last_of_new = world.stretches.iter().filter(|s| s.session == new && s.end.is_some());
        let best = of_old.max(last_of_new.map(|s| s.to_seq).max().unwrap());
        assert_eq!(from, best, "seed {seed}: nothing of the better one is lost");
        assert_eq!(reconciled(&world), 1, "seed {seed}");
        let moves = world.told(&new, |n| matches!(n, Notice::Started { .. }));
        assert_eq!(moves, 1, "seed {seed}: it stood still, it has not moved again");
    }
}

/// The winner re-mints before its next effect: above all that any copy wrote under.
#[test]
fn what_was_reconciled_goes_on_under_an_epoch_above_all_copies() {
    let (mut world, _, old, new) = split(7, 3);
    let of = |world: &World, at: &SessionId| {
        world.stretches.iter().rfind(|s| s.session == *at).unwrap().epoch
    };
    let before = of(&world, &old).max(of(&world, &new));
    world.heal();
    world.run_for(S * 3);
    assert!(of(&world, &new) > before);
    let held = world.nodes[&new].disk.runs.values().flat_map(|run| &run.checkpoints);
    assert!(held.clone().count() == 1 && held.clone().all(|(h, _)| h.writer == new));
}

#[test]
fn code_may_choose_either_side_or_merge() {
    for (seed, chooses) in [
        (10, (|_, _| Choice::Mine) as fn(&Side, &Side) -> Choice),
        (11, |_, _| Choice::Theirs),
        (12, merge),
    ] {
        let (mut world, _, old, new) = split(seed, 3);
        world.chooses = chooses;
        world.heal();
        world.run_until(S * 3, "reconciled", |w| reconciled(w) == 1);
        world.run_for(MS * 100);
        let mine = world.stretches.iter().filter(|s| s.session == new && s.end.is_some());
        let (mine, theirs) = (mine.map(|s| s.to_seq).max().unwrap(), reached(&world, &old));
        let (by, from) = goes_on(&world);
        let wanted = [mine, theirs, mine.max(theirs) + 1][seed as usize - 10];
        assert_eq!((by, from), (new, wanted), "mine {mine}, theirs {theirs}");
    }
}

/// Three copies: pairwise, and once.
#[test]
fn of_three_copies_all_branches_are_merged() {
    for seed in 3..6 {
        let (mut world, ..) = World::owned(seed, 3, &Setup { replicas: 2, ..setup() });
        let nodes = world.living();
        nodes.iter().for_each(|node| world.isolate(node));
        world.run_for(S * 12);
        assert_eq!(world.running("a").len(), 3, "seed {seed}");
        world.chooses = merge;
        world.heal();
        world.run_for(S * 6);
        let survivor = world.runner("a");
        let best = nodes.iter().filter(|n| **n != survivor).map(|n| reached(&world, n)).max();
        assert!(goes_on(&world).1 > best.unwrap(), "seed {seed}");
        for node in &nodes {
            assert!(branches(&world, node) <= 1, "seed {seed}: {node} keeps what was merged");
        }
    }
}

/// Code that does not return in the stop's grace: more progress decides, and what it says later counts no more.
#[test]
fn code_that_does_not_return_keeps_nothing_standing_still() {
    let (mut world, _, _, new) = split(13, 3);
    world.choosing_takes = S * 60;
    world.chooses = merge;
    world.heal();
    let grace = setup().timing.stop_grace;
    world.run_for(grace + S * 3);
    assert_eq!(world.runner("a"), new);
    assert_eq!(reconciled(&world), 1);
    let (by, from) = goes_on(&world);
    world.run_for(S * 60);
    assert_eq!(goes_on(&world), (by, from), "the late word changes nothing");
}

/// The loser keeps its branch until what contains it is in other hands.
#[test]
fn a_loser_keeps_its_branch_until_it_is_reconciled() {
    let (mut world, _, old, new) = split(14, 3);
    world.choosing_takes = S * 4;
    world.heal();
    world.run_for(S * 3);
    assert_eq!(reconciled(&world), 0);
    let of_old = |w: &World, at: &SessionId| {
        let mut held = w.nodes[at].disk.runs.values().flat_map(|run| &run.checkpoints);
        held.any(|(h, _)| h.writer == old)
    };
    assert!(of_old(&world, &old) && of_old(&world, &new));
    world.run_for(S * 4);
    assert_eq!(reconciled(&world), 1);
    assert!(!of_old(&world, &old) && !of_old(&world, &new));
}

/// The winner dies while its code chooses: the loser counts as a replica, and one copy goes on from the better branch.
#[test]
fn a_winner_that_dies_while_it_reconciles_costs_neither_branch() {
    for seed in 15..20 {
        let (mut world, _, old, new) = split(seed, 3);
        world.choosing_takes = S * 2;
        world.heal();
        world.run_until(S * 5, "it has stopped to choose", |w| w.running("a").is_empty());
        let best = reached(&world, &old).max(reached(&world, &new));
        world.run_for(MS * 500);
        assert!(world.running("a").is_empty(), "seed {seed}: it still chooses");
        world.crash(&new);
        world.run_for(S * 12);
        assert_eq!(world.running("a").len(), 1, "seed {seed}");
        let (_, from) = goes_on(&world);
        assert!(from + 1 >= best, "seed {seed}: {from} after {best}");
    }
}

/// The winner is told to stop while its code chooses: another goes on, and nothing of the better branch is lost.
#[test]
fn a_winner_that_drains_while_it_reconciles_hands_over_what_comes_of_it() {
    for (seed, budget) in [(20, 25), (21, 25), (22, 1), (23, 0)] {
        let (mut world, _, old, new) = split(seed, 3);
        world.choosing_takes = S * 2;
        world.heal();
        world.run_until(S * 5, "it has stopped to choose", |w| w.running("a").is_empty());
        let best = reached(&world, &old).max(reached(&world, &new));
        world.drain(&new, S * budget);
        world.run_until(S * 20, "drained", |w| w.nodes[&new].drained.is_some());
        world.give(&new, Event::Leave);
        world.crash(&new);
        world.run_for(S * 10);
        assert_eq!(world.running("a").len(), 1, "seed {seed}");
        let (_, from) = goes_on(&world);
        assert!(from >= best, "seed {seed}, {budget} s: {from} after {best}");
    }
}

/// Orders that come while the code chooses are obeyed at once.
#[test]
fn a_task_that_is_paused_or_cancelled_while_it_is_reconciled_obeys() {
    for (seed, want, phase) in
        [(24, Want::Pause, Phase::Paused), (25, Want::Cancel, Phase::Cancelled)]
    {
        let (mut world, _, _, new) = split(seed, 3);
        world.choosing_takes = S * 2;
        world.heal();
        world.run_until(S * 5, "it has stopped to choose", |w| w.running("a").is_empty());
        world.want(&new, "a", want);
        world.run_for(S * 5);
        assert!(world.running("a").is_empty());
        assert_eq!(world.owner(&new, "a").unwrap().phase, phase);
        if want == Want::Pause {
            world.want(&new, "a", Want::Run);
            world.run_for(S * 4);
            assert_eq!(world.running("a").len(), 1);
            assert_eq!(reconciled(&world), 1, "and reconciles when it goes on");
        }
    }
}

/// The winner's build does not read what the loser's wrote: the task goes to a node that reads both, and loses neither.
#[test]
fn a_branch_that_the_winner_cannot_read_takes_the_task_to_a_node_that_can() {
    for seed in 31..34 {
        let (mut world, nodes) = World::cluster_of(seed, 3, &setup());
        world.goal = 100_000;
        world.start(&nodes[0], "a");
        world.run_for(S);
        let newer = Setup {
            kinds: vec![("count", 2)],
            downgrades: false,
            revision: "r2",
            since_ms: 2,
            ..setup()
        };
        let ahead = world.boot("m0", newer.clone(), Disk::default());
        world.run_for(S * 2);
        let owner = world.runner("a");
        world.drain(&owner, S * 5);
        world.run_for(S * 3);
        assert_eq!(world.runner("a"), ahead, "seed {seed}");
        world.isolate(&ahead);
        world.run_until(S * 20, "it goes on from an older state", |w| w.running("a").len() == 2);
        world.run_for(S * 3);
        let behind = world.running("a").into_iter().find(|node| *node != ahead).unwrap();
        world.chooses = merge;
        world.heal();
        world.run_for(S * 6);
        assert_eq!(world.runner("a"), ahead, "seed {seed}");
        let best = reached(&world, &behind);
        let before = world.stretches.iter().filter(|s| s.session == ahead && s.end.is_some());
        let best = before.map(|s| s.to_seq).fold(best, u64::max);
        assert_eq!(reconciled(&world), 1, "seed {seed}");
        assert!(goes_on(&world).1 > best, "seed {seed}: {:?} after {best}", goes_on(&world));
        let epochs: Vec<_> = world.stretches.iter().filter(|s| s.session == behind).collect();
        assert!(epochs.iter().all(|s| s.end.is_some()));
    }
}

/// Nothing of this where no copy ran apart: no task stops for its own past.
#[test]
fn where_nothing_ran_apart_nothing_is_reconciled() {
    let (mut world, nodes) = World::cluster_of(30, 4, &setup());
    world.goal = 100_000;
    for i in 0..20 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 3);
    world.crash(&nodes[1]);
    world.run_for(S * 3);
    world.drain(&nodes[2], S * 25);
    world.run_for(S * 3);
    assert_eq!(reconciled(&world), 0);
    world.blocked = Some(|_, _, m| matches!(m, Message::Obsolete { .. }));
    world.crash(&nodes[3]);
    world.run_for(S * 5);
    assert_eq!(reconciled(&world), 0);
}

/// The loser is the winner's replica too: it keeps what was reconciled, in place of its branch.
#[test]
fn a_loser_that_is_the_winners_replica_keeps_what_was_reconciled() {
    for seed in 40..44 {
        let (mut world, old, others) = World::owned(seed, 2, &setup());
        world.isolate(&old);
        world.run_until(S * 20, "both run it", |w| w.running("a").len() == 2);
        world.run_for(S);
        world.chooses = merge;
        // Nothing is committed soon after it.
        world.steps.insert(name("a"), S);
        world.heal();
        world.run_until(S * 5, "reconciled", |w| reconciled(w) == 1);
        let (winner, from) = goes_on(&world);
        let loser = others.iter().chain([&old]).find(|node| **node != winner).unwrap();
        world.run_for(MS * 500);
        world.crash(&winner);
        world.run_for(S * 15);
        let last = goes_on(&world);
        assert!(last.0 == *loser && last.1 >= from, "seed {seed}: {last:?} after {from}");
    }
}
