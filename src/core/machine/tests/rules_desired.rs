//! What the user wants of a run, and quarantine: Rules 23 and 26.

use std::time::Duration;

use uuid::Uuid;

use super::rules_claims::short;
use super::world::{Disk, MS, Setup, World, name};
use crate::core::claim::{Desired, Phase, Want};
use crate::core::ids::{NodeId, RunId, SessionId};
use crate::core::io::{Action, CallError, Event, Notice};
use crate::core::placement;

const S: Duration = Duration::from_secs(1);

/// The register is a join: the highest version, and cancel absorbs.
#[test]
fn a_cancel_absorbs_whatever_comes_later() {
    let desired = |version, writer: &str, want| Desired {
        name: name("a"),
        run: RunId { number: 1, uuid: Uuid::from_u128(1) },
        version,
        writer: SessionId::new(NodeId::new(writer).unwrap(), Uuid::from_u128(1)),
        want,
    };
    assert!(desired(2, "a", Want::Run).replaces(&desired(1, "b", Want::Pause)));
    assert!(desired(1, "b", Want::Run).replaces(&desired(1, "a", Want::Pause)), "the writer");
    assert!(desired(1, "a", Want::Cancel).replaces(&desired(9, "b", Want::Run)));
    assert!(!desired(9, "b", Want::Pause).replaces(&desired(1, "a", Want::Cancel)));
    let mut other = desired(1, "a", Want::Run);
    other.run.number = 2;
    assert!(other.replaces(&desired(9, "b", Want::Cancel)), "of another run");
    let same = desired(1, "a", Want::Pause);
    assert!(!same.replaces(&same));
}

/// Whoever asks for what can have no effect is told so, from the cancel until the run is forgotten.
#[test]
fn a_cancelled_run_is_neither_paused_nor_resumed_and_whoever_tries_is_told() {
    let (mut world, nodes) = World::cluster(11, 3);
    // It stops at the end of a step, which is long in coming.
    world.step = S * 10_000;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let owner = world.runner("a");
    let others: Vec<_> = nodes.iter().filter(|node| **node != owner).collect();
    let run = world.owner(&owner, "a").unwrap().run;
    let first = world.want(others[0], "a", Want::Cancel);
    assert_eq!(world.nodes[others[0]].replies[&first], Ok(run));
    world.run_for(MS * 100);
    for at in [others[0], others[1], &owner] {
        assert!(!world.owner(at, "a").unwrap().phase.is_terminal(), "it has not stopped yet");
        for want in [Want::Run, Want::Pause] {
            let call = world.want(at, "a", want);
            assert_eq!(world.nodes[at].replies[&call], Err(CallError::Cancelled), "{want:?}");
        }
        let again = world.want(at, "a", Want::Cancel);
        assert_eq!(world.nodes[at].replies[&again], Ok(run), "it is what is wanted");
    }
}

/// An owner that cannot be reached obeys at the heal.
#[test]
fn an_unreachable_owner_obeys_at_the_heal() {
    let (mut world, owner, others) = World::owned(1, 3, &Setup::default());
    let caller = &others[0];
    world.isolate(&owner);
    world.run_for(S * 3);
    world.want(caller, "a", Want::Cancel);
    world.run_for(S);
    assert_eq!(world.runner("a"), owner);
    world.heal();
    world.run_for(S * 2);
    assert!(world.running("a").is_empty());
    assert_eq!(world.owner(caller, "a").unwrap().phase, Phase::Cancelled);
}

/// An order outlives its caller: the home publishes it too, and the taker obeys.
#[test]
fn an_order_outlives_its_caller() {
    for want in [Want::Pause, Want::Cancel] {
        let (mut world, owner, others) = World::owned(2, 4, &Setup::default());
        let caller = &others[0];
        world.isolate(&owner);
        world.run_for(MS * 100);
        world.want(caller, "a", want);
        world.run_for(MS * 500);
        world.crash(caller);
        world.crash(&owner);
        let died = world.now;
        world.run_for(S * 20);
        assert!(world.since("a", died).is_empty(), "{want:?}");
        let ends_as = if want == Want::Pause { Phase::Paused } else { Phase::Cancelled };
        for left in &others[1..] {
            assert_eq!(world.owner(left, "a").unwrap().phase, ends_as, "{want:?}");
        }
    }
}

/// A paused task stays paused when its keeper drains or dies, without a step in between.
#[test]
fn a_paused_task_stays_paused_wherever_it_goes() {
    let (mut world, owner, others) = World::owned(3, 4, &Setup::default());
    let first = world.living()[0].clone();
    world.want(&first, "a", Want::Pause);
    world.run_for(S);
    let paused = world.now;
    world.drain(&owner, S * 5);
    world.run_for(S * 3);
    let keeper = world.owner(&others[0], "a").unwrap().clone();
    assert_ne!(keeper.session, owner);
    assert_eq!(keeper.phase, Phase::Paused);
    world.crash(&keeper.session);
    world.run_for(S * 3);
    assert!(world.since("a", paused).is_empty());
    let at = others.iter().find(|node| **node != keeper.session).unwrap();
    world.want(at, "a", Want::Run);
    world.run_for(S * 2);
    assert_eq!(world.running("a").len(), 1);
    assert!(world.since("a", paused)[0].from_seq > 10);
}

/// Rule 26: three takeovers in a row without progress, each inside a step, quarantine the task; and
/// only `resume` ends it, whoever dies meanwhile.
#[test]
fn a_task_that_kills_its_nodes_is_quarantined_until_resumed() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(4, 7, &setup);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S);
    world.poison.insert(name("a"));
    world.run_for(S * 20);
    let alive: Vec<_> = nodes.iter().filter(|n| world.nodes[*n].alive).cloned().collect();
    assert_eq!(alive.len(), 3, "the first owner and three takers died");
    let keeper = world.owner(&alive[0], "a").unwrap().clone();
    assert_eq!(keeper.phase, Phase::Quarantined, "{keeper:?}");
    world.poison.clear();
    let quarantined = world.now;
    world.crash(&keeper.session);
    world.run_for(S * 15);
    assert!(world.since("a", quarantined).is_empty(), "its keeper's death is no order");
    let left = alive.iter().find(|n| **n != keeper.session).unwrap();
    assert_eq!(world.owner(left, "a").unwrap().phase, Phase::Quarantined);
    world.want(left, "a", Want::Run);
    world.run_for(S * 3);
    assert_eq!(world.running("a").len(), 1);
}

/// Rules 23 and 26: an order that is given while nobody keeps the task is not lost with its keeper.
#[test]
fn an_order_to_resume_outlives_the_keeper_of_a_quarantined_task() {
    // Its death is known after the silence floor: the order comes first.
    let setup = Setup { timing: short(), known_dead: false, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(4, 7, &setup);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S);
    world.poison.insert(name("a"));
    world.run_for(S * 20);
    let alive: Vec<_> = nodes.iter().filter(|n| world.nodes[*n].alive).cloned().collect();
    let keeper = world.owner(&alive[0], "a").unwrap().clone();
    assert_eq!(keeper.phase, Phase::Quarantined, "{keeper:?}");
    world.poison.clear();
    let left = alive.iter().find(|n| **n != keeper.session).unwrap();
    world.crash(&keeper.session);
    world.want(left, "a", Want::Run);
    world.run_for(S * 8);
    assert_eq!(world.running("a").len(), 1, "{:?}", world.owner(left, "a"));
    world.assert_no_overlap();
}

/// Rule 26: a drain is no order either.
#[test]
fn quarantine_survives_a_drain() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(5, 7, &setup);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S);
    world.poison.insert(name("a"));
    world.run_for(S * 20);
    world.poison.clear();
    let at = nodes.iter().find(|n| world.nodes[*n].alive).unwrap().clone();
    let keeper = world.owner(&at, "a").unwrap().session.clone();
    let before = world.now;
    world.drain(&keeper, S * 5);
    world.run_for(S * 5);
    let other = nodes.iter().find(|n| world.nodes[*n].alive && **n != keeper).unwrap();
    assert_eq!(world.owner(other, "a").unwrap().phase, Phase::Quarantined);
    assert_ne!(world.owner(other, "a").unwrap().session, keeper);
    assert!(world.since("a", before).is_empty());
}

/// Rule 26: progress between deaths is no strike, also for a taker that was no replica.
#[test]
fn a_task_that_gets_on_is_never_quarantined() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(6, 3, &setup);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    for i in 0..5 {
        world.run_for(S * 2);
        let owner = world.runner("a");
        world.crash(&owner);
        world.boot(&format!("x{i}"), setup.clone(), Disk::default());
        world.run_for(S * 4);
    }
    assert_eq!(world.running("a").len(), 1);
    let quarantined = |n: &Notice| matches!(n, Notice::Quarantined { .. });
    assert!(world.nodes.keys().all(|n| world.told(n, quarantined) == 0));
}

/// A cancel is obeyed while the state is still being looked for.
#[test]
fn a_cancel_ends_a_task_that_looks_for_its_state() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, ..) = World::owned(7, 3, &setup);
    let (owner, replica, third) = world.roles("a");
    world.crash(&owner);
    world.crash(&replica);
    world.run_until(S * 10, "recovering", |w| {
        w.claim_of(&third, "a").is_some_and(|c| c.phase == Phase::Recovering)
    });
    world.want(&third, "a", Want::Cancel);
    world.run_for(S);
    assert_eq!(world.owner(&third, "a").unwrap().phase, Phase::Cancelled);
}

/// Rule 26: a task that waits for its next attempt is not to blame for the deaths of its nodes.
#[test]
fn a_task_that_rests_is_not_quarantined_for_the_deaths_of_its_nodes() {
    for (resting, phase) in [(true, Phase::Running), (false, Phase::Quarantined)] {
        let (mut world, nodes) = World::cluster(31, 6);
        world.goal = 100_000;
        // No step of it ever ends.
        world.step = S * 10_000;
        world.start(&nodes[0], "a");
        world.run_for(S);
        for _ in 0..4 {
            let Some(owner) = world.running("a").first().cloned() else { break };
            let epoch = world.claim_of(&owner, "a").unwrap().epoch;
            world.give(&owner, Event::Resting { name: name("a"), epoch, resting });
            world.run_for(S * 2);
            world.crash(&owner);
            world.run_for(S * 3);
        }
        let at = nodes.iter().find(|node| world.nodes[*node].alive).unwrap();
        assert_eq!(world.owner(at, "a").unwrap().phase, phase, "resting: {resting}");
    }
}

/// Rules 23 and 26: an order that was given before a task was quarantined says nothing of that.
#[test]
fn a_resume_from_before_ends_no_quarantine() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(9, 7, &setup);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S);
    world.want(&nodes[0], "a", Want::Pause);
    world.run_for(S);
    world.want(&nodes[0], "a", Want::Run);
    world.run_for(S);
    assert_eq!(world.running("a").len(), 1);
    world.poison.insert(name("a"));
    world.run_for(S * 20);
    let alive: Vec<_> = nodes.iter().filter(|n| world.nodes[*n].alive).cloned().collect();
    assert_eq!(alive.len(), 3, "it goes on killing nodes");
    world.poison.clear();
    let quarantined = world.now;
    world.run_for(S * 15);
    assert!(world.since("a", quarantined).is_empty());
    assert_eq!(world.owner(&alive[0], "a").unwrap().phase, Phase::Quarantined);
    world.want(&alive[0], "a", Want::Run);
    world.run_for(S * 3);
    assert_eq!(world.running("a").len(), 1, "and one from since then does");
}

/// Rules 20 and 23: nor does it make lost state acceptable.
#[test]
fn a_resume_from_before_does_not_make_up_for_lost_state() {
    let setup = Setup { durable: true, timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(10, 3, &setup);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_for(S);
    for want in [Want::Pause, Want::Run] {
        world.want(&nodes[0], "a", want);
        world.run_for(S);
    }
    let (_, _, third) = world.roles("a");
    let died = world.now;
    nodes.iter().filter(|node| **node != third).for_each(|node| world.crash(node));
    world.run_for(S * 20);
    assert!(world.since("a", died).is_empty());
    let parked = Phase::Parked { until_resumed: true };
    assert_eq!(world.claim_of(&third, "a").unwrap().phase, parked);
    let lost = |notice: &Notice| matches!(notice, Notice::StateLost { .. });
    assert_eq!(world.told(&third, lost), 1, "it looks again and again");
}

/// Rule 23: no step begins after the order, also where it comes while the state is still looked for.
#[test]
fn a_task_that_is_paused_while_its_state_is_read_does_not_start() {
    let (mut world, owner, others) = World::owned(31, 3, &Setup::default());
    world.reads_take = S * 4;
    let died = world.now;
    world.crash(&owner);
    world.run_for(S * 2);
    let other = &others[0];
    assert_ne!(world.owner(other, "a").unwrap().session, owner, "it is taken over");
    world.want(other, "a", Want::Pause);
    world.run_for(S * 8);
    assert!(world.since("a", died).is_empty(), "{:?}", world.since("a", died));
    assert_eq!(world.owner(other, "a").unwrap().phase, Phase::Paused);
    world.want(other, "a", Want::Run);
    world.run_for(S * 8);
    let again = world.since("a", died);
    assert!(again.len() == 1 && again[0].from_seq > 10, "and goes on from its state: {again:?}");
}

/// Rule 23: whoever takes over what is paused keeps it so. Its state is looked for when it is to go on, and
/// that it cannot be found is told then.
#[test]
fn what_was_paused_is_not_looked_for_before_it_is_resumed() {
    let (mut world, ..) = World::owned(32, 3, &Setup::default());
    let (owner, replica, third) = world.roles("a");
    world.want(&third, "a", Want::Pause);
    world.run_for(S);
    assert_eq!(world.owner(&third, "a").unwrap().phase, Phase::Paused);
    world.crash(&owner);
    world.crash(&replica);
    world.run_for(S * 120);
    let kept = world.owner(&third, "a").unwrap();
    assert_eq!((&kept.session, &kept.phase), (&third, &Phase::Paused));
    let lost = |n: &Notice| matches!(n, Notice::StateLost { .. });
    assert_eq!(world.told(&third, lost), 0);
    world.want(&third, "a", Want::Run);
    world.run_for(S * 20);
    assert_eq!(world.told(&third, lost), 1);
}

/// Of those that hear of an order the home of its name publishes it too, and nobody else.
#[test]
fn an_order_is_published_by_the_home_of_its_name() {
    let (mut world, nodes) = World::cluster(33, 1);
    let owner = nodes[0].clone();
    let other = Setup { kinds: vec![("other", 1)], ..Setup::default() };
    for node in ["n1", "n2", "n3"] {
        world.boot(node, other.clone(), Disk::default());
    }
    world.run_for(S * 3);
    world.goal = 100_000;
    world.start(&owner, "a");
    world.run_for(S * 2);
    let desired = Desired {
        name: name("a"),
        run: world.claim_of(&owner, "a").unwrap().run,
        version: 1,
        writer: SessionId::new(NodeId::new("caller").unwrap(), Uuid::from_u128(1)),
        want: Want::Pause,
    };
    let live: Vec<SessionId> = world.living();
    let home = placement::rendezvous(&name("a"), live.iter())[0].clone();
    assert_ne!(home, owner);
    for node in &live {
        let mut machine = world.nodes[node].machine.clone();
        let desires = vec![desired.clone()];
        machine.handle(world.clock(), Event::Desires { desires });
        let mut actions = std::iter::from_fn(|| machine.poll());
        let published = actions.any(|action| matches!(action, Action::PublishDesired(_)));
        assert_eq!(published, *node == home, "{node}, the home is {home}");
    }
}
