//! What a node's metrics say, compared with what the tasks themselves saw: whole nodes over loopback
//! in one process, each on a thread with a recorder of its own.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cut;
mod host;
mod names;
mod recorder;
mod task;

use std::time::{Duration, Instant};

use futures_core::stream::BoxStream;
use futures_util::{StreamExt, stream};
use handover::signal::Signal;
use handover::{NodeEvent, TaskEvent, TaskState, Trigger};
use tokio::time::{sleep, timeout};

use self::host::{Host, Hosts, SOON, Setup, close_to, until};
use self::task::{Collect, Grow, Journal, Long, Rare, Tick};

const TICK: &str = "tick";

/// Two nodes, and a task that has run for a while on one of them: that one first.
async fn two_and_a_task(journal: &Journal) -> (Host, Host, Instant) {
    let a = Host::start("a", &[], journal, Setup::default()).await;
    let b = Host::start("b", &[&a], journal, Setup::default()).await;
    let begun = Instant::now();
    a.node.run::<Tick>(TICK, ()).await.unwrap();
    until("both know that it runs", || [&a, &b].iter().all(|host| host.sees(TICK, None))).await;
    until("it has taken some steps", || journal.steps().len() > 40).await;
    let (home, other) = if a.sees(TICK, Some(&a)) { (a, b) } else { (b, a) };
    (home, other, begun)
}

#[tokio::test]
async fn a_graceful_move_is_one_move_with_its_gap_and_nothing_done_again() {
    let journal = Journal::default();
    let (home, other, _) = two_and_a_task(&journal).await;
    let running = [("kind", "tick"), ("state", "running")];
    let runs = |host: &Host| host.metrics.gauge("handover_tasks", &running);
    until("the gauges are set", || runs(&home) == Some(1.0)).await;
    assert_eq!(runs(&other), None);
    let report = home.node.drain().await;
    assert_eq!(report.moved, 1, "{report:?}");
    until("it goes on", || journal.by(&other).len() > 20).await;
    until("the gauges follow", || runs(&home) == Some(0.0) && runs(&other) == Some(1.0)).await;

    let moved = [("reason", "drain"), ("from_rev", "r1"), ("to_rev", "r1")];
    assert_eq!(other.metrics.counter("handover_moves_total", &moved), 1);
    assert_eq!(other.metrics.counter("handover_moves_total", &[]), 1);
    assert_eq!(home.metrics.counter("handover_moves_total", &[]), 0);
    assert_eq!(other.metrics.counter("handover_task_double_moves_total", &[]), 0);

    let truly = journal.gap(&home, &other);
    let gaps = home.metrics.histogram("handover_move_gap_seconds", &[("reason", "drain")]);
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    close_to(gaps[0], truly, 0.4);
    assert_eq!(home.metrics.histogram("handover_work_redone_ratio", &[("reason", "drain")]), [0.0]);
    assert!(other.metrics.histogram("handover_work_redone_ratio", &[]).is_empty());

    // The sealed state is as old as the gap is long.
    let ages = other.metrics.histogram("handover_checkpoint_age_seconds", &[("at", "start")]);
    assert_eq!(ages.len(), 1, "{ages:?}");
    close_to(ages[0], truly, 0.4);
    // Committed at the first boundary after each interval of 100 ms.
    let ages = home
        .metrics
        .histogram("handover_checkpoint_age_seconds", &[("at", "commit"), ("kind", "tick")]);
    assert!(!ages.is_empty() && ages.iter().all(|age| *age < 1.0), "{ages:?}");
    assert!(ages.iter().filter(|age| **age >= 0.1).count() > 0, "{ages:?}");

    assert_eq!(
        home.metrics.histogram("handover_drain_seconds", &[("outcome", "clean")]),
        [report.elapsed.as_secs_f64()]
    );
    assert_eq!(home.metrics.counter("handover_abandoned_total", &[]), 0);
    let steps = home.metrics.histogram("handover_step_seconds", &[("kind", "tick")]);
    assert_eq!(steps.len(), journal.by(&home).len());
    assert!(steps.iter().all(|step| *step >= 0.01 && *step < 1.0), "{steps:?}");
    assert_eq!(home.metrics.gauge("handover_peers", &[]), Some(1.0));
    for host in [&home, &other] {
        assert_eq!(host.metrics.counter("handover_conflicts_total", &[]), 0);
        assert!(host.metrics.histogram("handover_overlap_seconds", &[]).is_empty());
    }
    Hosts(vec![home, other]).leave().await;
}

#[tokio::test]
async fn a_takeover_is_measured_from_the_owners_last_sign_of_life_and_a_second_move_is_double() {
    let journal = Journal::default();
    let (home, other, begun) = two_and_a_task(&journal).await;
    let third = Host::start("c", &[&home, &other], &journal, Setup::default()).await;
    until("all know", || third.sees(TICK, Some(&home))).await;
    home.node.close().await;
    let died = Instant::now();
    let takers = [other, third];
    until("it goes on", || takers.iter().any(|host| journal.by(host).len() > 5)).await;
    let [first, second] = takers;
    let (other, third) =
        if journal.by(&first).is_empty() { (second, first) } else { (first, second) };
    assert_eq!(other.metrics.counter("handover_moves_total", &[("reason", "crash")]), 1);

    let truly = journal.gap(&home, &other);
    let gaps = other.metrics.histogram("handover_move_gap_seconds", &[("reason", "crash")]);
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    close_to(gaps[0], truly, 0.4);

    // What was done again, of what had been done: by steps as by time.
    let done = journal.by(&home).len();
    let from = journal.by(&other)[0].number;
    let redone = other.metrics.histogram("handover_work_redone_ratio", &[("reason", "crash")]);
    assert_eq!(redone.len(), 1, "{redone:?}");
    let by_steps = (done as u64 + 1).saturating_sub(from) as f64 / done as f64;
    close_to(redone[0], by_steps, 0.3);
    assert!(redone[0] > 0.0 && redone[0] < 0.7, "{redone:?} of {:?}", died - begun);
    let ages = other.metrics.histogram("handover_checkpoint_age_seconds", &[("at", "start")]);
    assert!(ages.len() == 1 && ages[0] > 0.0 && ages[0] < 5.0, "{ages:?}");

    // The third has seen this move: the next one is its second.
    until("all know", || third.sees(TICK, Some(&other))).await;
    let report = other.node.drain().await;
    assert_eq!(report.moved, 1, "{report:?}");
    until("it goes on", || journal.by(&third).len() > 5).await;
    assert_eq!(third.metrics.counter("handover_moves_total", &[("reason", "drain")]), 1);
    assert_eq!(third.metrics.counter("handover_task_double_moves_total", &[]), 1);
    assert_eq!(other.metrics.counter("handover_task_double_moves_total", &[]), 0);
    Hosts(vec![other, third]).leave().await;
}

#[tokio::test]
async fn what_no_node_can_run_is_counted_as_parked_with_what_it_needs() {
    let journal = Journal::default();
    let a = Host::start("a", &[], &journal, Setup::rare()).await;
    let b = Host::start("b", &[&a], &journal, Setup::default()).await;
    a.node.run::<Rare>("rare/1", ()).await.unwrap();
    until("it runs and has a checkpoint elsewhere", || {
        b.node.whereis("rare/1").is_some_and(|entry| !entry.replicas.is_empty())
    })
    .await;
    a.node.close().await;
    let parked = [("needs", "rare@3"), ("reason", "no_node")];
    until("it is parked", || b.metrics.gauge("handover_parked", &parked) == Some(1.0)).await;
    assert_eq!(
        b.metrics.gauge("handover_tasks", &[("kind", "rare"), ("state", "parked")]),
        Some(1.0)
    );
    assert_eq!(b.metrics.counter("handover_moves_total", &[]), 0);
    let note = b.node.whereis("rare/1").unwrap().note;
    assert!(note.contains("the kind rare and reads version 3"), "{note}");

    let c = Host::start("c", &[&b], &journal, Setup::rare()).await;
    until("it runs again", || {
        b.node.whereis("rare/1").is_some_and(|entry| {
            entry.state == TaskState::Running && entry.node == c.node.session().node
        })
    })
    .await;
    assert_eq!(
        c.metrics.counter("handover_moves_total", &[("reason", "unparked")]),
        1,
        "{}",
        c.metrics
    );
    until("it is parked no more", || b.metrics.gauge("handover_parked", &parked) == Some(0.0))
        .await;
    Hosts(vec![b, c]).leave().await;
}

#[tokio::test]
async fn a_deploy_its_one_way_states_and_its_rollback_are_told_apart() {
    let journal = Journal::default();
    let a = Host::start("a", &[], &journal, Setup::default()).await;
    a.node.run::<Tick>(TICK, ()).await.unwrap();
    a.node.run::<Grow<1>>("grow/1", ()).await.unwrap();
    let runs_on = |at: &Host, on: &Host| at.sees(TICK, Some(on)) && at.sees("grow/1", Some(on));
    until("both run", || runs_on(&a, &a)).await;
    let keeper = Host::start("k", &[&a], &journal, Setup::default()).await;
    let b = Host::start("b", &[&a, &keeper], &journal, Setup::newer()).await;
    until("all know", || runs_on(&b, &a) && runs_on(&keeper, &a)).await;
    let report = a.node.drain().await;
    assert_eq!(report.moved, 2, "{report:?}");
    until("both are there", || runs_on(&b, &b)).await;
    let deployed = [("reason", "drain"), ("from_rev", "r1"), ("to_rev", "r2")];
    assert_eq!(b.metrics.counter("handover_moves_total", &deployed), 2);

    let one_way = |host: &Host| host.metrics.gauge("handover_one_way", &[("kind", "grow")]);
    until("what cannot go back is counted", || one_way(&b) == Some(1.0)).await;
    assert_eq!(b.metrics.gauge("handover_one_way", &[("kind", "tick")]), None);
    let status = b.node.status().await.unwrap();
    let grow = status.kinds.iter().find(|(kind, _)| kind.as_str() == "grow").unwrap().1;
    assert_eq!((grow.oldest, grow.newest, grow.writes, grow.one_way), (1, 2, 1, 1));

    // Pinned when the first newer state was written, and no later.
    let progress = b.node.get::<Grow<2>>("grow/1").progress().await.unwrap().done;
    until("some work is done", || journal.by(&b).len() > 100).await;
    let c = Host::start("c", &[&b, &keeper], &journal, Setup::default()).await;
    let report = b.node.drain().await;
    assert_eq!((report.moved, report.released), (1, 1), "{report:?}");
    b.node.close().await;
    let undone = [("reason", "rollback"), ("from_rev", "r2"), ("to_rev", "r1")];
    assert_eq!(
        c.metrics.counter("handover_moves_total", &undone)
            + keeper.metrics.counter("handover_moves_total", &undone),
        1
    );
    until("the other one goes on too", || {
        [&c, &keeper].iter().any(|host| host.sees("grow/1", Some(host)))
    })
    .await;
    let again = c.node.get::<Grow<1>>("grow/1").progress().await.unwrap().done;
    assert!(again > 10 && again <= progress + 50, "from {again}, was at {progress} or later");
    until("it is one-way no more", || {
        [&c, &keeper].iter().all(|host| one_way(host).is_none_or(|count| count == 0.0))
    })
    .await;
    Hosts(vec![a, keeper, c]).leave().await;
}

#[tokio::test]
async fn a_conflict_is_told_by_both_sides_and_its_overlap_is_that_of_the_steps() {
    let journal = Journal::default();
    let a = Host::start("a", &[], &journal, Setup::default()).await;
    let b = Host::start("b", &[&a], &journal, Setup::default()).await;
    let c = Host::start("c", &[&a], &journal, Setup::default()).await;
    let mut hosts = vec![a, b, c];
    hosts[0].node.run::<Tick>(TICK, ()).await.unwrap();
    until("all know that it runs", || hosts.iter().all(|host| host.sees(TICK, None))).await;
    let home = hosts.iter().position(|host| host.sees(TICK, Some(host))).unwrap();
    let old = hosts.remove(home);
    until("it has taken some steps", || journal.steps().len() > 40).await;
    let mut watch = old.node.watch(TICK);
    let mut watches: Vec<_> = hosts.iter().map(|host| host.node.watch(TICK)).collect();

    old.cut.isolate();
    let runs_on = |host: &&Host| !journal.by(host).is_empty();
    until("another node has taken it over", || hosts.iter().any(|host| runs_on(&host))).await;
    let first = hosts.iter().position(|host| runs_on(&host)).unwrap();
    let winner = &hosts[first];
    sleep(Duration::from_secs(1)).await;
    old.cut.heal();
    until("the old copy has stopped", || old.sees(TICK, Some(winner))).await;
    until("it is measured", || !old.metrics.histogram("handover_overlap_seconds", &[]).is_empty())
        .await;

    let last = journal.by(&old).last().unwrap().end;
    let began = journal.by(winner)[0].begin;
    let truly = last.duration_since(began).as_secs_f64();
    assert!(truly > 1.0, "{truly}");
    // Whoever watches hears of it, wherever, with how long it was.
    for watch in watches.iter_mut().chain([&mut watch]) {
        let told = async {
            loop {
                let event = watch.next().await.expect("it goes on");
                if let TaskEvent::Conflict { name, kept, stopped, overlap } = event {
                    close_to(overlap.as_secs_f64(), truly, 0.4);
                    return [name.to_string(), kept.to_string(), stopped.to_string()];
                }
            }
        };
        let told = timeout(SOON, told).await.expect("it is told");
        assert_eq!(told, [TICK, winner.id.as_str(), old.id.as_str()]);
    }
    let overlaps = old.metrics.histogram("handover_overlap_seconds", &[]);
    assert_eq!(overlaps.len(), 1);
    close_to(overlaps[0], truly, 0.4);
    // As far as the winner can know, nobody ran it for as long as it heard nothing.
    let gaps = winner.metrics.histogram("handover_move_gap_seconds", &[("reason", "crash")]);
    assert!(gaps.len() == 1 && gaps[0] > 1.9 && gaps[0] < 10.0, "{gaps:?}");
    assert_eq!(old.metrics.counter("handover_conflicts_total", &[("kept", "there")]), 1);
    assert_eq!(winner.metrics.counter("handover_conflicts_total", &[("kept", "here")]), 1);
    for host in &hosts {
        assert!(host.metrics.histogram("handover_overlap_seconds", &[]).is_empty(), "told once");
        assert_eq!(host.metrics.counter("handover_conflicts_total", &[("kept", "there")]), 0);
    }
    hosts.push(old);
    Hosts(hosts).leave().await;
}

/// What both sides of a cut did is put together by the task's code, and nothing of either is lost.
#[tokio::test]
async fn what_two_copies_did_is_merged_as_the_code_says() {
    let journal = Journal::default();
    let a = Host::start("a", &[], &journal, Setup::default()).await;
    let b = Host::start("b", &[&a], &journal, Setup::default()).await;
    let c = Host::start("c", &[&a], &journal, Setup::default()).await;
    let mut hosts = vec![a, b, c];
    hosts[0].node.run::<Collect>("all", ()).await.unwrap();
    until("all know that it runs", || hosts.iter().all(|host| host.sees("all", None))).await;
    let home = hosts.iter().position(|host| host.sees("all", Some(host))).unwrap();
    let old = hosts.remove(home);
    sleep(Duration::from_secs(1)).await;
    old.cut.isolate();
    until("another node has taken it over", || {
        hosts.iter().any(|host| host.sees("all", Some(host)))
    })
    .await;
    sleep(Duration::from_secs(1)).await;
    let mut events: Vec<_> = hosts.iter().map(|host| host.node.events()).collect();
    old.cut.heal();
    let reconciled = events.iter_mut().map(|events| {
        Box::pin(async move {
            while let Some(event) = events.next().await {
                if let NodeEvent::Reconciled { branches, .. } = event {
                    return branches;
                }
            }
            0
        })
    });
    let (branches, ..) = timeout(SOON, futures_util::future::select_all(reconciled)).await.unwrap();
    assert_eq!(branches, 2);
    let output = timeout(SOON, hosts[0].node.get::<Collect>("all").output()).await.unwrap();
    let all = output.unwrap();
    // Of each node the steps from the first to its last, with none left out.
    for node in ["a", "b", "c"] {
        let of: Vec<u64> = all.iter().filter(|(by, _)| by == node).map(|(_, n)| *n).collect();
        assert!(of.iter().copied().eq(0..of.len() as u64), "{node}: {of:?}");
    }
    let of_old = all.iter().filter(|(by, _)| *by == old.id).count();
    assert!(of_old > 150, "{of_old} steps of the old copy, of which some 100 before the cut");
    hosts.push(old);
    Hosts(hosts).leave().await;
}

/// A signal, and one more when that cannot be taken for the same.
struct Twice;

impl Trigger for Twice {
    fn signals(self) -> BoxStream<'static, Option<Signal>> {
        let second = stream::once(async {
            sleep(Duration::from_millis(1200)).await;
            Some(Signal::Terminate)
        });
        stream::iter([Some(Signal::Terminate)]).chain(second).boxed()
    }
}

#[tokio::test]
async fn a_drain_that_a_second_signal_cut_short_is_measured_as_forced() {
    const LONG: &str = "long";
    let journal = Journal::default();
    let a = Host::start("a", &[], &journal, Setup::default()).await;
    let b = Host::start("b", &[&a], &journal, Setup::default()).await;
    a.node.run::<Long>(LONG, ()).await.unwrap();
    until("both know that it runs", || [&a, &b].iter().all(|host| host.sees(LONG, None))).await;
    let (home, other) = if a.sees(LONG, Some(&a)) { (a, b) } else { (b, a) };
    let report = timeout(SOON, home.node.drain_on(Twice)).await.unwrap();
    assert_eq!(report.forced, Some(Signal::Terminate), "{report:?}");
    let drains = |labels: &[_]| home.metrics.histogram("handover_drain_seconds", labels);
    assert_eq!(drains(&[("outcome", "forced")]), [report.elapsed.as_secs_f64()]);
    assert_eq!(drains(&[]).len(), 1, "and as nothing else");
    Hosts(vec![home, other]).leave().await;
}

/// Also of what is taken up at the first word of it.
#[tokio::test]
async fn each_move_of_what_was_released_has_its_gap() {
    let journal = Journal::default();
    let a = Host::start("a", &[], &journal, Setup::default()).await;
    let b = Host::start("b", &[&a], &journal, Setup::default()).await;
    let c = Host::start("c", &[&a, &b], &journal, Setup::default()).await;
    let names: Vec<String> = (0..12).map(|i| format!("long/{i}")).collect();
    for name in &names {
        a.node.run::<Long>(name, ()).await.unwrap();
    }
    let run = |host: &Host| names.iter().all(|name| host.sees(name, None));
    until("all know that they run", || [&a, &b, &c].into_iter().all(run)).await;
    let here = names.iter().filter(|name| a.sees(name, Some(&a))).count();
    let report = timeout(SOON, a.node.drain_on(Twice)).await.unwrap();
    assert!(here > 0 && report.released == here, "{here}: {report:?}");
    let takers = [&b, &c];
    let elsewhere = |name: &String| takers.iter().any(|taker| b.sees(name, Some(taker)));
    until("others run them", || names.iter().all(elsewhere)).await;
    let moves = |host: &Host| {
        let released = host.metrics.counter("handover_moves_total", &[("reason", "released")]);
        let gaps = host.metrics.histogram("handover_move_gap_seconds", &[("reason", "released")]);
        assert_eq!(gaps.len() as u64, released, "{gaps:?}");
        assert!(gaps.iter().all(|gap| *gap < SOON.as_secs_f64()), "{gaps:?}");
        gaps.len()
    };
    assert_eq!(takers.map(moves).iter().sum::<usize>(), here);
    // Their steps would be waited for.
    b.node.close().await;
    c.node.close().await;
    Hosts(vec![a, b, c]).leave().await;
}

#[tokio::test]
async fn the_last_node_counts_what_it_abandons() {
    let journal = Journal::default();
    let a = Host::start("a", &[], &journal, Setup::default()).await;
    a.node.run::<Tick>(TICK, ()).await.unwrap();
    until("it runs", || journal.steps().len() > 3).await;
    let report = a.node.drain().await;
    assert_eq!(report.abandoned.len(), 1, "{report:?}");
    assert_eq!(a.metrics.counter("handover_abandoned_total", &[]), 1);
    let drained = a.metrics.histogram("handover_drain_seconds", &[("outcome", "incomplete")]);
    assert_eq!(drained, [report.elapsed.as_secs_f64()]);
    Hosts(vec![a]).leave().await;
}
