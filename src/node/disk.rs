//! What a node keeps, and what it remembers of its former lives if it has a data directory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

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
    saving: Option<JoinHandle<()>>,
}

impl Keep {
    /// Whether checkpoints survive the process.
    pub(super) const fn is_durable(&self) -> bool {
        self.directory.is_some()
    }

    /// Saves the address book if it has changed, off the control thread.
    pub(super) fn save_members(&mut self, book: Vec<(SessionId, SocketAddr)>, wall_ms: u64) {
        let Some(directory) = self.directory.clone() else {
            return;
        };
        let book: BTreeMap<SessionId, SocketAddr> = book.into_iter().collect();
        let busy = self.saving.as_ref().is_some_and(|saving| !saving.is_finished());
        if busy || book == self.saved {
            return;
        }
        self.saved = book.clone();
        let member = |(session, address)| Member { session, address, seen_ms: wall_ms };
        let members = book.into_iter().map(member).collect();
        self.saving = Some(spawn_blocking(move || {
            if let Err(error) = directory.save_members(members) {
                tracing::warn!(target: "handover::node", %error, "the list of members was not saved");
            }
        }));
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
        keep: Keep { store, directory, saved: members.iter().cloned().collect(), saving: None },
        members,
        offers,
    }
}
