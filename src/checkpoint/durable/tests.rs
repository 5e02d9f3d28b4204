#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use crate::checkpoint::conformance;

#[test]
fn it_does_what_every_store_must() {
    let directory = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    conformance::all(&|| {
        count.set(count.get() + 1);
        let path = directory.path().join(format!("{}.redb", count.get()));
        Box::new(DurableStore::open(&path).unwrap())
    });
}
