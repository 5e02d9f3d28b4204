#![allow(clippy::unwrap_used, clippy::expect_used)]

//! Whole nodes over loopback, several in one process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::*;
use crate::core::timing::Timing;
use crate::registry::TaskState;
use crate::signal::Signal;
use crate::task::{Cx, Step, Task};

#[cfg(feature = "redb")]
mod damage;
mod failing;
mod hostile;
mod logging;
mod many;
mod seeds;
mod starting;
mod unlinked;
mod unstoppable;
mod using;
mod watching;

const SOON: Duration = Duration::from_secs(30);

/// Counts to a number, one at a time, and on until it may end.
struct Count {
    may_end: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct CountTo {
    end: u64,
    pause_ms: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct Counted {
    at: u64,
    /// The nodes that counted, in order.
    by: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Sum {
    at: u64,
    by: Vec<String>,
}

impl Task for Count {
    const KIND: &'static str = "count";
    type Args = CountTo;
    type State = Counted;
    type Output = Sum;

    async fn step(
        &self,
        cx: &mut Cx,
        args: &CountTo,
        state: &mut Counted,
    ) -> crate::error::Result<Step<Sum>> {
        sleep(Duration::from_millis(args.pause_ms)).await;
        let session = cx.fence().session;
        let node = session.split('/').next().unwrap_or_default().to_owned();
        if state.by.last() != Some(&node) {
            state.by.push(node);
        }
        state.at += 1;
        cx.progress(state.at, args.end);
        Ok(if state.at >= args.end && self.may_end.load(Ordering::Relaxed) {
            Step::Done(Sum { at: state.at, by: state.by.clone() })
        } else {
            Step::More
        })
    }
}

fn timing() -> Timing {
    Timing {
        gossip_interval: Duration::from_millis(100),
        // Generous, for busy machines: tests that need a quick takeover bring the evidence.
        silence_floor: Duration::from_secs(4),
        takeover_delay: Duration::from_millis(100),
        stop_grace: Duration::from_secs(1),
        alone_after: Duration::from_secs(5),
        solo_after: Duration::from_millis(200),
        boot_wait: Duration::from_secs(1),
        state_wait: Duration::from_secs(1),
        retention: Duration::from_secs(60),
        tombstone_retention: Duration::from_secs(120),
        dead_node_grace: Duration::from_secs(30),
        address_book: Duration::from_secs(60),
        finalize_after: Duration::from_secs(600),
    }
}

fn builder(id: &str, seeds: Seeds, may_end: Arc<AtomicBool>) -> NodeBuilder {
    Node::builder("test")
        .node_id(id)
        .seeds(seeds)
        .revision("r1")
        .timing(timing())
        // No oftener: unoptimised nodes on a busy machine would do nothing else.
        .checkpoint_every(Duration::from_millis(250), 1 << 20)
        .task(Count { may_end })
}

fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

async fn start(id: &str, seed: Option<&Node>) -> Node {
    start_with(id, seed, Arc::new(AtomicBool::new(true))).await
}

async fn start_with(id: &str, seed: Option<&Node>, may_end: Arc<AtomicBool>) -> Node {
    log();
    let seeds = seed.map_or(Seeds::None, |seed| seed.address().into());
    let node = builder(id, seeds, may_end).start().await.unwrap();
    timeout(SOON, node.wait_ready()).await.expect("it becomes ready").unwrap();
    node
}

/// Signals at given times after the first.
struct Script(Vec<(Duration, Signal)>);

impl Trigger for Script {
    fn signals(self) -> BoxStream<'static, Option<Signal>> {
        let told = futures_util::stream::iter(self.0).then(|(after, signal)| async move {
            sleep(after).await;
            Some(signal)
        });
        Box::pin(told)
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while begun.elapsed() < SOON {
        if holds() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("did not come to pass: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_runs_and_its_output_is_read_from_another_node() {
    let a = start("a", None).await;
    let b = start("b", Some(&a)).await;
    let args = CountTo { end: 20, pause_ms: 5 };
    let handle = timeout(SOON, a.run::<Count>("count/1", args)).await.unwrap().unwrap();
    let output = timeout(SOON, handle.output()).await.unwrap().unwrap();
    assert_eq!(output.at, 20);
    assert_eq!(output.by.len(), 1);

    until("the other node knows", || b.whereis("count/1").is_some()).await;
    let elsewhere = b.get::<Count>("count/1");
    let output = timeout(SOON, elsewhere.output()).await.unwrap().unwrap();
    assert_eq!(output.at, 20);
    assert_eq!(elsewhere.state(), Some(TaskState::Finished));

    // The name is joined, not started again.
    let again = b.run::<Count>("count/1", CountTo { end: 7, pause_ms: 0 }).await.unwrap();
    assert_eq!(again.run(), handle.run());
    let other = b.rerun::<Count>("count/1", CountTo { end: 7, pause_ms: 0 }).await.unwrap();
    assert_eq!(timeout(SOON, other.output()).await.unwrap().unwrap().at, 7);
    a.leave().await.unwrap();
    b.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_hands_its_task_over_with_its_state() {
    let a = start("a", None).await;
    let b = start("b", Some(&a)).await;
    let args = CountTo { end: 200, pause_ms: 10 };
    let handle = a.run::<Count>("count/2", args).await.unwrap();
    until("it runs", || {
        a.whereis("count/2").is_some_and(|entry| entry.state == TaskState::Running)
            && b.whereis("count/2").is_some()
    })
    .await;
    let home = a.whereis("count/2").unwrap().node;
    let (home, other) = if home.as_str() == "a" { (a, b) } else { (b, a) };
    sleep(Duration::from_millis(300)).await;
    let report = timeout(SOON, home.drain()).await.unwrap();
    assert_eq!((report.moved, report.abandoned.len()), (1, 0), "{report:?}");
    let before = handle.progress().await.unwrap();
    assert!(before.done >= 10, "{before:?}");
    timeout(SOON, home.leave()).await.unwrap().unwrap();
    let output = timeout(SOON, other.get::<Count>("count/2").output()).await.unwrap().unwrap();
    assert_eq!(output.at, 200);
    assert_eq!(output.by.len(), 2, "{output:?}");
    other.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_nodes_task_is_taken_over_from_its_checkpoint() {
    let a = start("a", None).await;
    let b = start("b", Some(&a)).await;
    let args = CountTo { end: 200, pause_ms: 10 };
    a.run::<Count>("count/3", args).await.unwrap();
    until("it runs and both know", || {
        [&a, &b].iter().all(|node| {
            node.whereis("count/3").is_some_and(|entry| entry.state == TaskState::Running)
        })
    })
    .await;
    let home = a.whereis("count/3").unwrap().node;
    let (home, other) = if home.as_str() == "a" { (a, b) } else { (b, a) };
    sleep(Duration::from_millis(500)).await;
    home.close().await;
    let output = timeout(SOON, other.get::<Count>("count/3").output()).await.unwrap().unwrap();
    assert_eq!(output.at, 200);
    assert_eq!(output.by.len(), 2, "{output:?}");
    other.leave().await.unwrap();
}
