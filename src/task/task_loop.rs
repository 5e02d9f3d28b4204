//! The loop of one task: boundary, step, boundary, until it ends or is told to stop.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use metrics::Histogram;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::Span;

use super::codec::Limits;
use super::cx::{Cx, Turn};
use super::erased::{self, AnyKind, Instance, Unreadable, Writing};
use super::kinds::Registered;
use super::line::Line;
use super::orders::{Halt, Wires, changed};
use super::{Retry, Step};
use crate::core::branch::Position;
use crate::core::claim::{Claim, Spec};
use crate::core::io::{Event, Outcome, Stuck};
use crate::core::limits;
use crate::core::time::Time;
use crate::error::{Error, Result};

/// A task that waits for a transfer slot goes on stepping if its steps are shorter than this: it
/// can be at a boundary again at once when a slot is free.
const SHORT_STEP: Duration = Duration::from_millis(100);

/// And it waits this long between two steps that are shorter still, lest a step that ends early
/// because the node drains be repeated as fast as it can.
const BREATHER: Duration = Duration::from_millis(1);

/// A shorter wait for the next attempt is told to nobody.
const REST: Duration = Duration::from_secs(1);

/// How a task's loop behaves.
#[derive(Clone, Debug)]
pub(crate) struct Manners {
    pub(crate) limits: Limits,
    /// A step that takes longer is warned about.
    pub(crate) drain_budget: Duration,
    /// What a stopped task leaves behind may take so long to end.
    pub(crate) closure_grace: Duration,
}

pub(crate) struct TaskLoop {
    spec: Spec,
    kind: Arc<dyn AnyKind>,
    writing: Writing,
    cx: Cx,
    line: Line,
    wires: Wires,
    manners: Manners,
    meters: Meters,
    /// None before the first attempt and after every failure: opened by the next one.
    instance: Option<Box<dyn Instance>>,
    failures: Failures,
    /// A forced commit that is not acknowledged yet.
    awaited: Option<Position>,
    /// Orders to commit that have been carried out.
    commits: u64,
    last_step: Duration,
    resting: bool,
    warned: bool,
}

struct Meters {
    step: Histogram,
    age: Histogram,
}

/// Failures since the last progress.
struct Failures {
    retry: Retry,
    in_a_row: u32,
    /// The task has made progress when it is past this step.
    at: u64,
    /// Every state is kept, since a failure costs what was not.
    careful: bool,
}

/// What follows a boundary.
enum Next {
    Step,
    Stop,
}

/// How an attempt ended.
enum Attempt {
    Stepped(Step<Bytes>),
    Failed(Error),
    Unreadable(String),
    /// Dropped because it took longer than the grace.
    Cut,
}

impl TaskLoop {
    pub(crate) fn new(
        spec: Spec,
        kind: Registered,
        cx: Cx,
        line: Line,
        wires: Wires,
        manners: Manners,
    ) -> Box<Self> {
        let meters = Meters {
            step: metrics::histogram!("handover_step_seconds", "kind" => spec.kind.to_string()),
            age: metrics::histogram!(
                "handover_checkpoint_age_seconds",
                "kind" => spec.kind.to_string(),
                "at" => "commit",
            ),
        };
        let failures = Failures { retry: kind.retry, in_a_row: 0, at: line.seq(), careful: false };
        // What it is moved through is one future inside another, and each would hold all of it.
        Box::new(Self {
            spec,
            writing: Writing { limits: manners.limits, version: kind.writes },
            kind: kind.erased,
            cx,
            line,
            wires,
            manners,
            meters,
            instance: None,
            failures,
            awaited: None,
            commits: 0,
            last_step: Duration::ZERO,
            resting: false,
            warned: false,
        })
    }

    /// Runs the task. The event returned is the last: when it is there, nothing of the task runs.
    pub(crate) async fn run(mut self: Box<Self>) -> Event {
        let mut resume_at = None;
        loop {
            // A step that never waits must not keep its worker from the other tasks.
            tokio::task::yield_now().await;
            let attempt = match self.boundary(resume_at.take()).await {
                Ok(Next::Stop) => return Box::pin(self.stop(false)).await,
                Ok(Next::Step) => self.attempt().await,
                Err(error) => Attempt::Failed(error),
            };
            let settled = match attempt {
                Attempt::Cut => return Box::pin(self.stop(true)).await,
                Attempt::Unreadable(why) => {
                    return Box::pin(self.stuck(Stuck::Unreadable(why))).await;
                }
                Attempt::Stepped(Step::Done(output)) => {
                    return Box::pin(self.ended(Outcome::Done(output))).await;
                }
                Attempt::Stepped(Step::More) => self.settle().await,
                Attempt::Stepped(Step::Wait(wait)) => {
                    resume_at = Some(self.wires.now() + wait);
                    self.settle().await
                }
                Attempt::Failed(error) => Err(error),
            };
            if let Err(error) = settled {
                match self.failed(&error) {
                    Ok(delay) => resume_at = Some(self.wires.now() + delay),
                    Err(text) if error.is_stuck() => {
                        return Box::pin(self.stuck(Stuck::Unkeepable(text))).await;
                    }
                    Err(text) => return Box::pin(self.ended(Outcome::Failed(text))).await,
                }
            }
        }
    }

    /// Between two steps: commits what is due, waits for what has to be waited for, and says
    /// whether another step may begin.
    async fn boundary(&mut self, resume_at: Option<Time>) -> Result<Next> {
        loop {
            let (halt, ordered) = self.obey();
            match halt {
                Some(Halt::By(_)) => return Ok(Next::Stop),
                Some(Halt::WithSlot) if self.wires.slots.try_take(&self.spec.name) => {
                    return Ok(Next::Stop);
                }
                _ => {}
            }
            let leaving = halt.is_some();
            let pending = self.line.is_ahead() || self.line.is_uncommitted();
            let paused = resume_at.is_some_and(|at| at > self.wires.now());
            let due = pending && self.wires.now() >= self.line.due_at();
            if self.commits < ordered || (paused && due) {
                if pending {
                    self.commit(false).await?;
                }
                self.commits = ordered;
                continue;
            }
            let held = self.awaited.is_some() || !self.wires.is_permitted();
            // Once it has to leave, a task that waits does not run again just because it could.
            let steps_on = !leaving || (resume_at.is_none() && self.last_step < SHORT_STEP);
            let rests = self.failures.in_a_row > 0
                && resume_at.is_some_and(|at| self.wires.until(at) >= REST);
            if rests && !self.resting {
                self.rest(true).await;
                continue;
            }
            if !paused && !held && steps_on {
                if self.resting {
                    self.rest(false).await;
                }
                if leaving && self.last_step < BREATHER {
                    let slot = self.wires.slots.take(&self.spec.name);
                    if timeout(BREATHER, slot).await.is_ok() {
                        return Ok(Next::Stop);
                    }
                    if self.must_stop() {
                        return Ok(Next::Stop);
                    }
                }
                return Ok(Next::Step);
            }
            let timer = match resume_at {
                Some(at) if paused => Some(if pending { at.min(self.line.due_at()) } else { at }),
                _ => None,
            };
            let wait = timer.map(|at| self.wires.until(at));
            tokio::select! {
                biased;
                () = changed(&mut self.wires.orders) => {}
                () = changed(&mut self.wires.permit), if held => {}
                () = self.wires.slots.take(&self.spec.name), if leaving => return Ok(Next::Stop),
                () = sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }

    /// Says that the task waits outside of any step, or no longer does.
    async fn rest(&mut self, resting: bool) {
        self.resting = resting;
        let (name, epoch) = (self.spec.name.clone(), self.line.lease().epoch);
        Box::pin(self.wires.send(Event::Resting { name, epoch, resting })).await;
    }

    /// One attempt at a step, under the permit and the order to stop.
    async fn attempt(&mut self) -> Attempt {
        let instance = match &mut self.instance {
            Some(instance) => instance,
            none => {
                let kept = self.line.kept();
                let state = kept.map(|(header, state)| (header.state_version, state));
                let kind = self.kind.as_ref();
                match erased::open(kind, &self.spec.args, state, self.writing.clone()) {
                    Ok(Ok(instance)) => none.insert(instance),
                    Ok(Err(Unreadable(why))) => return Attempt::Unreadable(why),
                    Err(error) => return Attempt::Failed(error),
                }
            }
        };
        self.cx.begin(Turn {
            lease: self.line.lease().clone(),
            seq: self.line.seq(),
            attempt: self.failures.in_a_row + 1,
        });
        let started = self.wires.now();
        let mut step = pin!(guarded(instance.as_mut(), &mut self.cx));
        let result = loop {
            let (halt, ordered) = obey(&mut self.wires, &mut self.line, &mut self.awaited);
            let cut = match halt {
                Some(Halt::By(time)) => Some(self.wires.until(time)),
                _ => None,
            };
            // A long step must not keep the state before it from being committed.
            let uncommitted = self.line.is_uncommitted();
            let permitted = self.wires.is_permitted();
            let wait = if self.commits < ordered {
                Duration::ZERO
            } else {
                self.wires.until(self.line.due_at())
            };
            let warn =
                (!self.warned).then(|| self.wires.until(started + self.manners.drain_budget));
            tokio::select! {
                biased;
                result = &mut step => break result,
                () = changed(&mut self.wires.orders) => {}
                () = sleep(cut.unwrap_or_default()), if cut.is_some() => return Attempt::Cut,
                () = changed(&mut self.wires.permit), if uncommitted && !permitted => {}
                room = room(&self.wires.events, wait), if uncommitted && permitted => {
                    // The permit may have lapsed while there was no room.
                    if self.wires.is_permitted()
                        && let Some(event) =
                            committed(&mut self.line, &self.meters, self.wires.now(), false)
                    {
                        room.send(event);
                    }
                }
                () = sleep(warn.unwrap_or_default()), if warn.is_some() => {
                    self.warned = true;
                    tracing::warn!(
                        target: "handover::task",
                        budget = ?self.manners.drain_budget,
                        "a step takes longer than the drain budget: a drain would drop it; \
                         make steps shorter",
                    );
                }
            }
        };
        self.last_step = self.wires.now().since(started);
        self.meters.step.record(self.last_step);
        match result {
            Ok(step) => Attempt::Stepped(step),
            Err(error) => Attempt::Failed(error),
        }
    }

    /// A step has gone well, and others may follow.
    async fn settle(&mut self) -> Result<()> {
        self.line.advance();
        let forced = self.cx.takes_force();
        if forced || self.wires.now() >= self.line.due_at() {
            self.commit(forced).await?;
            self.failures.careful &= self.failures.in_a_row > 0;
        } else if self.line.is_small() || self.failures.careful {
            self.keep()?;
        }
        if self.line.seq() > self.failures.at {
            self.failures.in_a_row = 0;
        }
        Ok(())
    }

    /// Encodes the newest state.
    fn keep(&mut self) -> Result<()> {
        if !self.line.is_ahead() {
            return Ok(());
        }
        if let Some(instance) = &mut self.instance {
            let state = catch_unwind(AssertUnwindSafe(|| instance.encode()))
                .unwrap_or_else(|panic| Err(Error::panicked("encoding", &*panic)))?;
            self.line.keep(state, self.cx.reported(), self.wires.clock.wall_ms());
        }
        Ok(())
    }

    /// Sends the newest state out, once permitted. If the task is told to stop before that, what it
    /// leaves behind carries the state instead.
    async fn commit(&mut self, forced: bool) -> Result<()> {
        self.keep()?;
        while self.permitted().await {
            // Room comes first: what waits for it would be part of every task's future.
            let room = room(&self.wires.events, Duration::ZERO).await;
            if !self.wires.is_permitted() {
                continue;
            }
            let event = committed(&mut self.line, &self.meters, self.wires.now(), forced);
            if let Some(event) = event {
                room.send(event);
                if forced {
                    self.awaited = self.line.committed();
                }
            }
            break;
        }
        Ok(())
    }

    /// Waits for the permit; false if the task is to stop instead.
    async fn permitted(&mut self) -> bool {
        loop {
            if self.must_stop() {
                return false;
            }
            if self.wires.is_permitted() {
                return true;
            }
            tokio::select! {
                biased;
                () = changed(&mut self.wires.orders) => {}
                () = changed(&mut self.wires.permit) => {}
            }
        }
    }

    /// Discards what the attempt did; the delay before the next, or why there is none.
    fn failed(&mut self, error: &Error) -> Result<Duration, String> {
        discard(self.instance.take());
        self.failures.at = self.failures.at.max(self.line.seq());
        self.failures.in_a_row += 1;
        self.failures.careful = true;
        self.line.fall_back();
        let kept = self.line.kept();
        self.cx.report(kept.and_then(|(header, _)| header.progress.clone()));
        let attempts = self.failures.in_a_row;
        let delay = self.failures.retry.delay(attempts, rand::random());
        match delay.filter(|_| !error.is_fatal()) {
            Some(delay) => {
                tracing::warn!(
                    target: "handover::task", %error, attempts, ?delay, "an attempt failed"
                );
                Ok(delay)
            }
            None => {
                tracing::error!(target: "handover::task", %error, attempts, "the task does not go on");
                Err(if error.is_fatal() {
                    error.to_string()
                } else {
                    format!("gave up after attempt {attempts}: {error}")
                })
            }
        }
    }

    /// The task has ended by itself.
    async fn ended(mut self: Box<Self>, outcome: Outcome) -> Event {
        self.joined().await;
        self.permitted().await;
        self.obey();
        let outcome = match outcome {
            Outcome::Failed(text) => Outcome::Failed(limits::clipped(text, Claim::MAX_NOTE)),
            done => done,
        };
        Event::Ended { name: self.spec.name, epoch: self.line.lease().epoch, outcome }
    }

    /// This build cannot go on with the task. What it leaves behind is its last kept state.
    async fn stuck(mut self: Box<Self>, why: Stuck) -> Event {
        self.joined().await;
        self.permitted().await;
        self.obey();
        let why = match why {
            Stuck::Unreadable(why) => Stuck::Unreadable(limits::clipped(why, Claim::MAX_NOTE)),
            Stuck::Unkeepable(why) => Stuck::Unkeepable(limits::clipped(why, Claim::MAX_NOTE)),
        };
        let (name, epoch) = (self.spec.name, self.line.lease().epoch);
        Event::Stuck { name, epoch, sealed: self.line.into_sealed(), why }
    }

    /// The task was told to stop: returns when nothing of it runs any more (Rule 15). What it seals
    /// is its newest state, or if a step was cut the one kept before.
    async fn stop(mut self: Box<Self>, cut: bool) -> Event {
        let mut dropped = cut;
        if !cut {
            match self.keep() {
                Ok(()) => self.hand_over().await,
                Err(error) if error.is_stuck() => {
                    return self.stuck(Stuck::Unkeepable(error.to_string())).await;
                }
                Err(error) if error.is_fatal() => {
                    return self.ended(Outcome::Failed(error.to_string())).await;
                }
                Err(error) => {
                    tracing::warn!(
                        target: "handover::task", %error, "the newest state could not be kept"
                    );
                    dropped = true;
                }
            }
        }
        self.joined().await;
        self.obey();
        Event::Stopped {
            name: self.spec.name,
            epoch: self.line.lease().epoch,
            sealed: self.line.into_sealed(),
            dropped,
        }
    }

    /// Drops the user's code and waits for its closures; says so if they do not return (Rule 15).
    async fn joined(&mut self) {
        discard(self.instance.take());
        self.cx.abandon();
        if timeout(self.manners.closure_grace, self.cx.join()).await.is_err() {
            tracing::error!(
                target: "handover::task",
                "the task cannot be stopped: a closure does not return",
            );
            let unstoppable =
                Event::Unstoppable { name: self.spec.name.clone(), epoch: self.line.lease().epoch };
            Box::pin(self.wires.send(unstoppable)).await;
            self.cx.join().await;
        }
    }

    /// Lets a run whose checkpoint is pending return.
    async fn hand_over(&mut self) {
        if let Some(instance) = &mut self.instance {
            let returned = AssertUnwindSafe(instance.hand_over()).catch_unwind();
            if let Ok(Err(_)) | Err(_) = timeout(self.manners.closure_grace, returned).await {
                tracing::warn!(target: "handover::task", "the run did not return when it moved");
            }
        }
    }

    fn must_stop(&mut self) -> bool {
        matches!(self.obey().0, Some(Halt::By(_)))
    }

    fn obey(&mut self) -> (Option<Halt>, u64) {
        obey(&mut self.wires, &mut self.line, &mut self.awaited)
    }
}

/// Reads the orders. A new lease holds at once for what is committed; a step sees it when it begins.
fn obey(wires: &mut Wires, line: &mut Line, awaited: &mut Option<Position>) -> (Option<Halt>, u64) {
    let orders = wires.orders.borrow_and_update();
    if orders.lease.epoch > line.lease().epoch {
        line.reepoch(&orders.lease);
        Span::current().record("epoch", orders.lease.epoch.0);
    }
    if *awaited <= orders.acknowledged {
        *awaited = None;
    }
    (orders.halt, orders.commits)
}

/// Runs a step to its end. Nothing that a failed attempt began may run beside the next one.
async fn guarded(instance: &mut dyn Instance, cx: &mut Cx) -> Result<Step<Bytes>> {
    let step = AssertUnwindSafe(Contained(Some(instance.step(cx)))).catch_unwind().await;
    let result = step.unwrap_or_else(|panic| Err(Error::panicked("a step", &*panic)));
    if result.is_err() {
        cx.abandon();
        cx.join().await;
    }
    result
}

/// A user's future, which may be dropped before its end: when a step is cut.
struct Contained<'a, T>(Option<BoxFuture<'a, T>>);

impl<T> Future for Contained<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.0.as_mut().map_or(Poll::Pending, |future| future.as_mut().poll(cx))
    }
}

impl<T> Drop for Contained<'_, T> {
    fn drop(&mut self) {
        discard(self.0.take());
    }
}

/// Drops what is the user's. A panic in that says nothing of the work that was done, nor of what is kept of it.
fn discard<T>(users: T) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(users))) {
        let error = Error::panicked("dropping a task's code", &*panic);
        tracing::warn!(target: "handover::task", %error, "the task goes on without it");
    }
}

/// Waits, then for room among the events.
async fn room(events: &mpsc::Sender<Event>, wait: Duration) -> mpsc::Permit<'_, Event> {
    // A timer that is due already still waits for the next tick of the wheel.
    if !wait.is_zero() {
        sleep(wait).await;
    }
    match events.reserve().await {
        Ok(room) => room,
        Err(_) => std::future::pending().await,
    }
}

/// The event that commits the kept state.
fn committed(line: &mut Line, meters: &Meters, now: Time, forced: bool) -> Option<Event> {
    let (header, state, age) = line.commit(now)?;
    if let Some(age) = age {
        meters.age.record(age);
    }
    Some(Event::Committed { header, state, forced })
}
