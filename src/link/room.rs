//! Messages that have come and wait for the node to take them: bounded in bytes, of one peer and of all.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room for so many bytes.
#[derive(Clone, Debug)]
pub(super) struct Room {
    bytes: Arc<Semaphore>,
    size: u32,
}

impl Room {
    pub(super) fn new(size: usize) -> Self {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        Self { bytes: Arc::new(Semaphore::new(size as usize)), size }
    }

    /// Waits until there is room; what is larger than the whole room takes all of it. Cancel-safe.
    async fn enter(&self, len: usize) -> Option<OwnedSemaphorePermit> {
        let len = u32::try_from(len).unwrap_or(u32::MAX).min(self.size);
        // Nobody closes it.
        self.bytes.clone().acquire_many_owned(len).await.ok()
    }
}

/// A message, and the room it takes until it is dropped.
#[derive(Clone)]
pub(crate) struct Payload {
    bytes: Bytes,
    _room: Arc<[Option<OwnedSemaphorePermit>; 2]>,
}

impl Payload {
    /// Waits for room, first among what is `own` to the peer. Cancel-safe: the message is lost.
    pub(super) async fn new(bytes: Bytes, own: &Room, all: &Room) -> Self {
        let own = own.enter(bytes.len()).await;
        let all = all.enter(bytes.len()).await;
        Self { bytes, _room: Arc::new([own, all]) }
    }

    /// The message without its claim to room.
    #[cfg(test)]
    pub(super) fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Payload {}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}
