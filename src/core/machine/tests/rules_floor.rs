//! The floor, and where a taker looks for a state at or above it. Rule 20.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::rules_checkpoints::{acknowledged, is_checkpoint};
use super::rules_claims::{publish, short};
use super::world::{Disk, Fate, Fault, MS, Setup, World, name};
use crate::core::branch::{Header, Position};
use crate::core::claim::{Claim, Phase, Want};
use crate::core::ids::{NodeId, SessionId};
use crate::core::io::{Event, Notice};
use crate::core::machine::OnLostState;
use crate::core::message::Message;

const S: Duration = Duration::from_secs(1);

/// Rule 20: the floor follows the last forced checkpoint.
#[test]
fn a_claim_carries_its_replicas_and_its_floor() {
    let (world, owner, replica, _) = acknowledged(1, &Setup::default());
    let claim = world.claim_of(&owner, "a").unwrap();
    assert_eq!(claim.replicas, vec![replica.node.clone()]);
    let held = &world.nodes[&replica].disk.runs;
    let newest = held.values().flat_map(|r| &r.checkpoints).map(|(h, _)| h.position).max();
    let floor = claim.floor.as_ref();
    assert!(newest >= floor.map(|point| Position { epoch: point.epoch, seq: point.seq }));
}

/// Rule 20: the initial state is no state to start from once anything was acknowledged; a taker
/// looks for `state_wait`, then parks, with an event; `resume` looks again.
#[test]
fn lost_state_parks_the_task_until_somebody_resumes_it() {
    let setup = Setup { durable: true, timing: short(), ..Setup::default() };
    let (mut world, owner, replica, third) = acknowledged(2, &setup);
    let disk = world.disk_of(&replica);
    let died = world.now;
    world.record_messages = true;
    world.crash(&owner);
    world.crash(&replica);
    world.run_for(S * 15);
    assert!(world.since("a", died).is_empty());
    let parked = Phase::Parked { until_resumed: true };
    assert_eq!(world.claim_of(&third, "a").unwrap().phase, parked);
    assert_eq!(world.told(&third, |n| matches!(n, Notice::StateLost { .. })), 1);
    let back = world.boot(replica.node.as_str(), setup, disk);
    world.run_for(S * 5);
    assert!(world.since("a", died).is_empty(), "only an order ends it");
    world.want(&back, "a", Want::Run);
    world.run_for(S * 8);
    assert!(world.since("a", died)[0].from_seq > 0);
}

/// Rule 20: `recovering` asks again now and then, not at every answer.
#[test]
fn a_recovering_taker_does_not_flood_its_peers() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(3, 4, &setup);
    world.goal = 100_000;
    world.forced = true;
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let (owner, replica, _) = world.roles("a");
    world.record_messages = true;
    world.crash(&owner);
    world.crash(&replica);
    world.run_for(S * 10);
    let asked = world.sent.iter().filter(|(.., m)| matches!(m, Message::FindState { .. })).count();
    assert!(asked > 0 && asked < 20, "{asked} questions");
}

/// Rule 20: a disk that shows that a task was checkpointed, and has nothing of it left, begins it anew no more
/// than one that never had it.
#[test]
fn a_task_whose_checkpoints_are_all_damaged_is_parked_and_not_begun_anew() {
    for damaged in [true, false] {
        let setup = Setup { durable: true, seeds: false, timing: short(), ..Setup::default() };
        let (mut world, nodes) = World::cluster_of(5, 1, &setup);
        world.goal = 100_000;
        world.start(&nodes[0], "a");
        world.run_for(S * 2);
        let mut disk = world.disk_of(&nodes[0]);
        for stored in disk.runs.values_mut() {
            assert!(!stored.checkpoints.is_empty());
            (stored.checkpoints, stored.damaged) = (Vec::new(), damaged);
        }
        world.crash(&nodes[0]);
        let died = world.now;
        let again = world.boot("n0", setup, disk);
        world.run_for(S * 10);
        let parked = Phase::Parked { until_resumed: true };
        let is_parked = world.claim_of(&again, "a").unwrap().phase == parked;
        assert_eq!((is_parked, world.since("a", died).len()), (damaged, usize::from(!damaged)));
        let told = world.told(&again, |n| matches!(n, Notice::StateLost { .. }));
        assert_eq!(told, usize::from(damaged));
    }
}

/// Rule 20: what to do instead is configured.
#[test]
fn lost_state_restarts_the_task_where_that_is_configured() {
    let setup = Setup { timing: short(), on_lost_state: OnLostState::Restart, ..Setup::default() };
    let (mut world, owner, replica, third) = acknowledged(4, &setup);
    let died = world.now;
    world.crash(&owner);
    world.crash(&replica);
    world.run_for(S * 15);
    assert_eq!(world.since("a", died)[0].from_seq, 0);
    assert_eq!(world.told(&third, |n| matches!(n, Notice::StateLost { .. })), 1);
}

/// Rule 20: a state below the floor is none, unless older ones are welcome.
#[test]
fn a_state_below_the_floor_is_used_only_where_configured() {
    for (on_lost_state, resumes) in [(OnLostState::Park, false), (OnLostState::UseOlder, true)] {
        let setup = Setup { timing: short(), on_lost_state, ..Setup::default() };
        let (mut world, owner, replica, third) = acknowledged(5, &setup);
        // The third node once was a replica, and holds an old checkpoint.
        let (key, old) = {
            let disk = &world.nodes[&replica].disk.runs;
            let (key, stored) = disk.first_key_value().unwrap();
            (key.clone(), stored.checkpoints[0].clone())
        };
        let claim = world.claim_of(&owner, "a").unwrap().clone();
        let header =
            Header { position: Position { epoch: old.0.position.epoch, seq: 3 }, hash: 3, ..old.0 };
        let state = Bytes::copy_from_slice(&3u64.to_le_bytes());
        let spec = world.nodes[&replica].disk.runs[&key].spec.clone();
        let message = Message::Checkpoint { claim, spec, header, state };
        world.give(&third, Event::Message { from: owner.clone(), message });
        world.run_for(MS * 50);
        let died = world.now;
        world.crash(&owner);
        world.crash(&replica);
        world.run_for(S * 15);
        let seqs: Vec<u64> = world.since("a", died).iter().map(|s| s.from_seq).collect();
        assert_eq!(seqs, if resumes { vec![3] } else { vec![] });
    }
}

/// Rule 20: an acknowledgement that the claim had no time to speak of still counts.
#[test]
fn a_taker_asks_before_it_starts_afresh() {
    let (mut world, nodes) = World::cluster(6, 3);
    world.goal = 100_000;
    world.start(&nodes[0], "a");
    world.run_until(S, "runs", |w| w.running("a").len() == 1);
    let owner = world.runner("a");
    // Gossip is slower than links: nobody sees that the first commit was acknowledged.
    let claim = world.claim_of(&owner, "a").unwrap().clone();
    assert!(!claim.checkpointed);
    world.run_for(MS * 52);
    let replicas: Vec<_> =
        nodes.iter().filter(|n| **n != owner && !world.nodes[*n].disk.runs.is_empty()).collect();
    assert_eq!(replicas.len(), 1);
    let died = world.now;
    world.crash(&owner);
    world.run_for(S * 3);
    assert!(world.since("a", died)[0].from_seq >= 1);
}

/// Whether the n-th node of a cluster sends a state.
fn is_state_of<const N: usize>(from: &SessionId, _: &SessionId, message: &Message) -> bool {
    matches!(message, Message::StateData { .. }) && from.node.as_str() == format!("n{N}")
}

/// Rule 20: where one of those that hold the state does not deliver it, another one does.
#[test]
fn a_state_that_one_holder_does_not_deliver_comes_from_another() {
    let setup = Setup { replicas: 2, timing: short(), ..Setup::default() };
    let mute = [is_state_of::<0>, is_state_of::<1>, is_state_of::<2>, is_state_of::<3>];
    for (seed, mute) in (30..38).flat_map(|seed| mute.map(|mute| (seed, mute))) {
        let (mut world, nodes) = World::cluster_of(seed, 4, &setup);
        world.goal = 100_000;
        world.start(&nodes[0], "a");
        world.run_for(S * 3);
        let owner = world.runner("a");
        let replicas = world.claim_of(&owner, "a").unwrap().replicas.clone();
        for node in nodes.iter().filter(|node| **node != owner) {
            match replicas.contains(&node.node) {
                true => world.give(node, Event::Cordon(true)),
                // The taker is to be one that holds nothing.
                false => world.nodes.get_mut(node).unwrap().disk_full = true,
            }
        }
        world.run_for(S);
        world.blocked = Some(mute);
        let died = world.now;
        world.crash(&owner);
        world.run_for(S * 5);
        let stretches = world.since("a", died);
        assert!(stretches.len() == 1 && stretches[0].from_seq > 0, "seed {seed}: {stretches:?}");
    }
}

/// A claim of the run above the owner's, by a session that never ran it and has died: the last word of
/// one that was cut off when it claimed. Told to `nodes`, who are to find it dead.
fn corpse_above(world: &mut World, nodes: &[SessionId], below: &Claim, replicas: Vec<NodeId>) {
    let corpse = Claim {
        number: 1,
        version: 1,
        phase: Phase::Claimed,
        session: SessionId::new(NodeId::new("corpse").unwrap(), Uuid::from_u128(1)),
        epoch: below.epoch.next(),
        replicas,
        floor: None,
        ..below.clone()
    };
    publish(world, nodes, &corpse);
    for node in nodes {
        let suspected = Event::Suspicion { of: corpse.session.clone(), suspected: true };
        world.give(node, suspected);
    }
}

/// A node is given an old checkpoint of the task, as a replica of former times has it.
fn give_old(world: &mut World, to: &SessionId, owner: &SessionId, replica: &SessionId, seq: u64) {
    let disk = &world.nodes[replica].disk.runs;
    let stored = disk.values().next().unwrap();
    let (spec, newest) = (stored.spec.clone(), stored.checkpoints[0].0.clone());
    let state = Bytes::copy_from_slice(&seq.to_le_bytes());
    let position = Position { epoch: newest.position.epoch, seq };
    let header = Header { position, len: 8, hash: Header::hash_of(&state), ..newest };
    let claim = world.claim_of(owner, "a").unwrap().clone();
    let message = Message::Checkpoint { claim, spec, header, state };
    world.give(to, Event::Message { from: owner.clone(), message });
    world.run_for(MS * 20);
}

/// Rule 20: the floor of a run is the highest that any claim of it carries. A claim above that knows of
/// none makes nothing acceptable that somebody was told is kept.
#[test]
fn a_floor_holds_whichever_claim_carries_it() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, owner, replica, third) = acknowledged(7, &setup);
    give_old(&mut world, &third, &owner, &replica, 3);
    let below = world.claim_of(&owner, "a").unwrap().clone();
    assert!(below.floor.as_ref().unwrap().seq > 3);
    let died = world.now;
    world.crash(&owner);
    world.crash(&replica);
    corpse_above(&mut world, std::slice::from_ref(&third), &below, vec![third.node.clone()]);
    world.run_for(S * 15);
    assert!(world.since("a", died).is_empty(), "it went back behind the floor");
    assert_eq!(world.told(&third, |n| matches!(n, Notice::StateLost { .. })), 1);
}

/// Rules 19 and 20: a taker asks the replicas that any claim of the run names, not those of the highest
/// alone: what it holds itself need not be the newest.
#[test]
fn a_taker_asks_the_replicas_of_every_claim_of_the_run() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, _, left) = World::owned(8, 4, &setup);
    world.run_for(S);
    let (owner, replica, former) = world.roles("a");
    let below = world.claim_of(&owner, "a").unwrap().clone();
    give_old(&mut world, &former, &owner, &replica, 3);
    let (_, done) = world.acknowledged[&name("a")];
    let died = world.now;
    world.crash(&owner);
    corpse_above(&mut world, &left, &below, vec![former.node.clone()]);
    world.run_for(S * 10);
    assert_eq!(world.runner("a"), former, "the claim named it first");
    let taken = world.since("a", died);
    assert!(taken.iter().all(|s| s.from_seq >= done), "{taken:?}: {done} were acknowledged");
}

/// Rule 20: a forced checkpoint counts once one of those that are its replicas now has it, and the floor
/// says so then, although another node has said before that it has it.
#[test]
fn a_floor_is_that_of_the_last_forced_checkpoint_though_its_replica_has_changed() {
    let (mut world, nodes) = World::cluster(21, 3);
    world.goal = 100_000;
    world.forced = true;
    world.steps.insert(name("a"), S * 4);
    world.start(&nodes[0], "a");
    world.run_for(S * 2);
    let owner = world.runner("a");
    let reply = |message: &Message| matches!(message, Message::CheckpointReply { .. });
    for late in [MS * 1200, S * 2] {
        world.faults.push(Fault { hits: reply, fate: Fate::Late(late), times: 1 });
    }
    let has = |world: &World, at: &SessionId| !world.nodes[at].disk.runs.is_empty();
    let others: Vec<_> = nodes.iter().filter(|node| **node != owner).collect();
    world.run_until(S * 3, "its replica has it", |w| others.iter().any(|node| has(w, node)));
    let replica = others.iter().find(|node| has(&world, node)).unwrap();
    world.give(replica, Event::Cordon(true));
    world.run_until(S, "so has the next one", |w| others.iter().all(|node| has(w, node)));
    assert_eq!(world.acknowledged.get(&name("a")), None, "neither has said so");
    world.run_until(S * 3, "that has said so", |w| w.acknowledged.contains_key(&name("a")));
    assert!(world.faults.is_empty());
    let (_, seq) = world.acknowledged[&name("a")];
    let floor = world.claim_of(&owner, "a").unwrap().floor.clone();
    assert_eq!(floor.map(|point| point.seq), Some(seq));
}

/// Rule 20: whoever takes a task over asks for its state although the claim says that nothing was ever
/// acknowledged, and although it holds nothing itself.
#[test]
fn a_taker_that_holds_nothing_asks_before_it_starts_afresh() {
    for seed in 23..26 {
        let (mut world, nodes) = World::cluster(seed, 3);
        world.goal = 100_000;
        world.start(&nodes[0], "a");
        while !world.acknowledged.contains_key(&name("a")) {
            world.run_for(MS / 10);
        }
        let owner = world.runner("a");
        let has = |node: &SessionId| !world.nodes[node].disk.runs.is_empty();
        let (holders, rest): (Vec<_>, Vec<_>) =
            nodes.iter().filter(|node| **node != owner).partition(|node| has(node));
        let ([replica], [third]) = (&holders[..], &rest[..]) else { panic!("{holders:?}") };
        // Gossip is slower than links, and who holds it takes nothing.
        let died = world.now;
        world.crash(&owner);
        world.give(replica, Event::Cordon(true));
        let seen = world.nodes[*third].machine.view().get(&name("a"), &owner).unwrap();
        assert!(!seen.checkpointed && seen.replicas.is_empty(), "{seen:?}");
        world.run_for(S * 5);
        let taken = world.since("a", died);
        assert!(taken[0].session == **third && taken[0].from_seq >= 1, "seed {seed}: {taken:?}");
    }
}

/// Rule 20: whether anything was ever acknowledged is what any claim of the run says of it. A claim above that
/// knows of nothing starts nothing afresh.
#[test]
fn what_any_claim_says_was_acknowledged_is_not_begun_afresh() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, owner, replica, third) = acknowledged(9, &setup);
    let below = world.claim_of(&owner, "a").unwrap().clone();
    assert!(below.checkpointed);
    let died = world.now;
    world.crash(&owner);
    world.crash(&replica);
    let unaware = Claim { checkpointed: false, ..below };
    corpse_above(&mut world, std::slice::from_ref(&third), &unaware, Vec::new());
    world.run_for(S * 15);
    assert!(world.since("a", died).is_empty(), "all that was done is done again");
    assert_eq!(world.told(&third, |n| matches!(n, Notice::StateLost { .. })), 1);
}

/// The owner dies, and whoever takes over goes on from what was acknowledged.
fn assert_outlives(world: &mut World, owner: &SessionId, task: &str) {
    let (_, acknowledged) = world.acknowledged[&name(task)];
    let died = world.now;
    world.crash(owner);
    world.run_for(S * 5);
    let after = world.since(task, died);
    let goes_on = after.first().is_some_and(|s| s.from_seq >= acknowledged);
    assert!(goes_on, "{acknowledged} steps of {task} were acknowledged: {after:?}");
}

/// Rule 20: a newcomer becomes the replica and acknowledges a commit, and the owner dies before anybody hears its
/// claim that says so: who takes over does not go on from the older copy that it has itself.
#[test]
fn a_newer_checkpoint_is_looked_for_with_whoever_says_to_hold_it() {
    let mut tried = 0;
    for (seed, forced) in (0..20).flat_map(|seed| [false, true].map(|forced| (seed, forced))) {
        let (mut world, _) = World::cluster(seed, 3);
        world.goal = 100_000;
        world.step = MS * 300;
        world.forced = forced;
        let (at, task) = (world.living()[0].clone(), format!("t{seed}"));
        world.start(&at, &task);
        world.run_for(S * 3);
        let owner = world.runner(&task);
        let newcomer = world.boot("x", Setup::default(), Disk::default());
        let knows = |w: &World| {
            w.claim_of(&owner, &task).is_some_and(|c| c.replicas.contains(&newcomer.node))
        };
        for _ in 0..100_000 {
            if knows(&world) {
                break;
            }
            world.run_for(MS / 10);
        }
        if !knows(&world) {
            continue;
        }
        tried += 1;
        assert_outlives(&mut world, &owner, &task);
    }
    assert!(tried > 0);
}

/// The same where of two new replicas one is slow, so that the claim goes on naming those before.
#[test]
fn what_one_of_two_new_replicas_has_acknowledged_is_looked_for() {
    let mut tried = 0;
    for seed in 0..20 {
        let (mut world, _) = World::cluster_of(seed, 4, &Setup { replicas: 2, ..Setup::default() });
        world.goal = 100_000;
        world.step = MS * 300;
        let (at, task) = (world.living()[0].clone(), format!("t{seed}"));
        world.start(&at, &task);
        world.run_for(S * 3);
        let owner = world.runner(&task);
        world.blocked = Some(|_, to, m| to.node.as_str() == "slow" && is_checkpoint(m));
        let setup = Setup { replicas: 2, ..Setup::default() };
        for node in ["x", "slow"] {
            world.boot(node, setup.clone(), Disk::default());
        }
        world.run_for(S * 20);
        if world.running(&task) != [owner.clone()] {
            continue;
        }
        tried += 1;
        assert_outlives(&mut world, &owner, &task);
    }
    assert!(tried > 0);
}

/// Rule 20: the owner died before it knew that its first commit was kept. Who has said to hold it is waited for,
/// though nothing was acknowledged and it does not answer at first.
#[test]
fn a_holder_that_is_slow_to_answer_is_waited_for_before_the_first_step_is_done_again() {
    for seed in 0..4 {
        let able = Setup::default();
        let unable = Setup { kinds: vec![("other", 1)], ..able.clone() };
        let (mut world, nodes) = World::cluster_of(seed, 1, &able);
        let holder = world.boot("n1", unable, Disk::default());
        world.run_for(S * 3);
        world.goal = 100_000;
        world.step = S;
        world.blocked = Some(|_, _, m| matches!(m, Message::CheckpointReply { .. }));
        world.start(&nodes[0], "a");
        world.run_until(S * 3, "the first commit is kept", |w| {
            w.nodes[&holder].disk.runs.values().any(|run| !run.checkpoints.is_empty())
        });
        world.boot("n2", able, Disk::default());
        world.run_for(MS * 600);
        world.crash(&nodes[0]);
        let died = world.now;
        world.blocked = Some(|_, _, m| matches!(m, Message::States { .. }));
        world.run_for(S * 4);
        world.blocked = None;
        world.run_for(S * 4);
        let after = world.since("a", died);
        assert_eq!(after.len(), 1, "seed {seed}: {after:?}");
        assert!(after[0].from_seq >= 1, "seed {seed}: {after:?}");
    }
}
