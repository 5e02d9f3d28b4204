//! Many tasks on three nodes.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use super::*;

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
