//! Runs of one name: joined, replaced, let go of. Rule 8.

use std::time::Duration;

use bytes::Bytes;

use super::rules_claims::{claim, publish, run, session, short};
use super::world::{MS, Setup, World, name};
use crate::core::claim::{Claim, Desired, Phase, Spec, Want};
use crate::core::ids::SessionId;
use crate::core::io::{CallError, Event, Notice, Outcome};
use crate::core::machine::task::{Doing, Why};
use crate::core::message::{Answer, Message, Verdict};
use crate::core::record::NodeState;
use crate::core::view::View;

const S: Duration = Duration::from_secs(1);

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
    // What only asks, or stepped back, is not what goes on.
    for phase in [Phase::Claimed, Phase::Superseded] {
        assert_eq!(owner(phase), session("a"));
    }
}

/// The same job asked for twice, on nodes that do not hear of each other: where one run of it has ended, the other
/// one, which nobody has seen begin, is that job no more. One that left a checkpoint has begun, and another number
/// is another job.
#[test]
fn an_end_hides_a_run_of_its_number_that_was_let_go_of_before_it_began() {
    let owner = |number, checkpointed| {
        let mut view = View::default();
        view.merge(claim("a", run(1, 2), 4, "b", Phase::Finished));
        let let_go = claim("a", run(number, 1), 9, "a", Phase::Released);
        view.merge(Claim { checkpointed, ..let_go });
        view.owner(&name("a")).unwrap().session.clone()
    };
    assert_eq!(owner(1, false), session("b"));
    assert_eq!(owner(1, true), session("a"));
    assert_eq!(owner(2, false), session("a"));
}

/// And nobody starts it, whether the end is known or only told in answer.
#[test]
fn a_job_that_has_ended_is_not_begun_again_for_a_run_of_its_number_that_never_did() {
    for known in [true, false] {
        let (mut world, nodes) = World::cluster(8, 4);
        world.goal = 5;
        world.start(&nodes[0], "a");
        world.run_for(S * 3);
        let end = world.owner(&nodes[0], "a").unwrap().clone();
        assert_eq!(end.phase, Phase::Finished);
        let of = run(end.run.number, 0);
        let (number, epoch) = (1_000, end.epoch.next());
        let let_go = Claim { number, epoch, ..claim("a", of, 0, "gone", Phase::Released) };
        assert!(let_go.beats(&end));
        let spec = world.nodes[&end.session].machine.spec(&name("a")).unwrap().clone();
        let taker = nodes.iter().find(|node| **node != end.session).unwrap();
        if !known {
            // All it knows of the name is the run that was let go of.
            let changes = vec![(name("a"), None)];
            world.give(taker, Event::Claims { of: end.session.clone(), changes });
        }
        world.give(taker, Event::Specs { specs: vec![Spec { run: of, ..spec }] });
        publish(&mut world, std::slice::from_ref(taker), &let_go);
        world.run_for(S * 20);
        assert_eq!(world.finished[&name("a")].len(), 1, "known: {known}");
        assert_eq!(world.stretches.iter().filter(|s| s.run == of).count(), 0);
        assert_eq!(world.owner(taker, "a").map(|owner| owner.run), Some(end.run));
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

/// A dead node's claim of an old run says nothing of a name that has had other runs since, though the newest one is
/// only asked for.
#[test]
fn a_call_joins_no_run_of_the_dead_that_others_came_after() {
    let (mut world, nodes) = World::cluster(43, 4);
    world.goal = 100_000;
    let (at, dead, alive) = (&nodes[0], &nodes[1], &nodes[2]);
    let of = |number, who: &SessionId, phase| Claim {
        session: who.clone(),
        ..claim("a", run(number, 7), 1_700_000_000 + number, "any", phase)
    };
    for old in [Phase::Running, Phase::Finished] {
        publish(&mut world, &nodes[..1], &of(33, dead, old));
    }
    world.crash(dead);
    world.run_for(S);
    publish(&mut world, &nodes[..1], &of(45, alive, Phase::Claimed));
    for again in [false, true] {
        let call = world.start_kind(at, "a", "count", again);
        world.run_for(S * 5);
        if let Some(Ok(joined)) = world.nodes[at].replies.get(&call) {
            assert!(joined.number >= 45, "{joined}");
        }
    }
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

/// What lost against another run has lost, also where its last step was its last: it ends nothing.
#[test]
fn a_run_that_has_lost_and_returns_done_ends_nothing() {
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
    let kept = world.nodes[&nodes[0]].replies[&older].clone().unwrap();
    let loser = world.running("a").into_iter().find(|s| right.contains(s)).unwrap();
    world.heal();
    let doing = |w: &World| w.nodes[&loser].machine.tasks.get(&name("a")).map(|t| t.doing.clone());
    world.run_until(S * 5, "it has lost", |w| matches!(doing(w), Some(Doing::Stopping(Why::Lost))));
    let epoch = world.claim_of(&loser, "a").unwrap().epoch;
    let outcome = Outcome::Done(Bytes::from_static(b"of the loser"));
    world.end_loop(&loser, "a");
    world.give(&loser, Event::Ended { name: name("a"), epoch, outcome });
    world.run_for(S * 4);
    assert!(left.contains(&world.runner("a")));
    for node in &nodes {
        let owner = world.owner(node, "a").unwrap();
        assert_eq!((owner.run, &owner.phase), (kept, &Phase::Running));
        assert!(!world.nodes[node].machine.ends.contains_key(&name("a")));
    }
    let superseded = |n: &Notice| matches!(n, Notice::Ended { phase: Phase::Superseded, .. });
    assert_eq!(world.told(&loser, superseded), 1);
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

/// Rule 8: another run has nothing to do with what a node finds of the one before on its disk when it comes back.
#[test]
fn a_rerun_on_a_node_that_has_just_come_back_begins_at_the_beginning() {
    let setup = Setup { durable: true, ..Setup::default() };
    let (mut world, nodes) = World::cluster_of(6, 4, &setup);
    world.goal = 100;
    let names: Vec<String> = (0..12).map(|i| format!("t{i}")).collect();
    for name in &names {
        world.start(&nodes[1], name);
    }
    world.run_for(S * 2);
    let disk = world.nodes[&nodes[0]].disk.clone();
    world.crash(&nodes[0]);
    world.goal = 5;
    world.run_for(S * 15);
    for name in &names {
        world.start_kind(&nodes[1], name, "count", true);
    }
    world.run_for(S * 5);
    // When it is back it waits for this one, before it gives up what it offers.
    world.crash(&nodes[3]);
    world.run_for(S * 15);
    assert_eq!(world.finished.len(), names.len());
    let back = world.boot("n0", setup, disk);
    world.run_until(S * 20, "up", |w| w.nodes[&back].machine.state() == NodeState::Up);
    world.run_for(MS * 300);
    let again = names.iter().map(|name| world.start_kind(&nodes[1], name, "count", true));
    let again: Vec<u64> = again.collect();
    world.run_for(S * 5);
    assert!(again.iter().all(|call| world.nodes[&nodes[1]].replies[call].is_ok()));
    for name in &names {
        assert_eq!(world.owner(&nodes[1], name).unwrap().phase, Phase::Finished, "{name}");
    }
    assert!(world.stretches.iter().any(|s| s.session == back), "some began there");
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
        world.goal = acknowledged + 100;
        world.run_for(S * 90);
        let after = world.since("b", crashed);
        // And when it has ended that is the end of it: who had asked for the other run has got this one.
        assert!(after.iter().all(|s| s.run == run), "seed {seed}: {after:?}");
        assert!(after[0].from_seq >= acknowledged, "seed {seed}: {after:?}");
        assert_eq!(world.finished[&name("b")].len(), 1, "seed {seed}");
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
