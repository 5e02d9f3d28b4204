//! Closures that do not return: nobody else may run what still runs here (Rule 15).

use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};

use futures_util::StreamExt;

use super::*;

/// Blocks until it is told to go on, and reports when it has begun to.
struct Blocks(Arc<Mutex<mpsc::Receiver<()>>>);

const BLOCKED: u64 = 1;

impl Task for Blocks {
    const KIND: &'static str = "blocks";
    type Args = ();
    type State = u64;
    type Output = ();

    async fn step(&self, cx: &mut Cx, (): &(), at: &mut u64) -> crate::error::Result<Step<()>> {
        *at += 1;
        let gate = Arc::clone(&self.0);
        let wait = move || gate.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let waiting = cx.blocking(wait);
        cx.progress(BLOCKED, BLOCKED);
        let _ = waiting.await?;
        Ok(Step::More)
    }
}

async fn start_blocking(id: &str, seed: Option<&Node>) -> (Node, mpsc::Sender<()>) {
    start_with(id, seed, Duration::from_millis(200)).await
}

async fn start_with(
    id: &str,
    seed: Option<&Node>,
    stop_grace: Duration,
) -> (Node, mpsc::Sender<()>) {
    let (sender, receiver) = mpsc::channel();
    let seeds = seed.map_or(Seeds::None, |seed| seed.address().into());
    let node = builder(id, seeds, Arc::default())
        .timing(Timing { stop_grace, ..timing() })
        .drain_budget(Duration::from_millis(500))
        .task(Blocks(Arc::new(Mutex::new(receiver))))
        .start()
        .await
        .unwrap();
    timeout(SOON, node.wait_ready()).await.unwrap().unwrap();
    (node, sender)
}

/// A node, where a task blocks, and another.
async fn pair() -> ((Node, mpsc::Sender<()>), (Node, mpsc::Sender<()>)) {
    let a = start_blocking("a", None).await;
    a.0.run::<Blocks>("deaf", ()).await.unwrap();
    blocks(&a.0).await;
    let b = start_blocking("b", Some(&a.0)).await;
    until("b knows", || b.0.whereis("deaf").is_some_and(|entry| entry.state == TaskState::Running))
        .await;
    (a, b)
}

/// Waits until the task blocks: before that, it could be stopped.
async fn blocks(node: &Node) {
    let handle = node.get::<Blocks>("deaf");
    let blocked = async {
        while handle.progress().await.is_none_or(|progress| progress.done < BLOCKED) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, blocked).await.unwrap();
}

fn runs_on(node: &Node, other: &Node) -> bool {
    node.whereis("deaf")
        .is_some_and(|e| e.state == TaskState::Running && e.node == other.session().node)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_cannot_leave_while_something_unstoppable_runs_on_it() {
    let ((a, gate), (b, _other)) = pair().await;
    let report = timeout(SOON, a.drain()).await.unwrap();
    assert_eq!(report.unstoppable, [Name::new("deaf").unwrap()], "{report:?}");
    assert_eq!(report.code(), 75);
    let error = timeout(SOON, a.leave()).await.unwrap().unwrap_err();
    assert_eq!(error, LeaveError::Unstoppable(report.unstoppable));
    assert!(error.to_string().starts_with("deaf is still running"), "{error}");
    // Longer than the silence floor: it is still heard, and nobody takes the task.
    sleep(timing().silence_floor + Duration::from_secs(2)).await;
    assert!(runs_on(&b, &a), "{:?}", b.whereis("deaf"));
    gate.send(()).unwrap();
    until("b runs it", || runs_on(&b, &b)).await;
    timeout(SOON, a.leave()).await.unwrap().unwrap();
    assert_eq!(timeout(SOON, a.drain()).await.unwrap().code(), 75, "the report is still to be had");
    b.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_left_still_gives_the_report_of_its_drain() {
    let (node, _gate) = start_blocking("a", None).await;
    timeout(SOON, node.leave()).await.unwrap().unwrap();
    let report = timeout(SOON, node.drain()).await.unwrap();
    assert!(report.is_clean() && !report.unknown, "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_last_handle_is_dropped_is_there_until_its_closures_return() {
    let ((a, gate), (b, _other)) = pair().await;
    let session = a.session().clone();
    drop(a);
    sleep(timing().silence_floor + Duration::from_secs(2)).await;
    assert_eq!(b.whereis("deaf").unwrap().session, session, "it still runs there");
    gate.send(()).unwrap();
    until("b runs it", || runs_on(&b, &b)).await;
    b.close().await;
}

/// The stop grace, 10 s by default, is longer than a drain may go on after its budget.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_not_returned_when_the_drain_ends_is_unstoppable_however_long_its_grace() {
    let (node, gate) = start_with("a", None, Duration::from_millis(3900)).await;
    node.run::<Blocks>("deaf", ()).await.unwrap();
    blocks(&node).await;
    let mut events = node.events();
    let report = timeout(SOON, node.drain()).await.unwrap();
    assert_eq!(report.unstoppable, [Name::new("deaf").unwrap()], "{report:?}");
    assert!(report.abandoned.is_empty(), "{report:?}");
    sleep(Duration::from_secs(2)).await;
    gate.send(()).unwrap();
    node.close().await;
    let mut told = 0;
    while let Some(event) = timeout(SOON, events.next()).await.unwrap() {
        told += usize::from(matches!(event, NodeEvent::Unstoppable { .. }));
    }
    assert_eq!(told, 1, "once, although its loop says so, too");
}
