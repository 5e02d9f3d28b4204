//! The advanced form, over the same loop.

use super::*;
use crate::error::Error;
use crate::task::{Run, RunCx, Running};

/// Counts to its bound, 20 ms a number; says when it is called, moved, and what it counts.
struct Counter {
    log: Log<String>,
    fails_at: Option<u64>,
}

impl Counter {
    fn new(log: &Log<String>) -> Running<Self> {
        Running(Self { log: log.clone(), fails_at: None })
    }
}

const BOUND: u64 = 10;

impl Run for Counter {
    const KIND: &'static str = "counter";
    type Args = String;
    type State = u64;
    type Output = u64;

    async fn run(&self, cx: &mut RunCx<u64>, how: &String) -> Result<u64> {
        let mut at = cx.state()?;
        self.log.push(format!("from {at}"));
        while at < BOUND {
            tokio::time::sleep(ms(20)).await;
            at += 1;
            self.log.push(at.to_string());
            cx.progress(at, BOUND);
            if self.fails_at == Some(at) && cx.attempt() == 1 {
                return Err(Error::retry("away"));
            }
            let went = if how == "forced" {
                cx.checkpoint_now(&at).await
            } else {
                cx.checkpoint(&at).await
            };
            if let Err(error) = went {
                assert!(error.is_moved());
                self.log.push("moved".into());
                return Err(error);
            }
            assert_eq!(cx.state()?, at);
        }
        Ok(at)
    }

    fn retry(&self) -> Retry {
        Retry::default().attempts(2)
    }
}

fn start(world: &mut World, name: &str) {
    let task = spec(Counter::KIND, name);
    world.runner.start(task, lease(1), From::Initial, vec![], 0);
}

#[tokio::test(start_paused = true)]
async fn a_run_is_called_once_and_ends_with_its_output() {
    let log = Log::new();
    let mut world = World::new(Counter::new(&log));
    start(&mut world, "a");
    let (first, state, _) = world.commit().await;
    assert_eq!(first.position.seq, 1);
    assert_eq!(first.progress.unwrap().done, 1);
    assert_eq!(state[..], [1]);
    assert!(matches!(world.outcome().await, Outcome::Done(output) if output[..] == [10]));
    assert_eq!(log.all()[0], "from 0");
    assert_eq!(log.len(), 11);
}

#[tokio::test(start_paused = true)]
async fn a_run_hands_over_at_its_checkpoint_and_resumes_there() {
    let log = Log::new();
    let mut world = World::new(Counter::new(&log));
    start(&mut world, "a");
    tokio::time::sleep(ms(70)).await;
    world.stop("a", Duration::from_secs(5));
    let (sealed, dropped) = world.sealed().await;
    let (header, state) = sealed.unwrap();
    assert!(!dropped);
    assert_eq!(header.position.seq, 4);
    world.resume(2, header, state);
    assert!(matches!(world.outcome().await, Outcome::Done(_)));
    assert_eq!(
        log.all(),
        ["from 0", "1", "2", "3", "4", "moved", "from 4", "5", "6", "7", "8", "9", "10"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_run_that_fails_is_called_anew_from_its_last_checkpoint() {
    let log = Log::new();
    let mut world = World::new(Running(Counter { log: log.clone(), fails_at: Some(4) }));
    start(&mut world, "a");
    assert!(matches!(world.outcome().await, Outcome::Done(_)));
    assert_eq!(log.all()[..8], ["from 0", "1", "2", "3", "4", "from 3", "4", "5"]);
}

#[tokio::test(start_paused = true)]
async fn a_forced_checkpoint_returns_when_a_replica_has_it() {
    let log = Log::new();
    let mut world = World::new(Counter::new(&log));
    start(&mut world, "forced");
    let (header, _, forced) = world.commit().await;
    assert!(forced);
    world.quiet(Duration::from_secs(60)).await;
    assert_eq!(log.len(), 2);
    let position = header.position;
    world.runner.replicated(&name("forced"), position, 1, 1);
    assert_eq!(world.commit().await.0.position.seq, 2);
}

#[tokio::test(start_paused = true)]
async fn a_run_between_checkpoints_is_dropped_after_the_grace() {
    struct Stuck;
    impl Run for Stuck {
        const KIND: &'static str = "stuck";
        type Args = String;
        type State = u64;
        type Output = ();
        async fn run(&self, cx: &mut RunCx<u64>, _: &String) -> Result<()> {
            cx.checkpoint(&1).await?;
            // A helper may live across checkpoints, but not longer than the run.
            let helper = cx.spawn(std::future::pending::<()>());
            cx.checkpoint(&2).await?;
            helper.await
        }
    }
    let mut world = World::new(Running(Stuck));
    let task = spec(Stuck::KIND, "a");
    world.runner.start(task, lease(1), From::Initial, vec![], 0);
    tokio::time::sleep(ms(10)).await;
    world.stop("a", ms(100));
    let (sealed, dropped) = world.sealed().await;
    assert!(dropped);
    assert_eq!(sealed.unwrap().1[..], [2]);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_ignores_that_it_has_moved_is_dropped() {
    struct Deaf;
    impl Run for Deaf {
        const KIND: &'static str = "deaf";
        type Args = String;
        type State = u64;
        type Output = ();
        async fn run(&self, cx: &mut RunCx<u64>, _: &String) -> Result<()> {
            for at in 1.. {
                tokio::time::sleep(ms(10)).await;
                let _ = cx.checkpoint(&at).await;
            }
            Ok(())
        }
    }
    let mut world = World::new(Running(Deaf));
    let task = spec(Deaf::KIND, "a");
    world.runner.start(task, lease(1), From::Initial, vec![], 0);
    tokio::time::sleep(ms(35)).await;
    world.stop("a", ms(100));
    let (sealed, _) = world.sealed().await;
    assert_eq!(sealed.unwrap().1[..], [4], "what came later does not count");
    assert!(world.clock.0.elapsed() < ms(1_100));
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_whose_future_is_dropped_does_not_confuse_the_next() {
    struct Hasty;
    impl Run for Hasty {
        const KIND: &'static str = "hasty";
        type Args = String;
        type State = u64;
        type Output = u64;
        async fn run(&self, cx: &mut RunCx<u64>, _: &String) -> Result<u64> {
            for at in 1..=5 {
                let _ = tokio::time::timeout(Duration::ZERO, cx.checkpoint(&at)).await;
            }
            cx.checkpoint_now(&6).await?;
            Ok(cx.fence().epoch.0)
        }
    }
    let mut world = World::new(Running(Hasty));
    let task = spec(Hasty::KIND, "a");
    world.runner.start(task, lease(1), From::Initial, vec![], 0);
    let header = loop {
        let (header, state, forced) = world.commit().await;
        if forced {
            assert_eq!(state[..], [6]);
            break header;
        }
    };
    let position = header.position;
    world.quiet(Duration::from_secs(5)).await;
    world.runner.reepoch(&name("a"), lease(4));
    world.runner.replicated(&name("a"), position, 1, 1);
    assert!(
        matches!(world.outcome().await, Outcome::Done(output) if output[..] == [4]),
        "the fence is of the newest epoch"
    );
}
