//! The fingerprint of a run: everything that happened, in order, as one number.

use std::sync::{Mutex, PoisonError};

use xxhash_rust::xxh3::Xxh3;

/// A hash over all datagrams, stream segments and observed events, with their times.
#[derive(Default)]
pub(crate) struct Fingerprint(Mutex<(Xxh3, u64)>);

impl Fingerprint {
    /// Adds an event of a kind at a time.
    pub(crate) fn add(&self, kind: &str, nanos: u64, parts: &[&[u8]]) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (hash, events) = &mut *inner;
        hash.update(kind.as_bytes());
        hash.update(&nanos.to_be_bytes());
        for part in parts {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        *events += 1;
    }

    /// The hash so far, and over how many events.
    pub(crate) fn value(&self) -> (u64, u64) {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (inner.0.digest(), inner.1)
    }
}
