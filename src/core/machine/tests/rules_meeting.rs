//! Copies that meet again: Rule 21.

use std::time::Duration;

use super::rules_claims::short;
use super::world::{MS, Setup, World, name};
use crate::core::branch::Ancestor;
use crate::core::claim::{Claim, Phase, Want};
use crate::core::ids::SessionId;
use crate::core::io::{Action, Event, Notice};
use crate::core::lease::Epoch;
use crate::core::message::Message;

const S: Duration = Duration::from_secs(1);

pub(super) fn setup() -> Setup {
    Setup { timing: short(), ..Setup::default() }
}

/// Branches of the name that a node's disk holds.
fn branches(world: &World, at: &SessionId) -> usize {
    let runs = world.nodes[at].disk.runs.iter().filter(|((task, _), _)| *task == name("a"));
    runs.map(|(_, run)| {
        run.checkpoints
            .iter()
            .map(|(h, _)| &h.writer)
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    })
    .sum()
}

/// A cluster in which "a" runs on both sides of a cut around its first owner: the nodes, the old owner, and the
/// new one, which wins.
pub(super) fn split(seed: u64, n: usize) -> (World, Vec<SessionId>, SessionId, SessionId) {
    let (mut world, old, _) = World::owned(seed, n, &setup());
    let nodes = world.living();
    world.isolate(&old);
    world.run_for(S * 5);
    let new = world.running("a").into_iter().find(|s| *s != old).unwrap();
    (world, nodes, old, new)
}

/// Three nodes, each cut off from the others, that all run "a".
fn split_in_three(seed: u64) -> World {
    let (mut world, ..) = World::owned(seed, 3, &Setup { replicas: 2, ..setup() });
    for node in world.living() {
        world.isolate(&node);
    }
    world.run_for(S * 12);
    assert_eq!(world.running("a").len(), 3, "seed {seed}");
    world
}

/// Whose "a" is, for who has it: it need not run, as long as the code of the task chooses between branches.
fn has(world: &World, node: &SessionId) -> bool {
    world.owner(node, "a").is_some_and(|claim| claim.session == *node)
}

/// The lower claim stops within moments of the heal, and its branch is kept at both ends.
#[test]
fn the_loser_stops_and_its_branch_is_kept() {
    let (mut world, _, old, new) = split(1, 3);
    world.choosing_takes = S * 9;
    world.heal();
    world.run_for(S * 2);
    assert!(has(&world, &new));
    let kept = Notice::Conflict { name: name("a"), kept: new.clone(), stopped: old.clone() };
    assert_eq!(world.told(&old, |n| *n == kept), 1);
    assert!(branches(&world, &old) >= 1);
    assert!(branches(&world, &new) >= 2);
    assert!(world.claim_of(&old, "a").is_none_or(|c| c.phase == Phase::Released));
}

/// A loser whose last step fails has lost all the same: its branch is kept, and nothing is failed.
#[test]
fn a_loser_that_fails_as_it_stops_keeps_its_branch() {
    let (mut world, _, old, new) = split(9, 3);
    world.choosing_takes = S * 9;
    world.steps.insert(name("a"), S);
    world.run_for(S * 2);
    world.heal();
    let stops = |n: &Notice| matches!(n, Notice::Conflict { .. });
    world.run_until(S * 2, "a conflict", |w| w.told(&old, stops) > 0);
    world.failing.insert((name("a"), old.clone()));
    world.run_for(S * 3);
    assert!(has(&world, &new));
    assert!(world.claim_of(&old, "a").is_none_or(|claim| claim.phase == Phase::Released));
    assert_eq!(world.told(&old, |n| matches!(n, Notice::Ended { .. })), 0);
    let of_old = |at: &SessionId| {
        let held = world.nodes[at].disk.runs.values().flat_map(|run| &run.checkpoints);
        held.map(|(h, _)| h).filter(|h| h.writer == old).map(|h| h.position).max()
    };
    assert!(of_old(&old).is_some());
    assert_eq!(of_old(&new), of_old(&old));
}

/// Rule 12: a record is removed once another has dominated it for `R_eta`, and never while it says that its
/// task still runs: others go by it.
#[test]
fn whoever_is_still_stopping_keeps_its_record_however_long_it_is_dominated() {
    let converged = setup().timing.convergence() + MS * 200;
    let mut long = 0;
    for wait in 5..9 {
        let (mut world, _, old, new) = split(3, 3);
        world.steps.insert(name("a"), S * 4);
        world.run_for(S * wait);
        world.heal();
        let stops = |n: &Notice| matches!(n, Notice::Conflict { .. });
        world.run_until(S * 2, "a conflict", |w| w.told(&old, stops) > 0);
        let (told, mut known) = (world.now, false);
        while world.running("a").contains(&old) {
            let own = world.claim_of(&old, "a");
            assert!(own.is_some_and(|claim| claim.phase == Phase::Running));
            let seen = world.nodes[&new].machine.view().get(&name("a"), &old);
            assert!(seen.map_or(!known, |claim| claim.phase == Phase::Running));
            known = seen.is_some();
            world.run_for(MS * 50);
        }
        long += usize::from(known && world.now.since(told) > converged);
        world.run_for(converged * 2);
        assert!(world.claim_of(&old, "a").is_none(), "and then it goes");
    }
    assert!(long > 0);
}

/// Whoever meets a rival asks it for proof of life, and does not wait until gossip happens to bring
/// some: every moment until then is run twice.
#[test]
fn a_rival_is_asked_for_proof_of_life_at_once() {
    for seed in 20..30 {
        let (mut world, _, old, new) = split(seed, 3);
        world.heal();
        let owner = |world: &World, at| world.owner(at, "a").map(|claim| claim.session.clone());
        while owner(&world, &old) != owner(&world, &new) {
            world.run_for(MS);
        }
        world.run_for(MS * 12);
        let stops = |notice: &Notice| matches!(notice, Notice::Conflict { .. });
        let stopped = world.told(&old, stops) + world.told(&new, stops);
        assert_eq!(stopped, 1, "seed {seed}");
    }
}

/// The loser's branch goes to the next winner too.
#[test]
fn the_losers_branch_follows_the_winner() {
    let (mut world, nodes, old, new) = split(2, 4);
    world.heal();
    world.run_for(S * 2);
    assert_eq!(world.runner("a"), new);
    world.drain(&new, S * 5);
    world.run_until(S * 5, "drained", |w| w.nodes[&new].drained.is_some());
    world.run_for(S);
    let next = world.runner("a");
    assert_ne!(next, new);
    let of_old = |at: &SessionId| {
        world.nodes[at]
            .disk
            .runs
            .values()
            .any(|run| run.checkpoints.iter().any(|(h, _)| h.writer == old))
    };
    assert!(next == old || of_old(&next), "{nodes:?}");
    assert!(of_old(&old), "and stays with the loser");
}

/// Three copies: one survives, never none.
#[test]
fn of_three_copies_one_survives() {
    for seed in 3..6 {
        let mut world = split_in_three(seed);
        world.heal();
        world.run_for(S * 4);
        assert_eq!(world.running("a").len(), 1, "seed {seed}");
        let survivor = world.runner("a");
        world.run_for(S * 5);
        assert_eq!(world.runner("a"), survivor);
    }
}

/// Without a direct path, a heartbeat that still advances R_eta later is proof of life.
#[test]
fn a_rival_behind_a_bridge_is_yielded_to() {
    let (mut world, nodes, old, new) = split(6, 3);
    let third = nodes.iter().find(|n| **n != old && **n != new).unwrap().clone();
    world.mend(&old, &third);
    world.run_for(S * 6);
    assert_eq!(world.runner("a"), new);
}

/// A claim whose session has died stops nobody.
#[test]
fn a_dead_winners_claim_stops_nobody() {
    let (mut world, _, old, new) = split(7, 3);
    world.crash(&new);
    let died = world.now;
    world.heal();
    world.run_for(MS * 1500);
    assert!(!world.running("a").is_empty());
    world.run_for(S * 8);
    assert_eq!(world.running("a").len(), 1);
    assert_eq!(world.told(&old, |n| matches!(n, Notice::Conflict { kept, .. } if *kept == new)), 0);
    assert!(world.now > died);
}

/// Two that merely keep a name (both paused) end as one, without claiming over each other for ever.
#[test]
fn two_keepers_of_a_name_end_as_one() {
    let (mut world, nodes, old, new) = split(8, 3);
    world.want(&old, "a", Want::Pause);
    world.want(&new, "a", Want::Pause);
    world.run_for(S);
    assert!(world.running("a").is_empty());
    let before = world.claim_of(&new, "a").unwrap().epoch;
    world.heal();
    world.run_for(S * 10);
    let owners: Vec<_> = nodes.iter().map(|n| world.owner(n, "a").unwrap().clone()).collect();
    assert!(owners.iter().all(|o| o.session == owners[0].session && o.phase == Phase::Paused));
    assert!(owners[0].epoch.0 <= before.0 + 2, "{} after {before}", owners[0].epoch);
    world.want(&nodes[0], "a", Want::Run);
    world.run_for(S * 2);
    assert_eq!(world.running("a").len(), 1);
}

/// Rules 8 and 13: a run that its node has let go of is not asked for while another run of the name lives:
/// whoever holds that would say so each time, without end (V6).
#[test]
fn a_released_run_asks_no_questions_while_another_run_lives() {
    let (mut world, nodes) = World::cluster_of(9, 4, &setup());
    world.goal = 100_000;
    let (left, right) = nodes.split_at(2);
    world.split(left, right);
    world.run_for(S * 8);
    let older = world.start(&nodes[0], "a");
    world.run_for(S);
    world.start(&nodes[2], "a");
    world.run_for(S);
    let older = world.nodes[&nodes[0]].replies[&older].clone().unwrap();
    let lives = world.running("a").into_iter().find(|s| right.contains(s)).unwrap();
    for node in left {
        world.drain(node, S);
    }
    world.run_for(S * 3);
    assert_eq!(world.runner("a"), lives);
    let released = left.iter().filter_map(|node| world.claim_of(node, "a"));
    assert!(released.into_iter().any(|c| c.run == older && c.phase == Phase::Released));
    world.record_messages = true;
    let healed = world.now;
    world.heal();
    world.run_for(S * 10);
    assert_eq!(world.runner("a"), lives);
    assert!(world.since("a", healed).is_empty(), "nothing has stopped");
    let asks = world.sent.iter().filter(|(.., m)| matches!(m, Message::Ask { .. })).count();
    assert!(asks <= 4, "{asks} questions");
}

/// Rule 21: what a rival echoes has to be younger than its claim. The last echo from before a cut says
/// nothing about a process that has died since.
#[test]
fn an_echo_from_before_its_claim_proves_no_rivals_life() {
    for seed in 40..43 {
        let setup = Setup { known_dead: false, ..setup() };
        let (mut world, old, others) = World::owned(seed, 3, &setup);
        // It hears everybody, and is heard by nobody.
        for other in &others {
            world.cut(&old, other);
        }
        world.run_until(S * 5, "it is taken over", |w| w.running("a").len() == 2);
        let new = world.running("a").into_iter().find(|s| *s != old).unwrap();
        world.run_for(MS * 200);
        world.crash(&new);
        world.heal();
        let above = world.claim_of(&new, "a").unwrap().epoch;
        world.run_until(S, "the claim is seen", |w| {
            let claim = w.nodes[&old].machine.view().get(&name("a"), &new);
            claim.is_some_and(|claim| claim.epoch == above)
        });
        assert!(world.nodes[&old].machine.members().get(&new).unwrap().gone.is_none());
        world.run_for(S);
        assert_eq!(world.running("a"), std::slice::from_ref(&old), "seed {seed}");
        assert_eq!(world.told(&old, |n| matches!(n, Notice::Conflict { .. })), 0);
        world.run_for(S * 8);
        assert_eq!(world.running("a").len(), 1, "seed {seed}");
    }
}

/// Rule 21: a winner that has nothing of the loser's branch gets it too.
#[test]
fn the_losers_branch_reaches_a_next_winner_that_has_nothing_of_it() {
    let (mut world, nodes, old, new) = split(9, 5);
    world.choosing_takes = S * 9;
    world.heal();
    world.run_for(S * 2);
    assert!(has(&world, &new));
    let lost = world.stretches.iter().rfind(|s| s.session == old).unwrap().to_seq;
    let holds = |world: &World, at: &SessionId| {
        let mut held = world.nodes[at].disk.runs.values().flat_map(|run| &run.checkpoints);
        held.any(|(header, _)| {
            let of_old = |point: &Ancestor| point.writer == old && point.seq == lost;
            of_old(&header.point()) || header.lineage.iter().any(of_old)
        })
    };
    assert!(holds(&world, &old) && holds(&world, &new));
    let holders: Vec<_> = nodes.iter().filter(|node| holds(&world, node)).collect();
    for holder in holders.into_iter().filter(|holder| **holder != new) {
        world.give(holder, Event::Cordon(true));
    }
    world.run_for(MS * 100);
    world.drain(&new, S * 5);
    world.run_until(S * 5, "drained", |w| w.nodes[&new].drained.is_some());
    world.run_for(S);
    let next = world.runner("a");
    assert_ne!(next, new);
    assert!(holds(&world, &next), "{next} has nothing of what {old} did up to {lost}");
}

/// Rule 9: two sides can have taken one name under one epoch, and a store has admitted one of them: who
/// goes on does so above both.
#[test]
fn of_copies_under_one_epoch_the_survivor_goes_on_above_it() {
    let mut ties = 0;
    for seed in 3..7 {
        let mut world = split_in_three(seed);
        let nodes = world.living();
        let newest = |world: &World, of: &SessionId| {
            world.stretches.iter().rfind(|s| s.session == *of).unwrap().epoch
        };
        let highest = nodes.iter().map(|node| newest(&world, node)).max().unwrap();
        ties += usize::from(nodes.iter().filter(|n| newest(&world, n) == highest).count() > 1);
        world.heal();
        world.run_for(S * 4);
        let survivor = world.runner("a");
        let of_others = world.stretches.iter().filter(|s| s.session != survivor);
        let of_others = of_others.map(|s| s.epoch).max().unwrap();
        assert!(newest(&world, &survivor) > of_others, "seed {seed}: {survivor}, {of_others}");
    }
    assert!(ties > 0, "no two copies had one epoch");
}

/// Rule 21: the loser's branch goes out again on a new link to the winner until that has it.
#[test]
fn a_branch_that_nobody_has_acknowledged_is_sent_again_on_a_new_link_to_the_winner() {
    for acknowledged in [false, true] {
        let (mut world, nodes, old, new) = split(10, 3);
        world.choosing_takes = S * 9;
        if !acknowledged {
            world.blocked = Some(|_, _, m| matches!(m, Message::CheckpointReply { .. }));
        }
        world.heal();
        world.run_for(S * 2);
        assert!(has(&world, &new));
        let third = nodes.iter().find(|node| **node != old && **node != new).unwrap();
        let sent = |with: &SessionId| {
            let mut machine = world.nodes[&old].machine.clone();
            machine.handle(world.clock(), Event::LinkUp { with: with.clone() });
            let actions = std::iter::from_fn(|| machine.poll());
            actions.filter(|action| matches!(action, Action::Load { .. })).count()
        };
        assert_eq!(sent(third), 0);
        assert_eq!(sent(&new), usize::from(!acknowledged));
    }
}

/// Rule 9: whoever has begun to yield claims the name no more until it has released it, whatever becomes of
/// its winner's claim meanwhile.
#[test]
fn whoever_has_begun_to_yield_mints_nothing_above_its_winner() {
    for drains in [false, true] {
        let (mut world, _, old, new) = split(11, 4);
        world.steps.insert(name("a"), S * 5);
        world.run_for(S * 6);
        world.heal();
        let stops = |n: &Notice| matches!(n, Notice::Conflict { .. });
        world.run_until(S * 2, "a conflict", |w| w.told(&old, stops) > 0);
        let (yielded, met) = (world.claim_of(&old, "a").unwrap().epoch, world.now);
        if drains {
            // Its winner lets go of it, and others claim it, while its last step still runs.
            world.drain(&new, S);
            world.give(&new, Event::DrainNow);
            world.run_for(MS * 800);
            let seen = world.nodes[&old].machine.view().epoch(&name("a")).unwrap();
            assert!(seen > world.claim_of(&new, "a").unwrap().epoch, "another has asked for it");
            assert!(world.running("a").contains(&old), "it still stops");
        }
        while world.running("a").contains(&old) {
            assert_eq!(world.claim_of(&old, "a").unwrap().epoch, yielded, "drains: {drains}");
            world.run_for(MS * 10);
        }
        world.run_for(S * 10);
        assert_eq!(world.running("a").len(), 1, "drains: {drains}");
        if !drains {
            assert!(world.since("a", met).iter().all(|s| s.session == new));
            assert!(world.claim_of(&old, "a").is_none_or(|claim| claim.epoch == yielded));
        }
    }
}

/// Rule 21: a loser counts as a replica. When its winner dies the task goes on from the best branch, though
/// the loser alone may have that, and though it is told of in one way only.
#[test]
fn after_a_winners_death_the_task_goes_on_from_the_losers_branch_if_that_is_the_best() {
    for (seed, mute, late) in [(11, false, false), (12, true, false), (13, false, true)] {
        let (mut world, nodes, old, new) = split(seed, 3);
        let third = nodes.iter().find(|node| **node != old && **node != new).unwrap();
        // Nobody gets the loser's branch, and who asks it to settle may have no answer.
        world.blocked = Some(match mute {
            true => |_, _, m| matches!(m, Message::Checkpoint { .. } | Message::Answers { .. }),
            false => |_, _, m| matches!(m, Message::Checkpoint { .. }),
        });
        world.heal();
        world.run_until(S * 2, "it yields", |w| w.running("a") == [new.clone()]);
        // The winner gets no further meanwhile.
        world.steps.insert(name("a"), S * 100);
        let lost = world.stretches.iter().rfind(|s| s.session == old).unwrap().to_seq;
        world.run_for(if late { S * 3 } else { MS * 100 });
        assert_eq!(world.claim_of(&old, "a").is_none(), late, "its record has served its time");
        let best = |at| {
            let held = world.nodes[at].disk.runs.values().flat_map(|run| &run.checkpoints);
            held.map(|(header, _)| header.position.seq).max()
        };
        assert!(best(third) < Some(lost) && best(&new) < Some(lost), "the loser's is the best");
        world.crash(&new);
        world.steps.clear();
        let died = world.now;
        world.run_for(S * 6);
        assert_eq!(&world.runner("a"), third, "the winner's replica comes first");
        let after = world.since("a", died);
        assert!(after[0].from_seq >= lost, "seed {seed}: {lost} was reached: {after:?}");
    }
}

/// Nobody is left who sees both ends of a cut: they take each other for dead in time, and two copies run;
/// the heal ends one of them, and never both.
#[test]
fn copies_on_both_sides_of_a_dead_bridge_end_as_one_when_the_cut_heals() {
    for seed in 12..16 {
        let (mut world, owner, others) = World::owned(seed, 3, &Setup { replicas: 2, ..setup() });
        // What it runs itself, or only relays.
        let bridge = if seed % 2 == 0 { &owner } else { &others[0] };
        let ends: Vec<_> = world.living().into_iter().filter(|node| node != bridge).collect();
        world.cut_both(&ends[0], &ends[1]);
        world.run_for(S * 5);
        assert_eq!(world.runner("a"), owner, "seed {seed}: a bridge is enough");
        world.crash(bridge);
        for end in &ends {
            world.start(end, "b");
        }
        world.run_for(S * 12);
        for task in ["a", "b"] {
            assert_eq!(world.running(task), ends, "seed {seed}: {task}");
        }
        world.heal();
        let healed = world.now;
        let mut survivors = Vec::new();
        while world.now < healed + S * 10 {
            world.run_for(MS * 10);
            let running = ["a", "b"].map(|task| world.running(task));
            assert!(running.iter().all(|copies| !copies.is_empty()), "seed {seed}: {running:?}");
            if world.now > healed + S * 3 {
                survivors.push(running);
            }
        }
        assert!(survivors.iter().flatten().all(|copies| copies.len() == 1), "seed {seed}");
        assert!(survivors.iter().all(|running| *running == survivors[0]), "seed {seed}");
    }
}

/// Rules 9 and 21: whoever has lost against a copy that runs claims nothing above that because of another claim
/// that it would have to step over: the winner goes on.
#[test]
fn a_loser_steps_over_nothing_before_it_has_heard_of_its_winner() {
    let (world, nodes, old, new) = split(14, 3);
    let third = nodes.iter().find(|node| **node != old && **node != new).unwrap();
    let won = world.claim_of(&new, "a").unwrap().clone();
    let let_go = Claim {
        session: third.clone(),
        number: 1_000,
        phase: Phase::Released,
        epoch: Epoch(won.epoch.0 + 5),
        ..won.clone()
    };
    // Both become known, and neither of the sessions has been heard since.
    let mut machine = world.nodes[&old].machine.clone();
    std::iter::from_fn(|| machine.poll()).for_each(drop);
    for claim in [won, let_go] {
        let of = claim.session.clone();
        let changes = vec![(name("a"), Some(claim))];
        machine.handle(world.clock(), Event::Claims { of, changes });
    }
    let minted = std::iter::from_fn(|| machine.poll()).any(|a| matches!(a, Action::Reepoch { .. }));
    assert!(!minted, "it runs on under the claim that it had");
}

/// A taker behind a cut that still looks for a checkpoint when the cut heals: the owner has stepped over its claim
/// and runs on, so there is nothing to be taken any more, whenever the checkpoint comes.
#[test]
fn a_taker_that_still_looks_for_the_state_yields_to_the_owner_that_is_back() {
    for seed in 0..3 {
        let (mut world, owner, others) = World::owned(seed, 4, &Setup::default());
        let named = world.claim_of(&owner, "a").unwrap().replicas[0].clone();
        let (replica, takers): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|other| other.node == named);
        world.split(&[owner.clone(), replica[0].clone()], &takers);
        world.run_until(S * 30, "somebody looks for the state", |w| {
            takers.iter().any(|taker| {
                w.claim_of(taker, "a").is_some_and(|claim| claim.phase == Phase::Recovering)
            })
        });
        // What it asks for comes late.
        world.blocked = Some(|_, _, message| matches!(message, Message::States { .. }));
        world.heal();
        world.run_for(S * 4);
        world.blocked = None;
        world.run_for(S * 10);
        assert_eq!(world.runner("a"), owner, "seed {seed}");
        world.assert_no_overlap();
    }
}
