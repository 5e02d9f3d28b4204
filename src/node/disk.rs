//! What a node remembers of its former lives, if it has a data directory.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::error::StartError;
use super::pending::Pending;
use crate::checkpoint::{Answer, CheckpointStore, Execution, Limits, MemoryStore, StoreWorker};
use crate::core::ids::SessionId;
use crate::core::machine::StoredOffer;
use tokio::sync::mpsc;

/// A node's store, and what it was before.
pub(super) struct Disk {
    pub(super) store: Arc<dyn CheckpointStore>,
    pub(super) worker: StoreWorker<Pending>,
    pub(super) replies: mpsc::Receiver<Answer<Pending>>,
    /// Whether it survives the process.
    pub(super) durable: bool,
    /// Above all that this node has used.
    pub(super) generation: u64,
    /// The session that this one replaces, proven by the lock on the directory.
    pub(super) succeeds: Option<Uuid>,
    /// When this revision first ran here, Unix milliseconds.
    pub(super) since_ms: u64,
    /// Who was there.
    pub(super) members: Vec<(SessionId, SocketAddr)>,
    /// What was being run, or has ended.
    pub(super) offers: Vec<StoredOffer>,
}

impl Disk {
    /// Persists a later generation before it is used.
    pub(super) fn on_generation(&self) -> Box<dyn Fn(u64) + Send + Sync> {
        Box::new(|_| {})
    }
}

/// Opens the directory, or remembers in memory alone.
pub(super) async fn open(
    path: Option<&Path>,
    _cluster: &str,
    _me: &SessionId,
    wall_ms: u64,
) -> Result<Disk, StartError> {
    match path {
        None => {
            let store: Arc<dyn CheckpointStore> = Arc::new(MemoryStore::default());
            let (worker, replies) =
                StoreWorker::new(store.clone(), Execution::Inline, Limits::default());
            Ok(Disk {
                store,
                worker,
                replies,
                durable: false,
                generation: wall_ms,
                succeeds: None,
                since_ms: wall_ms,
                members: Vec::new(),
                offers: Vec::new(),
            })
        }
        Some(_) => todo!(),
    }
}
