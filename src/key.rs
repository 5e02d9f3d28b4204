//! The cluster's keys: who may speak at all.

use std::fmt;

use sha2::{Digest, Sha256};

/// A 256-bit secret that every node of a cluster holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// Of 32 random bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Of a secret text of high entropy (at least 128 bits; this is no password hash).
    pub fn from_secret(text: &str) -> Self {
        Self(Sha256::new().chain_update(b"handover key v1\0").chain_update(text).finalize().into())
    }

    pub(crate) const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Names the key without giving it away.
    pub(crate) fn id(&self) -> [u8; 4] {
        let digest =
            Sha256::new().chain_update(b"handover key id v1\0").chain_update(self.0).finalize();
        [digest[0], digest[1], digest[2], digest[3]]
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:02x?})", self.id())
    }
}

/// The keys a node accepts: the first one sends, all of them receive. To rotate, append the new key
/// everywhere, then move it to the front everywhere, then remove the old one.
#[derive(Clone, Debug)]
pub struct Keyring {
    first: Key,
    others: Vec<Key>,
}

impl Keyring {
    /// Sends with `first`; receives with it and with `others`.
    pub const fn new(first: Key, others: Vec<Key>) -> Self {
        Self { first, others }
    }

    pub(crate) const fn sending(&self) -> &Key {
        &self.first
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.first).chain(&self.others)
    }

    pub(crate) fn by_id(&self, id: [u8; 4]) -> Option<&Key> {
        self.all().find(|key| key.id() == id)
    }
}

impl From<Key> for Keyring {
    fn from(key: Key) -> Self {
        Self::new(key, Vec::new())
    }
}
