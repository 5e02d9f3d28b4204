//! Names: who runs what, as far as this node knows. Lookups are answered from memory and never wait.

mod entry;
mod watch;

pub use entry::{Entry, TaskState};
pub use watch::{TaskEvent, Watch};

use std::collections::hash_map::RandomState;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use tokio::sync::broadcast;

use crate::core::claim::Claim;
use crate::core::ids::Name;
use watch::Change;

/// Fixed, so that a replayed run visits the shards in the same order.
const SHARDS: usize = 16;

/// The map behind `whereis`, written by the control loop alone.
#[derive(Debug)]
pub(crate) struct Registry {
    entries: DashMap<Name, Entry, RandomState>,
    /// None once the node has closed, which ends the watchers' streams.
    changes: Mutex<Option<broadcast::Sender<Change>>>,
}

impl Registry {
    /// With room for `backlog` changes that a watcher has not read yet.
    pub(crate) fn new(backlog: usize) -> Self {
        Self {
            entries: DashMap::with_capacity_and_hasher_and_shard_amount(
                0,
                RandomState::new(),
                SHARDS,
            ),
            changes: Mutex::new(Some(broadcast::channel(backlog.max(1)).0)),
        }
    }

    /// What is known of a name.
    pub(crate) fn get(&self, name: &Name) -> Option<Entry> {
        self.entries.get(name).map(|entry| entry.clone())
    }

    /// Everything under a prefix, in the order of names.
    pub(crate) fn list(&self, prefix: &str) -> Vec<Entry> {
        let mut found: Vec<Entry> = self
            .entries
            .iter()
            .filter(|entry| entry.name.as_str().starts_with(prefix))
            .map(|entry| entry.clone())
            .collect();
        found.sort_unstable_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        found
    }

    /// The claim that owns a name has changed; `revision` is its node's, where known.
    pub(crate) fn set(&self, name: &Name, claim: Option<&Claim>, revision: Option<String>) {
        let old = self.get(name);
        let new = claim.map(|claim| Entry::of(claim, revision, old.as_ref()));
        if old == new {
            return;
        }
        let event = watch::describe(old.as_ref(), new.as_ref());
        match new {
            Some(entry) => drop(self.entries.insert(name.clone(), entry)),
            None => drop(self.entries.remove(name)),
        }
        self.tell(Change { name: name.clone(), event });
    }

    /// Something was found on this node's disk that nobody has been heard of yet.
    pub(crate) fn found(&self, entry: Entry) {
        let name = entry.name.clone();
        self.entries.insert(name.clone(), entry);
        self.tell(Change { name, event: None });
    }

    /// Tells watchers of something that is no change of ownership.
    pub(crate) fn report(&self, name: &Name, event: TaskEvent) {
        self.tell(Change { name: name.clone(), event: Some(event) });
    }

    /// What becomes of names from now on; ended at once if the node has closed.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Change> {
        match &*self.changes() {
            Some(changes) => changes.subscribe(),
            None => broadcast::channel(1).1,
        }
    }

    /// Ends all watches.
    pub(crate) fn close(&self) {
        self.changes().take();
    }

    fn tell(&self, change: Change) {
        if let Some(changes) = &*self.changes() {
            // Nobody watches: nothing to tell.
            let _ = changes.send(change);
        }
    }

    fn changes(&self) -> MutexGuard<'_, Option<broadcast::Sender<Change>>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
