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

    /// The shortest secret that is taken, in bytes.
    pub const MIN_SECRET: usize = 16;

    /// Of a secret text of high entropy (at least 128 bits; this is no password hash).
    ///
    /// # Errors
    /// The text is shorter than [`Self::MIN_SECRET`] bytes, as one is that was never set.
    pub fn from_secret(text: &str) -> Result<Self, SecretTooShort> {
        let len = text.len();
        if len < Self::MIN_SECRET {
            return Err(SecretTooShort { len, least: Self::MIN_SECRET });
        }
        Ok(Self::derived(text))
    }

    /// Of any text, secret or not.
    pub(crate) fn derived(text: &str) -> Self {
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

/// A secret that could be guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the secret is {len} bytes long, under the minimum of {least}: draw one at random, as `openssl rand -base64 32` does"
)]
#[non_exhaustive]
pub struct SecretTooShort {
    /// Its length in bytes.
    pub len: usize,
    /// The least allowed.
    pub least: usize,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_secret_that_could_be_guessed_is_refused() {
        for secret in ["", "s", "fifteen bytes !"] {
            let error = Key::from_secret(secret).unwrap_err();
            assert_eq!(error, SecretTooShort { len: secret.len(), least: 16 });
            assert!(error.to_string().contains("minimum of 16"), "{error}");
        }
        let key = Key::from_secret("sixteen bytes: !").unwrap();
        assert_eq!(key, Key::derived("sixteen bytes: !"));
        assert_ne!(key, Key::from_secret("sixteen bytes: ?").unwrap());
    }
}
