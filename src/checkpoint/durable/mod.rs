//! The store of a node with a data directory: one redb file.

#[cfg(test)]
mod failing_disk;
mod load;
mod medium;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable};

use self::load::{Fault, Loaded, guarded};
use self::medium::{FileMedium, Medium};
use self::rows::{COMMITS, Record, Table};
use super::catalog::{Catalog, Change, CheckpointKey, Run, RunKey, key};
use super::{CheckpointStore, Damage, StoreError, Write, envelope};
use crate::core::branch::{Header, Position};
use crate::core::ids::{Name, RunId, SessionId};
use crate::core::stored::StoredRun;

/// Why a checkpoint file could not be opened. Damage is no reason: see [`Damage::File`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum OpenError {
    /// Somebody has it open.
    #[error(
        "the checkpoint file is in use: stop the other process, or give each node its own data directory"
    )]
    InUse,
    /// It is of another redb file format.
    #[error(
        "the checkpoint file has file format {0}, which this build cannot read: run the build that wrote it, or move the file away"
    )]
    Format(u8),
    /// The system failed.
    #[error("the checkpoint file cannot be opened: {message}; check its permissions and its disk")]
    Io {
        /// What the system says.
        message: String,
    },
}

impl From<redb::Error> for OpenError {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            redb::Error::UpgradeRequired(version) => Self::Format(version),
            error => Self::Io { message: error.to_string() },
        }
    }
}

/// Keeps everything on disk. What it acknowledges survives the process and the machine.
///
/// Opening reads every row once. A failed or uncertain write is not acknowledged; the file is
/// reopened at the next use, so that the store works again when the disk does.
#[derive(Debug)]
pub(crate) struct DurableStore {
    medium: Box<dyn Medium>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// None after a failure, until it is reopened.
    database: Option<Database>,
    catalog: Catalog,
    /// As acknowledged.
    commits: u64,
    /// What broke when it was used last, unless that was a plain I/O error.
    suspicion: Option<String>,
    damage: Vec<Damage>,
}

/// A change of one row, or of all checkpoints of a run.
#[derive(Debug)]
enum Op {
    Insert(Table, Vec<u8>, Vec<u8>),
    Remove(Table, Vec<u8>),
    RemoveCheckpoints(Vec<u8>),
}

impl DurableStore {
    /// Opens the file, or makes it. A file that is damaged beyond use is moved aside, never
    /// deleted; see [`CheckpointStore::take_damage`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        Self::on(Box::new(FileMedium::new(path)))
    }

    fn on(medium: Box<dyn Medium>) -> Result<Self, OpenError> {
        let loaded = load::load(medium.as_ref(), None)?;
        Ok(Self {
            medium,
            inner: Mutex::new(Inner {
                database: Some(loaded.database),
                catalog: loaded.catalog,
                commits: loaded.commits,
                suspicion: None,
                damage: loaded.damage,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Opens the file again after a failure. The catalog is as acknowledged; if the file is not,
    /// because a commit that was reported as failed has happened, it is read anew.
    fn reopen(&mut self, medium: &dyn Medium) -> Result<(), StoreError> {
        if self.database.is_some() {
            return Ok(());
        }
        if self.suspicion.is_none()
            && let Ok(Some(database)) = guarded(|| Ok(medium.open().map_err(redb::Error::from)?))
        {
            if load::commits(&database).is_ok_and(|commits| commits == self.commits) {
                self.database = Some(database);
                return Ok(());
            }
            load::close(database);
        }
        let Loaded { database, catalog, commits, damage } =
            load::load(medium, self.suspicion.clone()).map_err(|error| StoreError::Io {
                kind: io::ErrorKind::Other,
                message: error.to_string(),
            })?;
        self.database = Some(database);
        self.catalog = catalog;
        self.commits = commits;
        self.suspicion = None;
        self.damage.extend(damage);
        Ok(())
    }

    /// Uses the database; on any failure it is closed, since redb takes nothing more then.
    fn with<T>(
        &mut self,
        medium: &dyn Medium,
        use_it: impl FnOnce(&Database) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        self.reopen(medium)?;
        let Some(database) = &self.database else {
            return Err(StoreError::Stopped);
        };
        guarded(|| use_it(database)).map_err(|fault| {
            if let Some(database) = self.database.take() {
                load::close(database);
            }
            match fault {
                Fault::Failed(redb::Error::Io(error)) => error.into(),
                Fault::Failed(error) => {
                    StoreError::Io { kind: io::ErrorKind::Other, message: error.to_string() }
                }
                Fault::Broken(what) => {
                    self.suspicion = Some(what.clone());
                    StoreError::Io { kind: io::ErrorKind::InvalidData, message: what }
                }
            }
        })
    }

    /// Takes a write into the catalog; says what is to be done to the rows.
    fn prepare(&mut self, write: &Write) -> Result<Vec<Op>, StoreError> {
        let run_key = write.key();
        let row_key = rows::run_key(&run_key);
        // Whatever can be refused is refused before the catalog changes.
        let value = match write {
            Write::Put { header, state, .. } => envelope::encode(header, state)?,
            Write::End { output: Some(output), .. } => rows::seal_output(&run_key, output)?,
            _ => Vec::new(),
        };
        let before = self.catalog.get(&run_key).cloned();
        let plan = self.catalog.plan(write)?;
        let mut ops = Vec::new();
        if plan.everything {
            ops.push(Op::RemoveCheckpoints(row_key.clone()));
        }
        ops.extend(
            plan.remove
                .iter()
                .map(|gone| Op::Remove(Table::Checkpoints, rows::checkpoint_key(&run_key, gone))),
        );
        match plan.record {
            Change::Keep => {}
            Change::Write => match self.record(&run_key) {
                Ok(record) => ops.push(Op::Insert(Table::Runs, row_key.clone(), record)),
                Err(error) => {
                    self.catalog.restore(run_key, before);
                    return Err(error);
                }
            },
            Change::Remove => ops.push(Op::Remove(Table::Runs, row_key.clone())),
        }
        match (write, plan.output) {
            (Write::Put { header, .. }, _) if plan.insert => ops.push(Op::Insert(
                Table::Checkpoints,
                rows::checkpoint_key(&run_key, &key(header)),
                value,
            )),
            (_, Change::Write) => ops.push(Op::Insert(Table::Outputs, row_key, value)),
            (_, Change::Remove) => ops.push(Op::Remove(Table::Outputs, row_key)),
            (_, Change::Keep) => {}
        }
        Ok(ops)
    }

    fn record(&self, run_key: &RunKey) -> Result<Vec<u8>, StoreError> {
        let run = self.catalog.get(run_key).ok_or(StoreError::Invalid("the run is unknown"))?;
        let record =
            Record { spec: run.spec.clone(), end: run.end.as_ref().map(|(end, _)| end.clone()) };
        Ok(record.seal()?)
    }

    /// Forgets a checkpoint that cannot be used, and reports it.
    fn lose(&mut self, run_key: &RunKey, lost: &CheckpointKey, what: String) -> Damage {
        let run = self.catalog.get_mut(run_key);
        let fell_back_to = run.and_then(|run| run.lose(lost).or_else(|| run.newest().cloned()));
        let damage = Damage::Checkpoint {
            name: run_key.0.clone(),
            run: run_key.1,
            position: lost.0,
            what,
            fell_back_to: fell_back_to.map(Box::new),
        };
        self.damage.push(damage.clone());
        damage
    }

    fn read(
        &mut self,
        medium: &dyn Medium,
        table: Table,
        row_key: &[u8],
    ) -> Result<Option<Bytes>, StoreError> {
        self.with(medium, |database| {
            let table = database.begin_read()?.open_table(table.definition())?;
            let row = table.get(row_key)?;
            Ok(row.map(|row| Bytes::copy_from_slice(row.value())))
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(database) = self.database.take() {
            load::close(database);
        }
    }
}

fn commit(database: &Database, ops: &[Op], number: u64) -> Result<(), Fault> {
    let mut transaction = database.begin_write()?;
    // Reopening after a kill is then quick, and a flipped bit in one row is not taken for the
    // ruin of all.
    transaction.set_quick_repair(true);
    {
        let [runs, outputs, checkpoints] = rows::TABLES;
        let mut tables = [
            transaction.open_table(runs)?,
            transaction.open_table(outputs)?,
            transaction.open_table(checkpoints)?,
        ];
        for op in ops {
            match op {
                Op::Insert(table, key, value) => {
                    tables[*table as usize].insert(key.as_slice(), value.as_slice())?;
                }
                Op::Remove(table, key) => {
                    tables[*table as usize].remove(key.as_slice())?;
                }
                Op::RemoveCheckpoints(prefix) => {
                    let table = &mut tables[Table::Checkpoints as usize];
                    let mut doomed = Vec::new();
                    for row in table.range(prefix.as_slice()..)? {
                        let key = row?.0.value().to_vec();
                        if !key.starts_with(prefix) {
                            break;
                        }
                        doomed.push(key);
                    }
                    for key in doomed {
                        table.remove(key.as_slice())?;
                    }
                }
            }
        }
        transaction.open_table(COMMITS)?.insert((), number)?;
    }
    transaction.commit()?;
    Ok(())
}

impl CheckpointStore for DurableStore {
    fn apply(&self, batch: Vec<Write>) -> Vec<Result<(), StoreError>> {
        let mut inner = self.lock();
        let medium = self.medium.as_ref();
        // Before planning: what reopening finds may differ from the catalog.
        if let Err(error) = inner.reopen(medium) {
            return batch.iter().map(|_| Err(error.clone())).collect();
        }
        let mut undo: BTreeMap<RunKey, Option<Run>> = BTreeMap::new();
        let mut ops = Vec::new();
        let mut results: Vec<Result<(), StoreError>> = batch
            .into_iter()
            .map(|write| {
                let run_key = write.key();
                let before = inner.catalog.get(&run_key).cloned();
                ops.extend(inner.prepare(&write)?);
                undo.entry(run_key).or_insert(before);
                Ok(())
            })
            .collect();
        if ops.is_empty() {
            return results;
        }
        // The count itself may be damaged.
        let number = inner.commits.wrapping_add(1);
        match inner.with(medium, |database| commit(database, &ops, number)) {
            Ok(()) => inner.commits = number,
            Err(error) => {
                for (run_key, run) in undo {
                    inner.catalog.restore(run_key, run);
                }
                for result in results.iter_mut().filter(|result| result.is_ok()) {
                    *result = Err(error.clone());
                }
            }
        }
        results
    }

    fn get(
        &self,
        name: &Name,
        run: RunId,
        position: Position,
        writer: &SessionId,
    ) -> Result<Option<(Header, Bytes)>, StoreError> {
        let mut inner = self.lock();
        inner.reopen(self.medium.as_ref())?;
        let run_key = (name.clone(), run);
        let known = inner.catalog.get(&run_key);
        let Some(expected) = known.and_then(|run| run.find(position, writer)).cloned() else {
            return Ok(None);
        };
        let checkpoint_key = key(&expected);
        let row_key = rows::checkpoint_key(&run_key, &checkpoint_key);
        let row = inner.read(self.medium.as_ref(), Table::Checkpoints, &row_key)?;
        let what = match row.map(|row| envelope::decode(&row)) {
            Some(Ok((header, state))) if header == expected => return Ok(Some((header, state))),
            Some(Ok(_)) => "another checkpoint stands in its place".into(),
            Some(Err(error)) => error.to_string(),
            None => "it is missing".into(),
        };
        let damage = inner.lose(&run_key, &checkpoint_key, what);
        Err(StoreError::Corrupt(Box::new(damage)))
    }

    fn get_output(&self, name: &Name, run: RunId) -> Result<Option<Bytes>, StoreError> {
        let mut inner = self.lock();
        inner.reopen(self.medium.as_ref())?;
        let run_key = (name.clone(), run);
        let known = inner.catalog.get(&run_key);
        if !known.is_some_and(|run| matches!(run.end, Some((_, true)))) {
            return Ok(None);
        }
        let row_key = rows::run_key(&run_key);
        let row = inner.read(self.medium.as_ref(), Table::Outputs, &row_key)?;
        let what = match row.as_deref().map(rows::open_output) {
            Some(Ok(output)) => return Ok(Some(Bytes::copy_from_slice(output))),
            Some(Err(error)) => error.to_string(),
            None => "it is missing".into(),
        };
        if let Some((_, output)) = inner.catalog.get_mut(&run_key).and_then(|run| run.end.as_mut())
        {
            *output = false;
        }
        let damage = Damage::Output { name: name.clone(), run, what };
        inner.damage.push(damage.clone());
        Err(StoreError::Corrupt(Box::new(damage)))
    }

    fn runs(&self) -> Result<Vec<StoredRun>, StoreError> {
        let mut inner = self.lock();
        inner.reopen(self.medium.as_ref())?;
        Ok(inner.catalog.stored())
    }

    fn take_damage(&self) -> Vec<Damage> {
        std::mem::take(&mut self.lock().damage)
    }
}
