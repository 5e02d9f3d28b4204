//! The store of a node without a data directory.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use litemap::LiteMap;

use super::catalog::{Catalog, Change, CheckpointKey, Plan, RunKey, key};
use super::{CheckpointStore, Damage, StoreError, Write, envelope};
use crate::core::branch::{Header, Position};
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::stored::StoredRun;

/// What a header, a spec and a claim are taken to weigh, so that many small ones are bounded too.
const OVERHEAD: u64 = 1024;

/// Keeps everything in memory, up to a bound in bytes. What it acknowledges is lost with the
/// process; a task's replicas are what makes it outlive that.
#[derive(Debug)]
pub(crate) struct MemoryStore {
    limit: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    catalog: Catalog,
    states: BTreeMap<RunKey, LiteMap<CheckpointKey, Bytes>>,
    outputs: BTreeMap<RunKey, Bytes>,
    used: u64,
}

impl MemoryStore {
    /// The default bound: 1 GiB.
    pub(crate) const DEFAULT_LIMIT: u64 = 1 << 30;

    /// Holds up to `limit` bytes of states, outputs and arguments, with 1 KiB for what goes with
    /// each.
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(Self::DEFAULT_LIMIT)
    }
}

impl Inner {
    fn apply(&mut self, write: Write, limit: u64) -> Result<(), StoreError> {
        if let Write::Put { header, state, .. } = &write {
            envelope::check(header, state)?;
        }
        let run_key = write.key();
        let before = self.catalog.get(&run_key).cloned();
        let weighed = self.weight(&run_key);
        let plan = self.catalog.plan(&write)?;
        if plan.is_empty() {
            return Ok(());
        }
        let (states, output) =
            (self.states.get(&run_key).cloned(), self.outputs.get(&run_key).cloned());
        self.carry_out(&run_key, plan, write);
        let used = self.used - weighed + self.weight(&run_key);
        // What frees room is never refused for want of it.
        if used > limit && used > self.used {
            self.catalog.restore(run_key.clone(), before);
            restore(&mut self.states, run_key.clone(), states);
            restore(&mut self.outputs, run_key, output);
            return Err(StoreError::Full(format!("{limit} bytes of memory")));
        }
        self.used = used;
        Ok(())
    }

    fn carry_out(&mut self, run_key: &RunKey, plan: Plan, write: Write) {
        let states = self.states.entry(run_key.clone()).or_default();
        if plan.everything {
            states.clear();
        }
        for gone in &plan.remove {
            states.remove(gone);
        }
        let output = match write {
            Write::Put { header, state, .. } => {
                states.insert(key(&header), state);
                None
            }
            Write::End { output, .. } => output,
            Write::DropOutput { .. } | Write::Discard { .. } => None,
        };
        if states.is_empty() {
            self.states.remove(run_key);
        }
        if plan.output != Change::Keep {
            restore(&mut self.outputs, run_key.clone(), output);
        }
    }

    fn weight(&self, run_key: &RunKey) -> u64 {
        let Some(run) = self.catalog.get(run_key) else {
            return 0;
        };
        let states = self.states.get(run_key).into_iter().flatten();
        let output = self.outputs.get(run_key).map_or(0, Bytes::len);
        OVERHEAD
            + run.spec.args.len() as u64
            + output as u64
            + states.map(|(_, state)| OVERHEAD + state.len() as u64).sum::<u64>()
    }
}

fn restore<V>(map: &mut BTreeMap<RunKey, V>, key: RunKey, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

impl CheckpointStore for MemoryStore {
    fn apply(&self, batch: Vec<Write>) -> Vec<Result<(), StoreError>> {
        let mut inner = self.lock();
        batch.into_iter().map(|write| inner.apply(write, self.limit)).collect()
    }

    fn get(
        &self,
        name: &Name,
        run: RunId,
        position: Position,
        writer: &SessionId,
    ) -> Result<Option<(Header, Bytes)>, StoreError> {
        let inner = self.lock();
        let run_key = (name.clone(), run);
        let header = inner.catalog.get(&run_key).and_then(|run| run.find(position, writer));
        Ok(header.and_then(|header| {
            let state = inner.states.get(&run_key)?.get(&key(header))?;
            Some((header.clone(), state.clone()))
        }))
    }

    fn get_output(&self, name: &Name, run: RunId) -> Result<Option<Bytes>, StoreError> {
        Ok(self.lock().outputs.get(&(name.clone(), run)).cloned())
    }

    fn runs(&self) -> Result<Vec<StoredRun>, StoreError> {
        Ok(self.lock().catalog.stored())
    }

    fn take_damage(&self) -> Vec<Damage> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::checkpoint::conformance;
    use crate::checkpoint::testing::{end, header, name, put, run, spec, state};
    use crate::core::claim::Phase;

    #[test]
    fn it_does_what_every_store_must() {
        conformance::all(&|| Box::new(MemoryStore::default()));
    }

    #[test]
    fn it_is_bounded_and_frees_what_is_replaced() {
        let store = MemoryStore::new(2 * 50_000);
        for seq in 1..20 {
            store.write(put("one", 1, seq, &state(seq, 40_000))).unwrap();
        }
        store.write(put("two", 1, 1, &state(1, 40_000))).unwrap();
        let before = store.runs().unwrap();
        for too_much in [
            put("three", 1, 1, &state(1, 40_000)),
            put("two", 1, 2, &state(2, 70_000)),
            Write::End {
                end: end("three", 1, Phase::Finished),
                spec: spec("three", 1),
                output: Some(state(1, 40_000)),
            },
        ] {
            assert!(matches!(store.write(too_much), Err(StoreError::Full(_))));
        }
        assert_eq!(store.runs().unwrap(), before, "a refusal changes nothing");
        let kept = header("two", 1, 1, "w", &state(1, 40_000));
        assert_eq!(
            store.get(&name("two"), run(1), kept.position, &kept.writer),
            Ok(Some((kept, state(1, 40_000))))
        );

        store.write(Write::Discard { name: name("one"), run: run(1), headers: vec![] }).unwrap();
        store.write(put("three", 1, 1, &state(1, 40_000))).unwrap();
        let inner = store.lock();
        let weights = ["two", "three"].map(|task| inner.weight(&(name(task), run(1))));
        assert_eq!(inner.used, weights.iter().sum::<u64>());
    }

    #[test]
    fn many_small_runs_are_bounded_too() {
        let store = MemoryStore::new(1 << 20);
        let taken = (0..10_000)
            .take_while(|n| store.write(put(&format!("t{n}"), 1, 1, &state(1, 1))).is_ok())
            .count();
        assert!(taken < 1024, "{taken} runs in 1 MiB");
    }
}
