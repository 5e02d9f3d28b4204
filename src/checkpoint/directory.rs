//! The data directory: who it belongs to, and what a node must remember of its last life.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::frame::{Format, FrameError};
use crate::core::ids::{NodeId, SessionId};

const LOCK: &str = "lock";
const IDENTITY: &str = "identity";
const CHECKPOINTS: &str = "checkpoints.redb";

const FORMAT: Format = Format { magic: *b"HOID", version: 1, max_header: 0, max_body: 16 << 20 };

/// Why a data directory could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// A process holds it.
    #[error(
        "the data directory {path:?} is in use{}: stop that process, or give each node a directory of its own",
        holder.map(|pid| format!(" by process {pid}")).unwrap_or_default()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process, as far as known.
        holder: Option<u32>,
    },
    /// It was made by another node.
    #[error(
        "the data directory {path:?} belongs to node {found}, this is node {expected}: give the node its own directory, or its own name back"
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who wants it.
        expected: NodeId,
    },
    /// It was made in another cluster.
    #[error(
        "the data directory {path:?} belongs to cluster {found:?}, this is cluster {expected:?}: its tasks must not start here; use another directory"
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who wants it.
        expected: String,
    },
    /// It cannot be made, read or written.
    #[error(
        "the data directory {path:?} cannot be used: {source}; it must be a directory this process may write to, on a disk with room"
    )]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Its identity file is damaged, so it cannot be told whose it is.
    #[error(
        "the identity file in the data directory {path:?} is unreadable ({what}): restore it, or move the whole directory away to start with an empty one"
    )]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// An entry of the address book: a session that neither left nor was superseded (Rule 3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// The session.
    pub(crate) session: SessionId,
    /// Its address.
    pub(crate) address: SocketAddr,
    /// When it was last heard, Unix milliseconds.
    pub(crate) seen_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Identity {
    node: NodeId,
    cluster: String,
    /// The process that opened the directory last.
    nonce: Uuid,
    /// The highest generation of gossip in use so far.
    generation: u64,
    members: Vec<Member>,
    /// The revision that opened the directory last.
    #[serde(default)]
    revision: Option<Revision>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Revision {
    label: String,
    /// Since when it has been the one, Unix milliseconds.
    since_ms: u64,
}

/// What the previous process left.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Inheritance {
    /// Its nonce. Whoever holds the directory may publish it: the lock proves that it is gone
    /// (Rule 6).
    pub(crate) predecessor: Option<Uuid>,
    /// The highest generation it used; zero at first.
    pub(crate) generation: u64,
    /// Its address book.
    pub(crate) members: Vec<Member>,
}

/// A data directory, held under an exclusive lock until it is dropped.
///
/// All methods block on the disk. The lock is `flock(2)`: on a network file system it is only as
/// good as that system's.
#[derive(Debug)]
pub(crate) struct DataDirectory {
    path: PathBuf,
    identity: Mutex<Identity>,
    _lock: File,
}

impl DataDirectory {
    /// Takes the directory for this process, making it if there is none. When this returns, a later
    /// process will find `nonce` in it.
    ///
    /// # Errors
    /// See [`DirectoryError`]. Nothing has changed then.
    pub(crate) fn open(
        path: &Path,
        node: &NodeId,
        cluster: &str,
        nonce: Uuid,
    ) -> Result<(Self, Inheritance), DirectoryError> {
        let unusable = |source| DirectoryError::Unusable { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable)?;
        let lock = lock(path)?;
        let known = read(path)?;
        let revision = known.as_ref().and_then(|known| known.revision.clone());
        if let Some(known) = &known {
            if known.node != *node {
                return Err(DirectoryError::OtherNode {
                    path: path.to_owned(),
                    found: known.node.clone(),
                    expected: node.clone(),
                });
            }
            if known.cluster != cluster {
                return Err(DirectoryError::OtherCluster {
                    path: path.to_owned(),
                    found: known.cluster.clone(),
                    expected: cluster.to_owned(),
                });
            }
        }
        let inheritance = known.map_or_else(Inheritance::default, |known| Inheritance {
            predecessor: Some(known.nonce),
            generation: known.generation,
            members: known.members,
        });
        let identity = Identity {
            node: node.clone(),
            cluster: cluster.to_owned(),
            nonce,
            generation: inheritance.generation,
            members: inheritance.members.clone(),
            revision,
        };
        write(path, &identity).map_err(unusable)?;
        let directory = Self { path: path.to_owned(), identity: Mutex::new(identity), _lock: lock };
        Ok((directory, inheritance))
    }

    /// Where the checkpoints are.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// Remembers a generation before it is used; a lower one than is known changes nothing.
    ///
    /// # Errors
    /// As the system says. The generation must not be used then.
    pub(crate) fn save_generation(&self, generation: u64) -> Result<(), DirectoryError> {
        self.save(|identity| identity.generation = identity.generation.max(generation))
    }

    /// Remembers the address book.
    ///
    /// # Errors
    /// As the system says. What was remembered before still is.
    pub(crate) fn save_members(&self, members: Vec<Member>) -> Result<(), DirectoryError> {
        self.save(|identity| identity.members = members)
    }

    /// Since when this node has had this revision: since `now_ms` if it is another than the last
    /// process had. A process that is only restarted is no newer than the one before it.
    ///
    /// # Errors
    /// As the system says.
    pub(crate) fn has_had(&self, label: &str, now_ms: u64) -> Result<u64, DirectoryError> {
        let known = {
            let identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
            identity.revision.clone().filter(|known| known.label == label)
        };
        if let Some(known) = known {
            return Ok(known.since_ms);
        }
        let revision = Revision { label: label.to_owned(), since_ms: now_ms };
        self.save(|identity| identity.revision = Some(revision))?;
        Ok(now_ms)
    }

    fn save(&self, change: impl FnOnce(&mut Identity)) -> Result<(), DirectoryError> {
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = identity.clone();
        change(&mut changed);
        if changed == *identity {
            return Ok(());
        }
        write(&self.path, &changed)
            .map_err(|source| DirectoryError::Unusable { path: self.path.clone(), source })?;
        *identity = changed;
        Ok(())
    }
}

/// The lock file is never deleted: another process might just have opened it.
fn lock(path: &Path) -> Result<File, DirectoryError> {
    let unusable = |source| DirectoryError::Unusable { path: path.to_owned(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path.join(LOCK))
        .map_err(unusable)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let _ = (&file).take(32).read_to_string(&mut holder);
            return Err(DirectoryError::Locked {
                path: path.to_owned(),
                holder: holder.trim().parse().ok(),
            });
        }
        Err(error) => return Err(unusable(error.into())),
    }
    // For the text of somebody else's error; the lock holds without it.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

fn read(path: &Path) -> Result<Option<Identity>, DirectoryError> {
    let damaged = |error: FrameError| DirectoryError::Damaged {
        path: path.to_owned(),
        what: error.to_string(),
    };
    let mut bytes = Vec::new();
    match File::open(path.join(IDENTITY)) {
        Ok(file) => file
            // One byte more than is valid, so that a longer file is noticed.
            .take((FORMAT.max_body + 1024) as u64)
            .read_to_end(&mut bytes)
            .map_err(|source| DirectoryError::Unusable {
                path: path.to_owned(),
                source,
            })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(DirectoryError::Unusable { path: path.to_owned(), source });
        }
    };
    let (_, body) = FORMAT.open(&bytes).map_err(damaged)?;
    rmp_serde::from_slice(body)
        .map(Some)
        .map_err(|_| damaged(FrameError::Corrupt("its content makes no sense")))
}

/// Replaces the identity file in one step: after a crash it is the old or the new one.
fn write(path: &Path, identity: &Identity) -> io::Result<()> {
    let body = rmp_serde::to_vec_named(identity).map_err(io::Error::other)?;
    let bytes = FORMAT.seal(&[], &body).map_err(io::Error::other)?;
    let new = path.join("identity.new");
    let mut file = File::create(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&new, path.join(IDENTITY))?;
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use tempfile::tempdir;

    use super::*;
    use crate::checkpoint::testing::session;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn nonce(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn open(path: &Path, n: u128) -> Result<(DataDirectory, Inheritance), DirectoryError> {
        DataDirectory::open(path, &node("a"), "c", nonce(n))
    }

    fn members() -> Vec<Member> {
        vec![Member { session: session("b"), address: ([127, 0, 0, 1], 7000).into(), seen_ms: 5 }]
    }

    #[test]
    fn each_process_inherits_from_the_one_before() {
        let temp = tempdir().unwrap();
        let path = temp.path().join("made/on/demand");
        let (directory, first) = open(&path, 1).unwrap();
        assert_eq!(first, Inheritance::default());
        directory.save_generation(40).unwrap();
        directory.save_generation(30).unwrap();
        directory.save_members(members()).unwrap();
        drop(directory);
        let expected =
            |n| Inheritance { predecessor: Some(nonce(n)), generation: 40, members: members() };
        assert_eq!(open(&path, 2).unwrap().1, expected(1));
        assert_eq!(open(&path, 3).unwrap().1, expected(2), "inherited unsaved");
    }

    #[test]
    fn a_revision_is_as_old_as_its_first_start_unless_another_came_between() {
        let temp = tempdir().unwrap();
        let has_had = |n, label, now| open(temp.path(), n).unwrap().0.has_had(label, now).unwrap();
        assert_eq!(has_had(1, "old", 10), 10);
        assert_eq!(has_had(2, "old", 20), 10, "only restarted");
        assert_eq!(has_had(3, "new", 30), 30);
        assert_eq!(has_had(4, "new", 40), 30);
        assert_eq!(has_had(5, "old", 50), 50, "rolled back: these are the newest nodes");
    }

    #[test]
    fn a_directory_of_a_build_that_knew_no_revisions_is_read() {
        #[derive(Serialize)]
        struct Before {
            node: NodeId,
            cluster: String,
            nonce: Uuid,
            generation: u64,
            members: Vec<Member>,
        }
        let temp = tempdir().unwrap();
        let before = Before {
            node: node("a"),
            cluster: "c".into(),
            nonce: nonce(9),
            generation: 7,
            members: members(),
        };
        let body = rmp_serde::to_vec_named(&before).unwrap();
        fs::write(temp.path().join(IDENTITY), FORMAT.seal(&[], &body).unwrap()).unwrap();
        let (directory, inheritance) = open(temp.path(), 1).unwrap();
        assert_eq!((inheritance.predecessor, inheritance.generation), (Some(nonce(9)), 7));
        assert_eq!(directory.has_had("old", 10).unwrap(), 10);
    }

    #[test]
    fn a_second_opener_in_the_same_process_is_refused() {
        let temp = tempdir().unwrap();
        let (directory, _) = open(temp.path(), 1).unwrap();
        let error = open(temp.path(), 2).unwrap_err();
        let DirectoryError::Locked { holder, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*holder, Some(std::process::id()));
        drop(directory);
        let (_, inheritance) = open(temp.path(), 3).unwrap();
        assert_eq!(
            inheritance.predecessor,
            Some(nonce(1)),
            "whoever was refused has left no trace"
        );
    }

    /// Set to a directory, it makes the test below hold that directory until it is killed.
    const HOLD: &str = "HANDOVER_TEST_HOLD";

    #[test]
    fn hold_a_directory_as_another_process() {
        let Some(path) = std::env::var_os(HOLD) else {
            return;
        };
        let _held = open(path.as_ref(), 77).unwrap();
        println!("\nheld");
        // Until it is killed, or its parent is gone.
        let _ = io::stdin().read(&mut [0]);
    }

    fn other_process(path: &Path) -> Child {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("checkpoint::directory::tests::hold_a_directory_as_another_process")
            .env(HOLD, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let held = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .any(|line| line.unwrap() == "held");
        assert!(held, "the other process never held the directory");
        child
    }

    #[test]
    fn another_process_is_refused_until_the_holder_is_killed() {
        let temp = tempdir().unwrap();
        let mut other = other_process(temp.path());
        let refused = open(temp.path(), 1);
        let pid = other.id();
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(
            matches!(refused, Err(DirectoryError::Locked { holder: Some(by), .. }) if by == pid),
            "{refused:?}"
        );
        let (_, inheritance) = open(temp.path(), 1).unwrap();
        assert_eq!(inheritance.predecessor, Some(nonce(77)));
    }

    #[test]
    fn a_foreign_directory_is_refused_and_left_alone() {
        let temp = tempdir().unwrap();
        open(temp.path(), 1).unwrap();
        let other_node = DataDirectory::open(temp.path(), &node("b"), "c", nonce(2));
        assert!(
            matches!(&other_node, Err(DirectoryError::OtherNode { found, .. }) if *found == node("a")),
            "{other_node:?}"
        );
        let other_cluster = DataDirectory::open(temp.path(), &node("a"), "d", nonce(2));
        assert!(
            matches!(&other_cluster, Err(DirectoryError::OtherCluster { found, .. }) if found == "c"),
            "{other_cluster:?}"
        );
        assert_eq!(
            open(temp.path(), 3).unwrap().1.predecessor,
            Some(nonce(1)),
            "no trace of those refused"
        );
    }

    #[test]
    fn what_is_no_writable_directory_is_refused() {
        let temp = tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, b"x").unwrap();
        for path in [file, "/proc/handover-test".into()] {
            let error = open(&path, 1).unwrap_err();
            assert!(matches!(error, DirectoryError::Unusable { .. }), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()));
        }
    }

    #[test]
    fn a_damaged_identity_is_refused_whatever_the_damage() {
        let temp = tempdir().unwrap();
        open(temp.path(), 1).unwrap();
        let identity = temp.path().join(IDENTITY);
        let good = fs::read(&identity).unwrap();
        let flipped = (0..good.len() * 8).map(|bit| {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        });
        let cut = (0..good.len()).map(|len| good[..len].to_vec());
        for bytes in flipped.chain(cut) {
            fs::write(&identity, bytes).unwrap();
            let error = read(temp.path()).unwrap_err();
            assert!(matches!(error, DirectoryError::Damaged { .. }), "{error}");
        }
        let error = open(temp.path(), 2).unwrap_err();
        assert!(matches!(error, DirectoryError::Damaged { .. }), "{error}");
        fs::write(&identity, good).unwrap();
        assert_eq!(open(temp.path(), 3).unwrap().1.predecessor, Some(nonce(1)));
    }

    #[test]
    fn a_write_cut_short_by_a_crash_is_not_seen() {
        let temp = tempdir().unwrap();
        open(temp.path(), 1).unwrap();
        fs::write(temp.path().join("identity.new"), b"half of an iden").unwrap();
        assert_eq!(open(temp.path(), 2).unwrap().1.predecessor, Some(nonce(1)));
    }
}
