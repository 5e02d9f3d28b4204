//! The tasks under measurement, which keep a journal of their own.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use handover::{Branch, Cx, Reconciled, Result, Step, Task};

use super::host::Host;

/// After so many steps a collection is complete.
pub(super) const COLLECTED: usize = 1_000;

/// One step, as the code that took it saw it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) node: String,
    /// The step's number in its run, from 1.
    pub(super) number: u64,
    pub(super) begin: Instant,
    pub(super) end: Instant,
}

/// Every step that has ended, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Journal(Arc<Mutex<Vec<Entry>>>);

impl Journal {
    pub(super) fn steps(&self) -> Vec<Entry> {
        self.0.lock().unwrap().clone()
    }

    /// The steps that one node took.
    pub(super) fn by(&self, host: &Host) -> Vec<Entry> {
        self.steps().into_iter().filter(|step| step.node == host.id).collect()
    }

    /// From the last step of one node to the first of another, in seconds.
    pub(super) fn gap(&self, from: &Host, to: &Host) -> f64 {
        let last = self.by(from).last().unwrap().end;
        self.by(to)[0].begin.duration_since(last).as_secs_f64()
    }

    fn note(&self, node: String, number: u64, begin: Instant) {
        self.0.lock().unwrap().push(Entry { node, number, begin, end: Instant::now() });
    }
}

/// Steps of 10 ms, without end.
#[derive(Debug)]
pub(super) struct Tick {
    pub(super) journal: Journal,
    pub(super) node: String,
}

impl Task for Tick {
    const KIND: &'static str = "tick";
    type Args = ();
    type State = u64;
    type Output = ();

    async fn step(&self, _: &mut Cx, (): &(), at: &mut u64) -> Result<Step<()>> {
        let begin = Instant::now();
        tokio::time::sleep(Duration::from_millis(10)).await;
        *at += 1;
        self.journal.note(self.node.clone(), *at, begin);
        Ok(Step::More)
    }
}

/// A step that takes longer than a test.
#[derive(Debug)]
pub(super) struct Long;

impl Task for Long {
    const KIND: &'static str = "long";
    type Args = ();
    type State = ();
    type Output = ();

    async fn step(&self, _: &mut Cx, (): &(), (): &mut ()) -> Result<Step<()>> {
        tokio::time::sleep(Duration::from_secs(600)).await;
        Ok(Step::More)
    }
}

/// Collects who did what; what was done apart is put together.
#[derive(Debug)]
pub(super) struct Collect {
    pub(super) node: String,
}

impl Task for Collect {
    const KIND: &'static str = "collect";
    type Args = ();
    type State = BTreeSet<(String, u64)>;
    type Output = BTreeSet<(String, u64)>;

    async fn step(&self, _: &mut Cx, (): &(), all: &mut Self::State) -> Result<Step<Self::Output>> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let mine = all.iter().filter(|(node, _)| *node == self.node).count() as u64;
        all.insert((self.node.clone(), mine));
        Ok(if all.len() < COLLECTED { Step::More } else { Step::Done(all.clone()) })
    }

    fn reconcile(
        &self,
        (): &(),
        mut mine: Branch<Self::State>,
        theirs: Branch<Self::State>,
    ) -> Result<Reconciled<Self::State>> {
        mine.state.extend(theirs.state);
        Ok(Reconciled::Merged(mine.state))
    }
}

/// Registered on some nodes only.
#[derive(Debug)]
pub(super) struct Rare;

impl Task for Rare {
    const KIND: &'static str = "rare";
    const STATE_VERSION: u32 = 3;
    type Args = ();
    type State = u64;
    type Output = ();

    async fn step(&self, _: &mut Cx, (): &(), at: &mut u64) -> Result<Step<()>> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        *at += 1;
        Ok(Step::More)
    }
}

/// One kind in two builds, of which the second writes a state that the first cannot read.
#[derive(Debug)]
pub(super) struct Grow<const VERSION: u32>;

impl<const VERSION: u32> Task for Grow<VERSION> {
    const KIND: &'static str = "grow";
    const STATE_VERSION: u32 = VERSION;
    const OLDEST_STATE_VERSION: u32 = 1;
    type Args = ();
    type State = u64;
    type Output = ();

    async fn step(&self, cx: &mut Cx, (): &(), at: &mut u64) -> Result<Step<()>> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        *at += 1;
        cx.progress(*at, 0);
        Ok(Step::More)
    }
}
