//! Where the database lives: a seam, so that tests can put a failing disk under it.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError};

/// redb's own default is 1 GiB.
const CACHE: usize = 16 << 20;

/// Writes a new database's content.
pub(super) type Fill<'a> = &'a mut dyn FnMut(&Database) -> Result<(), redb::Error>;

pub(super) trait Medium: fmt::Debug + Send + Sync + 'static {
    /// Opens the database; none if there is none yet.
    fn open(&self) -> Result<Option<Database>, DatabaseError>;

    /// Makes a new database, has it filled, and puts it in the place of the old one in one step.
    /// Says where the old one, if any, has been moved; it is never deleted.
    fn replace(&self, fill: Fill<'_>) -> Result<(Database, Option<PathBuf>), redb::Error>;
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

/// A file.
#[derive(Debug)]
pub(super) struct FileMedium {
    path: PathBuf,
}

impl FileMedium {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    }

    /// Gives the old file a second name, the first that is free.
    fn set_aside(&self) -> io::Result<Option<PathBuf>> {
        let mut n = 1u32;
        loop {
            let aside = self.beside(&format!(".corrupt-{n}"));
            match fs::hard_link(&self.path, &aside) {
                Ok(()) => return Ok(Some(aside)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => n += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Medium for FileMedium {
    fn open(&self) -> Result<Option<Database>, DatabaseError> {
        match OpenOptions::new().read(true).write(true).open(&self.path) {
            // redb would take an empty file for a new one, and nobody would learn of the loss.
            Ok(file) if file.metadata()?.len() == 0 => {
                Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
            }
            Ok(file) => builder().create_file(file).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn replace(&self, fill: Fill<'_>) -> Result<(Database, Option<PathBuf>), redb::Error> {
        let new = self.beside(".new");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&new)?;
        let database = builder().create_file(file)?;
        fill(&database)?;
        let aside = self.set_aside()?;
        fs::rename(&new, &self.path)?;
        if let Some(parent) = self.path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok((database, aside))
    }
}
