//! The loop under a control side that the tests play themselves.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod commits;
mod ledger;
mod reconcile;
mod running;
mod steps;
mod stopping;
mod versions;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::codec::{Limits, Value};
use super::erased::Job;
use super::kinds::Kinds;
use super::line::Throttle;
use super::runner::{Runner, RunnerConfig};
use super::{Cx, Retry, Step, Task, codec};
use crate::clock::Clock;
use crate::core::branch::{Ancestor, Header};
use crate::core::claim::Spec;
use crate::core::ids::{Kind, Name, NodeId, RunId, SessionId};
use crate::core::io::{Event, From, Outcome, Stop, Stuck};
use crate::core::lease::{Epoch, Lease};
use crate::core::time::Time;
use crate::error::Result;

/// Boot time that goes with tokio's, so that a paused test moves both.
#[derive(Debug)]
struct TestClock(Instant);

impl Clock for TestClock {
    fn boot(&self) -> Time {
        Time::from_micros(1_000_000) + self.0.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        1_700_000_000_000 + self.0.elapsed().as_millis() as u64
    }
}

/// State of [`Script`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Count {
    n: u64,
    ballast: String,
}

type StepFn = dyn for<'a> Fn(&'a mut Cx, &'a String, &'a mut Count) -> BoxFuture<'a, Result<Step<u64>>>
    + Send
    + Sync;

/// A task whose step is a closure; its args tell the tasks of one test apart.
struct Script {
    step: Box<StepFn>,
    retry: Retry,
    max_running: Option<usize>,
}

impl Script {
    fn new<F>(step: F) -> Self
    where
        F: for<'a> Fn(&'a mut Cx, &'a String, &'a mut Count) -> BoxFuture<'a, Result<Step<u64>>>
            + Send
            + Sync
            + 'static,
    {
        Self { step: Box::new(step), retry: Retry::default(), max_running: None }
    }
}

impl Task for Script {
    const KIND: &'static str = "script";
    type Args = String;
    type State = Count;
    type Output = u64;

    async fn step(&self, cx: &mut Cx, args: &String, state: &mut Count) -> Result<Step<u64>> {
        (self.step)(cx, args, state).await
    }

    fn retry(&self) -> Retry {
        self.retry.clone()
    }

    fn max_running(&self) -> Option<usize> {
        self.max_running
    }
}

/// What happened, in order, as steps report it.
#[derive(Clone, Debug)]
struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T: Clone> Log<T> {
    fn new() -> Self {
        Self(Arc::default())
    }

    fn push(&self, entry: T) {
        self.0.lock().unwrap().push(entry);
    }

    fn all(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

struct World {
    runner: Runner,
    events: mpsc::Receiver<Event>,
    clock: Arc<TestClock>,
}

impl World {
    fn new(job: impl Job) -> Self {
        Self::with(job, |_| {})
    }

    fn with(job: impl Job, change: impl FnOnce(&mut RunnerConfig)) -> Self {
        let mut kinds = Kinds::new(Limits::default());
        kinds.register(job).unwrap();
        let clock = Arc::new(TestClock(Instant::now()));
        let mut config = RunnerConfig {
            handle: Handle::current(),
            clock: clock.clone(),
            revision: "r1".into(),
            kinds: Arc::new(kinds),
            throttle: Throttle::default(),
            slots: 8,
            drain_budget: Duration::from_secs(25),
            closure_grace: Duration::from_secs(1),
        };
        change(&mut config);
        let (sender, events) = mpsc::channel(64);
        let world = Self { runner: Runner::new(config, sender), events, clock };
        world.permit(Duration::from_secs(1_000_000));
        world
    }

    fn permit(&self, lasts: Duration) {
        self.runner.permit(self.clock.boot() + lasts);
    }

    /// Starts a script of this name under epoch 1.
    fn start(&mut self, name: &str) {
        self.runner.start(spec(Script::KIND, name), lease(1), From::Initial, vec![], 0);
    }

    /// Continues a script of this name under a later epoch.
    fn resume(&mut self, epoch: u64, header: Header, state: Bytes) {
        let lineage: Vec<Ancestor> = header.lineage_after();
        let seq = header.position.seq;
        let spec = spec(header.kind.as_str(), header.name.as_str());
        let from = From::Checkpoint { header, state };
        self.runner.start(spec, lease(epoch), from, lineage, seq);
    }

    fn stop(&mut self, name: &str, grace: Duration) {
        self.runner.stop(&self::name(name), Stop::Boundary { grace });
    }

    async fn next(&mut self) -> Event {
        tokio::time::timeout(Duration::from_secs(3600), self.events.recv())
            .await
            .expect("an event in time")
            .expect("the runner lives")
    }

    /// The next event, which must be a commit.
    async fn commit(&mut self) -> (Header, Bytes, bool) {
        match self.next().await {
            Event::Committed { header, state, forced } => (header, state, forced),
            other => panic!("expected a commit: {other:?}"),
        }
    }

    /// The next event but commits.
    async fn last(&mut self) -> Event {
        loop {
            match self.next().await {
                Event::Committed { .. } | Event::Resting { .. } => {}
                other => return other,
            }
        }
    }

    /// How the next task to end has ended, commits aside.
    async fn outcome(&mut self) -> Outcome {
        match self.last().await {
            Event::Ended { outcome, .. } => outcome,
            other => panic!("expected an end: {other:?}"),
        }
    }

    /// What a task that cannot be kept any more has left, and why it cannot.
    async fn unkeepable(&mut self) -> (Option<(Header, Bytes)>, String) {
        match self.last().await {
            Event::Stuck { sealed, why: Stuck::Unkeepable(why), .. } => (sealed, why),
            other => panic!("expected it to be stuck: {other:?}"),
        }
    }

    /// What the next task to stop has left, commits aside.
    async fn sealed(&mut self) -> (Option<(Header, Bytes)>, bool) {
        match self.last().await {
            Event::Stopped { sealed, dropped, .. } => (sealed, dropped),
            other => panic!("expected a stop: {other:?}"),
        }
    }

    /// Nothing is reported for so long.
    async fn quiet(&mut self, time: Duration) {
        if let Ok(event) = tokio::time::timeout(time, self.events.recv()).await {
            panic!("expected nothing: {event:?}");
        }
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(super) fn spec(kind: &str, text: &str) -> Spec {
    Spec {
        name: name(text),
        run: RunId { number: 1, uuid: Uuid::from_u128(7) },
        kind: Kind::new(kind).unwrap(),
        args: codec::encode(&text, Value::Args, &Limits::default()).unwrap(),
    }
}

fn session(number: u128) -> SessionId {
    SessionId::new(NodeId::new("here").unwrap(), Uuid::from_u128(number))
}

pub(super) fn lease(epoch: u64) -> Lease {
    Lease { epoch: Epoch(epoch), session: session(1) }
}

fn count(state: &[u8]) -> Count {
    codec::decode(state, Value::State, &Limits::default()).unwrap()
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
