//! A day of names and nodes that come and go: whatever a node remembers of them passes.

use std::time::Duration;

use super::rules_claims::short;
use super::world::{Disk, Setup, World, name};
use crate::core::claim::{Phase, Want};
use crate::core::ids::SessionId;
use crate::core::io::{Event, Notice};
use crate::core::machine::Machine;
use crate::core::time::Time;

const S: Duration = Duration::from_secs(1);

/// The size of every collection that a machine keeps.
fn sizes(machine: &Machine) -> Vec<(&'static str, usize)> {
    let Machine {
        view,
        members,
        specs,
        other_specs,
        desires,
        tasks,
        held,
        writing,
        unstored,
        ends,
        bare,
        copies,
        outdated,
        rivalries,
        owed,
        forked,
        reconciled,
        idle,
        askers,
        starts,
        readers,
        revisions,
        boot,
        refused,
        buried,
        holding,
        recently_released,
        passed_over,
        left_alone,
        free_since,
        dirty,
        later,
        alarms,
        alarm_of,
        asks,
        shown,
        actions,
        replies,
        // No collections.
        config: _,
        crowded: _,
        state: _,
        started: _,
        now: _,
        drain: _,
        leave: _,
        mourned: _,
        namesake: _,
        next_number: _,
        header: _,
        version: _,
        inquiry: _,
        load: _,
        permit: _,
        ticked: _,
        review: _,
    } = machine;
    let [names, by_session, released, epochs] = view.sizes();
    vec![
        ("names", names),
        ("sessions with claims", by_session),
        ("sessions' releases", released),
        ("epochs", epochs),
        ("members", members.iter().count()),
        ("specs", specs.len()),
        ("other specs", other_specs.len()),
        ("desires", desires.len()),
        ("tasks", tasks.len()),
        ("held", held.len()),
        ("writing", writing.len()),
        ("unstored", unstored.len()),
        ("ends", ends.len()),
        ("bare", bare.len()),
        ("copies", copies.len()),
        ("outdated", outdated.len()),
        ("rivalries", rivalries.len()),
        ("owed", owed.len()),
        ("forked", forked.len()),
        ("reconciled", reconciled.len()),
        ("idle", idle.len()),
        ("askers", askers.len()),
        ("starts", starts.len()),
        ("readers", readers.len()),
        ("revisions", revisions.len()),
        ("boot", boot.len()),
        ("refused", refused.len()),
        ("buried", buried.len()),
        ("holding", holding.len()),
        ("recently released", recently_released.len()),
        ("passed over", passed_over.len()),
        ("left alone", left_alone.len()),
        ("free since", free_since.len()),
        ("dirty", dirty.len()),
        ("later", later.len()),
        ("alarms", alarms.len()),
        ("alarm of", alarm_of.len()),
        ("asks", asks.len()),
        ("shown", shown.len()),
        ("actions", actions.len()),
        ("replies", replies.len()),
    ]
}

/// Names that start, run a little and end in every way, on nodes that are replaced in every way.
fn churn(setup: &Setup, rounds: usize, every: Duration) -> (World, Vec<SessionId>) {
    let (mut world, mut nodes) = World::cluster_of(71, 3, setup);
    for round in 0..rounds {
        let at = nodes[round % nodes.len()].clone();
        let task = format!("t{round}");
        // Some have ended by themselves when the next one begins, others are in the midst of it.
        world.goal = [3, 400][usize::from(round % 8 > 1)];
        world.start(&at, &task);
        world.run_for(every / 2);
        match round % 8 {
            1 => drop(world.start_kind(&at, &task, "count", true)),
            2 => drop(world.want(&at, &task, Want::Cancel)),
            3 => drop(world.want(&at, &task, Want::Pause)),
            4 => drop(world.want(&at, &format!("t{}", round - 1), Want::Cancel)),
            5 => world.failing.extend(nodes.iter().map(|node| (name(&task), node.clone()))),
            _ => {}
        }
        world.run_for(every / 2);
        if round % 50 == 49 {
            let old = nodes.remove(0);
            let next = world.boot(old.node.as_str(), setup.clone(), Disk::default());
            world.run_for(S * 4);
            nodes.push(next);
            if round % 100 == 49 {
                world.drain(&old, S);
                world.run_for(S);
                world.give(&old, Event::Leave);
                world.run_for(S);
            }
            world.crash(&old);
            world.run_for(S * 4);
            world.gossip_forgets(&old);
        }
    }
    (world, nodes)
}

/// Half an hour, with durations that are shorter by hundreds and thousands than the usual ones: as
/// much passes as otherwise in months.
#[test]
fn of_names_and_nodes_that_come_and_go_nothing_is_left_in_the_end() {
    let timing = short();
    let setup = Setup { timing: timing.clone(), ..Setup::default() };
    let every = S * 2;
    let (mut world, nodes) = churn(&setup, 800, every);
    let ended = |phase: &Phase| {
        let ended =
            |n: &&(Time, Notice)| matches!(&n.1, Notice::Ended { phase: p, .. } if p == phase);
        world.nodes.values().map(|node| node.notices.iter().filter(ended).count()).sum::<usize>()
    };
    for phase in [Phase::Finished, Phase::Cancelled, Phase::Failed] {
        assert!(ended(&phase) >= 80, "{} {phase:?}", ended(&phase));
    }
    // As many as come in the time for which anything is remembered, and then some.
    let memory = timing.retention + timing.tombstone_retention + timing.dead_node_grace;
    let bound = 3 * (memory.as_secs() / every.as_secs()) as usize;
    for node in &nodes {
        for (what, size) in sizes(&world.nodes[node].machine) {
            assert!(size <= bound, "{size} {what} after half an hour");
        }
    }
    world.run_for(memory * 3);
    for node in &nodes {
        for (what, size) in sizes(&world.nodes[node].machine) {
            assert!(size <= 8, "{size} {what} long after");
        }
    }
}
