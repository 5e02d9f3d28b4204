//! Mixed revisions: which version is written, what is kept for a rollback, where tasks go.

use std::time::Duration;

use super::rules_claims::short;
use super::world::{Disk, MS, Setup, World, name};
use crate::core::claim::{Phase, Want};
use crate::core::ids::{Kind, SessionId};
use crate::core::io::{Cause, Event, Notice};
use crate::core::timing::Timing;

const S: Duration = Duration::from_secs(1);
/// Long enough for everything but the end of a rollout.
const FINALIZE: Duration = Duration::from_secs(60);

fn timing() -> Timing {
    Timing { finalize_after: FINALIZE, ..short() }
}

fn old() -> Setup {
    Setup { timing: timing(), revision: "old", since_ms: 1, ..Setup::default() }
}

/// Reads what `old` wrote, and writes it if it can.
fn new() -> Setup {
    Setup { kinds: vec![("count", 2)], revision: "new", since_ms: 2, ..old() }
}

/// As `new`, but what it writes `old` cannot read.
fn one_way() -> Setup {
    Setup { downgrades: false, ..new() }
}

/// Reads and writes the newer version alone.
fn breaking() -> Setup {
    Setup { oldest: 2, ..one_way() }
}

fn world(seed: u64) -> World {
    let mut world = World::new(seed);
    world.goal = 1_000_000;
    world
}

fn boot(world: &mut World, node: &str, setup: Setup) -> SessionId {
    let session = world.boot(node, setup, Disk::default());
    world.run_for(S * 4);
    session
}

/// The versions of all checkpoints of "a" that a node stores, in order.
fn stored(world: &World, at: &SessionId) -> Vec<u32> {
    let runs = world.nodes[at].disk.runs.values();
    let of_a = runs.filter(|run| run.spec.name == name("a"));
    of_a.flat_map(|run| &run.checkpoints).map(|(header, _)| header.state_version).collect()
}

fn last_seq(world: &World, at: &SessionId, version: u32) -> u64 {
    let runs = world.nodes[at].disk.runs.values();
    let headers = runs.flat_map(|run| &run.checkpoints).map(|(header, _)| header);
    let of = headers.filter(|header| header.state_version == version);
    of.map(|header| header.position.seq).max().unwrap()
}

fn drain_and_leave(world: &mut World, node: &SessionId) {
    world.drain(node, S * 5);
    world.run_until(S * 8, "drained", |w| w.nodes[node].drained.is_some());
    world.give(node, Event::Leave);
    world.run_for(MS * 200);
    world.crash(node);
}

fn state_lost(notice: &Notice) -> bool {
    matches!(notice, Notice::StateLost { .. })
}

/// One node of the old build runs "a"; one of the given build joins and takes it over by a drain.
fn deployed(seed: u64, setup: Setup) -> (World, SessionId, SessionId) {
    let mut world = world(seed);
    let before = boot(&mut world, "n0", old());
    let keeper = boot(&mut world, "n1", old());
    world.start(&before, "a");
    world.run_for(S * 2);
    let (home, other) =
        if world.runner("a") == before { (before, keeper) } else { (keeper, before) };
    let after = boot(&mut world, "n2", setup);
    drain_and_leave(&mut world, &home);
    world.run_for(S * 2);
    assert_eq!(world.runner("a"), after, "the newest revision");
    (world, other, after)
}

#[test]
fn a_newer_build_writes_what_the_older_reads_until_none_has_been_seen_for_long() {
    let (mut world, old, new) = deployed(1, new());
    let count = Kind::new("count").unwrap();
    assert_eq!(world.nodes[&new].writes.get(&count), Some(&1));
    assert_eq!(stored(&world, &new), [1]);
    assert!(!world.nodes[&new].machine.is_one_way(&name("a")));

    // The older one is needed no more, and nobody knows that yet.
    drain_and_leave(&mut world, &old);
    world.run_for(FINALIZE - S * 5);
    assert_eq!(stored(&world, &new), [1]);
    world.run_for(S * 10);
    assert_eq!(world.nodes[&new].writes.get(&count), Some(&2));
    assert_eq!(stored(&world, &new), [2], "and nothing is pinned: there is nobody to go back to");
    world.assert_no_overlap();
}

#[test]
fn a_node_of_the_older_build_that_comes_back_is_written_for_again() {
    let (mut world, keeper, new) = deployed(2, new());
    drain_and_leave(&mut world, &keeper);
    world.run_for(FINALIZE + S * 5);
    assert_eq!(stored(&world, &new), [2]);
    let undone = boot(&mut world, "n3", Setup { since_ms: 3, ..old() });
    world.run_for(S * 2);
    assert_eq!(stored(&world, &new), [1], "whoever reads it reads all there is");
    drain_and_leave(&mut world, &new);
    world.run_for(S * 2);
    let last = world.stretches.last().unwrap().clone();
    assert_eq!((world.runner("a"), last.session), (undone.clone(), undone.clone()));
    assert_eq!(world.told(&undone, state_lost), 0);
    let rollback = |n: &Notice| matches!(n, Notice::Started { cause: Cause::Rollback, .. });
    assert_eq!(world.told(&undone, rollback), 1, "it undoes a deploy");
    world.assert_no_overlap();
}

#[test]
fn a_rollback_goes_on_from_the_last_state_that_the_older_build_reads() {
    for crash in [false, true] {
        let (mut world, keeper, new) = deployed(3, one_way());
        world.run_for(S * 5);
        assert!(world.nodes[&new].machine.is_one_way(&name("a")));
        assert_eq!(stored(&world, &new), [1, 2], "pinned");
        assert_eq!(stored(&world, &keeper), [1, 2], "as replicated as the newest");
        let pinned = last_seq(&world, &keeper, 1);
        assert!(pinned > 10 && last_seq(&world, &keeper, 2) > pinned);

        if crash {
            world.crash(&new);
        } else {
            drain_and_leave(&mut world, &new);
        }
        world.run_for(S * 3);
        assert!(world.running("a").is_empty(), "somebody may come who reads the newest");
        world.run_for(S * 10);
        assert_eq!(world.runner("a"), keeper);
        let from = world.stretches.last().unwrap().from_seq;
        assert_eq!(from, pinned, "what was done since is lost, and nothing else");
        assert_eq!(world.told(&keeper, state_lost), 1);
        world.assert_no_overlap();
    }
}

/// What a rollback leaves behind is kept as a branch, as long as the run lasts.
#[test]
fn after_a_rollback_the_newest_state_is_still_there() {
    let (mut world, keeper, new) = deployed(4, one_way());
    world.run_for(S * 20);
    let newest = last_seq(&world, &keeper, 2);
    world.crash(&new);
    world.run_for(S * 13);
    assert_eq!(world.runner("a"), keeper);
    world.run_for(FINALIZE * 2);
    assert_eq!(stored(&world, &keeper), [2, 1], "two branches");
    assert_eq!(last_seq(&world, &keeper, 2), newest);
}

#[test]
fn as_long_as_one_lives_that_reads_the_newest_nobody_goes_back() {
    let (mut world, keeper, new) = deployed(5, one_way());
    let idle = boot(&mut world, "n3", one_way());
    world.give(&idle, Event::Cordon(true));
    world.run_for(S * 2);
    world.crash(&new);
    world.run_for(S * 20);
    assert!(world.running("a").is_empty(), "cordoned, not gone");
    assert!(matches!(world.owner(&keeper, "a").unwrap().phase, Phase::Parked { .. }));
    world.give(&idle, Event::Cordon(false));
    world.run_for(S * 3);
    assert_eq!(world.runner("a"), idle);
    assert_eq!(world.told(&idle, state_lost) + world.told(&keeper, state_lost), 0);
}

#[test]
fn nothing_below_a_forced_checkpoint_is_gone_back_to() {
    let (mut world, keeper, new) = deployed(6, one_way());
    world.forced = true;
    world.run_for(S * 2);
    world.crash(&new);
    world.run_for(S * 30);
    assert!(world.running("a").is_empty());
    let owner = world.owner(&keeper, "a").unwrap();
    assert_eq!(owner.phase, Phase::Parked { until_resumed: false });
    assert!(owner.note.contains("version 2"), "{owner:?}");
    let again = boot(&mut world, "n3", one_way());
    world.run_for(S * 2);
    assert_eq!(world.runner("a"), again, "parked, not lost");
}

/// The replica reads nothing of it, and the keeper holds nothing: it waits for a build that can.
#[test]
fn a_state_that_nobody_reads_is_parked_and_never_destroyed() {
    for seed in 0..5 {
        let mut world = world(70 + seed);
        let others = [0, 1].map(|i| boot(&mut world, &format!("n{i}"), old()));
        let writer = boot(&mut world, "n2", breaking());
        for other in &others {
            world.give(other, Event::Cordon(true));
        }
        world.run_for(S);
        world.start(&writer, "a");
        world.run_for(S * 3);
        assert_eq!(world.runner("a"), writer);
        for other in &others {
            world.give(other, Event::Cordon(false));
        }
        world.run_for(S * 2);
        let done = world.steps_done[&name("a")];
        world.crash(&writer);
        world.run_for(S * 60);
        assert!(world.running("a").is_empty());
        assert_eq!(world.since("a", world.now.back(S * 60)).len(), 0, "never tried");
        let owner = world.owner(&others[0], "a").unwrap();
        assert_eq!(owner.phase, Phase::Parked { until_resumed: false }, "seed {seed}");
        let needs = world.nodes[&owner.session].machine.needs(&name("a")).unwrap();
        assert_eq!((needs.to_string().as_str(), needs.reason()), ("count@2", "no_node"));
        assert_eq!(world.told(&owner.session.clone(), |n| matches!(n, Notice::Parked { .. })), 1);

        let again = boot(&mut world, "n3", breaking());
        world.run_for(S * 3);
        assert_eq!(world.runner("a"), again, "seed {seed}");
        let from = world.stretches.last().unwrap().from_seq;
        assert!(from > 0 && from + 2 >= done, "seed {seed}: from {from} of {done}");
        world.assert_no_overlap();
    }
}

#[test]
fn a_task_that_its_own_build_cannot_open_waits_for_resume_instead_of_being_tried_without_end() {
    let mut world = world(8);
    let node = boot(&mut world, "n0", old());
    let other = boot(&mut world, "n1", old());
    world.unreadable.insert(name("a"));
    world.start(&node, "a");
    world.run_for(S * 30);
    assert_eq!(world.refused[&name("a")], 1);
    let owner = world.owner(&other, "a").unwrap();
    assert_eq!(owner.phase, Phase::Parked { until_resumed: true });
    world.unreadable.clear();
    world.want(&other, "a", Want::Run);
    world.run_for(S * 2);
    assert_eq!(world.running("a").len(), 1);
}

#[test]
fn a_pinned_kind_is_finished_where_it_is_unless_time_runs_out() {
    let pinning = Setup { finish_here: true, ..old() };
    for (goal, budget, moves) in [(200, S * 20, 0), (1_000_000, S * 8, 1)] {
        let mut world = world(9);
        world.goal = goal;
        let home = boot(&mut world, "n0", pinning.clone());
        let other = boot(&mut world, "n1", pinning.clone());
        world.give(&other, Event::Cordon(true));
        world.run_for(S);
        world.start(&home, "a");
        world.run_for(S * 2);
        world.give(&other, Event::Cordon(false));
        world.run_for(S);
        let begun = world.now;
        world.drain(&home, budget);
        world.run_for(budget / 4);
        assert_eq!(world.runner("a"), home, "not at once");
        world.run_until(budget, "drained", |w| w.nodes[&home].drained.is_some());
        let ended =
            world.told(&home, |n| matches!(n, Notice::Ended { phase: Phase::Finished, .. }));
        assert_eq!(ended, 1 - moves);
        assert_eq!(world.told(&home, |n| matches!(n, Notice::Moved { .. })), moves);
        if moves == 1 {
            assert_eq!(world.runner("a"), other);
            assert!(world.now.since(begun) < budget, "in time");
        }
        world.assert_no_overlap();
    }
}

#[test]
fn a_process_that_was_only_restarted_is_no_newer_than_before() {
    let mut world = world(10);
    let one = boot(&mut world, "n0", old());
    let two = boot(&mut world, "n1", old());
    boot(&mut world, "n2", new());
    world.crash(&two);
    world.run_for(S);
    // Without a disk its clock is all it has.
    boot(&mut world, "n1", Setup { since_ms: 9, ..old() });
    world.start(&one, "a");
    world.run_for(S);
    assert_eq!(world.runner("a").node.as_str(), "n2", "the deploy goes on");
}

#[test]
fn the_number_of_a_deploy_goes_before_the_clocks() {
    let mut world = world(11);
    let one = boot(&mut world, "n0", Setup { rollout: Some(7), ..old() });
    boot(&mut world, "n1", Setup { rollout: Some(6), since_ms: 99, ..new() });
    boot(&mut world, "n2", Setup { since_ms: 100, ..new() });
    world.start(&one, "a");
    world.run_for(S);
    assert_eq!(world.runner("a"), one);
}

/// The most moves of one task in a roll of `n` nodes with ten tasks each: each node is replaced,
/// the new one started before the old one stops, or after.
fn most_moves(seed: u64, n: usize, surge: bool) -> usize {
    let mut world = world(seed);
    let mut nodes: Vec<SessionId> =
        (0..n).map(|i| world.boot(&format!("n{i}"), old(), Disk::default())).collect();
    world.run_for(S * 4);
    let names: Vec<String> = (0..10 * n).map(|i| format!("t{i:02}")).collect();
    for task in &names {
        world.start(&nodes[0], task);
    }
    world.run_for(S * 3);
    for (at, node) in nodes.clone().iter().enumerate() {
        let replacement = format!("m{at}");
        if surge {
            nodes.push(boot(&mut world, &replacement, new()));
            drain_and_leave(&mut world, node);
        } else {
            drain_and_leave(&mut world, node);
            nodes.push(boot(&mut world, &replacement, new()));
        }
    }
    world.run_for(S * 5);
    world.assert_no_overlap();
    let moves = names.iter().map(|task| {
        assert_eq!(world.running(task).len(), 1, "{task}");
        let mut stretches: Vec<_> =
            world.stretches.iter().filter(|s| s.name == name(task)).collect();
        stretches.sort_by_key(|s| s.start);
        stretches.windows(2).filter(|pair| pair[0].session != pair[1].session).count()
    });
    moves.max().unwrap()
}

#[test]
fn a_rolling_deploy_moves_each_task_once_if_the_new_node_comes_first() {
    for seed in 0..3 {
        assert_eq!(most_moves(seed, 3, true), 1, "seed {seed}");
    }
}

#[test]
fn a_rolling_deploy_in_place_moves_no_task_more_than_twice() {
    for seed in 0..3 {
        assert_eq!(most_moves(seed, 3, false), 2, "seed {seed}");
    }
}
