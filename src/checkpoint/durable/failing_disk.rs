//! A disk in memory that fails on command, forgets what was not synced, and can be damaged.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::{Database, DatabaseError, StorageBackend};

use super::medium::{Fill, Medium};

#[derive(Clone, Debug)]
enum Change {
    Len(usize),
    Write(usize, Vec<u8>),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Len(len) => bytes.resize(*len, 0),
            Self::Write(at, data) => {
                if bytes.len() < at + data.len() {
                    bytes.resize(at + data.len(), 0);
                }
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Disk {
    /// As programs see it.
    pub(super) bytes: Vec<u8>,
    /// As of the last sync.
    synced: Vec<u8>,
    since: Vec<Change>,
    /// Changes and syncs so far.
    pub(super) operations: u64,
    /// From which operation on all fail, and how.
    pub(super) fails: Option<(u64, io::ErrorKind)>,
    /// A failing write writes half of its bytes.
    pub(super) short_writes: bool,
    pub(super) aside: Vec<Vec<u8>>,
}

impl Disk {
    fn step(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.fails {
            Some((at, kind)) if self.operations > at => Err(kind.into()),
            _ => Ok(()),
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.bytes);
        self.since.push(change);
    }
}

/// Shared by all who have it open.
#[derive(Clone, Debug, Default)]
pub(super) struct FailingDisk(Arc<Mutex<Disk>>);

impl FailingDisk {
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        let disk = Disk { synced: bytes.clone(), bytes, ..Disk::default() };
        Self(Arc::new(Mutex::new(disk)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    /// What a power cut leaves: what was synced, and any part of what was not.
    pub(super) fn after_power_cut(&self, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = self.lock();
        let mut bytes = disk.synced.clone();
        for change in &disk.since {
            match change {
                _ if random.random_bool(0.4) => {}
                Change::Write(at, data) if random.random_bool(0.3) => {
                    let written = random.random_range(0..=data.len());
                    Change::Write(*at, data[..written].to_vec()).apply(&mut bytes);
                }
                change => change.apply(&mut bytes),
            }
        }
        Self::of(bytes)
    }

    /// What a killed process leaves: all it has written.
    pub(super) fn after_kill(&self) -> Self {
        Self::of(self.lock().bytes.clone())
    }

    fn database(&self) -> Result<Database, DatabaseError> {
        // Without a cache, so that damage is seen at once.
        Database::builder().set_cache_size(0).create_with_backend(self.clone())
    }
}

impl StorageBackend for FailingDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.lock();
        let at = offset as usize;
        let found = disk.bytes.get(at..at + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.lock();
        disk.step()?;
        disk.change(Change::Len(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.lock();
        disk.step()?;
        for change in std::mem::take(&mut disk.since) {
            change.apply(&mut disk.synced);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.lock();
        let done = disk.step();
        let written = match &done {
            Ok(()) => data,
            Err(_) if disk.short_writes => &data[..data.len() / 2],
            Err(_) => &[],
        };
        disk.change(Change::Write(offset as usize, written.to_vec()));
        done
    }
}

impl Medium for FailingDisk {
    fn open(&self) -> Result<Option<Database>, DatabaseError> {
        let new = self.lock().bytes.is_empty();
        match new {
            true => Ok(None),
            false => self.database().map(Some),
        }
    }

    fn replace(&self, fill: Fill<'_>) -> Result<(Database, Option<PathBuf>), redb::Error> {
        let new = Self::default();
        let database = new.database()?;
        fill(&database)?;
        drop(database);
        let mut disk = self.lock();
        disk.step()?;
        let old = std::mem::replace(&mut disk.bytes, new.lock().bytes.clone());
        disk.synced = disk.bytes.clone();
        disk.since.clear();
        let aside = (!old.is_empty()).then(|| format!("aside-{}", disk.aside.len()).into());
        disk.aside.push(old);
        drop(disk);
        Ok((self.database()?, aside))
    }
}
