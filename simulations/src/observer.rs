//! The neutral observer: what the tasks' own code saw, and nothing that a node says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fabric::{Fabric, Nanos};
use crate::trace::Fingerprint;

/// One life of one process: the host, and how often it had been started before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Life {
    pub(crate) host: String,
    pub(crate) number: u32,
}

impl std::fmt::Display for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.number {
            0 => f.write_str(&self.host),
            number => write!(f, "{}/{number}", self.host),
        }
    }
}

/// A task that one process ran under one epoch.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) task: String,
    pub(crate) epoch: u64,
    pub(crate) life: Life,
    /// When its first step began.
    pub(crate) start: Nanos,
    /// When its last step ended, or was dropped.
    pub(crate) stop: Nanos,
}

/// Everything observed.
#[derive(Debug, Default)]
pub(crate) struct Record {
    spans: BTreeMap<(String, Life, u64), (Nanos, Nanos)>,
    /// Steps under way, and how many of a task at once.
    open: BTreeMap<(String, Life, u64), u32>,
    dead: BTreeSet<Life>,
    /// How often each step of each task was completed.
    completed: BTreeMap<String, BTreeMap<u64, u32>>,
    /// Where a task's last step was completed.
    pub(crate) done: BTreeMap<String, Vec<(Nanos, Life)>>,
    /// What must not be, seen by a step itself.
    pub(crate) impossible: Vec<String>,
}

impl Record {
    /// As if it had been observed.
    #[cfg(test)]
    pub(crate) fn add(&mut self, span: &Span) {
        let key = (span.task.clone(), span.life.clone(), span.epoch);
        self.spans.insert(key, (span.start, span.stop));
    }

    /// Everything that ran, by start.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = self
            .spans
            .iter()
            .map(|((task, life, epoch), &(start, stop))| Span {
                task: task.clone(),
                epoch: *epoch,
                life: life.clone(),
                start,
                stop,
            })
            .collect();
        spans.sort_by_key(|span| span.start);
        spans
    }

    /// How many completed steps had been completed before.
    pub(crate) fn repeated(&self) -> u64 {
        self.completed
            .values()
            .flat_map(BTreeMap::values)
            .map(|times| u64::from(times.saturating_sub(1)))
            .sum()
    }

    /// How many steps were completed in all.
    pub(crate) fn completed(&self) -> u64 {
        self.completed.values().flat_map(BTreeMap::values).map(|times| u64::from(*times)).sum()
    }
}

/// Takes down what runs where.
pub(crate) struct Observer {
    record: Mutex<Record>,
    fabric: Arc<Fabric>,
    fingerprint: Arc<Fingerprint>,
}

impl Observer {
    pub(crate) fn new(fabric: Arc<Fabric>, fingerprint: Arc<Fingerprint>) -> Self {
        Self { record: Mutex::default(), fabric, fingerprint }
    }

    /// A step begins; it ends when the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, task: &str, life: &Life, epoch: u64) -> Guard {
        let now = self.note("enter", task, life, epoch);
        let key = (task.to_owned(), life.clone(), epoch);
        let mut record = self.lock();
        record.spans.entry(key.clone()).or_insert((now, now));
        *record.open.entry(key.clone()).or_insert(0) += 1;
        let at_once =
            record.open.keys().filter(|(other, host, _)| *other == key.0 && *host == key.1).count();
        if at_once > 1 || record.open.get(&key).is_some_and(|steps| *steps > 1) {
            record.impossible.push(format!("{task} runs twice on {life}"));
        }
        drop(record);
        Guard { observer: self.clone(), key }
    }

    /// A step was carried out to its end, when `before` steps had been.
    pub(crate) fn completed(&self, task: &str, life: &Life, before: u64) {
        self.note("completed", task, life, before);
        let mut record = self.lock();
        let steps = record.completed.entry(task.to_owned()).or_default();
        let skipped = before > 0 && !steps.contains_key(&(before - 1));
        *steps.entry(before).or_insert(0) += 1;
        if skipped {
            record
                .impossible
                .push(format!("{task} on {life} continues after step {before}, which never was"));
        }
    }

    /// A task was carried out to its end.
    pub(crate) fn done(&self, task: &str, life: &Life) {
        let now = self.note("done", task, life, 0);
        self.lock().done.entry(task.to_owned()).or_default().push((now, life.clone()));
    }

    /// A process has ended, and with it all that it ran.
    pub(crate) fn died(&self, life: &Life) {
        let now = self.note("died", "", life, 0);
        let mut record = self.lock();
        let record = &mut *record;
        record.dead.insert(life.clone());
        record.open.retain(|key, _| {
            let of_it = key.1 == *life;
            if of_it && let Some(span) = record.spans.get_mut(key) {
                span.1 = now;
            }
            !of_it
        });
    }

    /// All that was observed. Nothing is afterwards.
    pub(crate) fn take(&self) -> Record {
        std::mem::take(&mut *self.lock())
    }

    fn leave(&self, key: &(String, Life, u64)) {
        // A killed process's guards are dropped when no host's time can be asked any more.
        if self.lock().dead.contains(&key.1) || !turmoil::in_simulation() {
            return;
        }
        let now = self.note("leave", &key.0, &key.1, key.2);
        let mut record = self.lock();
        if let Some(steps) = record.open.get_mut(key) {
            *steps -= 1;
            if *steps == 0 {
                record.open.remove(key);
            }
        }
        if let Some(span) = record.spans.get_mut(key) {
            span.1 = now;
        }
    }

    fn note(&self, what: &str, task: &str, life: &Life, number: u64) -> Nanos {
        let now = self.fabric.now();
        let host = life.to_string();
        self.fingerprint.add(what, now, &[task.as_bytes(), host.as_bytes(), &number.to_be_bytes()]);
        tracing::debug!(target: "simulations::observer", task, host, number, "{what}");
        now
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A step under way.
pub(crate) struct Guard {
    observer: Arc<Observer>,
    key: (String, Life, u64),
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.observer.leave(&self.key);
    }
}
