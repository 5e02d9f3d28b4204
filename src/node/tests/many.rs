//! Many tasks on three nodes.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use super::*;
use crate::registry::TaskEvent;

const TASKS: usize = 60;

/// Three nodes, and whether their tasks may end.
async fn three() -> ([Node; 3], Arc<AtomicBool>) {
    let may_end = Arc::new(AtomicBool::new(false));
    let a = start_with("a", None, may_end.clone()).await;
    let b = start_with("b", Some(&a), may_end.clone()).await;
    let c = start_with("c", Some(&a), may_end.clone()).await;
    for node in [&a, &b, &c] {
        until("all know each other", || {
            node.peers().iter().filter(|peer| peer.linked).count() == 2
        })
        .await;
    }
    ([a, b, c], may_end)
}

fn name(i: usize) -> String {
    format!("many/{i:03}")
}

/// Starts all tasks and returns how many run on each node.
async fn run_all(node: &Node) -> BTreeMap<String, usize> {
    let args = CountTo { end: 10, pause_ms: 20 };
    let runs = (0..TASKS).map(|i| node.run::<Count>(name(i), args));
    for run in timeout(SOON, join_all(runs)).await.unwrap() {
        run.unwrap();
    }
    until("all run", || spread(node).values().sum::<usize>() == TASKS).await;
    spread(node)
}

fn spread(node: &Node) -> BTreeMap<String, usize> {
    let mut spread = BTreeMap::new();
    for entry in node.list("many/") {
        if entry.state == TaskState::Running {
            *spread.entry(entry.node.to_string()).or_default() += 1;
        }
    }
    spread
}

/// Every task has counted, and its first commit has had time to reach its replica: a crash before
/// that begins anew, and rightly.
async fn all_replicated(node: &Node) {
    for i in 0..TASKS {
        let handle = node.get::<Count>(&name(i));
        let counted = async {
            while handle.progress().await.is_none_or(|progress| progress.done == 0) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, counted).await.unwrap();
    }
    sleep(Duration::from_millis(500)).await;
}

/// All finish, with their state; returns how many were counted on by more than one node.
async fn all_finish(node: &Node, may_end: &AtomicBool) -> usize {
    may_end.store(true, Ordering::Relaxed);
    let mut moved = 0;
    for i in 0..TASKS {
        let handle = node.get::<Count>(&name(i));
        let output = timeout(SOON, handle.output()).await;
        let output = output.unwrap_or_else(|_| panic!("{:?} did not end", node.whereis(&name(i))));
        moved += usize::from(output.unwrap().by.len() > 1);
    }
    moved
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_moves_many_tasks_and_loses_none() {
    let ([a, b, c], may_end) = three().await;
    let spread_before = run_all(&a).await;
    let on_b = spread_before.get("b").copied().unwrap_or(0);
    assert!(on_b > 0, "placement spreads: {spread_before:?}");
    let report = timeout(SOON, b.drain()).await.unwrap();
    assert_eq!(report.moved, on_b, "{report:?}");
    assert!(report.is_clean(), "{report:?}");
    timeout(SOON, b.leave()).await.unwrap().unwrap();
    assert_eq!(all_finish(&a, &may_end).await, on_b);
    timeout(SOON, a.leave()).await.unwrap().unwrap();
    timeout(SOON, c.leave()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_moves_many_tasks_and_loses_none() {
    let ([a, b, c], may_end) = three().await;
    let spread_before = run_all(&c).await;
    let on_b = spread_before.get("b").copied().unwrap_or(0);
    assert!(on_b > 0, "placement spreads: {spread_before:?}");
    all_replicated(&c).await;
    b.close().await;
    let crashed = Instant::now();
    until("all run again", || {
        let spread = spread(&c);
        !spread.contains_key("b") && spread.values().sum::<usize>() == TASKS
    })
    .await;
    // Known dead by its refusing address, long before the silence floor.
    assert!(crashed.elapsed() < timing().silence_floor, "{:?}", crashed.elapsed());
    assert_eq!(all_finish(&c, &may_end).await, on_b);
    timeout(SOON, a.leave()).await.unwrap().unwrap();
    timeout(SOON, c.leave()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_drain_at_once_lose_none() {
    let ([a, b, c], may_end) = three().await;
    run_all(&a).await;
    let (from_a, from_b) = tokio::join!(timeout(SOON, a.drain()), timeout(SOON, b.drain()));
    let (from_a, from_b) = (from_a.unwrap(), from_b.unwrap());
    assert!(from_a.is_clean(), "{from_a:?}");
    assert!(from_b.is_clean(), "{from_b:?}");
    timeout(SOON, a.leave()).await.unwrap().unwrap();
    timeout(SOON, b.leave()).await.unwrap().unwrap();
    all_finish(&c, &may_end).await;
    timeout(SOON, c.leave()).await.unwrap().unwrap();
}

/// The moment at which nodes become ready is the one at which they know least of each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_started_on_nodes_that_have_just_become_ready_runs_once() {
    log();
    for _ in 0..4 {
        let may_end = Arc::new(AtomicBool::new(true));
        let a = builder("a", Seeds::None, may_end.clone()).start().await.unwrap();
        let seeds = || Seeds::from(a.address());
        let b = builder("b", seeds(), may_end.clone()).start().await.unwrap();
        let c = builder("c", seeds(), may_end).start().await.unwrap();
        let nodes = [a, b, c];
        let args = CountTo { end: 20, pause_ms: 5 };
        let starts = nodes.iter().map(|node| async move {
            node.wait_ready().await.unwrap();
            node.run::<Count>("fresh", args).await.unwrap()
        });
        let handles = timeout(SOON, join_all(starts)).await.unwrap();
        let runs: Vec<_> = handles.iter().map(|handle| handle.run().unwrap()).collect();
        assert!(runs.iter().all(|run| *run == runs[0]), "{runs:?}");
        for handle in &handles {
            let output = timeout(SOON, handle.output()).await.unwrap().unwrap();
            assert_eq!((output.at, output.by.len()), (20, 1), "{output:?}");
        }
        for node in nodes {
            timeout(SOON, node.leave()).await.unwrap().unwrap();
        }
    }
}

/// More than the queues between the parts of a node are made for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(debug_assertions, ignore = "no node keeps up unless optimised: cargo test --release")]
async fn thousands_of_names_at_once_are_all_started_told_of_and_handed_over() {
    const NAMES: usize = 4_500;
    const LONG: Duration = Duration::from_secs(120);
    log();
    let may_end = Arc::new(AtomicBool::new(false));
    let patient = |id: &str, seeds: Seeds| {
        builder(id, seeds, may_end.clone())
            .timing(Timing {
                silence_floor: SOON,
                alone_after: SOON,
                dead_node_grace: LONG,
                ..Timing::default()
            })
            .checkpoint_every(Duration::from_secs(1), 1 << 20)
            .call_timeout(LONG)
            .drain_budget(LONG)
            .event_backlog(100)
            .start()
    };
    let a = patient("a", Seeds::None).await.unwrap();
    timeout(SOON, a.wait_ready()).await.unwrap().unwrap();
    let b = patient("b", a.address().into()).await.unwrap();
    timeout(SOON, b.wait_ready()).await.unwrap().unwrap();
    until("they are linked", || a.peers().iter().any(|peer| peer.linked)).await;
    let mut watch = b.watch("many/");

    let args = CountTo { end: 1, pause_ms: 2_000 };
    let runs = (0..NAMES).map(|i| a.run::<Count>(format!("many/{i:04}"), args));
    for run in timeout(LONG, join_all(runs)).await.unwrap() {
        run.unwrap();
    }
    let all_run = |node: &Node| spread(node).values().sum::<usize>() == NAMES;
    let begun = Instant::now();
    while !(all_run(&a) && all_run(&b)) {
        assert!(begun.elapsed() < LONG, "{:?} and {:?} run", spread(&a), spread(&b));
        sleep(Duration::from_millis(50)).await;
    }
    let here = spread(&a)["a"];
    assert!(here > NAMES / 4, "placement spreads: {here}");
    // A watcher that nobody read has missed much, and is told how things stand.
    match timeout(SOON, watch.next()).await.unwrap().unwrap() {
        TaskEvent::Lagged { missed, entries } => {
            assert!(missed > 1_000 && entries.len() == NAMES, "{missed}, {}", entries.len());
        }
        other => panic!("{other:?}"),
    }

    let report = timeout(LONG, a.drain()).await.unwrap();
    let left = report.abandoned.len() + report.unstoppable.len() + report.released;
    assert_eq!((report.moved, left), (here, 0), "after {:?}", report.elapsed);
    timeout(SOON, a.leave()).await.unwrap().unwrap();
    let spread = spread(&b);
    assert_eq!(spread.get("b"), Some(&NAMES), "{spread:?}");
    b.close().await;
}
