//! What a node keeps, and what it remembers of its former lives if it has a data directory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use uuid::Uuid;

use super::error::StartError;
use super::pending::Pending;
#[cfg(feature = "redb")]
use crate::checkpoint::DurableStore;
use crate::checkpoint::directory::{DataDirectory, Inheritance, Member};
use crate::checkpoint::{Answer, CheckpointStore, Execution, Limits, MemoryStore, StoreWorker};
use crate::core::ids::SessionId;
use crate::core::stored::StoredRun;
use crate::core::time::Time;

/// A node's store, and what it was before.
pub(super) struct Disk {
    pub(super) keep: Keep,
    pub(super) worker: StoreWorker<Pending>,
    pub(super) replies: mpsc::Receiver<Answer<Pending>>,
    /// Above all that this node has used.
    pub(super) generation: u64,
    /// The session that this one replaces, proven by the lock on the directory.
    pub(super) succeeds: Option<Uuid>,
    /// Who was there.
    pub(super) members: Vec<(SessionId, SocketAddr)>,
    /// What was being run, or has ended.
    pub(super) offers: Vec<StoredRun>,
}

/// The part that the control loop keeps.
#[derive(Debug)]
pub(super) struct Keep {
    pub(super) store: Arc<dyn CheckpointStore>,
    directory: Option<Arc<DataDirectory>>,
    /// The members that were saved last.
    saved: BTreeMap<SessionId, SocketAddr>,
    saving: Option<(BTreeMap<SessionId, SocketAddr>, JoinHandle<bool>)>,
    /// What could not be saved is not tried again before.
    retry: Time,
}

/// Between a member list that could not be saved and the next attempt.
const RETRY: Duration = Duration::from_secs(10);

impl Keep {
    /// Whether checkpoints survive the process.
    pub(super) const fn is_durable(&self) -> bool {
        self.directory.is_some()
    }

    /// Saves the address book if it has changed, off the control thread.
    pub(super) fn save_members(
        &mut self,
        book: Vec<(SessionId, SocketAddr)>,
        now: Time,
        wall_ms: u64,
    ) {
        let Some(directory) = self.directory.clone() else {
            return;
        };
        if let Some((book, saving)) = self.saving.take() {
            if !saving.is_finished() {
                self.saving = Some((book, saving));
                return;
            }
            match saving.now_or_never() {
                Some(Ok(true)) => self.saved = book,
                _ => self.retry = now + RETRY,
            }
        }
        let book: BTreeMap<SessionId, SocketAddr> = book.into_iter().collect();
        if book == self.saved || now < self.retry {
            return;
        }
        let member = |(session, address)| Member { session, address, seen_ms: wall_ms };
        let members = book.clone().into_iter().map(member).collect();
        let saving = spawn_blocking(move || {
            let saved = directory.save_members(members);
            if let Err(error) = &saved {
                tracing::warn!(target: "handover::node", %error, "the list of members was not saved, and will be tried again");
            }
            saved.is_ok()
        });
        self.saving = Some((book, saving));
    }
}

impl Disk {
    /// Since when this node has had this revision, without a break.
    pub(super) async fn has_had(&self, revision: &str, wall_ms: u64) -> Result<u64, StartError> {
        let Some(directory) = self.keep.directory.clone() else {
            return Ok(wall_ms);
        };
        let revision = revision.to_owned();
        let known = spawn_blocking(move || directory.has_had(&revision, wall_ms)).await;
        // It fails only when the runtime ends, and then nobody waits for the node.
        Ok(known.unwrap_or(Ok(wall_ms))?)
    }

    /// Persists each later generation before it is used.
    pub(super) fn on_generation(&self) -> Box<dyn Fn(u64) + Send + Sync> {
        let directory = self.keep.directory.clone();
        Box::new(move |generation| {
            if let Some(directory) = &directory
                && let Err(error) = directory.save_generation(generation)
            {
                tracing::error!(target: "handover::gossip", %error, "the generation of gossip was not saved");
            }
        })
    }
}

/// Opens the directory, or remembers in memory alone.
pub(super) async fn open(
    path: Option<&Path>,
    cluster: &str,
    me: &SessionId,
    wall_ms: u64,
) -> Result<Disk, StartError> {
    #[cfg(feature = "redb")]
    if let Some(path) = path {
        let (path, cluster, me) = (path.to_owned(), cluster.to_owned(), me.clone());
        let opened = spawn_blocking(move || open_directory(&path, &cluster, &me, wall_ms));
        // It fails only when the runtime ends, and then nobody waits for the node.
        return opened.await.unwrap_or_else(|error| Err(StartError::Thread(error.into())));
    }
    #[cfg(not(feature = "redb"))]
    let _ = (path, cluster, me);
    let store = Arc::new(MemoryStore::default());
    Ok(assemble(store, None, Inheritance::default(), Vec::new(), wall_ms))
}

#[cfg(feature = "redb")]
fn open_directory(
    path: &Path,
    cluster: &str,
    me: &SessionId,
    wall_ms: u64,
) -> Result<Disk, StartError> {
    let (directory, inheritance) = DataDirectory::open(path, &me.node, cluster, me.nonce)?;
    directory.save_generation(generation(&inheritance, wall_ms))?;
    let file = directory.checkpoints();
    let unusable = |why: String| StartError::Checkpoints { path: directory.checkpoints(), why };
    let store = DurableStore::open(&file).map_err(|error| unusable(error.to_string()))?;
    let runs = store.runs().map_err(|error| unusable(error.to_string()))?;
    Ok(assemble(Arc::new(store), Some(Arc::new(directory)), inheritance, runs, wall_ms))
}

/// Strictly above all that were used: a corpse of ours must never look newer than we are.
fn generation(inheritance: &Inheritance, wall_ms: u64) -> u64 {
    inheritance.generation.saturating_add(1).max(wall_ms)
}

fn assemble(
    store: Arc<dyn CheckpointStore>,
    directory: Option<Arc<DataDirectory>>,
    inheritance: Inheritance,
    offers: Vec<StoredRun>,
    wall_ms: u64,
) -> Disk {
    let execution = match &directory {
        Some(_) => Execution::Blocking(Handle::current()),
        None => Execution::Inline,
    };
    let (worker, replies) = StoreWorker::new(store.clone(), execution, Limits::default());
    let generation = generation(&inheritance, wall_ms);
    let member = |member: Member| (member.session, member.address);
    let members: Vec<_> = inheritance.members.into_iter().map(member).collect();
    Disk {
        worker,
        replies,
        generation,
        succeeds: inheritance.predecessor,
        keep: Keep {
            store,
            directory,
            saved: members.iter().cloned().collect(),
            saving: None,
            retry: Time::ZERO,
        },
        members,
        offers,
    }
}

#[cfg(all(test, feature = "redb"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::core::ids::NodeId;

    const S: Duration = Duration::from_secs(1);

    /// Saves, and waits for the write that this begins, if it does.
    async fn save(keep: &mut Keep, book: &[(SessionId, SocketAddr)], now: Time) {
        keep.save_members(book.to_vec(), now, 0);
        while keep.saving.as_ref().is_some_and(|(_, saving)| !saving.is_finished()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// A node that believes it has saved its members waits for the wrong ones after its next start.
    #[tokio::test]
    async fn a_member_list_that_could_not_be_saved_is_saved_later() {
        let temp = tempfile::tempdir().unwrap();
        let session = |node: &str| SessionId::new(NodeId::new(node).unwrap(), Uuid::nil());
        let disk = open(Some(temp.path()), "test", &session("a"), 0).await.unwrap();
        let mut keep = disk.keep;
        let book = [(session("b"), SocketAddr::from(([127, 0, 0, 1], 1)))];
        // Where its next version is written there is something else.
        let in_the_way = temp.path().join("identity.new");
        std::fs::create_dir(&in_the_way).unwrap();
        save(&mut keep, &book, Time::ZERO).await;
        std::fs::remove_dir(&in_the_way).unwrap();
        for after in [S, RETRY / 2, RETRY + S, RETRY + S * 2] {
            save(&mut keep, &book, Time::ZERO + after).await;
        }
        drop(keep);
        let me = session("a");
        let (_, after) = DataDirectory::open(temp.path(), &me.node, "test", me.nonce).unwrap();
        let known = after.members.into_iter().map(|member| (member.session, member.address));
        assert_eq!(known.collect::<Vec<_>>(), book);
    }

    /// Rule 1: above the one that is persisted, and no younger than the clock says.
    #[test]
    fn a_generation_is_the_higher_of_the_next_one_and_the_clock() {
        let after = |generation| Inheritance { generation, ..Inheritance::default() };
        for (persisted, wall_ms, expected) in [
            (0, 0, 1),
            (0, 1_700_000_000_000, 1_700_000_000_000),
            (1_699_999_999_999, 1_700_000_000_000, 1_700_000_000_000),
            (1_700_000_000_000, 1_700_000_000_000, 1_700_000_000_001),
            // The clock was set back.
            (1_700_000_000_000, 5, 1_700_000_000_001),
            (u64::MAX, 5, u64::MAX),
        ] {
            assert_eq!(generation(&after(persisted), wall_ms), expected, "{persisted}, {wall_ms}");
        }
    }

    /// Rule 1: what a process goes by is persisted before it does, so that the next one is above it, whatever
    /// its clock says.
    #[tokio::test]
    async fn a_generation_is_above_all_that_the_directory_has_seen() {
        let temp = tempfile::tempdir().unwrap();
        let me = SessionId::new(NodeId::new("a").unwrap(), Uuid::nil());
        let mut seen = Vec::new();
        for wall_ms in [1_000, 1_000, 10, 5_000, 4_999] {
            let disk = open(Some(temp.path()), "test", &me, wall_ms).await.unwrap();
            seen.push(disk.generation);
            if wall_ms == 5_000 {
                // Gossip was started anew meanwhile.
                disk.on_generation()(6_000);
            }
            // Its file is free when nobody holds the store any more.
            let store = Arc::downgrade(&disk.keep.store);
            drop(disk);
            while store.strong_count() > 0 {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(seen, [1_000, 1_001, 1_002, 5_000, 6_001]);
    }
}
