//! What the handle, the pump and the runner share. Every lock is held for a few lines, never across
//! an await.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::clock::SharedClock;
use crate::core::ids::{Name, SessionId};
use crate::core::record::{Load, NodeRecord, NodeState};

use super::Table;
use super::digest::Screen;
use super::exchange::Exchanges;
use super::peers::Peers;

pub(super) struct Shared {
    pub(super) clock: SharedClock,
    own: Mutex<Own>,
    pending: Mutex<Pending>,
    pub(super) peers: Mutex<Peers>,
    pub(super) screen: Mutex<Screen>,
    pub(super) exchanges: Mutex<Exchanges>,
    /// Something is pending.
    pub(super) changed: Notify,
    /// Somebody is to be probed.
    pub(super) nudge: Notify,
    /// Ends the engine, for the runner to start it afresh.
    pub(super) renew: Notify,
    /// For tests to tamper with.
    #[cfg(test)]
    pub(super) engine: Mutex<Option<std::sync::Arc<tokio::sync::Mutex<chitchat::Chitchat>>>>,
    /// The part that panics at its next turn.
    #[cfg(test)]
    pub(super) doomed: Mutex<Option<super::watch::Part>>,
}

/// What this node's datagrams say.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    pub(super) state: NodeState,
    pub(super) version: u64,
    pub(super) watermark: u64,
    /// Ascending.
    pub(super) released: Vec<u64>,
}

/// What is to be published, the newest of each.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) record: Option<NodeRecord>,
    pub(super) load: Option<Load>,
    pub(super) records: BTreeMap<(Table, Name), Option<Bytes>>,
}

/// A panic elsewhere leaves this data whole: each change is made in one step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(
        clock: SharedClock,
        peers: Peers,
        screen: Screen,
        exchanges: Exchanges,
    ) -> Self {
        Self {
            clock,
            own: Mutex::default(),
            pending: Mutex::default(),
            peers: Mutex::new(peers),
            screen: Mutex::new(screen),
            exchanges: Mutex::new(exchanges),
            changed: Notify::new(),
            nudge: Notify::new(),
            renew: Notify::new(),
            #[cfg(test)]
            engine: Mutex::default(),
            #[cfg(test)]
            doomed: Mutex::default(),
        }
    }

    /// Panics if a test wants that part to.
    #[cfg(test)]
    pub(super) fn trip(&self, part: super::watch::Part) {
        let doomed = lock(&self.doomed).take_if(|doomed| *doomed == part);
        assert!(doomed.is_none(), "a test wants it");
    }

    pub(super) fn publish(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut lock(&self.pending));
        self.changed.notify_one();
    }

    /// How many records wait to be published.
    pub(super) fn pending_records(&self) -> usize {
        lock(&self.pending).records.len()
    }

    pub(super) fn take_pending(&self) -> Pending {
        std::mem::take(&mut *lock(&self.pending))
    }

    pub(super) fn set_header(
        &self,
        state: NodeState,
        version: u64,
        watermark: u64,
        mut released: Vec<u64>,
    ) {
        released.retain(|number| *number > watermark);
        released.sort_unstable();
        *lock(&self.own) = Own { state, version, watermark, released };
    }

    /// What to say of oneself, with as many released numbers as there is room for.
    pub(super) fn own(&self, released: usize) -> Own {
        let own = lock(&self.own);
        Own {
            state: own.state,
            version: own.version,
            watermark: own.watermark,
            released: own.released.iter().take(released).copied().collect(),
        }
    }

    pub(super) fn is_fenced(&self) -> bool {
        lock(&self.own).state.is_fenced()
    }

    pub(super) fn probe(&self, address: SocketAddr) {
        let now = self.clock.boot();
        lock(&self.peers).probe(address, now);
        self.nudge.notify_one();
    }

    pub(super) fn retire(&self, session: &SessionId) {
        let now = self.clock.boot();
        lock(&self.peers).retire(session, now);
    }

    pub(super) fn address_book(&self) -> Vec<(SessionId, SocketAddr)> {
        lock(&self.peers).book()
    }
}
