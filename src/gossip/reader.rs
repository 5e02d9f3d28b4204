//! Reads the pages of one session, in whatever order and pieces they arrive.

use std::collections::BTreeMap;

use bytes::Bytes;
use litemap::LiteMap;
use xxhash_rust::xxh3::xxh3_64;

use crate::core::ids::Name;

use super::Table;
use super::pages::{self, Page, PageKey};

/// A record that is new or different, or gone.
pub(super) type Change = (Name, Option<Bytes>);

/// What has been read of a session's records. Only hashes are kept: the records are in the engine.
#[derive(Default)]
pub(super) struct Reader {
    pages: BTreeMap<PageKey, Seen>,
    /// Records of earlier incarnations that this one has not confirmed yet.
    leftover: BTreeMap<(Table, Name), u64>,
}

struct Seen {
    version: u64,
    /// Of a split page: those whose deeper page is not here yet.
    records: LiteMap<Name, u64>,
}

impl Reader {
    /// Goes on with a newer incarnation, whose versions start afresh. What the old one published
    /// holds until the new one is complete.
    pub(super) fn succeed(&mut self) {
        for (key, page) in std::mem::take(&mut self.pages) {
            for (name, hash) in page.records {
                self.leftover.insert((key.table, name), hash);
            }
        }
    }

    /// All of the newest incarnation has been read: returns what only earlier ones had published.
    pub(super) fn completed(&mut self) -> impl Iterator<Item = (Table, Name)> + use<> {
        std::mem::take(&mut self.leftover).into_keys()
    }

    /// Takes in a page unless a newer one of that key has been read; adds what it changes.
    pub(super) fn read(
        &mut self,
        key: PageKey,
        version: u64,
        value: &str,
        changes: &mut Vec<Change>,
    ) {
        if self.pages.get(&key).is_some_and(|seen| seen.version >= version) {
            return;
        }
        let page = match pages::decode(value) {
            Ok(page) => page,
            Err(reason) => return reason.count(),
        };
        let mut before = self.pages.remove(&key).map_or_else(LiteMap::new, |seen| seen.records);
        for prefix in key.prefix.above() {
            let table = key.table;
            if let Some(above) = self.pages.get_mut(&PageKey { table, prefix }) {
                above.records.retain(|name, hash| {
                    let moved = key.prefix.covers(name);
                    if moved {
                        before.insert(name.clone(), *hash);
                    }
                    !moved
                });
            }
        }
        let seen = match page {
            Page::Split => Seen { version, records: before },
            Page::Records(records) => {
                let mut hashes = LiteMap::new();
                for (name, record) in records {
                    if !key.prefix.covers(&name) || self.deeper(key, &name) {
                        continue;
                    }
                    let hash = xxh3_64(&record);
                    let known = before.remove(&name);
                    let left = self.leftover.remove(&(key.table, name.clone()));
                    if known.or(left) != Some(hash) {
                        changes.push((name.clone(), Some(record)));
                    }
                    hashes.insert(name, hash);
                }
                changes.extend(before.into_iter().map(|(name, _)| (name, None)));
                Seen { version, records: hashes }
            }
        };
        self.pages.insert(key, seen);
    }

    /// Whether a deeper page that is here speaks for the name.
    fn deeper(&self, key: PageKey, name: &Name) -> bool {
        let table = key.table;
        key.prefix.below(name).any(|prefix| self.pages.contains_key(&PageKey { table, prefix }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::pages::Pages;
    use super::*;

    fn name(number: usize) -> Name {
        Name::new(format!("task-{number}")).unwrap()
    }

    /// An owner's pages and a reader of them, with the engine's rule in between: newer keys come in
    /// the order of their present versions, and may be cut off anywhere.
    struct Pair {
        pages: Pages,
        keys: BTreeMap<PageKey, u64>,
        version: u64,
        owned: BTreeMap<Name, Bytes>,
        reader: Reader,
        read: u64,
        told: BTreeMap<Name, Bytes>,
    }

    impl Pair {
        fn new() -> Self {
            Self {
                pages: Pages::new(1, 300),
                keys: BTreeMap::new(),
                version: 0,
                owned: BTreeMap::new(),
                reader: Reader::default(),
                read: 0,
                told: BTreeMap::new(),
            }
        }

        fn write(&mut self, puts: &[(usize, Option<u8>)]) {
            let mut changed = BTreeSet::new();
            for (number, value) in puts {
                let record = value.map(|byte| Bytes::from(vec![byte; 40]));
                match &record {
                    Some(record) => self.owned.insert(name(*number), record.clone()),
                    None => self.owned.remove(&name(*number)),
                };
                self.pages.put(Table::Claims, &name(*number), record, &mut changed);
            }
            for key in changed {
                self.version += 1;
                self.keys.insert(key, self.version);
            }
        }

        /// Reads at most `most` keys; returns the names that were reported gone.
        fn read(&mut self, most: usize) -> BTreeSet<Name> {
            let mut newer: Vec<_> = self
                .keys
                .iter()
                .filter(|(_, version)| **version > self.read)
                .map(|(key, version)| (*version, *key))
                .collect();
            newer.sort_unstable();
            let mut changes = Vec::new();
            for (version, key) in newer.into_iter().take(most) {
                let value = self.pages.value(&key);
                self.reader.read(key, version, &value, &mut changes);
                self.read = version;
            }
            let mut gone = BTreeSet::new();
            for (name, record) in changes {
                match record {
                    Some(record) => {
                        self.told.insert(name, record);
                    }
                    None => {
                        self.told.remove(&name);
                        gone.insert(name);
                    }
                }
            }
            gone
        }
    }

    proptest! {
        #[test]
        fn a_reader_cut_off_anywhere_misses_nothing_that_stays_and_ends_up_equal(
            rounds in proptest::collection::vec(
                (
                    proptest::collection::vec((10usize..60, proptest::option::of(0u8..3)), 0..20),
                    0usize..12,
                ),
                1..40,
            ),
        ) {
            let mut pair = Pair::new();
            let stay: Vec<_> = (0..10).map(|number| (number, Some(9))).collect();
            pair.write(&stay);
            for (puts, most) in rounds {
                pair.write(&puts);
                let gone = pair.read(most);
                prop_assert!((0..10).all(|number| !gone.contains(&name(number))));
            }
            pair.read(usize::MAX);
            prop_assert_eq!(&pair.told, &pair.owned);
            // Read all over again, as after a reset of the engine's copy.
            pair.read = 0;
            let gone = pair.read(usize::MAX);
            prop_assert!(gone.is_empty());
            prop_assert_eq!(&pair.told, &pair.owned);
        }
    }

    #[test]
    fn a_new_incarnation_takes_nothing_away_until_it_is_complete() {
        let mut pair = Pair::new();
        pair.write(&[(1, Some(1)), (2, Some(2)), (3, Some(3))]);
        pair.read(usize::MAX);
        pair.reader.succeed();

        // The new one has published what the old one had, but for one record.
        pair.pages = Pages::new(1, 300);
        pair.keys.clear();
        pair.version = 0;
        pair.read = 0;
        pair.owned.clear();
        pair.write(&[(1, Some(1)), (3, Some(4))]);
        assert!(pair.read(1).is_empty());
        assert!(pair.read(usize::MAX).is_empty());
        assert_eq!(pair.told.get(&name(2)), Some(&Bytes::from(vec![2; 40])));
        assert_eq!(pair.told.get(&name(3)), Some(&Bytes::from(vec![4; 40])));

        let gone: Vec<_> = pair.reader.completed().collect();
        assert_eq!(gone, [(Table::Claims, name(2))]);
        assert_eq!(pair.reader.completed().count(), 0);
    }

    #[test]
    fn malformed_pages_and_foreign_names_change_nothing() {
        let mut pair = Pair::new();
        pair.write(&[(1, Some(1))]);
        pair.read(usize::MAX);
        let key = *pair.keys.keys().next().unwrap();
        let mut changes = Vec::new();
        for value in ["%", "AAAA", "kZ"] {
            pair.reader.read(key, 99, value, &mut changes);
        }
        assert!(changes.is_empty());
        // A valid page under a key its names do not belong to.
        let value = pair.pages.value(&key);
        let other = (0..16)
            .filter_map(|digit| PageKey::parse(&format!("c:{digit:x}")))
            .find(|other| *other != key)
            .unwrap();
        pair.reader.read(other, 100, &value, &mut changes);
        assert!(changes.is_empty());
        assert_eq!(pair.told, pair.owned);
    }
}
