//! Runs, the order of claims, epochs, tombstones: Rules 8 to 10 and 12.

use std::cmp::Ordering;
use std::time::Duration;

use uuid::Uuid;

use super::world::{MS, Setup, World, name};
use crate::core::claim::{Claim, Desired, Mode, Phase, Terms, Want};
use crate::core::ids::{NodeId, RunId, SessionId};
use crate::core::io::{CallError, Event, Notice};
use crate::core::lease::Epoch;
use crate::core::message::{Answer, Message, Refusal, Verdict};
use crate::core::timing::Timing;
use crate::core::view::View;

const S: Duration = Duration::from_secs(1);

fn session(node: &str) -> SessionId {
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

const fn run(number: u64, uuid: u128) -> RunId {
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

/// A run that its node has let go of, as one that began behind a cut, hides none that goes on from lookups, also
/// where nobody is left who could take it back.
#[test]
fn a_released_run_hides_no_run_that_goes_on() {
    let owner = |phase| {
        let mut view = View::default();
        view.merge(claim("a", run(1, 2), 4, "b", phase));
        view.merge(claim("a", run(1, 1), 9, "a", Phase::Released));
        view.owner(&name("a")).unwrap().session.clone()
    };
    for phase in [Phase::Running, Phase::Paused, Phase::Recovering] {
        assert_eq!(owner(phase), session("b"));
    }
    // What only asks, or is over, is not what goes on.
    for phase in [Phase::Claimed, Phase::Finished, Phase::Superseded] {
        assert_eq!(owner(phase), session("a"));
    }
}

/// Rule 8: numbers ascend over tombstones; `run` returns what is retained, `rerun` starts another.
#[test]
fn a_rerun_is_numbered_above_what_has_ended() {
    let (mut world, nodes) = World::cluster(1, 3);
    world.goal = 5;
    let first = world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let joined = world.start(&nodes[1], "a");
    world.run_for(S);
    let again = world.start_kind(&nodes[2], "a", "count", true);
    world.run_for(S * 2);
    let reply = |node: usize, call| world.nodes[&nodes[node]].replies[&call].clone().unwrap();
    assert_eq!(reply(0, first), reply(1, joined));
    assert_eq!(reply(0, first).number, 1);
    assert_eq!(reply(2, again).number, 2);
    assert_eq!(world.finished[&name("a")].len(), 2);
}

/// Rule 8: a run that has stepped back says that another one goes on, which gossip may bring later. A call
/// that comes between the two joins that one, and starts none above it.
#[test]
fn a_call_that_knows_only_the_run_that_stepped_back_waits_for_the_one_that_goes_on() {
    let (mut world, nodes) = World::cluster(41, 3);
    world.goal = 100_000;
    let (at, loser, winner) = (&nodes[0], &nodes[1], &nodes[2]);
    let of = |uuid, who: &SessionId, phase| Claim {
        session: who.clone(),
        ..claim("a", run(1, uuid), 1_700_000_000, "any", phase)
    };
    let told = |who: &SessionId, claim: Claim| Event::Claims {
        of: who.clone(),
        changes: vec![(name("a"), Some(claim))],
    };
    world.give(at, told(loser, of(9, loser, Phase::Superseded)));
    let call = world.start(at, "a");
    world.run_for(MS * 300);
    assert_eq!(world.nodes[at].replies.get(&call), None, "there is a run, which is not known yet");
    world.give(at, told(winner, of(5, winner, Phase::Running)));
    world.run_for(MS * 300);
    assert_eq!(world.nodes[at].replies.get(&call), Some(&Ok(run(1, 5))));
    assert!(world.stretches.is_empty(), "nothing was started");
}

/// If it never comes, it is gone by now: the call starts another.
#[test]
fn a_call_waits_no_longer_than_gossip_takes_for_the_run_that_goes_on() {
    let (mut world, nodes) = World::cluster(42, 3);
    world.goal = 100_000;
    let ghost = Claim {
        session: nodes[1].clone(),
        ..claim("a", run(1, 9), 1_700_000_000, "any", Phase::Superseded)
    };
    let changes = vec![(name("a"), Some(ghost))];
    world.give(&nodes[0], Event::Claims { of: nodes[1].clone(), changes });
    let call = world.start(&nodes[0], "a");
    world.run_for(S * 5);
    let Some(Ok(started)) = world.nodes[&nodes[0]].replies.get(&call) else {
        panic!("{:?}", world.nodes[&nodes[0]].replies.get(&call));
    };
    assert_eq!(started.number, 2);
    assert_eq!(world.running("a").len(), 1);
}

/// Rule 8: of two jobs of one name, the older run goes on; the other ends `Superseded`, with an
/// event, and its checkpoint is kept for the retention.
#[test]
fn of_two_runs_of_one_name_one_ends_superseded() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(2, 4, &setup);
    world.goal = 100_000;
    let (left, right) = nodes.split_at(2);
    world.split(left, right);
    world.run_for(S * 8);
    let older = world.start(&nodes[0], "a");
    world.run_for(S);
    world.start(&nodes[2], "a");
    world.run_for(S * 2);
    assert_eq!(world.running("a").len(), 2, "one on each side");
    let loser = world.running("a").into_iter().find(|s| right.contains(s)).unwrap();
    let kept = world.nodes[&nodes[0]].replies[&older].clone().unwrap();
    world.heal();
    world.run_for(S * 3);
    assert!(left.contains(&world.runner("a")));
    let superseded = |n: &Notice| matches!(n, Notice::Ended { phase: Phase::Superseded, .. });
    assert_eq!(world.told(&loser, superseded), 1);
    let of_loser = |world: &World| {
        world.nodes[&loser].disk.runs.keys().filter(|(_, run)| *run != kept).count()
    };
    assert_eq!(of_loser(&world), 1, "kept for the retention");
    world.run_for(S * 10);
    assert_eq!(of_loser(&world), 0, "and no longer");
    assert_eq!(world.since("a", world.now).len(), 0);
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

/// Rule 12 and its "Else": an old `Released`, however high its epoch, revives no finished task.
#[test]
fn a_finished_task_is_not_born_anew_by_an_old_release() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(11, 3, &setup);
    world.goal = 5;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let end = world.owner(&nodes[0], "a").unwrap().clone();
    let old = claim("a", end.run, end.epoch.0 + 5, "ghost", Phase::Released);
    publish(&mut world, &nodes, &old);
    let ended = world.now;
    // Past the retention, past the tombstone's own time: the release is still visible.
    world.run_for(S * 40);
    assert!(world.since("a", ended).is_empty());
    assert!(
        nodes.iter().any(|n| world.claim_of(n, "a").is_some_and(|c| c.phase == Phase::Finished))
    );
}

/// Rule 12: output for the retention, the tombstone for longer, then nothing.
#[test]
fn an_end_is_forgotten_in_two_stages() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(12, 3, &setup);
    world.goal = 5;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let output = |world: &World| {
        nodes.iter().any(|n| {
            world.nodes[n].disk.runs.values().any(|run| matches!(&run.end, Some((_, Some(_)))))
        })
    };
    assert!(output(&world));
    world.run_for(S * 10);
    assert!(!output(&world));
    assert_eq!(world.owner(&nodes[1], "a").unwrap().phase, Phase::Finished);
    world.run_for(S * 40);
    for node in &nodes {
        assert!(world.owner(node, "a").is_none());
        assert!(world.nodes[node].disk.runs.is_empty());
        assert!(world.nodes[node].machine.spec(&name("a")).is_none());
    }
}

/// Rule 12: the tombstone of an old run goes without the run that lives.
#[test]
fn a_tombstones_end_leaves_the_next_run_alone() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(13, 3, &setup);
    world.goal = 5;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    world.goal = 100_000;
    world.start_kind(&nodes[0], "a", "count", true);
    world.run_for(S * 45);
    let owner = world.runner("a");
    for node in &nodes {
        assert_eq!(world.owner(node, "a").unwrap().session, owner);
    }
    world.crash(&owner);
    world.run_for(S * 3);
    assert_eq!(world.running("a").len(), 1);
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

/// Rule 12: a node removes its own record once another has dominated it for R_eta.
#[test]
fn a_dominated_record_is_removed() {
    let (mut world, nodes) = World::cluster(17, 3);
    world.goal = 100_000;
    for i in 0..9 {
        world.start(&nodes[0], &format!("t{i}"));
    }
    world.run_for(S * 2);
    world.drain(&nodes[0], S * 20);
    world.run_until(S * 10, "drained", |w| w.nodes[&nodes[0]].drained.is_some());
    world.run_for(S * 5);
    for i in 0..9 {
        assert!(world.claim_of(&nodes[0], &format!("t{i}")).is_none());
    }
}

/// Bounds: names asked about by a peer that is gone leave nothing behind.
#[test]
fn what_is_known_of_a_name_is_forgotten_with_it() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(18, 2, &setup);
    for i in 0..50u64 {
        let ghost = claim(&format!("g{i}"), run(1, 5), 7, "ghost", Phase::Superseded);
        publish(&mut world, &nodes, &ghost);
        let changes = vec![(ghost.name.clone(), None)];
        world.give(&nodes[0], Event::Claims { of: ghost.session.clone(), changes });
    }
    let epoch = |world: &World| world.nodes[&nodes[0]].machine.view().epoch(&name("g7"));
    assert!(epoch(&world).is_some(), "an epoch outlives the claim that carried it");
    world.run_for(S * 25);
    assert!(epoch(&world).is_none());
}

/// Rule 8: a name nobody runs is not joined.
#[test]
fn a_run_that_no_node_takes_leaves_no_trace() {
    let (mut world, nodes) = World::cluster(19, 2);
    let call = world.start_kind(&nodes[0], "a", "unknown", false);
    world.run_for(S);
    assert!(matches!(world.nodes[&nodes[0]].replies[&call], Err(CallError::NoNode(_))));
    let call = world.start(&nodes[0], "a");
    world.run_for(S);
    assert!(world.nodes[&nodes[0]].replies[&call].is_ok());
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

/// Rules 8 and 12: once the retention is over a name is free, wherever it is asked for.
#[test]
fn an_end_that_is_retained_no_longer_is_known_to_be_so_everywhere() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(31, 5, &setup);
    world.goal = 5;
    world.start(&nodes[0], "a");
    world.run_for(S * 3);
    let ended = world.owner(&nodes[0], "a").unwrap().clone();
    assert_eq!(ended.phase, Phase::Finished);
    let joined =
        nodes.iter().map(|node| (node.clone(), world.start(node, "a"))).collect::<Vec<_>>();
    world.run_for(S);
    for (node, call) in joined {
        assert_eq!(world.nodes[&node].replies[&call], Ok(ended.run), "retained");
    }
    world.run_for(S * 5);
    let keeps = |node: &SessionId| world.nodes[node].disk.runs.keys().any(|(n, _)| *n == name("a"));
    let stranger =
        nodes.iter().find(|node| !keeps(node)).expect("two nodes keep the record").clone();
    assert!(world.owner(&stranger, "a").unwrap().expired);
    let call = world.start(&stranger, "a");
    world.run_for(S);
    let again = world.nodes[&stranger].replies[&call].clone().unwrap();
    assert_eq!(again.number, ended.run.number + 1);
    world.run_for(S);
    assert_eq!(world.finished[&name("a")].len(), 2);
}

/// Rule 8: a zombie that still runs what has ended elsewhere does not keep the next run from starting.
#[test]
fn a_zombie_of_an_older_run_ends_no_newer_one() {
    let (mut world, nodes) = World::cluster(32, 3);
    world.goal = 5;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let ended = world.owner(&nodes[0], "a").unwrap().clone();
    assert_eq!(ended.phase, Phase::Finished);
    world.goal = 100_000;
    // Nobody answers for a while.
    world.blocked = Some(|_, _, message| matches!(message, Message::Answers { .. }));
    let call = world.start_kind(&nodes[0], "a", "count", true);
    world.run_for(MS * 20);
    let claims = |node: &SessionId| world.claim_of(node, "a").cloned();
    let (asker, claim) = nodes
        .iter()
        .filter_map(|node| Some((node.clone(), claims(node)?)))
        .find(|(_, claim)| claim.phase == Phase::Claimed)
        .unwrap();
    assert_eq!(claim.run.number, ended.run.number + 1);
    let zombie = nodes.iter().find(|node| **node != asker).unwrap().clone();
    let held = Claim {
        session: zombie.clone(),
        number: 77,
        phase: Phase::Running,
        epoch: claim.epoch.next(),
        ..ended
    };
    let answer = Answer {
        held: None,
        name: name("a"),
        epoch: claim.epoch,
        verdict: Verdict::Held(Box::new(held)),
        askers: Vec::new(),
        known: Vec::new(),
    };
    let message = Message::Answers { answers: vec![answer] };
    world.give(&asker, Event::Message { from: zombie, message });
    world.run_for(S * 4);
    assert_eq!(world.nodes[&nodes[0]].replies[&call], Ok(claim.run));
    assert_eq!(world.runner("a"), asker);
    assert_eq!(world.stretches.last().unwrap().run, claim.run);
}

/// A peer that has gone astray may say the highest number there is; the next one is still given.
#[test]
fn the_highest_numbers_of_a_peer_overflow_nothing() {
    let (mut world, nodes) = World::cluster(41, 2);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let of = world.owner(&nodes[0], "a").unwrap().run;
    let writer = nodes[1].clone();
    let want = Want::Pause;
    let desired =
        Desired { name: name("a"), run: of, version: u64::MAX, writer: writer.clone(), want };
    let message = Message::Desire { desired };
    world.give(&nodes[0], Event::Message { from: nodes[1].clone(), message });
    world.want(&nodes[0], "a", Want::Run);
    let last = run(u64::MAX, 1);
    let ended = Claim { session: writer.clone(), ..claim("b", last, 5, "n1", Phase::Finished) };
    let changes = vec![(name("b"), Some(ended))];
    world.give(&nodes[0], Event::Claims { of: nodes[1].clone(), changes });
    world.start_kind(&nodes[0], "b", "count", true);
    world.run_for(S * 2);
}

/// Rule 26: names are bounded; whoever asks for one more is told why, and a person is told once.
#[test]
fn a_name_too_many_is_refused_with_the_reason() {
    let setup = Setup { max_names: 10, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(61, 2, &setup);
    world.goal = 100_000;
    let mut refused = 0;
    for i in 0..20 {
        let call = world.start(&nodes[0], &format!("t{i}"));
        world.run_for(MS * 300);
        match &world.nodes[&nodes[0]].replies[&call] {
            Ok(_) => assert_eq!(world.running(&format!("t{i}")).len(), 1),
            Err(CallError::NoNode(Refusal::TooManyNames)) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 10);
    for node in &nodes {
        let full =
            |notice: &Notice| matches!(notice, Notice::Warning(why) if why.contains("max_names"));
        assert_eq!(world.told(node, full), 1, "{node}");
    }
    // What is known already is not refused.
    let call = world.start(&nodes[1], "t0");
    assert!(world.nodes[&nodes[1]].replies[&call].is_ok());
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

/// Rule 8: a run that stepped back for another one asks for nothing any more, and hides nobody: the one that
/// went on is taken over when its owner dies, though it is the lower one.
#[test]
fn a_run_that_stepped_back_hides_no_run_that_is_to_be_taken_over() {
    let (mut world, owner, others) = World::owned(31, 4, &Setup::default());
    let below = world.claim_of(&owner, "a").unwrap().clone();
    let (session, number, phase) = (others[2].clone(), 1_000, Phase::Superseded);
    let stepped_back =
        Claim { session, number, phase, run: run(below.run.number, 0), ..below.clone() };
    assert!(stepped_back.run > below.run);
    // Its writer takes nothing over.
    world.give(&others[2], Event::Cordon(true));
    publish(&mut world, &others[..2], &stepped_back);
    world.run_for(S);
    assert_eq!(world.runner("a"), owner);
    world.crash(&owner);
    let died = world.now;
    world.run_for(S * 2);
    let after = world.since("a", died);
    assert!(after.len() == 1 && after[0].run == below.run, "{after:?}");
    assert!(others[..2].contains(&after[0].session));
}

/// A start waits at a node that stands still, the name is started elsewhere meanwhile, and the first node is told to
/// stop when it wakes: the run that it lets go of hides nothing, and comes in nobody's way.
#[test]
fn a_run_that_is_let_go_of_before_it_ran_costs_the_one_that_runs_nothing() {
    for seed in 0..4 {
        let (mut world, nodes) = World::cluster(seed, 3);
        world.goal = 1_000_000;
        world.pause(&nodes[0], S * 9);
        world.start(&nodes[0], "b");
        world.run_for(S);
        let call = world.start(&nodes[1], "b");
        world.run_until(S * 7, "it runs elsewhere", |w| !w.running("b").is_empty());
        let run = world.nodes[&nodes[1]].replies[&call].clone().unwrap();
        world.drain(&nodes[0], S * 25);
        world.run_until(S * 12, "drained", |w| w.nodes[&nodes[0]].drained.is_some());
        world.give(&nodes[0], Event::Leave);
        world.run_for(S);
        world.crash(&nodes[0]);
        world.run_for(S * 10);
        for node in &nodes[1..] {
            let owner = world.owner(node, "b").unwrap();
            assert_eq!((owner.run, &owner.phase), (run, &Phase::Running), "seed {seed}");
        }
        let runner = world.runner("b");
        let (_, acknowledged) = world.acknowledged[&name("b")];
        world.crash(&runner);
        let crashed = world.now;
        world.run_for(S * 65);
        let after = world.since("b", crashed);
        assert!(after.iter().all(|s| s.run == run), "seed {seed}: {after:?}");
        assert!(after[0].from_seq >= acknowledged, "seed {seed}: {after:?}");
        let left = world.runner("b");
        world.want(&left, "b", Want::Cancel);
        world.run_for(S * 30);
        assert!(world.running("b").is_empty(), "seed {seed}: it is over");
    }
}

/// The word of a higher run that was let go of outlives whoever said it. What was at work is taken over all the same.
#[test]
fn a_released_run_is_not_taken_before_one_that_was_at_work() {
    for seed in 0..3 {
        let (mut world, owner, others) = World::owned(seed, 3, &Setup::default());
        let mine = world.claim_of(&owner, "a").unwrap().clone();
        let let_go = claim("a", run(mine.run.number, 0), mine.epoch.0 + 5, "x", Phase::Released);
        assert!(let_go.run > mine.run);
        publish(&mut world, &others, &let_go);
        world.run_for(S);
        let (_, acknowledged) = world.acknowledged[&name("a")];
        world.crash(&owner);
        let crashed = world.now;
        world.run_for(S * 15);
        let after = world.since("a", crashed);
        assert_eq!(after.len(), 1, "seed {seed}: {after:?}");
        let goes_on = after[0].run == mine.run && after[0].from_seq >= acknowledged;
        assert!(goes_on, "seed {seed}: {after:?}");
    }
}
