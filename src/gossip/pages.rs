//! Records hashed into pages: one key of the engine holds many records.
//!
//! With a key per name the engine would walk and sort every name at every round. A page is named by
//! the first hex digits of its records' hashes. One that grows too large is split into pages of one
//! digit more and stays behind as a marker; pages are never joined again and never deleted, only
//! emptied, since deletions are not notified and lead to resets. Keys written together may arrive
//! apart and in another order once they are written again, so of all the pages on a record's path
//! that a reader holds, the deepest speaks for the record, and a page that is absent says nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use litemap::LiteMap;

use crate::core::ids::Name;

use super::rejected::Rejected;
use super::{RecordTooLarge, Table};

/// Digits in a 64-bit hash.
const MAX_DIGITS: u8 = 16;

/// What stands in a page that has been split. No base64 begins like this.
const SPLIT: &str = "/";

/// What a record costs beside its name and its bytes, at most.
const RECORD_OVERHEAD: usize = 12;

/// The first digits of a record's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    hash: u64,
    digits: u8,
}

/// A page's key in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageKey {
    pub(super) table: Table,
    pub(super) prefix: Prefix,
}

impl Prefix {
    fn of(hash: u64, digits: u8) -> Self {
        let digits = digits.clamp(1, MAX_DIGITS);
        Self { hash: hash & (u64::MAX << (64 - 4 * u32::from(digits))), digits }
    }

    pub(super) fn covers(self, name: &Name) -> bool {
        Self::of(name.digest(), self.digits) == self
    }

    fn deeper(self, name: &Name) -> Option<Self> {
        (self.digits < MAX_DIGITS).then(|| Self::of(name.digest(), self.digits + 1))
    }

    fn children(self) -> impl Iterator<Item = Self> {
        let digits = self.digits + 1;
        (0..16u64).filter(move |_| digits <= MAX_DIGITS).map(move |digit| Self {
            hash: self.hash | digit << (64 - 4 * u32::from(digits)),
            digits,
        })
    }

    /// The prefixes of the pages it may have been split from.
    pub(super) fn above(self) -> impl Iterator<Item = Self> {
        (1..self.digits).map(move |digits| Self::of(self.hash, digits))
    }

    /// The longer prefixes of a name.
    pub(super) fn below(self, name: &Name) -> impl Iterator<Item = Self> + use<> {
        let hash = name.digest();
        (self.digits + 1..=MAX_DIGITS).map(move |digits| Self::of(hash, digits))
    }
}

impl Ord for Prefix {
    /// Deeper pages first: written in this order, what moves is rarely seen to be missing.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.digits.cmp(&self.digits).then(self.hash.cmp(&other.hash))
    }
}

impl PartialOrd for Prefix {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PageKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.table.cmp(&other.table).then(self.prefix.cmp(&other.prefix))
    }
}

impl PartialOrd for PageKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = usize::from(self.prefix.digits);
        let shown = self.prefix.hash >> (64 - 4 * digits);
        write!(f, "{}:{shown:0digits$x}", self.table.letter())
    }
}

impl PageKey {
    /// Reads a key; none if it is no page's.
    pub(super) fn parse(key: &str) -> Option<Self> {
        let (letter, digits) = key.split_once(':')?;
        let table = Table::ALL.into_iter().find(|table| table.letter() == letter)?;
        let len = u8::try_from(digits.len()).ok()?;
        if len == 0 || len > MAX_DIGITS || digits.bytes().any(|byte| !byte.is_ascii_hexdigit()) {
            return None;
        }
        let value = u64::from_str_radix(digits, 16).ok()?;
        let hash = value << (64 - 4 * u32::from(len));
        let prefix = Prefix { hash, digits: len };
        Some(Self { table, prefix })
    }
}

/// What a reader finds in a page.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// The records are in deeper pages.
    Split,
    /// All records that belong here.
    Records(BTreeMap<Name, Bytes>),
}

/// Reads a page.
pub(super) fn decode(value: &str) -> Result<Page, Rejected> {
    if value.is_empty() {
        return Ok(Page::Records(BTreeMap::new()));
    }
    if value == SPLIT {
        return Ok(Page::Split);
    }
    let bytes = STANDARD_NO_PAD.decode(value).map_err(|_| Rejected::Malformed)?;
    let records: Vec<(Name, Bytes)> =
        rmp_serde::from_slice(&bytes).map_err(|_| Rejected::Malformed)?;
    Ok(Page::Records(records.into_iter().collect()))
}

fn encode(records: &LiteMap<Name, Bytes>) -> String {
    if records.is_empty() {
        return String::new();
    }
    let list: Vec<(&Name, &Bytes)> = records.iter().collect();
    // Writing text and bytes to memory has no way to fail.
    rmp_serde::to_vec(&list).map_or_else(|_| String::new(), |bytes| STANDARD_NO_PAD.encode(bytes))
}

/// What this node publishes.
#[derive(Debug)]
pub(super) struct Pages {
    pages: BTreeMap<PageKey, Own>,
    digits: u8,
    limit: usize,
}

#[derive(Debug, Default)]
struct Own {
    records: LiteMap<Name, Bytes>,
    size: usize,
    split: bool,
}

impl Pages {
    /// With `16^digits` pages per table to begin with, of at most `limit` bytes each before base64.
    pub(super) const fn new(digits: u8, limit: usize) -> Self {
        Self { pages: BTreeMap::new(), digits, limit }
    }

    /// Whether a record can be published at all.
    pub(super) fn check(limit: usize, name: &Name, record: &Bytes) -> Result<(), RecordTooLarge> {
        let len = cost(name, record);
        if len > limit {
            return Err(RecordTooLarge { name: name.clone(), len, limit });
        }
        Ok(())
    }

    /// Sets or removes a record; adds the keys of the pages to be written to `changed`.
    pub(super) fn put(
        &mut self,
        table: Table,
        name: &Name,
        record: Option<Bytes>,
        changed: &mut BTreeSet<PageKey>,
    ) {
        let mut prefix = Prefix::of(name.digest(), self.digits);
        while self.pages.get(&PageKey { table, prefix }).is_some_and(|page| page.split) {
            let Some(deeper) = prefix.deeper(name) else {
                return;
            };
            prefix = deeper;
        }
        let key = PageKey { table, prefix };
        if record.is_none() && !self.pages.contains_key(&key) {
            return;
        }
        let page = self.pages.entry(key).or_default();
        if page.set(name, record) {
            changed.insert(key);
            self.split(key, changed);
        }
    }

    fn split(&mut self, key: PageKey, changed: &mut BTreeSet<PageKey>) {
        let Some(page) = self.pages.get_mut(&key) else {
            return;
        };
        if page.size <= self.limit || key.prefix.digits == MAX_DIGITS {
            return;
        }
        page.split = true;
        page.size = 0;
        let records = std::mem::take(&mut page.records);
        let table = key.table;
        // Empty ones too: a reader decides on a record only once the page that speaks for it is
        // there, and what was removed just now needs such a page as well.
        for prefix in key.prefix.children() {
            self.pages.entry(PageKey { table, prefix }).or_default();
            changed.insert(PageKey { table, prefix });
        }
        for (name, record) in records {
            if let Some(prefix) = key.prefix.deeper(&name) {
                let child = self.pages.entry(PageKey { table, prefix }).or_default();
                child.set(&name, Some(record));
            }
        }
        for prefix in key.prefix.children() {
            self.split(PageKey { table, prefix }, changed);
        }
    }

    /// What to write under a key.
    pub(super) fn value(&self, key: &PageKey) -> String {
        match self.pages.get(key) {
            None => String::new(),
            Some(page) if page.split => SPLIT.into(),
            Some(page) => encode(&page.records),
        }
    }

    /// All pages, in the order in which they have to be written.
    pub(super) fn keys(&self) -> impl Iterator<Item = &PageKey> {
        self.pages.keys()
    }
}

impl Own {
    /// Whether that changed anything.
    fn set(&mut self, name: &Name, record: Option<Bytes>) -> bool {
        if self.records.get(name) == record.as_ref() {
            return false;
        }
        let added = record.as_ref().map_or(0, |record| cost(name, record));
        let before = match record {
            Some(record) => self.records.insert(name.clone(), record),
            None => self.records.remove(name),
        };
        let removed = before.map_or(0, |record| cost(name, &record));
        self.size = (self.size + added).saturating_sub(removed);
        true
    }
}

fn cost(name: &Name, record: &Bytes) -> usize {
    name.as_str().len() + record.len() + RECORD_OVERHEAD
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    fn name(number: usize) -> Name {
        Name::new(format!("task-{number}")).unwrap()
    }

    fn record(byte: u8, len: usize) -> Bytes {
        vec![byte; len].into()
    }

    /// What a reader makes of all pages.
    fn read(pages: &Pages) -> BTreeMap<Name, Bytes> {
        let mut all = BTreeMap::new();
        for key in pages.keys() {
            if let Page::Records(records) = decode(&pages.value(key)).unwrap() {
                for (name, record) in records {
                    assert!(key.prefix.covers(&name));
                    assert!(all.insert(name, record).is_none(), "a record in two pages");
                }
            }
        }
        all
    }

    #[test]
    fn keys_read_back() {
        for table in Table::ALL {
            for digits in [1, 3, 4, 16] {
                let prefix = Prefix::of(0x0123_4567_89ab_cdef, digits);
                let key = PageKey { table, prefix };
                assert_eq!(PageKey::parse(&key.to_string()), Some(key));
            }
        }
        for text in ["", "node", "c:", "c:xyz", "x:012", "c:+12", "c:00000000000000000"] {
            assert_eq!(PageKey::parse(text), None, "{text}");
        }
    }

    /// A peer's engine never forgets a key while its writer lives.
    #[test]
    fn names_that_come_and_go_leave_no_more_behind_than_empty_pages() {
        const ALIVE: usize = 1000;
        let mut pages = Pages::new(3, 8 << 10);
        let mut changed = BTreeSet::new();
        for number in 0..50_000 {
            pages.put(Table::Claims, &name(number), Some(record(1, 300)), &mut changed);
            if let Some(old) = number.checked_sub(ALIVE) {
                pages.put(Table::Claims, &name(old), None, &mut changed);
            }
        }
        assert!(pages.keys().count() <= 4096);
        assert_eq!(read(&pages).len(), ALIVE);
        for number in 0..50_000 {
            pages.put(Table::Claims, &name(number), None, &mut changed);
        }
        assert!(pages.keys().all(|key| pages.value(key).is_empty()));
    }

    #[test]
    fn a_page_over_the_limit_is_split_and_its_marker_written_last() {
        let mut pages = Pages::new(1, 1000);
        let mut changed = BTreeSet::new();
        let mut splits = 0;
        for number in 0..500 {
            changed.clear();
            pages.put(Table::Claims, &name(number), Some(record(1, 90)), &mut changed);
            let written: Vec<_> = changed.iter().collect();
            for (at, key) in written.iter().enumerate() {
                let value = pages.value(key);
                assert!(value.len() <= 1000 * 4 / 3 + 4);
                if value == SPLIT {
                    splits += 1;
                    let rest = written.get(at + 1..).unwrap();
                    assert!(rest.iter().all(|later| later.prefix.digits <= key.prefix.digits));
                }
            }
        }
        assert!(splits >= 16, "{splits}");
        assert_eq!(read(&pages).len(), 500);
    }

    #[test]
    fn a_page_is_emptied_and_never_deleted() {
        let mut pages = Pages::new(3, 1000);
        let mut changed = BTreeSet::new();
        pages.put(Table::Specs, &name(1), Some(record(1, 9)), &mut changed);
        let key = *changed.iter().next().unwrap();
        changed.clear();
        pages.put(Table::Specs, &name(1), None, &mut changed);
        assert_eq!(changed.iter().collect::<Vec<_>>(), [&key]);
        assert_eq!(pages.value(&key), "");
        assert_eq!(pages.keys().count(), 1);
        changed.clear();
        pages.put(Table::Specs, &name(1), None, &mut changed);
        pages.put(Table::Specs, &name(2), None, &mut changed);
        assert!(changed.is_empty());
    }

    #[test]
    fn a_record_over_the_limit_is_refused() {
        let error = Pages::check(1000, &name(1), &record(1, 1000)).unwrap_err();
        assert_eq!(error.limit, 1000);
        assert!(Pages::check(1000, &name(1), &record(1, 900)).is_ok());
    }

    proptest! {
        #[test]
        fn pages_hold_exactly_what_was_put(
            puts in proptest::collection::vec(
                (0usize..60, proptest::option::of((any::<u8>(), 0usize..200))),
                0..300,
            ),
        ) {
            let mut pages = Pages::new(1, 500);
            let mut model = BTreeMap::new();
            for (number, value) in puts {
                let value = value.map(|(byte, len)| record(byte, len));
                pages.put(Table::Claims, &name(number), value.clone(), &mut BTreeSet::new());
                match value {
                    Some(value) => model.insert(name(number), value),
                    None => model.remove(&name(number)),
                };
            }
            prop_assert_eq!(read(&pages), model);
        }

        #[test]
        fn random_pages_never_panic(value in ".{0,200}") {
            let _ = decode(&value);
        }

        #[test]
        fn random_bytes_in_a_page_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = decode(&STANDARD_NO_PAD.encode(bytes));
        }
    }
}
