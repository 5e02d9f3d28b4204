//! The order of claims, epochs, ends: Rules 9, 10 and 12.

use std::cmp::Ordering;
use std::time::Duration;

use uuid::Uuid;

use super::world::{MS, Setup, World, name};
use crate::core::claim::{Claim, Mode, Phase, Terms};
use crate::core::ids::{NodeId, RunId, SessionId};
use crate::core::io::{Event, Notice};
use crate::core::lease::Epoch;
use crate::core::message::Message;
use crate::core::timing::Timing;

const S: Duration = Duration::from_secs(1);

pub(super) fn session(node: &str) -> SessionId {
    SessionId::new(NodeId::new(node).unwrap(), Uuid::from_u128(1))
}

pub(super) fn claim(task: &str, run: RunId, epoch: u64, of: &str, phase: Phase) -> Claim {
    Claim {
        name: name(task),
        session: session(of),
        number: 1,
        version: 1,
        run,
        epoch: Epoch(epoch),
        phase,
        terms: Terms { mode: Mode::Available, silence_floor: S * 10 },
        replicas: Vec::new(),
        floor: None,
        checkpointed: false,
        strikes: 0,
        note: String::new(),
        heeded: 0,
        expired: false,
        resting: false,
    }
}

pub(super) const fn run(number: u64, uuid: u128) -> RunId {
    RunId { number, uuid: Uuid::from_u128(uuid) }
}

/// Everybody hears by gossip that `of` claims the name.
pub(super) fn publish(world: &mut World, nodes: &[SessionId], claim: &Claim) {
    for node in nodes {
        let changes = vec![(claim.name.clone(), Some(claim.clone()))];
        world.give(node, Event::Claims { of: claim.session.clone(), changes });
    }
}

/// Short durations, for what takes a day.
pub(super) fn short() -> Timing {
    let timing = Timing {
        gossip_interval: MS * 200,
        silence_floor: S * 2,
        takeover_delay: MS * 200,
        alone_after: S * 6,
        solo_after: S,
        boot_wait: S * 2,
        state_wait: S * 2,
        retention: S * 5,
        tombstone_retention: S * 20,
        dead_node_grace: S * 8,
        ..Timing::default()
    };
    timing.check().unwrap();
    timing
}

/// Rule 8: of what is above a claim only what has the name, or had it in the same run, makes the claim useless.
#[test]
fn what_only_asks_or_stepped_back_replaces_no_other_run() {
    let of = |number, phase| claim("a", run(number, 1), 5, "a", phase);
    let above = |number, phase| claim("a", run(number, 1), 9, "b", phase);
    for phase in [Phase::Superseded, Phase::Claimed, Phase::Released] {
        for kept in [Phase::Finished, Phase::Failed, Phase::Running, Phase::Released] {
            assert!(!above(2, phase.clone()).replaces(&of(1, kept)));
        }
    }
    assert!(above(2, Phase::Running).replaces(&of(1, Phase::Finished)));
    assert!(above(1, Phase::Released).replaces(&of(1, Phase::Running)));
    assert!(!above(1, Phase::Superseded).replaces(&of(1, Phase::Running)));
    assert!(above(1, Phase::Superseded).replaces(&of(1, Phase::Superseded)));
    assert!(!of(1, Phase::Running).replaces(&above(1, Phase::Running)), "it is lower");
}

/// Rule 9, its whole order.
#[test]
fn claims_are_ordered_by_run_then_end_then_lease() {
    let of = |run, epoch, of, phase| claim("a", run, epoch, of, phase);
    let above = |high: Claim, low: Claim| {
        assert_eq!(high.order(&low), Ordering::Greater, "{high:?} over {low:?}");
        assert_eq!(low.order(&high), Ordering::Less);
    };
    above(of(run(2, 9), 1, "a", Phase::Claimed), of(run(1, 1), 9, "b", Phase::Cancelled));
    above(of(run(1, 1), 1, "a", Phase::Claimed), of(run(1, 2), 9, "b", Phase::Finished));
    above(of(run(1, 1), 1, "a", Phase::Cancelled), of(run(1, 1), 9, "b", Phase::Finished));
    above(of(run(1, 1), 1, "a", Phase::Finished), of(run(1, 1), 9, "b", Phase::Running));
    for phase in [Phase::Failed, Phase::Quarantined, Phase::Released] {
        above(of(run(1, 1), 2, "a", Phase::Running), of(run(1, 1), 1, "b", phase.clone()));
        above(of(run(1, 1), 2, "a", phase), of(run(1, 1), 1, "b", Phase::Running));
    }
    above(of(run(1, 1), 2, "a", Phase::Finished), of(run(1, 1), 1, "b", Phase::Finished));
    above(of(run(1, 1), 1, "b", Phase::Finished), of(run(1, 1), 1, "a", Phase::Finished));
}

/// Rule 9 and its "Else": a minority whose database is away must not fail the majority's run.
#[test]
fn a_minority_that_fails_a_run_does_not_end_the_majoritys() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(3, 3, &setup);
    world.goal = 400;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let minority = world.runner("a");
    world.isolate(&minority);
    world.run_for(S * 4);
    assert_eq!(world.running("a").len(), 2);
    world.failing.insert((name("a"), minority.clone()));
    world.run_for(S * 5);
    assert_eq!(world.claim_of(&minority, "a").unwrap().phase, Phase::Failed);
    let healed = world.now;
    world.heal();
    world.run_for(S * 30);
    assert_eq!(world.finished[&name("a")].len(), 1);
    assert!(world.since("a", healed).iter().all(|s| s.session != minority));
    for node in &nodes {
        assert_eq!(world.owner(node, "a").unwrap().phase, Phase::Finished);
    }
    let claims = world.stretches.iter().filter(|s| s.name == name("a")).count();
    assert!(claims < 6, "no livelock of claims: {claims}");
}

/// Rule 9: a failure below a live claim does not keep the next taker out either.
#[test]
fn a_revoked_failure_ends_nothing_when_the_owner_dies() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, minority, _) = World::owned(4, 3, &setup);
    world.isolate(&minority);
    world.run_for(S * 4);
    world.failing.insert((name("a"), minority.clone()));
    world.run_for(S * 5);
    world.heal();
    world.run_for(S * 5);
    let owner = world.runner("a");
    world.failing.clear();
    world.crash(&owner);
    world.run_for(S * 5);
    assert_eq!(world.running("a").len(), 1);
}

/// Rule 9: a running owner claims anew above whatever neither runs nor has ended; it never stops.
#[test]
fn a_running_owner_steps_over_claims_that_do_not_run() {
    let (mut world, nodes) = World::cluster(5, 3);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S);
    let owner = world.runner("a");
    let phases = [
        Phase::Released,
        Phase::Incoming { from: session("other") },
        Phase::Transferred { to: session("other"), epoch: Epoch(9) },
        Phase::Failed,
        Phase::Quarantined,
    ];
    for (i, phase) in phases.into_iter().enumerate() {
        let mine = world.claim_of(&owner, "a").unwrap().clone();
        let ghost = format!("ghost{i}");
        let higher = claim("a", mine.run, mine.epoch.0 + 10, &ghost, phase.clone());
        publish(&mut world, &nodes, &higher);
        world.run_for(S);
        let now = world.claim_of(&owner, "a").unwrap();
        assert!(now.epoch > higher.epoch && now.phase == Phase::Running, "{phase:?}: {now:?}");
        assert_eq!(world.runner("a"), owner);
    }
    let stretches: Vec<_> = world.stretches.iter().filter(|s| s.name == name("a")).collect();
    assert!(stretches.windows(2).all(|w| w[0].end == Some(w[1].start)), "nothing stopped");
}

/// Rules 9 and 21: a higher running claim without proof of life stops nobody, and is stepped over
/// once its session is gone.
#[test]
fn a_running_owner_steps_over_a_corpse_that_ran() {
    let (mut world, nodes) = World::cluster(6, 3);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S);
    let owner = world.runner("a");
    let mine = world.claim_of(&owner, "a").unwrap().clone();
    let corpse = claim("a", mine.run, mine.epoch.0 + 10, "corpse", Phase::Running);
    publish(&mut world, &nodes, &corpse);
    for node in &nodes {
        world.give(node, Event::Suspicion { of: corpse.session.clone(), suspected: true });
        // Its last heartbeats come by relay, as they do after a heal.
        world.give(node, Event::Heartbeat { of: corpse.session.clone() });
    }
    world.run_for(S);
    for node in &nodes {
        world.give(node, Event::Heartbeat { of: corpse.session.clone() });
    }
    world.run_for(S * 20);
    assert_eq!(world.runner("a"), owner);
    assert!(world.claim_of(&owner, "a").unwrap().epoch > corpse.epoch);
    assert_eq!(world.told(&owner, |n| matches!(n, Notice::Conflict { .. })), 0);
}

/// Rule 9: who wins by its run mints above the loser's epochs.
#[test]
fn a_winner_by_run_claims_above_all_epochs_seen() {
    let (mut world, nodes) = World::cluster(7, 3);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S);
    let owner = world.runner("a");
    let mine = world.claim_of(&owner, "a").unwrap().clone();
    let younger = run(mine.run.number, mine.run.uuid.as_u128() + 1);
    let loser = claim("a", younger, mine.epoch.0 + 100, "ghost", Phase::Running);
    publish(&mut world, &nodes, &loser);
    world.run_for(S);
    assert!(world.claim_of(&owner, "a").unwrap().epoch > loser.epoch);
    assert_eq!(world.runner("a"), owner);
}

/// Rule 9: two ends of one run: the higher lease stands, and somebody is told.
#[test]
fn two_finished_copies_end_as_one_with_an_event() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(8, 3, &setup);
    world.goal = 200;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let first = world.runner("a");
    world.isolate(&first);
    world.run_for(S * 20);
    assert_eq!(world.finished[&name("a")].len(), 2);
    world.heal();
    world.run_for(S * 3);
    let owners: Vec<_> = nodes.iter().map(|n| world.owner(n, "a").unwrap().epoch).collect();
    assert!(owners.iter().all(|epoch| *epoch == owners[0]), "{owners:?}");
    let conflict = |n: &Notice| matches!(n, Notice::Conflict { .. });
    assert_eq!(nodes.iter().map(|n| world.told(n, conflict)).sum::<usize>(), 1);
}

/// Rule 10: the clock is the floor of a first epoch only.
#[test]
fn the_clock_bounds_the_first_epoch_of_a_name_only() {
    let (mut world, nodes) = World::cluster(9, 2);
    let before = world.clock().unix;
    world.goal = 5;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let first = world.owner(&nodes[0], "a").unwrap().epoch;
    assert!(first.0 >= before && first.0 <= world.clock().unix);
    world.run_for(S * 20);
    world.start_kind(&nodes[0], "a", "count", true);
    world.run_for(S * 2);
    let second = world.owner(&nodes[0], "a").unwrap().epoch;
    assert_eq!(second, first.next(), "not the clock again");
}

/// Rule 10: an epoch is above every one seen, however far ahead.
#[test]
fn an_epoch_is_above_every_one_seen() {
    let (mut world, nodes) = World::cluster(10, 2);
    let far = claim("a", run(1, 5), 1 << 60, "ghost", Phase::Superseded);
    publish(&mut world, &nodes, &far);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S * 3);
    let owner = world.runner("a");
    let mine = world.claim_of(&owner, "a").unwrap();
    assert!(mine.epoch > far.epoch && mine.run.number == 2, "{mine:?}");
}

/// Rule 12: `Done` is reported once the record is kept where the checkpoints are.
#[test]
fn an_end_is_replicated_before_it_is_told() {
    let (mut world, nodes) = World::cluster(14, 3);
    world.goal = 20;
    world.start(&nodes[0], "a");
    let ended =
        |w: &World| nodes.iter().any(|n| w.told(n, |x| matches!(x, Notice::Ended { .. })) > 0);
    world.run_until(S * 5, "ended", |w| {
        let kept = nodes
            .iter()
            .filter(|n| w.nodes[*n].disk.runs.values().any(|run| run.end.is_some()))
            .count();
        assert!(!ended(w) || kept >= 2, "told with {kept} copies");
        ended(w)
    });
}

/// Rule 12: a replica that does not answer is replaced by another node.
#[test]
fn an_end_goes_elsewhere_where_its_replica_is_mute() {
    let (mut world, nodes) = World::cluster(15, 4);
    world.goal = 40;
    world.start(&nodes[0], "a");
    world.run_for(S);
    let owner = world.runner("a");
    let claim = world.claim_of(&owner, "a").unwrap();
    let replica = nodes.iter().find(|n| claim.replicas.contains(&n.node)).unwrap().clone();
    world.isolate(&replica);
    world.run_for(S * 6);
    assert_eq!(world.told(&owner, |n| matches!(n, Notice::Ended { .. })), 1);
    let kept = nodes.iter().filter(|n| world.nodes[*n].disk.runs.values().any(|r| r.end.is_some()));
    assert!(kept.count() >= 2);
    world.crash(&owner);
    let died = world.now;
    world.heal();
    world.run_for(S * 20);
    assert!(world.since("a", died).is_empty(), "the mute replica had only the checkpoint");
    let replica = &world.nodes[&replica].disk.runs;
    assert!(replica.values().all(|run| run.checkpoints.is_empty()), "which the end replaces");
}

/// Rule 12: an end that only gossip remembers outlives its writer.
#[test]
fn an_end_without_replicas_is_published_on() {
    let setup = Setup { timing: short(), replicas: 0, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(16, 3, &setup);
    world.goal = 5;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let owner = world.owner(&nodes[0], "a").unwrap().session.clone();
    world.crash(&owner);
    world.run_for(S * 5);
    let alive: Vec<_> = nodes.iter().filter(|n| **n != owner).collect();
    assert!(alive.iter().any(|n| world.claim_of(n, "a").is_some()));
    assert_eq!(world.running("a").len(), 0);
}

/// Rule 18: a source waits for its target until that runs. Where the source is afterwards, perhaps
/// gone before this node came, keeps no taker waiting.
#[test]
fn a_transfer_that_has_arrived_keeps_nobody_waiting_for_its_source() {
    let (mut world, runner, others) = World::owned(20, 3, &Setup::default());
    world.run_for(S);
    let owner = world.owner(&others[0], "a").unwrap().clone();
    let phase = Phase::Transferred { to: runner.clone(), epoch: Epoch(0) };
    let source = claim("a", owner.run, owner.epoch.0 - 1, "source", phase);
    publish(&mut world, &others, &source);
    world.crash(&runner);
    world.run_until(MS * 200, "it is taken over", |world| !world.running("a").is_empty());
}

/// Rule 18: a decision is heard of, and not yet the claim of its target: who takes over from both claims above the
/// epoch that the target may be running (H3).
#[test]
fn who_takes_over_from_a_target_it_has_not_heard_claims_above_its_epoch() {
    let (mut world, owner, others) = World::owned(21, 4, &Setup::default());
    let mine = world.claim_of(&owner, "a").unwrap().clone();
    let (target, rest) = others.split_first().unwrap();
    let given = Epoch(mine.epoch.0 + 3);
    let phase = Phase::Transferred { to: target.clone(), epoch: given };
    let decided = Claim { version: mine.version + 1, phase, ..mine };
    publish(&mut world, rest, &decided);
    world.crash(&owner);
    world.crash(target);
    world.run_until(S * 5, "it is taken over", |world| {
        let claims = rest.iter().filter_map(|node| world.claim_of(node, "a"));
        claims.into_iter().any(|claim| claim.phase.has_begun())
    });
    let taken = rest.iter().filter_map(|node| world.claim_of(node, "a")).map(|c| c.epoch).max();
    let taken = taken.unwrap();
    assert!(taken > given, "{taken} after {given}");
}

/// Rule 9: a failure is no end once a live claim is above it, and is one beside any other.
#[test]
fn a_failure_is_revoked_by_a_live_claim_above_it_alone() {
    let (world, nodes) = World::cluster(19, 2);
    let at = &nodes[0];
    let failed = claim("a", run(1, 1), 10, "ghost", Phase::Failed);
    for (epoch, phase, leaves, revoked) in [
        (11, Phase::Running, false, true),
        (11, Phase::Running, true, false),
        (11, Phase::Released, false, false),
        (9, Phase::Running, false, false),
    ] {
        let mut world = world.clone();
        let other = claim("a", run(1, 1), epoch, "other", phase);
        publish(&mut world, std::slice::from_ref(at), &other);
        if leaves {
            let message = Message::Leave;
            world.give(at, Event::Message { from: other.session.clone(), message });
        }
        assert_eq!(world.nodes[at].machine.is_revoked(&failed), revoked, "{other:?}");
    }
}
