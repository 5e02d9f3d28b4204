//! The dead: custody and burial, Rule 24.

use std::time::Duration;

use uuid::Uuid;

use super::rules_claims::{publish, short};
use super::world::{Disk, MS, Setup, World, name};
use crate::core::claim::{Claim, Phase, Spec, Want};
use crate::core::ids::{NodeId, SessionId};
use crate::core::io::{Event, Notice};
use crate::core::lease::Epoch;
use crate::core::message::Message;
use crate::core::record::NodeState;

const S: Duration = Duration::from_secs(1);
const PARKED: Phase = Phase::Parked { until_resumed: false };

fn able() -> Setup {
    Setup { kinds: vec![("special", 1)], timing: short(), ..Setup::default() }
}

fn unable() -> Setup {
    Setup { kinds: vec![("count", 1)], timing: short(), ..Setup::default() }
}

/// Three nodes that cannot run "a" and one that does, which dies.
fn orphan(seed: u64) -> (World, Vec<SessionId>, SessionId) {
    let mut world = World::new(seed);
    world.goal = 100_000;
    let nodes = (0..3).map(|i| world.boot(&format!("n{i}"), unable(), Disk::default())).collect();
    orphan_in(world, nodes)
}

/// The same in this cluster.
fn orphan_in(mut world: World, nodes: Vec<SessionId>) -> (World, Vec<SessionId>, SessionId) {
    let runner = world.boot("runner", able(), Disk::default());
    world.run_for(S * 4);
    world.start_kind(&nodes[0], "a", "special", false);
    world.run_for(S * 2);
    assert_eq!(world.runner("a"), runner);
    world.crash(&runner);
    (world, nodes, runner)
}

fn keeper(world: &World, at: &SessionId) -> SessionId {
    let owner = world.owner(at, "a").unwrap();
    assert_eq!(owner.phase, PARKED, "{owner:?}");
    owner.session.clone()
}

fn assert_resumed(world: &World, by: &SessionId) {
    assert_eq!(world.runner("a"), *by);
    let last = world.stretches.iter().rfind(|s| s.name == name("a")).unwrap();
    assert!(last.from_seq > 10, "resumed from {}", last.from_seq);
}

/// Nobody eligible takes it within T + K: one node keeps it, and an able one gets it when it comes.
#[test]
fn a_task_that_no_node_runs_is_kept_for_one_that_does() {
    let (mut world, nodes, runner) = orphan(1);
    world.run_for(S);
    assert_eq!(world.owner(&nodes[0], "a").unwrap().session, runner, "not before T + K");
    world.run_for(S * 4);
    let keeper = keeper(&world, &nodes[0]);
    assert!(nodes.contains(&keeper));
    assert_eq!(world.told(&keeper, |n| matches!(n, Notice::Parked { .. })), 1);
    // Long after gossip has forgotten the dead, and with the burial behind.
    world.gossip_forgets(&runner);
    world.run_for(S * 30);
    let able = world.boot("able", able(), Disk::default());
    world.run_for(S * 4);
    assert_resumed(&world, &able);
    world.assert_no_overlap();
}

/// A parked task is handed over, its target dies having been told, and the next one cannot keep the
/// state: it waits for one that can, and is not left as decided in favour of the dead.
#[test]
fn a_parked_task_whose_targets_fail_after_the_decision_is_still_to_be_had() {
    let (mut world, nodes, _) = orphan(1);
    world.run_for(S * 5);
    let source = keeper(&world, &nodes[0]);
    let able: Vec<_> =
        (0..2).map(|i| world.boot(&format!("able{i}"), able(), Disk::default())).collect();
    let first = loop {
        world.run_for(MS / 10);
        if let Phase::Transferred { to, .. } = &world.claim_of(&source, "a").unwrap().phase {
            break to.clone();
        }
    };
    let second = able.iter().find(|node| **node != first).unwrap();
    world.nodes.get_mut(second).unwrap().disk_full = true;
    world.crash(&first);
    world.run_for(S * 2);
    world.nodes.get_mut(second).unwrap().disk_full = false;
    world.run_until(S * 10, "runs on the next", |w| w.running("a") == [second.clone()]);
    assert_resumed(&world, second);
    world.assert_no_overlap();
}

/// The custody holder dies in its turn.
#[test]
fn custody_outlives_its_holder() {
    let (mut world, nodes, _) = orphan(2);
    world.run_for(S * 6);
    let first = keeper(&world, &nodes[0]);
    world.crash(&first);
    world.run_for(S * 8);
    let left = nodes.iter().find(|n| **n != first).unwrap();
    assert_ne!(keeper(&world, left), first);
    let able = world.boot("able", able(), Disk::default());
    world.run_for(S * 4);
    assert_resumed(&world, &able);
}

/// The custody holder drains.
#[test]
fn custody_outlives_its_holders_drain() {
    let (mut world, nodes, _) = orphan(3);
    world.run_for(S * 6);
    let first = keeper(&world, &nodes[0]);
    world.drain(&first, S);
    world.run_until(S * 3, "drained", |w| w.nodes[&first].drained.is_some());
    world.give(&first, Event::Leave);
    world.run_for(S);
    world.crash(&first);
    world.run_for(S * 6);
    let left = nodes.iter().find(|n| **n != first).unwrap();
    assert_ne!(keeper(&world, left), first);
    let able = world.boot("able", able(), Disk::default());
    world.run_for(S * 4);
    assert_resumed(&world, &able);
}

/// An able node that was full takes it when it has room, also where that node is the one that keeps it.
#[test]
fn a_kept_task_goes_to_a_node_that_was_full() {
    let mut kept_there = 0;
    for i in 0..6 {
        let mut world = World::new(4);
        world.goal = 100_000;
        // Another name is the first in line for the name each time.
        let full = Setup { max_running: 1, ..able() };
        let full = world.boot(&format!("able{i}"), full, Disk::default());
        let nodes = vec![full.clone(), world.boot("n0", unable(), Disk::default())];
        world.run_for(S * 4);
        world.start_kind(&full, "b", "special", false);
        world.run_for(S * 2);
        let (mut world, nodes, _) = orphan_in(world, nodes);
        world.run_for(S * 6);
        assert!(world.running("a").is_empty() && world.runner("b") == full, "{full}");
        kept_there += usize::from(keeper(&world, &nodes[0]) == full);
        world.want(&nodes[0], "b", Want::Cancel);
        world.run_for(S * 4);
        assert_eq!(world.runner("a"), full);
    }
    assert!((1..6).contains(&kept_there), "{kept_there}");
}

/// What is kept, paused or parked, runs nowhere, and takes no room from what does.
#[test]
fn what_is_kept_counts_as_none_that_runs() {
    let (mut world, owner, _) = World::owned(5, 1, &Setup { max_running: 1, ..Setup::default() });
    world.start(&owner, "b");
    world.run_for(S * 2);
    assert!(world.running("b").is_empty());
    world.want(&owner, "a", Want::Pause);
    world.run_for(S * 2);
    world.start(&owner, "b");
    world.run_for(S * 2);
    assert_eq!(world.runner("b"), owner);
    world.want(&owner, "a", Want::Run);
    world.run_for(S * 2);
    assert!(world.running("a").is_empty(), "there is no room for both");
    world.want(&owner, "b", Want::Cancel);
    world.run_for(S * 2);
    assert_eq!(world.runner("a"), owner);
}

/// A session is buried once its names are in other hands; its relayed heartbeat revives nothing.
#[test]
fn the_buried_stay_buried_whatever_gossip_says() {
    let (mut world, nodes, runner) = orphan(5);
    world.run_for(S * 25);
    let parked = keeper(&world, &nodes[0]);
    for node in &nodes {
        assert!(world.nodes[node].machine.members().get(&runner).is_none(), "buried");
        world.give(node, Event::Heartbeat { of: runner.clone() });
        world.give(node, Event::Suspicion { of: runner.clone(), suspected: false });
        assert!(world.nodes[node].machine.members().get(&runner).is_none());
    }
    world.run_for(S);
    assert_eq!(keeper(&world, &nodes[0]), parked);
}

/// A datagram of a buried session, fresh and echoed, ends the burial: its claims count again.
#[test]
fn a_buried_session_that_comes_back_counts_again() {
    let (mut world, nodes, runner) = orphan(6);
    let claim = world.nodes[&nodes[0]].machine.view().get(&name("a"), &runner).unwrap().clone();
    world.run_for(S * 25);
    let at = &nodes[0];
    let heard = |echoed| Event::Heard {
        from: runner.clone(),
        state: NodeState::Up,
        version: 1,
        watermark: 0,
        released: Vec::new(),
        echoed,
    };
    world.give(at, heard(None));
    assert!(world.nodes[at].machine.members().get(&runner).is_none(), "not echoed");
    let sent = world.now;
    world.run_for(MS * 5);
    // What gossip brings of it meanwhile is kept, and void.
    let higher = Claim { epoch: Epoch(claim.epoch.0 + 50), version: claim.version + 1, ..claim };
    let changes = vec![(name("a"), Some(higher.clone()))];
    world.give(at, Event::Claims { of: runner.clone(), changes });
    world.give(at, heard(Some(sent)));
    assert!(world.nodes[at].machine.members().get(&runner).is_some());
    assert_eq!(world.owner(at, "a"), Some(&higher));
}

/// Joiners are told who is buried: a corpse's claims start nothing there.
#[test]
fn a_joiner_is_told_of_the_buried() {
    let (mut world, nodes, runner) = orphan(7);
    world.run_for(S * 25);
    let joiner = world.boot("n9", unable(), Disk::default());
    world.run_for(S * 6);
    assert!(world.nodes[&joiner].machine.members().get(&runner).is_none());
    let owner = world.owner(&joiner, "a").unwrap();
    assert!(nodes.contains(&owner.session) || owner.session == joiner);
    assert_eq!(world.running("a").len(), 0);
}

/// What gossip may bring long after everybody has buried a session: a claim of it and a spec.
fn ghost(world: &World, at: &SessionId) -> SessionId {
    let live = world.owner(at, "alive").unwrap().clone();
    SessionId::new(live.session.node, Uuid::from_u128(4711))
}

/// A claim of a session that the others have buried, and that nobody else ever spoke of, is no
/// reason to start anything, though the asker never knew of the burial.
#[test]
fn a_claim_of_a_session_that_a_peer_has_buried_revives_nothing() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(21, 3, &setup);
    world.goal = 100_000;
    world.start(&nodes[0], "alive");
    world.run_for(S);
    let dead = ghost(&world, &nodes[0]);
    for peer in &nodes[1..] {
        let sessions = vec![dead.clone()];
        let message = Message::Buried { sessions };
        world.give(peer, Event::Message { from: nodes[0].clone(), message });
    }
    let spec = world.nodes[&nodes[0]].machine.spec(&name("alive")).unwrap().clone();
    let spec = Spec { name: name("a"), ..spec };
    let claim = Claim {
        name: name("a"),
        session: dead.clone(),
        number: 1,
        run: spec.run,
        phase: Phase::Running,
        checkpointed: false,
        replicas: Vec::new(),
        ..world.owner(&nodes[0], "alive").unwrap().clone()
    };
    let asker = &nodes[0];
    world.give(asker, Event::Specs { specs: vec![spec] });
    world.give(asker, Event::Claims { of: dead.clone(), changes: vec![(name("a"), Some(claim))] });
    world.give(asker, Event::Suspicion { of: dead.clone(), suspected: true });
    // Whom it asks about the silent one does not tell it before it has claimed the name.
    world.blocked = Some(|_, _, message| matches!(message, Message::Buried { .. }));
    world.run_until(S * 5, "it has claimed the name", |w| w.claim_of(asker, "a").is_some());
    world.run_for(MS * 10);
    let stepped_back = world.claim_of(asker, "a").map(|claim| &claim.phase);
    assert_eq!(stepped_back, Some(&Phase::Superseded));
    world.run_for(setup.timing.convergence() + MS * 200);
    assert_eq!(world.claim_of(asker, "a"), None, "nobody else speaks of it, and all have heard");
    world.run_for(S * 20);
    assert!(world.stretches.iter().all(|s| s.name != name("a")), "it was born again");
    assert!(world.nodes[asker].machine.buried.contains_key(&dead));
    for node in &nodes {
        let owner = world.owner(node, "a");
        assert!(owner.is_none_or(|claim| claim.session == dead), "{node}: {owner:?}");
    }
    assert_eq!(world.claim_of(asker, "a"), None, "nothing of it is left");
}

/// Whoever has had news of the session knows better than who has buried it.
#[test]
fn a_burial_elsewhere_is_no_reason_to_drop_what_a_session_heard_of_lately_held() {
    let setup = Setup { durable: true, known_dead: false, ..Setup::default() };
    let (mut world, ..) = World::owned(22, 3, &setup);
    world.run_for(S);
    let (owner, _, mistaken) = world.roles("a");
    let disk = world.disk_of(&owner);
    world.crash(&owner);
    let now = world.now;
    world.nodes.get_mut(&mistaken).unwrap().machine.buried.insert(owner.clone(), now);
    // Its successor proves that it is gone, long before the silence floor.
    world.boot(owner.node.as_str(), Setup { seeds: true, ..setup }, disk);
    world.run_for(S * 5);
    assert_eq!(world.running("a").len(), 1, "{:?}", world.owner(&mistaken, "a"));
    assert!(world.stretches.last().unwrap().from_seq > 10);
    world.assert_no_overlap();
}

/// Rule 24: a dead session is not buried as long as nobody alive has what it had. A record below its claim is
/// none of that.
#[test]
fn a_dead_session_is_not_buried_for_a_claim_below_its_own() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, owner, others) = World::owned(13, 3, &setup);
    let above = world.claim_of(&owner, "a").unwrap().clone();
    let (session, number) = (others[1].clone(), 1_000);
    let below =
        Claim { epoch: Epoch(above.epoch.0 - 1), phase: Phase::Released, session, number, ..above };
    for other in &others {
        // They take nothing over.
        world.give(other, Event::Cordon(true));
    }
    world.crash(&owner);
    publish(&mut world, &others[..1], &below);
    world.run_for(setup.timing.dead_node_grace * 3);
    let known = world.nodes[&others[0]].machine.view().get(&name("a"), &owner);
    assert_eq!(known.map(|claim| &claim.phase), Some(&Phase::Running));
    assert!(world.nodes[&others[0]].machine.view().get(&name("a"), &others[1]).is_some());
    world.give(&others[0], Event::Cordon(false));
    world.run_for(S * 3);
    assert_eq!(world.runner("a"), others[0]);
    // Now somebody has it.
    world.run_for(setup.timing.dead_node_grace);
    assert!(world.nodes[&others[0]].machine.view().get(&name("a"), &owner).is_none());
}

/// Rule 24: nor for one above it whose session is gone too. What it says of the state is all that is left.
#[test]
fn a_dead_session_is_not_buried_for_a_claim_of_another_that_is_dead() {
    let setup = Setup { timing: short(), ..Setup::default() };
    let (mut world, owner, others) = World::owned(14, 3, &setup);
    let below = world.claim_of(&owner, "a").unwrap().clone();
    let session = SessionId::new(NodeId::new("corpse").unwrap(), Uuid::from_u128(1));
    let above =
        Claim { epoch: below.epoch.next(), phase: Phase::Claimed, session, number: 1, ..below };
    for other in &others {
        // They take nothing over.
        world.give(other, Event::Cordon(true));
    }
    publish(&mut world, &others, &above);
    for other in &others {
        let suspected = Event::Suspicion { of: above.session.clone(), suspected: true };
        world.give(other, suspected);
    }
    world.crash(&owner);
    world.run_for(setup.timing.dead_node_grace * 3);
    let machine = &world.nodes[&others[0]].machine;
    let known = machine.view().get(&name("a"), &owner);
    assert_eq!(known.map(|claim| &claim.phase), Some(&Phase::Running));
    assert!(machine.members().is_gone(&above.session) && machine.members().is_gone(&owner));
}
