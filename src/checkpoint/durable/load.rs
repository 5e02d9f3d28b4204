//! Opening: every row is read and checked, and a file that redb cannot make sense of is replaced.
//!
//! redb guards against torn commits; what happens to a page after its commit it does not see. So
//! each row carries its own checksum, and the tree that leads to it is checked by walking it and by
//! finding each row again under its key. A damaged row costs that row. A damaged tree costs the
//! file, out of which all rows are carried over that can still be reached.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata};

use super::OpenError;
use super::medium::Medium;
use super::rows::{self, COMMITS, Record, Row, TABLES, Table};
use crate::checkpoint::catalog::{Catalog, CheckpointKey, Run, RunKey, key};
use crate::checkpoint::{Damage, FrameError};
use crate::core::branch::{Admission, Header};

/// An open database and what is in it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) database: Database,
    pub(super) catalog: Catalog,
    pub(super) commits: u64,
    pub(super) damage: Vec<Damage>,
}

/// Why a database could not be used.
#[derive(Debug)]
pub(super) enum Fault {
    /// Its content makes no sense.
    Broken(String),
    /// It could not be read or written now.
    Failed(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::Corrupted(what) => Self::Broken(what),
            redb::Error::Io(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::Broken(error.to_string())
            }
            error @ (redb::Error::TableDoesNotExist(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. }) => Self::Broken(error.to_string()),
            error => Self::Failed(error),
        }
    }
}

/// Runs something that reads a possibly damaged file: redb asserts some of what it reads.
pub(super) fn guarded<T>(what: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(what))
        .unwrap_or_else(|panic| Err(Fault::Broken(message(panic.as_ref()))))
}

/// Closes a database; redb writes while it does, and asserts what it reads.
pub(super) fn close(database: Database) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    format!("its structure is damaged: {text}")
}

/// Opens the database, makes it if there is none, replaces it if it is broken. `suspicion`: what
/// broke while it was used, although it could be read; it is replaced then.
pub(super) fn load(medium: &dyn Medium, suspicion: Option<String>) -> Result<Loaded, OpenError> {
    let opened = guarded(|| {
        medium.open().map_err(|error| match error {
            DatabaseError::Storage(error) => error.into(),
            error => Fault::Failed(error.into()),
        })
    });
    match opened {
        Ok(Some(database)) if suspicion.is_some() => replace(medium, Some(database), suspicion),
        Ok(Some(database)) => match guarded(|| scan(&database)) {
            Ok(scan) => Ok(scan.into_loaded(database)),
            Err(Fault::Broken(what)) => replace(medium, Some(database), Some(what)),
            Err(Fault::Failed(error)) => {
                close(database);
                Err(error.into())
            }
        },
        Ok(None) => replace(medium, None, None),
        Err(Fault::Broken(what)) => replace(medium, None, Some(what)),
        Err(Fault::Failed(error)) => Err(error.into()),
    }
}

fn replace(
    medium: &dyn Medium,
    mut old: Option<Database>,
    broken: Option<String>,
) -> Result<Loaded, OpenError> {
    let mut saved = 0;
    let replaced = guarded(|| {
        Ok(medium.replace(&mut |new| {
            let carried = carry_over(old.as_ref(), new);
            // Closing writes: not once the new file has taken its place.
            if let Some(old) = old.take() {
                close(old);
            }
            saved = carried?;
            Ok(())
        })?)
    });
    if let Some(old) = old {
        close(old);
    }
    let failed = |fault| match fault {
        Fault::Failed(error) => OpenError::from(error),
        Fault::Broken(what) => {
            OpenError::Io { message: format!("a new checkpoint file cannot be made: {what}") }
        }
    };
    let (database, aside) = replaced.map_err(failed)?;
    let mut loaded = match guarded(|| scan(&database)) {
        Ok(scan) => scan.into_loaded(database),
        Err(fault) => {
            close(database);
            return Err(failed(fault));
        }
    };
    if let Some(what) = broken {
        loaded.damage.insert(0, Damage::File { what, aside, saved });
    }
    Ok(loaded)
}

/// Makes the tables, and copies into them whatever can still be read and believed.
fn carry_over(old: Option<&Database>, new: &Database) -> Result<usize, redb::Error> {
    let transaction = new.begin_write()?;
    let mut saved = 0;
    for table in Table::ALL {
        let mut to = transaction.open_table(table.definition())?;
        let mut failure = None;
        let mut copy = |found: &[u8], value: &[u8]| {
            let key = match Row::open(table, value) {
                Ok(row) => row.key(),
                Err(FrameError::NewerFormat { .. }) => found.to_vec(),
                Err(_) => return true,
            };
            match to.insert(key.as_slice(), value) {
                Ok(before) => saved += usize::from(before.is_none()),
                Err(error) => failure = Some(error),
            }
            failure.is_none()
        };
        if let Some(old) = old {
            // From both ends: what is broken in between ends a walk.
            for backward in [false, true] {
                let _ = guarded(|| {
                    let from = old.begin_read()?.open_table(table.definition())?;
                    let mut rows = from.iter()?;
                    while let Some(row) = match backward {
                        false => rows.next(),
                        true => rows.next_back(),
                    } {
                        let (key, value) = row?;
                        if !copy(key.value(), value.value()) {
                            break;
                        }
                    }
                    Ok(())
                });
            }
        }
        if let Some(error) = failure {
            return Err(error.into());
        }
    }
    transaction.open_table(COMMITS)?.insert((), 0)?;
    transaction.commit()?;
    Ok(saved)
}

/// How many commits the database has seen.
pub(super) fn commits(database: &Database) -> Result<u64, Fault> {
    let table = database.begin_read()?.open_table(COMMITS)?;
    let count = table.get(())?;
    count
        .map(|count| count.value())
        .ok_or_else(|| Fault::Broken("the count of commits is missing".into()))
}

#[derive(Debug, Default)]
struct Scan {
    records: BTreeMap<RunKey, Record>,
    outputs: BTreeSet<Vec<u8>>,
    checkpoints: BTreeMap<RunKey, Vec<Header>>,
    unusable: Vec<(Table, Vec<u8>, FrameError)>,
    commits: u64,
}

fn scan(database: &Database) -> Result<Scan, Fault> {
    let mut scan = Scan { commits: commits(database)?, ..Scan::default() };
    let transaction = database.begin_read()?;
    for (table, definition) in Table::ALL.into_iter().zip(TABLES) {
        let rows = transaction.open_table(definition)?;
        let mut count = 0;
        let mut last: Option<Vec<u8>> = None;
        for row in rows.iter()? {
            let (key, value) = row?;
            let key = key.value().to_vec();
            let found = rows.get(key.as_slice())?.is_some();
            if !found || last.as_ref().is_some_and(|last| *last >= key) {
                return Err(Fault::Broken("rows are out of order".into()));
            }
            match Row::open(table, value.value()) {
                Ok(row) if row.key() != key => {
                    return Err(Fault::Broken("a row stands under a foreign key".into()));
                }
                Ok(Row::Run(record)) => {
                    scan.records.insert(record.key(), *record);
                }
                Ok(Row::Output(key)) => {
                    scan.outputs.insert(key);
                }
                Ok(Row::Checkpoint(header)) => scan
                    .checkpoints
                    .entry((header.name.clone(), header.run))
                    .or_default()
                    .push(*header),
                Err(error) => scan.unusable.push((table, key.clone(), error)),
            }
            last = Some(key);
            count += 1;
        }
        if count != rows.len()? {
            return Err(Fault::Broken("rows are missing".into()));
        }
    }
    Ok(scan)
}

impl Scan {
    fn into_loaded(mut self, database: Database) -> Loaded {
        let mut catalog = Catalog::new(true);
        for (run_key, record) in self.records {
            let output = self.outputs.contains(&rows::run_key(&run_key));
            let mut run = Run::new(record.spec);
            run.desired = record.desired;
            run.end = record.end.map(|end| (end, output));
            restore_branches(&mut run, self.checkpoints.remove(&run_key).unwrap_or_default());
            catalog.restore(run_key, Some(run));
        }
        for (table, key, _) in &self.unusable {
            if let Some((run_key, _)) =
                rows::parse_key(key).filter(|_| *table == Table::Checkpoints)
                && let Some(run) = catalog.get_mut(&run_key)
            {
                run.damaged = true;
            }
        }
        let damage = self
            .unusable
            .into_iter()
            .map(|(table, key, error)| report(&catalog, table, &key, &error))
            .collect();
        Loaded { database, catalog, commits: self.commits, damage }
    }
}

/// Sorts a run's checkpoints into branches: the newest, and the one before it.
fn restore_branches(run: &mut Run, headers: Vec<Header>) {
    for header in &headers {
        // More branches than the bound were never stored.
        let _: Admission = run.heads.admit(header.clone());
    }
    for header in headers {
        let Some(head) = run
            .heads
            .iter()
            .find(|head| head.key() != header.key() && head.replaces(&header))
            .map(key)
        else {
            continue;
        };
        let spare = run.spares.entry(head).or_insert_with(|| header.clone());
        if spare.key() < header.key() {
            *spare = header;
        }
    }
}

fn report(catalog: &Catalog, table: Table, key: &[u8], error: &FrameError) -> Damage {
    let what = error.to_string();
    let (name, run, checkpoint): (_, _, Option<CheckpointKey>) = match rows::parse_key(key) {
        Some(((name, run), checkpoint)) => (name, run, checkpoint),
        None => {
            return Damage::File {
                what: format!("a row cannot be told: {what}"),
                aside: None,
                saved: 0,
            };
        }
    };
    match (table, checkpoint) {
        (Table::Outputs, _) => Damage::Output { name, run, what },
        (Table::Checkpoints, Some((position, _))) => Damage::Checkpoint {
            fell_back_to: catalog
                .get(&(name.clone(), run))
                .and_then(Run::newest)
                .cloned()
                .map(Box::new),
            name,
            run,
            position,
            what,
        },
        (Table::Runs | Table::Checkpoints, _) => Damage::Run { name, run, what },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use redb::backends::InMemoryBackend;

    use super::*;
    use crate::checkpoint::frame::Format;

    fn empty() -> Database {
        Database::builder().create_with_backend(InMemoryBackend::new()).unwrap()
    }

    /// After a rollback only the newer build can read what it wrote: its rows are carried over as they are,
    /// and what is no record at all is not.
    #[test]
    fn rows_of_a_newer_build_are_carried_over_under_their_keys() {
        let newer = Format { magic: *b"HORN", version: 2, max_header: 0, max_body: 100 };
        let row = newer.seal(b"", b"who knows").unwrap();
        let (old, new) = (empty(), empty());
        let transaction = old.begin_write().unwrap();
        for table in Table::ALL {
            let mut rows = transaction.open_table(table.definition()).unwrap();
            if table == Table::Runs {
                rows.insert(b"newer".as_slice(), row.as_slice()).unwrap();
                rows.insert(b"noise".as_slice(), b"noise".as_slice()).unwrap();
            }
        }
        transaction.commit().unwrap();
        assert_eq!(carry_over(Some(&old), &new).unwrap(), 1);
        let rows = new.begin_read().unwrap().open_table(Table::Runs.definition()).unwrap();
        assert_eq!(rows.get(b"newer".as_slice()).unwrap().unwrap().value(), row);
        assert_eq!(rows.len().unwrap(), 1);
    }
}
